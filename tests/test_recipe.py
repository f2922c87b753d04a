"""Recipes: each ingredient does what params.yaml says, on both backends, and an interrupted fit resumes bit for bit."""

import colorsys
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from conftest import PROJECT
from medtransfer.core.params import Configuration
from medtransfer.core.recipe import MODERN, TALK, Augmentation, TrainParams
from medtransfer.metrics.scores import MACRO, score
from medtransfer.training.augmentation import AugmentedNetwork, build_changes
from medtransfer.training.batches import Batches
from medtransfer.training.callbacks import ResumableStopping
from medtransfer.training.device import make_deterministic
from medtransfer.training.loop import best_epoch, fit, predict
from medtransfer.training.macro_f1 import MacroF1
from medtransfer.training.optimizers import build_optimizer, learning_rate

SIZE, CLASSES = 32, 3
COMMON: dict[str, Any] = {"batch_size": 16, "scaling": "tf", "fraction": 1.0, "precision": "float32"}
GIVEN = {**COMMON, "epochs": 5, "patience": 5, "learning_rate": 3e-3}


@pytest.fixture(autouse=True)
def _in_float32() -> None:
    keras.config.set_dtype_policy("float32")  # Keras keeps the policy of the last network


def recipe(**changes: Any) -> TrainParams:
    return TrainParams(**{**GIVEN, **changes}).on("ham10000")


def test_both_recipes_name_the_same_keys() -> None:
    assert set(TALK) == set(MODERN) == set(TrainParams.model_fields) - {*COMMON, "recipe"}
    assert set(TALK) | {"recipe", "scaling", "fraction", "weights", "trainable"} == set(Configuration.model_fields)


def test_what_is_nearer_to_the_network_wins() -> None:
    def found(train: dict[str, Any], configuration: dict[str, Any], dataset: str = "ham10000") -> TrainParams:
        params = TrainParams(**{**COMMON, **train})
        return Configuration(weights="imagenet", trainable="all", **configuration).settings(params, dataset)

    assert found({}, {}) == TrainParams(**COMMON, **TALK)
    assert found({"recipe": "modern"}, {}) == TrainParams(recipe="modern", **COMMON, **MODERN).on("ham10000")
    assert found({"recipe": "modern", "dropout": 0.2}, {}).dropout == 0.2
    assert found({"dropout": 0.2}, {"recipe": "modern"}).dropout == MODERN["dropout"]
    assert found({"dropout": 0.2}, {"recipe": "modern", "dropout": 0.3}).dropout == 0.3
    assert found({"recipe": "modern"}, {"recipe": "talk"}) == TrainParams(**COMMON, **TALK)
    assert found({}, {"recipe": "modern", "augment": {}}).augment == Augmentation()


@pytest.mark.parametrize(
    ("dataset", "flips", "axes"),
    [("ham10000", "any", ((), (1,), (2,), (1, 2))), ("chest_xray", "horizontal", ((), (2,)))],
)
def test_only_images_without_an_upright_position_are_turned(
    dataset: str, flips: str, axes: tuple[tuple[int, ...], ...]
) -> None:
    found = TrainParams(**COMMON, recipe="modern").on(dataset)
    assert (found.augment.flips, found.flip_axes) == (flips, axes)


