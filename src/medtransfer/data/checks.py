"""Validation and description of a raw data set."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import track

from medtransfer.core.errors import UserError
from medtransfer.core.files import sha256_of
from medtransfer.data.catalogue import Dataset, read_source
from medtransfer.data.images import load_rgb


def describe(dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Count what lies in a raw data set's folder, without decoding it."""
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

    Returns
    -------
    dict
        `problems`: one line each, empty for a sound data set; `duplicates`: sets of ids whose files
        are equal byte for byte, with `crosses_labels` where their labels differ (reported, no
        problem: the published data sets have some); and the counts of `describe`.
    """
    listing = dataset.read(folder)
    samples = listing.samples
    problems = list(listing.problems)
    digests: dict[str, list[str]] = {}
    paths = [folder / path for path in samples.path]
    with ThreadPoolExecutor() as pool:
        results = track(
            pool.map(_decode_and_digest, paths),
            f"validating {dataset.name}",
            total=len(paths),
            transient=True,
            disable=not sys.stdout.isatty(),
        )
        for identity, (digest, problem) in zip(samples.id, results, strict=True):
            digests.setdefault(digest, []).append(identity)
            if problem:
                problems.append(problem)
    labels = samples.set_index("id").label
    duplicates = [
        {"ids": ids, "crosses_labels": bool(labels[ids].nunique() > 1)} for ids in digests.values() if len(ids) > 1
    ]
    return {**describe(dataset, folder), "problems": problems, "duplicates": duplicates}


def _decode_and_digest(path: Path) -> tuple[str, str | None]:
    try:
        load_rgb(path)
    except UserError as error:
        return sha256_of(path), str(error)
    return sha256_of(path), None


def class_counts(description: dict[str, Any]) -> pd.Series:
    """Return the number of images a class, in the catalogue's order."""
    return pd.Series({label: entry["images"] for label, entry in description["classes"].items()}, name="images")
