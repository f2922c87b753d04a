"""sweep: a grid of fits on Ray → artifacts/sweeps/<name>/, with a project folder for each fit."""

import logging
import os
import uuid
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import ray
from filelock import FileLock
from ruamel.yaml import YAML

from medtransfer.core.dvc import LOCK, POINTER, digest_of
from medtransfer.core.errors import UserError, check_known, counted, shortened
from medtransfer.core.files import atomic_file, digest_of_folder, read_json, write_json
from medtransfer.core.layout import PARAMS, PREPARED, SWEEPS, run_folder, run_name
from medtransfer.core.params import Params, read_params
from medtransfer.core.predictions import read_predictions
from medtransfer.core.prepared import finished_network, read_dataset
from medtransfer.core.provenance import git_commit
from medtransfer.core.run_record import RECORD, read_record, recipe_of
from medtransfer.metrics.scores import MACRO, score
from medtransfer.study.ray_cluster import Needs, join_ray
from medtransfer.tracking import mlflow_runs, mlflow_store


class GridPoint(NamedTuple):
    """One fit of the grid; a `learning_rate` of None means that of params.yaml."""

    dataset: str
    configuration: str
    seed: int
    learning_rate: float | None

    @property
    def name(self) -> str:
        """The name of its project folder and its MLflow run."""
        rate = "" if self.learning_rate is None else f"-rate{self.learning_rate:g}"
        return f"{self.dataset}-{run_name(self.configuration, self.seed)}{rate}"


def plan(
    params: Params, datasets: list[str], configurations: list[str], seeds: list[int], rates: Sequence[float | None]
) -> list[GridPoint]:
    """Return the fits of a grid; empty lists of configurations or rates mean those of params.yaml."""
    fits = []
    for dataset in datasets:
        check_known("params.yaml: study", dataset, params.study)
        read_dataset(params, dataset)
        for name in configurations or params.study[dataset].train:
            check_known("params.yaml: configurations", name, params.configurations)
            fits += [GridPoint(dataset, name, seed, rate) for seed in seeds for rate in rates or [None]]
    return fits


def sweep(params: Params, name: str, fits: list[GridPoint], needs: Needs, local: bool) -> pd.DataFrame:
    """Run every fit that is not finished yet, under one parent run in the MLflow experiment `sweep <name>`.

    The returned table, also in sweep.csv, has one row per fit, with its scores or, in `problem`, why it failed.
    """
    root, experiment = (SWEEPS / name).resolve(), f"sweep {name}"
    join_ray(params, needs, local)
    sweep_id = lay_out(params, root, fits)
    with mlflow_runs.run(experiment, name, sweep_id, {"train": params.train.model_dump()}, {}, None) as parent:
        try:
            table = run_all(fits, root, needs, experiment, parent.run_id)
        finally:
            ray.shutdown()
            parent.close_children()  # a process that was killed could not close its run
        with atomic_file(root / "sweep.csv") as path:
            table.to_csv(path, index=False)
        parent.log_metrics({"fits": sum(table.problem == ""), "failed": sum(table.problem != "")})
        mlflow_runs.attach(experiment, sweep_id, [root / "sweep.csv"])
    return table


def lay_out(params: Params, root: Path, fits: list[GridPoint]) -> str:
    """Write the project folder of each fit, unless `root` contains another sweep, and return the sweep's id."""
    configurations = {fit.configuration: params.configurations[fit.configuration] for fit in fits}
    read = {fit: [PREPARED / fit.dataset] for fit in fits}
    for fit in fits:
        if source := configurations[fit.configuration].source:
            read[fit].append(finished_network(params, *source, fit.seed))
    made_from = {
        "fits": sorted(fit.name for fit in fits),
        "train": params.train.model_dump(),
        "configurations": {name: configuration.model_dump() for name, configuration in configurations.items()},
        "data": {str(folder): digest_of(folder) for folder in set[Path]().union(*read.values())},
    }
    record = root / "sweep.json"
    known, remedy = {"sweep": uuid.uuid4().hex, **made_from}, f"choose another name, or remove {root}"
    if record.exists():
        known = read_json(record, known, remedy)
    if other := [key for key in made_from if known[key] != made_from[key]]:
        raise UserError(f"{record}: differs in {', '.join(other)}; {remedy}")
    write_json(record, known)
    for fit in fits:
        project = root / fit.name
        for path in (LOCK, POINTER, *read[fit]):
            link, target = project / path, path.resolve()
            link.parent.mkdir(parents=True, exist_ok=True)
            if link.is_symlink() and link.readlink() != target:  # the project was moved or copied
                link.unlink()
            if path.exists() and not link.exists():
                link.symlink_to(target)
        rate = {} if fit.learning_rate is None else {"learning_rate": fit.learning_rate}
        changes = {fit.configuration: configurations[fit.configuration].model_copy(update=rate)}
        for_fit = params.model_copy(update={"seeds": [fit.seed], "configurations": params.configurations | changes})
        with atomic_file(project / PARAMS) as path:
            YAML().dump(for_fit.model_dump(), path)
    return str(known["sweep"])


