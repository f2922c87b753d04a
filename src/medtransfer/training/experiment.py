"""From a freezing configuration to a fit: build, load weights, freeze, cache features, make batches."""

import time
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from medtransfer.core.dvc import check_unchanged
from medtransfer.core.errors import UserError
from medtransfer.core.layout import run_folder
from medtransfer.core.params import Configuration
from medtransfer.core.prepared import Prepared, encode_labels
from medtransfer.core.recipe import TrainParams
from medtransfer.models import freezing, vgg16
from medtransfer.models.weights import draw_with_moments, imagenet_weights
from medtransfer.training.batches import Batches
from medtransfer.training.device import place_on_device
from medtransfer.training.prefix import use_cached_features


@dataclass(frozen=True)
class Experiment:
    """A network that is ready to be fitted.

    Attributes
    ----------
    network : keras.Model
        The part to fit: the part after the frozen prefix if its features are cached, else the whole network.
    inputs : array of shape (n, height, width, channels)
        The network's input for every image of the data set: features, or pixels as uint8.
    setup_seconds : float
        The time spent on the features.
    feature_seconds : float or None
        The time that an earlier run spent on them; see `use_cached_features`.
    """

    network: keras.Model
    inputs: np.ndarray
    training: Batches
    validation: Batches
    uses_cached_features: bool
    setup_seconds: float
    feature_seconds: float | None


def build_network(
    configuration: Configuration, settings: TrainParams, size: int, classes: int, seed: int, weights_file: str | None
) -> tuple[keras.Model, tuple[str, ...]]:
    """Return VGG16 with its initial weights, frozen as configured, and the names of its trainable layers."""
    model = vgg16.build_vgg16(size, classes, settings, seed)
    load_initial_weights(model, configuration, seed, weights_file)
    return model, tuple(freezing.set_trainable(model, configuration.blocks))


def load_initial_weights(model: keras.Model, configuration: Configuration, seed: int, weights_file: str | None) -> None:
    """Give the convolutional base the initial weights of the configuration.

    Raises
    ------
    UserError
        The run that provides them is not finished or has changed, or the ImageNet weights are not available.
    """
    if configuration.source:
        source = vgg16.load_network(find_source(configuration.source, seed))
        vgg16.set_base_weights(model, vgg16.get_base_weights(source))
    elif configuration.weights == "imagenet":
        vgg16.set_base_weights(model, imagenet_weights(weights_file))
    elif configuration.weights == "imagenet_moments":
        vgg16.set_base_weights(model, draw_with_moments(imagenet_weights(weights_file), seed))


def find_source(source: tuple[str, str], seed: int) -> Path:
    """Return the file of the network that provides the initial weights; a UserError if it is missing or has changed."""
    file = run_folder(*source, seed) / "model.keras"
    if not file.exists():
        raise UserError(f"{file}: not found; run `dvc repro`")
    check_unchanged(file.parent)
    return file


def cache_features(
    model: keras.Model,
    configuration: Configuration,
    settings: TrainParams,
    data: Prepared,
    seed: int,
    max_gb: float,
) -> Experiment:
    """Cache what the frozen prefix computes for the images, and batch it.

    `max_gb` is the largest size of the feature cache in units of 10^9 bytes; 0 turns it off.
    """
    images, samples, description = data
    rows = training_rows(samples, settings.fraction, seed)
    begin = time.perf_counter()
    network, inputs, feature_seconds = use_cached_features(model, configuration.blocks, settings, images, max_gb)
    seconds = time.perf_counter() - begin
    inputs, labels = place_on_device(inputs), encode_labels(samples, description["classes"])
    validation = np.flatnonzero(samples.split == "validation")
    return Experiment(
        network=network,
        inputs=inputs,
        training=Batches(inputs, rows, labels, settings.batch_size, seed, settings.balance, settings.sampling_power),
        validation=Batches(inputs, validation, labels, settings.batch_size),
        uses_cached_features=network is not model,
        setup_seconds=seconds,
        feature_seconds=feature_seconds,
    )


def training_rows(samples: pd.DataFrame, fraction: float, seed: int) -> np.ndarray:
    """Return the rows of the training images, or a random fraction of each class; a UserError if one has no images."""
    rows = np.flatnonzero(samples.split == "train")
    if fraction == 1:
        return rows
    labels = samples.label.iloc[rows]
    try:
        kept, _, left, _ = train_test_split(rows, labels, train_size=fraction, stratify=labels, random_state=seed)
        if lost := set(labels) - set(left):
            raise ValueError(f"none of {', '.join(sorted(lost))} is left")
    except ValueError as error:
        raise UserError(
            f"fraction {fraction:g} of {len(rows)} training images: too few to keep each class's share ({error}); "
            "choose a larger fraction"
        ) from None
    return np.sort(kept)
