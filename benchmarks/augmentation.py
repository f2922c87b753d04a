"""What augmentation costs: images per second of training with and without it, side by side, as JSON."""

import json
import os
from pathlib import Path

import click

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from alternating import training_speeds

from medtransfer.core.params import BLOCKS, read_params
from medtransfer.core.recipe import MODERN, Augmentation
from medtransfer.models import freezing, vgg16
from medtransfer.training.augmentation import AugmentedNetwork
from medtransfer.training.device import device_name, keep_freed_memory, make_deterministic
from medtransfer.training.loop import compile_network

SIDES = {
    "none": Augmentation(),
    "modern": MODERN["augment"].model_copy(update={"flips": "any"}),
    "all": Augmentation(
        flips="any", rotation=20, crop=0.75, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, cutout=0.3
    ),
}


@click.command()
@click.option("--size", default=64, show_default=True)
@click.option("--batch", default=32, show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--output", type=click.Path(path_type=Path))
def main(size: int, batch: int, rounds: int, output: Path | None) -> None:
    """Measure all sides in turn, all layers trainable; medians in images a second and their ratios to none."""
    keras.config.disable_interactive_logging()
    make_deterministic()
    keep_freed_memory()
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    labels = draw.integers(0, 7, batch)
    settings = read_params(Path("params.yaml")).train
    models = {}
    for side, augment in SIDES.items():
        network = vgg16.build_vgg16(size, 7, settings, seed=0)
        freezing.set_trainable(network, BLOCKS)
        models[side] = AugmentedNetwork(network, augment, seed=0) if augment != Augmentation() else network
        compile_network(models[side], settings, 1)
    speeds = training_speeds(models, pixels, labels, rounds)
    found = {
        "device": device_name(),
        "cores": os.cpu_count(),
        "backend": keras.backend.backend(),
        "precision": settings.precision,
        "size": size,
        "batch": batch,
        "images_per_second": {side: round(speed, 1) for side, speed in speeds.items()},
        "ratio": {side: round(speed / speeds["none"], 3) for side, speed in speeds.items()},
    }
    text = json.dumps(found, indent=2)
    click.echo(text)
    if output:
        output.write_text(text + "\n")


if __name__ == "__main__":
    main()
