"""The audit finds each kind of drift, and the repair logs nothing that is not what DVC recorded."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import skops.io
from click.testing import CliRunner
from filelock import FileLock, Timeout
from mlflow.tracking._tracking_service import utils as mlflow_utils
from ruamel.yaml import YAML
from sklearn.tree import DecisionTreeClassifier

from attacks import free_port
from conftest import PROJECT, use_store
from medtransfer.audit import audit
from medtransfer.audit import repair as repairing
from medtransfer.cli import cli
from medtransfer.core.dvc import digest_of
from medtransfer.core.errors import UserError
from medtransfer.core.files import write_json
from medtransfer.core.provenance import commit_problem, git_commit
from medtransfer.core.recipe import TrainParams
from medtransfer.pipeline.outputs import log_to_mlflow, mlflow_params
from medtransfer.tracking import mlflow_models, mlflow_runs, mlflow_store
from medtransfer.trees.classifiers import TRUSTED_TYPES, Tree, load_tree
from test_tracking import server

TREES = ("decision_tree", "random_forest")
NETWORK = "imagenet_head"
COMMON: dict[str, Any] = {"batch_size": 8, "scaling": "caffe", "fraction": 1.0, "precision": "float32", "dropout": 0.5}
TRAIN = TrainParams(**COMMON, learning_rate=0.1).model_dump()
CONFIGURATION = {"weights": "random", "trainable": "head"}
SAMPLES = "id,label,group,split\na,nv,1,train\nb,mel,2,train\nc,nv,3,validation\nd,mel,4,test\n"
PREDICTIONS = "id,group,split,label,p_nv,p_mel\nc,3,validation,nv,0.5,0.5\nd,4,test,mel,0.5,0.5\n"
VERSION, OTHER_VERSION = (f"{digit * 32}.dir" for digit in "01")
POINTER = "outs:\n- md5: {}\n  size: 1\n  nfiles: 1\n  path: data\n"
DESCRIPTION = {"image_size": 1, "source": "here", "classes": ["nv", "mel"]}
IMAGES = np.arange(4 * 3, dtype=np.uint8).reshape(4, 1, 1, 3)


def place(model: str) -> Path:
    return Path(f"artifacts/runs/ham10000/{model}-seed0")


def write_fit(model: str, commit: str) -> None:
    place(model).mkdir(parents=True)
    hyperparameters: dict[str, Any] = {model: {"max_depth": 2}, "seed": 0}
    record = {"dataset": "ham10000", "model": model, "seed": 0, "fit": f"fit-{model}", "kind": "baseline"}
    record |= {"data_version": VERSION, "data_source": "here", "image_size": 1, "git_commit": commit, "seconds": 1.5}
    if model == NETWORK:
        record |= {"kind": "network", "epochs": 2, "best_epoch": 2}
        configuration = {**CONFIGURATION, "learning_rate": 0.1}
        hyperparameters = {"train": TRAIN, "configuration": configuration, "trainable_layers": "head_dense1"}
        (place(model) / "history.csv").write_text("epoch,loss,val_loss,val_macro_f1\n1,0.5,0.5,0.25\n2,0.25,0.25,0.5\n")
        (place(NETWORK) / "model.keras").write_bytes(b"a network")
    else:
        skops.io.dump(fitted(), place(model) / "model.skops")
    (place(model) / "predictions.csv").write_text(PREDICTIONS)
    write_json(place(model) / "metrics.json", {"macro avg": 0.5, "micro avg": 0.75})
    write_json(place(model) / "run.json", {**record, "hyperparameters": hyperparameters})


def fitted() -> DecisionTreeClassifier:
    return DecisionTreeClassifier(random_state=0).fit(IMAGES.reshape(4, 3), [0, 1, 0, 1])


def write_lock() -> None:
    """Write dvc.lock as DVC would for the files here."""
    params = {
        NETWORK: {
            "train": {**COMMON, "learning_rate": 0.5},
            f"configurations.{NETWORK}": {**CONFIGURATION, "learning_rate": {"ham10000": 0.1, "chest_xray": 0.2}},
        },
        **{model: {f"trees.{model}": {"max_depth": 2}} for model in TREES},
    }
    stages = {
        model: {
            "cmd": "medtransfer",
            "params": {"params.yaml": params[model]},
            "outs": [{"path": str(place(model)), "md5": digest_of(place(model)), "size": 1, "nfiles": 1}],
        }
        for model in params
    }
    with Path("dvc.lock").open("w") as file:
        YAML().dump({"schema": "2.0", "stages": stages}, file)


def log_fit(model: str) -> None:
    record = json.loads((place(model) / "run.json").read_text())
    tags = {key: record[key] for key in audit.REQUIRED_TAGS}
    params = mlflow_params(record, record["hyperparameters"])
    with mlflow_runs.run("ham10000", place(model).name, record["fit"], params, tags, sample_seconds=None) as run:
        log_to_mlflow(run, place(model))
        run.log_model(log_tree)


def log_tree() -> None:
    features, tree = IMAGES.reshape(4, 3)[:1], fitted()
    mlflow_models.log_sklearn_model(tree, features, TRUSTED_TYPES)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A study of three fits that agrees with its store."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        use_store(folder, empty_store, patch)
        Path("data.dvc").write_text(POINTER.format(VERSION))
        shutil.copy(PROJECT / "params.yaml", folder)
        who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        for command in (("init", "--quiet"), ("add", "data.dvc"), (*who, "commit", "--quiet", "--message", "start")):
            subprocess.run(["git", *command], check=True)
        Path("artifacts/prepared/ham10000").mkdir(parents=True)
        np.save("artifacts/prepared/ham10000/images.npy", IMAGES)
        write_json(Path("artifacts/prepared/ham10000/dataset.json"), DESCRIPTION)
        Path("artifacts/prepared/ham10000/samples.csv").write_text(SAMPLES)
        for model in (*TREES, NETWORK):
            write_fit(model, git_commit())
            log_fit(model)
        write_lock()
    return folder


@pytest.fixture
def study(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    """The client of a copy that a test may damage; test_pipeline.py runs dvc itself."""
    folder = shutil.copytree(made, tmp_path / "study")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlruns/mlflow.db")
    mlflow_utils._artifact_repos_cache.clear()  # else a run's files are those of an earlier test's copy
    for check in ("_check_dvc", "_check_data"):
        monkeypatch.setattr(audit, check, lambda: iter(()))
    return mlflow_store.connect()


def run_of(client: mlflow.MlflowClient, model: str) -> str:
    return mlflow_runs.find(client, "ham10000", f"fit-{model}") or ""


def experiment(client: mlflow.MlflowClient) -> str:
    return str(client.get_experiment_by_name("ham10000").experiment_id)


def test_an_error_of_dvc_is_shortened_to_a_line(dvc_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC prints a traceback of 50 lines there."""
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", "/dev/null")
    (line,) = audit._check_dvc()
    assert "Not a directory: '/dev/null/config'" in line
    assert len(line) < 330


