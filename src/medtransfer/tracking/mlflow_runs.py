"""Runs in MLflow: what a fit tells its run, and how the run is found again.

A run is one fit, in one experiment per data set. What a fit leaves on disk comes first; MLflow is told of it and may be
slow or away. So everything here can be said twice and arrives once, and a run is found by the tag FIT, which the fit's
own run.json holds too.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psutil
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.entities import Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from medtransfer.core.errors import UserError
from medtransfer.tracking.mlflow_models import model_problem, models_of
from medtransfer.tracking.mlflow_store import (
    AWAY,
    FIT,
    connect,
    every_run,
    is_ours,
    one_at_a_time,
    redact,
    say_away,
    set_experiment,
)

PROCESS = "medtransfer.process"
ERROR = "medtransfer.error"
OUTPUTS = "medtransfer.outputs"


@dataclass(frozen=True)
class RunTarget:
    """Where a fit's run goes: its experiment, its name, and the id of the run above it, if there is one."""

    experiment: str
    name: str
    parent: str | None = None

    @property
    def tags(self) -> dict[str, str]:
        """The tag by which MLflow shows a run under another."""
        return {MLFLOW_PARENT_RUN_ID: self.parent} if self.parent else {}


@dataclass
class Run:
    """The MLflow run of a fit, and whether MLflow still answers."""

    client: mlflow.MlflowClient | None
    run_id: str | None = None

    def send(self, action: Callable[[mlflow.MlflowClient, str], Any]) -> None:
        """Tell MLflow something; where it does not answer, say so once and go on without it."""
        if self.client is None or self.run_id is None:
            return
        try:
            action(self.client, self.run_id)
        except AWAY as error:
            if is_ours(error):
                raise
            self.client = None
            say_away(error)

    def log_epochs(self, rows: Sequence[Mapping[Any, float]]) -> None:
        """Log the rows of a history that MLflow does not have yet, with the epoch as the step."""
        self.send(lambda client, run_id: _send_epochs(client, run_id, rows))

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log metrics of the whole run that MLflow does not have yet; blanks in names become underscores."""
        self.send(lambda client, run_id: _send_metrics(client, run_id, metrics))

    def log_data(self, samples: pd.DataFrame, name: str, origin: Mapping[str, str]) -> None:
        """Log as the run's input a digest of the samples (one row per image), their number, columns and origin."""
        self.send(lambda client, run_id: _send_data(client, run_id, samples, name, origin))

    def log_model(self, log_it: Callable[[], None]) -> None:
        """Log the fitted model by calling `log_it`, unless the run has it."""
        self.send(lambda client, run_id: _send_model(client, run_id, log_it))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self.send(lambda client, run_id: client.log_batch(run_id, tags=[RunTag(*item) for item in tags.items()]))


@contextmanager
def run(
    experiment: str,
    name: str,
    fit: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    sample_seconds: float | None = 1,
) -> Iterator[Run]:
    """Log one run; it ends as FINISHED, as KILLED after Ctrl-C, or as FAILED after any other exception.

    The tag ERROR then says what happened.

    Parameters
    ----------
    fit : str
        The id of the fit; a run that it left unfinished is taken up again, without its tag ERROR.
    params : mapping
        The hyperparameters; nested mappings become dotted names.
    sample_seconds : float
        Between two samples of the system metrics; None for no samples.
    """
    active, status = Run(None), "FAILED"
    try:
        _start(active, experiment, name, fit, params, tags, sample_seconds)
        yield active
        status = "FINISHED"
    except BaseException as error:
        status = "KILLED" if _is_interrupt(error) else "FAILED"
        active.tag({ERROR: redact(f"{type(error).__name__}: {error}")[:1000]})
        raise
    finally:
        _end(active, experiment, fit, status)


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether an exception is Ctrl-C or came of it: what C code called may have made another of it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _start(
    active: Run,
    experiment: str,
    name: str,
    fit: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    sample_seconds: float | None,
) -> None:
    try:
        client = connect()
        with one_at_a_time(mlflow.get_tracking_uri()):
            set_experiment(experiment)
        close_stale(client)
        if sample_seconds is not None:
            mlflow.set_system_metrics_sampling_interval(sample_seconds)
            mlflow.set_system_metrics_samples_before_logging(1)
        said = {**{key: str(value) for key, value in tags.items()}, FIT: fit, PROCESS: _this_process()}
        values = {key: str(value) for key, value in flatten(params).items()}
        run_id = find(client, experiment, fit)
        if run_id:
            _check_params(client, run_id, values)
        active.client = client
        mlflow.start_run(
            run_id=run_id,
            run_name=None if run_id else name,
            log_system_metrics=sample_seconds is not None,
            tags=None if run_id else said,
        )
        active.run_id = mlflow.active_run().info.run_id
        if run_id:
            active.send(_forget_error)
            active.tag(said)
        logged = [Param(*item) for item in values.items()]
        active.send(lambda client, run_id: client.log_batch(run_id, params=logged))
    except AWAY as error:
        if is_ours(error):
            raise
        say_away(error)
        active.client = None


def _forget_error(client: mlflow.MlflowClient, run_id: str) -> None:
    if ERROR in client.get_run(run_id).data.tags:  # MLflow refuses to delete a tag that a run has not
        client.delete_tag(run_id, ERROR)


