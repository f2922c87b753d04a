"""The same code on JAX, with no TensorFlow to import."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from conftest import PROJECT

NO_TENSORFLOW = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise ModuleNotFoundError(f"No module named {name!r} (refused by the test)", name=name)
sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.parametrize("configuration", ["random_head", pytest.param("cnn_random", marks=pytest.mark.slow)])
def test_a_tiny_configuration_trains_on_jax_without_tensorflow(
    tmp_path: Path, prepared: Path, empty_store: Path, configuration: str
) -> None:
    yaml = YAML()
    values = yaml.load((PROJECT / "params.yaml").read_text())
    values["train"] |= {"epochs": 1, "dense_units": [8, 8], "batch_size": 64}
    values["configurations"]["random_head"] = {"weights": "random", "trainable": "head"}
    with (tmp_path / "params.yaml").open("w") as file:
        yaml.dump(values, file)
    shutil.copytree(prepared, tmp_path / "artifacts" / "prepared" / "chest_xray")
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_store, tmp_path / "mlruns" / "mlflow.db")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_TENSORFLOW)
    env = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": f"{tmp_path / 'site'}:{PROJECT / 'src'}"}
    env["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    env.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "medtransfer", "stage", "train", "chest_xray", configuration, "--seed", "0"]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    folder = tmp_path / "artifacts" / "runs" / "chest_xray" / f"{configuration}-seed0"
    assert json.loads((folder / "run.json").read_text())["backend"] == "jax"
    predictions = pd.read_csv(folder / "predictions.csv")
    assert len(predictions) == 88
    assert list((tmp_path / "cache/medtransfer/jax").iterdir()), "the next process compiles again"
    assert (predictions[["p_NORMAL", "p_PNEUMONIA"]].sum(axis=1) - 1).abs().max() < 1e-5


SAME_ON_THE_DEVICE = """
import sys
from pathlib import Path
import jax.numpy as jnp
import keras, numpy as np
from medtransfer.models import freezing, vgg16
from medtransfer.core.params import read_params
from medtransfer.training.batches import Batches
from medtransfer.training.loop import fit, predict
settings = read_params(Path(sys.argv[1])).train.model_copy(update={"batch_size": 8, "epochs": 2, "dense_units": [8, 8]})
pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
labels = np.arange(40) % 2
found = []
for inputs in (pixels, jnp.asarray(pixels)):
    model = vgg16.build_vgg16(32, 2, settings, seed=0)
    freezing.set_trainable(model, ())
    assert isinstance(Batches(inputs, np.arange(40), labels, 8)[0][0], type(inputs))
    fit(model, Batches(inputs, np.arange(32), labels, 8, 0), Batches(inputs, np.arange(32, 40), labels, 8), settings)
    found.append(predict(model, inputs, np.arange(40), 8))
assert (found[0] == found[1]).all()
from medtransfer.layers.gradcam import grad_cam
heat = grad_cam(model, pixels[:4], np.zeros(4, int))
assert heat.shape == (4, 2, 2) and 0 <= heat.min() and heat.max() == 1
"""


@pytest.mark.slow
def test_arrays_on_the_device_give_the_same_bits_as_arrays_in_memory() -> None:
    env = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(PROJECT / "src")}
    result = subprocess.run(
        [sys.executable, "-c", SAME_ON_THE_DEVICE, str(PROJECT / "params.yaml")],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