def picture() -> np.ndarray:
    """A picture that tells its eight orientations apart, with a colour that no change clips."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    return np.stack([80 + 2.0 * x, 90 + 1.0 * y, np.full_like(x, 100)], axis=-1)


def changed(**settings: Any) -> np.ndarray:
    """The picture 1,000 times, float64, changed as the settings say."""
    x = np.repeat(picture()[None], 1000, axis=0).astype(np.float32)
    for layer in build_changes(Augmentation(**settings), seed=3):
        x = layer(x, training=True)
    return keras.ops.convert_to_numpy(x).astype(float)


def ratio(found: np.ndarray, lowest: float, highest: float) -> None:
    """Check that numbers are uniform in a range."""
    assert lowest - 0.01 <= found.min()
    assert found.max() <= highest + 0.01
    assert found.mean() == pytest.approx((lowest + highest) / 2, abs=0.05 * (highest - lowest))
    assert found.std() == pytest.approx((highest - lowest) / np.sqrt(12), rel=0.1)


def test_flips_and_right_angles_give_the_eight_orientations_alike() -> None:
    eight = [np.rot90(side, turns) for side in (picture(), picture()[:, ::-1]) for turns in range(4)]
    found = changed(flips="any")
    nearest = [min(range(8), key=[np.abs(image - one).max() for one in eight].__getitem__) for image in found]
    assert max(np.abs(image - eight[k]).max() for image, k in zip(found, nearest, strict=True)) < 0.01
    assert np.bincount(nearest, minlength=8).min() > 80
    mirrored = changed(flips="horizontal")
    assert 400 < sum(np.abs(image - eight[4]).max() < 0.01 for image in mirrored) < 600


def test_a_crop_is_a_part_of_the_picture() -> None:
    found = changed(crop=0.5)
    slope = (found[:, SIZE // 2, -1, 0] - found[:, SIZE // 2, 0, 0]) / (2 * (SIZE - 1))
    ratio(slope, 0.5, 1)
    assert picture()[..., 0].min() <= found[..., 0].min() + 1e-3
    assert found[..., 0].max() <= picture()[..., 0].max() + 1e-3


def test_a_rotation_turns_by_at_most_its_degrees() -> None:
    found, middle = changed(rotation=20), SIZE // 2
    right = found[:, middle, middle + 1, 0] - found[:, middle, middle - 1, 0]
    down = found[:, middle + 1, middle, 0] - found[:, middle - 1, middle, 0]
    ratio(np.degrees(np.arctan2(down, right)), -20, 20)


def test_colours_change_as_much_as_asked() -> None:
    ratio(changed(brightness=0.2)[:, 0, 0, 2] / 100, 0.8, 1.2)
    contrast = changed(contrast=0.2)
    ratio((contrast[:, :, -1, 0] - contrast[:, :, 0, 0]).mean(axis=1) / (2 * (SIZE - 1)), 0.8, 1.2)
    saturated = changed(saturation=0.2)[:, 0, -1]
    ratio(np.ptp(saturated, axis=1) / np.ptp(picture()[0, -1]), 0.8, 1.2)
    hues = [colorsys.rgb_to_hsv(*pixel)[0] for pixel in changed(hue=0.05)[:, 0, -1] / 255]
    ratio((np.array(hues) - colorsys.rgb_to_hsv(*picture()[0, -1] / 255)[0] + 0.5) % 1 - 0.5, -0.05, 0.05)


def test_cutout_grays_out_at_most_its_square() -> None:
    gray = (changed(cutout=0.5) == 127.5).all(axis=-1)
    sides = np.maximum(gray.any(axis=1).sum(axis=1), gray.any(axis=2).sum(axis=1)) / SIZE
    assert 0.4 < sides.max() <= 0.5 + 1 / SIZE
    assert (gray.any(axis=1).sum(axis=1) * gray.any(axis=2).sum(axis=1) == gray.sum(axis=(1, 2))).all()


def test_changes_do_not_depend_on_each_other() -> None:
    found = changed(brightness=0.2, contrast=0.2)
    brightness = found.mean(axis=(1, 2, 3))
    contrast = (found[:, :, -1, 0] - found[:, :, 0, 0]).mean(axis=1) / brightness
    assert abs(np.corrcoef(brightness, contrast)[0, 1]) < 0.1


def test_mixup_weighs_labels_as_it_weighs_images() -> None:
    """The network answers with the image's gray level; with labels of 0 and 1 the loss shows the mixed label."""
    pixels = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    gray = keras.layers.Rescaling(1 / 255, dtype="float32")(pixels)[:, 0, 0, :1]
    network = keras.Model(pixels, keras.layers.Concatenate()([1 - gray, gray]))
    model = AugmentedNetwork(network, Augmentation(mixup=1.0), seed=0)
    shown: list[Any] = []

    def keep(y_true: Any, y_pred: Any) -> Any:
        shown.append((keras.ops.convert_to_numpy(y_true), keras.ops.convert_to_numpy(y_pred)))
        return keras.ops.mean(y_pred)

    model.compile(loss=keep, run_eagerly=True)
    images = np.zeros((16, SIZE, SIZE, 3), np.uint8)
    images[:8] = 255
    labels = np.eye(2, dtype=np.float32)[[1] * 8 + [0] * 8]
    prediction = model(images, training=True)
    model.compute_loss(images, labels, prediction, training=True)
    [(mixed, predicted)] = shown
    assert mixed == pytest.approx(predicted, abs=0.002)
    assert mixed.std() > 0.1
    assert mixed.sum(axis=1) == pytest.approx(1)
    assert (keras.ops.convert_to_numpy(model(images)) == keras.ops.convert_to_numpy(network(images))).all()


