"""Splits: sizes, stratification, no group in two splits; arrays in the order of samples.csv."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

import medtransfer.data.preparation
from conftest import PROJECT
from medtransfer.core.errors import UserError
from medtransfer.core.files import atomic_folder, sha256_of
from medtransfer.core.params import Params, Split, read_params
from medtransfer.data import decoding
from medtransfer.data.catalogue import HAM10000
from medtransfer.data.images import load_pixels, load_rgb
from medtransfer.data.preparation import (
    LEFT_OUT,
    SPLITS,
    assign_splits,
    leave_out,
    prepare_dataset,
    shared_with_training,
)
from medtransfer.pipeline.prepare import prepare


def split(by: str, seed: int = 0, leak: str = "keep") -> Split:
    return Split.model_validate({"by": by, "validation": 0.2, "test": 0.2, "seed": seed, "leakage": leak})


@pytest.fixture
def samples() -> pd.DataFrame:
    """1,000 images of 400 lesions in three classes of very different size."""
    rng = np.random.default_rng(0)
    group = np.sort(rng.integers(0, 400, 1000))
    label = np.array(["a"] * 280 + ["b"] * 90 + ["c"] * 30)[group]
    return pd.DataFrame({"id": np.arange(1000), "label": label, "group": group.astype(str)})


@pytest.mark.parametrize("by", ["image", "group"])
def test_fractions_and_classes_are_kept(samples: pd.DataFrame, by: str) -> None:
    samples["split"] = assign_splits(samples, split(by), "x")
    tolerance = 0.001 if by == "image" else 0.02
    for name, fraction in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        part = samples[samples.split == name]
        assert len(part) / len(samples) == pytest.approx(fraction, abs=tolerance)
        for label, share in samples.label.value_counts(normalize=True).items():
            assert (part.label == label).mean() == pytest.approx(share, abs=0.03), (name, label)


@pytest.mark.parametrize("seed", range(5))
def test_splitting_by_group_keeps_each_group_in_one_split(samples: pd.DataFrame, seed: int) -> None:
    samples["split"] = assign_splits(samples, split("group", seed), "x")
    assert (samples.groupby("group").split.nunique() == 1).all()
    assert not shared_with_training(samples).any()


def test_splitting_by_image_divides_groups_and_counts_them(samples: pd.DataFrame) -> None:
    samples["split"] = assign_splits(samples, split("image"), "x")
    test = samples[samples.split == "test"]
    others = set(samples.group[samples.split != "test"])
    assert shared_with_training(samples).sum() == sum(group in others for group in test.group) > 50


def test_leakage_is_measured_on_the_same_test_images_with_as_many_training_images(samples: pd.DataFrame) -> None:
    plain = assign_splits(samples, split("image"), "x")
    found = {leak: leave_out(samples, plain, split("image", leak=leak)) for leak in ("keep", "remove", "match")}
    assert found["keep"].equals(plain)
    for leak in ("remove", "match"):
        assert (found[leak] == "test").equals(plain == "test")
        assert found[leak][found[leak] != LEFT_OUT].equals(plain[found[leak] != LEFT_OUT])
    counts = {leak: pd.crosstab(samples.label, splits) for leak, splits in found.items()}
    assert counts["remove"].equals(counts["match"])
    assert counts["remove"][LEFT_OUT].sum() > 50
    assert not shared_with_training(samples.assign(split=found["remove"])).any()
    assert shared_with_training(samples.assign(split=found["match"])).any()


@pytest.mark.parametrize("by", ["image", "group"])
def test_the_split_is_a_function_of_its_seed(samples: pd.DataFrame, by: str) -> None:
    first = assign_splits(samples, split(by, 1), "x")
    assert first.equals(assign_splits(samples, split(by, 1), "x"))
    assert not first.equals(assign_splits(samples, split(by, 2), "x"))


def test_a_class_too_small_to_divide_is_named(samples: pd.DataFrame) -> None:
    few = samples[(samples.label != "c") | (samples.group.astype(int) < 373)]
    with pytest.raises(UserError, match="class c has 3 groups"):
        assign_splits(few, split("group"), "x")


def test_a_split_that_lacks_a_class_is_refused(samples: pd.DataFrame) -> None:
    small = Split.model_validate({"by": "image", "validation": 0.2, "test": 0.004, "seed": 0})
    with pytest.raises(UserError, match="x: no image of c among the test images; expected every class in each split"):
        assign_splits(samples, small, "x")
    smaller = Split.model_validate({"by": "image", "validation": 0.2, "test": 0.002, "seed": 0})
    with pytest.raises(UserError, match=r"x: 1000 images cannot be divided into 0.002 test .*; increase the fractions"):
        assign_splits(samples, smaller, "x")


def test_rows_of_the_array_are_the_rows_of_the_table(demo: Path, params: Params, tmp_path: Path) -> None:
    settings = params.datasets["ham10000"]
    description = prepare_dataset(HAM10000, demo / "ham10000", settings, tmp_path)
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    table = pd.read_csv(tmp_path / "samples.csv", dtype=str)
    raw = HAM10000.read(demo / "ham10000").samples.set_index("id")
    assert images.shape == (len(table), 32, 32, 3)
    assert images.dtype == np.uint8
    for row in (0, 17, len(table) - 1):
        path = demo / "ham10000" / raw.path[table.id[row]]
        assert (images[row] == load_pixels(path, 32, settings.resize_filter)).all()
        assert table.sha256[row] == sha256_of(path)
        assert table.label[row] == raw.label[table.id[row]]
    assert sum(description["images"].values()) == len(table)
    assert description["synthetic"] is True


def test_a_split_by_group_that_shares_a_group_stops_prepare(
    demo: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_image = assign_splits(HAM10000.read(demo / "ham10000").samples, split("image"), "x")
    monkeypatch.setattr(medtransfer.data.preparation, "assign_splits", lambda *_: by_image)
    settings = params.datasets["ham10000"].model_copy(update={"split": split("group")})
    shared = r"^ham10000: \d+ of 68 test images share a lesion with training or validation, such as ISIC_"
    with pytest.raises(UserError, match=shared), atomic_folder(tmp_path / "ham10000") as folder:
        prepare_dataset(HAM10000, demo / "ham10000", settings, folder)
    assert list(tmp_path.iterdir()) == []


def test_prepare_prints_what_it_counts(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = Path(shutil.copytree(demo / "ham10000", tmp_path / "data" / "ham10000"))
    images = sorted(raw.rglob("*.jpg"))
    for path in images[:2]:
        Image.open(path).convert("CMYK").save(path, "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(images[2]).save(images[2], "JPEG", exif=exif)
    by_image = (PROJECT / "params.yaml").read_text().replace("by: group", "by: image")
    (tmp_path / "params.yaml").write_text(by_image)
    monkeypatch.chdir(tmp_path)
    prepare(read_params(Path("params.yaml")), "ham10000")
    folder = tmp_path / "artifacts" / "prepared" / "ham10000"
    written = json.loads((folder / "dataset.json").read_text())
    table = pd.read_csv(folder / "samples.csv", dtype=str)
    others = set(table.group[table.split != "test"])
    sharing = table[(table.split == "test") & table.group.isin(others)]
    assert written["converted"] == {"CMYK": 2, "EXIF orientation": 1}
    assert written["test_images_sharing_a_group"] == len(sharing) > 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[2:] == [
        "204 train, 68 validation, 68 test",
        f"{len(sharing)} of 68 test images share a lesion with training or validation images",
        "near-duplicates (duplicates.csv): 0 of 68 test images have one in training or validation (0 of another "
        "lesion), 0 of 68 validation images have one in training",
        "converted: 2 × CMYK, 1 × EXIF orientation",
    ]


def test_a_large_jpeg_is_decoded_small_with_an_equal_result(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    coarse.resize((800, 600), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=95)
    small = load_pixels(tmp_path / "large.jpg", 32, "lanczos")
    assert load_rgb(tmp_path / "large.jpg", 32).image.size == (200, 150)
    assert load_rgb(tmp_path / "large.jpg", 200).image.size == (800, 600)
    whole = np.asarray(load_rgb(tmp_path / "large.jpg").image.resize((32, 32), Image.Resampling.LANCZOS))
    assert np.abs(small.astype(int) - whole).mean() < 0.5


def test_an_image_that_does_not_decode_stops_prepare(demo: Path, params: Params, tmp_path: Path) -> None:
    raw = Path(shutil.copytree(demo / "ham10000", tmp_path / "raw"))
    broken = next(raw.rglob("*.jpg"))
    broken.write_bytes(b"x")
    with pytest.raises(UserError, match=f"{broken.name}: cannot be decoded"):
        prepare_dataset(HAM10000, raw, params.datasets["ham10000"], tmp_path)


def given(samples: pd.DataFrame, **changes: Any) -> pd.Series:
    parts = np.resize(["train", "train", "train", "validation", "test"], len(samples))
    return assign_splits(samples.assign(split=parts), Split.model_validate({"by": "given", "seed": 0, **changes}), "x")


def test_processes_write_the_same_files_as_one(
    demo: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cores in (1, 3):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        monkeypatch.setattr(decoding, "WORTH_A_PROCESS", 1)
        (tmp_path / str(cores)).mkdir()
        prepare_dataset(HAM10000, demo / "ham10000", params.datasets["ham10000"], tmp_path / str(cores))
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert files == ["dataset.json", "duplicates.csv", "images.npy", "samples.csv"]
    for name in files:
        assert sha256_of(tmp_path / "1" / name) == sha256_of(tmp_path / "3" / name), name


def test_the_first_image_that_a_process_cannot_decode_is_named(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted(demo.glob("ham10000/*/*.jpg"))
    for number in (70, 100):
        paths[number] = tmp_path / f"{number}.jpg"
        paths[number].write_bytes(b"no image")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(decoding, "WORTH_A_PROCESS", 1)
    with (
        pytest.raises(UserError, match=f"^{paths[70]}: cannot be decoded"),
        decoding.start_decoding(paths, 32, "lanczos", None, tmp_path) as decoded,
    ):
        list(decoded)


def test_an_error_in_the_split_stops_decoding(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    paths = [next(demo.rglob("*.jpg"))] * 10**5
    with pytest.raises(UserError, match="no split"), decoding.start_decoding(paths, 8, "lanczos", None, tmp_path):
        raise UserError("no split")
    assert (tmp_path / decoding.IMAGES).stat().st_size < len(paths) * 3 * 8**2


PREPARE = """
import os, sys
from pathlib import Path
from medtransfer.data import decoding
os.cpu_count = lambda: 2
if __name__ == "__main__":
    with decoding.start_decoding([Path(sys.argv[1])] * 10**6, 32, "lanczos", None, Path()) as decoded:
        list(decoded)
