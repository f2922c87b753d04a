"""MLflow: a run has the status of its process, and a logged model predicts from raw pixels like the network."""

import hashlib
import os
import re
import shutil
import signal
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import psutil
import pynvml
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from mlflow.protos import databricks_pb2
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from attacks import attack, free_port, kill, started
from conftest import use_store
from medtransfer.audit import push as track_push
from medtransfer.core.dvc import data_version
from medtransfer.core.errors import UserError
from medtransfer.core.params import Params
from medtransfer.core.recipe import TrainParams
from medtransfer.models import vgg16
from medtransfer.tracking import mlflow_models, mlflow_runs, mlflow_store
from medtransfer.training.batches import Batches
from medtransfer.training.loop import fit
from medtransfer.trees.classifiers import TRUSTED_TYPES, build_tree, flatten_pixels
from store import lost_points

ROWS = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]


@pytest.fixture
def store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    use_store(tmp_path, empty_store, monkeypatch)
    return mlflow_store.connect()


@pytest.mark.parametrize(
    ("ending", "status"),
    [(None, "FINISHED"), (RuntimeError, "FAILED"), (SystemExit, "FAILED"), (KeyboardInterrupt, "KILLED")],
)
def test_a_run_has_the_status_of_its_work(
    store: mlflow.MlflowClient, ending: type[BaseException] | None, status: str
) -> None:
    seen = []

    def work() -> None:
        with mlflow_runs.run("ham10000", "x-seed0", "f1", {"a": {"b": 1}}, {"seed": 0}) as run:
            seen.append(run.run_id)
            run.log_epochs(ROWS[:1])
            run.log_epochs(ROWS)
            if ending:
                raise ending

    if ending:
        with pytest.raises(ending):
            work()
    else:
        work()
    run = store.get_run(seen[0] or "")
    assert run.info.status == status
    assert run.info.run_name == "x-seed0"
    assert run.data.params == {"a.b": "1"}
    assert [(point.step, point.value) for point in store.get_metric_history(run.info.run_id, "train/loss")] == [
        (1, 0.5),
        (2, 0.25),
    ]
    assert mlflow.active_run() is None


