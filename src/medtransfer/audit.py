"""Whether DVC's outputs, MLflow's runs, the parameters and the data say the same of every fit."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medtransfer import tracking
from medtransfer.errors import UserError
from medtransfer.files import digest_of_folder
from medtransfer.models.settings import read_settings
from medtransfer.models.trees import TRUSTED_TYPES, flatten_pixels, load_tree
from medtransfer.params import AUTO
from medtransfer.stages.integrity import check_unchanged, read_lock
from medtransfer.stages.layout import FIGURES, PREPARED, RUNS
from medtransfer.stages.results import tell_mlflow


def audit() -> list[str]:
    """Return what differs, a line each; empty where everything agrees."""
    client = tracking.reach()
    lock = _locked()
    return [
        *_check_dvc(),
        *(line for folder in fit_folders() for line in _check_fit(client, folder, lock)),
        *_check_runs(client),
    ]


def _check_dvc() -> Iterator[str]:
    # The study alone: results/ has a pipeline of its own.
    command = [sys.executable, "-m", "dvc", "status", "--json", "dvc.yaml", "data.dvc"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        yield f"dvc status: {' '.join(result.stderr.split())}"
        return
    for stage, changes in json.loads(result.stdout or "{}").items():
        yield f"dvc: {stage}: {json.dumps(changes)}; run `dvc repro`"


def fit_folders() -> list[Path]:
    """Return the folders of all finished fits."""
    return sorted(path.parent for path in RUNS.glob("*/*/run.json"))


def _locked() -> dict[str, dict[str, Any]]:
    """Return dvc.lock's parameters of each output folder."""
    return {
        out["path"]: stage.get("params", {}).get("params.yaml", {})
        for stage in read_lock().values()
        for out in stage.get("outs", [])
    }


def _check_fit(client: Any, folder: Path, lock: dict[str, dict[str, Any]]) -> Iterator[str]:
    record = json.loads((folder / "run.json").read_text())
    if "fit" not in record:
        yield f"{folder}: run.json names no fit: it is of an older version; run `dvc repro`"
        return
    try:
        check_unchanged(folder)
    except UserError as error:
        yield str(error)
    yield from _check_locked(folder, record, lock)
    yield from _check_model(folder, record)
    if record["data_version"] != tracking.data_version():
        yield f"{folder}: fitted on data version {record['data_version']}, data.dvc names {tracking.data_version()}"
    commit = record["git_commit"].removesuffix("-modified")
    if not _knows_commit(commit):
        yield f"{folder}: made by git commit {commit}, which this repository does not have"
    run = _run_of(client, record)
    if run is None:
        yield f"{folder}: MLflow has no run of this fit ({record['fit']})"
        return
    yield from _check_run(client, folder, record, run)


def _check_locked(folder: Path, record: dict[str, Any], lock: dict[str, dict[str, Any]]) -> Iterator[str]:
    locked = lock.get(str(folder))
    if locked is None:
        yield f"{folder}: dvc.lock does not name it; run `dvc repro`"
        return
    said = record["hyperparameters"]
    parts = {
        "train": "train",
        f"configurations.{record['model']}": "configuration",
        f"trees.{record['model']}": record["model"],
    }
    own = {name: value for name, value in said.get("configuration", {}).items() if name in said["train"]}
    for key, value in locked.items():
        if key == "train":
            value = {**value, **own}
        if key in parts and _differs(value, said.get(parts[key])):
            yield f"{folder}: {key} is {value} in dvc.lock and {said.get(parts[key])} in run.json"


def _differs(locked: Any, said: Any) -> bool:
    if isinstance(locked, dict) and isinstance(said, dict):
        return any(_differs(value, said.get(key)) for key, value in locked.items())
    return locked not in (said, AUTO)


def _check_model(folder: Path, record: dict[str, Any]) -> Iterator[str]:
    path = folder / "model.keras"
    if record["kind"] != "network":
        return
    try:
        with zipfile.ZipFile(path) as archive:
            found = read_settings(json.loads(archive.read("config.json"))["config"])
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        yield f"{path}: cannot be read ({error})"
        return
    hyperparameters = record["hyperparameters"]
    for key, value in found.items():
        said = hyperparameters.get(key, hyperparameters["train"].get(key))
        if value != said:
            yield f"{path}: {key} is {value}, run.json says {said}"


