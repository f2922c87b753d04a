"""The frozen prefix: the blocks before the first trainable one."""

import hashlib
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version

import keras
import numpy as np

from medtransfer.core.files import user_cache
from medtransfer.core.params import BLOCKS
from medtransfer.core.recipe import TrainParams
from medtransfer.models import vgg16
from medtransfer.models.freezing import block_of
from medtransfer.models.weights import digest
from medtransfer.training.device import accelerators, device_name, fits_on_device
from medtransfer.training.feature_cache import GB, cached_features

log = logging.getLogger(__name__)

# Constant, so that features do not depend on the batch size of a fit.
BATCH = 64
# Batches on which computing and reading are timed.
TIMED = 8


def use_cached_features(
    model: keras.Model, trainable: tuple[str, ...], settings: TrainParams, images: np.ndarray, max_gb: float
) -> tuple[keras.Model, np.ndarray, float | None]:
    """Return the network to train, its inputs, and the seconds that computing these took in an earlier run.

    With cached features: the part of the network after the frozen prefix, and the features (n, h, w, channels). Without
    (no frozen prefix, a recipe that changes images, a `max_gb` of 0, no room, or a GPU that computes them faster
    than it reads them): the whole network and the images (n, size, size, 3).
    The seconds are those of `cached_features`.
    """
    blocks = frozen_prefix(trainable)
    if not blocks or max_gb == 0:
        return model, images, 0.0
    if settings.changes_images:
        log.info(
            "features: not stored, because the recipe changes images; the frozen blocks, %.0f%% of the multiplications "
            "of a forward pass, are computed in every epoch",
            100 * _share(model, blocks),
        )
        return model, images, 0.0
    prefix, rest = divide(model, blocks)
    backend = keras.backend.backend()
    made_from = {
        "prefix": "-".join(dict.fromkeys((blocks[0], blocks[-1]))),
        "weights": digest(vgg16.get_base_weights(prefix)),
        "images": hashlib.sha256(images.data).hexdigest(),
        "image_size": images.shape[1],
        "scaling": settings.scaling,
        "precision": settings.precision,
        "backend": f"{backend} {version(backend)}",
        "device": device_name(),
    }
    shape = (len(images), *prefix.output_shape[1:])

    def objection() -> str:
        # On a CPU, computing always takes longer than reading.
        return faster_to_compute(prefix, images, settings) if accelerators() else ""

    features, seconds = cached_features(
        made_from, shape, lambda row: compute_features(prefix, images, row), max_gb * GB, objection
    )
    return (model, images, 0.0) if features is None else (rest, features, seconds)


def _share(model: keras.Model, blocks: tuple[str, ...]) -> float:
    """Return the blocks' share of the convolutions' multiplications."""
    costs = {
        layer.name: math.prod(layer.output.shape[1:3]) * math.prod(layer.kernel.shape)
        for layer in vgg16.base_layers(model)
    }
    return sum(cost for name, cost in costs.items() if block_of(name) in blocks) / sum(costs.values())


def frozen_prefix(trainable: tuple[str, ...]) -> tuple[str, ...]:
    """Return the blocks before the first trainable one; all five where only the head trains."""
    first = min((BLOCKS.index(block) for block in trainable), default=len(BLOCKS))
    return BLOCKS[:first]


def divide(model: keras.Model, prefix: tuple[str, ...]) -> tuple[keras.Model, keras.Model]:
    """Split VGG16 after its frozen prefix; both parts share the model's layers.

    Returns
    -------
    tuple of keras.Model
        Pixels (batch, size, size, 3), uint8 → features (batch, h, w, channels) in the precision of
        the network, and features → probabilities (batch, classes), float32.
    """
    joint = model.get_layer(f"{prefix[-1]}_pool").output
    return keras.Model(model.input, joint, name="prefix"), keras.Model(joint, model.output, name="rest")


def faster_to_compute(prefix: keras.Model, images: np.ndarray, settings: TrainParams) -> str:
    """Return a comparison in words if reading features takes longer than computing them in each epoch, else "".

    Both are measured on TIMED batches. Features that fit on the device are read once per fit, which has at least
    `patience` + 1 epochs; others are read in each epoch.
    """
    pool = keras.layers.GlobalAveragePooling2D()  # so that only a few numbers come back from the device
    compute = keras.Model(prefix.input, pool(prefix.output))
    stored = keras.Input(prefix.output_shape[1:], dtype=prefix.output.dtype)
    read = keras.Model(stored, pool(stored))
    pixels = np.resize(images[: BATCH * TIMED], (BATCH * TIMED, *images.shape[1:]))
    features = np.concatenate(list(compute_features(prefix, pixels, 0)))
    with tempfile.TemporaryFile(dir=user_cache()) as file:
        file.write(features.tobytes())

        def read_features(start: int) -> np.ndarray:
            batch = features[start : start + BATCH]
            file.seek(start * features[0].nbytes)
            return np.frombuffer(file.read(batch.nbytes), batch.dtype).reshape(batch.shape)

        computing = _seconds_per_image(lambda start: compute.predict_on_batch(pixels[start : start + BATCH]))
        reading = _seconds_per_image(lambda start: read.predict_on_batch(read_features(start)))
    if fits_on_device(len(images) * features[0].nbytes):
        reading /= settings.patience + 1
    if reading <= computing:
        return ""
    return f"computing them takes {computing * 1e3:.3g} ms per image and epoch, reading them {reading * 1e3:.3g} ms"


def _seconds_per_image(take: Callable[[int], object]) -> float:
    take(0)  # compiles
    begin = time.perf_counter()
    for number in range(TIMED):
        take(number * BATCH)
    return (time.perf_counter() - begin) / (TIMED * BATCH)


def compute_features(prefix: keras.Model, images: np.ndarray, start: int) -> Iterator[np.ndarray]:
    """Yield the features of the images from row `start` on, in batches of at most (BATCH, h, w, channels)."""
    for row in range(start, len(images), BATCH):
        batch = np.asarray(images[row : row + BATCH])
        # The last batch is padded: another shape would have to be compiled again.
        full = np.concatenate([batch, np.zeros((BATCH - len(batch), *batch.shape[1:]), batch.dtype)])
        yield np.asarray(prefix.predict_on_batch(full))[: len(batch)]