def test_a_fit_has_its_own_run_whatever_the_environment_says(
    store: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = store.create_experiment("mine")
    mine = store.create_run(experiment, run_name="mine").info.run_id
    names = {"MLFLOW_RUN_ID": mine, "MLFLOW_EXPERIMENT_ID": experiment, "MLFLOW_EXPERIMENT_NAME": "mine"}
    names |= {"MLFLOW_REGISTRY_URI": "http://127.0.0.1:1", "MLFLOW_ACTIVE_MODEL_ID": "m-1"}
    names |= {"MLFLOW_ENABLE_ASYNC_LOGGING": "true", "MLFLOW_ENABLE_WORKSPACES": "true"}
    for name, value in {**names, "MLFLOW_RUN_CONTEXT": '{"seed": "7"}'}.items():
        monkeypatch.setenv(name, value)
    with mlflow_runs.run("ham10000", "x-seed0", "f1", {"a": 1}, {"dataset": "ham10000"}) as run:
        run.log_metrics({"loss": 0.5})
        assert run.run_id != mine
    assert mlflow.get_registry_uri() == mlflow.get_tracking_uri()
    logged, kept = (store.get_run(run_id) for run_id in (mlflow_runs.find(store, "ham10000", "f1") or "", mine))
    assert (logged.info.run_name, logged.data.metrics) == ("x-seed0", {"loss": 0.5})
    assert "seed" not in logged.data.tags
    assert (kept.info.run_name, kept.info.status, kept.data.metrics, kept.data.params) == ("mine", "RUNNING", {}, {})
    assert [found.info.run_id for found in store.search_runs([experiment])] == [mine]


def test_an_interrupt_that_became_another_exception_still_counts(store: mlflow.MlflowClient) -> None:
    """As in zipfile if Ctrl-C comes while a checkpoint is opened: closing it then raises a ValueError."""

    def work() -> None:
        with mlflow_runs.run("ham10000", "x-seed0", "f1", {}, {}):
            try:
                raise KeyboardInterrupt
            finally:
                raise ValueError("open still")

    with pytest.raises(ValueError, match="open still"):
        work()
    assert store.get_run(mlflow_runs.find(store, "ham10000", "f1") or "").info.status == "KILLED"


@pytest.mark.parametrize(("during", "taken_up"), [("create_run", False), ("log_batch", False), ("log_batch", True)])
def test_an_interrupt_while_a_run_is_started_ends_it(
    store: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch, during: str, taken_up: bool
) -> None:
    """Ctrl-C comes after the store has acted but before the client knows."""
    if taken_up:
        with pytest.raises(RuntimeError), mlflow_runs.run("ham10000", "x-seed0", "f1", {"a": 1}, {}):
            raise RuntimeError
    with monkeypatch.context() as patched:
        patched.setattr(SqlAlchemyStore, during, interrupted(getattr(SqlAlchemyStore, during)))
        with pytest.raises(KeyboardInterrupt), mlflow_runs.run("ham10000", "x-seed0", "f1", {"a": 1}, {}):
            raise AssertionError("the run was started")
    (run,) = store.search_runs([store.get_experiment_by_name("ham10000").experiment_id])
    assert run.info.status == "KILLED"
    assert mlflow.active_run() is None


def interrupted(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, with one Ctrl-C as it returns."""
    came: list[bool] = []

    def call(*arguments: Any, **options: Any) -> Any:
        result = method(*arguments, **options)
        if not came:
            came.append(True)
            raise KeyboardInterrupt
        return result

    return call


def test_only_the_children_of_a_run_are_ended(store: mlflow.MlflowClient) -> None:
    with mlflow_runs.run("sweep", "grid", "f1", {}, {}) as parent:
        target = mlflow_runs.RunTarget("sweep", "x", parent.run_id)
        experiment = store.get_run(parent.run_id or "").info.experiment_id
        own = target.tags | {mlflow_runs.PROCESS: "node 1 0"}
        running, other = (store.create_run(experiment, tags=tags).info.run_id for tags in (own, {}))
        finished = store.create_run(experiment, tags=target.tags).info.run_id
        store.set_terminated(finished, "FINISHED")
        parent.close_children()
        found = [store.get_run(run or "").info.status for run in (running, other, finished, parent.run_id)]
        assert found == ["KILLED", "RUNNING", "FINISHED", "RUNNING"]


def test_a_logged_network_predicts_the_same_from_raw_pixels(store: mlflow.MlflowClient, tiny: TrainParams) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    model = vgg16.build_vgg16(32, 3, tiny, seed=0)
    expected = model.predict(images, verbose=0)
    with mlflow_runs.run("ham10000", "x", "f1", {}, {}) as run:
        run.log_model(lambda: mlflow_models.log_keras_model(model, images[:1]))
    loaded = mlflow.pyfunc.load_model(f"runs:/{run.run_id}/model")
    assert (loaded.predict(images) == expected).all()
    assert loaded.metadata.signature.inputs.inputs[0].type == np.uint8
    assert np.asarray(loaded.input_example).shape == (1, 32, 32, 3)


def test_a_logged_tree_predicts_the_same_from_raw_pixels(
    store: mlflow.MlflowClient, params: Params, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    features = flatten_pixels(rng.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8))
    tree = build_tree(params.trees.random_forest, 0).fit(features, np.arange(30) % 3)
    expected = tree.predict_proba(features)
    with mlflow_runs.run("ham10000", "t", "f1", {}, {}) as run:
        run.log_model(lambda: mlflow_models.log_sklearn_model(tree, features[:1], TRUSTED_TYPES))
    loaded = mlflow.pyfunc.load_model(f"runs:/{run.run_id}/model")
    assert (loaded.predict(features) == expected).all()
    pickles = [path for path in (tmp_path / "mlruns").rglob("*") if path.suffix in (".pkl", ".pickle", ".joblib")]
    assert pickles == []


def test_the_data_are_the_runs_input_and_every_row_changes_their_digest(
    store: mlflow.MlflowClient, tmp_path: Path
) -> None:
    table, digests = tmp_path / "samples.csv", set()
    for label in ("nv", "mel"):
        pd.DataFrame({"id": range(10_015), "label": [*["nv"] * 10_014, label]}).to_csv(table, index=False)
        with mlflow_runs.run("ham10000", "x", label, {}, {}) as run:
            for _ in range(2):
                run.log_data(table, {"dataset": "ham10000", "data_source": "here", "data_version": "1"})
        (entry,) = store.get_run(run.run_id or "").inputs.dataset_inputs
        assert entry.dataset.name == "ham10000"
        assert '"data_version": "1"' in entry.dataset.source
        assert hashlib.sha256(table.read_bytes()).hexdigest().startswith(entry.dataset.digest)
        digests.add(entry.dataset.digest)
    assert len(digests) == 2


def test_files_are_added_only_to_a_known_run(store: mlflow.MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "f.txt").touch()
    with mlflow_runs.run("ham10000", "x", "f1", {}, {}) as run:
        pass
    assert mlflow_runs.attach("ham10000", "f1", [tmp_path / "f.txt"]) is True
    assert [artifact.path for artifact in store.list_artifacts(run.run_id)] == ["f.txt"]
    assert mlflow_runs.attach("ham10000", "f2", [tmp_path / "f.txt"]) is False
    assert mlflow_runs.attach("nowhere", "f1", [tmp_path / "f.txt"]) is False


def test_a_refit_supersedes_this_projects_finished_run_of_the_same_model_and_seed(
    store: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def finish(fit: str, model: str, seed: int) -> str:
        with mlflow_runs.run("ham10000", model, fit, {}, {"model": model, "seed": seed}, None) as run:
            run.supersede()
        assert run.run_id
        return run.run_id

    with monkeypatch.context() as elsewhere:
        (tmp_path / "clone").mkdir()
        elsewhere.chdir(tmp_path / "clone")
        other_clone = finish("f0", "x", 0)
    first, other_seed, other_model = finish("f1", "x", 0), finish("f2", "x", 1), finish("f3", "y", 0)
    again = finish("f4", "x", 0)
    others = other_clone, other_seed, other_model
    found = [store.get_run(run_id).data.tags.get(mlflow_runs.SUPERSEDED) for run_id in (first, *others)]
    assert found == ["f4", None, None, None]
    experiment = store.get_experiment_by_name("ham10000")
    assert "validation/best/macro_f1" in experiment.tags[mlflow_store.NOTE]
    left = store.search_runs([experiment.experiment_id], f"tags.`{mlflow_runs.SUPERSEDED}` IS NULL")
    assert {run.info.run_id for run in left} == {*others, again}


def test_the_data_version_is_dvcs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert data_version() == "unknown"
    version = f"{'0' * 32}.dir"
    Path("data.dvc").write_text(f"outs:\n- md5: {version}\n  size: 1\n  nfiles: 1\n  path: data\n")
    assert data_version() == version


def test_an_unfinished_run_continues_and_each_point_arrives_once(store: mlflow.MlflowClient) -> None:
    with pytest.raises(KeyboardInterrupt), mlflow_runs.run("ham10000", "x", "f1", {"a": 1}, {"device": "one"}) as first:
        first.log_epochs(ROWS[:1])
        first.log_metrics({"test_f1": 0.5})
        raise KeyboardInterrupt
    assert store.get_run(first.run_id or "").data.tags[mlflow_runs.ERROR].startswith("KeyboardInterrupt")
    with mlflow_runs.run("ham10000", "x", "f1", {"a": 1}, {"device": "two"}) as second:
        second.log_epochs(ROWS)
        second.log_metrics({"test_f1": 0.5, "test_f2": 0.25})
    (run,) = store.search_runs([store.get_experiment_by_name("ham10000").experiment_id])
    assert first.run_id == second.run_id == run.info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.tags["device"] == "two"
    assert mlflow_runs.ERROR not in run.data.tags
    assert len(store.get_metric_history(run.info.run_id, "train/loss")) == 2
    assert len(store.get_metric_history(run.info.run_id, "test_f1")) == 1
    assert run.data.metrics["test_f2"] == 0.25


KILLED = """
import os, signal
from medtransfer.audit import push as track_push
from medtransfer.tracking import mlflow_models, mlflow_runs, mlflow_store
with mlflow_runs.run("ham10000", "x", "killed", {}, {}):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_whose_process_was_killed_is_ended_by_the_next(
    store: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED], capture_output=True).returncode == -signal.SIGKILL
    experiment = store.get_experiment_by_name("ham10000").experiment_id
    (killed,) = store.search_runs([experiment])
    assert killed.info.status == "RUNNING"
    with mlflow_runs.run("ham10000", "y", "other", {}, {}) as alive:
        assert store.get_run(killed.info.run_id).info.status == "KILLED"
        assert mlflow_runs.close_stale(store) == []
        booted = psutil.boot_time()
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted + 3)  # as after the clock was set
        assert mlflow_runs.close_stale(store) == []
        assert store.get_run(alive.run_id).info.status == "RUNNING"


