"""run.json: written and read in one place."""

import json
from pathlib import Path

import pytest

from conftest import PROJECT
from medtransfer.core.errors import UserError
from medtransfer.core.run_record import (
    KEYS,
    LEAKAGE_WORDS,
    SplitRule,
    find_fits,
    read_record,
    split_of,
    write_record,
)

COLLECTED = sorted(path.parent for path in PROJECT.glob("results/*/runs"))


@pytest.mark.parametrize("study", COLLECTED, ids=[study.name for study in COLLECTED])
def test_the_split_of_a_committed_run_is_that_of_its_data(study: Path) -> None:
    fits = find_fits(study / "runs")
    assert fits
    for fit in fits:
        split = json.loads((fit.parent / "dataset.json").read_text())["split"]
        assert split_of(read_record(fit)) == (split["by"], split["leakage"])


def test_a_partial_folder_is_no_fit(tmp_path: Path) -> None:
    for name in ("x-seed0", ".partial-x-seed0", ".partial-old-x-seed0"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        write_record(tmp_path / "mine" / name, {}, {})
    assert find_fits(tmp_path) == [tmp_path / "mine" / "x-seed0"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<<<<<<< HEAD\n{}", "cannot be read as JSON"),
        ("[]", "has no dataset"),
        (json.dumps(dict.fromkeys(KEYS[1:])), "has no dataset"),
        (json.dumps(dict.fromkeys(KEYS[:-1])), "has no hyperparameters"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError, match="no finished fit"):
        read_record(tmp_path)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=rf"run\.json: {told}.*; restore it with `git checkout` or `dvc repro`"):
        read_record(tmp_path)


@pytest.mark.parametrize("split", [SplitRule("group", "keep"), *(SplitRule("image", kind) for kind in LEAKAGE_WORDS)])
def test_a_split_is_read_back(tmp_path: Path, split: SplitRule) -> None:
    written = {**dict.fromkeys(KEYS), "split_by": split.by, "split_leakage": split.leakage}
    write_record(tmp_path, written, {"seed": 0})
    assert split_of(read_record(tmp_path)) == split
    assert read_record(tmp_path)["hyperparameters"] == {"seed": 0}
