"""Killing a small study again and again: does it end with the same bits as one that was left alone?

Two clones of the project run the same reduced study. One runs through; the other is killed with
SIGKILL, its whole process group, at seeded moments: after a random time, while a snapshot is being
written, and just after a stage has ended. Then weights and predictions are compared by hash.
"""

import hashlib
import json
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
from ruamel.yaml import YAML

PROJECT = Path(__file__).resolve().parents[2]
MOMENTS = ("after a time", "in a snapshot", "between stages")


@click.command()
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--epochs", default=4, show_default=True)
@click.option("--longest", default=40.0, show_default=True, help="Seconds until a kill after a random time, at most.")
def main(kills: int, seed: int, epochs: int, longest: float) -> None:
    """Compare a study that was killed with one that was not."""
    with tempfile.TemporaryDirectory(prefix="medtransfer-kills-") as folder:
        click.echo(json.dumps(compare(Path(folder), kills, seed, epochs, longest), indent=2))


def compare(folder: Path, kills: int, seed: int, epochs: int, longest: float) -> dict[str, Any]:
    """Run both studies under `folder` and return what differs."""
    alone, killed = (clone(folder / name, epochs) for name in ("alone", "killed"))
    repro(alone).wait()
    rng = random.Random(seed)
    record: list[dict[str, Any]] = []
    while len(record) < kills:
        moment = rng.choice(MOMENTS)
        process = repro(killed)
        if not wait_for(moment, process, killed, rng.uniform(1, longest)):
            # The study has ended: the rest of the kills begin with a new one, from the snapshots' point of view.
            forget(killed)
            continue
        record.append({"moment": moment, "stage": running_stage(killed)})
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        mend(killed)
    code = repro(killed).wait()
    expected, found = fingerprints(alone), fingerprints(killed)
    return {
        "kills": len(record),
        "moments": Counter(entry["moment"] for entry in record),
        "stages": Counter(entry["stage"] for entry in record),
        "exit_code": code,
        "fits": len(expected),
        "differing": sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)),
        "mlflow": mlflow_state(killed),
        "seed": seed,
    }


def clone(target: Path, epochs: int) -> Path:
    """Copy the tracked files and reduce the study to two networks, one tree and few epochs."""
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (PROJECT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, target / name)
    (target / "dvc.lock").write_text("schema: '2.0'\n")
    yaml = YAML()
    params = yaml.load((target / "params.yaml").read_text())
    params["study"]["ham10000"]["train"] = ["imagenet_all", "imagenet_last_block"]
    params["study"]["chest_xray"] |= {"train": ["cnn_random"], "transfer": ["ham10000_all"]}
    params["baselines"] = ["random_forest"]
    params["train"] |= {"epochs": epochs, "dense_units": [16, 16]}
    with (target / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "pull", "--quiet", "data.dvc"]):
        subprocess.run(command, cwd=target, env=environment(target), check=True)
    return target


def environment(folder: Path) -> dict[str, str]:
    """Return the environment in which the clone's own code runs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONPATH": str(folder / "src"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    return {**{key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}, **own}


def repro(folder: Path) -> "subprocess.Popen[bytes]":
    """Start `dvc repro` in a process group of its own."""
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro"],
            cwd=folder,
            env=environment(folder),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def wait_for(moment: str, process: "subprocess.Popen[bytes]", folder: Path, seconds: float) -> bool:
    """Wait for the moment; False where the study ended before."""
    lock = (folder / "dvc.lock").stat().st_mtime_ns
    reached: dict[str, Callable[[], bool]] = {
        "after a time": lambda: time.monotonic() > begin + seconds,
        "in a snapshot": lambda: any((folder / "artifacts/unfinished").glob("*/*/.partial-*")),
        "between stages": lambda: (folder / "dvc.lock").stat().st_mtime_ns != lock,
    }
    begin = time.monotonic()
    while process.poll() is None:
        if reached[moment]():
            return True
        time.sleep(0.001)
    return False


def running_stage(folder: Path) -> str:
    """Return the stage that DVC named last."""
    stages = [line for line in (folder / "log.txt").read_text().splitlines() if line.startswith("Running stage")]
    return stages[-1].split("'")[1].split("@")[0] if stages else "none"


def mend(folder: Path) -> None:
    """Do what medtransfer's message says where a kill left DVC's lock file in pieces."""
    path = folder / ".dvc/tmp/rwlock"
    if path.exists():
        try:
            json.loads(path.read_text())
        except ValueError:
            path.unlink()


def forget(folder: Path) -> None:
    """Let the whole study run again: remove its outputs and what DVC and MLflow know of them."""
    for name in ("artifacts", "mlruns", ".dvc/cache/runs", "dvc.lock"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (folder / "dvc.lock").write_text("schema: '2.0'\n")


def fingerprints(folder: Path) -> dict[str, str]:
    """Return the hash of every prediction and of every network's weights."""
    found = {}
    for path in sorted(folder.glob("artifacts/runs/*/*/*")):
        name = str(path.relative_to(folder))
        # model.skops names its parts by their addresses in memory: a forest's predictions stand for it.
        if path.name in ("predictions.csv", "metrics.json"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "model.keras":
            with zipfile.ZipFile(path) as archive:
                found[name] = hashlib.sha256(archive.read("model.weights.h5")).hexdigest()
        elif path.name == "history.csv":
            columns = pd.read_csv(path)[["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]]
            found[name] = hashlib.sha256(columns.to_csv().encode()).hexdigest()
    return found


def mlflow_state(folder: Path) -> dict[str, Any]:
    """Return the runs by status, and how many fits have more than one run or an epoch logged twice."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    runs = client.search_runs([entry.experiment_id for entry in client.search_experiments()], max_results=5000)
    fits = Counter(run.data.tags["medtransfer.fit"] for run in runs)
    twice = 0
    for run in runs:
        if "loss" in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
            twice += len(steps) - len(set(steps))
    return {
        "status": Counter(run.info.status for run in runs),
        "fits_with_two_runs": sum(count > 1 for count in fits.values()),
        "epochs_logged_twice": twice,
    }


if __name__ == "__main__":
    main()
