"""track push: copy the runs of the project's own MLflow store to the server in MLFLOW_TRACKING_URI.

MLflow has no such command; this uses only its client.
"""

import errno
import logging
import tempfile
from filecmp import cmp
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from ruamel.yaml import YAML

from medtransfer.core.errors import UserError, counted
from medtransfer.core.files import hold
from medtransfer.data.progress import progress
from medtransfer.tracking.mlflow_runs import NETWORK_RUN, SUPERSEDED, renamed_experiment
from medtransfer.tracking.mlflow_store import (
    FIT,
    OWN_STORE,
    UNREACHABLE,
    address,
    address_of,
    every,
    every_run,
    ignoring_existing,
    keep_artifacts_here,
    living_experiment,
    reach,
    read_only_of,
    reason,
)

log = logging.getLogger(__name__)

ORIGIN = "medtransfer.pushed_from"
UNFINISHED = "medtransfer.push_unfinished"


def push() -> dict[str, int]:
    """Copy every ended run with its params, tags, metrics, data, files, models, times and status.

    A run that is already on the server, pushed before or logged by `audit --repair`, only gets what was added after its
    end: figures, and the mark of a later fit. One that was continued since it was pushed is copied again. A child run,
    such as a sweep's fit, becomes a child of its parent's copy. An interrupted push resumes: only the run in which it
    stopped is copied again.

    Return the number of runs that were `copied`, that were there `already`, and that were skipped because they or their
    parents are still `running`.
    """
    if not OWN_STORE.exists():
        raise UserError(f"{OWN_STORE}: not found; there is nothing to push")
    target = reach()
    store = OWN_STORE.absolute()
    own = address_of(store)
    if mlflow.get_tracking_uri() == own:
        raise UserError("MLFLOW_TRACKING_URI: names this project's own store; set it to the server's address")
    if fixed := read_only_of(OWN_STORE):
        raise UserError(f"{fixed}: read-only, but push must write there; fix the permissions")
    keep_artifacts_here(store)
    source = mlflow.MlflowClient(tracking_uri=own)
    counts = {"copied": 0, "already": 0, "running": 0}
    ids: dict[str, str | None] = {}
    try:
        # A second push would treat this one's run as interrupted.
        with hold(OWN_STORE.with_name("push.lock"), "another process is pushing the runs"):
            # Networks come before the scores that name them.
            for experiment in every(source.search_experiments, order_by=["creation_time ASC"]):
                runs = list(every_run(source, [experiment.experiment_id]))
                runs.sort(key=lambda run: MLFLOW_PARENT_RUN_ID in run.data.tags)  # parents first
                log.info("pushing %s of %s to %s", counted(len(runs), "run"), experiment.name, address())
                for run in progress(runs, f"pushing {experiment.name}"):
                    outcome, ids[run.info.run_id] = _push_run(source, target, experiment.name, run, ids)
                    counts[outcome] += 1
    except UNREACHABLE as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"MLflow at {address()}: keeps files in {error.filename}, which this machine cannot write "
                f"({error.strerror}); start that server with --serve-artifacts, then push again"
            ) from None
        raise UserError(
            f"MLflow at {address()} stopped answering after {counts['copied']} runs ({reason(error)}); "
            "push again to copy the rest"
        ) from None
    return counts


def _push_run(
    source: mlflow.MlflowClient, target: mlflow.MlflowClient, experiment: str, run: Run, ids: dict[str, str | None]
) -> tuple[str, str | None]:
    """Copy a run; return the outcome and its id on the server. `ids` has those of the runs before it."""
    parent = run.data.tags.get(MLFLOW_PARENT_RUN_ID, "")
    waits = parent in ids and ids[parent] is None
    if waits or run.info.status not in ("FINISHED", "FAILED", "KILLED"):
        return "running", None
    experiment_id = _experiment(target, experiment, run)
    twins = _twins(target, experiment_id, run)
    if any(ORIGIN not in twin.data.tags and twin.info.status == "RUNNING" for twin in twins):
        return "running", None  # the fit itself is logging there
    complete = [twin for twin in twins if _is_complete(twin, run)]
    for twin in twins:
        if twin not in complete:
            target.delete_run(twin.info.run_id)
    if not complete:
        return "copied", _copy_run(source, target, experiment_id, run, ids)
    mark = run.data.tags.get(SUPERSEDED)
    if mark and complete[0].data.tags.get(SUPERSEDED) != mark:
        target.set_tag(complete[0].info.run_id, SUPERSEDED, mark)
    _copy_files(source, target, run.info.run_id, complete[0].info.run_id)
    return "already", complete[0].info.run_id


