"""Pushing runs to a server: each arrives complete and once, even after an interrupted push."""

import errno
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from sklearn.tree import DecisionTreeClassifier

from attacks import free_port
from conftest import use_store
from medtransfer.audit import push as track_push
from medtransfer.cli import cli
from medtransfer.core.errors import UserError
from medtransfer.tracking import mlflow_models, mlflow_runs, mlflow_store
from medtransfer.trees.classifiers import TRUSTED_TYPES
from test_tracking import server

FITS = {"finished": None, "failed": RuntimeError, "killed": KeyboardInterrupt}


@pytest.fixture
def project(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose store has a finished, a failed and a killed run, the first with data, a file and a model."""
    use_store(tmp_path, empty_store, monkeypatch)
    shutil.copy(empty_store, tmp_path / "other.db")
    features = np.arange(12, dtype=np.uint8).reshape(4, 3)
    tree = DecisionTreeClassifier(random_state=0).fit(features, [0, 1, 0, 1])
    Path("figure.txt").write_text("a figure")
    for name, ending in FITS.items():
        try:
            with mlflow_runs.run(
                "ham10000", name, f"fit-{name}", {"a": {"b": 1}}, {"seed": 0}, sample_seconds=None
            ) as run:
                run.log_epochs([{"epoch": epoch, "loss": 1 / epoch} for epoch in range(1, 4)])
                if name == "finished":
                    Path("samples.csv").write_text("id,label\n1,nv\n")
                    run.log_data(Path("samples.csv"), {"dataset": "ham10000", "data_source": "x"})
                    run.log_model(lambda: mlflow_models.log_sklearn_model(tree, features, TRUSTED_TYPES))
                if ending:
                    raise ending
        except (RuntimeError, KeyboardInterrupt):
            pass
    assert mlflow_runs.attach("ham10000", "fit-finished", [Path("figure.txt")])
    return tmp_path


def described(client: mlflow.MlflowClient) -> dict[str, dict[str, object]]:
    """What must be the same on both sides, by the run's name."""
    experiment = client.get_experiment_by_name("ham10000")
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        hidden = (track_push.ORIGIN, "mlflow.log-model.history")
        found[run.info.run_name] = {
            "status": run.info.status,
            "times": (run.info.start_time, run.info.end_time),
            "params": run.data.params,
            "tags": {key: value for key, value in run.data.tags.items() if key not in hidden},
            "points": [
                (key, point.step, point.value, point.timestamp)
                for key in sorted(run.data.metrics)
                for point in client.get_metric_history(run.info.run_id, key)
            ],
            "data": [entry.dataset.digest for entry in run.inputs.dataset_inputs],
            "files": sorted(entry.path for entry in client.list_artifacts(run.info.run_id)),
            "model": not mlflow_models.model_problem(client, run, read=False),
        }
    assert len(found) == len(FITS)
    return found


def test_every_run_arrives_complete_and_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = described(mlflow_store.connect())
    port = free_port()
    with server(project, port):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        first = CliRunner().invoke(cli, ["track", "push"])
        assert first.exit_code == 0, (first.output, first.exception)
        assert "3 runs copied, 0 already there" in first.output
        assert described(mlflow_store.connect()) == ours
        assert "0 runs copied, 3 already there" in CliRunner().invoke(cli, ["track", "push"]).output
        assert described(mlflow_store.connect()) == ours
    with monkeypatch.context() as own:
        own.delenv("MLFLOW_TRACKING_URI")
        Path("later.txt").write_text("a later figure")
        assert mlflow_runs.attach("ham10000", "fit-finished", [Path("later.txt")])
        client = mlflow_store.connect()
        run_id = mlflow_runs.find(client, "ham10000", "fit-finished")
        client.set_tag(run_id, mlflow_runs.SUPERSEDED, "a later fit")
        ours = described(client)
    with server(project, port):
        assert "3 already there" in CliRunner().invoke(cli, ["track", "push"]).output
        assert described(mlflow_store.connect()) == ours
        client = mlflow_store.connect()
        [model] = client.search_logged_models([client.get_experiment_by_name("ham10000").experiment_id])
        loaded = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
        assert loaded.predict(np.arange(3, dtype=np.uint8)[None]).shape == (1, 2)
        assert loaded.metadata.run_id == model.source_run_id


def test_a_changed_figure_is_copied_and_a_score_names_the_copy_of_its_network(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, port = mlflow_store.connect(), free_port()
    network = mlflow_runs.find(client, "ham10000", "fit-finished") or ""
    with mlflow_runs.run("ham10000 on x", "score", "score", {}, {mlflow_runs.NETWORK_RUN: network}, None):
        pass
    for text in ("cited 2018", "cited 2019"):  # as many bytes
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        Path("card.md").write_text(text)
        mlflow_runs.attach("ham10000", "fit-finished", [Path("card.md")])
        with server(project, port):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
            assert CliRunner().invoke(cli, ["track", "push"]).exit_code == 0
            there = mlflow_store.connect()
            copy = mlflow_runs.find(there, "ham10000", "fit-finished") or ""
            score = there.get_run(mlflow_runs.find(there, "ham10000 on x", "score") or "")
            assert score.data.tags[mlflow_runs.NETWORK_RUN] == copy != network
            assert mlflow.artifacts.load_text(f"runs:/{copy}/card.md") == text


def names_by_parent(client: mlflow.MlflowClient) -> dict[str, list[str]]:
    """The names of the runs of the experiment `sweep grid`, by the name of their parent."""
    experiment = client.get_experiment_by_name("sweep grid")
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    names = {"": "", **{run.info.run_id: run.info.run_name for run in found}}
    parents: dict[str, list[str]] = {}
    for run in found:
        parents.setdefault(names[run.data.tags.get(MLFLOW_PARENT_RUN_ID, "")], []).append(run.info.run_name)
    return {parent: sorted(children) for parent, children in parents.items()}


def test_the_fits_of_a_sweep_are_children_of_the_copy_of_its_run(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = mlflow_store.connect()
    sweep = ours.create_experiment("sweep grid")

    def log(name: str, begin: int, parent: str = "") -> str:
        made = ours.create_run(sweep, begin, {MLFLOW_PARENT_RUN_ID: parent} if parent else {}, name).info
        ours.set_terminated(made.run_id, "FINISHED", begin + 1)
        return str(made.run_id)

    grid, gone = log("grid", 9), log("gone", 0)
    log("fit 1", 5, grid)  # a parent that was logged again by an audit began later than its fits
    log("fit 2", 10, grid)
    log("alone", 1, gone)
    ours.delete_run(gone)
    ours.update_run(grid, "RUNNING")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/other.db")
    assert track_push.push() == {"copied": 4, "already": 0, "running": 3}
    assert names_by_parent(mlflow_store.connect()) == {"": ["alone"]}

    ours.set_terminated(grid, "FINISHED")
    assert track_push.push() == {"copied": 3, "already": 4, "running": 0}
    log("fit 3", 11, grid)
    assert track_push.push() == {"copied": 1, "already": 7, "running": 0}
    assert names_by_parent(mlflow_store.connect()) == {"": ["alone", "grid"], "grid": ["fit 1", "fit 2", "fit 3"]}


def test_a_run_that_went_on_is_copied_again_and_a_renamed_experiment_is_not_copied_twice(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = f"sqlite:///{project}/other.db"
    own = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", theirs)
    assert track_push.push() == {"copied": 3, "already": 0, "running": 0}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own)
    with mlflow_runs.run("ham10000", "killed", "fit-killed", {"a": {"b": 1}}, {"seed": 0}, sample_seconds=None) as run:
        run.log_metrics({"test/macro_f1": 0.5})
    ours = described(mlflow_store.connect())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", theirs)
    assert track_push.push() == {"copied": 1, "already": 2, "running": 0}
    there = mlflow_store.connect()
    assert described(there) == ours
    there.rename_experiment(there.get_experiment_by_name("ham10000").experiment_id, "skin")
    with pytest.raises(UserError, match=r"is in the experiment skin; rename that to ham10000: `MLFLOW_TRACKING_URI="):
        track_push.push()


def test_an_interrupted_push_continues(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = described(mlflow_store.connect())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/other.db")

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(mlflow.MlflowClient, "log_model_artifacts", die)
        track_push.push()
    assert track_push.push() == {"copied": 3, "already": 0, "running": 0}
    assert described(mlflow_store.connect()) == ours


def test_a_server_that_keeps_files_where_only_it_can_write_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/srv/mlflow")

    monkeypatch.setattr(track_push, "_copy_files", refuse)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/other.db")
    told = str(CliRunner().invoke(cli, ["track", "push"]).exception)
    assert "keeps files in /srv/mlflow, which this machine cannot write (Permission denied); start that server" in told


def test_two_pushes_at_once_copy_each_run_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = described(mlflow_store.connect())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/other.db")
    mlflow_store.connect()  # sets the address for both threads
    with ThreadPoolExecutor(2) as pool:
        pushes = [pool.submit(track_push.push) for _ in range(2)]
        assert sorted(push.result()["copied"] for push in pushes) == [0, 3]
    assert described(mlflow_store.connect()) == ours


def test_what_a_second_clone_left_unfinished_is_removed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/other.db")
    track_push.push()
    client = mlflow_store.connect()
    ours, experiment = described(client), client.get_experiment_by_name("ham10000").experiment_id
    left = {track_push.ORIGIN: "another", track_push.UNFINISHED: "yes", mlflow_store.FIT: "fit-finished"}
    for start in (0, 2**41):  # listed after and before the complete one
        client.create_run(experiment, start, left, "left")
    assert track_push.push() == {"copied": 0, "already": 3, "running": 0}
    assert described(client) == ours


def test_an_experiment_that_another_push_has_just_created_is_used(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/other.db")
    create = mlflow.MlflowClient.create_experiment

    def create_twice(client: mlflow.MlflowClient, name: str) -> str:
        create(client, name)
        return create(client, name)

    monkeypatch.setattr(mlflow.MlflowClient, "create_experiment", create_twice)
    assert track_push.push() == {"copied": 3, "already": 0, "running": 0}


def test_a_fit_that_the_server_already_has_is_left_alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/other.db")
    with mlflow_runs.run("ham10000", "finished", "fit-finished", {"a": {"b": 1}}, {}, sample_seconds=None):
        pass
    assert track_push.push() == {"copied": 2, "already": 1, "running": 0}


def test_a_fit_that_the_server_has_only_in_part_is_copied(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/other.db")
    with pytest.raises(RuntimeError), mlflow_runs.run("ham10000", "finished", "fit-finished", {}, {}, None) as run:
        raise RuntimeError
    client = mlflow_store.connect()
    client.update_run(run.run_id, "RUNNING")
    assert track_push.push() == {"copied": 2, "already": 0, "running": 1}  # it may be running elsewhere
    client.set_terminated(run.run_id, "KILLED")
    assert track_push.push() == {"copied": 1, "already": 2, "running": 0}
    [found] = client.search_runs(["1"], f"tags.`{mlflow_store.FIT}` = 'fit-finished'")
    assert found.info.status == "FINISHED"


def test_one_line_says_that_there_is_nothing_to_push(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert "MLFLOW_TRACKING_URI: not set" in str(CliRunner().invoke(cli, ["track", "push"]).exception)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlruns/mlflow.db")
    with pytest.raises(UserError, match="this project's own store"):
        track_push.push()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=re.escape("MLflow at http://127.0.0.1:9 does not answer")):
        track_push.push()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match=r"mlruns/mlflow\.db: not found; there is nothing to push"):
        track_push.push()
