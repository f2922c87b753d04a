"""A network is built, frozen and compiled as its parameters say."""

from typing import Any

import keras
import pytest

from medtransfer.core.recipe import TrainParams
from medtransfer.models import freezing, vgg16
from medtransfer.training.loop import compile_network
from medtransfer.training.optimizers import KINDS

CHANGES: list[dict[str, Any]] = [
    {},
    {"dense_units": [16, 8]},
    {"dropout": 0.25},
    {"scaling": "caffe"},
    {"precision": "mixed_bfloat16"},
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_network_is_built_as_asked(tiny: TrainParams, change: dict[str, Any]) -> None:
    settings = tiny.model_copy(update=change)
    model = vgg16.build_vgg16(32, 3, settings, seed=0)
    trained = freezing.set_trainable(model, ("block5",))
    keras.config.set_dtype_policy("float32")  # Keras keeps the policy of the last network
    dense = [layer for layer in model.layers if layer.name.startswith("head_dense")]
    dropout = [layer for layer in model.layers if layer.name.startswith("head_dropout")]
    assert [layer.units for layer in dense] == settings.dense_units
    assert [layer.rate for layer in dropout] == [settings.dropout] * len(dense)
    assert {layer.dtype_policy.name for layer in dense} == {settings.precision}
    assert ("scale_to_one" in {layer.name for layer in model.layers}) == (settings.scaling == "tf")
    assert [layer.name for layer in freezing.weighted_layers(model) if layer.trainable] == trained
    assert len(trained) == 3 + len(dense) + 1
    assert model.output_shape == (None, 3)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_a_network_is_compiled_as_asked(tiny: TrainParams, optimizer: str) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    compile_network(model, tiny.model_copy(update={"optimizer": optimizer, "learning_rate": 0.25}), 1)
    assert isinstance(model.optimizer, KINDS[optimizer])
    assert float(model.optimizer.learning_rate) == 0.25
