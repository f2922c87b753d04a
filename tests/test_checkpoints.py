"""Exact resume: a fit that was stopped anywhere ends with the bits of one that never was."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from medtransfer.core.errors import UserError
from medtransfer.core.recipe import TrainParams
from medtransfer.models import freezing, vgg16
from medtransfer.training import checkpoints, loop
from medtransfer.training.batches import Batches
from medtransfer.training.device import make_deterministic
from medtransfer.training.loop import fit, predict

pytestmark = pytest.mark.usefixtures("narrow")

SIZE, CLASSES, EPOCHS = 32, 3, 5
MADE_FROM = {"seed": 1, "learning_rate": 1e-3}


class Stopped(BaseException):
    """What a kill is to the process."""


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """Images whose brightness gives the class away, and validation labels that contradict it."""
    rng = np.random.default_rng(0)
    labels = np.arange(40, dtype=np.int32) % CLASSES
    images = np.clip(rng.normal(60 + 70 * labels[:, None, None, None], 20, (40, SIZE, SIZE, 3)), 0, 255)
    return images.astype(np.uint8), np.concatenate([labels[:32], (labels[32:] + 1) % CLASSES])


@pytest.fixture(scope="module")
def recipe(tiny: TrainParams) -> TrainParams:
    # The validation loss rises from the first epochs on: early stopping has something to remember.
    return tiny.model_copy(update={"epochs": EPOCHS, "patience": 3, "learning_rate": 1e-3, "dropout": 0.5})


def one_fit(
    data: tuple[np.ndarray, np.ndarray], recipe: TrainParams, folder: Path | None, stop_after: int = EPOCHS + 1
) -> tuple[np.ndarray, list[float]]:
    """Train block 5 and the head; return predictions and validation losses."""
    images, labels = data
    make_deterministic()
    model = vgg16.build_vgg16(SIZE, CLASSES, recipe, seed=1)
    freezing.set_trainable(model, ("block5",))
    training = Batches(images, np.arange(32), labels, recipe.batch_size, seed=1)
    validation = Batches(images, np.arange(32, 40), labels, recipe.batch_size)

    def stop(history: list[dict[str, float]]) -> None:
        if len(history) == stop_after:
            raise Stopped

    history = fit(model, training, validation, recipe, stop, folder, MADE_FROM)
    return predict(model, images, np.arange(40), recipe.batch_size), list(history.val_loss)


@pytest.fixture(scope="module")
def whole(data: tuple[np.ndarray, np.ndarray], recipe: TrainParams) -> tuple[np.ndarray, list[float]]:
    """The fit that was never stopped: early stopping ended it, and an epoch before the last was best."""
    predictions, losses = one_fit(data, recipe, None)
    assert len(losses) > 3
    assert losses[-1] > min(losses)
    return predictions, losses


@pytest.fixture(scope="module")
def stopped(data: tuple[np.ndarray, np.ndarray], recipe: TrainParams, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a fit that was stopped after its second epoch; tests work on copies."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Stopped):
        one_fit(data, recipe, folder, stop_after=2)
    return folder


@pytest.mark.parametrize("after", [2, *(pytest.param(after, marks=pytest.mark.slow) for after in (1, 3))])
def test_a_stopped_fit_ends_with_the_bits_of_one_that_never_was(
    data: tuple[np.ndarray, np.ndarray], recipe: TrainParams, whole: tuple[Any, Any], tmp_path: Path, after: int
) -> None:
    with pytest.raises(Stopped):
        one_fit(data, recipe, tmp_path, stop_after=after)
    predictions, losses = one_fit(data, recipe, tmp_path)
    assert losses == whole[1]
    assert (predictions == whole[0]).all()


def test_a_fit_that_had_ended_trains_no_more(
    data: tuple[np.ndarray, np.ndarray], recipe: TrainParams, whole: tuple[Any, Any], tmp_path: Path
) -> None:
    for _ in range(2):
        predictions, losses = one_fit(data, recipe, tmp_path)
        assert losses == whole[1]
        assert (predictions == whole[0]).all()


@pytest.mark.parametrize("part", ["weights", "optimizer", "random", "best", "stopping", "history"])
def test_every_part_of_the_state_is_needed(
    data: tuple[np.ndarray, np.ndarray],
    recipe: TrainParams,
    whole: tuple[Any, Any],
    stopped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
) -> None:
    """The negative control: with one part lost, the comparison above fails."""

    def load_without(*arguments: Any) -> Any:
        arrays, facts = checkpoints.load(*arguments) or ({}, {})
        assert part in facts or any(name.startswith(part) for name in arrays)
        arrays = {name: np.zeros_like(value) if name.startswith(part) else value for name, value in arrays.items()}
        lost = {"stopping": {"wait": 0, "best": np.inf, "best_epoch": 0, "stopped_epoch": 0}, "history": []}
        return arrays, {**facts, **{key: value for key, value in lost.items() if key == part}}

    checkpoint = shutil.copytree(stopped, tmp_path / "checkpoints")
    monkeypatch.setattr(loop, "load", load_without)
    predictions, losses = one_fit(data, recipe, checkpoint)
    assert losses != whole[1] or (predictions != whole[0]).any()


# --- the files


def write(folder: Path, epochs: int) -> None:
    for epoch in range(1, epochs + 1):
        history = [{"epoch": number} for number in range(1, epoch + 1)]
        checkpoints.save(folder, {"weights/0": np.full(500, epoch)}, {"made_from": MADE_FROM, "history": history})


def epoch_of(found: Any) -> int:
    arrays, facts = found
    assert (arrays["weights/0"] == len(facts["history"])).all()
    return len(facts["history"])


def test_the_newest_and_the_one_before_are_kept(tmp_path: Path) -> None:
    write(tmp_path, 4)
    assert [path.name[:11] for path in sorted(tmp_path.iterdir())] == ["epoch-00003", "epoch-00004"]
    assert epoch_of(checkpoints.load(tmp_path, MADE_FROM)) == 4


def test_a_checkpoint_that_was_cut_or_changed_anywhere_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 2)
    newest = max(tmp_path.iterdir())
    content = newest.read_bytes()
    rng = np.random.default_rng(0)
    for offset in rng.choice(len(content), 50, replace=False):
        newest.write_bytes(content[:offset])
        assert epoch_of(checkpoints.load(tmp_path, MADE_FROM)) == 1
        newest.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
        assert epoch_of(checkpoints.load(tmp_path, MADE_FROM)) == 1
    assert "damaged" in caplog.text
    newest.write_bytes(content)
    assert epoch_of(checkpoints.load(tmp_path, MADE_FROM)) == 2


def test_with_no_whole_checkpoint_a_fit_begins_anew(tmp_path: Path) -> None:
    write(tmp_path, 2)
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    assert checkpoints.load(tmp_path, MADE_FROM) is None
    assert checkpoints.load(tmp_path / "nowhere", MADE_FROM) is None


def test_the_checkpoints_of_another_fit_are_not_used(tmp_path: Path) -> None:
    write(tmp_path, 2)
    assert checkpoints.load(tmp_path, {**MADE_FROM, "learning_rate": 1e-4}) is None
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_cannot_be_written_leaves_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*arguments: Any, **arrays: Any) -> None:
        arguments[0].write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"epoch-00003.*No space left.*checkpoint before"):
        checkpoints.save(tmp_path, {}, {"made_from": MADE_FROM, "history": [{}] * 3})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        folder = tmp_path / "fit"
        write(folder, 2)
        before = sorted(folder.iterdir())
        with pytest.raises(UserError, match=r"epoch-00003.*No space left.*checkpoint before"):
            checkpoints.save(folder, {"weights/0": np.zeros(10**5)}, {"made_from": MADE_FROM, "history": [{}] * 3})
        assert sorted(folder.iterdir()) == before
        assert epoch_of(checkpoints.load(folder, MADE_FROM)) == 2
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_the_state_holds_every_variable_that_training_changes(
    data: tuple[np.ndarray, np.ndarray], recipe: TrainParams
) -> None:
    images, labels = data
    model = vgg16.build_vgg16(SIZE, CLASSES, recipe, seed=1)
    freezing.set_trainable(model, ("block5",))
    training = Batches(images, np.arange(32), labels, recipe.batch_size, seed=1)
    fit(model, training, training, recipe.model_copy(update={"epochs": 1}))
    held = {id(variable) for variables in checkpoints.changing_variables(model).values() for variable in variables}
    everything = [*model.variables, *model.optimizer.variables]
    left_out = {variable.path for variable in everything if id(variable) not in held}
    frozen = {variable.path for layer in model.layers if not layer.trainable for variable in layer.variables}
    assert left_out == frozen
    assert any(isinstance(layer, keras.layers.Dropout) for layer in model.layers)
