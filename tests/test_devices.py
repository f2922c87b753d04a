"""A fit over several devices finds what it finds on one, to rounding; virtual CPU devices stand for GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from conftest import PROJECT
from medtransfer.core.files import atomic_folder
from medtransfer.core.params import Configuration, Params
from medtransfer.data.catalogue import CHEST_XRAY
from medtransfer.data.preparation import prepare_dataset

SAME_ON_EVERY_DEVICE = """
import sys
from pathlib import Path
import jax, keras, numpy as np
from medtransfer.models import freezing, vgg16
from medtransfer.core.params import read_params
from medtransfer.training.batches import Batches
from medtransfer.training.device import every_device
from medtransfer.training.loop import fit, predict
from medtransfer.training.prefix import use_cached_features
changes = {"batch_size": 8, "epochs": 2, "dense_units": [8, 8], "learning_rate": 1e-3}
settings = read_params(Path(sys.argv[1])).train.model_copy(update=changes)
pixels = np.random.default_rng(0).integers(0, 256, (27, 32, 32, 3), dtype=np.uint8)
labels = np.arange(27) % 2
TOLERANCE = 1e-5

def one_fit(blocks):
    model = vgg16.build_vgg16(32, 2, settings, seed=0)
    freezing.set_trainable(model, blocks)
    network, inputs, _ = use_cached_features(model, blocks, settings, pixels, 1)
    # Neither part can be divided by four.
    parts = Batches(inputs, np.arange(21), labels, 8, 0), Batches(inputs, np.arange(21, 27), labels, 8)
    history = fit(network, *parts, settings)
    return model, history.loss, [*history.loss, *history.val_loss, *predict(network, inputs, np.arange(27), 8).ravel()]

for blocks in ((), ("block5",)):
    one = one_fit(blocks)[2]
    with every_device() as devices:
        assert devices == 4
        model, loss, every = one_fit(blocks)
        assert len(model.trainable_variables[0].value.sharding.device_set) == 4
    off = np.abs(np.subtract(one, every)).max()
    assert off < TOLERANCE, off
    assert abs(loss[1] - loss[0]) > 100 * TOLERANCE  # a fit that learns nothing would agree as well
with every_device():
    compiled = jax.jit(lambda batch: model(batch)).lower(pixels[:8]).compile().as_text()
assert "[2,32,32,64]" in compiled  # the first convolution's part of eight images
"""


def run_on(devices: int, code: str, folder: Path) -> str:
    """Run code on JAX with virtual devices and return what it wrote to stderr."""
    env = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(PROJECT / "src"), "XDG_CACHE_HOME": str(folder)}
    env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    env.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-c", code, str(PROJECT / "params.yaml")]
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stderr


@pytest.mark.slow
def test_several_devices_find_what_one_finds(tmp_path: Path) -> None:
    run_on(4, SAME_ON_EVERY_DEVICE, tmp_path)


STOPPED_AND_TAKEN_UP = """
import logging, os
from pathlib import Path
from medtransfer.core.params import read_params
from medtransfer.pipeline.train import train
from medtransfer.training import checkpoints

logging.basicConfig(level=logging.INFO)

def train_here():
    train(read_params(Path("params.yaml")), "chest_xray", "random_head", 0)
    return Path("artifacts/runs/chest_xray/random_head-seed0/predictions.csv").read_bytes()

def stop_after_it(*arguments):
    save(*arguments)
    raise KeyboardInterrupt

save, checkpoints.save = checkpoints.save, stop_after_it
try:
    train_here()
    raise AssertionError("was not interrupted")
except KeyboardInterrupt:
    checkpoints.save = save
resumed = train_here()
os.chdir("whole")
assert train_here() == resumed
"""


@pytest.mark.slow
def test_a_stage_trains_on_every_device_and_goes_on_after_an_interruption(
    tmp_path: Path, demo: Path, params: Params
) -> None:
    small = params.model_copy(
        update={
            "train": params.train.model_copy(update={"dense_units": [8, 8], "epochs": 3}),
            "configurations": {
                **params.configurations,
                "random_head": Configuration(weights="random", trainable="head"),
            },
        }
    )
    for project in (tmp_path, tmp_path / "whole"):
        with atomic_folder(project / "artifacts" / "prepared" / "chest_xray") as folder:
            prepare_dataset(CHEST_XRAY, demo / "chest_xray", params.datasets["chest_xray"], folder)
        YAML().dump(small.model_dump(), project / "params.yaml")
    assert run_on(2, STOPPED_AND_TAKEN_UP, tmp_path).count("resuming after epoch 1 of") == 1
    record = json.loads((tmp_path / "artifacts/runs/chest_xray/random_head-seed0/run.json").read_text())
    assert record["devices"] == 2
    assert record["epochs"] == 3
