"""Frozen prefixes: where the network is divided, what the cache keeps, and that a run is the same with it."""

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from medtransfer.core.params import BLOCKS
from medtransfer.core.recipe import TrainParams
from medtransfer.models import freezing, vgg16
from medtransfer.training import feature_cache as features
from medtransfer.training import prefix
from medtransfer.training.batches import Batches
from medtransfer.training.device import make_deterministic
from medtransfer.training.loop import fit, predict
from medtransfer.training.prefix import BATCH, compute_features, divide, frozen_prefix, use_cached_features

pytestmark = pytest.mark.usefixtures("narrow")

SIZE, CLASSES = 32, 3
SHAPE = (10, 2, 2, 3)


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (BATCH + 6, SIZE, SIZE, 3), dtype=np.uint8)


def made_from(name: str = "a", precision: str = "float32") -> dict[str, Any]:
    return {"prefix": name, "precision": precision}


def rows(start: int) -> Iterator[np.ndarray]:
    """Features that say which row they are of, two at a time."""
    whole = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    for row in range(start, len(whole), 2):
        yield whole[row : row + 2]


def never(start: int) -> Iterator[np.ndarray]:
    raise AssertionError("computed again")


def test_the_prefix_ends_before_the_first_trainable_block() -> None:
    assert frozen_prefix(()) == BLOCKS
    assert frozen_prefix(("block5",)) == BLOCKS[:4]
    assert frozen_prefix(("block3", "block5")) == BLOCKS[:2]
    assert frozen_prefix(("block1", "block5")) == ()
    assert frozen_prefix(BLOCKS) == ()


@pytest.mark.parametrize("blocks", [("block2",), ("block5",), ()])
def test_the_parts_behind_each_other_are_the_network(
    blocks: tuple[str, ...], images: np.ndarray, tiny: TrainParams
) -> None:
    model = vgg16.build_vgg16(SIZE, CLASSES, tiny, seed=0)
    freezing.set_trainable(model, blocks)
    prefix, rest = divide(model, frozen_prefix(blocks))
    whole = model.predict_on_batch(images)
    computed = np.concatenate(list(compute_features(prefix, images, 0)))
    assert np.allclose(rest.predict_on_batch(computed), whole, atol=1e-6)
    assert prefix.trainable_variables == []
    assert [v.path for v in rest.trainable_variables] == [v.path for v in model.trainable_variables]


def test_features_are_computed_once(tmp_path: Path) -> None:
    first, _ = features.cached_features(made_from(), SHAPE, rows, features.GB)
    again, _ = features.cached_features(made_from(), SHAPE, never, features.GB)
    assert first is not None
    assert again is not None
    assert isinstance(again, np.memmap)
    assert (again == np.concatenate(list(rows(0)))).all()
    (entry,) = features.entries()
    assert entry["made_from"].items() >= made_from().items()
    with pytest.raises(AssertionError, match="computed again"):
        features.cached_features(made_from("b"), SHAPE, never, features.GB)


def test_the_seconds_of_computing_are_kept_for_those_who_find_them_done() -> None:
    def slow(start: int) -> Iterator[np.ndarray]:
        time.sleep(0.2)
        return rows(start)

    assert features.cached_features(made_from(), SHAPE, slow, features.GB)[1] == 0
    (entry,) = features.entries()
    again = features.cached_features(made_from(), SHAPE, never, features.GB)[1]
    assert again == entry["made_from"]["seconds"]
    assert again is not None
    assert again >= 0.2
    assert features.cached_features(made_from("b"), SHAPE, never, 100)[1] == 0


def test_bfloat16_is_kept_in_two_bytes_and_to_the_bit() -> None:
    dtype = features.DTYPES["mixed_bfloat16"]

    def halves(start: int) -> Iterator[np.ndarray]:
        return (batch.astype(dtype) / 3 for batch in rows(start))

    stored, _ = features.cached_features(made_from(precision="mixed_bfloat16"), SHAPE, halves, features.GB)
    assert stored is not None
    assert stored.dtype == dtype
    assert (np.asarray(stored) == np.concatenate(list(halves(0)))).all()
    (entry,) = features.entries()
    assert entry["bytes"] - 2 * np.prod(SHAPE) < 200


