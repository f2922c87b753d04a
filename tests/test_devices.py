"""A fit over several devices finds what it finds on one, to rounding; virtual CPU devices stand for GPUs."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import PROJECT

SAME_ON_EVERY_DEVICE = """
import sys
from pathlib import Path
import jax, keras, numpy as np
from medtransfer.models import vgg16
from medtransfer.params import read_params
from medtransfer.training.batches import Batches
from medtransfer.training.device import every_device
from medtransfer.training.fit import fit, predict
from medtransfer.training.prefix import leave_out_prefix
settings = read_params(Path(sys.argv[1])).train.model_copy(update={"batch_size": 8, "epochs": 2, "dense_units": [8, 8]})
pixels = np.random.default_rng(0).integers(0, 256, (45, 32, 32, 3), dtype=np.uint8)
labels = np.arange(45) % 2

def one_fit(blocks):
    model = vgg16.build_vgg16(32, 2, settings, seed=0)
    vgg16.set_trainable(model, blocks)
    network, inputs = leave_out_prefix(model, blocks, settings, pixels, 1)
    # Neither part can be divided by four.
    parts = Batches(inputs, np.arange(35), labels, 8, 0), Batches(inputs, np.arange(35, 45), labels, 8)
    history = fit(network, *parts, settings)
    return model, [*history.loss, *history.val_loss, *predict(network, inputs, np.arange(45), 8).ravel()]

for blocks in ((), ("block5",), ("block1", "block2", "block3", "block4", "block5")):
    one = one_fit(blocks)[1]
    with every_device() as devices:
        assert devices == 4
        model, every = one_fit(blocks)
        assert len(model.trainable_variables[0].value.sharding.device_set) == 4
        compiled = jax.jit(lambda batch: model(batch)).lower(pixels[:8]).compile().as_text()
        assert "[2,32,32,64]" in compiled  # the first convolution's part of eight images
    assert np.allclose(one, every, rtol=1e-3, atol=1e-4), np.abs(np.subtract(one, every)).max()
"""


def test_several_devices_find_what_one_finds(tmp_path: Path) -> None:
    env = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(PROJECT / "src"), "XDG_CACHE_HOME": str(tmp_path)}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    command = [sys.executable, "-c", SAME_ON_EVERY_DEVICE, str(PROJECT / "params.yaml")]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
