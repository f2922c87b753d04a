"""Validation and description of a raw data set."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from medtransfer.core.errors import UserError
from medtransfer.core.files import sha256_of
from medtransfer.data.catalogue import Dataset, read_source
from medtransfer.data.images import load_rgb
from medtransfer.data.progress import progress


def describe(dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Count the images and groups of a raw data set, without decoding an image."""
    samples = dataset.read(folder).samples
    counts = samples.label.value_counts()
    groups = samples.groupby("label").group.nunique()
    return {
        "name": dataset.name,
        "title": dataset.title,
        **read_source(folder),
        "images": len(samples),
        "groups": int(samples.group.nunique()),
        "group": dataset.group,
        "classes": {
            label: {"meaning": meaning, "images": int(counts.get(label, 0)), "groups": int(groups.get(label, 0))}
            for label, meaning in dataset.classes.items()
        },
        "licence": dataset.licence,
        "citation": dataset.citation,
        "kaggle": dataset.kaggle,
    }


def validate(dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Check that every image decodes, every label is known and metadata and images match.

    To `describe`, it adds `problems`: one line per mistake; `mixed_groups`: groups with images of several classes, a
    mistake for lesions but not for patients; `duplicates`: ids of files that are equal byte for byte, and whether their
    labels differ (`crosses_labels`). This is not a mistake, since it also occurs in the published data sets.
    """
    listing = dataset.read(folder)
    samples, undecodable = listing.samples, list[str]()

    def digest(path: Path) -> str:
        try:
            load_rgb(path)
        except UserError as error:
            undecodable.append(str(error))
        return sha256_of(path)

    paths = [folder / path for path in samples.path]
    with ThreadPoolExecutor() as pool:
        digests = list(progress(pool.map(digest, paths), f"validating {dataset.name}", len(paths)))
    duplicates = [
        {"ids": list(same.id), "crosses_labels": same.label.nunique() > 1}
        for _, same in samples.assign(digest=digests).groupby("digest", sort=False)
        if len(same) > 1
    ]
    labels = samples.groupby("group").label.agg(lambda label: sorted(set(label)))
    mixed = labels[labels.map(len) > 1]
    wrong = [f"{dataset.group} {name}: has the classes {', '.join(found)}" for name, found in mixed.items()]
    problems = [*listing.problems, *sorted(undecodable), *(wrong if "lesion" in dataset.group.lower() else [])]
    return {
        **describe(dataset, folder),
        "problems": problems,
        "mixed_groups": list(mixed.index),
        "duplicates": duplicates,
    }
