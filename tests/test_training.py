"""The loop: order of batches, bit-equal repetition, best weights, and a loss that is no number."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from medtransfer.core.errors import UserError
from medtransfer.core.params import BLOCKS
from medtransfer.core.recipe import TrainParams
from medtransfer.models import freezing, vgg16
from medtransfer.training.batches import Batches
from medtransfer.training.device import make_deterministic
from medtransfer.training.loop import HISTORY_COLUMNS, fit, predict
from medtransfer.training.optimizers import build_optimizer

pytestmark = pytest.mark.usefixtures("narrow")

SIZE, CLASSES = 32, 3


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """Images whose brightness gives the class away."""
    rng = np.random.default_rng(0)
    labels = np.arange(48, dtype=np.int32) % CLASSES
    images = np.clip(rng.normal(60 + 70 * labels[:, None, None, None], 20, (48, SIZE, SIZE, 3)), 0, 255)
    return images.astype(np.uint8), labels


def order(batches: Batches) -> list[int]:
    return [int(label) for index in range(len(batches)) for label in batches[index][1]]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    images, labels = np.zeros((20, 2, 2, 3), np.uint8), np.arange(20)
    first, second = (Batches(images, np.arange(20), labels, 6, seed=3) for _ in range(2))
    orders = []
    for _ in range(2):
        assert order(first) == order(second)
        assert sorted(order(first)) == list(range(20))
        orders.append(order(first))
        first.start_epoch(1)
        second.start_epoch(1)
    assert orders[0] != orders[1]
    assert order(Batches(images, np.arange(20), labels, 6, seed=4)) != orders[0]


def test_without_a_seed_the_rows_keep_their_order() -> None:
    rows = np.array([5, 3, 9])
    batches = Batches(np.zeros((10, 2, 2, 3), np.uint8), rows, np.arange(10), 2)
    assert len(batches) == 2
    assert order(batches) == [5, 3, 9]


def test_class_weights_make_every_class_count_the_same() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2] + [0] * 5, np.int32)
    batches = Batches(np.zeros((15, 2, 2, 3), np.uint8), np.arange(10), labels, 4, seed=0, balance="class_weights")
    parts = [batches[index] for index in range(len(batches))]
    seen, weights = (np.concatenate([part[position] for part in parts]) for position in (1, 2))
    assert weights.mean() == pytest.approx(1)
    assert [weights[seen == label].sum() for label in range(3)] == pytest.approx([10 / 3] * 3)


def test_balanced_sampling_draws_every_class_as_often() -> None:
    rows = np.arange(10, 1010)
    labels = np.where(np.arange(1010) < 960, 0, 1).astype(np.int32)
    batches = Batches(np.zeros((1010, 1, 1, 3), np.uint8), rows, labels, 100, seed=0, balance="sampling")
    assert len(batches) == 10
    drawn = order(batches)
    assert 440 < sum(drawn) < 560
    batches.start_epoch(1)
    assert order(batches) != drawn


def test_a_rare_class_is_found_where_classes_are_balanced(tiny: TrainParams) -> None:
    """Weights and draws reach training; validation is that of all images as they are."""
    rng = np.random.default_rng(0)
    labels = (np.arange(64) % 8 == 0).astype(np.int32)
    images = np.clip(rng.normal(90 + 60 * labels[:, None, None, None], 25, (64, SIZE, SIZE, 3)), 0, 255)
    params = tiny.model_copy(update={"epochs": 1, "learning_rate": 1e-2, "dropout": 0.0})
    rows, shares = np.arange(64), {}
    for balance in ("none", "class_weights", "sampling"):
        make_deterministic()
        model = vgg16.build_vgg16(SIZE, 2, params, seed=5)
        freezing.set_trainable(model, ())
        training = Batches(images.astype(np.uint8), rows, labels, 8, 5, balance)
        fit(model, training, Batches(images.astype(np.uint8), rows, labels, 64), params)
        shares[balance] = predict(model, images.astype(np.uint8), rows, 64)[:, 1].mean()
    assert min(shares["class_weights"], shares["sampling"]) > shares["none"] + 0.05


class Watched(Batches):
    """Keeps the labels of every batch that was asked for."""

    asked: list[list[int]]

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        inputs, labels = super().__getitem__(index)
        self.asked.append(list(labels))
        return inputs, labels


def test_training_sees_the_order_of_the_epoch_and_nothing_else_shuffles(tiny: TrainParams) -> None:
    images, rows = np.zeros((48, SIZE, SIZE, 3), np.uint8), np.arange(36)
    model = vgg16.build_vgg16(SIZE, 48, tiny, seed=5)
    freezing.set_trainable(model, ())
    training = Watched(images, rows, np.arange(48), 8, seed=5)
    training.asked = []
    fit(model, training, Batches(images, np.arange(36, 48), np.arange(48), 4), tiny)
    seen = [label for batch in training.asked for label in batch]
    orders = [np.random.default_rng([5, epoch]).permutation(rows) for epoch in range(tiny.epochs)]
    assert seen == list(np.concatenate(orders))


def one_fit(
    data: tuple[np.ndarray, np.ndarray], params: TrainParams, blocks: tuple[str, ...] = ("block5",)
) -> tuple[np.ndarray, list[dict[Any, float]]]:
    images, labels = data
    make_deterministic()
    model = vgg16.build_vgg16(SIZE, CLASSES, params, seed=5)
    freezing.set_trainable(model, blocks)
    seen: list[int] = []
    training = Batches(images, np.arange(36), labels, params.batch_size, seed=5)
    validation = Batches(images, np.arange(36, 48), labels, params.batch_size)
    history = fit(model, training, validation, params, lambda rows: seen.append(len(rows)))
    assert list(history.columns) == HISTORY_COLUMNS
    assert list(history.epoch) == seen == list(range(1, len(seen) + 1))
    return predict(model, images, np.arange(48), params.batch_size), history.to_dict("records")


def test_the_same_seed_gives_the_same_bits_and_learns(data: tuple[np.ndarray, np.ndarray], tiny: TrainParams) -> None:
    params = tiny.model_copy(update={"epochs": 4, "learning_rate": 1e-3, "dropout": 0.2})
    (first, history), (second, _) = one_fit(data, params), one_fit(data, params)
    assert (first == second).all()
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize(
    ("blocks", "precision"),
    [
        (BLOCKS, "mixed_bfloat16"),
        pytest.param(("block1", "block5"), "float32", marks=pytest.mark.slow),
        pytest.param(BLOCKS, "float32", marks=pytest.mark.slow),
        pytest.param((), "mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_every_configuration_repeats_its_bits(
    data: tuple[np.ndarray, np.ndarray], tiny: TrainParams, blocks: tuple[str, ...], precision: str
) -> None:
    params = tiny.model_copy(update={"epochs": 1, "precision": precision})
    (first, _), (second, _) = one_fit(data, params, blocks), one_fit(data, params, blocks)
    assert first.tobytes() == second.tobytes()


def test_the_best_epochs_weights_are_kept(data: tuple[np.ndarray, np.ndarray], tiny: TrainParams) -> None:
    params = tiny.model_copy(update={"epochs": 6, "patience": 6, "learning_rate": 3e-3, "dropout": 0.0})
    probabilities, history = one_fit(data, params)
    labels = data[1][36:]
    loss = -np.log(np.maximum(probabilities[36:][np.arange(12), labels], 1e-7)).mean()
    assert loss == pytest.approx(min(row["val_loss"] for row in history), rel=1e-3)


def test_training_stops_when_validation_no_longer_improves(
    data: tuple[np.ndarray, np.ndarray], tiny: TrainParams
) -> None:
    # Validation labels that contradict the training labels get worse as the network learns.
    images, labels = data
    wrong = np.concatenate([labels[:36], (labels[36:] + 1) % CLASSES])
    params = tiny.model_copy(update={"epochs": 12, "patience": 1, "learning_rate": 1e-3, "dropout": 0.0})
    _, history = one_fit((images, wrong), params)
    assert len(history) < 12
    assert history[-1]["val_loss"] >= min(row["val_loss"] for row in history)


def test_a_loss_that_is_no_number_stops_the_run(data: tuple[np.ndarray, np.ndarray], tiny: TrainParams) -> None:
    params = tiny.model_copy(update={"optimizer": "sgd", "learning_rate": 1e30})
    with pytest.raises(UserError, match=r"lower the learning rate, which is 1e\+30"):
        one_fit(data, params)


def test_weight_decay_is_named_where_a_fit_diverges(data: tuple[np.ndarray, np.ndarray], tiny: TrainParams) -> None:
    params = tiny.model_copy(update={"optimizer": "adamw", "weight_decay": 1e30})
    with pytest.raises(UserError, match=r"or weight_decay, which is 1e\+30"):
        one_fit(data, params)


def test_every_optimizer_gets_the_learning_rate(tiny: TrainParams) -> None:
    for name in ("adam", "sgd", "rmsprop"):
        optimizer = build_optimizer(tiny.model_copy(update={"optimizer": name}), 1)
        assert isinstance(optimizer, keras.optimizers.Optimizer)
        assert float(optimizer.learning_rate) == pytest.approx(tiny.learning_rate)


READ_ALL = """
import sys
from pathlib import Path
import numpy as np
from medtransfer.training.batches import Batches
images = np.load(sys.argv[1], mmap_mode="r")
batches = Batches(images, np.arange(len(images)), np.zeros(len(images), np.int32), 32, seed=0)
assert sum(len(batches[index][0]) for index in range(len(batches))) == len(images)
# getrusage's peak would include pytest, which started this process.
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    peaks = []
    for count in (2_500, 25_000):  # 31 and 307 MB
        np.lib.format.open_memmap(tmp_path / f"{count}.npy", "w+", np.uint8, (count, 64, 64, 3)).flush()
        command = [sys.executable, "-c", READ_ALL, str(tmp_path / f"{count}.npy")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[0] < 1_500_000  # kB: the processes are measured, not what started them
