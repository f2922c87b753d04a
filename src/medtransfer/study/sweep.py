"""sweep: a grid of fits on Ray, on this machine or on a cluster → artifacts/sweeps/<name>/.

Each learning rate has a project folder of its own, so that what works on a study works on it. Ray gives out the fits
and gives a fit again whose worker or node died; the fit's own checkpoints let it go on from its last epoch.
"""

import itertools
import json
import logging
import os
import shutil
import signal
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
from filelock import FileLock
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from ruamel.yaml import YAML

from medtransfer.core.dvc import LOCK, POINTER, check_unchanged
from medtransfer.core.errors import UserError, check_known, shortened
from medtransfer.core.files import atomic_file, sha256_of, write_json
from medtransfer.core.layout import PARAMS, PREPARED, SWEEPS, run_folder, run_name, unfinished_folder
from medtransfer.core.params import WEIGHTS_VARIABLE, Params
from medtransfer.core.predictions import read_predictions
from medtransfer.core.prepared import read_dataset
from medtransfer.core.provenance import git_commit
from medtransfer.metrics.scores import MACRO, score
from medtransfer.tracking import mlflow_runs, mlflow_store

log = logging.getLogger(__name__)

AS_PARAMS = "as-params"
SECONDS_TO_STOP = 30
OBJECT_STORE_BYTES = 100 * 10**6  # only one row per fit travels through it


@dataclass(frozen=True)
class Fit:
    """One point of the grid; a `rate` of None is what params.yaml says."""

    dataset: str
    configuration: str
    seed: int
    rate: float | None

    @property
    def project(self) -> str:
        """The name of the project folder that it runs in."""
        return AS_PARAMS if self.rate is None else f"rate-{self.rate:g}"

    @property
    def name(self) -> str:
        """Its name in MLflow, in the table and of its log."""
        rate = "" if self.rate is None else f"-rate{self.rate:g}"
        return f"{self.dataset}-{run_name(self.configuration, self.seed)}{rate}"


@dataclass(frozen=True)
class Needs:
    """What one fit takes of a node, and how often Ray gives it again after its worker or node died."""

    cpus: int
    gpus: float
    memory_gb: float
    retries: int


def sweep(
    params: Params,
    name: str,
    datasets: list[str],
    configurations: list[str],
    seeds: list[int],
    rates: list[float],
    needs: Needs,
    local: bool,
) -> pd.DataFrame:
    """Run every fit of the grid that is not finished yet, each once.

    Parameters
    ----------
    name : str
        The sweep's folder under artifacts/sweeps/ and, as `sweep <name>`, its MLflow experiment, where all fits lie
        under one parent run.
    configurations : list of str
        Empty for those that params.yaml lists for each data set under `train`.
    rates : list of float
        Empty for the rates of params.yaml.
    local : bool
        Start Ray on this machine alone, instead of using the cluster that RAY_ADDRESS or `ray start` names.

    Returns
    -------
    DataFrame
        One row per fit, also in artifacts/sweeps/<name>/sweep.csv: dataset, configuration, seed, learning_rate,
        val_loss and val_macro_f1 after best_epoch, epochs, seconds, node, and in `problem` why it failed, else "".

    Raises
    ------
    UserError
        The grid names what params.yaml lacks, data are not prepared, the folder holds a sweep of other parameters or
        another grid, or no node has what a fit needs.
    """
    fits = plan(params, datasets, configurations, seeds, rates)
    root = (SWEEPS / name).resolve()
    sweep_id = lay_out(params, root, fits)
    grid = _describe_grid(fits, seeds, rates)
    experiment = f"sweep {name}"
    with mlflow_runs.run(
        experiment, name, sweep_id, {"train": params.train.model_dump()}, grid, sample_seconds=None
    ) as parent:
        try:
            with _ray(local, needs):
                table = _run_all(fits, root, needs, experiment, parent.run_id)
        finally:
            parent.send(mlflow_runs.close_children)  # whose process was ended with Ray, or died once too often
        with atomic_file(root / "sweep.csv") as path:
            table.to_csv(path, index=False)
        done = table[table.problem == ""]
        parent.log_metrics({"fits": len(done), "failed": len(table) - len(done)})
        if len(done):
            parent.log_metrics({"best_val_macro_f1": float(done.val_macro_f1.max())})
        mlflow_runs.attach(experiment, sweep_id, [root / "sweep.csv"])
    return table


