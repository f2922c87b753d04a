"""A fit's checkpoints are kept until DVC has recorded its outputs, and no longer."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from medtransfer.core.dvc import digest_of
from medtransfer.core.layout import checkpoints_folder, run_folder
from medtransfer.pipeline.fit_id import claim_fit, end_fit, remove_recorded_checkpoints

FIT = ("ham10000", "imagenet_head", 0)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoints of a fit that has written its outputs."""
    monkeypatch.chdir(tmp_path)
    outputs, kept = run_folder(*FIT), checkpoints_folder(*FIT)
    outputs.mkdir(parents=True)
    (outputs / "run.json").write_text("{}\n")
    claim_fit(kept, {"seed": 0})
    (kept / "epoch-00001.npz").touch()
    return kept


def record(md5: str) -> None:
    outs = [{"path": run_folder(*FIT).as_posix(), "md5": md5, "size": 3, "nfiles": 1}]
    YAML().dump({"schema": "2.0", "stages": {"train": {"cmd": "train", "outs": outs}}}, Path("dvc.lock"))


def test_without_dvc_they_are_removed_at_the_end(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    end_fit(kept, run_folder(*FIT))
    assert not kept.exists()


def test_with_dvc_they_are_removed_when_the_outputs_are_recorded(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "train")
    fit = claim_fit(kept, {"seed": 0})
    record("0" * 32 + ".dir")  # of an earlier fit
    end_fit(kept, run_folder(*FIT))
    remove_recorded_checkpoints()
    assert (kept / "epoch-00001.npz").exists()
    assert claim_fit(kept, {"seed": 0}) == fit

    record(digest_of(run_folder(*FIT)))
    (run_folder(*FIT) / "run.json").unlink()  # as `dvc repro --force` does before the stage
    remove_recorded_checkpoints()
    assert not kept.exists()


def test_a_fit_that_has_not_ended_keeps_them(kept: Path) -> None:
    record(digest_of(run_folder(*FIT)))
    remove_recorded_checkpoints()
    assert (kept / "epoch-00001.npz").exists()