def test_the_cosine_schedule_rises_and_falls_to_0() -> None:
    rate = learning_rate(recipe(schedule="cosine", warmup=1), steps=10)
    rates = [float(rate(step)) for step in range(51)]
    assert rates[0] == 0
    assert np.argmax(rates) == 10
    assert rates[10] == pytest.approx(3e-3)
    assert rates[30] == pytest.approx(1.5e-3)
    assert rates[50] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("kind", "decay"), [("adam", 0.0), ("adamw", 0.1)])
def test_adam_in_one_pass_is_adam(kind: str, decay: float) -> None:
    """The rate changes at each step, as under a schedule"""
    params = recipe(optimizer=kind, weight_decay=decay, schedule="cosine", warmup=1)
    settings = {"weight_decay": decay} if decay else {}
    plain = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[kind]
    weights = []
    for optimizer in (build_optimizer(params, steps=3), plain(learning_rate(params, 3), **settings)):
        weight, rng = keras.Variable(np.linspace(-1, 1, 6, dtype=np.float32)), np.random.default_rng(0)
        for _ in range(10):
            optimizer.apply([keras.ops.convert_to_tensor(rng.normal(size=6).astype(np.float32) * 10.0**-3)], [weight])
        weights.append(keras.ops.convert_to_numpy(weight))
    assert np.abs(weights[0] - np.linspace(-1, 1, 6)).mean() > 1e-3
    assert weights[0] == pytest.approx(weights[1], rel=1e-5)


def test_each_block_has_its_rate_and_decay_and_waits_for_the_head() -> None:
    weights = {
        name: keras.Variable([1.0, 1.0], name="kernel") for name in ("block1_conv1", "block5_conv3", "head_output")
    }
    for name, weight in weights.items():
        weight._path = f"{name}/kernel"
    params = recipe(optimizer="adamw", weight_decay=0.1, block_rate=0.5, head_first=1, learning_rate=0.01)
    optimizer = build_optimizer(params, steps=2)
    gradients = [keras.ops.convert_to_tensor([1.0, -2.0])] * 3

    def step() -> dict[str, np.ndarray]:
        """How far each kernel moves, on average of a weight that rises and one that falls: by its decay."""
        before = {name: keras.ops.convert_to_numpy(weight) for name, weight in weights.items()}
        optimizer.apply(gradients, list(weights.values()))
        return {name: (before[name] - keras.ops.convert_to_numpy(weights[name])) for name in weights}

    for _ in range(2):
        moved = step()
        assert not moved["block1_conv1"].any()
        assert not moved["block5_conv3"].any()
        assert moved["head_output"] == pytest.approx([0.01 + 0.001, -0.01 + 0.001], rel=0.03)
    moved = step()
    assert moved["block5_conv3"] == pytest.approx([0.005 + 0.0005, -0.005 + 0.0005], rel=0.03)
    assert moved["block1_conv1"] == pytest.approx([0.01 / 32 + 0.001 / 32, -0.01 / 32 + 0.001 / 32], rel=0.03)


