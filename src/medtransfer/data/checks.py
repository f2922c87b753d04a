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
    }


def validate(dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Check that every image decodes, every label is known and metadata and images match.

    Returns
    -------
    dict
        `problems`: one line per mistake; `duplicates`: ids of files that are equal byte for byte, and whether their
        labels differ (`crosses_labels`), which is no mistake since the published data sets have some; and the counts
        of `describe`.
    """
    listing = dataset.read(folder)
    samples = listing.samples
    paths = [folder / path for path in samples.path]
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(_decode_and_digest, paths)
        results = list(progress(decoded, f"validating {dataset.name}", len(paths)))
    problems = [*listing.problems, *(problem for _, problem in results if problem)]
    duplicates = [
        {"ids": list(same.id), "crosses_labels": same.label.nunique() > 1}
        for _, same in samples.groupby([digest for digest, _ in results], sort=False)
        if len(same) > 1
    ]
    return {**describe(dataset, folder), "problems": problems, "duplicates": duplicates}


def _decode_and_digest(path: Path) -> tuple[str, str | None]:
    try:
        load_rgb(path)
    except UserError as error:
        return sha256_of(path), str(error)
    return sha256_of(path), None
