"""The frozen prefix: the blocks before the first trainable one."""

import logging
import math
from collections.abc import Iterator
from importlib.metadata import version

import keras
import numpy as np

from medtransfer.core.params import BLOCKS
from medtransfer.core.recipe import TrainParams
from medtransfer.models import vgg16
from medtransfer.models.freezing import block_of
from medtransfer.models.weights import digest
from medtransfer.training.device import device_name
from medtransfer.training.feature_cache import GB, cached_features, hash_array

log = logging.getLogger(__name__)

# Constant, so that features do not depend on the batch size of a fit.
BATCH = 64


def use_cached_features(
    model: keras.Model, trainable: tuple[str, ...], settings: TrainParams, images: np.ndarray, max_gb: float
) -> tuple[keras.Model, np.ndarray, float | None]:
    """Return the network to train, its inputs, and the seconds that computing these took in an earlier run.

    With cached features: the part of the network after the frozen prefix, and the features (n, h, w, channels). Without
    (there is no frozen prefix, the recipe changes images, `max_gb` is 0 or there is no room): the whole network and
    the images (n, size, size, 3).
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
        "images": hash_array(images),
        "image_size": images.shape[1],
        "scaling": settings.scaling,
        "precision": settings.precision,
        "backend": f"{backend} {version(backend)}",
        "device": device_name(),
    }
    shape = (len(images), *prefix.output_shape[1:])
    features, seconds = cached_features(
        made_from, shape, lambda row: compute_features(prefix, images, row), max_gb * GB
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


def compute_features(prefix: keras.Model, images: np.ndarray, start: int) -> Iterator[np.ndarray]:
    """Yield the features of the images from row `start` on, in batches of at most (BATCH, h, w, channels)."""
    for row in range(start, len(images), BATCH):
        batch = np.asarray(images[row : row + BATCH])
        # The last batch is padded: another shape would have to be compiled again.
        full = np.concatenate([batch, np.zeros((BATCH - len(batch), *batch.shape[1:]), batch.dtype)])
        yield np.asarray(prefix.predict_on_batch(full))[: len(batch)]
