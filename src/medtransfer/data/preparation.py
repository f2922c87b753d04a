"""Raw images → one array, and a table of the samples and their splits."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.core.errors import UserError, counted
from medtransfer.core.files import write_json
from medtransfer.core.params import DatasetParams, Split
from medtransfer.data.catalogue import Dataset, read_source
from medtransfer.data.decoding import THUMBNAILS, start_decoding
from medtransfer.data.duplicates import find_near_duplicates
from medtransfer.data.images import FORMATS, largest_value
from medtransfer.data.progress import progress

SPLITS = ("train", "validation", "test")
FITTED = ("train", "validation")
LEFT_OUT = "left out"


def prepare_dataset(dataset: Dataset, raw: Path, params: DatasetParams, target: Path) -> dict[str, Any]:
    """Verify, split, decode and resize a raw data set, and return the content of dataset.json.

    Writes into `target`: `images.npy`, uint8 of shape (n, size, size, 3); `samples.csv`, in the same order (id, label,
    group, split, sha256 of the raw file); `duplicates.csv`, pairs of near-duplicates in two splits; `dataset.json`.
    """
    samples = read_samples(dataset, raw)
    paths = [raw / path for path in samples.path]
    white_level = find_white_level(paths, params.bits)
    with start_decoding(paths, params.image_size, params.resize_filter, white_level, target) as decoded:
        samples["split"] = assign_splits(samples, params.split, dataset.name)
        shared = shared_with_training(samples)
        if params.split.by == "group" and shared.any():
            raise UserError(
                f"{dataset.name}: {shared.sum()} of {len(shared)} test images share a {dataset.group} with training or "
                f"validation, such as {samples.id[shared.index[shared]].iloc[0]}; expected none with split.by: group, "
                "so change split.seed"
            )
        facts = list(progress(decoded, f"preparing {dataset.name}", len(paths)))
    samples["sha256"] = [digest for digest, _ in facts]
    conversions = Counter(converted for _, converted in facts if converted)
    duplicates = find_near_duplicates(np.load(target / THUMBNAILS, mmap_mode="r"), samples)
    (target / THUMBNAILS).unlink()
    duplicates.to_csv(target / "duplicates.csv", index=False)
    tested, validated = (duplicates[duplicates.split == split] for split in ("test", "validation"))
    samples[["id", "label", "group", "split", "sha256"]].to_csv(target / "samples.csv", index=False)
    description = {
        "name": dataset.name,
        **read_source(raw),
        "classes": list(dataset.classes),  # not their meanings or the title, which change no model
        "group": dataset.group,
        "image_size": params.image_size,
        "resize_filter": params.resize_filter,
        "split": params.split.model_dump(),
        **params.model_dump(include={"bits"}, exclude_none=True),
        **({"white_level": white_level} if white_level else {}),
        "images": {split: int((samples.split == split).sum()) for split in (*SPLITS, LEFT_OUT)},
        "converted": dict(conversions),
        "test_images_sharing_a_group": int(shared.sum()),
        "test_images_with_a_near_duplicate": int(tested.id.nunique()),
        "test_images_with_a_near_duplicate_of_another_group": int(tested.id[~tested.same_group].nunique()),
        "validation_images_with_a_near_duplicate": int(validated.id.nunique()),
    }
    write_json(target / "dataset.json", description)
    return description


def find_white_level(paths: list[Path], bits: int | None) -> int | None:
    """Return the value of files with 16 bits that becomes 255, the same for all; None if there is no such file.

    It is the largest value of `bits`, by default of the bits that the largest value in the data set needs: a file does
    not state how many of its 16 bits are used, and its own largest value would make images incomparable.
    """
    if not bits:
        with ThreadPoolExecutor() as pool:
            largest = max(
                pool.map(largest_value, (path for path in paths if path.suffix.lower() not in FORMATS["JPEG"])),
                default=0,
            )
        bits = max(8, largest.bit_length()) if largest else 0
    return 2**bits - 1 if bits else None


def read_samples(dataset: Dataset, raw: Path) -> pd.DataFrame:
    """Return the samples of a raw data set (the columns of `Listing`) without opening an image."""
    listing = dataset.read(raw)
    if listing.problems:
        more = f"{counted(len(listing.problems), 'problem')} in all; see `medtransfer data validate {dataset.name}`"
        raise UserError(f"{listing.problems[0]} ({more})")
    samples = listing.samples
    empty = [label for label in dataset.classes if label not in set(samples.label)]
    if empty:
        raise UserError(
            f"{raw}: no image of {', '.join(empty)}; {dataset.name} has the classes {', '.join(dataset.classes)}"
        )
    return samples


def assign_splits(samples: pd.DataFrame, split: Split, name: str) -> pd.Series:
    """Divide samples (columns label and group) into SPLITS, stratified by label, and return the split of each.

    The test part is cut first, so that trees (training + validation) and networks are tested on the same images.
    A split by image, as in the talk, uses train_test_split; one by group StratifiedGroupKFold, so that no group is in
    two splits. A given split is the column split. Images that `split.leakage` leaves out are LEFT_OUT.
    """
    splits = _given(samples, split, name) if split.by == "given" else _divided(samples, split, name)
    splits = leave_out(samples, splits, split)
    remedy = f"increase the fractions in datasets.{name}.split, or change its seed from {split.seed}"
    _check_classes(samples, splits, SPLITS, name, remedy)
    return splits


def _check_classes(samples: pd.DataFrame, splits: pd.Series, parts: Sequence[str], name: str, remedy: str) -> None:
    """Check that each part has every class: the F1 of one without images would count as 0."""
    for part in parts:
        there = set(samples.label[splits == part])
        missing = [label for label in dict.fromkeys(samples.label) if label not in there]
        if missing:
            raise UserError(
                f"{name}: no image of {', '.join(missing)} among the {part} images; expected every class in each "
                f"split; {remedy}"
            )


def _given(samples: pd.DataFrame, split: Split, name: str) -> pd.Series:
    if "split" not in samples:
        raise UserError(
            f"params.yaml: datasets.{name}.split.by: is given, but the data have no split of their own; use "
            "image or group"
        )
    splits = samples.split.copy()
    _check_classes(samples, splits, ("train", "test"), name, "change the data set's own split")
    if not split.validation:
        draw = f"mark them as training images, and set datasets.{name}.split.validation to draw some of them"
        _check_classes(samples, splits, ("validation",), name, draw)
        return splits
    splits[splits == "validation"] = LEFT_OUT
    trained = samples[splits == "train"]
    try:
        _, drawn = _cut(trained, split.validation, split)
    except ValueError as error:  # scikit-learn's
        raise UserError(
            f"{name}: {len(trained)} training images are too few to draw {split.validation:g} for validation "
            f"({error}); remove `validation` from datasets.{name}.split to use the data's own validation images"
        ) from None
    splits[drawn] = "validation"
    return splits


def _divided(samples: pd.DataFrame, split: Split, name: str) -> pd.Series:
    unit = samples.groupby("label").size() if split.by == "image" else samples.groupby("label").group.nunique()
    if unit.min() < 5:
        raise UserError(
            f"{name}: class {unit.idxmin()} has {counted(unit.min(), split.by)}; a split by {split.by} needs at least 5"
        )
    tested, validated = split.test or 0, split.validation or 0  # only a given split has none
    try:
        rest, test = _cut(samples, tested, split)
        train, _ = _cut(samples.loc[rest], validated / (1 - tested), split)
    except ValueError as error:  # scikit-learn's
        raise UserError(
            f"{name}: {len(samples)} images cannot be divided into {tested:g} test and {validated:g} "
            f"validation ({error}); increase the fractions in datasets.{name}.split"
        ) from None
    splits = pd.Series("validation", index=samples.index)
    splits[train] = "train"
    splits[test] = "test"
    return splits


def leave_out(samples: pd.DataFrame, splits: pd.Series, split: Split) -> pd.Series:
    """Mark as LEFT_OUT the images that `split.leakage` leaves out of training and validation, to measure leakage.

    `remove` leaves out every image that shares a lesion or patient with a test image. `match` leaves out as many
    images of each class and split at random, so that the leakage stays. Both leave the same test images and equally
    many training images of each class.
    """
    if split.leakage == "keep":
        return splits
    shared = splits.isin(FITTED) & samples.group.isin(samples.group[splits == "test"])
    if split.leakage == "match":
        rng = np.random.default_rng(split.seed)
        drawn = [
            rng.choice(rows.index, int(shared[rows.index].sum()), replace=False)
            for _, rows in samples[splits.isin(FITTED)].groupby([splits, "label"])
        ]
        shared = pd.Series(samples.index.isin(np.concatenate(drawn)), index=samples.index)
    return splits.mask(shared, LEFT_OUT)


def _cut(samples: pd.DataFrame, part: float, split: Split) -> tuple[pd.Index, pd.Index]:
    from sklearn.model_selection import StratifiedGroupKFold, train_test_split  # loaded while images are decoded

    if split.by == "image":
        kept, cut = train_test_split(samples.index, test_size=part, stratify=samples.label, random_state=split.seed)
        return kept, cut
    folds = StratifiedGroupKFold(round(1 / part), shuffle=True, random_state=split.seed)
    kept, cut = next(folds.split(samples.index, samples.label, samples.group))
    return samples.index[kept], samples.index[cut]


def shared_with_training(samples: pd.DataFrame) -> pd.Series:
    """Return for each test image whether training or validation contains an image of its lesion or patient."""
    test = samples[samples.split == "test"]
    return test.group.isin(samples.group[samples.split.isin(FITTED)])
