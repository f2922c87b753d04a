"""The sides of the comparison: each builds VGG16 for one freezing configuration and trains it an epoch at a time."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

from medtransfer.core.recipe import TrainParams
from medtransfer.models import freezing, vgg16
from medtransfer.training.batches import Batches, feed
from medtransfer.training.device import make_deterministic, place_on_device
from medtransfer.training.device_loop import DeviceBatches, is_on_device, loop_on_device
from medtransfer.training.loop import compile_network
from medtransfer.training.prefix import use_cached_features

MAX_GB = 50  # of stored features


@dataclass
class Sample:
    """What all sides train on.

    Attributes
    ----------
    images : ndarray of shape (n, size, size, 3), uint8, memory-mapped; the training images first
    labels : ndarray of shape (n,), int
    training : int
        How many of them are for training; the rest is for validation.
    folder : Path
        The same images as train/<class>/*.png and validation/<class>/*.png.
    """

    images: np.ndarray
    labels: np.ndarray
    training: int
    classes: int
    folder: Path


@dataclass
class Side:
    """A network that is ready to train: `epoch` trains one and waits for its end; `validate` gives the accuracy.

    `fill_seconds` went into the features of the frozen prefix before the first epoch.
    """

    epoch: Callable[[], None]
    validate: Callable[[], float]
    fill_seconds: float = 0.0


def make_sample(
    images: np.ndarray, labels: np.ndarray, train: np.ndarray, validation: np.ndarray, folder: Path
) -> Sample:
    """Copy the rows `train` and `validation` to a memory-mapped array and to one folder per class."""
    rows = np.concatenate([train, validation])
    np.save(folder / "images.npy", images[rows])
    sample = Sample(
        np.load(folder / "images.npy", mmap_mode="r"), labels[rows], len(train), int(labels.max()) + 1, folder
    )
    names = _class_folders(sample)
    for split in ("train", "validation"):
        for name in names:  # Keras numbers the folders that are there
            (folder / split / name).mkdir(parents=True)
    for number, (pixels, label) in enumerate(zip(sample.images, sample.labels, strict=True)):
        target = folder / ("train" if number < len(train) else "validation") / names[label]
        Image.fromarray(pixels).save(target / f"{number}.png")
    return sample


def _class_folders(sample: Sample) -> list[str]:
    return [f"{label:03}" for label in range(sample.classes)]


def ours(
    sample: Sample, settings: TrainParams, trainable: tuple[str, ...], weights: list[np.ndarray], seed: int
) -> Side:
    """Return this project's training. The frozen prefix, where there is one, is computed here."""
    with deterministic():
        model = _build(sample, settings, trainable, weights, seed)
        begin = time.perf_counter()
        network, inputs, _ = use_cached_features(model, trainable, settings, sample.images, MAX_GB)
        seconds = time.perf_counter() - begin
        compile_network(network, settings, 1)
    inputs, rows = place_on_device(inputs), np.arange(len(sample.images))
    training = Batches(inputs, rows[: sample.training], sample.labels, settings.batch_size, seed)
    validation = Batches(inputs, rows[sample.training :], sample.labels, settings.batch_size)
    items: Callable[[Batches], Any] = feed
    if is_on_device(inputs):
        loop_on_device(network, training, sample.classes)
        items = DeviceBatches
    return replace(_keras_side(network, items(training), items(validation), deterministic), fill_seconds=seconds)


def notebook(
    sample: Sample, settings: TrainParams, trainable: tuple[str, ...], weights: list[np.ndarray], seed: int
) -> Side:
    """Return the loop of a plain Keras notebook: `image_dataset_from_directory`, `compile`, `fit`."""
    model = _build(sample, settings, trainable, weights, seed)
    model.compile(
        optimizer=keras.optimizers.Adam(settings.learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )

    def read(split: str) -> Any:
        return keras.utils.image_dataset_from_directory(
            sample.folder / split,
            image_size=sample.images.shape[1:3],
            batch_size=settings.batch_size,
            seed=seed,
            class_names=_class_folders(sample),
            verbose=False,
        )

    return _keras_side(model, read("train"), read("validation"), nullcontext)


def pytorch(
    sample: Sample,
    settings: TrainParams,
    trainable: tuple[str, ...],
    weights: list[np.ndarray],
    seed: int,
    mode: str = "",
) -> Side:
    """Return the same network and recipe in PyTorch: channels-last, autocast to bfloat16 where asked.

    `mode` is a mode of `torch.compile`: `default`, or `reduce-overhead` for CUDA graphs. Without one, PyTorch runs
    eagerly. On a GPU, the images are in its memory, as in `ours`.
    """
    import torch
    from torch import nn

    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = _torch_vgg16(sample, settings, trainable, weights).to(device)
    run = torch.compile(network, mode=mode) if mode else network
    images, labels = (torch.from_numpy(np.array(part)).to(device) for part in (sample.images, sample.labels))
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], settings.learning_rate, eps=1e-7)
    autocast = settings.precision == "mixed_bfloat16"
    order = np.random.default_rng(seed)

    def forward(rows: np.ndarray) -> Any:
        x = images[rows].permute(0, 3, 1, 2)  # channels-last in memory
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            return run(x.float().div(127.5).sub(1)).float()

    def epoch() -> None:
        network.train()
        rows = order.permutation(sample.training)
        for start in range(0, len(rows), settings.batch_size):
            batch = rows[start : start + settings.batch_size]
            loss = nn.functional.cross_entropy(forward(batch), labels[batch].long())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    def validate() -> float:
        network.eval()
        rows = np.arange(sample.training, len(sample.images))
        batches = np.array_split(rows, math.ceil(len(rows) / settings.batch_size))
        with torch.no_grad():
            right = sum(int((forward(batch).argmax(1) == labels[batch]).sum()) for batch in batches)
        return right / len(rows)

    return Side(epoch, validate)


def _torch_vgg16(sample: Sample, settings: TrainParams, trainable: tuple[str, ...], weights: list[np.ndarray]) -> Any:
    import torch
    from torch import nn

    convolutions = iter(zip(weights[::2], weights[1::2], strict=True))
    layers: list[nn.Module] = []
    for number, count in enumerate((2, 2, 3, 3, 3), start=1):
        for _ in range(count):
            kernel, bias = next(convolutions)
            layer = nn.Conv2d(kernel.shape[2], kernel.shape[3], 3, padding=1)
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1)))
                layer.bias.copy_(torch.from_numpy(bias))
            layer.requires_grad_(f"block{number}" in trainable)
            layers += [layer, nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    width = (sample.images.shape[1] // 32) ** 2 * 512
    for units in settings.dense_units:
        layers += [nn.Linear(width, units), nn.ReLU(inplace=True), nn.Dropout(settings.dropout)]
        width = units
    layers.append(nn.Linear(width, sample.classes))
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def _build(
    sample: Sample, settings: TrainParams, trainable: tuple[str, ...], weights: list[np.ndarray], seed: int
) -> keras.Model:
    model = vgg16.build_vgg16(sample.images.shape[1], sample.classes, settings, seed)
    vgg16.set_base_weights(model, weights)
    freezing.set_trainable(model, trainable)
    return model


def _keras_side(model: keras.Model, training: Any, validation: Any, mode: Callable[[], Any]) -> Side:
    def epoch() -> None:
        with mode():
            model.fit(training, shuffle=False, verbose=0)
            keras.ops.convert_to_numpy(model.trainable_variables[-1])  # waits for the last step

    def validate() -> float:
        with mode():
            return float(model.evaluate(validation, verbose=0, return_dict=True)["accuracy"])

    return Side(epoch, validate)


@contextmanager
def deterministic() -> Iterator[None]:
    """Run with deterministic operations, as the study does, and without them after: the notebook has none."""
    make_deterministic()
    try:
        yield
    finally:
        if keras.backend.backend() == "tensorflow":
            from tensorflow.python.framework.config import disable_op_determinism

            disable_op_determinism()