def test_without_a_server_the_work_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with mlflow_runs.run("ham10000", "x", "f1", {}, {}) as run:
        run.log_epochs(ROWS)
        run.log_model(lambda: pytest.fail("MLflow does not answer"))
    assert run.run_id is None
    (record,) = [entry for entry in caplog.records if "does not answer" in entry.message]
    assert "audit --repair" in record.message
    assert mlflow_runs.attach("ham10000", "f1", []) is False


def test_a_store_that_fails_during_a_fit_is_one_line(
    store: mlflow.MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mlflow_runs.run("ham10000", "x-seed0", "f1", {}, {}, sample_seconds=None) as run:
        with sqlite3.connect(tmp_path / "mlruns" / "mlflow.db") as database:
            database.execute("DROP TABLE metrics")  # as if the disk were full
        run.log_epochs(ROWS)
        run.log_epochs(ROWS)
    (line,) = [entry.getMessage() for entry in caplog.records if entry.levelname in ("WARNING", "ERROR")]
    assert "no such table" in line
    assert "the fit continues" in line


def test_a_bug_of_ours_is_not_reported_as_an_unreachable_server(store: mlflow.MlflowClient) -> None:
    with mlflow_runs.run("ham10000", "x", "f1", {"epochs": 1}, {}):
        pass
    with (
        pytest.raises(mlflow.MlflowException, match="not/a:name"),
        mlflow_runs.run("ham10000", "y", "f2", {}, {}) as run,
    ):
        run.log_metrics({"not/a:name?": 1.0})
    assert mlflow.active_run() is None


def run_in_shell(command: str) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PATH": path})


def test_the_commands_for_a_deleted_experiment_work_as_they_are_printed(
    store: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = store.get_experiment(store.create_experiment("ham10000"))
    store.delete_experiment(known.experiment_id)
    with (
        pytest.raises(UserError, match=r"experiment ham10000 .* was deleted") as refused,
        mlflow_runs.run("ham10000", "x", "f2", {}, {}),
    ):
        pass
    restore, remove = re.findall("`(.+?)`", str(refused.value))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    run_in_shell(restore)
    assert store.get_experiment(known.experiment_id).lifecycle_stage == "active"
    store.delete_experiment(known.experiment_id)
    run_in_shell(remove)
    assert store.get_experiment_by_name("ham10000") is None


def test_a_damaged_store_is_moved_away_and_not_blamed_on_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "two words" / "mlruns").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "two words")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    Path("mlruns/mlflow.db").write_text("no database")
    with pytest.raises(UserError) as refused:
        mlflow_store.reach()
    assert "MLFLOW_TRACKING_URI" not in str(refused.value)
    (move,) = re.findall(r"\((mv .+?)\)", str(refused.value))
    subprocess.run(move, shell=True, check=True)
    assert not Path("mlruns/mlflow.db").exists()