def test_the_second_network_of_a_process_has_the_rates_of_its_blocks_too() -> None:
    images, labels = np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3), np.uint8), np.arange(16) % CLASSES
    params = recipe(optimizer="sgd", block_rate=0.5)
    moved = []
    for _ in range(2):
        network = small_network()
        network.compile(build_optimizer(params, steps=1), loss=keras.losses.SparseCategoricalCrossentropy())
        before = [keras.ops.convert_to_numpy(weight).copy() for weight in network.trainable_variables]
        network.train_on_batch(images, labels)
        after = map(keras.ops.convert_to_numpy, network.trainable_variables)
        moved.append([np.abs(one - other).max() for one, other in zip(before, after, strict=True)])
        plain = small_network()
        plain.compile(keras.optimizers.SGD(3e-3, 0.9), loss=keras.losses.SparseCategoricalCrossentropy())
        plain.train_on_batch(images, labels)
        after = map(keras.ops.convert_to_numpy, plain.trainable_variables)
        full = [np.abs(one - other).max() for one, other in zip(before, after, strict=True)]
        shares = np.repeat([1 / 32, 1 / 2, 1], 2)  # a kernel and a bias per layer: block1, block5, head
        assert np.array(moved[-1]) == pytest.approx(shares * full, rel=0.02)
    assert moved[0] == moved[1]


def test_scoring_the_moving_average_changes_no_bit_of_the_weights() -> None:
    images, labels = np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3), np.uint8), np.arange(16) % CLASSES
    network = small_network()
    network.compile(build_optimizer(recipe(average=0.9), steps=1), loss=keras.losses.SparseCategoricalCrossentropy())
    for _ in range(5):  # `fit` would end by writing the average over the weights
        network.train_on_batch(images, labels)
    trained = network.get_weights()
    stopping = ResumableStopping("val_loss", 3, averaged=True)
    stopping.set_model(network)
    stopping.on_test_begin()
    assert any((one != other).any() for one, other in zip(trained, network.get_weights(), strict=True))
    stopping.on_test_end()
    assert all((one == other).all() for one, other in zip(trained, network.get_weights(), strict=True))


def test_a_saved_network_changes_no_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (32, SIZE, SIZE, 3), np.uint8), np.arange(32) % CLASSES
    network, training = small_network(), Batches(images, np.arange(16), labels, 16, 0)
    validation = Batches(images, np.arange(16, 32), labels, 16)
    fit(network, training, validation, recipe(**CASES["all changes"], epochs=1), lambda _: None, None)
    keras.Model(network.inputs, network.outputs).save(tmp_path / "model.keras")
    layers = keras.models.load_model(tmp_path / "model.keras").layers
    assert [type(layer) for layer in layers] == [type(layer) for layer in small_network().layers]


def test_the_moving_average_is_shorter_at_first() -> None:
    optimizer = build_optimizer(recipe(optimizer="sgd", average=0.5), steps=1)
    weight, gradient = keras.Variable([1.0]), keras.ops.convert_to_tensor([1.0])
    optimizer.build([weight])
    expected = 0.0
    for step in range(12):
        optimizer.apply([gradient], [weight])
        momentum = min(0.5, (1 + step) / (10 + step)) if step else 0.0
        expected = momentum * expected + (1 - momentum) * float(weight[0])
        [average] = optimizer._model_variables_moving_average
        assert float(average[0]) == pytest.approx(expected, rel=1e-5)


