"""The tracking server on PostgreSQL: many processes at once lose nothing, and a restart keeps everything."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from store import PROCESS
from tracking_server import free_port, serve

PROCESSES, POINTS = 8, 20


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that PostgreSQL, which is not root's, can reach."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")) and not shutil.which("pg_ctl"):
        pytest.skip("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="medtransfer-server-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def test_eight_processes_at_once_lose_nothing_and_a_restart_keeps_it(folder: Path) -> None:
    with serve(folder, free_port()) as address:
        env = {**os.environ, "MLFLOW_TRACKING_URI": address}
        started = [
            subprocess.Popen([sys.executable, "-c", PROCESS, str(number), str(POINTS)], env=env, cwd=folder)
            for number in range(PROCESSES)
        ]
        assert [process.wait(timeout=300) for process in started] == [0] * PROCESSES
    with serve(folder, free_port()) as address:
        client = mlflow.MlflowClient(address)
        experiment = client.get_experiment_by_name("many")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        assert sorted(run.info.run_name for run in runs) == [f"run{number}" for number in range(PROCESSES)]
        for run in runs:
            assert run.info.status == "FINISHED"
            assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == list(
                range(1, POINTS + 1)
            )