def _describe_grid(fits: list[Fit], seeds: list[int], rates: list[float]) -> dict[str, str]:
    return {
        "datasets": ", ".join(dict.fromkeys(fit.dataset for fit in fits)),
        "configurations": ", ".join(dict.fromkeys(fit.configuration for fit in fits)),
        "seeds": ", ".join(map(str, seeds)),
        "rates": ", ".join(f"{rate:g}" for rate in rates) or "as in params.yaml",
    }


def plan(
    params: Params, datasets: list[str], configurations: list[str], seeds: list[int], rates: list[float]
) -> list[Fit]:
    """Return the grid's fits, those that take longest first, so that no node waits for a last long one.

    Raises
    ------
    UserError
        A data set or a configuration is not in params.yaml, or a fit begins from a run that is not finished.
    """
    fits = []
    asked: list[float | None] = [*rates] or [None]
    for dataset in datasets:
        check_known("params.yaml: study", dataset, params.study)
        read_dataset(params, dataset)
        for name in configurations or params.study[dataset].train:
            check_known("params.yaml: configurations", name, params.configurations)
            fits += [Fit(dataset, name, *rest) for rest in itertools.product(seeds, asked)]
    missing = [source for source in _sources(params, fits) if not (source / "model.keras").exists()]
    if missing:
        raise UserError(f"{missing[0]}: not found, and a fit of the grid begins from it; run `dvc repro`")
    blocks = {name: configuration.blocks for name, configuration in params.configurations.items()}
    return sorted(fits, key=lambda fit: blocks[fit.configuration][:1] or ("head",))


def lay_out(params: Params, root: Path, fits: list[Fit]) -> str:
    """Write the sweep's project folders and return its id.

    Raises
    ------
    UserError
        The folder holds a sweep with other parameters or other data, or the table of another grid.
    """
    datasets = sorted({fit.dataset for fit in fits})
    made_from: dict[str, dict[str, Any]] = {
        "train": params.train.model_dump(),
        "configurations": {name: value.model_dump() for name, value in params.configurations.items()},
        "prepared": {
            f"{dataset}/{file}": sha256_of(PREPARED / dataset / file)
            for dataset in datasets
            for file in ("samples.csv", "dataset.json")
        },
        "sources": {str(source): sha256_of(source / "model.keras") for source in _sources(params, fits)},
    }
    record = root / "sweep.json"
    known: dict[str, Any] = (
        json.loads(record.read_text()) if record.exists() else {"sweep": uuid.uuid4().hex, "made_from": made_from}
    )
    for section, values in json.loads(json.dumps(made_from)).items():
        for key, value in values.items():
            if known["made_from"].setdefault(section, {}).setdefault(key, value) != value:
                raise UserError(
                    f"{record}: made with another {section}.{key} than there is now; choose another name, or remove it "
                    f"({root})"
                )
    names = sorted(fit.name for fit in fits)
    if (root / "sweep.csv").exists() and known.get("fits") != names:
        raise UserError(f"{root / 'sweep.csv'}: of another grid, and would be lost; choose another name for this one")
    root.mkdir(parents=True, exist_ok=True)
    write_json(record, {**known, "fits": names})
    for fit in fits:
        project = root / fit.project
        if not (project / PREPARED).exists():
            (project / PREPARED).parent.mkdir(parents=True, exist_ok=True)
            (project / PREPARED).symlink_to(PREPARED.resolve())
        source = params.configurations[fit.configuration].source
        if source:
            check_unchanged(run_folder(*source, fit.seed))
            begins_from = project / run_folder(*source, fit.seed)
            begins_from.parent.mkdir(parents=True, exist_ok=True)
            if not begins_from.exists():
                begins_from.symlink_to(run_folder(*source, fit.seed).resolve())
    seeds = sorted({fit.seed for fit in fits})
    if params.weights.file:  # relative to this folder, not to those of the sweep
        absolute = params.weights.model_copy(update={"file": str(Path(params.weights.file).resolve())})
        params = params.model_copy(update={"weights": absolute})
    for name, rate in {fit.project: fit.rate for fit in fits}.items():
        with atomic_file(root / name / PARAMS) as path:
            YAML().dump(with_rate(params, rate, seeds).model_dump(), path)
        for file in (LOCK, POINTER):
            if file.exists():
                shutil.copyfile(file, root / name / file)
    return str(known["sweep"])


