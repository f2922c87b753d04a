"""Images of another source: their labels, and what networks lose on them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from conftest import PROJECT
from medtransfer.analysis.external import compare_sources, estimate_present
from medtransfer.analysis.runs import Run
from medtransfer.analysis.scores import estimate_of
from medtransfer.analysis.uncertainty import groups_variance
from medtransfer.core.errors import UserError
from medtransfer.core.params import CatalogueEntry
from medtransfer.core.predictions import as_predictions, predicted_labels
from medtransfer.data.catalogue import CATALOGUE
from medtransfer.data.custom import Columns, custom_dataset
from medtransfer.metrics.scores import AUC, BALANCED, BY_NAME, CALIBRATION, MACRO, MICRO
from medtransfer.serving.outside import Labels, find_images, match_labels, read_labels

CLASSES = ["mel", "nv", "vasc"]
ALONE = "; each is counted as independent, unless its DICOM file names a patient"
ONE_HOT = "image,MEL,NV,SCC\na,1.0,0.0,0.0\nb,0.0,1.0,0.0\nc,0.0,0.0,1.0\n"
LABELS = "image,label,patient\na,MEL,p1 \nb,nv,\nc,naevus,p1\n"


def read(tmp_path: Path, text: str, group: str | None = None, label: str = "label", **names: str) -> pd.DataFrame:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return read_labels(Labels(path, Columns("image", label, group), names), CLASSES)


def test_labels_come_from_a_column_or_are_one_hot(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = read(tmp_path, LABELS, "patient", naevus="nv")
    assert table.label.tolist() == ["mel", "nv", "nv"]
    assert table.group.tolist() == ["p1", "b", "p1"]
    assert caplog.messages == [f"{tmp_path}/labels.csv: 1 row without a patient{ALONE}"]
    unknown = read(tmp_path, "image,label,patient\na,mel,unknown\nb,nv,NA\nc,nv,#N/A\n", "patient")
    assert unknown.group.tolist() == ["a", "b", "c"]
    assert caplog.messages[1:] == [f"{tmp_path}/labels.csv: 3 rows without a patient{ALONE}"]
    with pytest.raises(UserError, match=r"row 2: patient is 2\.02311E\+15, which a program has rounded"):
        read(tmp_path, "image,label,patient\na,mel,2.02311E+15\n", "patient")
    table = read(tmp_path, ONE_HOT, SCC="")
    assert table.image.tolist() == ["a", "b"]
    assert table.label.tolist() == ["mel", "nv"]
    assert read(tmp_path, ONE_HOT, SCC="mel").label.tolist() == ["mel", "nv", "mel"]
    more = "image,MEL,NV,UNK,age\na,1,0,0,40\nb,0,1,0,\n"
    assert read(tmp_path, more, label="MEL,NV,UNK", UNK="").label.tolist() == ["mel", "nv"]  # no image is UNK


@pytest.mark.parametrize(
    ("text", "names", "told"),
    [
        (LABELS, {}, "no class is called 'naevus' (1 images)"),
        (LABELS, {"naevus": "nevus"}, "'naevus' cannot become 'nevus'; the classes are mel, nv, vasc"),
        (LABELS, {"naevi": "nv"}, "no image has the label 'naevi'"),
        (LABELS + "a,nv,\n", {"naevus": "nv"}, "a has more than one row"),
        (LABELS + ",nv,\n", {"naevus": "nv"}, f"row {LABELS.count(chr(10)) + 1} has no image"),
        (
            "image,diagnosis\na,mel\n",
            {},
            "no column 'label', and not all other columns are one-hot (0 or 1): diagnosis;",
        ),
        ("image\na\n", {}, "no column 'label'"),
        ("image,MEL,NV\na,1,1\n", {}, "row 2: found 1, 1; expected 1 in one of MEL, NV"),
        ("image,MEL,NV\na,0,0\n", {}, "row 2: found 0, 0; expected 1 in one of MEL, NV"),
        ("image,MEL,NV\na,0.4,0.6\n", {}, "one-hot (0 or 1): MEL, NV;"),
        ("image,MEL,NV,age\na,1,0,40\n", {}, "one-hot (0 or 1): age;"),
        ("name,label\na,mel\n", {}, "no column 'image'"),
    ],
)
def test_a_mistake_in_the_labels_is_named(tmp_path: Path, text: str, names: dict[str, str], told: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, text, **names)
    assert told in str(error.value)


MISTAKEN = """
import json, sys
from medtransfer.cli import cli
from medtransfer.core.errors import UserError
for arguments in json.loads(sys.argv[1]):
    try:
        cli(["score", *arguments], standalone_mode=False)
    except UserError as error:
        print(error)
