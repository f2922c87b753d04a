"""Check that DVC's outputs, MLflow's runs, the parameters and the data agree for every fit."""

import json
import math
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from medtransfer.core.dvc import check_unchanged, check_writable, data_version, only_not_stored, read_lock, same_data
from medtransfer.core.errors import UserError, counted, first_three, quoted, shortened
from medtransfer.core.files import digest_of_folder, sha256_of
from medtransfer.core.layout import ACTIVATIONS, DATA, FIGURES, PREPARED, RUNS
from medtransfer.core.params import Configuration
from medtransfer.core.provenance import commit_problem
from medtransfer.core.recipe import AUTO, TrainParams
from medtransfer.core.run_record import find_fits, read_record, recipe_of
from medtransfer.pipeline.outputs import mlflow_params, mlflow_scores
from medtransfer.tracking import mlflow_models, mlflow_runs, mlflow_store

# The tags of every fit's run.
REQUIRED_TAGS = ("dataset", "model", "seed", "data_version", "git_commit")

TO_LOCK = "run `dvc repro` if params.yaml lists this fit, or remove it: rm -r {}"


def is_there_anything() -> bool:
    """Return whether a stage ran here or this project has an MLflow store, without creating one."""
    return bool(find_fits(RUNS) or read_lock()) or mlflow_store.is_there()


@mlflow_store.answering()
def audit() -> list[str]:
    """Return one line per difference; an empty list if everything agrees."""
    check_writable()
    client = mlflow_store.reach(read_only=True)
    lock = locked()
    return [
        *_check_dvc(),
        *_check_data(),
        *(line for folder in find_fits(RUNS) for line in _check_fit(client, folder, lock)),
        *_check_running(client),
        *_check_twins(client),
        *_check_registered(client),
    ]


@mlflow_store.answering()
def others() -> list[str]:
    """Return one line per experiment with finished runs whose fits are not in this folder.

    These are not differences: a fit that ran again leaves its earlier run behind, and a server also has the runs of
    other projects.
    """
    client = mlflow_store.reach(read_only=True)
    here, lines = _folders_by_fit(), []
    for name, runs in mlflow_runs.fits_of(client, "FINISHED").items():
        known = [run for run in runs if mlflow_runs.SUPERSEDED not in run.data.tags]
        # The id of a run of `score` is that of the network's fit and a digest of the images.
        ids = [run.info.run_id for run in known if run.data.tags[mlflow_store.FIT].partition(" ")[0] not in here]
        if ids:
            lines.append(
                f"MLflow's experiment {name} has {counted(len(ids), 'finished run')} of fits that are not here (from "
                f"earlier fits, a sweep, a search or another project): {first_three(ids)}"
            )
    return lines


