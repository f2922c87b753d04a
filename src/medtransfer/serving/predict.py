"""predict: image files or folders → the registered classifier's answers as a table, JSON or CSV."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.core.errors import UserError
from medtransfer.core.files import atomic_file
from medtransfer.data.images import SUFFIXES, is_image, visible_files
from medtransfer.serving.classifier import (
    BATCH,
    NOTE,
    Classifier,
    ask,
    describe,
    load_classifier,
    read_image,
    show_where,
)
from medtransfer.tracking import mlflow_models

MODEL = ("dataset", "model", "seed", "fit", "synthetic", "calibrated", "network_sha256")


def open_classifier(dataset: str, model: str | None) -> Classifier:
    """Return a classifier from MLflow's registry: a data set's best, or the one with the URI `model`."""
    uri = model or f"models:/{dataset}@{mlflow_models.BEST}"
    with tempfile.TemporaryDirectory() as folder:
        found = load_classifier(*mlflow_models.fetch_classifier(uri, Path(folder)))
    if found.facts["dataset"] != dataset:
        raise UserError(f"{uri}: a network for {found.facts['dataset']}; expected one for {dataset}")
    return found


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return the given files, and the images in each given folder and its subfolders, sorted."""
    found: list[Path] = []
    for path in paths:
        images = [file for file in visible_files(path) if is_image(file)] if path.is_dir() else [path]
        if not images:
            raise UserError(f"{path}: no image; expected files that end in {', '.join(SUFFIXES)}")
        found += images
    return found


def answer(classifier: Classifier, paths: list[Path], overlays: Path | None = None) -> Iterator[dict[str, Any]]:
    """Yield the answer for each file as JSON values: `image` and what `describe` returns, or `image` and `problem`.

    Parameters
    ----------
    overlays : Path, optional
        A folder for one PNG per image, `<number>-<name>.png`, that shows where the network looked.
    """
    for start in range(0, len(paths), BATCH):
        answers: list[dict[str, Any]] = [{"image": _printable(path)} for path in paths[start : start + BATCH]]
        good, contents, pixels = [], [], []
        for number, found in enumerate(answers, start):
            try:
                content = paths[number].read_bytes()
                pixels.append(read_image(classifier, content, found["image"]))
                contents.append(content)
                good.append((number, found))
            except UserError as error:
                found["problem"] = str(error)
            except OSError as error:
                found["problem"] = f"{found['image']}: {error.strerror}"
        if good:
            stacked = np.stack(pixels)
            probabilities = ask(classifier, stacked)
            for (_, found), row in zip(good, probabilities, strict=True):
                found |= describe(classifier, row)
        if good and overlays:
            pictures = show_where(classifier, contents, stacked, probabilities)
            for (number, found), picture in zip(good, pictures, strict=True):
                target = overlays / f"{number:04d}-{paths[number].stem}.png"
                with atomic_file(target) as partial:
                    picture.save(partial, format="PNG")
                found["overlay"] = _printable(target)
        yield from answers


def _printable(path: Path) -> str:
    """Return a path whose name need not be UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def as_table(answers: list[dict[str, Any]], facts: dict[str, Any]) -> pd.DataFrame:
    """Return one row per file: image, predicted, p_<class>, overlay, problem, synthetic, calibrated."""
    rows = [
        {
            "image": found["image"],
            "predicted": found.get("predicted", ""),
            **{f"p_{name}": found.get("probabilities", {}).get(name, np.nan) for name in facts["classes"]},
            "overlay": found.get("overlay", ""),
            "problem": found.get("problem", ""),
            "synthetic": facts["synthetic"],
            "calibrated": facts["calibrated"],
        }
        for found in answers
    ]
    return pd.DataFrame(rows)


def as_json(answers: list[dict[str, Any]], classifier: Classifier) -> dict[str, Any]:
    """Return all answers, and the model behind them, as JSON values."""
    return {"model": {key: classifier.facts[key] for key in MODEL}, "note": NOTE, "answers": answers}