def _experiment(target: mlflow.MlflowClient, name: str, run: Run) -> str:
    """Return the id of an experiment on the server, which is made if it is missing."""
    if not living_experiment(target, name):
        if renamed := renamed_experiment(target, name, ORIGIN, run.info.run_id):
            raise UserError(renamed)
        with ignoring_existing():  # of another project's push
            target.create_experiment(name)
    return str(living_experiment(target, name).experiment_id)


def _is_complete(other: Run, run: Run) -> bool:
    """Return whether a run on the server has all that this one had when it ended."""
    if UNFINISHED in other.data.tags:
        return False
    if ORIGIN not in other.data.tags:  # the fit logged there itself, until it was stopped or the server failed
        return bool(other.info.status == run.info.status)
    return other.data.tags[ORIGIN] != run.info.run_id or other.info.end_time == run.info.end_time


def _copy_run(
    source: mlflow.MlflowClient, target: mlflow.MlflowClient, experiment_id: str, run: Run, ids: dict[str, str | None]
) -> str:
    """Copy a run that the server lacks; return its id there."""
    tags = {**run.data.tags, ORIGIN: run.info.run_id}
    for tag in {MLFLOW_PARENT_RUN_ID, NETWORK_RUN} & tags.keys():
        named = tags.pop(tag)
        if ids.get(named):
            tags[tag] = ids[named]
    made = target.create_run(experiment_id, run.info.start_time, {**tags, UNFINISHED: "yes"}, run.info.run_name)
    run_id = str(made.info.run_id)
    params = [Param(*item) for item in run.data.params.items()]
    points = [point for key in run.data.metrics for point in source.get_metric_history(run.info.run_id, key)]
    # Left out: the ids of models, which the server does not know.
    metrics = [Metric(point.key, point.value, point.timestamp, point.step) for point in points]
    target.log_batch(run_id, metrics, params)
    if run.inputs and run.inputs.dataset_inputs:
        target.log_inputs(run_id, run.inputs.dataset_inputs)
    _copy_files(source, target, run.info.run_id, run_id)
    for model in source.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"):
        _push_model(target, model, run_id, experiment_id)
    target.set_terminated(run_id, run.info.status, run.info.end_time)
    target.delete_tag(run_id, UNFINISHED)
    return run_id


def _copy_files(source: mlflow.MlflowClient, target: mlflow.MlflowClient, run_id: str, copy_id: str) -> None:
    """Copy a run's files and folders that its copy lacks, and files that differ there."""
    there = {(entry.path, entry.file_size) for entry in target.list_artifacts(copy_id)}
    with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as theirs:
        for entry in source.list_artifacts(run_id):
            known = (entry.path, entry.file_size) in there
            if known and entry.is_dir:
                continue
            path = source.download_artifacts(run_id, entry.path, ours)
            if not known or not cmp(path, target.download_artifacts(copy_id, entry.path, theirs), shallow=False):
                target.log_artifact(copy_id, path)


def _twins(target: mlflow.MlflowClient, experiment_id: str, run: Run) -> list[Run]:
    """Return the server's runs that were pushed from this one or belong to the same fit."""
    found = list(target.search_runs([experiment_id], f"tags.`{ORIGIN}` = '{run.info.run_id}'"))
    if FIT in run.data.tags:
        found += target.search_runs([experiment_id], f"tags.`{FIT}` = '{run.data.tags[FIT]}'")
    return found


def _push_model(target: mlflow.MlflowClient, model: Any, run_id: str, experiment_id: str) -> None:
    made = target.create_logged_model(
        experiment_id, model.name, run_id, dict(model.tags), dict(model.params), model.model_type
    )
    yaml = YAML()
    with tempfile.TemporaryDirectory() as folder:
        mlflow.artifacts.download_artifacts(artifact_uri=model.artifact_location, dst_path=folder)
        for path in Path(folder).rglob("MLmodel"):
            yaml.dump({**yaml.load(path), "run_id": run_id, "model_id": made.model_id}, path)
            target.log_model_artifacts(made.model_id, str(path.parent))
    target.finalize_logged_model(made.model_id, model.status)