def run_all(fits: list[GridPoint], root: Path, needs: Needs, experiment: str, parent: str | None) -> pd.DataFrame:
    """Run the fits on Ray, each in a new process, and return their rows."""
    resources = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "memory": int(needs.memory_gb * 1e9)}
    task, commit = ray.remote(**resources, max_retries=needs.retries, max_calls=1)(run_fit), git_commit()
    pending = {task.remote(fit, root / fit.name, commit, experiment, parent): fit for fit in fits}
    rows = []
    print(f"{counted(len(fits), 'fit')}; each writes a log: {root}/<fit>/fit.log", flush=True)
    try:
        while pending:
            [done], _ = ray.wait(list(pending))
            fit = pending.pop(done)
            row = {**fit._asdict(), "problem": ""}
            try:
                row |= ray.get(done)
            except ray.exceptions.RayError as error:
                row["problem"] = shortened(mlflow_store.redact(str(getattr(error, "cause", error))), 300)
            rows.append(row)
            print(f"{len(rows)} of {len(fits)}: {fit.name}: {row['problem'] or 'finished'}", flush=True)
    except KeyboardInterrupt:  # pass it on, so that the fits tell MLflow
        for unfinished in pending:
            ray.cancel(unfinished)
        ray.wait(list(pending), num_returns=len(pending), timeout=30)
        raise
    return pd.DataFrame(rows)


def run_fit(fit: GridPoint, project: Path, commit: str, experiment: str, parent: str | None) -> dict[str, Any]:
    """Run one fit, unless it is finished, and return its results; a process on a lost node may still be running it."""
    os.chdir(project)
    folder = run_folder(fit.dataset, fit.configuration, fit.seed)
    with FileLock("fit.lock"), Path("fit.log").open("a", 1) as log, redirect_stdout(log), redirect_stderr(log):
        logging.basicConfig(stream=log, level=logging.INFO, format="%(message)s", force=True)
        finished, digest = (folder / RECORD).exists(), Path("outputs.sha256")
        if not finished:
            from medtransfer.pipeline.train import train

            target = mlflow_runs.RunTarget(experiment, fit.name, parent)
            train(read_params(PARAMS), fit.dataset, fit.configuration, fit.seed, target, {"git_commit": commit})
    try:
        found = digest_of_folder(folder)
        if finished and digest.exists() and digest.read_text() != found:
            raise UserError(f"{folder}: was changed after the fit")
        scores = _scores(folder)
        with atomic_file(digest) as path:
            path.write_text(found)
        return scores
    except UserError as error:
        raise UserError(f"{project}: {error}; remove this folder and run the sweep again") from None


def _scores(folder: Path) -> dict[str, Any]:
    record = read_record(folder)
    return {
        "learning_rate": recipe_of(record).learning_rate,
        "val_loss": float(pd.read_csv(folder / "history.csv").val_loss[record["best_epoch"] - 1]),
        "val_macro_f1": score(read_predictions(folder / "predictions.csv", "validation"))[MACRO],
        "best_epoch": record["best_epoch"],
        "epochs": record["epochs"],
        "seconds": round(record["seconds"], 1),
        "node": ray.util.get_node_ip_address(),
    }
