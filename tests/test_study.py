"""Stages side by side: in the right order, none left running, and what they say told apart."""

import subprocess
import time
from pathlib import Path
from threading import Timer

import pytest
from zc.lockfile import LockFile

from medtransfer.stages import integrity
from medtransfer.stages.study import DVC, _print_lines, divide, run_study

PIPELINE = """
stages:
  prepare:
    cmd: echo p > p
    outs: [p]
  fit:
    matrix: {name: [a, b, c]}
    cmd: %s
    deps: [p]
    outs: ['${item.name}']
  evaluate:
    cmd: cat a b c > e
    deps: [a, b, c]
    outs: [e]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    subprocess.run([*DVC, "init", "--no-scm", "--quiet"], check=True)
    return tmp_path


def test_stages_that_wait_for_none_run_at_once_and_the_others_after_them(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Each of a and b ends only after the other has begun.
    wait = (
        "'touch ${item.name}-begun;"
        " [ ${item.name} = c ] || while [ ! -e a-begun ] || [ ! -e b-begun ]; do sleep 0.1; done;"
        " echo I am ${item.name}; echo ${item.name} > ${item.name}'"
    )
    (project / "dvc.yaml").write_text(PIPELINE % wait)
    assert run_study(2) == 0
    assert (project / "e").read_text().split() == ["a", "b", "c"]
    said = capfd.readouterr().out
    assert "fit@a: I am a\n" in said
    assert "fit@b: I am b\n" in said
    assert run_study(2) == 0
    assert "I am" not in capfd.readouterr().out, "what is up to date runs again"


def test_a_stage_that_waits_for_one_follows_it_in_its_lane_and_one_that_waits_for_more_comes_after_them() -> None:
    waits_for = {
        "a": {"prepare"}, "b": {"prepare"}, "c": {"prepare"}, "d": {"prepare"}, "on b": {"prepare", "b"}, "on c": {"c"},
        "all": {"a", "c", "d", "on b"}, "x": {"all"}, "y": {"all"}, "z": {"x", "y"}, "prepare": set(),
    }  # fmt: skip
    generations = [["prepare"], ["a", "b", "c", "d"], ["on b"], ["all"], ["x", "y"], ["z"]]
    shared = [["a", "c", "d"], ["b", "on b"]]
    assert divide(generations, waits_for, 2) == [[["prepare"]], shared, [["all"]], [["x"], ["y"]]]
    assert divide(generations[:4], waits_for, 2) == [[["prepare"]], shared]
    assert divide([["a", "b", "c"], ["on b", "on c"]], waits_for, 2) == [[["a", "c"], ["b"]], [["on b"], ["on c"]]]
    assert divide([], {}, 2) == []


def test_a_stage_that_fails_stops_the_others(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "dvc.yaml").write_text(PIPELINE % "'if [ ${item.name} = a ]; then exit 3; else exec sleep 120; fi'")
    begin = time.monotonic()
    assert run_study(2) != 0
    assert time.monotonic() - begin < 60
    assert "fit@a: ERROR" in capfd.readouterr().out
    assert not (project / "e").exists()


def test_lines_are_told_apart_and_dvc_says_only_its_errors(capsys: pytest.CaptureFixture[str]) -> None:
    _print_lines(
        ["Running stage 'fit@a':\n", "> fit a\n", "epoch 1\n", "Updating lock file\n", "To track\n", "ERROR: no\n"]
    )
    assert capsys.readouterr().out == "fit@a: epoch 1\nERROR: no\n"


def test_a_lock_file_that_dvc_is_writing_is_read_when_it_is_whole(project: Path) -> None:
    lock = LockFile(str(project / ".dvc/tmp/lock"))  # as DVC does it
    (project / "dvc.lock").write_text("schema: '2.0'\nsta")

    def finish() -> None:
        (project / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
        lock.close()

    timer = Timer(0.5, finish)
    timer.start()
    assert integrity.read_lock() == {}
    timer.join()
