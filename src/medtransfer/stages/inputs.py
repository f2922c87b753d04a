"""What every stage after prepare reads: a prepared data set."""

import json
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.errors import UserError
from medtransfer.stages.integrity import check_unchanged
from medtransfer.stages.layout import PREPARED


def read_dataset(name: str) -> tuple[np.ndarray, pd.DataFrame, dict[str, Any]]:
    """Return the memory-mapped images (n, size, size, 3), uint8, the samples and dataset.json.

    Raises
    ------
    UserError
        It has not been prepared, or has changed since.
    """
    folder = PREPARED / name
    if not (folder / "dataset.json").exists():
        raise UserError(f"{folder}: not found; run `dvc repro prepare@{name}`")
    check_unchanged(folder)
    images = np.load(folder / "images.npy", mmap_mode="r")
    samples = pd.read_csv(folder / "samples.csv", dtype=str, keep_default_na=False)
    return images, samples, json.loads((folder / "dataset.json").read_text())


def encode_labels(samples: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """Return the labels as numbers in the order of the classes, shape (n,), int32."""
    return samples.label.map({name: number for number, name in enumerate(classes)}).to_numpy(np.int32)