def _knows_commit(commit: str) -> bool:
    try:
        return subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True).returncode == 0
    except OSError:
        return False


def _run_of(client: Any, record: dict[str, Any]) -> Any:
    run_id = tracking.find(client, record["dataset"], record["fit"])
    return client.get_run(run_id) if run_id else None


def _check_run(client: Any, folder: Path, record: dict[str, Any], run: Any) -> Iterator[str]:
    name = f"{folder}: MLflow's run {run.info.run_id}"
    if run.info.status != "FINISHED":
        yield f"{name} is {run.info.status}, though the fit is finished"
    if run.data.tags.get(tracking.OUTPUTS) != digest_of_folder(folder):
        yield f"{name} was logged from other files than lie here"
    params = {key: str(value) for key, value in tracking.flatten(record["hyperparameters"]).items()}
    for key in sorted(params.keys() | run.data.params.keys()):
        if params.get(key) != run.data.params.get(key):
            yield f"{name}: {key} is {run.data.params.get(key)}, run.json says {params.get(key)}"
    for key, value in json.loads((folder / "metrics.json").read_text()).items():
        logged = run.data.metrics.get(tracking.metric_name(key))
        if logged != value:
            yield f"{name}: {tracking.metric_name(key)} is {logged}, metrics.json says {value}"
    if record["kind"] == "network":
        epochs = list(pd.read_csv(folder / "history.csv").epoch)
        steps = sorted(point.step for point in client.get_metric_history(run.info.run_id, "loss"))
        if steps != epochs:
            yield f"{name} has the epochs {steps}, history.csv has {epochs}"
    if not tracking.has_model(client, run):
        yield f"{name} has no model"


def _check_runs(client: Any) -> Iterator[str]:
    for run in tracking.stale_runs(client):
        yield f"MLflow's run {run.info.run_id} ({run.info.run_name}) is RUNNING and its process is gone"


def repair() -> list[str]:
    """End stale runs and log again from the outputs what MLflow lacks; return what was done, a line each.

    Only MLflow is changed. What is wrong in the outputs themselves, `dvc repro` mends.

    Raises
    ------
    UserError
        MLflow does not answer.
    """
    client = tracking.reach()
    stale = tracking.close_stale(client)
    done = [f"ended {run.info.run_id} ({run.info.run_name}) as KILLED" for run in stale]
    for folder in fit_folders():
        record = json.loads((folder / "run.json").read_text())
        if "fit" not in record:
            continue
        run = _run_of(client, record)
        if run is None or list(_check_run(client, folder, record, run)):
            _log_again(folder, record)
            done.append(f"logged {folder} from its files")
    return done


def _log_again(folder: Path, record: dict[str, Any]) -> None:
    tags = {key: value for key, value in record.items() if not isinstance(value, dict)}
    with tracking.run(
        record["dataset"], folder.name, record["fit"], record["hyperparameters"], tags, sample_seconds=None
    ) as run:
        samples = PREPARED / record["dataset"] / "samples.csv"
        if samples.exists():
            origin = {key: record[key] for key in ("data_source", "data_version")}
            run.log_data(pd.read_csv(samples, dtype=str, keep_default_na=False), record["dataset"], origin)
        tell_mlflow(run, folder)
        run.log_model(lambda: _log_model(folder, record))
    drawn = FIGURES / record["dataset"] / folder.name
    if drawn.is_dir():
        tracking.attach(record["dataset"], record["fit"], sorted(drawn.iterdir()))


def _log_model(folder: Path, record: dict[str, Any]) -> None:
    """Log the saved model as the fit itself did, with an image of the data set as its example."""
    pixels = np.load(PREPARED / record["dataset"] / "images.npy", mmap_mode="r")[:1]
    if record["kind"] == "baseline":
        path = str(folder / "model.skops")
        tree, features = load_tree(path), flatten_pixels(pixels)
        tracking.log_sklearn_model(tree, features, tree.predict_proba(features), TRUSTED_TYPES)
        return
    import keras

    from medtransfer.models.vgg16 import load_network

    model = load_network(folder / "model.keras")
    tracking.log_keras_model(model, np.asarray(pixels), model.predict_on_batch(pixels), keras.backend.backend())