def test_the_status_of_a_stage_is_summarised() -> None:
    files = {f"src/{name}.py": "modified" for name in "abcde"}
    changes = [
        {"changed deps": {**files, "data/x": "deleted", "params.yaml": {"train": "modified", "seeds": "new"}}},
        "changed command",
    ]
    assert audit.in_words(changes) == (
        "changed deps: modified src/a.py, src/b.py, src/c.py and 3 more; changed deps: deleted data/x; "
        "changed deps: new params.yaml.seeds; changed command"
    )


def test_before_anything_ran_there_is_nothing_to_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    refused = str(CliRunner().invoke(cli, ["audit"]).exception)
    assert refused.startswith(f"params.yaml: not found in {tmp_path}; run medtransfer in the project's folder")
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    for arguments in ([], ["--repair"]):
        done = CliRunner().invoke(cli, ["audit", *arguments])
        assert done.exit_code == 0, done.output
        assert done.output.startswith("nothing to audit")
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
    for made in (place(NETWORK) / "run.json", Path("mlruns/mlflow.db")):
        made.parent.mkdir(parents=True)
        made.touch()
        assert audit.is_there_anything()
        made.unlink()
        made.parent.rmdir()


def test_nothing_differs_in_a_study_that_agrees(study: mlflow.MlflowClient) -> None:
    assert audit.audit() == []
    assert audit.others() == []
    assert repairing.repair() == []


