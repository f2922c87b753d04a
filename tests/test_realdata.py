"""The two real data sets, if they are beside the checkout."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medtransfer.core.params import Split
from medtransfer.data.catalogue import CHEST_XRAY, HAM10000
from medtransfer.data.checks import describe, validate
from medtransfer.data.decoding import thumbnail
from medtransfer.data.duplicates import find_near_duplicates
from medtransfer.data.images import load_rgb
from medtransfer.data.importing import import_dataset
from medtransfer.data.preparation import assign_splits, shared_with_training

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def data(shared_zip: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "data"
    import_dataset(HAM10000, shared_zip["ham10000"], folder)
    import_dataset(CHEST_XRAY, shared_zip["chest_xray"], folder)
    return folder


def test_ham10000_has_the_published_counts(data: Path) -> None:
    entry = describe(HAM10000, data / "ham10000")
    counts = {name: value["images"] for name, value in entry["classes"].items()}
    assert counts == {"akiec": 327, "bcc": 514, "bkl": 1099, "df": 115, "mel": 1113, "nv": 6705, "vasc": 142}
    assert (entry["images"], entry["groups"], entry["synthetic"]) == (10015, 7470, False)


def test_chest_xray_has_the_published_counts(data: Path) -> None:
    entry = describe(CHEST_XRAY, data / "chest_xray")
    counts = {name: value["images"] for name, value in entry["classes"].items()}
    assert counts == {"NORMAL": 1583, "PNEUMONIA": 4273}
    assert (entry["images"], entry["synthetic"]) == (5856, False)
    splits = CHEST_XRAY.read(data / "chest_xray").samples.path.str.split("/").str[1].value_counts().to_dict()
    assert splits == {"train": 5216, "test": 624, "val": 16}


@pytest.mark.parametrize("dataset", [HAM10000, CHEST_XRAY], ids=lambda dataset: dataset.name)
def test_both_are_valid(data: Path, dataset: object) -> None:
    report = validate(dataset, data / dataset.name)  # type: ignore[arg-type, attr-defined]
    assert report["problems"] == []


# The counts of docs/reliability.md.
@pytest.mark.parametrize(("name", "leaking", "images"), [("ham10000", 752, 2003), ("chest_xray", 716, 1172)])
def test_splitting_by_image_leaks_and_by_group_does_not(data: Path, name: str, leaking: int, images: int) -> None:
    samples = {"ham10000": HAM10000, "chest_xray": CHEST_XRAY}[name].read(data / name).samples

    def shared(by: str) -> pd.Series:
        split = Split.model_validate({"by": by, "validation": 0.2, "test": 0.2, "seed": 0})
        return shared_with_training(samples.assign(split=assign_splits(samples, split, name)))

    by_image = shared("image")
    assert (by_image.sum(), len(by_image)) == (leaking, images)
    assert not shared("group").any()


def test_the_official_test_folder_of_the_chest_xrays_is_tested_with_and_without_leakage(data: Path) -> None:
    samples = CHEST_XRAY.read(data / "chest_xray").samples
    official = samples.path.str.split("/").str[1]

    def split(leak: str) -> pd.Series:
        given = Split.model_validate({"by": "given", "validation": 0.2, "seed": 0, "leakage": leak})
        return assign_splits(samples, given, "chest_xray")

    everything, clean = split("keep"), split("remove")
    for found in (everything, clean):
        assert (found[official == "test"] == "test").all()
        assert (found[official == "val"] == "left out").all()
        patients = samples.groupby(found).group.agg(set)
        assert not patients["train"] & patients["validation"]
    assert everything[official == "train"].isin(["train", "validation"]).all()
    gone = (clean[official == "train"] == "left out").sum()
    assert gone == 457
    patients = samples.groupby(clean).group.agg(set)
    assert not patients["test"] & (patients["train"] | patients["validation"])


def leaking(samples: pd.DataFrame) -> pd.Series:
    """Say for each test image of a split by image, seed 0, whether its group is in training or validation."""
    split = Split.model_validate({"by": "image", "validation": 0.2, "test": 0.2, "seed": 0})
    return shared_with_training(samples.assign(split=assign_splits(samples, split, "x")))


def test_most_melanomas_of_the_test_images_are_in_training_too(data: Path) -> None:
    samples = HAM10000.read(data / "ham10000").samples
    shared = leaking(samples)
    melanomas = shared[samples.label[shared.index] == "mel"]
    assert (melanomas.sum(), len(melanomas)) == (150, 223)


def test_a_patient_by_person_and_cause_leaks_less_than_by_person(data: Path) -> None:
    samples = CHEST_XRAY.read(data / "chest_xray").samples
    by_cause = samples.id.str.extract(r"^(person\d+_[a-z]+)")[0].fillna(samples.group)
    shared = leaking(samples.assign(group=by_cause))
    assert (shared.sum(), len(shared)) == (464, 1172)


def test_few_chest_xrays_are_taken_for_another_patients(data: Path) -> None:
    samples = CHEST_XRAY.read(data / "chest_xray").samples
    split = Split.model_validate({"by": "group", "validation": 0.2, "test": 0.2, "seed": 0})
    samples = samples.assign(split=assign_splits(samples, split, "chest_xray"), sha256="")
    thumbnails = np.stack([thumbnail(load_rgb(data / "chest_xray" / path).image) for path in samples.path])
    found = find_near_duplicates(thumbnails, samples)
    assert found.id.nunique() == len(found) == 9
    # By eye, these two pairs are the same picture and the others are not.
    same = {"person1637_bacteria_4339": "person1565_bacteria_4095", "NORMAL2-IM-0096-0001": "NORMAL2-IM-0095-0001"}
    assert same.items() <= dict(zip(found.id, found.other_id, strict=True)).items()
