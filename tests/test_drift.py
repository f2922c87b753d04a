"""A network that is not what params.yaml, DVC and MLflow are told is refused before it is trained."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

from medtransfer.core.params import Params, TrainParams
from medtransfer.models import vgg16
from medtransfer.pipeline import train as stage
from medtransfer.training import loop as training
from medtransfer.training.batches import Batches

DRIFTS: list[tuple[dict[str, Any], str]] = [
    ({"dense_units": [16, 8]}, r"dense_units is \[16, 8\], its parameters say \[16, 16\]"),
    ({"dropout": 0.25}, "dropout is 0.25, its parameters say 0.5"),
    ({"scaling": "caffe"}, "scaling is caffe, its parameters say tf"),
    ({"precision": "mixed_bfloat16"}, "precision is mixed_bfloat16, its parameters say float32"),
]


@pytest.fixture
def fitting(params: Params, tiny: TrainParams, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Params]:
    """Parameters and data for a stage that must not get as far as claiming a fit."""
    monkeypatch.chdir(tmp_path)
    samples = pd.DataFrame({"id": ["a"], "label": ["x"], "split": ["train"]})
    facts = {"name": "ham10000", "synthetic": True, "source": "here", "resize_filter": "box"}
    description = {**facts, "classes": ["x", "y"], "image_size": 32, "split": {"by": "image", "leak": "keep"}}
    monkeypatch.setattr(stage, "read_dataset", lambda *_: (np.zeros((1, 32, 32, 3), np.uint8), samples, description))
    monkeypatch.setattr(stage, "claim_fit", lambda *_: pytest.fail("the drift was not seen"))
    yield params.model_copy(update={"train": tiny})
    keras.config.set_dtype_policy("float32")  # Keras keeps what the last network was built with


def plant(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], classes: int | None = None) -> None:
    """Let a network be built with other settings than it was asked for."""
    real = vgg16.build_vgg16

    def build(size: int, asked: int, settings: TrainParams, seed: int) -> keras.Model:
        return real(size, classes or asked, settings.model_copy(update=change), seed)

    monkeypatch.setattr(vgg16, "build_vgg16", build)


@pytest.mark.parametrize(("change", "message"), DRIFTS)
def test_a_network_that_was_built_otherwise_is_refused(
    fitting: Params, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    plant(monkeypatch, change)
    with pytest.raises(RuntimeError, match=message):
        stage.train(fitting, "ham10000", "cnn_random", 0)


def test_a_network_with_other_classes_is_refused(fitting: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, {}, classes=3)
    with pytest.raises(RuntimeError, match="classes is 3, its parameters say 2"):
        stage.train(fitting, "ham10000", "cnn_random", 0)


def test_a_network_with_other_layers_trained_is_refused(fitting: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    real = vgg16.count_weights

    def freeze(model: keras.Model) -> dict[str, int]:
        model.get_layer("block1_conv1").trainable = False
        return real(model)

    monkeypatch.setattr(vgg16, "count_weights", freeze)
    with pytest.raises(RuntimeError, match="trainable_layers is block1_conv2,"):
        stage.train(fitting, "ham10000", "cnn_random", 0)


@pytest.mark.parametrize("change", [{"optimizer": "sgd"}, {"learning_rate": 0.25}])
def test_a_network_that_learns_otherwise_is_refused(
    tiny: TrainParams, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, activation="softmax", name="head_output")])
    batches = Batches(np.zeros((4, 2), np.float32), np.arange(4), np.arange(4, dtype=np.int32) % 2, 4)
    real = training.build_optimizer
    monkeypatch.setattr(training, "build_optimizer", lambda params: real(params.model_copy(update=change)))
    before = model.get_weights()
    with pytest.raises(RuntimeError, match=f"its parameters say {tiny.optimizer} with {tiny.learning_rate}"):
        training.fit(model, batches, batches, tiny)
    assert all((now == then).all() for now, then in zip(model.get_weights(), before, strict=True))


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_every_optimizer_is_what_it_is_called(tiny: TrainParams, optimizer: str) -> None:
    settings = tiny.model_copy(update={"optimizer": optimizer})
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    training.compile_network(model, settings)
    training.check_optimizer(model, settings)