def test_precision_auto_agrees_with_the_precision_that_was_used(study: mlflow.MlflowClient) -> None:
    lock = Path("dvc.lock").read_text()
    assert lock.count("precision: float32") == 1
    for precision, differences in (("auto", 0), ("mixed_bfloat16", 1)):
        Path("dvc.lock").write_text(lock.replace("precision: float32", f"precision: {precision}"))
        assert len(audit.audit()) == differences


# --- planted drifts


def end_otherwise(client: mlflow.MlflowClient) -> None:
    client.set_terminated(run_of(client, NETWORK), "FAILED")


def log_other_files(client: mlflow.MlflowClient) -> None:
    client.set_tag(run_of(client, NETWORK), mlflow_runs.OUTPUTS, "0")


def change_param(client: mlflow.MlflowClient) -> None:
    """MLflow itself refuses to change one."""
    with sqlite3.connect("mlruns/mlflow.db") as store:
        where = (run_of(client, NETWORK), "train.dropout")
        assert store.execute("UPDATE params SET value = '0.9' WHERE run_uuid = ? AND key = ?", where).rowcount == 1


def change_metric(client: mlflow.MlflowClient) -> None:
    client.log_metric(run_of(client, NETWORK), "test/macro_f1", 0.9, step=1)


def log_epoch(client: mlflow.MlflowClient) -> None:
    client.log_metric(run_of(client, NETWORK), "train/loss", 0.1, step=3)


def change_epoch(client: mlflow.MlflowClient) -> None:
    with sqlite3.connect("mlruns/mlflow.db") as store:
        where = (run_of(client, NETWORK), "train/loss", 2)
        changed = store.execute("UPDATE metrics SET value = 0.3 WHERE run_uuid = ? AND key = ? AND step = ?", where)
        assert changed.rowcount == 1


def lose_best_scores(client: mlflow.MlflowClient) -> None:
    with sqlite3.connect("mlruns/mlflow.db") as store:
        for table in ("metrics", "latest_metrics"):
            where = (run_of(client, NETWORK), "validation/best/%")
            assert store.execute(f"DELETE FROM {table} WHERE run_uuid = ? AND key LIKE ?", where).rowcount


def change_tag(tag: str) -> Callable[[mlflow.MlflowClient], None]:
    return lambda client: client.set_tag(run_of(client, NETWORK), tag, "other")


def lose_tag(client: mlflow.MlflowClient) -> None:
    client.delete_tag(run_of(client, NETWORK), "data_version")


def stored_models() -> list[Path]:
    return sorted(Path("mlruns").rglob("model.skops"))


def flip_bit(client: mlflow.MlflowClient) -> None:
    for path in stored_models():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert len(stored_models()) == 3


def lose_model_file(client: mlflow.MlflowClient) -> None:
    for path in stored_models():
        path.unlink()


def lose_store_of_files(client: mlflow.MlflowClient) -> None:
    shutil.rmtree(f"mlruns/{experiment(client)}")


def lose_figure(client: mlflow.MlflowClient) -> None:
    folder = Path("reports/figures/ham10000") / place(NETWORK).name
    folder.mkdir(parents=True)
    (folder / "curves.png").touch()


def change_figure(client: mlflow.MlflowClient) -> None:
    lose_figure(client)
    figure = Path("reports/figures/ham10000") / place(NETWORK).name / "curves.png"
    client.log_artifact(run_of(client, NETWORK), str(figure))
    figure.write_bytes(b"drawn again")


def lose_model(client: mlflow.MlflowClient) -> None:
    for model in client.search_logged_models([experiment(client)]):
        client.delete_logged_model(model.model_id)


def lose_run(client: mlflow.MlflowClient) -> None:
    client.delete_run(run_of(client, NETWORK))


def change_data(client: mlflow.MlflowClient) -> None:
    Path("data.dvc").write_text(POINTER.format(OTHER_VERSION))


