"""The benchmark: multiply-adds as published, and every side's numbers from one small run."""

from pathlib import Path

import keras
import numpy as np
import pytest
from limit import matmul_rate, multiply_adds
from sides import make_sample
from speed import NOTEBOOK, available_sides, column_seconds, compare, table

from medtransfer.core.params import BLOCKS, Params
from medtransfer.core.recipe import TrainParams
from medtransfer.models import vgg16

# VGG16's 13 convolutions at 224 px: 15.3 billion multiply-adds (Canziani et al. 2016, figure 2: 31 G operations).
CONVOLUTIONS = 15_346_630_656
HEAD = 25_088 * 256 + 256 * 256 + 256 * 7
LAST_BLOCK = 3 * 14 * 14 * 9 * 512 * 512
FIRST_LAYER = 224 * 224 * 9 * 3 * 64


def test_the_multiply_adds_are_those_of_vgg16() -> None:
    assert multiply_adds(224, [256, 256], 7, (), stored=False) == CONVOLUTIONS + 3 * HEAD - 25_088 * 256
    everything = 3 * (CONVOLUTIONS + HEAD) - FIRST_LAYER
    assert multiply_adds(224, [256, 256], 7, BLOCKS, stored=False) == everything
    assert multiply_adds(224, [256, 256], 7, BLOCKS, stored=True) == everything


def test_a_stored_prefix_needs_no_multiply_adds() -> None:
    last = multiply_adds(224, [256, 256], 7, ("block5",), stored=True)
    assert last == 3 * (LAST_BLOCK + HEAD) - LAST_BLOCK // 3
    assert multiply_adds(224, [256, 256], 7, ("block5",), stored=False) - last == CONVOLUTIONS - LAST_BLOCK


def test_the_matrix_product_takes_time() -> None:
    assert 1e6 < matmul_rate("float32", sizes=(64, 128), repeats=3) < 1e15


def test_a_class_that_a_split_lacks_keeps_its_number(tmp_path: Path) -> None:
    images, labels = np.zeros((6, 8, 8, 3), np.uint8), np.array([0, 1, 2, 1, 2, 2])
    sample = make_sample(images, labels, np.arange(3), np.arange(3, 6), tmp_path)
    found = keras.utils.image_dataset_from_directory(
        sample.folder / "validation", image_size=(8, 8), shuffle=False, verbose=False
    )
    assert np.concatenate([batch.numpy() for _, batch in found]).tolist() == [1, 2, 2]


@pytest.mark.slow
def test_every_side_is_measured(params: Params, tiny: TrainParams, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    model = vgg16.build_vgg16(32, 3, tiny, seed=0)
    options = {"images": 8, "rounds": 1, "race_images": 8, "race_epochs": 1, "seed": 0}
    result = compare(
        images,
        np.arange(40) % 3,
        {"train": np.arange(32), "validation": np.arange(32, 40)},
        tiny,
        {"imagenet_head": params.configurations["imagenet_head"]},
        vgg16.get_base_weights(model),
        options,
    )
    entry = result["configurations"]["imagenet_head"]
    assert set(entry) == set(available_sides())
    for side, values in entry.items():
        assert (values["fill_seconds"] > 0) == side.startswith("ours")
        assert 0 < values["images_per_second_over_10_epochs"] <= values["images_per_second"]
        assert 0 < values["fraction_of_limit"] < 1
    assert entry[NOTEBOOK]["ratio"] == 1
    assert result["race"]["imagenet_head"]["sides"][NOTEBOOK]["epochs"] == 1
    assert result["column_seconds"] is None
    assert table(result).row_count == len(entry)


def test_the_column_counts_the_random_network_as_one_that_trains_all_layers() -> None:
    rates = dict(zip(("imagenet_all", "imagenet_last_block", "imagenet_first_block"), (1.0, 2.0, 4.0), strict=True))
    rates["imagenet_first_last"] = 8.0
    sides = available_sides()
    entries = {
        name: {side: {"images_per_second_over_10_epochs": rate} for side in sides} for name, rate in rates.items()
    }
    seconds = column_seconds(entries, images=16) or {}
    assert set(seconds) == set(sides)
    assert set(seconds.values()) == {160 * (1 + 1 + 1 / 2 + 1 / 4 + 1 / 8)}
