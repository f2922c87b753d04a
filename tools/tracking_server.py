"""A tracking server on this machine: PostgreSQL behind `mlflow server`, on loopback, until Ctrl-C.

It is set up like a hospital's server, for trying it out and for tests; compose.yaml has the same in containers.
PostgreSQL's own programs are used (Debian: postgresql); its data and the artifacts are in one folder.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

SECONDS_TO_START = 120


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--port", default=5000, show_default=True)
@click.option("--workers", default=2, show_default=True)
def main(folder: Path, port: int, workers: int) -> None:
    """Serve from FOLDER, which is made where it is missing, until Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with serve(folder, port, workers) as address:
        click.echo(f"export MLFLOW_TRACKING_URI={address}")
        try:
            signal.pause()
        except KeyboardInterrupt:
            click.echo("\nstopped; the same folder serves the same runs again")


@contextmanager
def serve(folder: Path, port: int, workers: int = 2) -> Iterator[str]:
    """Run PostgreSQL and MLflow over `folder` and yield the server's address."""
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    with postgres(folder / "postgres") as store:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
            "--workers", str(workers), "--backend-store-uri", store,
            "--artifacts-destination", str(folder / "artifacts"),
        ]  # fmt: skip
        address = f"http://127.0.0.1:{port}"
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (folder / "mlflow.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True, cwd=folder)
        try:
            wait_until_it_answers(process, f"{address}/health", folder / "mlflow.log")
            yield address
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(timeout=60)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Run a PostgreSQL of our own over `folder`, reached through a socket in it and by no port; yield its address."""
    programs = _programs()
    user = _unprivileged_user()
    if not (folder / "PG_VERSION").exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        if user:
            shutil.chown(folder, user)
        initialise: list[str | Path] = [
            programs / "initdb",
            "--pgdata",
            folder,
            "--username",
            "mlflow",
            "--auth",
            "trust",
        ]
        _run_as(user, initialise, folder)
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c max_connections=200"
    control: list[str | Path] = [programs / "pg_ctl", "--pgdata", folder, "--wait", "--silent"]
    started = [*control, "--log", folder / "postgres.log", "--options", options, "start"]
    _run_as(user, started, folder)
    try:
        yield f"postgresql+psycopg://mlflow@/postgres?host={folder}"
    finally:
        _run_as(user, [*control, "--mode", "fast", "stop"], folder)


def _run_as(user: str | None, command: list[str | Path], folder: Path) -> None:
    """Run one of PostgreSQL's programs; what it says on failure ends the server with a line."""
    try:
        done = subprocess.run(command, user=user, cwd=folder, capture_output=True, text=True)
    except PermissionError:
        raise click.ClickException(
            f"{folder}: the user {user} cannot enter it; choose a folder outside /root"
        ) from None
    if done.returncode:
        said = " ".join(f"{done.stdout} {done.stderr}".split())[-400:]
        raise click.ClickException(f"{folder}: {Path(command[0]).name} ended with {done.returncode}: {said}")


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    path = shutil.which("pg_ctl")
    if not found and not path:
        raise click.ClickException("PostgreSQL is not installed (Debian: apt install postgresql)")
    return found[-1].parent if found else Path(str(path)).parent


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to be root's."""
    return "postgres" if os.geteuid() == 0 else None


def wait_until_it_answers(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    """Return when something answers at the address; raise where the process ends or takes too long."""
    for _ in range(SECONDS_TO_START * 5):
        if process.poll() is not None:
            raise click.ClickException(f"mlflow server ended with {process.returncode}; {log} says why")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise click.ClickException(f"mlflow server does not answer after {SECONDS_TO_START} s; {log}")


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
