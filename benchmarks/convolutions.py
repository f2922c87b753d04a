"""A training step in bfloat16, as the processor does it and with convolutions in float32, and in float32, as JSON."""

import json
import os
from pathlib import Path
from unittest import mock

import click

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from alternating import training_speeds

from medtransfer.core.params import BLOCKS, read_params
from medtransfer.models import freezing, vgg16
from medtransfer.training.device import device_name, keep_freed_memory, make_deterministic
from medtransfer.training.loop import compile_network

# Precision, and whether the processor is taken for one that is slow in bfloat16.
SIDES = {
    "bfloat16": ("mixed_bfloat16", False),
    "bfloat16_convolved_in_float32": ("mixed_bfloat16", True),
    "float32": ("float32", False),
}
PARTS = {"all": BLOCKS, "first block": BLOCKS[:1], "last block": BLOCKS[-1:]}


@click.command()
@click.option("--size", default=64, show_default=True)
@click.option("--batch", default=32, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(size: int, batch: int, rounds: int) -> None:
    """Measure all sides in turn; medians in images a second and their ratios to bfloat16."""
    keras.config.disable_interactive_logging()
    make_deterministic()
    keep_freed_memory()
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    labels = draw.integers(0, 7, batch)
    rows = []
    for part, blocks in PARTS.items():
        models = {side: _build(size, blocks, *how) for side, how in SIDES.items()}
        speeds = training_speeds(models, pixels, labels, rounds)
        ratios = {f"{side}_ratio": round(speed / speeds["bfloat16"], 2) for side, speed in speeds.items()}
        rows.append({"trainable": part, **{side: round(speed, 1) for side, speed in speeds.items()}, **ratios})
    click.echo(
        json.dumps(
            {"device": device_name(), "cores": os.cpu_count(), "size": size, "batch": batch, "rows": rows}, indent=2
        )
    )


def _build(size: int, blocks: tuple[str, ...], precision: str, slow: bool) -> keras.Model:
    settings = read_params(Path("params.yaml")).train.model_copy(update={"precision": precision})
    with (
        mock.patch("medtransfer.models.convolution.processor_has_slow_bfloat16", return_value=slow),
        mock.patch("medtransfer.training.gradients.processor_has_slow_bfloat16", return_value=slow),
    ):
        model = vgg16.build_vgg16(size, 7, settings, seed=0)
        freezing.set_trainable(model, blocks)
        compile_network(model, settings, 1)
    return model


if __name__ == "__main__":
    main()
