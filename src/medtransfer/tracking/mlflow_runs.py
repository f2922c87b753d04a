"""Runs in MLflow: logging a fit, and finding its run again.

There is one run per fit and one experiment per data set. The files on disk come first; MLflow may be slow or
unreachable. So everything here can be logged twice without a duplicate, and the tag FIT, which run.json also records,
identifies the run.
"""

import hashlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import mlflow
import pandas as pd
import psutil
import pynvml
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.entities import Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from medtransfer.core.errors import UserError
from medtransfer.core.files import sha256_of
from medtransfer.core.layout import COPIES
from medtransfer.core.tables import read_result
from medtransfer.tracking.mlflow_models import model_problem, models_of
from medtransfer.tracking.mlflow_store import (
    FIT,
    UNREACHABLE,
    connect,
    every,
    every_run,
    is_invalid_value,
    keep_artifacts_here,
    mlflow_command,
    redact,
    set_experiment,
    store_lock,
    warn_unreachable,
)

PROCESS = "medtransfer.process"
NOT_IN_A_CONTAINER = 0xEFFFFFFC  # the namespace of processes in which Linux starts (include/linux/proc_ns.h)
PROJECT = "medtransfer.project"  # a digest of the machine and folder where the run was made
ERROR = "medtransfer.error"
OUTPUTS = "medtransfer.outputs"
# The prefix of the validation scores after the best epoch, whose weights are kept. They have only step 0, so MLflow
# draws them as bars, and its table can be sorted by them. The curves over epochs are in train/ and validation/.
BEST = "validation/best"
POWER_LIMIT = pynvml.nvmlDeviceGetEnforcedPowerLimit
NETWORK_RUN = "medtransfer.network_run"  # in a run of `score`: that of the network
SUPERSEDED = "medtransfer.superseded_by"

Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class RunTarget:
    """Where a fit's run goes: its experiment, its name and, if any, the id of its parent run."""

    experiment: str
    name: str
    parent: str | None = None

    @property
    def tags(self) -> dict[str, str]:
        """The tag that makes the run a child of its parent."""
        return {MLFLOW_PARENT_RUN_ID: self.parent} if self.parent else {}


def _sent(method: Callable[Concatenate["MlflowRun", Arguments], None]) -> Callable[..., None]:
    """Let a method of MlflowRun do nothing once MLflow does not answer."""

    @wraps(method)
    def send(run: "MlflowRun", *arguments: Arguments.args, **options: Arguments.kwargs) -> None:
        if run.client is None or run.run_id is None:
            return
        try:
            keep_artifacts_here()  # a container and its host may take turns
            method(run, *arguments, **options)
        except UNREACHABLE as error:
            run.give_up(error)

    return send


@dataclass
class MlflowRun:
    """The MLflow run of a fit; `client` is None once MLflow does not answer."""

    client: Any = None
    run_id: str | None = None

    def give_up(self, error: BaseException) -> None:
        """Warn that MLflow does not answer, and log nothing more; raise the error if it is a bug of this project."""
        if is_invalid_value(error):
            raise error
        self.client = None
        warn_unreachable(error)

    @_sent
    def log_epochs(self, rows: Sequence[Mapping[Any, float]]) -> None:
        """Log the rows of a history that MLflow does not have yet, with the epoch as the step."""
        known = self.client.get_run(self.run_id).data.metrics
        points = self.client.get_metric_history(self.run_id, LOSS) if LOSS in known else ()
        logged = {point.step for point in points}
        for row in rows:
            values = dict(row)
            epoch = int(values.pop("epoch"))
            if epoch not in logged:  # one call per epoch: its values arrive together or not at all
                named = {curve_name(column): value for column, value in values.items()}
                self.client.log_batch(self.run_id, _points(named, epoch))

    @_sent
    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log metrics of the whole run that MLflow does not have yet."""
        known = self.client.get_run(self.run_id).data.metrics
        missing = {key: value for key, value in metrics.items() if known.get(key) != value}
        self.client.log_batch(self.run_id, _points(missing, 0))

    @_sent
    def log_data(self, table: Path, record: Mapping[str, Any]) -> None:
        """Log samples.csv as the run's input, with the data set, source and version in `record`.

        MLflow's own digest covers only the first 10,000 rows. The digest is that of the file, in the 36 characters
        that MLflow allows.
        """
        if not self.client.get_run(self.run_id).inputs.dataset_inputs:
            source = CodeDatasetSource({key: record.get(key) for key in ("data_source", "data_version")})
            samples = read_result(table, dtype=str, na_values=None)
            dataset = mlflow.data.from_pandas(
                samples, source=source, targets="label", name=record["dataset"], digest=sha256_of(table)[:36]
            )
            mlflow.log_input(dataset, context="training")

    @_sent
    def log_model(self, log_it: Callable[[], None]) -> None:
        """Log the fitted model by calling `log_it`, unless the run has it; then remove a damaged one."""
        run = self.client.get_run(self.run_id)
        if model_problem(self.client, run):
            damaged = models_of(self.client, run)
            log_it()  # first: what cannot be read now, as with a full disk, may be all that there is
            for model in damaged:
                self.client.delete_logged_model(model.model_id)

    @_sent
    def name_network(self, experiment: str, fit: str) -> None:
        """Tag a run of `score` with the run of the network that it scored."""
        self.client.set_tag(self.run_id, NETWORK_RUN, find(self.client, experiment, fit) or "unknown")

    @_sent
    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self.client.log_batch(self.run_id, tags=[RunTag(*item) for item in tags.items()])

    @_sent
    def supersede(self) -> None:
        """Mark this project's other finished runs of the model and seed, except in a sweep or a DVC experiment.

        The mark is the fit's id: unlike the run's, it is the same on a server to which the run is pushed.
        """
        run = self.client.get_run(self.run_id)
        if MLFLOW_PARENT_RUN_ID in run.data.tags or COPIES in str(Path.cwd()):
            return
        if SUPERSEDED in run.data.tags:  # DVC has restored this fit from its cache
            self.client.delete_tag(self.run_id, SUPERSEDED)
        same = " and ".join(f"tags.`{key}` = '{run.data.tags[key]}'" for key in ("model", "seed", PROJECT))
        for other in every_run(self.client, [run.info.experiment_id], f"{same} and attributes.status = 'FINISHED'"):
            if other.info.run_id != self.run_id:
                self.client.set_tag(other.info.run_id, SUPERSEDED, run.data.tags[FIT])

    @_sent
    def close_children(self) -> None:
        """End the RUNNING children of this run as KILLED, once their processes have ended."""
        for run, _ in _running(self.client):
            if run.data.tags.get(MLFLOW_PARENT_RUN_ID) == self.run_id:
                self.client.set_terminated(run.info.run_id, "KILLED")


def curve_name(column: str) -> str:
    """Return MLflow's name of a column of the history: `val_loss` is `validation/loss`, `loss` is `train/loss`."""
    return f"validation/{column[4:]}" if column.startswith("val_") else f"train/{column}"