def test_an_objection_is_kept_until_the_cache_is_cleared() -> None:
    asked = []

    def object_once() -> str:
        asked.append("")
        return "too slow" if len(asked) == 1 else ""

    for _ in range(2):
        assert features.cached_features(made_from(), SHAPE, never, features.GB, object_once) == (None, 0.0)
    assert len(asked) == 1
    features.clear()
    stored, _ = features.cached_features(made_from(), SHAPE, rows, features.GB, object_once)
    assert stored is not None


@pytest.mark.parametrize(("delayed", "cached"), [("compute", True), ("read", False)])
def test_a_gpu_caches_features_only_if_reading_them_is_faster(
    images: np.ndarray, tiny: TrainParams, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    delayed: str, cached: bool,
) -> None:  # fmt: skip
    """The GPU is made up, and one side is delayed."""
    caplog.set_level("INFO")
    monkeypatch.setattr(prefix, "accelerators", lambda: ["a GPU"])
    original = keras.Model.predict_on_batch

    def slower(model: keras.Model, batch: np.ndarray) -> np.ndarray:
        if (batch.dtype == np.uint8) == (delayed == "compute"):
            time.sleep(0.2)
        return original(model, batch)

    monkeypatch.setattr(keras.Model, "predict_on_batch", slower)
    model = vgg16.build_vgg16(SIZE, CLASSES, tiny, seed=0)
    network, _, _ = use_cached_features(model, BLOCKS[4:], tiny, images, 1)
    assert (network is not model) == cached
    assert ("ms per image" in caplog.text) == (not cached)


def test_an_interrupted_fill_goes_on_where_it_stopped() -> None:
    def cut(start: int) -> Iterator[np.ndarray]:
        for number, batch in enumerate(rows(start)):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        features.cached_features(made_from(), SHAPE, cut, features.GB)
    assert [entry["made_from"] for entry in features.entries()] == [None]
    starts = []

    def watched(start: int) -> Iterator[np.ndarray]:
        starts.append(start)
        return rows(start)

    # As if the kill had come within a write: half a row lies behind the whole ones.
    (unfinished,) = features.cache_folder().glob("*/features.npy")
    with unfinished.open("ab") as file:
        file.write(b"\0" * 7)
    stored, _ = features.cached_features(made_from(), SHAPE, watched, features.GB)
    assert starts == [4]
    # What was computed before the interruption was not timed.
    assert features.cached_features(made_from(), SHAPE, never, features.GB)[1] is None
    assert stored is not None
    assert (stored == np.concatenate(list(rows(0)))).all()


def test_the_least_recently_used_entry_makes_room() -> None:
    one = 4 * int(np.prod(SHAPE)) + 128
    for age, name in ((300, "a"), (200, "b")):
        features.cached_features(made_from(name), SHAPE, rows, 2.5 * one)
        (newest,) = (entry for entry in features.entries() if entry["made_from"]["prefix"] == name)
        os.utime(newest["path"] / "made_from.json", (time.time() - age,) * 2)
    features.cached_features(made_from("a"), SHAPE, never, 2.5 * one)
    features.cached_features(made_from("c"), SHAPE, rows, 2.5 * one)
    assert [entry["made_from"]["prefix"] for entry in features.entries()] == ["a", "c"]


