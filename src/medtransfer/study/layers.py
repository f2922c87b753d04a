"""layers: a finished network and its initial weights → which layers matter, in artifacts/layers/."""

import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from medtransfer.analysis.families import configuration_of
from medtransfer.analysis.uncertainty import estimate, jackknife
from medtransfer.core.files import atomic_folder, write_json
from medtransfer.core.layout import LAYERS, run_name
from medtransfer.core.params import Params
from medtransfer.core.predictions import as_predictions
from medtransfer.core.prepared import check_data_of, encode_labels, finished_network, read_dataset
from medtransfer.core.provenance import git_commit
from medtransfer.core.run_record import read_record, recipe_of
from medtransfer.layers.probes import compare_layers, probe_blocks, rewind_blocks
from medtransfer.metrics.scores import BY_NAME, MACRO
from medtransfer.models import vgg16
from medtransfer.training.device import device_name, prepare_backend
from medtransfer.training.experiment import load_initial_weights
from medtransfer.training.loop import predict

PROBED = 2000  # maximum number of training images for a probe
COMPARED_BYTES = 1e9  # limit for the largest layer's outputs, of which two copies are in memory
COMPARED = 256  # maximum number of validation images, drawn at random


def analyse_layers(params: Params, dataset: str, name: str, seed: int) -> Path:
    """Write rewinding.csv, similarity.csv, probes.csv and layers.json for one finished fit, and return their folder.

    Rewinding and probes are scored on the test images, with 95% intervals over lesions or patients; the probes are
    fitted on up to `PROBED` training images. The initial weights are those in run.json, not in params.yaml.
    """
    fitted = finished_network(params, dataset, name, seed)
    prepare_backend()
    images, samples, description = read_dataset(params, dataset)
    check_data_of(fitted, description, samples)
    classes, fit = description["classes"], read_record(fitted)
    settings, configuration = recipe_of(fit), configuration_of(fit)
    begin = time.perf_counter()
    tuned = vgg16.load_network(fitted / "model.keras")
    start = vgg16.build_vgg16(description["image_size"], len(classes), settings, seed)
    load_initial_weights(start, configuration, seed, params.weights.file)
    rows = {split: np.flatnonzero(samples.split == split) for split in ("train", "validation", "test")}
    labels = encode_labels(samples, classes)
    tested = samples.iloc[rows["test"]].reset_index(drop=True)

    def score_probabilities(probabilities: np.ndarray) -> dict[str, float]:
        scored = jackknife(as_predictions(tested, probabilities, classes))
        found = estimate([scored.of(MACRO)], scored, BY_NAME[MACRO].needs)
        return {"macro_f1": found.value, "low": found.low, "high": found.high}

    def score_network(model: keras.Model) -> dict[str, float]:
        return score_probabilities(predict(model, images, rows["test"], settings.batch_size, settings.flips))

    probed = rows["train"]
    if len(probed) > PROBED:
        probed, _ = train_test_split(probed, train_size=PROBED, stratify=labels[probed], random_state=seed)
    probes = [
        probe_blocks(model, images, labels, {"train": probed, "test": rows["test"]}, score_probabilities).assign(
            network=which
        )
        for which, model in (("start", start), ("tuned", tuned))
    ]
    largest = 64 * description["image_size"] ** 2 * np.dtype(np.float32).itemsize
    compared = draw_rows(rows["validation"], min(COMPARED, int(COMPARED_BYTES // largest)), seed)
    with atomic_folder(LAYERS / dataset / run_name(name, seed)) as folder:
        pd.concat(probes).round(6).to_csv(folder / "probes.csv", index=False)
        rewind_blocks(tuned, start, score_network).round(6).to_csv(folder / "rewinding.csv", index=False)
        compare_layers(tuned, start, images[compared]).round(6).to_csv(folder / "similarity.csv", index=False)
        record = {
            "dataset": dataset,
            "model": name,
            "seed": seed,
            "fit": fit["fit"],
            "probed_images": len(probed),
            "compared_images": len(compared),
            "backend": keras.backend.backend(),
            "device": device_name(),
            "git_commit": git_commit(),
            "seconds": round(time.perf_counter() - begin, 1),
        }
        write_json(folder / "layers.json", record)
    return LAYERS / dataset / run_name(name, seed)


def draw_rows(rows: np.ndarray, maximum: int, seed: int) -> np.ndarray:
    """Return at most `maximum` random rows, in their order; the first rows might all be of one class."""
    drawn: np.ndarray = np.random.default_rng(seed).choice(rows, min(maximum, len(rows)), replace=False)
    return np.sort(drawn)