def change_commit(client: mlflow.MlflowClient) -> None:
    path = place(NETWORK) / "run.json"
    write_json(path, {**json.loads(path.read_text()), "git_commit": "0" * 40})
    write_lock()


def leave_running(client: mlflow.MlflowClient) -> None:
    tags = {mlflow_runs.PROCESS: f"{mlflow_runs.machine()} 1 1", mlflow_store.FIT: "stale"}
    client.create_run(experiment(client), tags=tags, run_name="left")


def leave_running_elsewhere(client: mlflow.MlflowClient) -> None:
    tags = {mlflow_runs.PROCESS: "elsewhere 1 1", mlflow_store.FIT: "far"}
    client.create_run(experiment(client), tags=tags, run_name="far", start_time=1000)


def mark_as_superseded(client: mlflow.MlflowClient) -> None:
    """DVC restores an earlier fit from its cache."""
    client.set_tag(run_of(client, NETWORK), mlflow_runs.SUPERSEDED, "later")


def lose_lock(client: mlflow.MlflowClient) -> None:
    lock = YAML(typ="safe").load(Path("dvc.lock").read_text())
    del lock["stages"][NETWORK]
    with Path("dvc.lock").open("w") as file:
        YAML().dump(lock, file)


def change_lock(client: mlflow.MlflowClient) -> None:
    path = Path("dvc.lock")
    path.write_text(path.read_text().replace("dropout: 0.5", "dropout: 0.25"))


def cut_record(client: mlflow.MlflowClient) -> None:
    (place(NETWORK) / "run.json").write_text('{"dataset": ')


def add_twin(client: mlflow.MlflowClient) -> None:
    run = client.create_run(experiment(client), tags={mlflow_store.FIT: f"fit-{NETWORK}"})
    client.set_terminated(run.info.run_id)


def register_other(client: mlflow.MlflowClient) -> None:
    client.create_registered_model("ham10000")
    tags = {mlflow_store.FIT: f"fit-{NETWORK}", mlflow_models.DIGEST: "0"}
    client.create_model_version("ham10000", "here", run_of(client, NETWORK), tags)


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (end_otherwise, "is FAILED, but the fit is finished"),
        (log_other_files, "was logged from other files"),
        (change_param, "train.dropout is 0.9, run.json has 0.5"),
        (change_metric, "test/macro_f1 is 0.9, the folder has 0.5"),
        (log_epoch, "has loss for the epochs [1, 2, 3], history.csv has [1, 2]"),
        (lose_best_scores, "validation/best/macro_f1 is None, the folder has"),
        (change_epoch, "loss of epoch 2 is 0.3, history.csv has 0.25"),
        (change_tag("data_version"), f"tag data_version is other, run.json has {VERSION}"),
        (change_tag("git_commit"), "tag git_commit is other, run.json has"),
        (lose_tag, f"tag data_version is None, run.json has {VERSION}"),
        (lose_model, "has no model"),
        (flip_bit, "has a model whose file is not the one that was logged"),
        (lose_model_file, "has a model without model.keras or model.skops"),
        (lose_store_of_files, "has a model whose files cannot be read"),
        (lose_figure, "lacks the current version of curves.png from reports/figures/ham10000"),
        (change_figure, "lacks the current version of curves.png from reports/figures/ham10000"),
        (lose_run, f"MLflow has no run of this fit (fit-{NETWORK})"),
        (change_data, f"data_version is {VERSION}, data.dvc has {OTHER_VERSION}"),
        (change_commit, f"made by git commit {'0' * 40}"),
        (mark_as_superseded, f"has the tag {mlflow_runs.SUPERSEDED}, but its fit is the one here"),
        (leave_running, "(left) is RUNNING but its process has ended"),
        (leave_running_elsewhere, "(far) is RUNNING on elsewhere since 1970-01-01 00:00 UTC"),
        (
            lose_lock,
            f"not in dvc.lock; run `dvc repro` if params.yaml lists this fit, or remove it: rm -r {place(NETWORK)}",
        ),
        (change_lock, "dropout is 0.5, dvc.lock has 0.25"),
        (cut_record, "differs from dvc.lock"),
        (add_twin, f"2 runs of one fit (fit-{NETWORK})"),
        (register_other, "registered model ham10000 version 1 differs from its fit's artifacts/runs"),
        (register_other, "run `medtransfer register ham10000` and delete this version"),
    ],
)
def test_a_planted_drift_is_found(
    study: mlflow.MlflowClient, plant: Callable[[mlflow.MlflowClient], None], message: str
) -> None:
    plant(study)
    found = audit.audit()
    assert [line for line in found if message in line], found


