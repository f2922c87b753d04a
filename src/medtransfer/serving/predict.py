"""predict: image files or folders → a network's answers as a table, JSON or CSV."""

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException

from medtransfer.analysis.external import estimate_present
from medtransfer.analysis.runs import Run
from medtransfer.core.dvc import check_unchanged
from medtransfer.core.errors import UserError, check_known, counted
from medtransfer.core.files import atomic_file
from medtransfer.core.layout import PARAMS, RUNS
from medtransfer.core.params import read_params
from medtransfer.core.predictions import as_predictions, probability_columns
from medtransfer.core.prepared import data_of
from medtransfer.core.run_record import find_fits, read_record
from medtransfer.data.images import MAX_BYTES
from medtransfer.serving.classifier import (
    BATCH,
    Classifier,
    ask,
    describe,
    load_classifier,
    note_of_answers,
    read_image,
    show_where,
    write_classifier,
)
from medtransfer.tracking import mlflow_models, mlflow_store

MODEL = ("dataset", "model", "seed", "fit", "scope", "synthetic", "calibrated", "likeness", "network_sha256")
LIKENESS = ("threshold", "false_alarm_rate", "method")


def open_classifier(dataset: str, model: str | None) -> Classifier:
    """Return a data set's best classifier in MLflow's registry, or the one with the address `model`.

    `runs:/RUN/model` is the network of a fit's run, with the calibration that its registration has or would have.
    """
    if not mlflow_store.is_there():
        read_params(PARAMS)  # if there is none, this is not the project's folder
        named = "correct MLFLOW_TRACKING_URI, or " if os.environ.get("MLFLOW_TRACKING_URI") else ""
        store = mlflow_store.file_of(mlflow_store.store_uri())
        raise UserError(f"{store}: no such store; {named}run `medtransfer register {dataset}`")
    if not model and PARAMS.exists():
        registered = {version.name for version in mlflow_models.registered(mlflow_store.reach(read_only=True))}
        if dataset not in registered:
            check_known("data sets", dataset, sorted({*read_params(PARAMS).study, *registered}))
    uri = model or f"models:/{dataset}@{mlflow_models.BEST}"
    with tempfile.TemporaryDirectory() as folder:
        found = _open_run(uri, Path(folder)) if uri.startswith("runs:/") else _fetch(uri, Path(folder))
    if found.facts["dataset"] != dataset:
        raise UserError(f"{uri}: a network for {found.facts['dataset']}; expected one for {dataset}")
    return found


def _fetch(uri: str, folder: Path) -> Classifier:
    return load_classifier(*mlflow_models.fetch_classifier(uri, folder))


def _open_run(uri: str, folder: Path) -> Classifier:
    parts = re.fullmatch(r"runs:/(\w+)/model", uri)
    if not parts:
        raise UserError(f"{uri}: not the address of a fit's model; expected runs:/RUN/model")
    client = mlflow_store.reach(read_only=True)
    try:
        fit = client.get_run(parts[1]).data.tags.get(mlflow_store.FIT)
    except MlflowException as error:
        raise UserError(f"{uri}: not available from {mlflow_store.address()} ({mlflow_store.reason(error)})") from None
    versions = [found for found in mlflow_models.registered(client) if found.tags.get(mlflow_store.FIT) == fit]
    if versions:
        newest = max(versions, key=lambda found: int(found.version))
        return _fetch(f"models:/{newest.name}/{newest.version}", folder)
    for path in find_fits(RUNS):
        if (record := read_record(path))["fit"] == fit:
            if record["kind"] == "baseline":
                raise UserError(f"{uri}: a {record['model']}; expected a network")
            check_unchanged(path)
            write_classifier(read_params(PARAMS), path, data_of(path), folder)
            return load_classifier(folder)
    raise UserError(
        f"{uri}: its fit is neither in {RUNS} nor registered; run `medtransfer register DATASET` where the fit is"
    )