def test_a_run_whose_parameters_were_changed_is_not_continued_until_it_is_deleted(
    store: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mlflow_runs.run("ham10000", "x", "f1", {"train": {"epochs": 1}}, {}) as run:
        pass
    with (
        pytest.raises(UserError, match=rf"{run.run_id}: train.epochs is 1, expected 2 .*delete the run") as refused,
        mlflow_runs.run("ham10000", "x", "f1", {"train": {"epochs": 2}}, {}),
    ):
        pass
    assert mlflow.active_run() is None
    (delete,) = re.findall("`(.+?)`", str(refused.value))
    with monkeypatch.context() as unset:
        unset.delenv("MLFLOW_TRACKING_URI")
        run_in_shell(delete)
    with mlflow_runs.run("ham10000", "x", "f1", {"train": {"epochs": 2}}, {}) as again:
        pass
    assert again.run_id != run.run_id


# --- seven endings, each in its own process


# What ends a run, and the status and error that MLflow then shows.
ENDINGS = [
    ("pass", "FINISHED", None),
    ("raise RuntimeError('broken')", "FAILED", "RuntimeError: broken"),
    ("sys.exit(1)", "FAILED", "SystemExit: 1"),
    ("os.kill(os.getpid(), signal.SIGTERM)", "KILLED", "KeyboardInterrupt: 15"),
    ("os.kill(os.getpid(), signal.SIGKILL)", "KILLED", None),
    ("os._exit(1)", "KILLED", None),
    ("resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33)); np.ones(2**33)", "FAILED", "MemoryError: Unable"),
]
# The processes are forked from one that has already imported MLflow, like the stages of a study.
END_EACH = """
import os, resource, signal, sys
import mlflow.store.tracking.sqlalchemy_store, mlflow.system_metrics.system_metrics_monitor
import numpy as np
from medtransfer.cli.app import stop_like_ctrl_c
from medtransfer.tracking import mlflow_runs
for number, ending in enumerate(sys.argv[1:]):
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, stop_like_ctrl_c)
        with mlflow_runs.run("ham10000", "x", f"fit{number}", {}, {}):
            exec(ending)
        sys.exit()
    os.wait()
"""


def test_a_run_gets_the_status_of_its_process(store: mlflow.MlflowClient) -> None:
    endings = [ending for ending, _, _ in ENDINGS]
    subprocess.run([sys.executable, "-c", END_EACH, *endings], capture_output=True, check=True)
    mlflow_runs.close_stale(store)
    runs = store.search_runs([store.get_experiment_by_name("ham10000").experiment_id])
    assert len(runs) == len(ENDINGS)
    for number, (ending, status, said) in enumerate(ENDINGS):
        run = store.get_run(mlflow_runs.find(store, "ham10000", f"fit{number}") or "")
        assert run.info.status == status, ending
        error = run.data.tags.get(mlflow_runs.ERROR)
        assert error is None if said is None else error.startswith(said), ending


def test_a_loss_of_nan_fails_the_run_and_names_the_epoch(store: mlflow.MlflowClient, tiny: TrainParams) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    model = vgg16.build_vgg16(32, 2, tiny, seed=0)
    model.layers[-1].set_weights([np.full_like(weight, np.nan) for weight in model.layers[-1].get_weights()])
    batches = Batches(images, np.arange(4), np.arange(4, dtype=np.int32) % 2, 4)
    with pytest.raises(UserError), mlflow_runs.run("ham10000", "x", "f1", {}, {}) as run:
        fit(model, batches, batches, tiny, run.log_epochs)
    ended = store.get_run(run.run_id)
    assert ended.info.status == "FAILED"
    assert ended.data.tags[mlflow_runs.ERROR].startswith("DivergedError: epoch 1: the loss is nan")
    assert "train/loss" not in ended.data.metrics


# --- a server that comes and goes


@contextmanager
def server(folder: Path, port: int, *more: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `mlflow server` over a store in `folder`."""
    places = ("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts")
    command = ("mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *places, *more)
    with started(folder, command, f"http://127.0.0.1:{port}/health") as process:
        yield process


@pytest.mark.slow
def test_a_server_that_dies_early_or_late_gets_every_point_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    port = free_port()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def work(fit_id: str, running: "subprocess.Popen[bytes] | None", dies_after: int) -> None:
        with mlflow_runs.run("ham10000", fit_id, fit_id, {"a": 1}, {}, sample_seconds=None) as run:
            for epoch in range(1, 5):
                run.log_epochs([{"epoch": number, "loss": 1 / number} for number in range(1, epoch + 1)])
                if running and epoch == dies_after:
                    kill(running)
            run.log_metrics({"test_f1": 0.5})

    for fit_id, dies_after in (("early", 1), ("late", 4)):
        with server(tmp_path, port) as running:
            work(fit_id, running, dies_after)
        assert "does not answer" in caplog.text
        caplog.clear()
    with server(tmp_path, port):
        for fit_id in ("early", "late"):
            work(fit_id, None, 0)
        client = mlflow_store.connect()
        runs = client.search_runs([client.get_experiment_by_name("ham10000").experiment_id])
        assert sorted(run.info.run_name for run in runs) == ["early", "late"]
        for run in runs:
            assert run.info.status == "FINISHED"
            assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3, 4]
            assert len(client.get_metric_history(run.info.run_id, "test_f1")) == 1


def test_a_score_whose_network_cannot_be_looked_up_is_kept(
    store: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(*_: object) -> None:
        raise requests.exceptions.ConnectionError("gone")

    with mlflow_runs.run("scores", "x", "f1", {}, {}, sample_seconds=None) as run:
        monkeypatch.setattr(mlflow_runs, "find", unreachable)
        run.name_network("ham10000", "f0")
    assert "does not answer (gone)" in caplog.text
    assert store.search_runs([store.get_experiment_by_name("scores").experiment_id])


def test_a_server_with_passwords_refuses_requests_without_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As docs/security.md starts it."""
    port = free_port()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "a long password")
    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "any secret")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with server(tmp_path, port, "--app-name", "basic-auth"):
        for credentials, status in ((None, 401), (("admin", "password"), 401), (("admin", "a long password"), 200)):
            address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
            assert requests.get(address, auth=credentials, timeout=60).status_code == status
        with mlflow_runs.run("ham10000", "x", "f1", {}, {}, sample_seconds=None) as run:
            assert run.run_id is None
        assert "does not answer" in caplog.text
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a long password")
        with mlflow_runs.run("ham10000", "x", "f1", {}, {}, sample_seconds=None) as run:
            run.log_epochs(ROWS)
        assert mlflow_store.connect().get_run(run.run_id or "").info.status == "FINISHED"


