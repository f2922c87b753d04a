"""A fit's checkpoints are kept until DVC has recorded its outputs, and no longer; one process works on a fit."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from medtransfer.core.dvc import digest_of
from medtransfer.core.layout import checkpoints_folder, run_folder
from medtransfer.pipeline.fit_id import claim_fit, remove_recorded_checkpoints

FIT = ("ham10000", "imagenet_head", 0)
CLAIM = """
import sys, time
from medtransfer.core.layout import checkpoints_folder, run_folder
from medtransfer.pipeline.fit_id import claim_fit
fit = ("ham10000", "imagenet_head", 0)
with claim_fit(checkpoints_folder(*fit), run_folder(*fit), {"seed": 0}) as claimed:
    print(claimed, flush=True)
    time.sleep(float(sys.argv[1]))
"""


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoints of a fit that has written its outputs."""
    monkeypatch.chdir(tmp_path)
    outputs, kept = run_folder(*FIT), checkpoints_folder(*FIT)
    outputs.mkdir(parents=True)
    (outputs / "run.json").write_text("{}\n")
    interrupt()
    (kept / "epoch-00001.npz").touch()
    return kept


def interrupt() -> str:
    """Begin the fit and interrupt it; return its id."""
    claimed = claim_fit(checkpoints_folder(*FIT), run_folder(*FIT), {"seed": 0})
    with pytest.raises(KeyboardInterrupt), claimed as fit:
        raise KeyboardInterrupt
    return fit


def finish() -> None:
    with claim_fit(checkpoints_folder(*FIT), run_folder(*FIT), {"seed": 0}):
        pass


def record(md5: str) -> None:
    outs = [{"path": run_folder(*FIT).as_posix(), "md5": md5, "size": 3, "nfiles": 1}]
    YAML().dump({"schema": "2.0", "stages": {"train": {"cmd": "train", "outs": outs}}}, Path("dvc.lock"))


def store(md5: str) -> None:
    """Put the outputs into DVC's cache."""
    content = (run_folder(*FIT) / "run.json").read_bytes()
    listed = [{"md5": hashlib.md5(content, usedforsecurity=False).hexdigest(), "relpath": "run.json"}]
    for name, stored in ((listed[0]["md5"], content), (md5, json.dumps(listed).encode())):
        path = Path(".dvc/cache/files/md5", name[:2], name[2:])
        path.parent.mkdir(parents=True)
        path.write_bytes(stored)


def test_without_dvc_they_are_removed_at_the_end(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    finish()
    assert not kept.exists()


def test_with_dvc_they_are_removed_when_the_outputs_are_recorded_and_stored(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "train")
    fit = interrupt()
    record("0" * 32 + ".dir")  # of an earlier fit
    finish()
    remove_recorded_checkpoints()
    assert (kept / "epoch-00001.npz").exists()
    assert interrupt() == fit

    finish()
    md5 = digest_of(run_folder(*FIT))
    record(md5)
    remove_recorded_checkpoints()
    assert kept.exists()  # DVC could not store the outputs, and will run the stage again
    store(md5)
    (run_folder(*FIT) / "run.json").unlink()  # as `dvc repro --force` does before the stage
    remove_recorded_checkpoints()
    assert not kept.exists()


def test_a_fit_that_has_not_ended_keeps_them(kept: Path) -> None:
    record(digest_of(run_folder(*FIT)))
    remove_recorded_checkpoints()
    assert (kept / "epoch-00001.npz").exists()


def test_a_fit_of_other_data_has_another_id_and_no_checkpoints(kept: Path) -> None:
    fit = interrupt()
    with claim_fit(kept, run_folder(*FIT), {"seed": 1}) as other:
        assert other != fit
        assert not (kept / "epoch-00001.npz").exists()


def test_a_moved_fit_keeps_its_id_and_a_copied_one_continues_under_another(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, project = interrupt(), Path.cwd()
    copy = shutil.copytree(project, project.with_name("copy"))
    moved = project.rename(project.with_name("moved"))
    monkeypatch.chdir(moved)
    assert interrupt() == fit
    shutil.rmtree(copy)
    shutil.copytree(moved, copy)
    monkeypatch.chdir(copy)
    assert interrupt() != fit
    assert Path(*kept.parts[-4:], "epoch-00001.npz").exists()


def claimer(seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CLAIM, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_second_process_waits_for_the_first_and_goes_on_with_its_fit(kept: Path) -> None:
    first = claimer(600)
    try:
        assert first.stdout
        fit = first.stdout.readline()
        with claimer(0) as second:
            assert second.stdout
            assert second.stderr
            assert f"process {first.pid} is working on this fit" in second.stderr.readline()
            first.kill()  # the lock dies with its process
            assert second.stdout.readline() == fit
        assert second.returncode == 0
    finally:
        first.kill()
        first.communicate()
