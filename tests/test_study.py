"""Stages in parallel: in the right order, none left running however they end, each with its name on its output."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Timer

import mlflow
import psutil
import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML
from zc.lockfile import LockFile

from conftest import DVC_ON_A_FULL_DISK, PROJECT, git_init
from medtransfer.audit import audit
from medtransfer.core import dvc as integrity
from medtransfer.core.errors import UserError
from medtransfer.core.files import atomic_folder
from medtransfer.core.params import Params
from medtransfer.data.catalogue import CHEST_XRAY
from medtransfer.data.preparation import prepare_dataset
from medtransfer.study.run import DVC, check_cache_writable, divide, print_lines, run_study, store_again
from medtransfer.tracking import mlflow_runs

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


def test_stages_that_wait_for_none_run_at_once_and_the_others_after_them(
    dvc_project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Each of a and b ends only after the other has begun.
    wait = (
        "'touch ${item.name}-begun;"
        " [ ${item.name} = c ] || while [ ! -e a-begun ] || [ ! -e b-begun ]; do sleep 0.1; done;"
        " echo I am ${item.name}; echo ${item.name} > ${item.name}'"
    )
    (dvc_project / "dvc.yaml").write_text(PIPELINE % wait)
    assert run_study(2) == 0
    assert (dvc_project / "e").read_text().split() == ["a", "b", "c"]
    said = capfd.readouterr().out
    assert "fit@a: I am a\n" in said
    assert "fit@b: I am b\n" in said
    assert run_study(2) == 0
    assert "I am" not in capfd.readouterr().out, "what is up to date runs again"


@pytest.mark.parametrize("busy", ["a stage runs", "DVC computes hashes"])
def test_beside_a_running_dvc_it_ends_with_one_line(dvc_project: Path, busy: str) -> None:
    (dvc_project / "dvc.yaml").write_text("stages: {prepare: {cmd: 'touch begun; exec sleep 120', outs: [p]}}")
    with ExitStack() as stack:
        if busy == "a stage runs":
            other = subprocess.Popen([*DVC, "repro"], stdout=subprocess.DEVNULL, start_new_session=True)
            stack.callback(other.wait)
            stack.callback(os.killpg, other.pid, signal.SIGKILL)
            while not (dvc_project / "begun").exists():
                time.sleep(0.1)
        else:
            stack.callback(LockFile(".dvc/tmp/lock").close)
        with pytest.raises(UserError, match="wait until it ends") as refused:
            run_study(2)
    assert "\n" not in str(refused.value)
    assert busy != "a stage runs" or str(other.pid) in str(refused.value)


def test_the_lock_of_a_killed_container_is_removed_as_the_message_says(dvc_project: Path) -> None:
    """Outside, its process's number is that of another program."""
    (dvc_project / "dvc.yaml").write_text("stages: {prepare: {cmd: touch p, outs: [p]}}")
    with subprocess.Popen(["sleep", "60"]) as other:
        held = {str(dvc_project / "p"): {"pid": other.pid, "cmd": "dvc repro"}}
        Path(".dvc/tmp/rwlock").write_text(json.dumps({"write": held, "read": {}}))
        with pytest.raises(UserError) as refused:
            run_study(2)
        assert f"process {other.pid} (sleep) is working in this project" in str(refused.value)
        (command,) = re.findall("`(.+)`", str(refused.value))
        subprocess.run(command, shell=True, check=True)
        assert run_study(2) == 0
        other.kill()


def test_each_generation_of_stages_is_divided_and_a_last_single_stage_is_left_out() -> None:
    generations = [["prepare"], ["a", "b", "c"], ["all"], ["x", "y"], ["z"]]
    expected = [[["prepare"]], [["a", "c"], ["b"]], [["all"]], [["x"], ["y"]]]
    assert divide(generations, 2) == expected
    assert divide(generations[:3], 2) == expected[:2]
    assert divide([], 2) == []