def test_without_room_the_run_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "medtransfer")
    assert features.cached_features(made_from(), SHAPE, never, 100)[0] is None
    assert "cache.max_gb is 1e-07" in caplog.text
    usage = shutil.disk_usage("/")._replace(free=features.SPARE_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert features.cached_features(made_from(), SHAPE, never, features.GB)[0] is None
    assert "GB free" in caplog.text
    assert features.entries() == []


def test_a_disk_that_fills_up_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "medtransfer")

    def full(start: int) -> Iterator[np.ndarray]:
        yield from list(rows(start))[:2]
        raise OSError(28, "No space left on device")

    assert features.cached_features(made_from(), SHAPE, full, features.GB)[0] is None
    assert "No space left" in caplog.text
    assert list(features.cache_folder().glob("*/*")) == []


def test_an_entry_that_another_process_removed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    features.cached_features(made_from(), SHAPE, rows, features.GB)
    known = features.entries()
    shutil.rmtree(known[0]["path"])
    monkeypatch.setattr(features, "entries", lambda: known)
    features.clear()


def test_what_another_process_fills_is_left_alone() -> None:
    one = 4 * int(np.prod(SHAPE)) + 128

    def meanwhile(start: int) -> Iterator[np.ndarray]:
        yield from rows(start)
        # The lock is this process's own, which a second lock object cannot take either.
        assert features.cached_features(made_from("b"), SHAPE, never, 1.5 * one)[0] is None
        assert features.clear() == 0

    assert features.cached_features(made_from(), SHAPE, meanwhile, 1.5 * one)[0] is not None
    assert features.clear() == one
    assert features.entries() == []


def _fill_slowly(counter: Path) -> None:
    def slow(start: int) -> Iterator[np.ndarray]:
        with counter.open("a") as file:
            file.write("x")
        time.sleep(0.3)
        return rows(start)

    assert features.cached_features(made_from(), SHAPE, slow, features.GB)[0] is not None


def test_processes_that_want_the_same_features_compute_them_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill_slowly, args=(tmp_path / "counter",)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "counter").read_text() == "x"


@pytest.mark.parametrize(
    ("blocks", "precision"),
    [
        (("block5",), "mixed_bfloat16"),
        pytest.param((), "float32", marks=pytest.mark.slow),
        pytest.param(("block5",), "float32", marks=pytest.mark.slow),
        pytest.param((), "mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_a_run_is_the_same_with_and_without_the_store(
    blocks: tuple[str, ...], precision: str, images: np.ndarray, tiny: TrainParams
) -> None:
    settings = tiny.model_copy(update={"precision": precision})
    labels = np.arange(len(images), dtype=np.int32) % CLASSES
    found = []
    for max_gb in (0, 1):
        make_deterministic()
        model = vgg16.build_vgg16(SIZE, CLASSES, settings, seed=3)
        freezing.set_trainable(model, blocks)
        network, inputs, _ = use_cached_features(model, blocks, settings, images, max_gb)
        assert (network is model) == (max_gb == 0)
        training = Batches(inputs, np.arange(50), labels, 8, seed=3)
        validation = Batches(inputs, np.arange(50, 70), labels, 8)
        fit(network, training, validation, settings)
        found.append(predict(network, inputs, np.arange(70), 8))
        assert np.allclose(model.predict(images, verbose=0), found[-1], atol=1e-5 if precision == "float32" else 2e-2)
    assert np.allclose(found[0], found[1], atol=1e-5 if precision == "float32" else 2e-2)
    assert (found[0].argmax(1) == found[1].argmax(1)).mean() >= (1 if precision == "float32" else 0.9)


def test_damaged_features_are_computed_again(caplog: pytest.LogCaptureFixture) -> None:
    features.cached_features(made_from(), SHAPE, rows, features.GB)
    (entry,) = features.entries()
    path = entry["path"] / "features.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again, _ = features.cached_features(made_from(), SHAPE, rows, features.GB)
    assert again is not None
    assert (again == np.concatenate(list(rows(0)))).all()
    assert "damaged" in caplog.text
    (entry["path"] / "made_from.json").write_text("")  # a power cut
    assert [left["made_from"] for left in features.entries()] == [None]
    assert features.clear() > 0