LOSS = curve_name("loss")


def _points(values: Mapping[Any, float], step: int) -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(key, float(value), now, step) for key, value in values.items()]


@contextmanager
def run(
    experiment: str,
    name: str,
    fit: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    sample_seconds: float | None = 1,
) -> Iterator[MlflowRun]:
    """Log one run; it ends as FINISHED, as KILLED after Ctrl-C, or as FAILED after another exception.

    The tag ERROR then names the exception. If the fit with the id `fit` already has a run, that run continues, without
    this tag. Nested keys of `params` become dotted names. `sample_seconds` is the interval between samples of the
    system metrics; None turns them off.
    """
    active, status = MlflowRun(), "FINISHED"
    labels = {**{key: str(value) for key, value in tags.items()}, FIT: fit, PROCESS: _identify(psutil.Process())}
    labels[PROJECT] = hashlib.sha256(f"{socket.gethostname()} {Path.cwd()}".encode()).hexdigest()[:16]
    try:
        try:
            _start(active, experiment, name, labels, flatten(params), sample_seconds)
        except UNREACHABLE as error:
            active.give_up(error)
        yield active
    except BaseException as error:
        status = "KILLED" if _is_interrupt(error) else "FAILED"
        active.tag({ERROR: redact(f"{type(error).__name__}: {error}")[:1000]})
        raise
    finally:
        _end(active, experiment, fit, status)


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether an exception is Ctrl-C or was caused by it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _start(
    active: MlflowRun,
    experiment: str,
    name: str,
    labels: dict[str, str],
    params: dict[str, str],
    sample_seconds: float | None,
) -> None:
    client = connect()
    with store_lock():
        set_experiment(experiment)
    close_stale(client)
    if sample_seconds is not None:
        mlflow.set_system_metrics_sampling_interval(sample_seconds)
        mlflow.set_system_metrics_samples_before_logging(1)
        pynvml.nvmlDeviceGetEnforcedPowerLimit = _power_limit
    run_id = find(client, experiment, labels[FIT])
    if run_id:
        _check_params(client, run_id, params)
    active.client = client
    started = mlflow.start_run(
        run_id, run_name=None if run_id else name, tags=labels, log_system_metrics=sample_seconds is not None
    )
    active.run_id = started.info.run_id
    if ERROR in started.data.tags:
        client.delete_tag(started.info.run_id, ERROR)
    client.log_batch(started.info.run_id, params=[Param(*item) for item in params.items()])


def _power_limit(gpu: Any) -> int:
    """Return a GPU's power limit; NVMLError if it is 0, by which MLflow's sampling thread would divide."""
    limit: int = POWER_LIMIT(gpu)
    if not limit:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return limit


