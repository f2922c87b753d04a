"""The gradient of a convolution's kernel in bfloat16: TensorFlow's own against nine matrix products, as JSON."""

import json
import os
import statistics
import time
from collections.abc import Callable

import click

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from medtransfer.training.device import device_name
from medtransfer.training.gradients import _gradient_of_kernel

# Side of the feature map, channels in and out: what VGG16 has at 32, 64 and 224 px.
SHAPES = [(2, 512, 512), (4, 512, 512), (8, 256, 512), (8, 512, 512), (14, 512, 512), (16, 256, 256), (28, 512, 512)]


@click.command()
@click.option("--batch", default=32, show_default=True)
@click.option("--rounds", default=7, show_default=True)
def main(batch: int, rounds: int) -> None:
    """Measure both alternately; medians in milliseconds and their ratio."""
    rows = []
    for side, channels, filters in SHAPES:
        x, upstream = (
            tf.cast(tf.random.normal((batch, side, side, depth), seed=0), tf.bfloat16) for depth in (channels, filters)
        )
        size = [3, 3, channels, filters]
        own = tf.function(
            lambda x, d, size=size: tf.raw_ops.Conv2DBackpropFilter(
                input=x, filter_sizes=size, out_backprop=d, strides=[1, 1, 1, 1], padding="SAME"
            )
        )
        products = tf.function(_gradient_of_kernel)
        seconds: dict[str, list[float]] = {"own": [], "products": []}
        for _ in range(rounds + 2):
            for name, gradient in (("own", own), ("products", products)):
                seconds[name].append(_time(gradient, x, upstream))
        own_ms, products_ms = (1000 * statistics.median(values[2:]) for values in seconds.values())
        rows.append(
            {
                "side": side,
                "channels": channels,
                "filters": filters,
                "tensorflow_ms": round(own_ms, 1),
                "products_ms": round(products_ms, 1),
                "ratio": round(own_ms / products_ms, 2),
            }
        )
    click.echo(json.dumps({"device": device_name(), "cores": os.cpu_count(), "batch": batch, "rows": rows}, indent=2))


def _time(gradient: Callable[..., tf.Tensor], x: tf.Tensor, upstream: tf.Tensor) -> float:
    begin = time.perf_counter()
    gradient(x, upstream).numpy()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
