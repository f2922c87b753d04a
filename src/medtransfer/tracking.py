"""MLflow: the only module that imports it.

A run is one fit. Runs go to the server that MLFLOW_TRACKING_URI names or to an SQLite store under
mlruns/, in one experiment a data set.
"""

import importlib.metadata
import logging
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.exceptions import MlflowException
from mlflow.models import Model, infer_signature
from ruamel.yaml import YAML

DEFAULT_URI = "sqlite:///mlruns/mlflow.db"


def connect() -> None:
    """Point MLflow at the user's server or the project's own store."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if uri == DEFAULT_URI:
        Path("mlruns").mkdir(exist_ok=True)
    mlflow.set_tracking_uri(uri)


@contextmanager
def run(
    experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, Any], sample_seconds: float = 5
) -> Iterator[str]:
    """Log one run; it ends as FINISHED, as KILLED after Ctrl-C, or as FAILED after any other exception.

    Parameters
    ----------
    params : mapping
        The hyperparameters; nested mappings become dotted names.
    sample_seconds : float
        Between two samples of the system metrics.

    Yields
    ------
    str
        The run's id.
    """
    connect()
    mlflow.set_experiment(experiment)
    mlflow.set_system_metrics_sampling_interval(sample_seconds)
    mlflow.set_system_metrics_samples_before_logging(1)
    active = mlflow.start_run(run_name=name, log_system_metrics=True, tags={k: str(v) for k, v in tags.items()})
    status = "FAILED"
    try:
        mlflow.log_params(flatten(params))
        yield active.info.run_id
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        mlflow.end_run(status)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into one with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def log_epoch(epoch: int, row: Mapping[str, float]) -> None:
    """Log an epoch's metrics with the epoch as the step."""
    mlflow.log_metrics({key: value for key, value in row.items() if key != "epoch"}, step=epoch)


def log_metrics(metrics: Mapping[str, float]) -> None:
    """Log metrics of the whole run; blanks in names become underscores."""
    mlflow.log_metrics({key.replace(" ", "_"): value for key, value in metrics.items()})


def log_data(samples: pd.DataFrame, name: str, origin: Mapping[str, str]) -> None:
    """Log the samples (a row an image, with its SHA-256 and split) and their origin as the run's input."""
    source = CodeDatasetSource(dict(origin))
    dataset = mlflow.data.from_pandas(samples, source=source, targets="label", name=name)
    mlflow.log_input(dataset, context="training")


def log_keras_model(model: Any, images: np.ndarray, probabilities: np.ndarray, backend: str) -> None:
    """Log a network that takes raw pixels; `images` (n, size, size, 3), uint8, is its input example."""
    # mlflow.keras.log_model writes the input example into a folder that it has not made yet
    # (mlflow/mlflow#16183), so the folder is made first.
    Model.log(
        artifact_path=None,
        name="model",
        flavor=SimpleNamespace(save_model=_save_keras_model),
        flavor_name="keras",
        model=model,
        signature=infer_signature(images, probabilities),
        input_example=images,
        pip_requirements=_pinned("mlflow", "keras", "numpy", backend),
        # It would load the network again after every fit; the tests compare a loaded one's answers.
        validate_serving_input=False,
    )


def _save_keras_model(path: str, validate_serving_input: bool, **arguments: Any) -> None:
    Path(path).mkdir(parents=True)
    mlflow.keras.save_model(path=path, **arguments)


def log_sklearn_model(model: Any, features: np.ndarray, probabilities: np.ndarray, trusted_types: list[str]) -> None:
    """Log a tree; `features` (n, size · size · 3), uint8, is its input example, probabilities its output."""
    mlflow.sklearn.log_model(
        model,
        name="model",
        signature=infer_signature(features, probabilities),
        input_example=features,
        serialization_format="skops",
        skops_trusted_types=trusted_types,
        pyfunc_predict_fn="predict_proba",
        pip_requirements=_pinned("mlflow", "scikit-learn", "skops", "numpy"),
    )


def _pinned(*packages: str) -> list[str]:
    return [f"{package}=={importlib.metadata.version(package)}" for package in packages]


def attach(run_id: str, files: list[Path]) -> bool:
    """Add files to a finished run; return False where this store does not know the run.

    They lie in no folder: MLflow's page of compared runs shows those side by side and no others.
    """
    connect()
    client = mlflow.MlflowClient()
    try:
        client.get_run(run_id)
    except MlflowException:
        return False
    for file in files:
        client.log_artifact(run_id, str(file))
    return True


def git_commit() -> str:
    """Return the commit that is checked out, marked where tracked files differ from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        # dvc.lock and the reports change while the pipeline runs and do not decide a result.
        changed = _git(
            "status", "--porcelain", "--untracked-files=no", "--", "src", "params.yaml", "dvc.yaml", "data.dvc"
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-modified" if changed else commit


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def data_version(pointer: Path = Path("data.dvc")) -> str:
    """Return DVC's hash of data/, which names the version of the raw data sets."""
    try:
        return str(YAML(typ="safe").load(pointer.read_text())["outs"][0]["md5"])
    except (OSError, KeyError, IndexError, TypeError):
        return "unknown"
