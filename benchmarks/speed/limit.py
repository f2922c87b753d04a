"""The machine's own limit: multiply-adds that a step needs, and the rate that a matrix product reaches."""

import statistics
import time
from itertools import pairwise

import keras
import numpy as np

from medtransfer.core.params import BLOCKS
from medtransfer.training.device import accelerators

CHANNELS = {"block1": (64,) * 2, "block2": (128,) * 2, "block3": (256,) * 3, "block4": (512,) * 3, "block5": (512,) * 3}


def multiply_adds(
    image_size: int, dense_units: list[int], classes: int, trainable: tuple[str, ...], *, stored: bool
) -> int:
    """Return the multiply-adds that training needs for one image.

    Forward through every layer that runs; for each trainable layer as many again for the gradient of
    its weights; and for each layer behind the first trainable one as many again for the gradient of
    its input. Biases, pooling and the optimizer are left out.

    Parameters
    ----------
    stored : bool
        The output of the frozen prefix comes from the store.
    """
    layers = _layers(image_size, dense_units, classes)
    trains = [part in (*trainable, "head") for part, _ in layers]
    first = trains.index(True)
    forward = sum(count for _, count in layers[first if stored else 0 :])
    weights = sum(count for (_, count), trained in zip(layers, trains, strict=True) if trained)
    inputs = sum(count for _, count in layers[first + 1 :])
    return forward + weights + inputs


def _layers(image_size: int, dense_units: list[int], classes: int) -> list[tuple[str, int]]:
    """Return block and forward multiply-adds of each layer with weights, in the order of the network."""
    layers, side, before = [], image_size, 3
    for block in BLOCKS:
        for channels in CHANNELS[block]:
            layers.append((block, side * side * 9 * before * channels))
            before = channels
        side //= 2
    widths = [side * side * before, *dense_units, classes]
    return layers + [("head", a * b) for a, b in pairwise(widths)]


def matmul_rate(precision: str, sizes: tuple[int, ...] = (), repeats: int = 5) -> float:
    """Return the best rate over these sizes of square matrices, in multiply-adds per second; median of `repeats`.

    The default sizes are larger for a GPU, which needs larger products to reach its full rate.
    """
    dtype = {"float32": "float32", "mixed_bfloat16": "bfloat16"}[precision]
    usual, products = ((8192, 16384), 20) if accelerators() else ((2048, 4096), 1)
    return max(_rate(size, dtype, products, repeats) for size in sizes or usual)


def _rate(size: int, dtype: str, products: int, repeats: int) -> float:
    """Return the rate of a chain of products; a GPU gets the whole chain at once."""
    matrix = keras.ops.cast(keras.ops.convert_to_tensor(np.full((size, size), 1 / size, np.float32)), dtype)
    seconds = []
    for _ in range(repeats + 1):
        begin, product = time.perf_counter(), matrix
        for _ in range(products):
            product = keras.ops.matmul(product, matrix)
        float(product[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - begin)
    return products * size**3 / statistics.median(seconds[1:])