def _sources(params: Params, fits: list[Fit]) -> list[Path]:
    """Return the folders of the finished runs that fits begin from."""
    found = [
        run_folder(*source, fit.seed) for fit in fits if (source := params.configurations[fit.configuration].source)
    ]
    return list(dict.fromkeys(found))


def with_rate(params: Params, rate: float | None, seeds: list[int]) -> Params:
    """Return the parameters with these seeds and, unless it is None, this learning rate for every configuration."""
    configurations = {
        name: value if rate is None else value.model_copy(update={"learning_rate": rate})
        for name, value in params.configurations.items()
    }
    return params.model_copy(update={"configurations": configurations, "seeds": seeds})


@contextmanager
def _ray(local: bool, needs: Needs) -> Iterator[None]:
    """Join or start Ray, check that a node has what a fit needs, and leave nothing running."""
    stop = signal.getsignal(signal.SIGTERM)
    environment = {
        key: value
        for key, value in os.environ.items()
        if key.startswith(("KERAS_", "MLFLOW_", "MEDTRANSFER_", "TF_", "JAX_", "XLA_"))
    }
    if WEIGHTS_VARIABLE in environment:
        environment[WEIGHTS_VARIABLE] = str(Path(environment[WEIGHTS_VARIABLE]).resolve())
    environment |= {
        "MLFLOW_TRACKING_URI": mlflow_store.absolute_uri(),
        "TF_NUM_INTRAOP_THREADS": str(needs.cpus),
        "TF_NUM_INTEROP_THREADS": "1",
        "OMP_NUM_THREADS": str(needs.cpus),
    }
    if needs.gpus < 1:  # several fits on one GPU, or none: none may take all of its memory
        environment |= {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"runtime_env": {"env_vars": environment}, "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS", "auto")
    try:
        if local:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                logging_level=logging.ERROR,
                **options,
            )
        else:
            _knock(address)
            ray.init(address=address, logging_level=logging.ERROR, **options)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({shortened(error)}); start one (`ray start "
            "--head`) and name it in RAY_ADDRESS, or use this machine alone with --local"
        ) from None
    signal.signal(signal.SIGTERM, stop)  # Ray puts its own in place
    try:
        _check_needs(needs)
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nothing listens: Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=10).close()


