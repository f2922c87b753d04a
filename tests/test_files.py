"""Files and folders appear complete or not at all."""

import errno
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medtransfer.core.files import (
    atomic_file,
    atomic_folder,
    hold,
    restored_on_error,
    sha256_of,
    user_cache,
    write_json,
)


def test_a_complete_folder_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "x"
    for text in ("first", "second"):
        with atomic_folder(target) as folder:
            (folder / text).touch()
            assert not (target / text).exists()
        assert [path.name for path in target.iterdir()] == [text]
    assert [path.name for path in target.parent.iterdir()] == ["x"]


def test_two_writers_of_a_folder_take_turns(tmp_path: Path) -> None:
    """Such as two `medtransfer stage prepare` of one data set."""
    target, ended = tmp_path / "x", []

    def write(name: str) -> None:
        with atomic_folder(target) as folder:
            (folder / name).touch()
            time.sleep(0.1)
            assert [path.name for path in folder.iterdir()] == [name]
            ended.append(name)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, "abc"))
    assert sorted(ended) == ["a", "b", "c"]
    assert [path.name for path in target.iterdir()] == ended[-1:]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_two_writers_of_a_file_take_turns(tmp_path: Path) -> None:
    """Such as two `medtransfer report`."""
    target = tmp_path / "x"

    def write(name: str) -> None:
        with atomic_file(target) as partial:
            partial.write_text(name)
            time.sleep(0.1)
            assert partial.read_text() == name

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, "abc"))
    assert target.read_text() in "abc"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_one_who_waits_says_for_what(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The other may have been stopped with Ctrl-Z."""
    lock, ended = tmp_path / "a.lock", []

    def work() -> None:
        with hold(lock, "another process is working"):
            ended.append(len(caplog.messages))

    with ThreadPoolExecutor() as pool, hold(lock, "this one"):
        pool.submit(work)
        end = time.monotonic() + 60
        while not caplog.messages and time.monotonic() < end:
            time.sleep(0.01)
        assert not ended
    assert caplog.messages == ["another process is working; waiting for it"]
    assert ended == [1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    with atomic_folder(tmp_path / "x") as folder:
        (folder / "old").touch()
    write_json(tmp_path / "y.json", {"old": 1})
    with pytest.raises(error), atomic_folder(tmp_path / "x") as folder:
        (folder / "new").touch()
        raise error
    with pytest.raises(error), atomic_file(tmp_path / "y.json") as partial:
        partial.write_text("half")
        raise error
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["old"]
    assert json.loads((tmp_path / "y.json").read_text()) == {"old": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y.json"]


def test_a_failure_that_changed_nothing_touches_nothing(tmp_path: Path) -> None:
    """Otherwise, files would be lost if that were interrupted or not allowed."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").touch()
    before = [path.stat().st_ctime_ns for path in (folder, folder / "images")]
    with pytest.raises(RuntimeError), restored_on_error(folder):
        raise RuntimeError
    assert [path.stat().st_ctime_ns for path in (folder, folder / "images")] == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_a_killed_process_kept_stops_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    with atomic_folder(folder) as partial:
        (partial / "old").touch()
    (tmp_path / ".partial-kept-x").mkdir()
    with pytest.raises(RuntimeError), restored_on_error(folder):
        (folder / "old").rename(folder / "new")
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "old"]


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EPERM])
def test_what_cannot_be_linked_is_copied(tmp_path: Path, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another disk, such as a mounted volume, and where somebody else owns the files."""

    def refuse(source: str, target: str) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "link", refuse)
    folder = tmp_path / "x"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "old").write_text("old")
    (folder / "missing").symlink_to("nowhere")
    (tmp_path / "linked").symlink_to(folder)
    for where in (folder, tmp_path / "linked"):
        with pytest.raises(RuntimeError), restored_on_error(where):
            shutil.rmtree(where / "sub")
            (where / "new").touch()
            raise RuntimeError
        assert sorted(path.name for path in folder.iterdir()) == ["missing", "sub"]
        assert (folder / "sub" / "old").read_text() == "old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["linked", "x"]


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_of(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_relative_cache_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be another one in each folder, and one in DVC's copies would be lost."""
    for value in ("cache", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert user_cache() == Path.home() / ".cache/medtransfer"
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert user_cache() == Path("/scratch/medtransfer")
