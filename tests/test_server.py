"""The tracking server on PostgreSQL: many clients lose nothing, a restart keeps everything, strangers get no access."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from ruamel.yaml import YAML

from conftest import PROJECT
from medtransfer.tracking import mlflow_runs, mlflow_store
from store import PROCESS
from tracking_server import free_port, postgres, serve, wait_until_it_answers

PROCESSES, POINTS = 8, 20


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that PostgreSQL, which is not root's, can reach."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")) and not shutil.which("pg_ctl"):
        pytest.skip("PostgreSQL is not installed (Debian's package: postgresql)")
    with tempfile.TemporaryDirectory(prefix="medtransfer-server-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@contextmanager
def served_by_the_command(folder: Path) -> Iterator[str]:
    """Run `python tools/tracking_server.py FOLDER --port …`, which prints its address, and end it with Ctrl-C."""
    program = PROJECT / "tools" / "tracking_server.py"
    command: list[str | Path] = [sys.executable, program, folder, "--port", str(free_port())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        name, _, address = process.stdout.readline().strip().partition("=")
        assert name == "export MLFLOW_TRACKING_URI"
        yield address
        process.send_signal(signal.SIGINT)
        assert "stopped; the same folder serves the same runs again" in process.communicate(timeout=120)[0]
        assert process.returncode == 0
    finally:
        process.terminate()
        process.wait(timeout=120)


@pytest.mark.slow
def test_eight_processes_at_once_lose_nothing_and_a_restart_keeps_it(folder: Path) -> None:
    with served_by_the_command(folder) as address:
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
            assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == list(
                range(1, POINTS + 1)
            )


SECRETS = {
    "POSTGRES_PASSWORD": "of no use through a socket",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "correct horse battery",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "any long random text",
}


@contextmanager
def serve_as_composed(folder: Path) -> Iterator[str]:
    """Start what compose.yaml starts as `mlflow`; only places, address and port are this machine's."""
    service = YAML(typ="safe").load((PROJECT / "compose.yaml").read_text())["services"]["mlflow"]
    said = {
        name: re.sub(r"\$\{(\w+)[^}]*\}", lambda found: SECRETS[found[1]], value)
        for name, value in service["environment"].items()
    }
    here = {
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--artifacts-destination=/mlflow/artifacts": f"--artifacts-destination={folder}/artifacts",
    }
    assert set(here) < set(service["command"])
    assert said["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql+psycopg://")
    port = free_port()
    command = [sys.executable, "-m", *(here.get(part, part) for part in service["command"]), f"--port={port}"]
    with postgres(folder / "postgres") as store, (folder / "mlflow.log").open("ab") as log:
        env = {**os.environ, **said, "MLFLOW_BACKEND_STORE_URI": store}
        process = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until_it_answers(process, f"http://127.0.0.1:{port}/health", folder / "mlflow.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


@pytest.mark.slow
def test_the_composed_server_asks_for_a_password_and_its_own_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ("admin", SECRETS["MLFLOW_AUTH_ADMIN_PASSWORD"])
    with serve_as_composed(folder) as address:

        def ask(**changes: Any) -> int:
            arguments = {"json": {"max_results": 1}, "auth": own, "timeout": 30, **changes}
            return requests.post(f"{address}/api/2.0/mlflow/experiments/search", **arguments).status_code

        assert ask() == 200
        assert ask(headers={"Host": "localhost:5000"}) == 200
        assert ask(auth=None) == 401
        assert ask(auth=("admin", "password1234")) == 401  # MLflow's own default
        assert ask(headers={"Host": "evil.example"}) == 403

        monkeypatch.chdir(folder)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        for name, value in zip(("USERNAME", "PASSWORD"), own, strict=True):
            monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
        with mlflow_runs.run("many", "one", "fit-one", {"a": 1}, {}, sample_seconds=None) as run:
            run.log_epochs([{"epoch": 1, "loss": 0.5}])
        Path("figure.txt").write_text("a figure")
        assert mlflow_runs.attach("many", "fit-one", [Path("figure.txt")])
        client = mlflow_store.connect()
        found = client.get_run(str(mlflow_runs.find(client, "many", "fit-one")))
        assert found.info.status == "FINISHED"
        assert found.data.metrics == {"train/loss": 0.5}
        assert [entry.path for entry in client.list_artifacts(found.info.run_id)] == ["figure.txt"]
    assert list((folder / "artifacts").rglob("figure.txt"))
