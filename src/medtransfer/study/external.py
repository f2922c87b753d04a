"""score: finished networks on labelled images from another source → artifacts/external/<data set>/<name>/.

The scores of such images stay out of artifacts/runs, from which networks and settings are chosen.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from PIL import Image

from medtransfer.analysis.calibration import calibration_table, reliability
from medtransfer.analysis.external import SCALED, compare_sources
from medtransfer.analysis.runs import Run, by_model, read_run
from medtransfer.core.errors import UserError, counted
from medtransfer.core.files import atomic_folder, read_json, write_json
from medtransfer.core.params import Params
from medtransfer.core.predictions import as_predictions
from medtransfer.core.prepared import Prepared, check_data_of, read_dataset
from medtransfer.core.run_record import note_of, read_record, recipe_of
from medtransfer.core.tables import DIGITS
from medtransfer.data.decoding import thumbnail
from medtransfer.data.duplicates import find_near_duplicates
from medtransfer.data.images import load_pixels
from medtransfer.data.progress import progress
from medtransfer.metrics.scores import MACRO, mlflow_name
from medtransfer.models.vgg16 import load_network
from medtransfer.pipeline.evaluate import draw_run
from medtransfer.report import figures, tables
from medtransfer.report.render import render
from medtransfer.report.words import words_for
from medtransfer.serving import likeness
from medtransfer.serving.classifier import predict_probabilities
from medtransfer.tracking import mlflow_runs
from medtransfer.training.device import make_deterministic

EXTERNAL = Path("artifacts/external")
# What must not change between two calls with one name, and its key in external.json.
IDENTITY = {
    "other images or another image size": "pixels_sha256",
    "other labels": "labels_sha256",
    "another --map": "map",
}


def score_outside(
    params: Params, dataset: str, fits: Sequence[Path], samples: pd.DataFrame, source: Mapping[str, Any]
) -> tuple[Path, pd.DataFrame]:
    """Score networks on images from another source, write tables and figures, and log one MLflow run per network.

    `fits` is from `find_networks`, `samples` from `find_labelled`; `source` has the facts of the source: name (also of
    the folder of results), folder, labels and map. Returns the folder, and its table from `compare_sources`.
    """
    keras.config.disable_interactive_logging()
    make_deterministic()
    images, known, description = data = read_dataset(params, dataset)
    for fit in fits:
        check_data_of(fit, description, known)
    pixels = _read(samples, description)
    copies = _find_copies(pixels, samples, images, known)
    if copies.any():
        print(f"left out: {counted(int(copies.sum()), 'image')} that {dataset} has too")
    samples, pixels = samples[~copies].reset_index(drop=True), pixels[~copies]
    if samples.empty:
        raise UserError(
            f"{source['folder']}: {dataset} has all of these images too; expected images from another source"
        )
    facts: dict[str, Any] = {
        "dataset": dataset, **source, "images": len(samples), "groups": int(samples.group.nunique()),
        "copies": int(copies.sum()), "pixels_sha256": hashlib.sha256(pixels.data).hexdigest(),
        "labels_sha256": hashlib.sha256(samples[["id", "label", "group"]].to_csv().encode()).hexdigest(),
    }  # fmt: skip
    target = EXTERNAL / dataset / source["name"]
    _check_replaceable(target, fits, facts)
    answers = {fit: _answer(fit, samples, pixels, data) for fit in fits}
    facts["unlike_training"] = {fit.name: like for fit, (_, like) in answers.items()}
    with atomic_folder(target) as folder:
        _check_replaceable(target, fits, facts)  # another process may have used this name since
        pairs = [_score(fit, predictions, facts, folder / fit.name) for fit, (predictions, _) in answers.items()]
        compared = _write_tables([there for there, _ in pairs], [here for _, here in pairs], facts, folder)
    shown = [target / "scores.md", *sorted(target.glob("*.png"))]
    for fit in fits:
        drawn = [path for path in sorted((target / fit.name).iterdir()) if path.name != "predictions.csv"]
        mlflow_runs.attach(_experiment(facts), _run_id(read_record(fit), facts), [*drawn, *shown])
    for name, like in facts["unlike_training"].items():
        print(
            f"{name}: {like['share']:.0%} of the images are unlike the training images (false alarms: "
            f"{like['false_alarm_rate']:.1%} of {like['test_images']} test images)"
        )
    return target, compared


def _check_replaceable(target: Path, fits: Sequence[Path], facts: Mapping[str, Any]) -> None:
    """Check that earlier scores under this name are of the same images and labels, and of no other network."""
    if not target.exists():
        return
    file, remedy = target / "external.json", f"choose another --name, or remove {target}"
    if not file.exists():
        raise UserError(f"{file}: not found; {remedy}")
    earlier = read_json(file, IDENTITY.values(), remedy)
    others = {path.parent.name for path in target.glob("*/predictions.csv")} - {fit.name for fit in fits}
    different = [
        *(what for what, key in IDENTITY.items() if earlier[key] != facts[key]),
        *(f"the network {name}" for name in sorted(others)),
    ]
    if different:
        raise UserError(f"{target}: has scores for {different[0]}; {remedy}")


def _read(samples: pd.DataFrame, description: Mapping[str, Any]) -> np.ndarray:
    """Return the pixels (n, size, size, 3), uint8, of the files of the samples."""
    how = (description["image_size"], description["resize_filter"])

    def decode(path: Path) -> np.ndarray:
        return load_pixels(path, *how, white_level=description.get("white_level"))

    with ThreadPoolExecutor() as pool:
        return np.stack(list(progress(pool.map(decode, samples.file), "reading images", len(samples))))


def _experiment(facts: Mapping[str, Any]) -> str:
    return f"{facts['dataset']} on {facts['name']}"


def _run_id(record: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Return the id of a network's run; other images or labels get their own, since metrics cannot be removed."""
    identity = json.dumps([facts[key] for key in IDENTITY.values()])
    return f"{record['fit']} {hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def _find_copies(pixels: np.ndarray, samples: pd.DataFrame, images: np.ndarray, known: pd.DataFrame) -> np.ndarray:
    """Return which images, (n,), bool, show the same picture as an image of the data set."""
    small = np.stack([thumbnail(Image.fromarray(image)) for part in (pixels, images) for image in part])
    both = pd.concat([samples.assign(split="test", sha256=""), known.assign(split="train")], ignore_index=True)
    both["id"] = np.arange(len(both))
    found: np.ndarray = np.isin(np.arange(len(samples)), find_near_duplicates(small, both).id.to_numpy(int))
    return found


