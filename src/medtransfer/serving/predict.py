"""predict: image files or folders → the registered classifier's answers as a table, JSON or CSV."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.core.errors import UserError
from medtransfer.core.files import atomic_file
from medtransfer.data.custom import SUFFIXES
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


@dataclass(frozen=True)
class Answer:
    """The answer for one file: `said` from `describe` and the overlay's path, or None and the problem."""

    path: Path
    said: dict[str, Any] | None
    problem: str = ""
    overlay: Path | None = None


def open_classifier(dataset: str, model: str | None) -> Classifier:
    """Return a classifier from MLflow's registry: a data set's best, or the one with the URI `model`."""
    with tempfile.TemporaryDirectory() as folder:
        uri = model or f"models:/{dataset}@{mlflow_models.BEST}"
        found = load_classifier(*mlflow_models.fetch_classifier(uri, Path(folder)))
    if found.facts["dataset"] != dataset:
        raise UserError(f"{uri}: a network for {found.facts['dataset']}; expected one for {dataset}")
    return found


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return the given files, and the JPEG and PNG files in each given folder and its subfolders, sorted."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not inside:
            raise UserError(f"{path}: no image; expected files that end in {', '.join(SUFFIXES)}")
        found += inside
    return found


def answer(classifier: Classifier, paths: list[Path], overlays: Path | None = None) -> Iterator[Answer]:
    """Yield the answer for each file; a file that is not an image has a problem instead.

    Parameters
    ----------
    overlays : Path, optional
        A folder for one PNG per image, `<number>-<name>.png`, that shows where the network looked.
    """
    for start in range(0, len(paths), BATCH):
        part = paths[start : start + BATCH]
        read = [_read(classifier, path) for path in part]
        good = [number for number, (_, _, problem) in enumerate(read) if not problem]
        said, drawn = {}, {}
        if good:
            stacked = np.stack([read[number][1] for number in good])
            probabilities = ask(classifier, stacked)
            said = {number: describe(classifier, row) for number, row in zip(good, probabilities, strict=True)}
        if good and overlays:
            pictures = show_where(classifier, [read[number][0] for number in good], stacked, probabilities)
            for number, picture in zip(good, pictures, strict=True):
                drawn[number] = overlays / f"{start + number:04d}-{part[number].stem}.png"
                with atomic_file(drawn[number]) as partial:
                    picture.save(partial, format="PNG")
        for number, path in enumerate(part):
            yield Answer(path, said.get(number), read[number][2], drawn.get(number))


def _read(classifier: Classifier, path: Path) -> tuple[bytes, np.ndarray, str]:
    try:
        content = path.read_bytes()
        return content, read_image(classifier, content, str(path)), ""
    except UserError as error:
        return b"", np.zeros(0), str(error)
    except OSError as error:
        return b"", np.zeros(0), f"{path}: {error.strerror}"


def as_table(answers: list[Answer], facts: dict[str, Any]) -> pd.DataFrame:
    """Return one row per file: image, predicted, p_<class>, overlay, problem, synthetic, calibrated."""
    rows = [
        {
            "image": str(found.path),
            "predicted": found.said["predicted"] if found.said else "",
            **{f"p_{name}": found.said["probabilities"][name] if found.said else np.nan for name in facts["classes"]},
            "overlay": str(found.overlay or ""),
            "problem": found.problem,
            "synthetic": facts["synthetic"],
            "calibrated": facts["calibrated"],
        }
        for found in answers
    ]
    return pd.DataFrame(rows)


def as_json(answers: list[Answer], classifier: Classifier) -> dict[str, Any]:
    """Return all answers, and the model behind them, as JSON values."""
    facts = classifier.facts
    return {
        "model": {key: facts[key] for key in MODEL},
        "note": NOTE,
        "answers": [_as_values(found) for found in answers],
    }


def _as_values(found: Answer) -> dict[str, Any]:
    said = found.said or {"problem": found.problem}
    return {"image": str(found.path), **said, **({"overlay": str(found.overlay)} if found.overlay else {})}
