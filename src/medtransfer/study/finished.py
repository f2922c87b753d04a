"""layers and gradcam: a finished network → which layers matter, and where it looked, in folders of artifacts/."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from medtransfer.analysis.families import configuration_of
from medtransfer.analysis.runs import renewed_source
from medtransfer.analysis.uncertainty import estimate, jackknife
from medtransfer.core.errors import UserError
from medtransfer.core.files import atomic_folder, write_json
from medtransfer.core.layout import GRADCAM, LAYERS, run_name
from medtransfer.core.params import Params
from medtransfer.core.predictions import as_predictions, predicted_labels, probabilities_of, read_predictions
from medtransfer.core.prepared import check_data_of, encode_labels, finished_network, read_dataset
from medtransfer.core.provenance import git_commit
from medtransfer.core.run_record import note_of, read_record, recipe_of
from medtransfer.core.tables import DIGITS
from medtransfer.layers.gradcam import grad_cam, why_unclear
from medtransfer.layers.probes import compare_layers, probe_blocks, rewind_blocks
from medtransfer.metrics.scores import BY_NAME, MACRO, encode
from medtransfer.models import vgg16
from medtransfer.report import figures
from medtransfer.training.device import device_name, prepare_backend
from medtransfer.training.experiment import load_initial_weights
from medtransfer.training.loop import predict

PROBED = 2000  # maximum number of training images for a probe
COMPARED_BYTES = 1e9  # limit for the largest layer's outputs, of which two copies are in memory
COMPARED = 256  # maximum number of validation images, drawn at random


class _Finished(NamedTuple):
    """A finished network: run.json, the network, and its data as from `read_dataset`."""

    record: dict[str, Any]
    network: keras.Model
    images: np.ndarray
    samples: pd.DataFrame
    classes: list[str]

    @property
    def about(self) -> dict[str, Any]:
        """The facts that identify the fit, and how it is analysed."""
        return {
            **{key: self.record[key] for key in ("dataset", "model", "seed", "fit")},
            "backend": keras.backend.backend(),
            "device": device_name(),
            "git_commit": git_commit(),
        }


def _open(fitted: Path, params: Params) -> _Finished:
    prepare_backend()
    record = read_record(fitted)
    images, samples, description = read_dataset(params, record["dataset"])
    check_data_of(fitted, description, samples)
    return _Finished(record, vgg16.load_network(fitted / "model.keras"), images, samples, description["classes"])


def analyse_layers(params: Params, dataset: str, name: str, seed: int) -> Path:
    """Write rewinding.csv, similarity.csv, probes.csv and layers.json for one finished fit, and return their folder.

    Rewinding and probes are scored on the test images, with 95% intervals over lesions or patients; the probes are
    fitted on up to `PROBED` training images. The initial weights are those in run.json, not in params.yaml.
    """
    fitted = finished_network(params, dataset, name, seed)
    found = _open(fitted, params)
    check_source(fitted, found.record)
    tuned, images, classes, size = found.network, found.images, found.classes, found.images.shape[1]
    settings = recipe_of(found.record)
    begin = time.perf_counter()
    start = vgg16.build_vgg16(size, len(classes), settings, seed)
    load_initial_weights(start, configuration_of(found.record), seed, params.weights.file)
    rows = {split: np.flatnonzero(found.samples.split == split) for split in ("train", "validation", "test")}
    labels = encode_labels(found.samples, classes)
    tested = found.samples.iloc[rows["test"]].reset_index(drop=True)

    def score_probabilities(probabilities: np.ndarray) -> dict[str, float]:
        scored = jackknife(encode(as_predictions(tested, probabilities, classes)))
        estimated = estimate([scored.of(MACRO)], scored, BY_NAME[MACRO].needs)
        return {"macro_f1": estimated.value, "low": estimated.low, "high": estimated.high}

    def score_network(model: keras.Model) -> dict[str, float]:
        return score_probabilities(predict(model, images, rows["test"], settings.batch_size, settings.flip_axes))

    probed = rows["train"]
    if len(probed) >= PROBED + len(classes):  # fewer to leave out cannot be drawn by class
        probed, _ = train_test_split(probed, train_size=PROBED, stratify=labels[probed], random_state=seed)
    used = {"train": probed, "test": rows["test"]}
    probes = [
        probe_blocks(model, images, labels, used, score_probabilities).assign(network=which)
        for which, model in (("start", start), ("tuned", tuned))
    ]
    largest = 64 * size**2 * np.dtype(np.float32).itemsize
    compared = draw_rows(rows["validation"], min(COMPARED, int(COMPARED_BYTES // largest)), seed)
    with atomic_folder(LAYERS / dataset / run_name(name, seed)) as folder:
        pd.concat(probes).round(DIGITS).to_csv(folder / "probes.csv", index=False)
        rewind_blocks(tuned, start, score_network).round(DIGITS).to_csv(folder / "rewinding.csv", index=False)
        compare_layers(tuned, start, images[compared]).round(DIGITS).to_csv(folder / "similarity.csv", index=False)
        record = {
            **found.about,
            "probed_images": len(probed),
            "compared_images": len(compared),
            "seconds": round(time.perf_counter() - begin, 1),
        }
        write_json(folder / "layers.json", record)
    return LAYERS / dataset / run_name(name, seed)


def check_source(fitted: Path, record: dict[str, Any]) -> None:
    """Check that the run whose weights a network started from has not been trained again since."""
    if before := renewed_source(fitted, record):
        raise UserError(f"{before}: was trained again after {fitted} had started from it; run `dvc repro`")


def draw_rows(rows: np.ndarray, maximum: int, seed: int) -> np.ndarray:
    """Return at most `maximum` random rows, in their order; the first rows might all be of one class."""
    drawn: np.ndarray = np.random.default_rng(seed).choice(rows, min(maximum, len(rows)), replace=False)
    return np.sort(drawn)


def explain_predictions(params: Params, dataset: str, name: str, seed: int) -> Path:
    """Write gradcam.png, images.csv and gradcam.json for one finished fit, and return their folder.

    They show the most confident correct and the most confident wrong prediction of each class on the test images, each
    with the map of the predicted class.
    """
    fitted = finished_network(params, dataset, name, seed)
    found = _open(fitted, params)
    chosen = choose(read_predictions(fitted / "predictions.csv", "test"), found.classes)
    pixels = np.asarray(found.images[pd.Index(found.samples.id).get_indexer(chosen.id)])
    heat = grad_cam(found.network, pixels, chosen.predicted.map(found.classes.index).to_numpy())
    with atomic_folder(GRADCAM / dataset / run_name(name, seed)) as folder:
        chosen.round(DIGITS).to_csv(folder / "images.csv", index=False)
        _, height, width = heat.shape
        seen = why_unclear(height, width) or f"{height} × {width} positions"
        title = figures.mark(f"{dataset}, {name}, seed {seed}: Grad-CAM, {seen}", note_of(found.record))
        figures.gradcam(chosen, pixels, heat, found.classes, title).savefig(folder / "gradcam.png")
        write_json(folder / "gradcam.json", found.about)
    return GRADCAM / dataset / run_name(name, seed)


def choose(predictions: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Return the most confident correct and wrong prediction of each true class, in the order of the classes.

    Columns: id, label, predicted, probability (of the predicted class), right.
    """
    table = predictions[["id", "label"]].assign(
        predicted=predicted_labels(predictions), probability=probabilities_of(predictions).max(axis=1)
    )
    table["right"] = table.label == table.predicted
    best = table.sort_values("probability", ascending=False, kind="stable").drop_duplicates(["label", "right"])
    order = best.label.map(classes.index)
    return best.assign(order=order).sort_values(["order", "right"], ascending=[True, False]).drop(columns="order")