def test_processes_that_start_at_once_on_a_fresh_store_lose_nothing(tmp_path: Path) -> None:
    assert lost_points(tmp_path, processes=4, points=10) == {"points": 0, "runs": 0}


@pytest.mark.slow
def test_requests_that_should_do_nothing_are_refused(tmp_path: Path) -> None:
    found = attack(tmp_path)
    assert found["not_refused"] == {}
    assert found["leaked"] == []
    assert found["canary"] == []
    assert found["a_good_request"] == found["a_good_image"] == found["the_page"] == 200


@pytest.mark.parametrize("name", ["what?", "no#1"])
def test_a_folder_that_mlflow_would_cut_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="MLflow cannot keep runs where a folder's name has"):
        mlflow_store.reach()
    assert [path.name for path in tmp_path.rglob("*")] == [name]


def test_options_in_the_address_of_a_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlruns/mlflow.db?timeout=30")
    with pytest.raises(
        UserError, match=r"MLFLOW_TRACKING_URI: mlflow\.db\?timeout=30: has '\?' or '#'; expected a file"
    ):
        mlflow_store.reach()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_not_taken_for_a_damaged_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with closing(sqlite3.connect(tmp_path / "full.db")) as database:
        database.execute("CREATE TABLE points (value)")
        database.execute("PRAGMA max_page_count = 2")
        full = r"database or disk is full\); free some space on that disk, and run again"
        with pytest.raises(UserError, match=full), mlflow_store.answering():
            database.executemany("INSERT INTO points VALUES (?)", [("x" * 5000,)] * 9)


