"""Near-duplicates: the same picture again is found however it was changed, and other pictures are not."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from medtransfer.datasets.duplicates import find_near_duplicates, thumbnail
from medtransfer.datasets.images import load_rgb


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


def search(tested: list[Image.Image], others: list[Image.Image]) -> pd.DataFrame:
    thumbnails = np.stack([thumbnail(image) for image in (*tested, *others)])
    names = [f"t{number}" for number in range(len(tested))] + [f"o{number}" for number in range(len(others))]
    splits = ["test"] * len(tested) + ["train"] * len(others)
    samples = pd.DataFrame({"id": names, "label": "nv", "group": names, "split": splits, "sha256": names})
    return find_near_duplicates(thumbnails, samples)


@pytest.mark.parametrize("change", CHANGES)
def test_every_planted_duplicate_is_found(pictures: list[Image.Image], change: str) -> None:
    tested = pictures[:60]
    found = search(tested, [*(CHANGES[change](image) for image in tested), *pictures[60:]])
    pairs = set(zip(found.id, found.other_id, strict=True))
    assert {(f"t{number}", f"o{number}") for number in range(60)} <= pairs


def test_other_pictures_are_not_taken_for_duplicates(pictures: list[Image.Image]) -> None:
    assert search(pictures[:60], pictures[60:]).empty


def test_a_pair_says_how_it_differs(pictures: list[Image.Image]) -> None:
    thumbnails = np.stack([thumbnail(pictures[0]), thumbnail(ImageOps.mirror(pictures[0]))])
    samples = pd.DataFrame(
        {"id": ["a", "b"], "label": ["nv", "mel"], "group": "g", "split": ["test", "validation"], "sha256": ["1", "2"]}
    )
    (pair,) = find_near_duplicates(thumbnails, samples).to_dict("records")
    assert pair == {
        "id": "a", "label": "nv", "other_id": "b", "other_label": "mel", "other_split": "validation",
        "flip": "left-right", "exact": False, "same_group": True,
    }  # fmt: skip