print(sorted({"keras", "matplotlib", "mlflow", "tensorflow"} & set(sys.modules)))
"""


def test_a_mistake_in_scoring_is_named_before_anything_slow_is_imported(tmp_path: Path) -> None:
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("image,diagnosis\na,mel\nb,scar=2\n")
    told = {
        "no column 'label'": [],
        "no column 'file'": ["--label-column", "diagnosis", "--image-column", "file"],
        "no class is called 'scar=2'": ["--label-column", "diagnosis", "--map", "mel="],
        "no finished network": ["--label-column", "diagnosis", "--map", "scar=2="],
        "'none' is unknown": ["--label-column", "diagnosis", "--map", "scar=2=", "--configuration", "none"],
        "not a name for a source (--name)": ["--name", "../up"],
    }
    command = ["ham10000", "--images", str(tmp_path), "--labels", str(tmp_path / "labels.csv")]
    asked = json.dumps([[*command, *arguments] for arguments in told.values()])
    done = subprocess.run([sys.executable, "-c", MISTAKEN, asked], cwd=tmp_path, capture_output=True, text=True)
    *mistakes, imported = done.stdout.splitlines()
    assert [text in line for text, line in zip(told, mistakes, strict=True)] == [True] * len(told), done.stdout
    assert imported == "[]"


def test_images_are_matched_by_path_or_name_with_or_without_suffix(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def there(*names: str) -> dict[str, Path]:
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        return {name: tmp_path / name for name in names}

    table = pd.DataFrame({"image": ["C:\\scans\\x\\a", "b.JPG", "c", "gone"], "label": "mel", "group": list("abcd")})
    files = there("x/a.png", "x/b.jpg", "y/c.png", "y/d.png")
    samples = match_labels(files, table, Path("labels.csv"))
    assert samples.id.tolist() == ["x/a", "x/b", "y/c"]
    assert samples.file.tolist() == [files[name] for name in ("x/a.png", "x/b.jpg", "y/c.png")]
    assert set(samples.split) == {"external"}
    assert caplog.messages == ["left out: 1 image without a label, 1 row without an image"]
    parts = pd.DataFrame({"image": ["x/a.png", "y/a"], "label": "mel", "group": list("pq")})
    whole = {path.as_posix(): path for path in there("x/a.png", "y/a.png").values()}
    assert match_labels(whole, parts, Path("labels.csv")).group.tolist() == ["p", "q"]
    with pytest.raises(UserError, match=r"c matches x/c\.png, y/c\.png; use their paths instead"):
        match_labels(there("x/c.png", "y/c.png"), table, Path("labels.csv"))
    with pytest.raises(UserError, match=r"names none of the 1 images, such as z\.png"):
        match_labels(there("z.png"), table, Path("labels.csv"))
    with pytest.raises(UserError, match=r"x/a\.png has two rows, a and x/a\.png"):
        match_labels(
            there("x/a.png"), pd.DataFrame({"image": ["a", "x/a.png"], "label": "mel", "group": "p"}), Path("l")
        )


def test_other_files_in_a_folder_are_named_and_a_dicom_without_its_preamble_is_not_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "scan.heic", "volume.nii.gz", "IM1.dcm", "labels.csv"):
        (tmp_path / name).write_text(name)
    found = find_images([tmp_path], tmp_path / "labels.csv")
    assert [path.name for path in found] == ["IM1.dcm", "a.png"]
    assert caplog.messages == [f"not images, so skipped: {tmp_path / 'scan.heic'}, {tmp_path / 'volume.nii.gz'}"]


def test_a_table_without_a_row_is_said_to_be_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no row below the header"):
        read(tmp_path, "image,label\n")


def test_labels_that_are_all_left_out_name_the_option(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("image,label\na,mel\n")
    with pytest.raises(UserError, match=r"every label is left out by --map LABEL="):
        read_labels(Labels(tmp_path / "l.csv", Columns("image", "label", ""), {"mel": ""}), ["mel", "nv"])


def made_up(right: float, labels: list[str], seed: int = 0, images: int = 240) -> Run:
    """Predictions of which a share is right, for images that cycle through the labels, two per group."""
    rng = np.random.default_rng(seed)
    codes = np.array([CLASSES.index(label) for label in labels])[np.arange(images) % len(labels)]
    predicted = np.where(rng.random(images) < right, codes, rng.integers(0, 3, images))
    probabilities = np.eye(3)[predicted] * rng.uniform(0.5, 0.9, (images, 1)) + 0.03
    samples = pd.DataFrame({"id": np.arange(images).astype(str), "group": (np.arange(images) // 2).astype(str)})
    samples = samples.assign(split="test", label=np.array(CLASSES)[codes])
    table = as_predictions(samples, probabilities / probabilities.sum(axis=1, keepdims=True), CLASSES)
    record: dict[str, Any] = {"dataset": "d", "model": "m", "seed": seed, "kind": "network"}
    return Run(record, table, None, table.assign(split="validation"))


def test_the_same_images_lose_nothing_and_worse_ones_what_the_scores_say() -> None:
    inside, outside = made_up(0.9, CLASSES), made_up(0.6, CLASSES, seed=1)
    same = compare_sources([inside], [inside]).set_index("measure")
    assert (same.difference == 0).all()
    assert (same.low[same.low.notna()] < 0).all()
    found = compare_sources([outside], [inside]).set_index("measure")
    for name in (*CLASSES, MICRO, MACRO, BALANCED, AUC):
        assert found.internal[name] == pytest.approx(inside.scores[name])
        assert found.external[name] == pytest.approx(outside.scores[name])
        assert found.difference[name] == pytest.approx(outside.scores[name] - inside.scores[name])
        if name in BY_NAME:
            expected = estimate_of([outside], BY_NAME[name])
            assert (found.external_low[name], found.external_high[name]) == pytest.approx((expected.low, expected.high))
    assert found.high[MACRO] < 0
    assert {f"{CALIBRATION}, scaled", CALIBRATION} <= set(found.index)
    assert found.difference_interval[MACRO] == "groups"
    seeds = [made_up(0.9, CLASSES, seed) for seed in (2, 3, 4)]
    three = compare_sources([made_up(0.6, CLASSES, seed) for seed in (2, 3, 4)], seeds).set_index("measure")
    assert three.difference_interval[MACRO] == "groups and seeds"
    assert three.seeds[MACRO] == 3


def test_the_variances_of_both_sources_add_up() -> None:
    inside, outside = made_up(0.9, CLASSES), made_up(0.6, CLASSES, seed=1, images=100)
    found = compare_sources([outside], [inside]).set_index("measure")
    far, near = (groups_variance(run.jackknife.of(MACRO)[1]) for run in (outside, inside))
    degrees = (far + near) ** 2 / (far**2 / 49 + near**2 / 119)  # Welch and Satterthwaite's, of 50 and 120 groups
    half = stats.t.ppf(0.975, degrees) * np.sqrt(far + near)
    assert found.high[MACRO] - found.difference[MACRO] == pytest.approx(half)
    assert found.difference[MACRO] - found.low[MACRO] == pytest.approx(half)


def test_a_class_without_a_hit_gives_no_interval_of_the_difference() -> None:
    inside = made_up(0.9, CLASSES)
    missed = inside.predictions.assign(p_vasc=0.0)
    found = compare_sources([Run(inside.record, missed, None)], [inside]).set_index("measure")
    assert found.external["vasc"] == 0
    assert found.difference_interval["vasc"] == "none: all groups alike"
    assert np.isnan(found.low["vasc"])
    assert found.difference_interval["mel"] == "groups"


def test_a_class_without_an_image_is_undefined_and_left_out_of_every_gap() -> None:
    inside, outside = made_up(0.9, CLASSES), made_up(0.6, ["mel", "nv"], seed=1)
    assert (predicted_labels(outside.predictions) == "vasc").any()  # so that its F1 would be 0
    found = compare_sources([outside], [inside]).set_index("measure")
    assert found.interval["vasc"] == "undefined: no images"
    assert found.loc["vasc", ["external", "difference", "low"]].isna().all()
    assert found.internal["vasc"] == pytest.approx(inside.scores["vasc"])
    for side, run in (("external", outside), ("internal", inside)):
        assert found[side][MACRO] == pytest.approx(np.mean([run.scores["mel"], run.scores["nv"]]))
    assert found.difference[MACRO] == pytest.approx(found.external[MACRO] - found.internal[MACRO])
    assert np.isfinite(found.low[MACRO])
    assert outside.scores[MACRO] < found.external[MACRO]
    assert estimate_present([outside])[MACRO].value == found.external[MACRO]
    recalls = [(predicted_labels(part) == name).mean() for name, part in inside.predictions.groupby("label")]
    assert found.internal[BALANCED] == pytest.approx(np.mean(recalls[:2]))


def test_a_data_set_says_for_which_images_it_is() -> None:
    about = {"title": "t", "classes": ["a", "b"], "group": "patient", "licence": "l", "citation": "c"}
    assert custom_dataset("mine", CatalogueEntry.model_validate(about)).scope == ""
    entry = CatalogueEntry.model_validate({**about, "scope": "hand X-rays only"})
    assert custom_dataset("mine", entry).scope == "hand X-rays only"
    assert {data.scope for data in CATALOGUE.values()} == {"dermatoscopic images only", "chest X-rays of children only"}


def test_few_patients_get_no_interval() -> None:
    found = compare_sources([made_up(0.6, CLASSES, 1, images=12)], [made_up(0.9, CLASSES)]).set_index("measure")
    assert found.difference_interval[MACRO] == "none: 4 groups"
    assert np.isnan(found.low[MACRO])
    assert np.isfinite(found.difference[MACRO])