@pytest.mark.parametrize("newer", [True, False])
def test_an_upgrade_is_advised_only_for_an_older_store(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newer: bool
) -> None:
    file = shutil.copy(empty_store, tmp_path / "a b.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", ["ffffffffffff" if newer else "0584bdc529eb"])
        database.commit()
    with pytest.raises(UserError) as refused:
        mlflow_store.reach()
    upgrade = f"run `mlflow db upgrade 'sqlite:///{file}'`"
    assert ("an MLflow newer than" if newer else upgrade) in str(refused.value)
    assert (upgrade not in str(refused.value)) == newer


def test_a_database_without_its_driver_is_one_line_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mysql+nodriver://me:SECRET@host/db")
    with pytest.raises(UserError, match=r"MLflow at mysql\+nodriver://\*\*\*@host/db does not answer"):
        mlflow_store.reach()


@pytest.mark.parametrize("code", [databricks_pb2.UNAUTHENTICATED, databricks_pb2.PERMISSION_DENIED])
def test_a_server_that_refuses_the_account_is_not_to_be_started(code: int) -> None:
    with (
        pytest.raises(UserError, match=r"refuses this account \(no\); set MLFLOW_TRACKING_USERNAME and"),
        mlflow_store.answering(),
    ):
        raise mlflow.MlflowException("no", error_code=code)


def test_an_audit_without_mlflow_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nothing listens
    with pytest.raises(UserError, match=r"MLflow at http://127.0.0.1:9 does not answer"):
        mlflow_store.reach()


