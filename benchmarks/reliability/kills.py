"""Killing a small study again and again: does it end with the same bits as one that was left alone?

Two clones of the project run the same reduced study. One runs through; the other is killed with
SIGKILL, its whole process group, at seeded moments of each stage, and started again. Then weights,
predictions and histories are compared by hash, and MLflow is asked for runs that are lost or double.
"""

import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import mlflow
import pandas as pd

from clones import EMPTY_LOCK, clone, dvc, environment
from medtransfer.core import dvc as integrity
from medtransfer.core.errors import UserError
from medtransfer.study.check import check_dvc_files
from provenance import made_by

# (stage, moment of it): a prefix of DVC's name of the stage, and one of the keys of `Watch.moments`.
PLAN = (
    ("prepare", "after a time"),
    ("prepare", "as it ends"),
    ("baseline", "after a time"),
    ("baseline", "as it ends"),
    ("baseline", "before it is recorded"),
    ("train-ham10000", "after a time"),
    ("train-ham10000", "in a checkpoint"),
    ("train-ham10000", "in a checkpoint"),
    ("train-ham10000", "before it is recorded"),
    ("train-ham10000", "as it ends"),
    ("train-chest_xray", "in a checkpoint"),
    ("transfer", "after a time"),
    ("transfer", "in a checkpoint"),
    ("evaluate", "after a time"),
)
# Less than a stage takes here, so that a kill "after a time" comes within it.
SECONDS = {"prepare": 1.0, "baseline": 3.0, "evaluate": 5.0}
TRAINING = 30.0
STUDY = {
    "study": {
        "ham10000": {"train": ["imagenet_all", "imagenet_last_block"]},
        "chest_xray": {"train": ["cnn_random"], "transfer": ["ham10000_all"]},
    },
    "baselines": ["random_forest"],
}


@click.command()
@click.option("--passes", default=2, show_default=True, help=f"Studies, each killed {len(PLAN)} times.")
@click.option("--seed", default=0, show_default=True)
@click.option("--epochs", default=4, show_default=True)
def main(passes: int, seed: int, epochs: int) -> None:
    """Compare studies that were killed with one that was not."""
    begun = made_by()
    with tempfile.TemporaryDirectory(prefix="medtransfer-kills-") as folder:
        changes = {**STUDY, "train": {"epochs": epochs, "dense_units": [16, 16]}}
        result = compare(Path(folder), changes, [PLAN] * passes, seed)
    click.echo(json.dumps({**begun, "seed": seed, "epochs": epochs, **result}, indent=2))


