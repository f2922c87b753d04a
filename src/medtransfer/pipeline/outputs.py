"""The folder of a finished fit, as baseline and train write it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.core.dvc import data_version
from medtransfer.core.files import digest_of_folder, write_json
from medtransfer.core.predictions import read_predictions, write_predictions
from medtransfer.core.provenance import git_commit
from medtransfer.core.run_record import read_record
from medtransfer.metrics.scores import mlflow_name, score
from medtransfer.tracking import mlflow_runs


def describe_fit(dataset: dict[str, Any], model: str, seed: int) -> dict[str, Any]:
    """Return what run.json and the tags of the MLflow run say about every fit."""
    return {
        "dataset": dataset["name"],
        "model": model,
        "seed": seed,
        "synthetic": dataset["synthetic"],
        "data_source": dataset["source"],
        "data_version": data_version(),
        "git_commit": git_commit(),
        "image_size": dataset["image_size"],
        "split_by": dataset["split"]["by"],
        "split_leak": dataset["split"]["leak"],
    }


def write_scores(
    folder: Path, samples: pd.DataFrame, probabilities: np.ndarray, classes: list[str]
) -> dict[str, float]:
    """Write predictions.csv and metrics.json, and return the test scores as computed from the written file."""
    write_predictions(folder / "predictions.csv", samples, probabilities, classes)
    predictions = read_predictions(folder / "predictions.csv")
    metrics = score(predictions[predictions.split == "test"])
    write_json(folder / "metrics.json", metrics)
    return metrics


def log_to_mlflow(run: mlflow_runs.MlflowRun, folder: Path) -> None:
    """Log the folder of a finished fit: epochs, scores, seconds and the digest of its files."""
    record = read_record(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    scores = {mlflow_name(name): value for name, value in metrics.items()}
    if record["kind"] == "network":
        run.log_epochs(pd.read_csv(folder / "history.csv").to_dict("records"))
        run.log_metrics({"epochs_run": record["epochs"]})
    run.log_metrics({**scores, "seconds_total": record["seconds"]})
    run.tag({mlflow_runs.OUTPUTS: digest_of_folder(folder)})