def test_macro_f1_of_batches_is_that_of_the_scores() -> None:
    rng = np.random.default_rng(0)
    labels, probabilities = rng.choice([0, 2], 40), rng.dirichlet([1, 0.2, 1], 40).astype(np.float32)
    import pandas as pd

    from medtransfer.core.predictions import as_predictions

    names = list("abc")
    samples = pd.DataFrame({"id": map(str, range(40)), "group": map(str, range(40)), "split": "test"})
    samples["label"] = np.array(names)[labels]
    expected = score(as_predictions(samples, probabilities.astype(float), names))[MACRO]
    for truth in (labels, np.eye(3, dtype=np.float32)[labels]):
        metric = MacroF1(3)
        for rows in (slice(0, 16), slice(16, 40)):
            metric.update_state(truth[rows], probabilities[rows])
        assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


def small_network() -> keras.Model:
    keras.utils.set_random_seed(0)
    pixels = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1, dtype="float32")(pixels)
    for block in (1, 5):
        x = keras.layers.Conv2D(4, 3, strides=2, activation="relu", name=f"block{block}_conv1")(x)
    x = keras.layers.Dropout(0.2, name="head_dropout")(keras.layers.GlobalAveragePooling2D(name="head_pool")(x))
    return keras.Model(pixels, keras.layers.Dense(CLASSES, activation="softmax", name="head_output")(x))


class StopError(Exception):
    """What ends a fit half-way."""


CASES: dict[str, dict[str, Any]] = {
    "modern": {"recipe": "modern"},
    "all changes": {
        "augment": Augmentation(
            flips="any", rotation=20, crop=0.7, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, cutout=0.3,
            mixup=0.2,
        )
    },
    "by block": {
        "optimizer": "adamw", "weight_decay": 0.1, "block_rate": 0.5, "head_first": 2, "average": 0.9, "patience": 2,
        "schedule": "plateau", "stop_on": "macro_f1",
    },
    "sampled and smoothed": {"label_smoothing": 0.1, "balance": "sampling", "sampling_power": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_fit_resumes_bit_for_bit_and_keeps_the_best_epoch(case: str, tmp_path: Path) -> None:
    make_deterministic()
    params = recipe(**CASES[case])
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 80)
    images = (rng.integers(0, 80, (80, SIZE, SIZE, 3)) + 50 * labels[:, None, None, None]).astype(np.uint8)

    def run(on_epoch: Callable[[list[Any]], None], folder: Path | None) -> tuple[list[np.ndarray], Any, np.ndarray]:
        network = small_network()
        training = Batches(images, np.arange(48), labels, 16, 0, params.balance, params.sampling_power)
        history = fit(network, training, Batches(images, np.arange(48, 80), labels, 16), params, on_epoch, folder)
        return network.get_weights(), history, predict(network, images, np.arange(48, 80), 16)

    def stop(history: list[Any]) -> None:
        if len(history) == 3:
            raise StopError

    weights, history, probabilities = run(lambda _: None, None)
    with pytest.raises(StopError):
        run(stop, tmp_path)
    resumed, again, _ = run(lambda _: None, tmp_path)
    assert all((one == other).all() for one, other in zip(weights, resumed, strict=True))
    untimed = history.columns.difference(["seconds", "images_per_second"])
    assert (history[untimed] == again[untimed]).all(axis=None)
    best = history.iloc[best_epoch(history, params) - 1]
    assert (probabilities.argmax(axis=1) == labels[48:]).mean() == pytest.approx(best.val_accuracy)


def test_test_time_flips_are_a_mean() -> None:
    network, images = small_network(), np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)
    rows = np.arange(8)
    parts = [predict(network, np.flip(images, axes), rows, 4) for axes in ((), (1,), (2,), (1, 2))]
    flips = TrainParams(**COMMON, recipe="modern").on("ham10000").flip_axes
    assert predict(network, images, rows, 4, flips) == pytest.approx(np.mean(parts, axis=0))
    assert np.std(parts, axis=0).max() > 0


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="runs this file on JAX")
def test_the_same_holds_on_jax() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(Path(__file__))]
    env = {**os.environ, "KERAS_BACKEND": "jax"}
    result = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-3000:]
