"""Log what MLflow lacks from the outputs of finished fits."""

from pathlib import Path
from typing import Any

import numpy as np

from medtransfer.audit.audit import TO_LOCK, check_run, drawn_of, locked, run_of
from medtransfer.core.dvc import check_unchanged
from medtransfer.core.errors import UserError, quoted
from medtransfer.core.files import hold
from medtransfer.core.layout import PREPARED, RUNS
from medtransfer.core.prepared import data_of
from medtransfer.core.run_record import find_fits, read_record
from medtransfer.pipeline.outputs import log_to_mlflow, mlflow_params
from medtransfer.tracking import mlflow_models, mlflow_runs, mlflow_store

REPAIRING = RUNS.with_name("repair.lock")


@mlflow_store.answering()
def repair(host: str | None = None, read_models: bool = True) -> list[str]:
    """End stale runs and log what MLflow lacks from the outputs; return one line per action.

    Only MLflow is changed. A fit whose outputs are damaged is skipped with a line: `dvc repro` fixes it. The runs that
    are RUNNING on another machine `host`, on which nothing runs any more, are ended too. `read_models` downloads the
    logged models and logs damaged ones again; otherwise, only their existence is checked.
    """
    client = mlflow_store.reach()
    with hold(REPAIRING, "another process is repairing the runs"):  # two at once would each log a fit
        ended = mlflow_runs.close_stale(client, host)
        done = [f"ended {run.info.run_id} ({run.info.run_name}) as KILLED" for run in ended]
        if host and not ended:
            done.append(f"no run was RUNNING on {host}")
        lock = locked()
        for folder in find_fits(RUNS):
            try:
                if _repair_fit(client, folder, lock, read_models):
                    done.append(f"logged {folder} from its files")
            except UserError as error:
                done.append(f"{folder}: not logged: {error}")
    return done


def _repair_fit(client: Any, folder: Path, lock: dict[str, dict[str, Any]], read_models: bool) -> bool:
    """Log a fit from its files, which must match dvc.lock; return False if MLflow already has all of it."""
    if str(folder) not in lock:
        raise UserError(f"not in dvc.lock, so its files cannot be checked; {TO_LOCK.format(quoted(folder))}")
    check_unchanged(folder)
    record = read_record(folder)
    run = run_of(client, record)
    if run is not None and not list(check_run(client, folder, record, run, read_models)):
        return False
    if run is None:
        where = mlflow_runs.renamed_experiment(client, record["dataset"], mlflow_store.FIT, record["fit"])
        if where:
            raise UserError(where)
    data_of(folder)
    _log_again(folder, record)
    run = run_of(client, record)
    if run is None:
        raise UserError(f"MLflow at {mlflow_store.address()} stopped answering; repair again")
    for line in check_run(client, folder, record, run, read_models):
        raise UserError(
            f"{line}; repair again; if that does not help, delete the run first "
            f"({mlflow_store.mlflow_command(f'runs delete --run-id {run.info.run_id}')})"
        )
    return True


def _log_again(folder: Path, record: dict[str, Any]) -> None:
    tags = {key: value for key, value in record.items() if not isinstance(value, dict)}
    params = mlflow_params(record, record["hyperparameters"])
    with mlflow_runs.run(record["dataset"], folder.name, record["fit"], params, tags, sample_seconds=None) as run:
        run.log_data(PREPARED / record["dataset"] / "samples.csv", record)
        log_to_mlflow(run, folder)
        run.log_model(lambda: _log_model(folder, record))
    if drawn := drawn_of(folder):
        mlflow_runs.attach(record["dataset"], record["fit"], drawn)


def _log_model(folder: Path, record: dict[str, Any]) -> None:
    """Log the saved model, whose digest was checked, with an image as its example, as the fit did."""
    from medtransfer.trees.classifiers import TRUSTED_TYPES, flatten_pixels, load_tree

    pixels = np.load(PREPARED / record["dataset"] / "images.npy", mmap_mode="r")[:1]
    if record["kind"] == "baseline":
        tree = load_tree(str(folder / "model.skops"))
        mlflow_models.log_sklearn_model(tree, flatten_pixels(pixels), TRUSTED_TYPES)
        return
    from medtransfer.models.vgg16 import load_network

    mlflow_models.log_keras_model(load_network(folder / "model.keras"), np.asarray(pixels))
