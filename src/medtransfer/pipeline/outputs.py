"""The folder of a finished fit, as baseline and train write it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.core.dvc import data_version
from medtransfer.core.files import digest_of_folder, write_json
from medtransfer.core.params import BLOCKS
from medtransfer.core.predictions import read_predictions, write_predictions
from medtransfer.core.provenance import git_commit
from medtransfer.core.run_record import note_of, read_record
from medtransfer.metrics.scores import mlflow_name, score
from medtransfer.tracking import mlflow_runs


def describe_fit(dataset: dict[str, Any], model: str, seed: int) -> dict[str, Any]:
    """Return what run.json and the tags of the MLflow run say about every fit."""
    return {
        "dataset": dataset["name"],
        "model": model,
        "seed": seed,
        "synthetic": dataset["synthetic"],
        **({"note": note} if (note := note_of(dataset)) else {}),
        "data_source": dataset["source"],
        "data_version": data_version(),
        "git_commit": git_commit(),
        "image_size": dataset["image_size"],
        "split_by": dataset["split"]["by"],
        "split_leakage": dataset["split"]["leakage"],
    }


def write_scores(
    folder: Path, samples: pd.DataFrame, probabilities: np.ndarray, classes: list[str]
) -> dict[str, float]:
    """Write predictions.csv and metrics.json, and return the test scores as computed from the written file."""
    write_predictions(folder / "predictions.csv", samples, probabilities, classes)
    metrics = score(read_predictions(folder / "predictions.csv", "test"))
    write_json(folder / "metrics.json", metrics)
    return metrics


def log_to_mlflow(run: mlflow_runs.MlflowRun, folder: Path) -> None:
    """Log the folder of a finished fit: epochs, scores, seconds and the digest of its files."""
    record = read_record(folder)
    metrics = {**mlflow_scores(folder), "train/seconds_total": record["seconds"]}
    if record["kind"] == "network":
        history = pd.read_csv(folder / "history.csv")
        run.log_epochs(history.to_dict("records"))
        metrics["train/epochs_run"] = record["epochs"]
        metrics[f"{mlflow_runs.BEST}/loss"] = history.val_loss[record["best_epoch"] - 1]
    run.log_metrics(metrics)
    run.tag({mlflow_runs.OUTPUTS: digest_of_folder(folder)})
    run.supersede()


def mlflow_scores(folder: Path) -> dict[str, float]:
    """Return the scores of a finished fit on the test images and, for a network, on the validation images.

    Undefined scores (NaN) are left out, such as F1 of a class that a split neither has nor predicts.
    """
    tested = json.loads((folder / "metrics.json").read_text())
    scores = {mlflow_name(name): value for name, value in tested.items()}
    validated = read_predictions(folder / "predictions.csv", "validation")
    if len(validated):
        scores |= {mlflow_name(name, mlflow_runs.BEST): value for name, value in score(validated).items()}
    return {name: value for name, value in scores.items() if not np.isnan(value)}


def mlflow_params(record: dict[str, Any], hyperparameters: dict[str, Any]) -> dict[str, str]:
    """Return the parameters of a fit's run: its hyperparameters, and names that trees and networks share."""
    trained = [block for block in record.get("trainable_blocks", "").split(",") if block in BLOCKS]
    blocks = "all" if len(trained) == len(BLOCKS) else "+".join(trained) or "head"
    shared = {
        "configuration": record["model"],
        "weights": record.get("weights", "none"),
        "blocks": blocks if record["kind"] == "network" else "none",
        "seed": record["seed"],
        "image_size": record["image_size"],
    }
    return mlflow_runs.flatten({**mlflow_runs.flatten(hyperparameters), **shared})