def _check_params(client: mlflow.MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    for key, found in client.get_run(run_id).data.params.items():
        if values.get(key) != found:
            raise UserError(
                f"MLflow's run {run_id}: {key} is {found}, but the fit that it belongs to has {values.get(key)}: "
                "it was changed there; delete the run (mlflow runs delete --run-id ...) and run again"
            )


def _end(active: Run, experiment: str, fit: str, status: str) -> None:
    try:
        if mlflow.active_run():
            mlflow.end_run(status)
        elif active.client and (run_id := find(active.client, experiment, fit)):
            active.client.set_terminated(run_id, status)  # Ctrl-C came while MLflow was starting it
    except AWAY as error:
        if active.client is not None:
            say_away(error)


def find(client: mlflow.MlflowClient, experiment: str, fit: str) -> str | None:
    """Return the id of the run of a fit in the experiment of this name."""
    known = client.get_experiment_by_name(experiment)
    found = client.search_runs([known.experiment_id], f"tags.`{FIT}` = '{fit}'", max_results=1) if known else []
    return found[0].info.run_id if found else None


def _this_process() -> str:
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def _host_of(run: Any) -> str:
    """Return the machine of a run's process; empty where the run is none of ours."""
    host, *numbers = run.data.tags.get(PROCESS, "").split(" ")
    return host if len(numbers) == 2 and all(number.isdecimal() for number in numbers) else ""


def _is_gone(run: Any) -> bool:
    """Return whether the process of a run of this machine has ended."""
    pid, created = run.data.tags[PROCESS].split()[1:]
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" != created
    except psutil.NoSuchProcess:
        return True


def _running(client: mlflow.MlflowClient) -> Iterator[Any]:
    experiments = [entry.experiment_id for entry in client.search_experiments()]
    return every_run(client, experiments, "attributes.status = 'RUNNING'")


def stale_runs(client: mlflow.MlflowClient) -> list[Any]:
    """Return the runs that MLflow calls RUNNING though their process on this machine is gone."""
    return [run for run in _running(client) if _host_of(run) == socket.gethostname() and _is_gone(run)]


def runs_elsewhere(client: mlflow.MlflowClient) -> list[tuple[Any, str]]:
    """Return the runs that MLflow calls RUNNING on another machine, which cannot be asked, and its name."""
    return [(run, host) for run in _running(client) if (host := _host_of(run)) not in ("", socket.gethostname())]


def close_stale(client: mlflow.MlflowClient, host: str | None = None) -> list[Any]:
    """End stale runs, and all that are RUNNING on another machine `host`, as KILLED and return them."""
    stale = stale_runs(client)
    if host:
        stale += [run for run, where in runs_elsewhere(client) if where == host]
    for run in stale:
        client.set_terminated(run.info.run_id, "KILLED")
    return stale


def close_children(client: mlflow.MlflowClient, parent: str) -> None:
    """End what is RUNNING under a run as KILLED; for after its processes were ended, here or on other machines."""
    children = [run for run in _running(client) if run.data.tags.get(MLFLOW_PARENT_RUN_ID) == parent]
    for run in children:
        client.set_terminated(run.info.run_id, "KILLED")


def fits_of(client: mlflow.MlflowClient, status: str | None = None) -> dict[str, list[Any]]:
    """Return the runs of fits, of all or of one status, by the name of their experiment."""
    asked = f"attributes.status = '{status}'" if status else ""
    return {
        entry.name: [run for run in every_run(client, [entry.experiment_id], asked) if FIT in run.data.tags]
        for entry in client.search_experiments()
    }


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into one with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _send_epochs(client: mlflow.MlflowClient, run_id: str, rows: Sequence[Mapping[Any, float]]) -> None:
    known = client.get_run(run_id).data.metrics
    logged = {point.step for point in client.get_metric_history(run_id, "loss")} if "loss" in known else set()
    now = int(time.time() * 1000)
    missing = [row for row in rows if row["epoch"] not in logged]
    # An epoch's values arrive together or not at all.
    for row in missing:
        points = [Metric(key, float(value), now, int(row["epoch"])) for key, value in row.items() if key != "epoch"]
        client.log_batch(run_id, metrics=points)


def _send_metrics(client: mlflow.MlflowClient, run_id: str, metrics: Mapping[str, float]) -> None:
    known = client.get_run(run_id).data.metrics
    now = int(time.time() * 1000)
    named = {key.replace(" ", "_"): float(value) for key, value in metrics.items()}
    client.log_batch(
        run_id, metrics=[Metric(key, value, now, 0) for key, value in named.items() if known.get(key) != value]
    )


def _send_data(
    client: mlflow.MlflowClient, run_id: str, samples: pd.DataFrame, name: str, origin: Mapping[str, str]
) -> None:
    if client.get_run(run_id).inputs.dataset_inputs:
        return
    source = CodeDatasetSource(dict(origin))
    dataset = mlflow.data.from_pandas(samples, source=source, targets="label", name=name)
    mlflow.log_input(dataset, context="training")


def _send_model(client: mlflow.MlflowClient, run_id: str, log_it: Callable[[], None]) -> None:
    run = client.get_run(run_id)
    if not model_problem(client, run):
        return
    for model in models_of(client, run):
        client.delete_logged_model(model.model_id)
    log_it()


def attach(experiment: str, fit: str, files: list[Path]) -> bool:
    """Add files to the run of a finished fit; return False where MLflow does not know it or does not answer.

    They lie in no folder: MLflow's page of compared runs shows those side by side and no others.
    """
    try:
        client = connect()
        run_id = find(client, experiment, fit)
        if run_id is None:
            return False
        for file in files:
            client.log_artifact(run_id, str(file))
    except AWAY as error:
        say_away(error)
        return False
    return True