def test_a_stale_run_is_found_among_thousands_of_later_experiments(study: mlflow.MlflowClient) -> None:
    leave_running(study)
    with sqlite3.connect("mlruns/mlflow.db") as store:
        columns = "experiment_id, name, artifact_location, lifecycle_stage, last_update_time"
        others = [(number, f"other {number}", "s3://elsewhere", "active", 2**50) for number in range(1000, 4000)]
        store.executemany(f"INSERT INTO experiments ({columns}) VALUES (?, ?, ?, ?, ?)", others)
    begin = time.monotonic()
    assert [line for line in audit.audit() if "is RUNNING but its process has ended" in line]
    assert mlflow_runs.fits_of(study).keys() == {"ham10000"}
    assert time.monotonic() - begin < 30


def test_runs_of_fits_that_are_not_here_are_listed_but_are_no_difference(study: mlflow.MlflowClient) -> None:
    with mlflow_runs.run("ham10000", "old", "before", {}, {}, sample_seconds=None) as run:
        pass
    [line] = audit.others()
    assert line.startswith("MLflow's experiment ham10000 has 1 finished run of fits that are not here")
    assert str(run.run_id) in line
    assert audit.audit() == []
    shown = CliRunner().invoke(cli, ["audit"])
    assert shown.exit_code == 0
    assert shown.output.splitlines() == [line, "3 fits, 0 differences"]


def test_fits_of_a_renamed_configuration_are_named_with_the_command_that_removes_them(
    study: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace(NETWORK, "imagenet_new_head"))
    assert CliRunner().invoke(cli, ["audit"]).stdout.endswith("3 fits, 0 differences\n")
    (line,) = caplog.messages
    assert line.endswith(f"collect would take them; to remove them: rm -r artifacts/runs/ham10000/{NETWORK}-seed*")
    subprocess.run(line.rpartition(": ")[2], shell=True, check=True)
    caplog.clear()
    assert CliRunner().invoke(cli, ["audit"]).stdout.endswith("2 fits, 0 differences\n")
    assert caplog.messages == []


# --- repair


@pytest.fixture
def log_a_tree_for_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of these fits has no weights to be loaded."""
    monkeypatch.setattr(repairing, "_log_model", lambda folder, record: log_tree())


def damage(model: str, file: str) -> None:
    path = place(model) / file
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.9") + b" ")


def test_a_stopped_fit_that_nothing_resumes_is_left_alone(study: mlflow.MlflowClient) -> None:
    """As docs/reliability.md describes for a stage that DVC's run cache serves."""
    stopped = study.create_run(experiment(study), tags={mlflow_store.FIT: "stopped"}).info.run_id
    study.set_terminated(stopped, "KILLED")
    write_json(Path("artifacts/checkpoints/ham10000/imagenet_head-seed0/fit.json"), {"fit": "stopped"})
    assert audit.audit() == audit.others() == repairing.repair() == []
    assert study.get_run(stopped).info.status == "KILLED"
    assert Path("artifacts/checkpoints/ham10000/imagenet_head-seed0/fit.json").exists()


def test_a_damaged_fit_is_left_out_and_the_others_are_logged(study: mlflow.MlflowClient) -> None:
    """The damaged one comes first, and its run would be logged again."""
    first, second = sorted(TREES)
    damage(first, "metrics.json")
    study.set_terminated(run_of(study, first), "FAILED")
    study.delete_run(run_of(study, second))
    shown = CliRunner().invoke(cli, ["audit", "--repair"])
    assert shown.exit_code == 1
    assert f"{place(first)}: not logged: {place(first)}: differs from dvc.lock" in shown.output
    assert f"logged {place(second)} from its files" in shown.output
    kept = study.get_run(run_of(study, first))
    assert kept.info.status == "FAILED"
    assert kept.data.metrics["test/macro_f1"] == 0.5
    again = study.get_run(run_of(study, second))
    assert again.info.status == "FINISHED"
    assert again.data.metrics["test/macro_f1"] == 0.5
    assert not mlflow_models.model_problem(study, again, read=False)