def compare(
    folder: Path, changes: dict[str, Any], plans: list[Any], seed: int, target: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Run the study once alone and once a plan, killed, under `folder`; return what differs.

    Parameters
    ----------
    changes : dict
        What is merged into params.yaml.
    target : tuple of str
        The stages to run; all where it is empty.
    """
    alone, killed = (clone(folder / name, changes) for name in ("alone", "killed"))
    for clean in (alone, killed):
        dvc(clean, "pull", "--quiet", "data.dvc")
        forget(clean)
    assert repro(alone, target).wait() == 0, (alone / "log.txt").read_text()[-4000:]
    expected, rng = fingerprints(alone), random.Random(seed)
    kills: list[dict[str, str]] = []
    differing: set[str] = set()
    ended: list[int] = []
    logged: Counter[str] = Counter()
    inside_a_save = 0
    mended: list[str] = []
    for plan in plans:
        forget(killed)
        for stage, moment in plan:
            process = repro(killed, target)
            if not Watch(killed, process, rng).reached(stage, moment):
                said = (killed / "log.txt").read_text()[-4000:]
                raise RuntimeError(f"the study ended before it could be killed in {stage} {moment}:\n{said}")
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills.append({"stage": stage, "moment": moment, "in": running_stage(killed)})
            inside_a_save += left_in_a_save(killed)
            mended += mend(killed)
        ended.append(repro(killed, target).wait())
        found = fingerprints(killed)
        logged.update(mlflow_state(killed))
        differing |= {name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)}
    return {
        "kills": len(kills),
        "by_stage_and_moment": Counter(f"{entry['stage']} {entry['moment']}" for entry in kills),
        "killed_in": Counter(entry["in"] for entry in kills),
        "inside_a_save": inside_a_save,
        "exit_codes": ended,
        "files_of_dvc_left_in_pieces": Counter(mended),
        "compared_files": len(expected),
        "differing": sorted(differing),
        "resumed_from_a_checkpoint": (killed / "log.txt").read_text().count("resuming after epoch"),
        "mlflow": dict(logged),
    }


class Watch:
    """Waits for a moment of a running `dvc repro`."""

    def __init__(self, folder: Path, process: "subprocess.Popen[bytes]", rng: random.Random):
        self.folder, self.process, self.rng = folder, process, rng
        self.seen = len((folder / "log.txt").read_text())

    def reached(self, stage: str, moment: str) -> bool:
        """Wait for the moment of the stage; False where the study ended before."""
        if not self._wait(lambda: f"Running stage '{stage}" in (self.folder / "log.txt").read_text()[self.seen :]):
            return False
        seconds = self.rng.uniform(0, SECONDS.get(stage, TRAINING))
        epoch = self.rng.randint(1, 2)
        begin, lock, finished = time.monotonic(), self._lock(), self._finished()
        moments: dict[str, Callable[[], bool]] = {
            "after a time": lambda: time.monotonic() > begin + seconds,
            "in a checkpoint": lambda: self._written() >= epoch,
            "before it is recorded": lambda: self._finished() > finished and self._lock() == lock,
            "as it ends": lambda: self._lock() != lock,
        }
        return self._wait(moments[moment])

    def _wait(self, condition: Callable[[], bool]) -> bool:
        while self.process.poll() is None:
            if condition():
                return True
            time.sleep(0.002)
        return False

    def _lock(self) -> int:
        return (self.folder / "dvc.lock").stat().st_mtime_ns

    def _finished(self) -> int:
        """Return how many fits have said their last line; the process that says it writes all its lines as it ends."""
        return (self.folder / "log.txt").read_text().count(": micro F1 ")

    def _written(self) -> int:
        """Return the number of checkpoints of which the next is being written, or -1."""
        for partial in (self.folder / "artifacts/checkpoints").glob("*/*/.partial-epoch-*"):
            return len(list(partial.parent.glob("epoch-*")))
        return -1


def repro(folder: Path, target: tuple[str, ...]) -> "subprocess.Popen[bytes]":
    """Start `dvc repro` in a process group of its own."""
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", *target],
            cwd=folder,
            env=environment(folder),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def left_in_a_save(folder: Path) -> bool:
    """Say whether a kill left a checkpoint that was being written."""
    return any(folder.glob("artifacts/checkpoints/*/*/.partial-epoch-*"))


def running_stage(folder: Path) -> str:
    """Return the stage that DVC named last."""
    stages = [line for line in (folder / "log.txt").read_text().splitlines() if line.startswith("Running stage")]
    return stages[-1].split("'")[1]


def mend(folder: Path) -> list[str]:
    """Do what medtransfer's messages say where a kill left a file of DVC in pieces; return which those were."""
    before, broken = Path.cwd(), []
    os.chdir(folder)
    try:
        for path, content in ((integrity.RWLOCK, None), (integrity.LOCK, EMPTY_LOCK)):
            try:
                check_dvc_files()
            except UserError as error:
                if str(error).startswith(str(path)):
                    broken.append(path.name)
                    path.unlink() if content is None else path.write_text(content)
    finally:
        os.chdir(before)
    return broken


def forget(folder: Path) -> None:
    """Let the whole study run anew: remove its outputs and what DVC and MLflow know of them."""
    for name in ("artifacts", "mlruns", "reports", ".dvc/cache/runs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "dvc.lock").write_text(EMPTY_LOCK)


def fingerprints(folder: Path) -> dict[str, str]:
    """Return the hash of every file that the stages write, of tables without the seconds.

    Left out are what names a fit or a time (run.json, model-card.md, results.md) and pictures, drawn from the tables.
    model.skops names its parts by their addresses in memory: a forest's predictions stand for it.
    """
    found = {}
    for path in sorted((*folder.glob("artifacts/*/*/**/*"), *folder.glob("reports/**/*"))):
        name = str(path.relative_to(folder))
        if path.name == "model.keras":
            with zipfile.ZipFile(path) as archive:
                found[name] = hashlib.sha256(archive.read("model.weights.h5")).hexdigest()
        elif path.suffix == ".csv":
            table = pd.read_csv(path)
            timed = [column for column in table if "second" in str(column)]
            found[name] = hashlib.sha256(table.drop(columns=timed).to_csv().encode()).hexdigest()
        elif path.suffix == ".npy" or path.name in ("metrics.json", "dataset.json"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def mlflow_state(folder: Path) -> dict[str, int]:
    """Return the numbers of runs and of those that are FINISHED, of fits with two runs, of epochs that are wrong.

    An epoch is lost, logged twice, or logged with other seconds than those in history.csv.
    """
    # A copy: MLflow would still have the removed store of an earlier study open.
    with tempfile.TemporaryDirectory() as temporary:
        client = mlflow.MlflowClient(f"sqlite:///{shutil.copy(folder / 'mlruns/mlflow.db', temporary)}")
        return _count(client, folder)


def _count(client: mlflow.MlflowClient, folder: Path) -> dict[str, int]:
    runs = client.search_runs([entry.experiment_id for entry in client.search_experiments()], max_results=5000)
    names = Counter((logged.info.experiment_id, logged.info.run_name) for logged in runs)
    lost = doubled = changed = 0
    for logged in runs:
        tags = logged.data.tags
        history = folder / "artifacts/runs" / tags["dataset"] / str(logged.info.run_name) / "history.csv"
        if history.exists():
            points = client.get_metric_history(logged.info.run_id, "train/seconds")
            steps = {point.step for point in points}
            doubled += len(points) - len(steps)
            seconds = pd.read_csv(history).set_index("epoch").seconds
            lost += len(set(seconds.index) - steps)
            changed += sum(not math.isclose(point.value, seconds[point.step]) for point in points)
    return {
        "runs": len(runs),
        "finished": sum(logged.info.status == "FINISHED" for logged in runs),
        "fits_with_two_runs": sum(count > 1 for count in names.values()),
        "epochs_lost": lost,
        "epochs_logged_twice": doubled,
        "epochs_with_other_seconds": changed,
    }


if __name__ == "__main__":
    main()
