"""Many processes that begin to log at once on an SQLite store that does not exist yet: is a point or a run lost?"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import mlflow

from provenance import made_by

PROCESS = """
import sys
from medtransfer.tracking import mlflow_runs
number, points = map(int, sys.argv[1:])
with mlflow_runs.run("many", f"run{number}", f"fit{number}", {"number": number}, {}, sample_seconds=None) as run:
    for epoch in range(1, points + 1):
        run.log_epochs([{"epoch": epoch, "loss": 1 / epoch}])
"""


@click.command()
@click.option("--processes", default=8, show_default=True)
@click.option("--points", default=200, show_default=True, help="Epochs that each of them logs.")
@click.option("--repeats", default=20, show_default=True, help="Each on a store of its own.")
def main(processes: int, points: int, repeats: int) -> None:
    """Count what is missing at the end."""
    begun, begin = made_by(), time.perf_counter()
    lost = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="medtransfer-store-") as folder:
            lost.append(lost_points(Path(folder), processes, points))
            click.echo(f"lost {lost[-1]}", err=True)
    result = {
        **begun,
        "processes": processes,
        "points": points,
        "repeats": repeats,
        "logged": processes * points * repeats,
        "lost_points": sum(entry["points"] for entry in lost),
        "lost_runs": sum(entry["runs"] for entry in lost),
        "seconds": round(time.perf_counter() - begin),
    }
    click.echo(json.dumps(result, indent=2))


def lost_points(folder: Path, processes: int, points: int) -> dict[str, int]:
    """Return how many points are missing or there twice, and how many runs are not FINISHED, in a fresh store."""
    uri = f"sqlite:///{folder}/mlruns/mlflow.db"
    env = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    started = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(number), str(points)], env=env, cwd=folder)
        for number in range(processes)
    ]
    for process in started:
        process.wait()
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("many")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []  # one elsewhere is lost too
    steps = [[point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] for run in runs]
    steps += [[]] * (processes - len(runs))
    return {
        "points": sum(len(set(range(1, points + 1)) ^ set(found)) + len(found) - len(set(found)) for found in steps),
        "runs": abs(processes - len(runs)) + sum(run.info.status != "FINISHED" for run in runs),
    }


if __name__ == "__main__":
    main()
