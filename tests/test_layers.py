"""Which layers matter: a change planted in one block is found there."""

from collections.abc import Iterator

import keras
import numpy as np
import pytest

from medtransfer.core.recipe import TrainParams
from medtransfer.layers.probes import compare_layers, linear_cka, probe_blocks, rewind_blocks
from medtransfer.models import vgg16
from medtransfer.study.finished import draw_rows

pytestmark = pytest.mark.usefixtures("narrow")

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pair(tiny: TrainParams) -> Iterator[tuple[keras.Model, keras.Model]]:
    """A network, and one that differs from it only in block 3."""
    start, tuned = (vgg16.build_vgg16(32, 3, tiny, seed=0) for _ in range(2))
    rng = np.random.default_rng(1)
    layer = tuned.get_layer("block3_conv2")
    kernel, bias = layer.get_weights()
    layer.set_weights([kernel + rng.normal(0, kernel.std(), kernel.shape), bias])
    yield start, tuned
    keras.backend.clear_session()


def test_rewinding_finds_the_block_that_learned_and_leaves_the_network_as_it_was(
    pair: tuple[keras.Model, keras.Model],
) -> None:
    start, tuned = pair
    before = tuned.get_weights()
    learned, begun = (model.predict_on_batch(IMAGES) for model in (tuned, start))
    table = rewind_blocks(
        tuned, start, lambda model: {"moved": float(abs(model.predict_on_batch(IMAGES) - learned).max())}
    )
    moved = table.set_index("block").moved
    assert list(table.block) == ["none", "block1", "block2", "block3", "block4", "block5"]
    assert moved["block3"] == pytest.approx(abs(begun - learned).max())
    assert moved["block3"] > 0
    assert (moved.drop("block3") == 0).all()
    assert all((one == other).all() for one, other in zip(before, tuned.get_weights(), strict=True))


def test_only_the_changed_layer_has_a_distance_and_similarity_falls_after_it(
    pair: tuple[keras.Model, keras.Model],
) -> None:
    start, tuned = pair
    table = compare_layers(tuned, start, IMAGES).set_index("layer")
    assert list(table.index) == [layer.name for layer in vgg16.base_layers(tuned)]
    assert table.distance["block3_conv2"] > 0.5
    assert (table.distance.drop("block3_conv2") == 0).all()
    position = list(table.index).index("block3_conv2")
    assert table.cka.iloc[:position].to_numpy() == pytest.approx(1)
    assert (table.cka[["block3_conv2", "block3_conv3"]] < 0.995).all()


def test_cka_is_1_for_rotations_and_low_for_unrelated_features() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(40, 60))
    rotation = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    assert linear_cka(first, 3 * first @ rotation + 5) == pytest.approx(1)
    few = rng.normal(size=(40, 2))
    x, y = (values - values.mean(axis=0) for values in (few, first[:, :3]))
    norm = np.linalg.norm
    assert linear_cka(few, first[:, :3]) == pytest.approx(norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y)))
    assert linear_cka(few, first[:, :3]) < 0.3


def test_probes_find_a_visible_class(tiny: TrainParams) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = np.clip(rng.normal(80 + 90 * labels[:, None, None, None], 20, (40, 32, 32, 3)), 0, 255).astype(np.uint8)
    model = vgg16.build_vgg16(32, 3, tiny, seed=0)
    rows = {"train": np.arange(30), "test": np.arange(30, 40)}

    def score(probabilities: np.ndarray) -> dict[str, float]:
        assert probabilities.shape == (10, 2)
        return {"accuracy": float((probabilities.argmax(axis=1) == labels[30:]).mean())}

    table = probe_blocks(model, images, labels, rows, score)
    assert table.accuracy[0] == 1
    keras.backend.clear_session()


def test_the_compared_images_are_not_the_first_ones() -> None:
    rows = np.arange(100, 1100)
    drawn = draw_rows(rows, 200, seed=0)
    assert len(set(drawn)) == 200
    assert 500 < drawn.mean() < 700
    assert (drawn == draw_rows(rows, 200, seed=0)).all()
    assert (draw_rows(rows, 5000, seed=0) == rows).all()
