"""Data and artifacts in a folder, behind SSH and in a bucket: pushed, lost and had back.

The servers are on loopback: asyncssh's SFTP, moto's S3.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncssh
import boto3
import mlflow
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from sklearn.tree import DecisionTreeClassifier

from clones import clone, dvc
from medtransfer.tracking import mlflow_models, mlflow_runs
from medtransfer.trees.classifiers import TRUSTED_TYPES
from tracking_server import free_port


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3 server with an empty bucket; the keys are in the environment."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset", method="POST")).close()
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket="bucket")
    yield address
    server.stop()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A clone with the demonstration data."""
    folder = clone(tmp_path / "medtransfer", {})
    dvc(folder, "pull", "data.dvc")
    return folder


def keys(endpoint: str) -> list[str]:
    pages = boto3.client("s3", endpoint_url=endpoint).get_paginator("list_objects_v2").paginate(Bucket="bucket")
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def lose_and_pull(project: Path) -> None:
    """Push, remove data, cache and the remote that came along, pull, and compare every byte."""
    dvc(project, "push")
    before = {path: path.read_bytes() for path in sorted((project / "data").rglob("*")) if path.is_file()}
    assert len(before) > 500
    for folder in ("data", ".dvc/cache", ".dvc/embedded"):
        shutil.rmtree(project / folder)
    dvc(project, "pull", "data.dvc")
    assert {path: path.read_bytes() for path in sorted((project / "data").rglob("*")) if path.is_file()} == before


def test_data_come_back_from_a_folder(project: Path, tmp_path: Path) -> None:
    dvc(project, "remote", "add", "--default", "hospital", str(tmp_path / "disk"))
    lose_and_pull(project)


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """The port of an SSH server that serves files to the holder of a key, and the key's file."""
    host, user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    key = tmp_path / "key"
    user.write_private_key(key)
    known = asyncssh.import_authorized_keys(user.export_public_key().decode())
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1", 0, server_host_keys=[host], authorized_client_keys=known, sftp_factory=True
        )

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(60)
    yield server.get_port(), key
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(60)


@pytest.mark.slow
def test_data_come_back_from_behind_ssh(project: Path, ssh: tuple[int, Path], tmp_path: Path) -> None:
    port, key = ssh
    dvc(project, "remote", "add", "--default", "hospital", f"ssh://user@127.0.0.1{tmp_path / 'disk'}")
    dvc(project, "remote", "modify", "hospital", "port", str(port))
    dvc(project, "remote", "modify", "--local", "hospital", "keyfile", str(key))
    lose_and_pull(project)
    assert len([path for path in (tmp_path / "disk" / "files" / "md5").rglob("*") if path.is_file()]) > 500


def test_data_come_back_from_a_bucket(project: Path, endpoint: str) -> None:
    dvc(project, "remote", "add", "--default", "hospital", "s3://bucket/medtransfer")
    dvc(project, "remote", "modify", "hospital", "endpointurl", endpoint)
    lose_and_pull(project)
    assert all(key.startswith("medtransfer/files/md5/") for key in keys(endpoint))


@contextmanager
def server(folder: Path, endpoint: str) -> Iterator[str]:
    """An MLflow server whose artifacts lie in the bucket."""
    address = f"http://127.0.0.1:{free_port()}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--port", address.rsplit(":", 1)[1], "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", "s3://bucket/mlflow",
    ]  # fmt: skip
    env = {**os.environ, "MLFLOW_S3_ENDPOINT_URL": endpoint, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(command, env=env, cwd=folder, start_new_session=True)
    try:
        for _ in range(600):
            assert process.poll() is None
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=60)


def test_a_servers_artifacts_lie_in_a_bucket_and_clients_need_no_key(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    features = np.arange(12, dtype=np.uint8).reshape(4, 3)
    tree = DecisionTreeClassifier(random_state=0).fit(features, [0, 1, 0, 1])
    Path("figure.txt").write_text("a figure")
    with server(tmp_path, endpoint) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        with mlflow_runs.run("ham10000", "tree", "fit-1", {}, {}, sample_seconds=None) as run:
            run.log_model(lambda: mlflow_models.log_sklearn_model(tree, features, TRUSTED_TYPES))
        assert mlflow_runs.attach("ham10000", "fit-1", [Path("figure.txt")])
        assert run.run_id
        loaded = mlflow.pyfunc.load_model(f"runs:/{run.run_id}/model")
        np.testing.assert_array_equal(loaded.predict(features), tree.predict_proba(features))
        read = mlflow.artifacts.load_text(f"runs:/{run.run_id}/figure.txt")
        assert read == "a figure"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    stored = keys(endpoint)
    assert any(key.endswith("/figure.txt") for key in stored)
    assert all(key.startswith("mlflow/") for key in stored)
