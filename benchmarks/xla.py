"""Training VGG16 with and without XLA on TensorFlow: images per second and their ratio, as JSON."""

import json
import os
import statistics
import time
from pathlib import Path

import click

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from medtransfer.core.params import BLOCKS, read_params
from medtransfer.core.recipe import TrainParams
from medtransfer.models import freezing, vgg16
from medtransfer.training.device import device_name

BATCH = 32


@click.command()
@click.option("--size", default=64, show_default=True, help="Side of the images in pixels.")
@click.option("--images", default=192, show_default=True, help="Random images an epoch.")
@click.option("--rounds", default=3, show_default=True, help="Measured epochs a side, after one to warm up.")
@click.option("--precision", type=click.Choice(["float32", "mixed_bfloat16"]), default="float32", show_default=True)
def main(size: int, images: int, rounds: int, precision: str) -> None:
    """Measure both sides alternately, without determinism: with it, Keras turns XLA off on TensorFlow."""
    settings = read_params(Path(__file__).parent.parent / "params.yaml").train
    params = settings.model_copy(update={"batch_size": BATCH, "precision": precision})
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, size, size, 3), dtype=np.uint8)
    labels = rng.integers(0, 7, images)
    models = {name: compiled(size, params, jit=name == "xla") for name in ("plain", "xla")}
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for measured in range(rounds + 1):
        for name, model in models.items():
            begin = time.perf_counter()
            model.fit(pixels, labels, batch_size=BATCH, verbose=0)
            if measured:
                speeds[name].append(images / (time.perf_counter() - begin))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    result = {
        "size": size, "images": images, "batch_size": BATCH, "rounds": rounds, "precision": precision, "seed": 0,
        "device": device_name(), "cores": os.cpu_count(),
        "images_per_second": {name: round(value, 1) for name, value in medians.items()},
        "xla_over_plain": round(medians["xla"] / medians["plain"], 2),
    }  # fmt: skip
    click.echo(json.dumps(result, indent=2))


def compiled(size: int, params: TrainParams, *, jit: bool) -> keras.Model:
    """Return VGG16, all layers trainable, compiled with or without XLA."""
    model = vgg16.build_vgg16(size, 7, params, seed=0)
    freezing.set_trainable(model, BLOCKS)
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=jit)
    return model


if __name__ == "__main__":
    main()
