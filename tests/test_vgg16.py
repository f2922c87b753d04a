"""VGG16: shapes, scaling, and that exactly the named blocks and the head are trained."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from conftest import PROJECT
from medtransfer.core.params import BLOCKS, Configuration, Params
from medtransfer.core.recipe import TrainParams
from medtransfer.models import freezing, vgg16
from medtransfer.training.batches import Batches
from medtransfer.training.loop import fit

SIZE, CLASSES = 32, 3
CONVOLUTIONS = [f"block{b}_conv{c}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for c in range(1, n + 1)]
HEAD = ["head_dense1", "head_dense2", "head_output"]


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, SIZE, SIZE, 3), dtype=np.uint8)


def test_the_base_is_vgg16_with_the_head_of_the_talk(tiny: TrainParams) -> None:
    model = vgg16.build_vgg16(SIZE, CLASSES, tiny, seed=0)
    assert [layer.name for layer in freezing.weighted_layers(model)] == CONVOLUTIONS + HEAD
    assert sum(tensor.size for tensor in vgg16.get_base_weights(model)) == 14_714_688
    block5 = [layer for layer in vgg16.base_layers(model) if freezing.block_of(layer.name) == "block5"]
    assert sum(layer.count_params() for layer in block5) == 7_079_424
    head = [layer.name for layer in model.layers if layer.name.startswith("head")]
    assert head == ["head_flatten", "head_dense1", "head_dropout1", "head_dense2", "head_dropout2", "head_output"]
    assert model.output_shape == (None, CLASSES)


def test_the_papers_size_gives_the_papers_flatten_layer(tiny: TrainParams) -> None:
    model = vgg16.build_vgg16(224, 7, tiny, seed=0)
    assert model.get_layer("head_flatten").output.shape == (None, 7 * 7 * 512)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_output_is_float32_probabilities_of_raw_pixels(tiny: TrainParams, pixels: np.ndarray, precision: str) -> None:
    model = vgg16.build_vgg16(SIZE, CLASSES, tiny.model_copy(update={"precision": precision}), seed=0)
    probabilities = model.predict(pixels, verbose=0)
    keras.config.set_dtype_policy("float32")
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("scaling", ["tf", "caffe"])
def test_scaling_is_correct_and_survives_saving(
    tiny: TrainParams, pixels: np.ndarray, scaling: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = vgg16.build_vgg16(SIZE, CLASSES, tiny.model_copy(update={"scaling": scaling}), seed=0)
    scaled = keras.Model(model.input, model.get_layer("block1_conv1").input).predict(pixels, verbose=0)
    if scaling == "tf":
        expected = pixels / 127.5 - 1
        assert scaled.min() >= -1
        assert scaled.max() <= 1
    else:
        expected = keras.applications.vgg16.preprocess_input(pixels.astype("float32"))
    np.testing.assert_allclose(scaled, expected, atol=1e-4)
    path = tmp_path_factory.mktemp("model") / "model.keras"
    model.save(path)
    again = keras.models.load_model(path, compile=False).predict(pixels, verbose=0)
    assert (again == model.predict(pixels, verbose=0)).all()


def test_the_seed_decides_every_weight(tiny: TrainParams) -> None:
    first, same, other = (vgg16.build_vgg16(SIZE, CLASSES, tiny, seed=seed).get_weights() for seed in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(first, same, strict=True))
    assert (first[0] != other[0]).any()


def names_of_configurations() -> list[str]:
    from conftest import PROJECT
    from medtransfer.core.params import read_params

    return list(read_params(PROJECT / "params.yaml").configurations)


@pytest.mark.parametrize("name", names_of_configurations())
def test_an_epoch_changes_exactly_the_named_blocks_and_the_head(
    params: Params, tiny: TrainParams, pixels: np.ndarray, name: str
) -> None:
    configuration = params.configurations[name]
    model = vgg16.build_vgg16(SIZE, CLASSES, tiny, seed=0)
    trained = freezing.set_trainable(model, configuration.blocks)
    before = {layer.name: layer.get_weights() for layer in freezing.weighted_layers(model)}
    labels = np.arange(len(pixels), dtype=np.int32) % CLASSES
    batches = Batches(pixels, np.arange(len(pixels)), labels, 4, seed=0)
    one_epoch = tiny.model_copy(update={"epochs": 1, "learning_rate": 1e-3})
    fit(model, batches, batches, one_epoch)
    moved = [
        layer.name
        for layer in freezing.weighted_layers(model)
        if any((a != b).any() for a, b in zip(before[layer.name], layer.get_weights(), strict=True))
    ]
    expected = [layer for layer in CONVOLUTIONS if layer.split("_")[0] in configuration.blocks] + HEAD
    assert moved == expected == trained


def test_counts_of_weights_add_up(tiny: TrainParams) -> None:
    model = vgg16.build_vgg16(SIZE, CLASSES, tiny, seed=0)
    freezing.set_trainable(model, ("block5",))
    counts = freezing.count_weights(model)
    assert counts["frozen"] == 14_714_688 - 7_079_424
    assert counts["trainable"] + counts["frozen"] == model.count_params()


def test_a_layer_without_a_block_is_refused(tiny: TrainParams) -> None:
    with pytest.raises(ValueError, match="belongs to no block"):
        freezing.block_of("extra_conv")
    model = vgg16.build_vgg16(SIZE, CLASSES, tiny, seed=0)
    headless = keras.Model(model.input, model.get_layer("block5_pool").output)
    with pytest.raises(ValueError, match="covers"):
        freezing.set_trainable(headless, BLOCKS)


BUILD = """
import json, sys
from pathlib import Path
from medtransfer.core.params import read_params
from medtransfer.models import vgg16
from medtransfer.models.weights import digest
train = read_params(Path(sys.argv[1])).train.model_copy(update={"precision": "float32"})
model = vgg16.build_vgg16(32, 3, train, seed=0)
print(digest(vgg16.get_base_weights(model)), model.get_layer("block1_conv1").output.shape, keras.config.epsilon())
"""


def test_the_users_keras_settings_change_no_network(tmp_path: Path) -> None:
    built = []
    for number, settings in enumerate(
        ({}, {"floatx": "float16", "image_data_format": "channels_first", "epsilon": 1.0})
    ):
        home = tmp_path / str(number)
        home.mkdir()
        (home / "keras.json").write_text(json.dumps({"backend": "tensorflow", **settings}))
        env = {**os.environ, "KERAS_HOME": str(home), "KERAS_BACKEND": "tensorflow"}
        command = [sys.executable, "-c", f"import keras{BUILD}", str(PROJECT / "params.yaml")]
        built.append(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)
    assert built[0] == built[1]
    assert "32, 32, 64" in built[0]


def test_blocks_come_in_the_order_of_the_network() -> None:
    configuration = Configuration.model_validate({"weights": "random", "trainable": ["block5", "block1"]})
    assert configuration.blocks == ("block1", "block5")
