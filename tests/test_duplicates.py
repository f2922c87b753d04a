"""Near-duplicates: changed copies of a picture are found, and other pictures are not."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from medtransfer.core.params import Params
from medtransfer.data.catalogue import HAM10000
from medtransfer.data.decoding import thumbnail
from medtransfer.data.duplicates import find_near_duplicates
from medtransfer.data.images import load_rgb
from medtransfer.data.preparation import assign_splits, prepare_dataset


def recompressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "the same file": lambda image: image,
    "resized": lambda image: image.resize((image.width * 2 // 3, image.height * 2 // 3), Image.Resampling.BICUBIC),
    "enlarged": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BILINEAR),
    "compressed again": recompressed,
    "flipped": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "turned round": lambda image: image.rotate(180),
    "flipped, resized and compressed": lambda image: recompressed(ImageOps.mirror(image.resize((90, 70)))),
}


@pytest.fixture(scope="module")
def pictures(demo: Path) -> list[Image.Image]:
    return [load_rgb(path).image for path in sorted(demo.glob("ham10000/*/*.jpg"))[:120]]


def search(
    tested: list[Image.Image], others: list[Image.Image], between: tuple[str, str] = ("test", "train")
) -> pd.DataFrame:
    thumbnails = np.stack([thumbnail(image) for image in (*tested, *others)])
    names = [f"t{number}" for number in range(len(tested))] + [f"o{number}" for number in range(len(others))]
    splits = [between[0]] * len(tested) + [between[1]] * len(others)
    samples = pd.DataFrame({"id": names, "label": "nv", "group": names, "split": splits, "sha256": names})
    return find_near_duplicates(thumbnails, samples)


@pytest.mark.parametrize("change", CHANGES)
def test_every_planted_duplicate_is_found(pictures: list[Image.Image], change: str) -> None:
    tested = pictures[:60]
    found = search(tested, [*(CHANGES[change](image) for image in tested), *pictures[60:]])
    pairs = set(zip(found.id, found.other_id, strict=True))
    assert {(f"t{number}", f"o{number}") for number in range(60)} <= pairs


@pytest.mark.parametrize("between", [("test", "train"), ("test", "validation"), ("validation", "train")])
def test_every_pair_of_splits_is_searched(pictures: list[Image.Image], between: tuple[str, str]) -> None:
    found = search(pictures[:5], [*pictures[5:9], ImageOps.mirror(pictures[2])], between)
    assert found[["id", "split", "other_id", "other_split", "flip"]].to_numpy().tolist() == [
        ["t2", between[0], "o4", between[1], "left-right"]
    ]


def test_pairs_within_a_split_or_with_left_out_images_do_not_count(pictures: list[Image.Image]) -> None:
    for between in (("train", "train"), ("test", "test"), ("left out", "test"), ("test", "left out")):
        assert search(pictures[:2], pictures[:2], between).empty


def test_other_pictures_are_not_taken_for_duplicates(pictures: list[Image.Image]) -> None:
    assert search(pictures[:60], pictures[60:]).empty


def test_pictures_of_twelve_bits_are_told_apart(pictures: list[Image.Image]) -> None:
    dark = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 16).save(buffer, "PNG")
        dark.append(load_rgb(buffer.getvalue(), white_level=4095).image)
    assert search(dark[:60], dark[60:]).empty
    found = search(dark[:60], [picture.convert("L").convert("RGB") for picture in pictures[:60]])
    assert {(f"t{number}", f"o{number}") for number in range(60)} <= set(zip(found.id, found.other_id, strict=True))


def test_a_pair_says_how_it_differs(pictures: list[Image.Image]) -> None:
    thumbnails = np.stack([thumbnail(pictures[0]), thumbnail(ImageOps.mirror(pictures[0]))])
    samples = pd.DataFrame(
        {"id": ["a", "b"], "label": ["nv", "mel"], "group": "g", "split": ["test", "validation"], "sha256": ["1", "2"]}
    )
    (pair,) = find_near_duplicates(thumbnails, samples).to_dict("records")
    assert pair == {
        "id": "a", "label": "nv", "split": "test", "other_id": "b", "other_label": "mel", "other_split": "validation",
        "flip": "left-right", "exact": False, "same_group": True,
    }  # fmt: skip


def test_prepare_reports_planted_duplicates(demo: Path, params: Params, tmp_path: Path) -> None:
    settings = params.datasets["ham10000"]
    raw, target = Path(shutil.copytree(demo / "ham10000", tmp_path / "raw")), tmp_path / "target"
    target.mkdir()
    samples = HAM10000.read(raw).samples
    samples["split"] = assign_splits(samples, settings.split, "ham10000")
    train, validation, test = (samples[samples.split == split].iloc[:3] for split in ("train", "validation", "test"))
    shutil.copy(raw / test.path.iloc[0], raw / train.path.iloc[0])
    ImageOps.mirror(load_rgb(raw / test.path.iloc[1]).image).save(raw / validation.path.iloc[1], quality=60)
    ImageOps.flip(load_rgb(raw / validation.path.iloc[2]).image).save(raw / train.path.iloc[2], quality=60)
    description = prepare_dataset(HAM10000, raw, settings, target)
    found = pd.read_csv(target / "duplicates.csv")
    columns = ["id", "split", "other_id", "other_split", "flip", "exact"]
    assert sorted(found[columns].to_numpy().tolist()) == sorted(
        [
            [test.id.iloc[0], "test", train.id.iloc[0], "train", np.nan, True],
            [test.id.iloc[1], "test", validation.id.iloc[1], "validation", "left-right", False],
            [validation.id.iloc[2], "validation", train.id.iloc[2], "train", "top-bottom", False],
        ]
    )
    groups = samples.set_index("id").group
    tested = found[found.split == "test"]
    other_group = int((groups[tested.id].to_numpy() != groups[tested.other_id].to_numpy()).sum())
    written = json.loads((target / "dataset.json").read_text())
    assert written == json.loads(json.dumps(description))
    assert written["test_images_with_a_near_duplicate"] == 2
    assert written["test_images_with_a_near_duplicate_of_another_group"] == other_group
    assert written["validation_images_with_a_near_duplicate"] == 1