def answer(classifier: Classifier, paths: list[Path], overlays: Path | None = None) -> Iterator[dict[str, Any]]:
    """Yield the answer for each file as JSON values: `image` and what `describe` returns, or `image` and `problem`.

    `overlays` is a folder for one PNG per image, `<number>-<name>.png`, that shows where the network looked.
    """
    for start in range(0, len(paths), BATCH):
        answers, read = [], []
        for number, path in enumerate(paths[start : start + BATCH], start):
            answers.append(found := {"image": _printable(path)})
            try:
                content = _read(path)
                read.append((number, found, content, read_image(classifier, content, found["image"])))
            except UserError as error:
                found["problem"] = str(error)
            except OSError as error:
                found["problem"] = f"{found['image']}: {error.strerror}"
        if read:
            numbers, good, contents, images = zip(*read, strict=True)
            pixels = np.stack(images)
            given = ask(classifier, pixels)
            for found, said in zip(good, given, strict=True):
                found.update(describe(classifier, said))
        if read and overlays:
            pictures = show_where(classifier, contents, pixels, given)
            for number, found, picture in zip(numbers, good, pictures, strict=True):
                target = overlays / f"{number:04d}-{paths[number].stem}.png"
                with atomic_file(target) as partial:
                    picture.save(partial, format="PNG")
                found["overlay"] = _printable(target)
        yield from answers


def _read(path: Path) -> bytes:
    if (size := path.stat().st_size) > MAX_BYTES:
        raise UserError(f"{_printable(path)}: has {size:,} bytes; expected an image, at most {MAX_BYTES:,}")
    return path.read_bytes()


def _printable(path: Path) -> str:
    """Return a path whose name need not be UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def as_table(answers: list[dict[str, Any]], facts: dict[str, Any]) -> pd.DataFrame:
    """Return one row per file.

    Its columns are image, predicted, p_<class>, unlike_training, distance, LIKENESS (the same in every row),
    calibrated, overlay, problem and synthetic, and label where labels were given.
    """
    known = dict.fromkeys(("predicted", "overlay", "problem"), "") | {"synthetic": facts["synthetic"]}
    known |= {key: facts["likeness"][key] for key in LIKENESS}
    rows = []
    for found in answers:
        given = found.get("probabilities", {})
        rows.append(known | found | dict(zip(probability_columns(given), given.values(), strict=True)))
    labelled = ["label"] if any("label" in found for found in answers) else []
    columns = ["image", *labelled, "predicted", *probability_columns(facts["classes"])]
    columns += ["unlike_training", "distance", *LIKENESS, "calibrated", "overlay", "problem", "synthetic"]
    return pd.DataFrame(rows, columns=columns)


def as_json(answers: list[dict[str, Any]], classifier: Classifier) -> dict[str, Any]:
    """Return all answers, and the model behind them, as JSON values."""
    model = {key: classifier.facts[key] for key in MODEL}
    return {"model": model, "note": note_of_answers(classifier), "answers": answers}


def score_answers(answers: list[dict[str, Any]], samples: pd.DataFrame, facts: dict[str, Any]) -> list[str]:
    """Return one line per score of the images that have a label and an answer; `samples` from `match_labels`."""
    given = {found["image"]: list(found["probabilities"].values()) for found in answers if "probabilities" in found}
    known = samples[[str(file) in given for file in samples.file]].reset_index(drop=True)
    if known.empty:
        return ["no labelled image could be read, so there is no score"]
    probabilities = np.array([given[str(file)] for file in known.file])
    run = Run({**facts, "kind": "network"}, as_predictions(known, probabilities, facts["classes"]), None)
    images = f"{counted(len(known), 'labelled image')} of {counted(known.group.nunique(), 'group')}"
    lines = [f"{images} (training images count too; `score` leaves them out):"]
    for name, found in estimate_present([run]).items():
        ends = (
            found.covers.replace("none", "no interval")
            if np.isnan(found.low)
            else f"[{found.low:.3f}, {found.high:.3f}]"
        )
        value = "" if np.isnan(found.value) else f"{found.value:.3f} "
        lines.append(f"  {'F1 of ' if name in facts['classes'] else ''}{name}: {value}{ends}")
    return lines