def _check_dvc() -> Iterator[str]:
    # Only the study: results/ has its own pipeline, and the data are read in full (_check_data).
    command = [sys.executable, "-m", "dvc", "status", "--json", "dvc.yaml"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        yield f"dvc status: {shortened(result.stderr)}"
        return
    ran = read_lock()
    for stage, changes in json.loads(result.stdout or "{}").items():
        remedy = f"dvc commit {stage}" if only_not_stored(changes) else "dvc repro"
        yield f"dvc: {stage}: {in_words(changes) if stage in ran else 'never ran here'}; run `{remedy}`"


def _check_data() -> Iterator[str]:
    """Hash the data: DVC compares only the recorded time and size of a file."""
    for folder in (DATA, *sorted(PREPARED.glob("*/")), *sorted(ACTIVATIONS.glob("*/"))):
        try:
            check_unchanged(folder)
        except UserError as error:
            yield str(error)


def in_words(changes: list[Any]) -> str:
    """Summarise a stage's entry of `dvc status --json`: files and parameters grouped by state."""
    parts = []
    for change in changes:
        if isinstance(change, str):
            parts.append(change)
            continue
        for kind, states in change.items():
            by_state = defaultdict(list)
            for name, state in mlflow_runs.flatten(states).items():
                by_state[state].append(name)
            parts += [f"{kind}: {state} {first_three(names)}" for state, names in by_state.items()]
    return "; ".join(parts)


def locked() -> dict[str, dict[str, Any]]:
    """Return the parameters in dvc.lock by output folder."""
    return {
        out["path"]: stage.get("params", {}).get("params.yaml", {})
        for stage in read_lock().values()
        for out in stage["outs"]
    }


def _folders_by_fit() -> dict[str, Path]:
    """Return the folder of each fit with a readable run.json, by the id of the fit."""
    found = {}
    for folder in find_fits(RUNS):
        with suppress(UserError, KeyError, TypeError):
            found[read_record(folder)["fit"]] = folder
    return found


def _differences(where: str, found: Mapping[str, Any], source: str, expected: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each key whose value is not the one expected by the file `source`."""
    for key, value in expected.items():
        if found.get(key) != value:
            yield f"{where} {key} is {found.get(key)}, {source} has {value}"


def _check_fit(client: Any, folder: Path, lock: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Compare a fit with dvc.lock and, if its files are undamaged, with everything else."""
    try:
        check_unchanged(folder)
    except UserError as error:
        yield str(error)
        return
    record = read_record(folder)
    if str(folder) in lock:
        yield from _check_locked(folder, record, lock[str(folder)])
    else:
        yield f"{folder}: not in dvc.lock; {TO_LOCK.format(quoted(folder))}"
    if not same_data(record["dataset"], record["data_version"], data_version()):
        yield from _differences(f"{folder}:", record, "data.dvc", {"data_version": data_version()})
    commit = record["git_commit"].removesuffix("-modified")
    if problem := commit_problem(commit):
        yield f"{folder}: made by git commit {commit}: {problem}"
    run = run_of(client, record)
    if run is None:
        where = mlflow_runs.renamed_experiment(client, record["dataset"], mlflow_store.FIT, record["fit"])
        yield f"{folder}: " + (where or f"MLflow has no run of this fit ({record['fit']})")
    else:
        yield from check_run(client, folder, record, run)


def _check_locked(folder: Path, record: dict[str, Any], locked: dict[str, Any]) -> Iterator[str]:
    """Compare the parameters in dvc.lock with those that the fit recorded."""
    recorded, model = record["hyperparameters"], record["model"]
    if record["kind"] == "baseline":
        yield from _differences(f"{folder}:", recorded[model], "dvc.lock", locked[f"trees.{model}"])
        return
    configuration = Configuration.model_validate(locked[f"configurations.{model}"])
    used = Configuration.model_validate(recorded["configuration"])
    initial = {key: getattr(used, key) for key in ("weights", "blocks")}
    yield from _differences(f"{folder}:", initial, "dvc.lock", {key: getattr(configuration, key) for key in initial})
    train = TrainParams.model_validate(locked["train"])
    recipe = recipe_of(record).model_dump()
    expected = configuration.settings(train, record["dataset"]).model_dump()
    if locked["train"]["precision"] == AUTO:
        expected["precision"] = recipe["precision"]
    yield from _differences(f"{folder}:", recipe, "dvc.lock", expected)


def run_of(client: Any, record: dict[str, Any]) -> Any:
    """Return MLflow's run of a fit, or None."""
    run_id = mlflow_runs.find(client, record["dataset"], record["fit"])
    return client.get_run(run_id) if run_id else None


def check_run(client: Any, folder: Path, record: dict[str, Any], run: Any, read_models: bool = True) -> Iterator[str]:
    """Yield a line for each difference between a run and its fit's files; `read_models` as for `repair`."""
    name, data = f"{folder}: MLflow's run {run.info.run_id}", run.data
    if run.info.status != "FINISHED":
        yield f"{name} is {run.info.status}, but the fit is finished"
    if mlflow_runs.SUPERSEDED in data.tags:
        yield f"{name} has the tag {mlflow_runs.SUPERSEDED}, but its fit is the one here"
    if data.tags.get(mlflow_runs.OUTPUTS) != digest_of_folder(folder):
        yield f"{name} was logged from other files than those in the folder"
    # Some keys of run.json are known only at the end of a fit, and are not tags.
    tags = [key for key in record if key != "hyperparameters" and (key in data.tags or key in REQUIRED_TAGS)]
    yield from _differences(f"{name}: tag", data.tags, "run.json", {key: str(record[key]) for key in tags})
    params = dict.fromkeys(data.params) | mlflow_params(record, record["hyperparameters"])
    yield from _differences(f"{name}:", data.params, "run.json", params)
    yield from _differences(f"{name}:", data.metrics, "the folder", mlflow_scores(folder))
    if record["kind"] == "network":
        yield from _check_history(client, folder, name, run.info.run_id)
    if problem := mlflow_models.model_problem(client, run, read_models):
        yield f"{name} {problem}"
    drawn = drawn_of(folder)
    stored = {entry.path for entry in client.list_artifacts(run.info.run_id)} if drawn else set()
    if missing := [path.name for path in drawn if path.name not in stored or _differs(client, run, path)]:
        yield f"{name} lacks the current version of {', '.join(missing)} from {drawn[0].parent}"


def _check_history(client: Any, folder: Path, name: str, run_id: str) -> Iterator[str]:
    history = pd.read_csv(folder / "history.csv", float_precision="round_trip").set_index("epoch")
    for column, values in history.items():
        logged_points = client.get_metric_history(run_id, mlflow_runs.curve_name(str(column)))
        points = sorted((point.step, point.value) for point in logged_points)
        steps = [step for step, _ in points]
        if steps != list(values.index):
            yield f"{name} has {column} for the epochs {steps}, history.csv has {list(values.index)}"
            continue
        for step, logged in points:
            # A value that a repair logged from the file may have lost its last digit.
            if not math.isclose(logged, values[step], rel_tol=1e-12):
                yield f"{name}: {column} of epoch {step} is {logged}, history.csv has {values[step]}"


def _differs(client: Any, run: Any, file: Path) -> bool:
    with tempfile.TemporaryDirectory() as temporary:
        return Path(client.download_artifacts(run.info.run_id, file.name, temporary)).read_bytes() != file.read_bytes()


def drawn_of(folder: Path) -> list[Path]:
    """Return the figures and the report that `evaluate` wrote for a fit."""
    return sorted((FIGURES / folder.relative_to(RUNS)).glob("*"))


def _check_running(client: Any) -> Iterator[str]:
    for run in mlflow_runs.stale_runs(client):
        yield f"MLflow's run {run.info.run_id} ({run.info.run_name}) is RUNNING but its process has ended"
    for run, host in mlflow_runs.runs_elsewhere(client):
        since = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
        yield (
            f"MLflow's run {run.info.run_id} ({run.info.run_name}) is RUNNING on {host} since {since:%Y-%m-%d %H:%M} "
            f"UTC; if nothing runs there any more, end it with `medtransfer audit --repair --host {host}`"
        )


def _check_twins(client: Any) -> Iterator[str]:
    """Find fits with several runs in one experiment; a sweep's fit may also have one in the study's experiment."""
    for name, runs in mlflow_runs.fits_of(client).items():
        by_fit = defaultdict(list)
        for run in runs:
            by_fit[run.data.tags[mlflow_store.FIT]].append(run.info.run_id)
        for fit, ids in by_fit.items():
            if len(ids) > 1:
                kept = mlflow_runs.find(client, name, fit)
                extra = next(run_id for run_id in ids if run_id != kept)
                yield (
                    f"MLflow's experiment {name} has {len(ids)} runs of one fit ({fit}); delete {extra} "
                    f"({mlflow_store.mlflow_command(f'runs delete --run-id {extra}')}), then run "
                    "`medtransfer audit --repair`"
                )


def _check_registered(client: Any) -> Iterator[str]:
    here = _folders_by_fit()
    for version in mlflow_models.registered(client):
        name = f"MLflow's registered model {version.name} version {version.version}"
        folder = here.get(version.tags.get(mlflow_store.FIT, ""))
        path = folder / "model.keras" if folder else None
        if path and path.exists() and sha256_of(path) != version.tags[mlflow_models.DIGEST]:
            yield f"{name} differs from its fit's {path}"
        for problem in mlflow_models.registered_problems(version):
            again = f"run `medtransfer register {version.name}` and delete this version"
            yield f"{name}: {problem}; if this persists, {again}"