def test_a_server_with_an_unknown_certificate_is_not_to_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in hospitals that sign their own."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a")])
    begun = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    dated = begun.not_valid_before(datetime(2020, 1, 1)).not_valid_after(datetime(2120, 1, 1))
    content = dated.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    content += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "server.pem").write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://127.0.0.1:{server.server_port}")
        with pytest.raises(UserError, match="; set MLFLOW_TRACKING_SERVER_CERT_PATH to the file with the server's"):
            mlflow_store.reach()
        server.shutdown()


def test_a_server_that_asks_for_a_password_is_not_to_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    class Locked(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(401)

    with HTTPServer(("127.0.0.1", 0), Locked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(UserError, match=r"401 .*; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
            mlflow_store.reach()
        server.shutdown()


@pytest.mark.parametrize("address", ["localhost:5000", "file:./mlruns", "folder", "http://[::1"])
def test_an_address_that_mlflow_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        mlflow_store.reach()
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"), mlflow_runs.run("x", "y", "f1", {}, {}, None):
        pass


# --- no password is shown


@pytest.mark.parametrize(
    "address",
    [
        "http://admin:SECRET@127.0.0.1:9",
        "http://admin:S/SECRET@x@127.0.0.1:9",
        "postgresql://admin:SECRET@127.0.0.1:9/mlflow",
    ],
)
def test_a_password_in_the_address_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    Path("mlruns").mkdir()
    Path("mlruns/mlflow.db").touch()
    with mlflow_runs.run("ham10000", "x", "f1", {}, {}, sample_seconds=None):
        pass
    said = [caplog.text]
    for ask in (
        mlflow_store.reach,
        lambda: mlflow_models.fetch_classifier("models:/x@best", tmp_path),
        track_push.push,
    ):
        with pytest.raises(UserError) as caught:
            ask()
        said.append(str(caught.value))
    assert all("://***@127.0.0.1:9" in text and "SECRET" not in text for text in said), said


def test_only_the_secrets_in_a_text_are_hidden() -> None:
    assert mlflow_store.redact("at https://token@host/x (no)") == "at https://***@host/x (no)"
    assert mlflow_store.redact("postgresql://db/x?password=SECRET&a=b") == "postgresql://db/x?password=***&a=b"
    assert (
        mlflow_store.redact("sqlite:///mlruns/mlflow.db, me@example.org")
        == "sqlite:///mlruns/mlflow.db, me@example.org"
    )
    listed = "The following failures occurred while downloading:\n##### File model #####\n[Errno 13] Permission denied"
    assert mlflow_store.reason(RuntimeError(listed)) == "[Errno 13] Permission denied"
    long = mlflow_store.reason(RuntimeError("x" * 180 + " http://admin:" + "SECRET" * 20 + "@host"))
    assert "SECRET" not in long


def test_a_password_in_an_exception_is_not_logged_with_the_run(store: mlflow.MlflowClient) -> None:
    with pytest.raises(RuntimeError), mlflow_runs.run("ham10000", "x", "f1", {}, {}, sample_seconds=None) as run:
        raise RuntimeError("http://admin:SECRET@host is away")
    assert store.get_run(run.run_id).data.tags[mlflow_runs.ERROR] == "RuntimeError: http://***@host is away"


def test_an_experiment_that_dvc_runs_in_a_copy_keeps_its_runs_in_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "tmp123"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with mlflow_runs.run("ham10000", "one", "fit-1", {}, {}, sample_seconds=None):
        Path("figure.txt").write_text("a figure")
    assert mlflow_runs.attach("ham10000", "fit-1", [Path("figure.txt")])
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(copy)
    client = mlflow_store.connect()
    run_id = mlflow_runs.find(client, "ham10000", "fit-1")
    assert run_id
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/figure.txt") == "a figure"


def test_a_gpu_without_a_power_limit_keeps_its_other_metrics(
    store: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lacks(gpu: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    memory = SimpleNamespace(used=1, total=2)
    for name, answer in (
        ("nvmlInit", lambda: None),
        ("nvmlDeviceGetCount", lambda: 1),
        ("nvmlDeviceGetHandleByIndex", lambda index: "gpu"),
        ("nvmlDeviceGetMemoryInfo", lambda gpu: memory),
        ("nvmlDeviceGetUtilizationRates", lacks),
        ("nvmlDeviceGetPowerUsage", lambda gpu: 1000),
    ):
        monkeypatch.setattr(f"pynvml.{name}", answer)
    monkeypatch.setattr(mlflow_runs, "POWER_LIMIT", lambda gpu: 0)
    with mlflow_runs.run("ham10000", "x", "f1", {}, {}, sample_seconds=0.2) as run:
        time.sleep(1.5)
    logged = store.get_run(run.run_id).data.metrics
    assert logged["system/gpu_0_memory_usage_percentage"] == 50
    assert "system/cpu_utilization_percentage" in logged
    assert caplog.messages == []


@pytest.mark.parametrize("named", [None, "mlruns/mlflow.db", "my.db"])
def test_a_relative_store_is_the_projects_in_a_copy_that_dvc_made(
    tmp_path: Path, named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if named:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{named}")
    else:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "tmp123"
    copy.mkdir(parents=True)
    for folder in (tmp_path, copy):
        monkeypatch.chdir(folder)
        assert mlflow_store.store_uri() == f"sqlite:///{tmp_path}/{named or 'mlruns/mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///.")
    with pytest.raises(UserError, match="a folder; expected a file"):  # not: move it aside
        mlflow_store.store_uri()


def test_the_end_of_a_windows_line_is_no_part_of_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000\r")
    assert mlflow_store.store_uri() == "http://server:5000"


@pytest.mark.parametrize("fixed", ["mlruns", "mlflow.db"])
def test_a_store_that_cannot_be_written_is_only_read(
    fixed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow_store.connect()
    # Root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: (mode, Path(path).name) != (os.W_OK, fixed))
    with pytest.raises(UserError, match=f"{fixed}: read-only, so MLflow cannot record runs there; fix the permissions"):
        mlflow_store.connect()
    assert mlflow_store.connect(read_only=True).search_experiments()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/server.db")
    with pytest.raises(UserError, match=f"{fixed}: read-only, but push must write there"):
        track_push.push()


def test_a_moved_or_copied_project_keeps_its_artifacts_and_leaves_the_old_place_alone(
    params: Params, tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = np.arange(12, dtype=np.uint8).reshape(4, 3)
    tree = build_tree(params.trees.decision_tree, 0).fit(features, [0, 1, 0, 1])
    old = tmp_path / "old_a%20"
    (old / "mlruns").mkdir(parents=True)
    shutil.copy(empty_store, old / "mlruns")

    def enter(folder: Path) -> None:
        monkeypatch.chdir(folder)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it

    def log(fit: str) -> None:
        Path("figure.txt").write_text(fit)
        with mlflow_runs.run("ham10000", fit, fit, {}, {}, sample_seconds=None) as run:
            run.log_model(lambda: mlflow_models.log_sklearn_model(tree, features[:1], TRUSTED_TYPES))
        assert mlflow_runs.attach("ham10000", fit, [Path("figure.txt")])

    def check(*fits: str) -> None:
        client = mlflow_store.connect()
        for name in fits:
            run = client.get_run(mlflow_runs.find(client, "ham10000", name))
            assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/figure.txt") == name
            assert mlflow_models.model_problem(client, run) == ""
            assert str(Path.cwd()).replace("%", "%25") in run.info.artifact_uri
            assert list(Path("mlruns").rglob(f"{run.info.run_id}/artifacts/figure.txt"))

    def files(folder: Path) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    enter(old)
    log("first")
    shutil.copytree(old, tmp_path / "oldXa ")
    before = files(old)
    enter(tmp_path / "oldXa ")
    log("second")
    check("first", "second")
    assert files(old) == before
    old.rename(tmp_path / "new")
    enter(tmp_path / "new")
    check("first")
    log("third")
    check("first", "third")
    assert not old.exists()


def test_the_artifacts_of_another_project_in_the_same_database_stay_where_they_are(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "bob" / "mlruns"
    theirs.mkdir(parents=True)
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_store, tmp_path / "mlruns" / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = mlflow_store.connect()
    experiment = client.create_experiment("bob", artifact_location=str(theirs / "7"))
    (theirs / "7").mkdir()
    mlflow_store.keep_artifacts_here()
    assert client.get_experiment(experiment).artifact_location == str(theirs / "7")


def test_an_experiment_that_another_process_creates_first_is_used(
    store: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.create_experiment("at the same moment")
    monkeypatch.setattr(mlflow, "get_experiment_by_name", lambda name: None)  # asked before it was made
    with mlflow_runs.run("at the same moment", "x", "f1", {}, {}, sample_seconds=None) as run:
        pass
    assert run.run_id
    assert store.get_run(run.run_id).info.experiment_id == made
