"""Whether an image resembles the training images: its Mahalanobis distance from them in feature space.

The features are the means over positions of the first block's output (Lee et al., A Simple Unified Framework for
Detecting Out-of-Distribution Samples and Adversarial Attacks, NeurIPS 2018; here without classes): colours and fine
structure. Energy, the largest probability and the last features do not work: trained to tell a few classes apart, they
mistake a chest X-ray for a skin lesion (docs/serving.md).
"""

from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from sklearn.covariance import LedoitWolf

LAYER = "block1_pool"
METHOD = f"Mahalanobis distance from the training images in the mean features of {LAYER}"
FALSE_ALARMS = 0.01  # the share of validation images beyond the threshold
DRAWN = 1000  # maximum number of images of each split
BATCH = 32


class Reference(NamedTuple):
    """The training images in feature space: their mean, (features,), and the inverse of their covariance."""

    mean: np.ndarray
    precision: np.ndarray


def with_features(network: keras.Model) -> keras.Model:
    """Return the network with LAYER's output before its probabilities."""
    return keras.Model(network.inputs, [network.get_layer(LAYER).output, *network.outputs])


def pool(maps: Any) -> np.ndarray:
    """Return the means over the positions of maps (n, height, width, features): (n, features), float64."""
    return np.asarray(maps, np.float32).mean(axis=(1, 2), dtype=np.float64)


def distances(reference: Reference, features: np.ndarray) -> np.ndarray:
    """Return the distance (n,) of each image's features (n, features) from the training images."""
    away = features - reference.mean
    return np.sqrt(np.einsum("ni,ij,nj->n", away, reference.precision, away).clip(0))


def features_of(network: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return the features (n, features) of images (n, size, size, 3), uint8."""
    maps = keras.Model(network.inputs, network.get_layer(LAYER).output)
    batches = [np.asarray(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    return np.concatenate([pool(maps.predict_on_batch(batch)) for batch in batches])


def describe_training(network: keras.Model, images: np.ndarray, splits: np.ndarray) -> tuple[Reference, dict[str, Any]]:
    """Return the training images in feature space, and the threshold beyond which an image is unlike them.

    Up to DRAWN images (n, size, size, 3), uint8, of each split are used; `splits` (n,) has their names. The dict has
    method; threshold, the distance that a share of FALSE_ALARMS of the validation images exceeds; validation_images;
    false_alarm_rate, the share of test images beyond the threshold; test_images.
    """
    rng, features = np.random.default_rng(0), {}
    for split in ("train", "validation", "test"):
        rows = np.flatnonzero(splits == split)
        rows = np.sort(rng.choice(rows, min(DRAWN, len(rows)), replace=False))
        features[split] = features_of(network, images[rows])
    fitted = LedoitWolf().fit(features["train"])
    reference = Reference(fitted.location_, fitted.precision_)
    validated, tested = (np.sort(distances(reference, features[split])) for split in ("validation", "test"))
    # Of n + 1 images like these, a share of FALSE_ALARMS is expected beyond it (the largest, if they are few).
    threshold = validated[min(len(validated), int(np.ceil((len(validated) + 1) * (1 - FALSE_ALARMS)))) - 1]
    return reference, {
        "method": METHOD,
        "threshold": float(threshold),
        "validation_images": len(validated),
        "false_alarm_rate": float((tested > threshold).mean()),
        "test_images": len(tested),
    }


def save(reference: Reference, path: Path) -> None:
    """Write a reference as a .npz file."""
    np.savez(path, **reference._asdict())


def load(path: Path) -> Reference:
    """Read what `save` wrote; it is never a pickle."""
    with np.load(path, allow_pickle=False) as arrays:
        return Reference(arrays["mean"], arrays["precision"])