"""


def test_what_a_killed_prepare_started_ends(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "prepare.py").write_text(PREPARE)
    command = [sys.executable, "prepare.py", str(next(demo.rglob("*.jpg")))]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        started: list[psutil.Process] = []
        while len(started) < 4:  # both, the one that forks them, and Python's resource tracker
            assert process.poll() is None
            started = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.1)
        process.kill()
    _, left = psutil.wait_procs(started, timeout=60)
    assert not left


def test_a_given_split_is_kept(samples: pd.DataFrame) -> None:
    assert given(samples).tolist() == np.resize(["train"] * 3 + ["validation", "test"], len(samples)).tolist()


def test_validation_images_of_a_given_split_can_be_drawn_by_group(samples: pd.DataFrame) -> None:
    own, drawn = given(samples), given(samples, validation=0.2)
    assert (drawn[own == "test"] == "test").all()
    assert (drawn[own == "validation"] == "left out").all()
    assert drawn[own == "train"].value_counts(normalize=True)["validation"] == pytest.approx(0.2, abs=0.05)
    groups = samples.groupby(drawn).group.agg(set)
    assert not groups["train"] & groups["validation"]


def test_a_given_split_that_the_data_lack_is_refused(samples: pd.DataFrame) -> None:
    with pytest.raises(UserError, match=r"datasets\.x\.split\.by: is given, but the data have no split"):
        assign_splits(samples, Split.model_validate({"by": "given", "seed": 0}), "x")
