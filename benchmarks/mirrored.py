"""Does TensorFlow's MirroredStrategy train our networks under Keras 3? Two virtual CPU devices stand in for GPUs.

python benchmarks/mirrored.py

Each network is fitted on one device and on two, each in a separate process, since some end the process.
"""

import datetime
import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np

PARAMS = Path(__file__).parent.parent / "params.yaml"
NETWORKS = {"head": (), "last block": ("block5",), "all": tuple(f"block{number}" for number in range(1, 6))}
SECONDS = 300
SIZE, BATCH = 32, 8


@click.command()
@click.option("--network", type=click.Choice(list(NETWORKS)), help="Fit only this one and print its losses.")
@click.option("--devices", default=1, show_default=True)
@click.option("--images", default=44, show_default=True, help="44 leave the last batches short, 40 fill them.")
@click.option("--deterministic/--fast", default=True, show_default=True, help="As the study fits, or without that.")
def main(network: str | None, devices: int, images: int, deterministic: bool) -> None:
    """Fit every network on one device and on two, and compare their losses."""
    if network:
        click.echo(json.dumps(losses(NETWORKS[network], devices, images, deterministic)))
        return
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")}
    mode = "--deterministic" if deterministic else "--fast"
    fits: dict[str, dict[str, object]] = {}
    for name, devices in itertools.product(NETWORKS, (1, 2)):
        fits.setdefault(name, {})[f"on {devices}"] = fitted(name, devices, images, mode)
        click.echo(f"{name} on {devices}: {fits[name][f'on {devices}']}", err=True)
    found = {
        "date": datetime.date.today().isoformat(),
        "versions": versions,
        "images": images,
        "deterministic": deterministic,
        **fits,
    }
    click.echo(json.dumps(found, indent=2))


def fitted(network: str, devices: int, images: int, mode: str) -> object:
    """Return the losses of one network, or what ended its process."""
    command = [sys.executable, __file__, "--network", network, "--devices", str(devices), "--images", str(images), mode]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"not_finished_after_seconds": SECONDS}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    lines = [line.strip() for line in done.stderr.splitlines()]
    reason = [line for line in lines if re.match(r"\(0\)|[\w.]*Error:", line)] or lines
    return {"exit_code": done.returncode, "reason": reason[-1][:300]}


def losses(blocks: tuple[str, ...], devices: int, images: int, deterministic: bool) -> dict[str, list[float]]:
    """Return the training and validation losses of two epochs."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import tensorflow as tf

    from medtransfer.core.params import read_params
    from medtransfer.models import freezing, vgg16
    from medtransfer.training.batches import Batches
    from medtransfer.training.device import make_deterministic
    from medtransfer.training.loop import fit
    from medtransfer.training.prefix import use_cached_features

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    if deterministic:
        make_deterministic()
    strategy = tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(devices)])
    # Each device draws its own dropout.
    changes = {"batch_size": BATCH, "epochs": 2, "dense_units": [8, 8], "dropout": 0.0, "learning_rate": 1e-3}
    settings = read_params(PARAMS).train.model_copy(update=changes)
    pixels = np.random.default_rng(0).integers(0, 256, (images, SIZE, SIZE, 3), dtype=np.uint8)
    labels = np.arange(images) % 2
    trained = images * 4 // 5
    with strategy.scope() if devices > 1 else tf.device("CPU:0"):
        model = vgg16.build_vgg16(SIZE, 2, settings, seed=0)
        freezing.set_trainable(model, blocks)
        network, inputs, _ = use_cached_features(model, blocks, settings, pixels, 0)
        training = Batches(inputs, np.arange(trained), labels, BATCH, 0)
        history = fit(network, training, Batches(inputs, np.arange(trained, images), labels, BATCH), settings)
    return {column: [float(value) for value in history[column]] for column in ("loss", "val_loss")}


if __name__ == "__main__":
    main()