@pytest.mark.usefixtures("log_a_tree_for_the_network")
@pytest.mark.parametrize(
    "plant",
    [
        change_tag("git_commit"),
        lose_tag,
        lose_model,
        flip_bit,
        lose_model_file,
        lose_store_of_files,
        lose_figure,
        lose_run,
        end_otherwise,
        mark_as_superseded,
        log_other_files,
        lose_best_scores,
    ],
)
def test_the_repair_fixes_what_it_can(study: mlflow.MlflowClient, plant: Callable[[mlflow.MlflowClient], None]) -> None:
    plant(study)
    assert f"logged {place(NETWORK)} from its files" in repairing.repair()
    assert audit.audit() == []


@pytest.mark.usefixtures("study")
def test_the_repair_removes_no_model_before_it_has_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("mlflow.artifacts.download_artifacts", fail)
        full.setattr(repairing, "_log_model", fail)
        with suppress(OSError):
            repairing.repair()
    assert audit.audit() == []


def test_the_runs_of_a_renamed_experiment_are_not_logged_twice(study: mlflow.MlflowClient) -> None:
    study.rename_experiment(experiment(study), "skin")
    lines = repairing.repair()
    assert len(lines) == 3
    for line in lines:
        assert "is in the experiment skin; rename that to ham10000" in line
    assert [line for line in audit.audit() if "is in the experiment skin" in line]
    subprocess.run(lines[0].partition("`")[2].removesuffix("`"), shell=True, check=True)
    assert repairing.repair() == audit.audit() == []