def _check_params(client: mlflow.MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    for key, found in client.get_run(run_id).data.params.items():
        if values.get(key) != found:
            raise UserError(
                f"MLflow's run {run_id}: {key} is {found}, expected {values.get(key)} as in its fit: someone changed "
                f"it in MLflow; delete the run ({mlflow_command(f'runs delete --run-id {run_id}')}) and run again"
            )


def _end(active: MlflowRun, experiment: str, fit: str, status: str) -> None:
    try:
        if mlflow.active_run():
            mlflow.end_run(status)
        elif active.client and (run_id := find(active.client, experiment, fit)):
            active.client.set_terminated(run_id, status)  # Ctrl-C came while MLflow was starting it
    except UNREACHABLE as error:
        if active.client is not None:
            warn_unreachable(error)


def find(client: mlflow.MlflowClient, experiment: str, fit: str) -> str | None:
    """Return the id of a fit's run in this experiment, or None."""
    known = client.get_experiment_by_name(experiment)
    found = client.search_runs([known.experiment_id], f"tags.`{FIT}` = '{fit}'", max_results=1) if known else []
    return found[0].info.run_id if found else None


def renamed_experiment(client: mlflow.MlflowClient, name: str, tag: str, value: str) -> str:
    """Return where the run with a tag is if its experiment was renamed, and how to undo that; empty without a run."""
    names = {entry.experiment_id: entry.name for entry in every(client.search_experiments)}
    for run in every_run(client, list(names), f"tags.`{tag}` = '{value}'"):
        found = run.info.experiment_id
        back = mlflow_command(f"experiments rename --experiment-id {found} --new-name {name}")
        return f"MLflow's run {run.info.run_id} is in the experiment {names[found]}; rename that to {name}: {back}"
    return ""


def _identify(process: psutil.Process) -> str:
    """Return a process's machine, number and start in seconds after boot: its time of day changes with the clock."""
    return f"{machine()} {process.pid} {process.create_time() - psutil.boot_time():.2f}"


def machine() -> str:
    """Return this machine's name; in a container, with its namespace, where a number means another process."""
    namespace = Path("/proc/self/ns/pid")
    inside = namespace.exists() and namespace.stat().st_ino != NOT_IN_A_CONTAINER
    return f"{socket.gethostname()}-{namespace.stat().st_ino}" if inside else socket.gethostname()


def _is_gone(run: Any) -> bool:
    """Return whether the process of a run on this machine has ended."""
    tag = run.data.tags[PROCESS]
    try:
        return _identify(psutil.Process(int(tag.split()[1]))) != tag
    except psutil.NoSuchProcess:
        return True


def _running(client: mlflow.MlflowClient) -> list[tuple[Any, str]]:
    """Return the RUNNING runs that medtransfer started, each with the machine of its process."""
    experiments = [entry.experiment_id for entry in every(client.search_experiments)]
    runs = every_run(client, experiments, f"attributes.status = 'RUNNING' and tags.`{PROCESS}` != ''")
    return [(run, run.data.tags[PROCESS].partition(" ")[0]) for run in runs]


def stale_runs(client: mlflow.MlflowClient) -> list[Any]:
    """Return the runs that are RUNNING in MLflow although their process on this machine has ended."""
    return [run for run, host in _running(client) if host == machine() and _is_gone(run)]


def runs_elsewhere(client: mlflow.MlflowClient) -> list[tuple[Any, str]]:
    """Return the runs that are RUNNING on other machines, with the machine's name."""
    return [(run, host) for run, host in _running(client) if host != machine()]


def close_stale(client: mlflow.MlflowClient, host: str | None = None) -> list[Any]:
    """End stale runs, and all that are RUNNING on another machine `host`, as KILLED; return them."""
    stale = stale_runs(client)
    if host:
        stale += [run for run, where in runs_elsewhere(client) if where == host]
    for run in stale:
        client.set_terminated(run.info.run_id, "KILLED")
    return stale


def fits_of(client: mlflow.MlflowClient, status: str | None = None) -> dict[str, list[Any]]:
    """Return the runs of fits by experiment, optionally only those with one status."""
    names = {entry.experiment_id: entry.name for entry in every(client.search_experiments)}
    condition = f"tags.`{FIT}` != ''" + (f" and attributes.status = '{status}'" if status else "")
    found: dict[str, list[Any]] = {}
    for run in every_run(client, list(names), condition):
        found.setdefault(names[run.info.experiment_id], []).append(run)
    return found


def flatten(values: Mapping[str, Any]) -> dict[str, str]:
    """Return nested values as one mapping from dotted names to strings, as MLflow stores them."""
    return {str(key): str(value) for key, value in pd.json_normalize(dict(values)).to_dict("records")[0].items()}


def attach(experiment: str, fit: str, files: list[Path]) -> bool:
    """Add files to the run of a finished fit; return False if MLflow does not know it or does not answer.

    They are not in a folder, because MLflow shows only top-level files side by side when it compares runs.
    """
    try:
        client = connect()
        run_id = find(client, experiment, fit)
        if run_id is None:
            return False
        for file in files:
            client.log_artifact(run_id, str(file))
    except UNREACHABLE as error:
        warn_unreachable(error)
        return False
    return True
