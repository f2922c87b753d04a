"""Stages of a study run in forks of one process, as if each were a process of its own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import PROJECT
from medtransfer.cli import warm

# `stage evaluate` says who runs it where, and waits if it is asked to.
STAGE = """
import os, time
from pathlib import Path
from medtransfer.pipeline import evaluate
def stand_in(params):
    try:
        print(os.getpid(), os.getppid(), Path.cwd(), os.environ.get("MEDTRANSFER_TEST"), flush=True)
        time.sleep(float(os.environ.get("MEDTRANSFER_TEST", "0")))
    finally:
        Path("ended").touch()
evaluate.evaluate = stand_in
"""
COMMAND = [sys.executable, "-m", "medtransfer", "stage", "evaluate"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    return tmp_path


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    modules = tmp_path_factory.mktemp("modules")
    (modules / "warm_stage.py").write_text(STAGE)
    monkeypatch.setenv("PYTHONPATH", f"{modules}{os.pathsep}{PROJECT / 'src'}")
    monkeypatch.setattr(warm, "LOADED", "warm_stage")
    with warm.warm_process():
        yield
    assert warm.ADDRESS not in os.environ


@pytest.mark.parametrize("kind", ["changed", "killed"])
def test_after_a_change_of_the_code_or_its_death_the_process_is_not_used(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    modules = tmp_path_factory.mktemp("modules")
    shutil.copytree(PROJECT / "src/medtransfer", modules / "medtransfer")
    (modules / "warm_stage.py").write_text(STAGE)
    monkeypatch.setenv("PYTHONPATH", str(modules))
    monkeypatch.setattr(warm, "LOADED", "warm_stage")
    with warm.warm_process():
        with begin(folder, "0") as process:
            parent = int(process.communicate()[0].split()[1])
        if kind == "changed":
            (modules / "medtransfer/pipeline/evaluate.py").write_text("raise ImportError('the new code')")
        else:
            os.kill(parent, signal.SIGKILL)
            (folder / "params.yaml").unlink()
        with begin(folder, "0") as process:
            _, error = process.communicate(timeout=60)
    assert {"changed": "the new code", "killed": "medtransfer: params.yaml"}[kind] in error


def begin(folder: Path, seconds: str) -> "subprocess.Popen[str]":
    env = {**os.environ, "MEDTRANSFER_TEST": seconds}
    return subprocess.Popen(COMMAND, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.usefixtures("server")
def test_a_fork_has_the_folder_the_environment_and_the_output_of_its_command(folder: Path) -> None:
    said = []
    for seconds in ("0", "0.0"):
        with begin(folder, seconds) as process:
            out, error = process.communicate()
        assert (process.returncode, error) == (0, "")
        pid, parent, *rest = out.split()
        assert int(pid) != process.pid
        assert rest == [str(folder), seconds]
        said.append(parent)
    assert said[0] == said[1]


def test_a_fork_runs_in_any_locale(
    folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line restarts itself where the locale is not UTF-8, which a fork cannot do."""
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    request.getfixturevalue("server")
    with begin(folder, "0") as process:
        out, error = process.communicate()
    assert (process.returncode, error) == (0, "")
    assert int(out.split()[0]) != process.pid


@pytest.mark.usefixtures("server")
def test_a_mistake_is_one_line_and_exit_code_2(folder: Path) -> None:
    (folder / "params.yaml").unlink()
    with begin(folder, "0") as process:
        _, error = process.communicate()
    assert process.returncode == 2
    assert error.startswith("medtransfer: params.yaml")
    assert error.count("\n") == 1


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGKILL, -9)], ids=["INT", "TERM", "KILL"]
)
def test_a_fork_ends_with_its_command(folder: Path, sent: int, code: int) -> None:
    with begin(folder, "600") as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(sent)
        assert process.wait(timeout=60) == code
    end = time.monotonic() + 60
    while not (folder / "ended").exists():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.usefixtures("server")
def test_a_killed_fork_is_an_error_of_its_command(folder: Path) -> None:
    with begin(folder, "600") as process:
        assert process.stdout
        pid = process.stdout.readline().split()[0]
        os.kill(int(pid), signal.SIGKILL)
        _, error = process.communicate()
    assert (process.returncode, error) == (1, f"process {pid} was killed\n")


def test_without_a_warm_process_a_stage_runs_in_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(warm.ADDRESS, str(folder / "none"))
    (folder / "params.yaml").unlink()
    with begin(folder, "0") as process:
        _, error = process.communicate()
    assert process.returncode == 2
    assert error.startswith("medtransfer: params.yaml")