def test_two_repairs_do_not_work_at_once(study: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def end_none(*_: Any) -> list[Any]:
        with pytest.raises(Timeout):
            FileLock(repairing.REPAIRING, timeout=0).acquire()
        return []

    monkeypatch.setattr(mlflow_runs, "close_stale", end_none)
    assert repairing.repair() == repairing.repair() == []


@pytest.mark.usefixtures("log_a_tree_for_the_network")
@pytest.mark.parametrize("plant", [change_epoch, log_epoch, change_metric])
def test_what_mlflow_refuses_to_change_is_named_with_a_remedy(
    study: mlflow.MlflowClient, plant: Callable[[mlflow.MlflowClient], None]
) -> None:
    plant(study)
    (line,) = repairing.repair()
    run_id = run_of(study, NETWORK)
    assert line.endswith(f" mlflow runs delete --run-id {run_id}`)")
    study.delete_run(run_id)
    assert repairing.repair() == [f"logged {place(NETWORK)} from its files"]
    assert audit.audit() == []


@pytest.mark.usefixtures("log_a_tree_for_the_network")
def test_two_runs_of_one_fit_become_one(study: mlflow.MlflowClient) -> None:
    add_twin(study)
    (line,) = [line for line in audit.audit() if "2 runs of one fit" in line]
    (unwanted,) = re.findall(r"mlflow runs delete --run-id (\w+)`\), then run `medtransfer audit --repair`$", line)
    study.delete_run(unwanted)
    assert repairing.repair() == [f"logged {place(NETWORK)} from its files"]  # the twin that stays is empty
    assert audit.audit() == []


@pytest.mark.usefixtures("study")
def test_what_git_refuses_is_repeated(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # as in a container that runs as another user
    lines = audit.audit()
    assert len(lines) == 3
    for line in lines:
        assert "dubious ownership" in line
        assert "git config --global --add safe.directory" in line
        assert "not in this repository" not in line
    assert git_commit() == "unknown"
    assert "not in this repository" not in commit_problem("unknown")
    assert "dubious ownership" in caplog.text


def test_a_fetch_is_advised_only_where_there_is_a_remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    assert commit_problem("0" * 40) == "it is not in this repository"
    subprocess.run(["git", "remote", "add", "origin", str(tmp_path)], check=True)
    assert "; run `git fetch`" in commit_problem("0" * 40)


def test_nothing_is_logged_with_data_that_were_prepared_differently(study: mlflow.MlflowClient) -> None:
    lose_run(study)
    for change, told in (({"image_size": 2}, "has image_size 2, but artifacts/runs/"), ({"source": "there"}, "source")):
        write_json(Path("artifacts/prepared/ham10000/dataset.json"), {"image_size": 1, "source": "here", **change})
        [line] = repairing.repair()
        assert told in line
    shutil.rmtree("artifacts/prepared")
    [line] = repairing.repair()
    assert "artifacts/prepared/ham10000: not found; " in line


def test_a_study_reads_no_model_at_its_end(study: mlflow.MlflowClient) -> None:
    flip_bit(study)
    assert repairing.repair(read_models=False) == []


@pytest.mark.parametrize("file", ["model.skops", "run.json"])
@pytest.mark.parametrize("recorded", [True, False])
def test_no_model_is_loaded_whose_digest_was_not_checked(
    study: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch, file: str, recorded: bool
) -> None:
    lose_model(study)
    damage(TREES[0], file)
    if not recorded:
        Path("dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    loaded: list[str] = []

    def load(path: str) -> Tree:
        loaded.append(path)
        return load_tree(path)

    monkeypatch.setattr("medtransfer.trees.classifiers.load_tree", load)
    done = repairing.repair()
    assert str(place(TREES[0]) / "model.skops") not in loaded
    assert bool(loaded) is recorded  # the other tree's
    assert sum("not logged" in line for line in done) >= (1 if recorded else 3)
    assert mlflow_models.model_problem(study, study.get_run(run_of(study, TREES[0])), read=False)


def test_a_run_whose_parameters_were_changed_does_not_stop_the_later_ones(study: mlflow.MlflowClient) -> None:
    with sqlite3.connect("mlruns/mlflow.db") as store:
        store.execute("UPDATE params SET value = '9' WHERE run_uuid = ?", (run_of(study, TREES[0]),))
    study.delete_run(run_of(study, TREES[1]))
    done = repairing.repair()
    assert [line for line in done if line.startswith(f"{place(TREES[0])}: not logged: MLflow's run")]
    assert f"logged {place(TREES[1])} from its files" in done


def test_runs_of_another_machine_are_ended_if_it_is_named(study: mlflow.MlflowClient) -> None:
    leave_running_elsewhere(study)
    assert repairing.repair() == []
    assert repairing.repair("nowhere") == ["no run was RUNNING on nowhere"]
    [line] = repairing.repair("elsewhere")
    assert line.endswith("(far) as KILLED")
    assert audit.audit() == []
    assert study.get_run(mlflow_runs.find(study, "ham10000", "far")).info.status == "KILLED"


def test_a_run_in_a_container_that_has_this_machines_name_is_not_ended(
    study: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_runs, "NOT_IN_A_CONTAINER", 0)
    inside = mlflow_runs.machine()
    monkeypatch.setattr(mlflow_runs, "NOT_IN_A_CONTAINER", Path("/proc/self/ns/pid").stat().st_ino)
    assert inside.startswith(f"{mlflow_runs.machine()}-")
    tags = {mlflow_runs.PROCESS: f"{inside} 1 1", mlflow_store.FIT: "far"}
    run = study.create_run(experiment(study), tags=tags)
    assert repairing.repair() == []
    assert study.get_run(run.info.run_id).info.status == "RUNNING"


def test_naming_this_machine_ends_no_living_run(study: mlflow.MlflowClient) -> None:
    with mlflow_runs.run("ham10000", "alive", "alive", {}, {}, sample_seconds=None) as run:
        repairing.repair(mlflow_runs.machine())
        assert study.get_run(run.run_id).info.status == "RUNNING"


@pytest.mark.parametrize("ask", [audit.audit, repairing.repair])
def test_a_server_that_stops_answering_is_one_line_without_its_password(
    study: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch, ask: Callable[[], list[str]]
) -> None:
    def die(*_: object) -> None:
        raise mlflow.MlflowException("request to http://admin:SECRET@host failed")

    monkeypatch.setattr(mlflow_runs, "find", die)
    with pytest.raises(UserError, match=r"does not answer \(request to http://\*\*\*@host failed\)"):
        ask()


def test_a_fit_that_does_not_arrive_is_not_reported_as_logged(
    study: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_run(study)
    monkeypatch.setattr(repairing, "_log_again", lambda folder, record: None)  # as if MLflow were away for a moment
    (line,) = repairing.repair()
    assert line.startswith(f"{place(NETWORK)}: not logged: MLflow at sqlite://")


def test_a_machine_can_be_named_only_for_a_repair() -> None:
    with pytest.raises(UserError, match="--host: given without --repair"):
        cli(["audit", "--host", "elsewhere"], standalone_mode=False)


# --- a store that is slow


def write_four_epochs() -> list[dict[str, float]]:
    """Give the network's fit four epochs and return them."""
    rows = [{"epoch": epoch, "loss": 1 / epoch, "val_loss": 1 / epoch} for epoch in range(1, 5)]
    lines = [f"{row['epoch']},{row['loss']!r},{row['val_loss']!r}" for row in rows]
    (place(NETWORK) / "history.csv").write_text("\n".join(["epoch,loss,val_loss", *lines, ""]))
    write_lock()
    return rows


def train_network(rows: list[dict[str, float]], stalls: Callable[[int], None] = lambda epoch: None) -> float:
    """Log a fit as training does, epoch by epoch, and return the seconds that it took."""
    begin = time.monotonic()
    record = json.loads((place(NETWORK) / "run.json").read_text())
    tags = {key: record[key] for key in audit.REQUIRED_TAGS}
    params = mlflow_params(record, record["hyperparameters"])
    with mlflow_runs.run("ham10000", place(NETWORK).name, record["fit"], params, tags, sample_seconds=None) as run:
        for epoch in range(1, 5):
            run.log_epochs(rows[:epoch])
            stalls(epoch)
        log_to_mlflow(run, place(NETWORK))
        run.log_model(log_tree)
    return time.monotonic() - begin


def answer_quickly_or_not_at_all(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.message for entry in caplog.records if "does not answer" in entry.message]


def check_each_point_arrived_once(client: mlflow.MlflowClient) -> None:
    assert [line for line in audit.audit() if str(place(NETWORK)) in line] == []
    run = client.get_run(run_of(client, NETWORK))
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3, 4]
    assert len(client.get_metric_history(run.info.run_id, "test/macro_f1")) == 1


@pytest.mark.usefixtures("log_a_tree_for_the_network")
def test_a_server_that_never_answers_delays_no_fit_and_the_repair_logs_it(
    study: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows, alive = write_four_epochs(), mlflow.get_tracking_uri()
    study.delete_run(run_of(study, NETWORK))
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        answer_quickly_or_not_at_all(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert 2 <= train_network(rows) < 10
    assert len(warnings_of(caplog)) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", alive)
    assert repairing.repair() == [f"logged {place(NETWORK)} from its files"]
    assert repairing.repair() == []
    check_each_point_arrived_once(mlflow_store.connect())


@pytest.mark.usefixtures("log_a_tree_for_the_network")
@pytest.mark.slow
def test_a_server_that_stalls_within_a_fit_has_every_point_once_after_the_repair(
    study: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """It is stopped like a machine that swaps: it has the third epoch's request, and handles it when it continues."""
    rows, port = write_four_epochs(), free_port()
    with server(tmp_path, port) as running:
        answer_quickly_or_not_at_all(monkeypatch, f"http://127.0.0.1:{port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

        def stall(epoch: int) -> None:
            if epoch == 2:
                monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
                os.killpg(running.pid, signal.SIGSTOP)

        try:
            seconds = train_network(rows, stall)
        finally:
            os.killpg(running.pid, signal.SIGCONT)
        assert 2 <= seconds < 30
        assert len(warnings_of(caplog)) == 1
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        assert f"logged {place(NETWORK)} from its files" in repairing.repair()
        check_each_point_arrived_once(mlflow_store.connect())
