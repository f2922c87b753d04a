"""tables and report: a damaged or missing file among collected results is named in one line."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from conftest import AT_64_PX, PROJECT
from medtransfer.core.errors import UserError
from medtransfer.study.report import read_study, write_leakage, write_result_tables

FIT = "ham10000/imagenet_all-seed0"


class Damage(NamedTuple):
    """What happens to a file, and the message: `after` replaces its text `before`, all of it if that is empty."""

    file: str
    before: str
    after: str | None
    told: str


GONE = None
DAMAGES = [
    Damage(f"gradcam/{FIT}/gradcam.png", "", GONE, "not found; remove .*, or run `medtransfer"),
    Damage(f"gradcam/{FIT}/gradcam.png", "", "", "cannot be read as a picture"),
    Damage(f"gradcam/{FIT}/gradcam.json", "", "[]", "has no dataset"),
    Damage(f"layers/{FIT}/similarity.csv", "", GONE, "not found; remove .*, or run `medtransfer"),
    Damage(f"layers/{FIT}/probes.csv", "network", "other", "no column 'network'"),
    Damage(f"layers/{FIT}/layers.json", "", "{}", "has no dataset"),
    Damage(f"layers/{FIT}/layers.json", "", "{", "cannot be read as JSON"),
    *(
        Damage(f"runs/{FIT}/{file}", "", GONE, "not found; restore the file, or remove this folder")
        for file in ("predictions.csv", "history.csv")
    ),
    Damage("ham10000-activations.png", "", "\x89PNG", "cannot be read as a picture"),
    Damage("tuning.csv", "val_loss", "other", "no column 'val_loss'"),
    Damage("summary.csv", "measure", "other", "no column 'measure'"),
    Damage("differences.csv", "few", "other", "no column 'few'"),
    Damage("claims.csv", "verdict", "other", "no column 'verdict'"),
    Damage("leak.csv", "clean", "other", "no column 'clean_seeds'"),
    Damage("params.yaml", "baselines:", "baseline:", "baselines: missing"),
    Damage("params.yaml", "baselines: [decision_tree, random_forest]", "baselines:", "baselines: found None"),
    Damage("params.yaml", "study:\n  ham10000:", "study:\n  other:", "study: 'other' is unknown; choose one of"),
    Damage(
        "params.yaml",
        "    image_size:",
        "    catalogue: {titel: x}\n    image_size:",
        "datasets.ham10000.catalogue.titel: unknown key",
    ),
]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collected results of one fit with `layers`, `gradcam`, activations, trials and leakage."""
    source, folder = PROJECT / AT_64_PX, tmp_path_factory.mktemp("results") / "mine"
    for kind in ("runs", "layers", "gradcam"):
        shutil.copytree(source / kind / FIT, folder / kind / FIT)
    for file in ("params.yaml", "tuning.csv", "ham10000-activations.png"):
        shutil.copy(source / file, folder)
    shutil.copy(PROJECT / "results/leak-match/leak.csv", folder)
    write_result_tables(folder)
    read_study(folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: f"{damage.file}: {damage.told}")
def test_a_damaged_file_is_named(collected: Path, tmp_path: Path, damage: Damage) -> None:
    folder = shutil.copytree(collected, tmp_path / "mine")
    path = folder / damage.file
    if damage.after is None:
        path.unlink()
    elif damage.before:
        assert damage.before in path.read_text()
        path.write_text(path.read_text().replace(damage.before, damage.after))
    else:
        path.write_text(damage.after)
    with pytest.raises(UserError, match=rf"{damage.file}: {damage.told}") as told:
        read_study(folder)
    assert "\n" not in str(told.value)


def test_leakage_names_a_file_that_is_not_that_of_a_study(collected: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(collected, tmp_path / "mine")
    (folder / "params.yaml").write_text("study: [scans]")
    with pytest.raises(UserError, match=r"params\.yaml: .*expected the params\.yaml of these fits"):
        write_leakage(folder, folder)