def _answer(
    fit: Path, samples: pd.DataFrame, pixels: np.ndarray, data: Prepared
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return a network's predictions for the pixels, and how many of them are unlike the training images.

    The column `unlike_training` says which.
    """
    images, known, description = data
    network = load_network(fit / "model.keras")
    probabilities = predict_probabilities(network, pixels, recipe_of(read_record(fit)).flip_axes)
    reference, like = likeness.describe_training(network, images, known.split.to_numpy())
    unlike = likeness.distances(reference, likeness.features_of(network, pixels)) > like["threshold"]
    keras.backend.clear_session()
    predictions = as_predictions(samples, probabilities.astype(np.float32), description["classes"])
    return predictions.assign(unlike_training=unlike), like | {"share": float(unlike.mean())}


def _score(fit: Path, predictions: pd.DataFrame, facts: dict[str, Any], folder: Path) -> tuple[Run, Run]:
    """Write and log the predictions of a network, its scores and its confusion matrix; return both its runs."""
    inside, record, experiment = read_run(fit), read_record(fit), _experiment(facts)
    outside = Run({**record, "dataset": experiment}, predictions, None, inside.validation)
    draw_run(outside, folder)
    predictions.to_csv(folder / "predictions.csv", index=False)
    compared = compare_sources([outside], [inside])
    compared.round(DIGITS).to_csv(folder / "scores.csv", index=False)
    tags = {key: record[key] for key in ("dataset", "model", "seed", "synthetic")}
    tags |= {key: facts[key] for key in ("images", "copies", "pixels_sha256")}
    settings = {"dataset": facts["dataset"], "network": fit.name}
    with mlflow_runs.run(experiment, fit.name, _run_id(record, facts), settings, tags, sample_seconds=None) as run:
        run.name_network(record["dataset"], record["fit"])
        unlike = facts["unlike_training"][fit.name]["share"]
        run.log_metrics({**_for_mlflow(compared), "external/unlike_training": unlike})
    return outside, inside


def _for_mlflow(compared: pd.DataFrame) -> dict[str, float]:
    """Return one network's external scores and their differences from the internal ones, by their name in MLflow."""
    found = {}
    for row in compared.dropna(subset=["external"]).to_dict("records"):
        measure, scaled, _ = row["measure"].partition(SCALED)
        for side in ("external", "difference"):
            found[mlflow_name(measure, side) + scaled.replace(", ", "_")] = row[side]
    return found


def _write_tables(outside: list[Run], inside: list[Run], facts: dict[str, Any], folder: Path) -> pd.DataFrame:
    compared, calibration = compare_sources(outside, inside), calibration_table(outside)
    for name, table in (("scores", compared), ("calibration", calibration)):
        table.round(DIGITS).to_csv(folder / f"{name}.csv", index=False)
    write_json(folder / "external.json", facts)
    experiment, note = _experiment(facts), note_of(outside[0].record)
    text = render(
        "medtransfer.report", "external.md.j2", facts=facts, note=note,
        units=words_for(facts["dataset"]).groups, internal_images=len(inside[0].predictions),
        tables=[
            ("external", tables.external(compared)),
            ("external calibration", tables.calibration(calibration, experiment)),
        ],
    )  # fmt: skip
    (folder / "scores.md").write_text(text, encoding="utf-8")
    title = figures.mark(f"{experiment}: macro F1", note)
    figures.external(compared[compared.measure == MACRO], title).savefig(folder / "scores.png")
    models = by_model(outside)
    bands = {model: reliability(fits) for _, model, fits in models}
    figures.reliability(bands, figures.mark(f"{experiment}: calibration", note)).savefig(folder / "reliability.png")
    return compared
