"""What baseline and train write alike: the folder of a finished fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.evaluation.metrics import score
from medtransfer.evaluation.predictions import read_predictions, write_predictions
from medtransfer.files import write_json
from medtransfer.tracking import data_version, git_commit, log_metrics


def describe_fit(dataset: dict[str, Any], model: str, seed: int) -> dict[str, Any]:
    """Return the tags that every fit carries in MLflow and in run.json."""
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
    }


def write_scores(
    folder: Path, samples: pd.DataFrame, probabilities: np.ndarray, classes: list[str]
) -> dict[str, float]:
    """Write predictions.csv and metrics.json, log the test scores and return them.

    The scores are those of the file, read back: what evaluation will see.
    """
    write_predictions(folder / "predictions.csv", samples, probabilities, classes)
    predictions = read_predictions(folder / "predictions.csv")
    metrics = score(predictions[predictions.split == "test"])
    write_json(folder / "metrics.json", metrics)
    log_metrics(
        {f"test_f1_{name}" if name != "balanced accuracy" else f"test_{name}": value for name, value in metrics.items()}
    )
    return metrics
