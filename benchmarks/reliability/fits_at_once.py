"""Many fits at once that log to one MLflow server on PostgreSQL: is a run, an epoch or a model lost?

PYTHONPATH=tools python benchmarks/reliability/fits_at_once.py
"""

import json
import subprocess
import tempfile
import time
from pathlib import Path

import click
import mlflow

from clones import change_params, clone, environment, run
from provenance import made_by
from tracking_server import free_port, serve

DATASET, CONFIGURATION = "chest_xray", "random_head"
CHANGES = {
    "train": {"epochs": 10, "patience": 10, "dense_units": [32, 32]},
    "study": {DATASET: {"train": [CONFIGURATION], "transfer": []}},
}


@click.command()
@click.option("--fits", default=8, show_default=True)
@click.option(
    "--keep", type=click.Path(path_type=Path), help="A folder for the server's data, to look at it afterwards."
)
def main(fits: int, keep: Path | None) -> None:
    """Run the fits of one configuration with different seeds at the same time and count what arrived."""
    begun = made_by()
    with tempfile.TemporaryDirectory(prefix="medtransfer-fits-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # PostgreSQL runs as another user
        project = clone(folder / "project", CHANGES)
        change_params(project, {"configurations": {CONFIGURATION: {"weights": "random", "trainable": "head"}}})
        run(project, "dvc", "pull", "--quiet", "data.dvc")
        run(project, "medtransfer", "stage", "prepare", DATASET)
        with serve(keep or folder / "server", free_port()) as address:
            begin = time.perf_counter()
            env = {**environment(project), "MLFLOW_TRACKING_URI": address}
            command = ["medtransfer", "stage", "train", DATASET, CONFIGURATION, "--seed"]
            started = [
                subprocess.Popen([*command, str(seed)], cwd=project, env=env, stdout=subprocess.DEVNULL)
                for seed in range(fits)
            ]
            codes = [process.wait() for process in started]
            seconds = time.perf_counter() - begin
            result = {**begun, "fits": fits, "exit_codes": codes, "seconds": round(seconds), **count(address, fits)}
            audited = subprocess.run(["medtransfer", "audit"], cwd=project, env=env, capture_output=True, text=True)
            result["differences"] = sum("MLflow" in line for line in audited.stdout.splitlines())
    click.echo(json.dumps(result, indent=2))


def count(address: str, fits: int) -> dict[str, int]:
    """Return how many runs, epochs and models the server has, and how many it should have and does not."""
    client = mlflow.MlflowClient(address)
    experiment = client.get_experiment_by_name(DATASET)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    finished = [found for found in runs if found.info.status == "FINISHED"]
    steps = [[point.step for point in client.get_metric_history(found.info.run_id, "train/loss")] for found in finished]
    expected = [range(1, int(found.data.metrics["train/epochs_run"]) + 1) for found in finished]
    models = client.search_logged_models([experiment.experiment_id])
    return {
        "runs": len(runs),
        "runs_lost_or_twice": abs(fits - len({found.info.run_name for found in finished})) + abs(fits - len(runs)),
        "epochs": sum(map(len, steps)),
        "epochs_lost_or_twice": sum(
            sorted(found) != list(wanted) for found, wanted in zip(steps, expected, strict=True)
        ),
        "models": sum(model.status == "READY" for model in models),
    }


if __name__ == "__main__":
    main()