def _check_needs(needs: Needs) -> None:
    nodes: list[dict[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asked = {"CPU": needs.cpus, "GPU": needs.gpus, "memory": needs.memory_gb * 1e9}
    if not any(all(node.get(key, 0) >= value for key, value in asked.items()) for node in nodes):
        there = "; ".join(
            f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU, {node.get('memory', 0) / 1e9:.1f} GB"
            for node in nodes
        )
        raise UserError(
            f"no node has {needs.cpus} CPU, {needs.gpus:g} GPU and {needs.memory_gb:g} GB for a fit: there are {there}"
            "; ask for less with --cpus, --gpus and --memory-gb"
        )


def _run_all(fits: list[Fit], root: Path, needs: Needs, experiment: str, parent: str | None) -> pd.DataFrame:
    task = ray.remote(
        num_cpus=needs.cpus,
        num_gpus=needs.gpus,
        memory=int(needs.memory_gb * 1e9),
        max_retries=needs.retries,
        max_calls=1,  # a new process a fit, which gives a GPU's memory back
    )(run_fit)
    commit = git_commit()
    pending = {
        task.remote(fit, str(root), commit, mlflow_runs.RunTarget(experiment, fit.name, parent)): fit for fit in fits
    }
    rows: list[dict[str, Any]] = []
    to_run = {fit for fit in fits if not _record(fit, root).exists()}
    begin = time.perf_counter()
    try:
        with _progress(len(fits)) as advance:
            while pending:
                for done in ray.wait(list(pending), num_returns=1, timeout=1)[0]:
                    fit = pending.pop(done)
                    rows.append(_outcome(done, fit))
                    left = time_left(time.perf_counter() - begin, to_run, set(pending.values()))
                    advance(left)
                    _say(rows[-1], fit, len(rows), len(fits), left)
    except KeyboardInterrupt:
        _stop(list(pending))
        raise
    return pd.DataFrame(rows)


def _record(fit: Fit, root: Path) -> Path:
    """Return the file that a fit writes last."""
    return root / fit.project / run_folder(fit.dataset, fit.configuration, fit.seed) / "run.json"


def _outcome(done: Any, fit: Fit) -> dict[str, Any]:
    row: dict[str, Any] = {
        "dataset": fit.dataset,
        "configuration": fit.configuration,
        "seed": fit.seed,
        "learning_rate": fit.rate if fit.rate is not None else np.nan,
        "problem": "",
    }
    try:
        return {**row, **ray.get(done)}
    except ray.exceptions.RayTaskError as error:
        return {**row, "problem": shortened(mlflow_store.redact(str(error.cause)), 300)}
    except ray.exceptions.RayError as error:
        return {**row, "problem": f"{type(error).__name__}: {shortened(mlflow_store.redact(str(error)), 300)}"}


def time_left(seconds: float, to_run: Set[Fit], pending: Set[Fit]) -> str:
    """Return `; about 3 min left`, or "" where nothing is left or no fit has run yet that could tell.

    Parameters
    ----------
    seconds : float
        Since the sweep began.
    to_run : set
        The fits that were not finished then: those that were come at once and say nothing of the others.
    """
    ran, left = len(to_run - pending), len(to_run & pending)
    return f"; about {seconds / ran * left / 60:.0f} min left" if ran and left else ""


@contextmanager
def _progress(fits: int) -> Iterator[Any]:
    columns = (
        TextColumn("fits"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"),
    )  # fmt: skip
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("fits", total=fits, left="")
        yield lambda left: bar.update(task, advance=1, left=left)


def _say(row: Mapping[str, Any], fit: Fit, done: int, fits: int, left: str) -> None:
    text = row["problem"] or f"validation macro F1 {row['val_macro_f1']:.3f}, {row['seconds']:.0f} s"
    print(f"{done} of {fits}: {fit.name}: {text}{left}")


def _stop(pending: list[Any]) -> None:
    """Interrupt what runs as Ctrl-C would, so that MLflow hears of it, and end what does not heed it."""
    for one in pending:
        ray.cancel(one)
    ray.wait(pending, num_returns=len(pending), timeout=SECONDS_TO_STOP)


def run_fit(fit: Fit, root: str, commit: str, target: mlflow_runs.RunTarget) -> dict[str, Any]:
    """Run one fit in a process of Ray's, unless it is finished, and return its row.

    The lock is for a fit that was given again while the process of a lost node still works at it: both share the disk.
    """
    os.chdir(Path(root) / fit.project)
    folder = run_folder(fit.dataset, fit.configuration, fit.seed)
    lock = unfinished_folder(fit.dataset, fit.configuration, fit.seed).with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    Path("logs").mkdir(exist_ok=True)
    with (
        Path("logs", f"{fit.name}.log").open("a", buffering=1) as file,
        redirect_stdout(file),
        redirect_stderr(file),
        FileLock(lock),
    ):
        logging.basicConfig(stream=file, level=logging.INFO, format="%(message)s", force=True)
        if not (folder / "run.json").exists():
            from medtransfer.core.params import read_params
            from medtransfer.pipeline.train import train

            train(read_params(PARAMS), fit.dataset, fit.configuration, fit.seed, target, {"git_commit": commit})
        return {**_row(folder), "node": ray.util.get_node_ip_address()}


def _row(folder: Path) -> dict[str, Any]:
    record = json.loads((folder / "run.json").read_text())
    predictions = read_predictions(folder / "predictions.csv")
    history = pd.read_csv(folder / "history.csv")
    return {
        "learning_rate": record["hyperparameters"]["train"]["learning_rate"],
        "val_loss": float(history.val_loss.min()),
        "val_macro_f1": score(predictions[predictions.split == "validation"])[MACRO],
        "best_epoch": record["best_epoch"],
        "epochs": record["epochs"],
        "seconds": round(record["seconds"], 1),
    }