def test_a_stage_that_fails_stops_the_others(dvc_project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (dvc_project / "dvc.yaml").write_text(PIPELINE % "'if [ ${item.name} = a ]; then exit 3; else exec sleep 120; fi'")
    begin = time.monotonic()
    assert run_study(2) != 0
    assert time.monotonic() - begin < 60
    assert "fit@a: ERROR" in capfd.readouterr().out
    assert not (dvc_project / "e").exists()


def test_outputs_that_dvc_could_not_store_are_named(dvc_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dvc repro` ends with 0 there and would make them again the next time."""
    command = "ulimit -S -f unlimited; mkdir runs; head -c 2000000 /dev/urandom > runs/model"
    stages = {"fit": {"cmd": command, "outs": ["runs"]}}
    (dvc_project / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    with monkeypatch.context() as patched:
        patched.setattr("medtransfer.study.run.DVC", DVC_ON_A_FULL_DISK)
        with pytest.raises(UserError, match="cache/files/md5: lacks the outputs of fit; free space on that disk, then"):
            run_study(1)
    made = (dvc_project / "runs" / "model").read_bytes()
    assert list(audit._check_dvc()) == ["dvc: fit: changed outs: not in cache runs; run `dvc commit fit`"]
    store_again()
    assert run_study(1) == 0
    assert (dvc_project / "runs" / "model").read_bytes() == made


def test_a_cache_that_cannot_be_written_is_named_before_any_fit(
    dvc_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dvc_project / "shared").mkdir()
    subprocess.run([*DVC, "cache", "dir", "shared"], check=True)
    check_cache_writable()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != Path("shared"))
    with pytest.raises(UserError, match=r"^shared: read-only, but DVC must store outputs there"):
        check_cache_writable()


def test_dvcs_files_are_kept_where_the_user_ignores_such_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git_init(tmp_path)
    Path("dvc.yaml").write_text("stages: {fit: {cmd: touch fit, outs: [fit]}}")
    assert run_study(1) == 0
    Path(".git/info/exclude").write_text("*.lock\n")
    with pytest.raises(UserError, match=r"^dvc: '.*dvc\.lock' is git-ignored"):
        store_again()
    Path(".git/info/exclude").write_text("*.lock\n*.yaml\n")
    assert run_study(1) > 0
    shutil.copy(PROJECT / ".gitignore", ".gitignore")
    store_again()
    assert run_study(1) == 0


@pytest.mark.parametrize(
    ("file", "text"),
    [("notes.txt.dvc", "<<<<<<< HEAD\n"), ("sub/dvc.yaml", "stagess: {}\n"), (".dvc/config", "[core\n")],
)
def test_a_file_that_dvc_cannot_read_is_one_line(dvc_project: Path, file: str, text: str) -> None:
    store_again()
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text(text)
    checks = [store_again, *([check_cache_writable] if file == ".dvc/config" else [])]
    integrity.cache_folder.cache_clear()
    for check in checks:
        with pytest.raises(UserError, match=r"^dvc: ") as refused:
            check()
        assert "\n" not in str(refused.value)


def test_an_output_that_fails_stops_all_stages_and_is_an_error(
    dvc_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dvc_project / "dvc.yaml").write_text(PIPELINE % "'echo I am ${item.name}; exec sleep 120'")

    def fail(lines: Iterator[str]) -> None:
        next(lines)
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("medtransfer.study.run.print_lines", fail)
    begin = time.monotonic()
    with pytest.raises(BrokenPipeError):
        run_study(2)
    assert time.monotonic() - begin < 60
    assert not (dvc_project / "e").exists()


def test_lines_are_told_apart_and_dvc_says_only_its_errors(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["Running stage 'fit@a':", "> fit a", "epoch 1", "ERROR: interrupted by the user"]
    print_lines([*lines, "Updating lock file", "To track", "ERROR: no"])
    assert capsys.readouterr().out == "fit@a: epoch 1\nERROR: no\n"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_users_shell_that_allows_no_login_does_not_matter(
    dvc_project: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    (dvc_project / "dvc.yaml").write_text(PIPELINE % "echo ${item.name} > ${item.name}")
    monkeypatch.setenv("SHELL", "/usr/sbin/nologin")
    assert run_study(jobs) == 0
    assert (dvc_project / "e").read_text().split() == ["a", "b", "c"]


def test_a_lock_file_that_dvc_is_writing_is_read_when_it_is_whole(dvc_project: Path) -> None:
    lock = LockFile(str(dvc_project / ".dvc/tmp/lock"))  # as DVC does it
    (dvc_project / "dvc.lock").write_text("schema: '2.0'\nsta")

    def finish() -> None:
        (dvc_project / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
        lock.close()

    timer = Timer(0.5, finish)
    timer.start()
    assert integrity.read_lock() == {}
    timer.join()


# --- interrupted, as a process


SLEEPING = {f"fit-{name}": f"touch {name}-begun; exec sleep 600" for name in "abc"}
IGNORED = "trap '' INT; "  # as a shell without job control does it for `medtransfer study &`


def heed_hangups() -> None:
    """Undo what `nohup pytest` does."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@contextmanager
def running(before: str, *arguments: str, module: str = "medtransfer") -> Iterator["subprocess.Popen[str]"]:
    """Run `medtransfer` after the shell's command `before`; whatever the test leaves of its group is killed."""
    env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{Path.cwd()}/mlruns/mlflow.db"}
    command = ["sh", "-c", f'{before}exec "$@"', "sh", sys.executable, "-m", module, *arguments]
    with (
        Path("said.txt").open("w") as said,
        subprocess.Popen(
            command, env=env, stdout=said, stderr=said, text=True, start_new_session=True, preexec_fn=heed_hangups
        ) as process,
    ):
        try:
            yield process
        finally:
            for one in in_group(process.pid):
                one.kill()


def in_group(group: int) -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter():
        try:
            if os.getpgid(one.pid) == group and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def wait_for(happened: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + 120
    while not happened():
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(Path("said.txt").read_text())
        time.sleep(0.1)


def write_study(folder: Path, commands: dict[str, str]) -> None:
    values = YAML(typ="safe").load((PROJECT / "params.yaml").read_text())
    (folder / "params.yaml").write_text(json.dumps({**values, "study": {}}))
    (folder / "dvc.yaml").write_text(json.dumps({"stages": {name: {"cmd": cmd} for name, cmd in commands.items()}}))
    (folder / "data").mkdir()
    (folder / "data" / "here.txt").touch()
    with Repo() as repo:
        repo.add("data")


@pytest.mark.parametrize(
    ("before", "jobs", "sent", "number"),
    [
        ("", 2, os.kill, signal.SIGTERM),
        (IGNORED, 1, os.kill, signal.SIGTERM),
        (IGNORED, 2, os.kill, signal.SIGTERM),
        ("", 2, os.killpg, signal.SIGTERM),
        ("", 2, os.killpg, signal.SIGHUP),
    ],
)
def test_a_signal_leaves_nothing_of_a_study_running(
    dvc_project: Path, before: str, jobs: int, sent: Callable[[int, int], None], number: int
) -> None:
    """To the command alone as `kill` sends it, or to all of its group, as at a timeout or the end of a terminal."""
    write_study(dvc_project, SLEEPING)
    with running(before, "study", "--jobs", str(jobs)) as process:
        wait_for(lambda: len(list(dvc_project.glob("*-begun"))) == jobs, process)
        assert len(in_group(process.pid)) == 1 + 2 * jobs
        sent(process.pid, number)
        assert process.wait(timeout=30) == 1
        assert in_group(process.pid) == []
    assert "Stopped. Run the command again" in Path("said.txt").read_text()
    assert len(list(dvc_project.glob("*-begun"))) == jobs, "another stage began"


STAGE = """
import sys, time
from pathlib import Path
from medtransfer.cli.app import main
from medtransfer.pipeline import prepare
def wait(params, dataset):
    Path(f"{dataset}-begun").touch()
    try:
        time.sleep(600)
    finally:
        Path(f"{dataset}-ended").touch()
prepare.prepare = wait
sys.argv[1:] = ["stage", "prepare", sys.argv[1]]
import medtransfer.cli
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent ended")
@pytest.mark.parametrize(
    ("module", "arguments", "jobs"),
    [("medtransfer", ["study", "--jobs=1"], 1), ("medtransfer", ["study", "--jobs=2"], 2), ("dvc", ["repro"], 1)],
)
def test_what_a_killed_study_started_ends(
    dvc_project: Path, module: str, arguments: list[str], jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dash, which stays between DVC and a stage of `study`, and with bash, which the stage replaces."""
    monkeypatch.setenv("SHELL", "/bin/bash")
    (dvc_project / "stage.py").write_text(STAGE)
    write_study(dvc_project, {name: f"{sys.executable} stage.py {name}" for name in ("a", "b")})
    with running("", *arguments, module=module) as process:
        wait_for(lambda: len(list(dvc_project.glob("*-begun"))) == jobs, process)
        process.kill()
        process.wait()
        end = time.monotonic() + 60
        while in_group(process.pid):
            assert time.monotonic() < end, in_group(process.pid)
            time.sleep(0.1)
    assert len(list(dvc_project.glob("*-ended"))) == jobs


@pytest.mark.slow
def test_sigterm_ends_a_stages_run_as_killed_though_ctrl_c_follows(
    tmp_path: Path, demo: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = YAML().load((PROJECT / "params.yaml").read_text())
    values["train"] |= {"epochs": 1000, "patience": 1000, "dense_units": [8, 8]}
    with Path("params.yaml").open("w") as file:
        YAML().dump(values, file)
    with atomic_folder(Path("artifacts/prepared/chest_xray")) as folder:
        prepare_dataset(CHEST_XRAY, demo / "chest_xray", params.datasets["chest_xray"], folder)
    with running("", "stage", "train", "chest_xray", "cnn_random", "--seed", "0") as process:
        wait_for(lambda: "epoch 1/1000" in Path("said.txt").read_text(), process)
        process.terminate()
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
            process.send_signal(signal.SIGINT)
        assert process.returncode == 1
        assert in_group(process.pid) == []
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("chest_xray").experiment_id])
    assert run.info.status == "KILLED", run.data.tags[mlflow_runs.ERROR][:1500]
    assert run.data.tags[mlflow_runs.ERROR].startswith("KeyboardInterrupt")
