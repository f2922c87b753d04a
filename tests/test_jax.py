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
import jax.numpy as jnp
import keras, numpy as np
from conftest import narrow_vgg16
from medtransfer.core.recipe import TrainParams
from medtransfer.layers.gradcam import grad_cam
from medtransfer.models import freezing, vgg16
from medtransfer.training import device_loop
from medtransfer.training.batches import Batches
from medtransfer.training.loop import fit, predict
keras.applications.VGG16 = narrow_vgg16
device_loop.STEPS = 2
labels = np.arange(60) % 3
pixels = np.random.default_rng(0).integers(0, 64, (60, 32, 32, 3), dtype=np.uint8)
pixels += np.uint8(80) * labels[:, None, None, None].astype(np.uint8)
train, validation = np.arange(45), np.arange(45, 60)
shared = {"fraction": 1, "batch_size": 8, "epochs": 3, "dense_units": [64, 64], "precision": "float32"}
shared |= {"scaling": "tf", "learning_rate": 0.003}
shared |= {"augment": {"flips": "any", "rotation": 20}, "label_smoothing": 0.1, "average": 0.9, "schedule": "cosine"}
settings, found = TrainParams.model_validate({**shared, "balance": "class_weights"}), []
for inputs in (pixels, jnp.asarray(pixels)):
    model = vgg16.build_vgg16(32, 3, settings, seed=0)
    freezing.set_trainable(model, ("block5",))
    training = Batches(inputs, train, labels, 8, seed=0, balance=settings.balance)
    assert isinstance(training[0][0], type(inputs))
    history = fit(model, training, Batches(inputs, validation, labels, 8), settings)
    found.append((predict(model, inputs, np.arange(60), 8), history.drop(columns=["seconds", "images_per_second"])))
for one, other in zip(*found):
    np.testing.assert_allclose(one, other, atol=1e-5)
assert history.val_loss.nunique() == 3, history  # it trains
heat = grad_cam(model, pixels[:4], found[1][0][:4].argmax(axis=1))
assert heat.shape == (4, 2, 2) and 0 <= heat.min() and heat.max() == 1
"""


def test_a_loop_on_the_device_gives_the_same_network_as_a_loop_in_python() -> None:
    env = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(sys.path)}
    env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiling takes longer than these small fits
    result = subprocess.run([sys.executable, "-c", SAME_ON_THE_DEVICE], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
