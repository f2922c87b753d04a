"""Asking a network: the command line, the served model and the page give one answer, and bad requests get a reason."""

import ast
import asyncio
import base64
import gzip
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
import uvicorn
from click.testing import CliRunner
from fastapi.testclient import TestClient
from filelock import FileLock, Timeout
from mlflow.exceptions import MlflowException
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from attacks import free_port, started
from conftest import PROJECT, QUIET, dvc_init, use_store
from medtransfer.audit import audit
from medtransfer.cli import cli
from medtransfer.cli.serving import serve
from medtransfer.core.dvc import digest_of
from medtransfer.core.errors import UserError
from medtransfer.core.files import digest_of_folder, sha256_of, write_json
from medtransfer.core.params import read_params
from medtransfer.core.predictions import read_predictions, write_predictions
from medtransfer.core.recipe import TrainParams
from medtransfer.data.catalogue import CHEST_XRAY
from medtransfer.data.images import load_rgb
from medtransfer.layers import gradcam
from medtransfer.metrics.scores import score
from medtransfer.models import vgg16
from medtransfer.serving import app as server_page
from medtransfer.serving.app import MAX_BYTES, MAX_WAITING, build_app
from medtransfer.serving.classifier import (
    Answer,
    ask,
    describe,
    load_classifier,
    predict_probabilities,
    read_image,
    show_where,
    write_classifier,
)
from medtransfer.serving.predict import as_json, open_classifier
from medtransfer.study import external
from medtransfer.tracking import mlflow_models, mlflow_runs, mlflow_store
from test_bad_input import AS_A_USER
from test_dicom import dicom

NOT_LISTED = "study.chest_xray: lists cnn_random, imagenet_all, ham10000_all, not imagenet_head"
CLASSES = ["NORMAL", "PNEUMONIA"]


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path, prepared: Path, narrow: None, tiny: TrainParams
) -> Iterator[Path]:
    """A project with two finished networks, of which the second is right about the validation images."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        use_store(folder, empty_store, patch)
        shutil.copy(PROJECT / "params.yaml", folder)
        shutil.copytree(prepared, folder / "artifacts" / "prepared" / "chest_xray")
        for number, model in enumerate(("cnn_random", "imagenet_all")):
            write_fit(folder, prepared, tiny, model, number, right=model == "imagenet_all")
        yield folder


def write_fit(folder: Path, prepared: Path, tiny: TrainParams, model: str, seed: int, right: bool) -> None:
    network = vgg16.build_vgg16(32, 2, tiny, seed)
    network.get_layer("head_output").bias.assign([0.6, 0.0])  # unsure, but not so much that no temperature shows
    samples = pd.read_csv(prepared / "samples.csv", dtype=str)
    codes = samples.label.map(CLASSES.index).to_numpy()
    told = np.eye(2)[codes if right else 1 - codes] * 0.8 + 0.1
    target = folder / "artifacts" / "runs" / "chest_xray" / f"{model}-seed0"
    target.mkdir(parents=True)
    keras.Model(network.inputs, network.outputs, name=network.name).save(target / "model.keras")  # as a fit does
    write_predictions(target / "predictions.csv", samples, told, CLASSES)
    fit = f"fit-{model}"
    record = {"dataset": "chest_xray", "model": model, "seed": 0, "fit": fit, "synthetic": True, "image_size": 32}
    data = json.loads((prepared / "dataset.json").read_text())
    data_keys = ("image_size", "resize_filter", "split")
    configuration = {"weights": "random", "trainable": "all"}
    hyperparameters = {
        "configuration": configuration,
        "train": tiny.model_dump(),
        "data": {key: data[key] for key in data_keys},
    }
    record |= {"data_source": data["source"], "hyperparameters": hyperparameters, "kind": "network", "epochs": 2}
    record |= {"split_by": "image", "split_leakage": "keep", "weights": "random", "trainable_blocks": "all,head"}
    record |= dict.fromkeys(("data_version", "git_commit", "backend", "precision", "device"), "unknown")
    write_json(target / "run.json", record)
    predictions = read_predictions(target / "predictions.csv")
    write_json(target / "metrics.json", score(predictions[predictions.split == "test"]))
    (target / "history.csv").write_text("epoch,loss,accuracy,val_loss,val_accuracy\n1,1,0.5,1,0.5\n")
    with mlflow_runs.run("chest_xray", f"{model}-seed0", fit, {}, {}, sample_seconds=None) as run:
        example = np.zeros((1, 32, 32, 3), np.uint8)
        run.log_model(lambda: mlflow_models.log_keras_model(network, example))
    keras.backend.clear_session()


@pytest.fixture(scope="module")
def registered(project: Path) -> Path:
    done = CliRunner().invoke(cli, ["register", "chest_xray"])
    assert done.exit_code == 0, done.output
    assert "chest_xray version 1, models:/chest_xray@best: imagenet_all, seed 0, macro F1 1.000" in done.output
    return project


@pytest.fixture(scope="module")
def images(project: Path) -> Path:
    """JPEG and PNG files of several sizes in a folder and one below it, and a text file among them."""
    folder = project / "images"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in {"a.jpg": (200, 150), "b.png": (31, 77), "more/c.jpeg": (640, 480)}.items():
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def ask_command_line(*arguments: str) -> dict[str, dict[str, float]]:
    done = CliRunner().invoke(cli, ["predict", "chest_xray", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    answers = json.loads(done.stdout)["answers"]
    return {Path(found["image"]).name: found["probabilities"] for found in answers}


def test_the_best_on_validation_is_registered_once(registered: Path) -> None:
    again = CliRunner().invoke(cli, ["register", "chest_xray"])
    assert "version 1" in again.output
    client = mlflow_store.connect()
    best = client.get_model_version_by_alias("chest_xray", "best")
    run = client.get_run(best.run_id)
    assert run.data.tags["medtransfer.fit"] == "fit-imagenet_all"
    assert run.info.status == "FINISHED"
    assert not mlflow_models.model_problem(client, run, read=False)
    files = [path.name for path in (registered / "mlruns").rglob("*") if path.is_file()]
    assert not [name for name in files if name.endswith((".pkl", ".pickle"))]


def test_two_at_once_do_not_register_a_network_twice(registered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_nothing(*_: Any) -> None:
        with pytest.raises(Timeout):
            FileLock("artifacts/register.lock", timeout=0).acquire()
        raise UserError("the other one waits")

    monkeypatch.setattr("medtransfer.serving.register.write_classifier", write_nothing)
    assert str(CliRunner().invoke(cli, ["register", "chest_xray"]).exception) == "the other one waits"


def test_a_moved_project_predicts_and_registers(registered: Path, images: Path, tmp_path: Path) -> None:
    before = ask_command_line(str(images / "a.jpg"))
    shutil.copytree(registered, tmp_path / "copy")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "copy")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/copy/mlruns/mlflow.db")
        away = registered.rename(registered.with_name("away"))
        try:
            assert ask_command_line("images/a.jpg") == before
            again = CliRunner().invoke(cli, ["register", "chest_xray"])
            assert "version 1" in again.output
            assert not registered.exists()
        finally:
            away.rename(registered)


def test_an_answer_keeps_the_order_of_extreme_probabilities() -> None:
    stub: Any = SimpleNamespace(facts={"classes": ["ill", "well"], "meanings": {"well": "no finding"}})
    told = describe(stub, Answer(np.array([1e-9, 1 - 1e-9]), 0.5, False, True))
    assert told["probabilities"] == {"ill": 1e-9, "well": 1 - 1e-9}


@pytest.mark.skipif(AS_A_USER != [] and shutil.which("setpriv") is None, reason="as root this needs setpriv")
def test_a_read_only_project_and_home_are_enough_to_predict_and_check(
    registered: Path, images: Path, demo: Path, tmp_path: Path
) -> None:
    expected = ask_command_line(str(images / "a.jpg"))
    folder = Path(shutil.copytree(registered, tmp_path / "project", ignore=shutil.ignore_patterns("data")))
    shutil.copytree(demo, folder / "data")
    dvc_init(folder)
    (folder / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    before = sorted(folder.rglob("*"))
    env = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    env |= {"PYTHONPATH": str(PROJECT / "src"), "HOME": str(folder)}
    subprocess.run(["chmod", "-R", "a-w", folder], check=True)
    try:
        for arguments in (["predict", "chest_xray", "images/a.jpg", "--json"], ["check"]):
            command = [*AS_A_USER, sys.executable, "-m", "medtransfer", *arguments]
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            if arguments[0] == "predict":
                assert json.loads(done.stdout)["answers"][0]["probabilities"] == expected["a.jpg"]
        for arguments, told in (
            (["study"], f"{folder}: read-only, but DVC must write a lock there"),
            (["audit"], f"{folder}: read-only, but DVC must write a lock there"),
            # The store is read from a copy, which is not named.
            (["predict", "ham10000", "images/a.jpg"], f"not available from sqlite:///{folder}/mlruns/mlflow.db"),
        ):
            command = [*AS_A_USER, sys.executable, "-m", "medtransfer", *arguments]
            refused = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
            assert refused.returncode == 2
            assert told in refused.stderr.splitlines()[-1]
        assert sorted(folder.rglob("*")) == before
    finally:
        subprocess.run(["chmod", "-R", "u+w", folder], check=True)


def test_no_network_is_registered_with_data_that_were_prepared_otherwise(registered: Path) -> None:
    described = registered / "artifacts/prepared/chest_xray/dataset.json"
    kept = described.read_text()
    try:
        described.write_text(kept.replace('"lanczos"', '"nearest"'))
        done = CliRunner().invoke(cli, ["register", "chest_xray"])
        assert (
            "has resize_filter nearest, but artifacts/runs/chest_xray/imagenet_all-seed0 was fitted with lanczos"
            in str(done.exception)
        )
        described.unlink()
        done = CliRunner().invoke(cli, ["register", "chest_xray"])
        assert "artifacts/prepared/chest_xray: not found; " in str(done.exception)
    finally:
        described.write_text(kept)


def test_no_network_is_registered_under_the_scores_of_another(registered: Path) -> None:
    fit = registered / "artifacts/runs/chest_xray/imagenet_all-seed0"
    client = mlflow_store.connect()
    run_id = mlflow_runs.find(client, "chest_xray", "fit-imagenet_all")
    client.set_tag(run_id, mlflow_runs.OUTPUTS, digest_of_folder(fit))
    network = (fit / "model.keras").read_bytes()
    try:
        shutil.copy(fit.with_name("cnn_random-seed0") / "model.keras", fit)
        done = CliRunner().invoke(cli, ["register", "chest_xray"])
        assert f"MLflow's run {run_id} was logged from different files" in str(done.exception)
        (fit / "model.keras").write_bytes(network)
        assert CliRunner().invoke(cli, ["register", "chest_xray"]).exit_code == 0
    finally:
        (fit / "model.keras").write_bytes(network)
        client.delete_tag(run_id, mlflow_runs.OUTPUTS)


def test_no_network_is_registered_after_its_raw_data_have_changed(registered: Path) -> None:
    """Such as corrected labels: `dvc repro` has not run since."""
    raw, folder, lock = Path("data/chest_xray"), Path("artifacts/prepared/chest_xray"), Path("dvc.lock")
    raw.mkdir(parents=True)
    (raw / "labels.csv").write_text("image,label\n")

    def entry(path: Path) -> dict[str, Any]:
        return {"path": str(path), "md5": digest_of(path), "size": 1, "nfiles": 1}

    stage = {"cmd": "prepare", "deps": [entry(raw)], "outs": [entry(folder)]}
    write_json(lock, {"schema": "2.0", "stages": {"prepare@chest_xray": stage}})
    try:
        assert CliRunner().invoke(cli, ["register", "chest_xray"]).exit_code == 0
        (raw / "labels.csv").write_text("image,label\nx,NORMAL\n")
        done = CliRunner().invoke(cli, ["register", "chest_xray"])
        assert f"{raw}: has changed since it was prepared" in str(done.exception)
    finally:
        shutil.rmtree("data")
        lock.unlink()


def reorder_classes(description: dict[str, Any], samples: pd.DataFrame) -> None:
    description["classes"].reverse()


def add_class(description: dict[str, Any], samples: pd.DataFrame) -> None:
    description["classes"].append("OTHER")


def change_seed(description: dict[str, Any], samples: pd.DataFrame) -> None:
    description["split"]["seed"] = 1
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("test: 0.2, seed: 0}", "test: 0.2, seed: 1}"))


def move_a_training_image(description: dict[str, Any], samples: pd.DataFrame) -> None:
    trained, tested = ((samples.split == split).idxmax() for split in ("train", "test"))
    samples.loc[[trained, tested], "split"] = ["test", "train"]


def swap_diagnoses(description: dict[str, Any], samples: pd.DataFrame) -> None:
    samples["label"] = samples.label.map(dict(zip(CLASSES, CLASSES[::-1], strict=True)))


@pytest.mark.parametrize(
    ("prepare_otherwise", "told"),
    [
        (reorder_classes, "classes ['PNEUMONIA', 'NORMAL']"),
        (add_class, "'OTHER'"),
        (change_seed, "'seed': 1"),
        (move_a_training_image, "2 images"),
        (swap_diagnoses, "another split or class"),
    ],
)
def test_a_network_is_used_only_with_the_classes_and_the_split_of_its_fit(
    registered: Path, images: Path, prepare_otherwise: Any, told: str
) -> None:
    folder, before = registered / "artifacts/prepared/chest_xray", ask_command_line(str(images))
    files = [folder / "dataset.json", folder / "samples.csv", registered / "params.yaml"]
    kept = {path: path.read_bytes() for path in files}
    description, samples = json.loads(files[0].read_text()), pd.read_csv(files[1], dtype=str)
    try:
        prepare_otherwise(description, samples)
        write_json(files[0], description)
        samples.to_csv(files[1], index=False)
        for command, fit in (("register", []), ("layers", ["imagenet_all"]), ("gradcam", ["imagenet_all"])):
            refused = CliRunner().invoke(cli, [command, "chest_xray", *fit])
            assert isinstance(refused.exception, UserError)
            assert "artifacts/runs/chest_xray/imagenet_all-seed0 was fitted" in str(refused.exception)
            assert told in str(refused.exception)
        assert ask_command_line(str(images)) == before
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def test_a_network_is_not_used_with_other_pixels_under_the_same_names(registered: Path) -> None:
    prepared, fit = Path("artifacts/prepared/chest_xray"), Path("artifacts/runs/chest_xray/imagenet_all-seed0")

    def entry(folder: Path, md5: str) -> dict[str, Any]:
        return {"path": folder.as_posix(), "md5": md5, "size": 1, "nfiles": 1}

    now, then = digest_of(prepared), f"{'0' * 32}.dir"
    for used in (now, then):
        train = {"cmd": "b", "deps": [entry(prepared, used)], "outs": [entry(fit, digest_of(fit))]}
        stages = {"prepare": {"cmd": "a", "outs": [entry(prepared, now)]}, "train": train}
        Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}) + "\n")
        try:
            for command in (["register", "chest_xray"], ["gradcam", "chest_xray", "imagenet_all"]):
                error = CliRunner().invoke(cli, command).exception
                assert ("its files have changed since artifacts/runs/chest_xray/" in str(error)) == (used == then)
        finally:
            Path("dvc.lock").unlink()


def test_a_command_outside_the_project_makes_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(picture())
    refused = CliRunner().invoke(cli, ["predict", "chest_xray", "a.png"])
    assert "params.yaml: not found in" in str(refused.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_network_of_another_data_set_is_refused(registered: Path) -> None:
    done = CliRunner().invoke(cli, ["predict", "ham10000", "params.yaml", "--model", "models:/chest_xray/1"])
    assert "models:/chest_xray/1: a network for chest_xray; expected one for ham10000" in str(done.exception)


def test_a_better_network_becomes_the_best_and_the_other_can_still_be_asked(
    registered: Path, images: Path, tiny: TrainParams, caplog: pytest.LogCaptureFixture
) -> None:
    first = ask_command_line(str(images / "a.jpg"))
    worse = registered / "artifacts/runs/chest_xray/imagenet_all-seed0/predictions.csv"
    kept = worse.read_bytes()
    try:
        # Its answers were right; now those of the other network are better.
        table = pd.read_csv(worse, dtype={"id": str})
        worse.write_text(table.assign(p_NORMAL=0.1, p_PNEUMONIA=0.9).to_csv(index=False))
        other = registered / "artifacts/runs/chest_xray/cnn_random-seed0/predictions.csv"
        other_kept = other.read_bytes()
        other.write_bytes(kept)
        done = CliRunner().invoke(cli, ["register", "chest_xray"])
        assert "version 2, models:/chest_xray@best: cnn_random" in done.output
        assert ask_command_line(str(images / "a.jpg")) != first
        assert ask_command_line(str(images / "a.jpg"), "--model", "models:/chest_xray/1") == first
        assert "alone" not in caplog.text
        other.write_bytes(worse.read_bytes())
        CliRunner().invoke(cli, ["register", "chest_xray"])
        assert "cnn_random-seed0: predicts only PNEUMONIA" in caplog.text
    finally:
        worse.write_bytes(kept)
        other.write_bytes(other_kept)
    assert (
        "version 1, models:/chest_xray@best: imagenet_all" in CliRunner().invoke(cli, ["register", "chest_xray"]).output
    )


@pytest.fixture
def drawn_coarsely(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Grad-CAM picture at 32 px too, whose map has 2 × 2 positions."""
    monkeypatch.setattr(gradcam, "MIN_POSITIONS", 2)


def test_a_map_of_four_positions_is_not_shown_as_where_the_network_looked(registered: Path, images: Path) -> None:
    image, overlays = str(images / "a.jpg"), registered / "coarse"
    asked = ["predict", "chest_xray", image, "--overlays", str(overlays), "--json"]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 0
    assert "at 32 px: 2 × 2 positions are too few" in done.stderr
    assert not overlays.exists()
    assert "overlay" not in json.loads(done.stdout)["answers"][0]
    page = TestClient(build_app(open_classifier("chest_xray", None)), base_url="http://127.0.0.1")
    told = page.post("/predict?overlay=true", content=picture()).json()
    assert "overlay" not in told
    assert "2 × 2 positions" in told["no_overlay"]
    assert "2 × 2 positions" in page.get("/").text
    assert "Where the network looked" not in page.get("/").text


def test_an_image_is_unlike_the_training_images_alone_and_in_any_batch(registered: Path, demo: Path) -> None:
    classifier = open_classifier("chest_xray", None)
    samples = pd.read_csv("artifacts/prepared/chest_xray/samples.csv", dtype=str)
    prepared = np.load("artifacts/prepared/chest_xray/images.npy")
    rng = np.random.default_rng(0)
    foreign = np.stack([np.full((32, 32, 3), 255), rng.integers(0, 256, (32, 32, 3)), 255 - prepared[0]])
    known = prepared[samples.split == "test"]
    together = ask(classifier, np.concatenate([known, foreign.astype(np.uint8)]))
    assert [found.unlike_training for found in together[-3:]] == [True, True, True]
    assert not any(found.calibrated for found in together[-3:])
    rate = np.mean([found.unlike_training for found in together[:-3]])
    like = classifier.facts["likeness"]
    assert rate == like["false_alarm_rate"] <= 0.1
    assert like["test_images"] == len(known)
    assert all(found.calibrated is not found.unlike_training for found in together)
    for row in (0, len(known) - 1, len(together) - 1):
        pixels = (known[row] if row < len(known) else foreign[row - len(known)]).astype(np.uint8)
        (alone,) = ask(classifier, pixels[None])
        assert alone.distance == together[row].distance
        assert (alone.probabilities == together[row].probabilities).all()
    validation = ask(classifier, prepared[samples.split == "validation"])
    assert max(found.distance for found in validation) == pytest.approx(like["threshold"], rel=1e-4)


def test_the_page_json_and_csv_say_that_an_image_is_unlike_the_training_images(
    registered: Path, demo: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64), (255, 255, 255)).save(tmp_path / "white.png")
    xray = min((demo / "chest_xray").rglob("*.jpeg"))
    asked = ["predict", "chest_xray", str(tmp_path / "white.png"), str(xray)]
    done = CliRunner().invoke(cli, [*asked, "--output", str(tmp_path / "answers.csv"), "--json"])
    told = json.loads(done.stdout)
    assert [found["unlike_training"] for found in told["answers"]] == [True, False]
    assert [found["calibrated"] for found in told["answers"]] == [False, True]
    assert told["answers"][0]["distance"] > told["model"]["likeness"]["threshold"] > told["answers"][1]["distance"]
    assert "Mahalanobis" in told["model"]["likeness"]["method"]
    assert 0 <= told["model"]["likeness"]["false_alarm_rate"] < 0.1
    assert told["model"]["scope"] == "chest X-rays of children only"
    table = pd.read_csv(tmp_path / "answers.csv")
    assert table.unlike_training.tolist() == [True, False]
    assert table.calibrated.tolist() == [False, True]
    like = told["model"]["likeness"]
    for key in ("method", "threshold", "false_alarm_rate"):
        assert table[key].tolist() == [like[key]] * 2
    shown = CliRunner().invoke(cli, asked).output
    assert re.search(r"unlike the training images.*white\.png", shown)
    assert "chest X-rays of children only" in shown
    served = mlflow.pyfunc.load_model("models:/chest_xray@best")
    contents = [(tmp_path / "white.png").read_bytes(), xray.read_bytes()]
    assert served.predict(pd.DataFrame({"image": contents})).unlike_training.tolist() == [True, False]
    page = TestClient(build_app(open_classifier("chest_xray", None)), base_url="http://127.0.0.1")
    text = page.get("/").text
    assert "chest X-rays of children only" in text
    assert like["method"] in text
    assert f"{like['threshold']:.2f}" in text
    assert f"{100 * like['false_alarm_rate']:.1f}%" in text
    answers = [page.post("/predict", content=content).json() for content in contents]
    assert [found["unlike_training"] for found in answers] == [True, False]
    assert [found["calibrated"] for found in answers] == [False, True]
    assert [found["likeness"] for found in answers] == [like, like]


def test_probabilities_of_16_bits_are_computed_with_and_add_up_to_1(tiny: TrainParams) -> None:
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255, dtype="float32")(inputs))
    network = keras.Model(inputs, keras.layers.Dense(7, activation="softmax", dtype="bfloat16")(flat))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    raw = np.asarray(network.predict_on_batch(pixels)).astype(np.float64)
    assert np.abs(raw.sum(axis=1) - 1).max() > 1e-4
    found = predict_probabilities(network, pixels, [(), (2,)])
    assert found.dtype == np.float64
    assert found.sum(axis=1) == pytest.approx(np.ones(40), abs=1e-12)


def test_a_named_network_is_registered_beside_the_best_and_found_by_its_run(registered: Path, images: Path) -> None:
    image = str(images / "a.jpg")
    best = ask_command_line(image)
    client = mlflow_store.connect()
    run_id = mlflow_runs.find(client, "chest_xray", "fit-cnn_random")
    for version in mlflow_models.registered(client):
        if version.tags["medtransfer.fit"] == "fit-cnn_random":
            client.delete_model_version("chest_xray", version.version)
    run = ask_command_line(image, "--model", f"runs:/{run_id}/model")  # not registered, so from its folder
    assert run != best
    done = CliRunner().invoke(cli, ["register", "chest_xray", "cnn_random", "--seed", "0"])
    assert "models:/chest_xray@cnn_random-seed0: cnn_random, seed 0" in done.output
    assert ask_command_line(image) == best
    assert ask_command_line(image, "--model", "models:/chest_xray@cnn_random-seed0") == run
    assert ask_command_line(image, "--model", f"runs:/{run_id}/model") == run
    version = client.get_model_version_by_alias("chest_xray", "cnn_random-seed0")
    assert version.run_id == run_id
    assert "# cnn_random on Chest X-Ray Images" in version.description
    assert "temperature" in version.description
    with TemporaryDirectory() as folder:
        found, _ = mlflow_models.fetch_classifier("models:/chest_xray@cnn_random-seed0", Path(folder))
        assert version.description == (found / "model-card.md").read_text()
        classifier = load_classifier(found)
    assert classifier.facts["calibrated"] is False  # it is wrong about every validation image
    moved = registered / "artifacts/runs/chest_xray/cnn_random-seed0"
    hidden = moved.rename(registered / "hidden")
    try:
        assert ask_command_line(image, "--model", f"runs:/{run_id}/model") == run  # its registration has all
        client.delete_model_version("chest_xray", version.version)
        gone = CliRunner().invoke(cli, ["predict", "chest_xray", image, "--model", f"runs:/{run_id}/model"])
        assert "its fit is neither in artifacts/runs nor registered" in str(gone.exception)
    finally:
        hidden.rename(moved)
    tree = moved.with_name("decision_tree-seed0")
    record = {"dataset": "chest_xray", "model": "decision_tree", "seed": 0, "kind": "baseline", "fit": "fit-tree"}
    write_json(tree / "run.json", record | {"git_commit": "unknown", "hyperparameters": {}})
    its_run = client.create_run(client.get_run(run_id).info.experiment_id, tags={"medtransfer.fit": "fit-tree"})
    address = f"runs:/{its_run.info.run_id}/model"
    refused = CliRunner().invoke(cli, ["predict", "chest_xray", image, "--model", address])
    assert str(refused.exception) == f"{address}: a decision_tree; expected a network"
    shutil.rmtree(tree)
    for arguments, told in (
        (["predict", "chest_xray", image, "--model", "runs:/nothing"], "expected runs:/RUN/model"),
        (["predict", "ham10000", image, "--model", f"runs:/{run_id}/model"], "a network for chest_xray"),
        (["predict", "chest_xray", image, "--model", "best"], "expected models:/NAME@ALIAS"),
        (
            ["register", "chest_xray", "imagenet_head"],
            NOT_LISTED,
        ),
        (["register", "chest_xray", "--seed", "0"], "--seed: given without a configuration"),
    ):
        assert told in str(CliRunner().invoke(cli, arguments).exception)


@pytest.mark.usefixtures("drawn_coarsely")
def test_folders_are_searched_and_a_file_that_is_no_image_stops_nothing(registered: Path, images: Path) -> None:
    assert sorted(ask_command_line(str(images))) == ["a.jpg", "b.png", "c.jpeg"]
    (registered / "bad.jpg").write_text("no image")
    asked = ["predict", "chest_xray", str(registered / "bad.jpg"), str(images / "a.jpg")]
    done = CliRunner().invoke(cli, [*asked, "--output", "answers.csv", "--overlays", "overlays"])
    assert done.exit_code == 2
    assert "bad.jpg: cannot be decoded: not JPEG, PNG, TIFF" in done.output
    table = pd.read_csv("answers.csv", keep_default_na=False)
    said = ["image", "predicted", "p_NORMAL", "p_PNEUMONIA", "unlike_training", "distance", "threshold"]
    said += ["false_alarm_rate", "method", "calibrated", "overlay", "problem", "synthetic"]
    assert list(table.columns) == said
    assert list(table.synthetic) == [True, True]
    assert list(table.overlay) == ["", "overlays/0001-a.png"]
    assert list(table.predicted != "") == [False, True]
    again = CliRunner().invoke(cli, [*asked, "--overlays", "overlays"])
    assert str(again.exception) == "--overlays: overlays: is not empty; name a new folder"
    told = json.loads(CliRunner().invoke(cli, [*asked, "--json", "--overlays", "again"]).stdout)["answers"]
    assert [found.get("overlay") for found in told] == [None, "again/0001-a.png"]
    drawn = list(Path("overlays").iterdir())
    assert [path.name for path in drawn] == ["0001-a.png"]
    assert Image.open(drawn[0]).size == (200, 150)
    shown = CliRunner().invoke(cli, ["predict", "chest_xray", str(images / "a.jpg")])
    assert re.search(r"a\.jpg +(NORMAL|PNEUMONIA) +[01]\.\d{3} +[01]\.\d{3}$", shown.output, re.MULTILINE)
    assert "not a medical device" in shown.output
    assert "SYNTHETIC" in shown.output
    empty = registered / "empty"
    empty.mkdir()
    nothing = CliRunner().invoke(cli, ["predict", "chest_xray", str(empty)])
    assert "empty: no image; expected files that end in .jpg" in str(nothing.exception)


@pytest.mark.usefixtures("drawn_coarsely")
def test_no_name_in_an_image_is_in_an_output(registered: Path, tmp_path: Path) -> None:
    name, artist, text = "Erika Mustermann", Image.Exif(), PngInfo()
    artist[0x013B] = name
    text.add_text("PatientName", name)
    picture = Image.new("RGB", (64, 48), (200, 140, 120))
    picture.save(tmp_path / "a.jpg", comment=name, exif=artist, xmp=name.encode())
    picture.save(tmp_path / "b.png", pnginfo=text, exif=artist)
    dicom(tmp_path / "c.dcm", np.zeros((48, 64), np.uint16), PatientName=name, PatientID=name)
    assert all(name.encode() in path.read_bytes() for path in tmp_path.iterdir())
    asked = ["predict", "chest_xray", str(tmp_path), "--output", str(tmp_path / "out/answers.csv")]
    done = CliRunner().invoke(cli, [*asked, "--overlays", str(tmp_path / "out/overlays")])
    assert done.exit_code == 0, done.output
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) == 4
    assert name not in done.output
    assert not any(name.encode() in path.read_bytes() for path in written)
    for path in tmp_path.glob("?.*"):
        assert load_rgb(path).image.info == {}


def test_a_file_that_is_too_large_is_not_read(
    registered: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(images / "b.png", tmp_path)
    with (tmp_path / "slide.png").open("wb") as file:
        file.truncate(1_000_000)
    monkeypatch.setattr("medtransfer.serving.predict.MAX_BYTES", 999_999)
    done = CliRunner().invoke(cli, ["predict", "chest_xray", str(tmp_path), "--json"])
    good, large = json.loads(done.stdout)["answers"]
    assert done.exit_code == 2
    assert "probabilities" in good
    assert "slide.png: has 1,000,000 bytes; expected an image, at most 999,999" in large["problem"]


def test_a_full_disk_for_the_copy_of_a_network_is_named(registered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: str, **options: str) -> None:
        raise MlflowException("The following failures occurred: ##### model.keras ##### [Errno 28] No space left")

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", fail)
    with pytest.raises(OSError, match=r"\[Errno 28\] No space left on device: '/"):
        open_classifier("chest_xray", None)


def test_a_file_whose_name_is_not_utf8_is_answered_like_the_others(
    registered: Path, images: Path, tmp_path: Path
) -> None:
    shutil.copy(images / "a.jpg", tmp_path / os.fsdecode(b"k\xf6rper.jpg"))
    shutil.copy(images / "b.png", tmp_path)
    (tmp_path / "._b.png").write_bytes(b"a resource fork")
    asked, output = ["predict", "chest_xray", str(tmp_path)], tmp_path / "out/answers.csv"
    done = subprocess.run([sys.executable, "-m", "medtransfer", *asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "b.png" in done.stdout
    assert "rper.jpg" in done.stdout
    assert CliRunner().invoke(cli, [*asked, "--output", str(output)]).exit_code == 0
    assert (pd.read_csv(output).predicted != "").sum() == 2


@pytest.fixture(scope="module")
def outside(project: Path, demo: Path) -> Path:
    """Images of another source: pictures with labels as ISIC distributes them, and a copy of one of the data set's."""
    folder = project / "hospital"
    (folder / "images").mkdir(parents=True)
    rng, rows = np.random.default_rng(1), []
    for number in range(24):
        dark = np.linspace(0, 90 + 60 * (number % 2), 64)[:, None, None]
        pixels = np.clip(rng.normal(60, 25, (64, 64, 1)) + np.roll(dark, number, axis=0), 0, 255).astype(np.uint8)
        Image.fromarray(np.repeat(pixels, 3, axis=-1)).save(folder / "images" / f"h{number:02d}.png")
        rows.append((f"h{number:02d}", 1.0 - number % 2, 1.0 * (number % 2), 0.0, f"p{number % 12}"))
    shutil.copy(min((demo / "chest_xray").rglob("*.jpeg")), folder / "images" / "copied.jpeg")
    shutil.copy(folder / "images" / "h00.png", folder / "images" / "odd.png")
    rows += [("copied", 1.0, 0.0, 0.0, "q"), ("odd", 0.0, 0.0, 1.0, "r")]
    pd.DataFrame(rows, columns=["image", "NORMAL", "ILL", "OTHER", "patient"]).to_csv(folder / "l.csv", index=False)
    return folder


WITH_LABELS = ["--labels", "hospital/l.csv", "--group", "patient", "--map", "ILL=PNEUMONIA", "--map", "OTHER="]
SCORE = ["score", "chest_xray", "--images", "hospital/images", *WITH_LABELS]


def test_networks_are_scored_on_images_of_another_source(
    registered: Path, outside: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [path for path in (registered / "artifacts/runs").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in runs}
    chosen = CliRunner().invoke(cli, ["register", "chest_xray"]).output
    done = CliRunner().invoke(cli, [*SCORE, "--name", "hospital"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "left out: 1 image without a label" in caplog.text
    assert "left out: 1 image that chest_xray has too" in done.output
    assert re.search(r"cnn_random-seed0: \d+% of the images are unlike the training images", done.output)
    folder = registered / "artifacts/external/chest_xray/hospital"
    facts = json.loads((folder / "external.json").read_text())
    assert (facts["images"], facts["groups"], facts["copies"]) == (24, 12, 1)
    table = pd.read_csv(folder / "scores.csv").set_index(["model", "measure"])
    assert {model for model, _ in table.index} == {"cnn_random", "imagenet_all"}
    client = mlflow_store.connect()
    for name in ("cnn_random", "imagenet_all"):
        predictions = read_predictions(folder / f"{name}-seed0" / "predictions.csv")
        assert set(predictions.split) == {"external"}
        like = facts["unlike_training"][f"{name}-seed0"]
        assert predictions.unlike_training.mean() == like["share"] > 0.5  # noise with a shade
        assert like["false_alarm_rate"] <= 0.1
        assert table.external[name, "macro avg"] == pytest.approx(score(predictions)["macro avg"], abs=1e-6)
        internal = json.loads((registered / f"artifacts/runs/chest_xray/{name}-seed0/metrics.json").read_text())
        # The other network is wrong about every validation image, so that it has no temperature.
        assert ("calibration error, scaled" in table.loc[name].index) is (name == "imagenet_all")
        assert internal["macro avg"] == pytest.approx(table.internal[name, "macro avg"], abs=1e-6)
        # One network is right about every test image and the other about none.
        assert table.difference_interval[name, "micro avg"] == "none: all groups alike"
        network = mlflow_runs.find(client, "chest_xray", f"fit-{name}")
        experiment = client.get_experiment_by_name("chest_xray on hospital").experiment_id
        (run,) = client.search_runs([experiment], f"tags.`{mlflow_store.FIT}` LIKE 'fit-{name} %'")
        assert run.info.status == "FINISHED"
        assert run.data.tags["medtransfer.network_run"] == network
        assert run.data.metrics["external/unlike_training"] == like["share"]
        logged = sorted(value for key, value in run.data.metrics.items() if "macro" in key)
        expected = sorted(table[side][name, "macro avg"] for side in ("external", "difference"))
        assert logged == pytest.approx(expected, abs=1e-6)
        assert not any(run.info.run_id in line for line in audit.others())
        stored = {entry.path for entry in client.list_artifacts(run.info.run_id)}
        assert {"confusion.png", "report.txt", "scores.csv", "scores.md", "scores.png", "reliability.png"} <= stored
    text = (folder / "scores.md").read_text()
    assert "SYNTHETIC" in text
    assert "24 images of 12 patients" in text
    assert (folder / "calibration.csv").exists()
    # No choice sees them: the runs are as before, and the best network is the same.
    assert {path: path.read_bytes() for path in runs} == before
    assert CliRunner().invoke(cli, ["register", "chest_xray"]).output == chosen
    assert CliRunner().invoke(cli, [*SCORE, "--name", "hospital"]).exit_code == 0
    scores = (folder / "scores.csv").read_bytes()
    for others, what in (
        (["--map", "NORMAL="], "other images or another image size"),
        (["--configuration", "cnn_random"], "the network imagenet_all-seed0"),
    ):
        other = CliRunner().invoke(cli, [*SCORE, *others, "--name", "hospital"])
        assert f"hospital: has scores for {what}; choose another --name" in str(other.exception)
        assert (folder / "scores.csv").read_bytes() == scores
    labels = outside / "l.csv"
    text = labels.read_text()
    labels.write_text(text.replace("h03,0.0,1.0,0.0", "h03,1.0,0.0,0.0"))
    corrected = CliRunner().invoke(cli, [*SCORE, "--name", "hospital"])
    assert "hospital: has scores for other labels; choose another --name" in str(corrected.exception)
    labels.write_text(text)
    assert len(client.search_runs([experiment])) == 2
    shutil.rmtree(folder)
    assert CliRunner().invoke(cli, [*SCORE, "--map", "NORMAL=", "--name", "hospital"]).exit_code == 0
    assert len(client.search_runs([experiment])) == 4, "other images have runs of their own"


def test_the_second_of_two_at_once_under_one_name_is_refused(
    registered: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only, answer = [*SCORE, "--name", "twice", "--configuration"], external._answer

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(external, "_answer", answer)
        assert CliRunner().invoke(cli, [*only, "cnn_random"]).exit_code == 0
        return answer(*arguments)

    monkeypatch.setattr(external, "_answer", late)
    done = CliRunner().invoke(cli, [*only, "imagenet_all"])
    assert "twice: has scores for the network cnn_random-seed0; choose another --name" in str(done.exception)
    assert Path("artifacts/external/chest_xray/twice/cnn_random-seed0/predictions.csv").exists()


def test_answers_are_scored_where_labels_are_given(registered: Path, outside: Path) -> None:
    images = [f"hospital/images/h{number:02d}.png" for number in range(4)]
    done = CliRunner().invoke(cli, ["predict", "chest_xray", *images, *WITH_LABELS, "--output", "labelled.csv"])
    assert done.exit_code == 0, (done.output, done.exception)
    table = pd.read_csv("labelled.csv")
    assert table.label.tolist() == ["NORMAL", "PNEUMONIA"] * 2
    right = (table.label == table.predicted).mean()
    assert re.search(rf"micro avg: {right:.3f} no interval: 4 groups", done.output)
    assert "4 labelled images of 4 groups (training images count too; `score` leaves them out)" in done.output
    for read in ("hospital/images/h00.png", "hospital/l.csv"):
        before = Path(read).read_bytes()
        done = CliRunner().invoke(cli, ["predict", "chest_xray", *images, *WITH_LABELS, "--output", read])
        assert f"--output: {read}: is also an input file" in str(done.exception)
        assert Path(read).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--configuration", "decision_tree"], "a tree, not a network"),
        (
            ["--configuration", "imagenet_head"],
            NOT_LISTED,
        ),
        (["--name", "../up"], "not a name for a source"),
        (["--map", "NORMAL=HEALTHY"], "'NORMAL' cannot become 'HEALTHY'"),
        (["--map", "OTHER=NORMAL"], "OTHER is mapped to both '' and 'NORMAL'; choose one"),
    ],
)
def test_a_mistake_in_scoring_is_named(registered: Path, outside: Path, arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(cli, [*SCORE, *arguments])
    assert isinstance(done.exception, UserError | SystemExit)
    assert told in f"{done.exception} {done.stderr}"


JSON = {"Content-Type": "application/json"}
MISSING, NO_BYTES = "Model is missing inputs ['image']", "Failed to convert column image"
# What is sent to `mlflow models serve`, what answers, and a part of the reason.
BAD_BODIES: dict[str, tuple[dict[str, Any], int, str]] = {
    "no image": ({"json": {"dataframe_records": [{"image": "AAAA"}]}}, 400, "image 0: cannot be decoded"),
    "not base64": ({"json": {"dataframe_records": [{"image": "?"}]}}, 400, "image 0: cannot be decoded"),
    "missing column": ({"json": {"dataframe_records": [{"picture": "AAAA"}]}}, 400, MISSING),
    "no rows": ({"json": {"dataframe_records": []}}, 400, MISSING),
    "null": ({"json": {"dataframe_records": [{"image": None}]}}, 400, NO_BYTES),
    "number": ({"json": {"dataframe_records": [{"image": 1}]}}, 400, NO_BYTES),
    "a list": ({"json": {"dataframe_records": [{"image": ["AAAA"]}]}}, 400, NO_BYTES),
    "one null": ({"json": {"dataframe_records": [{"image": "AAAA"}, {"image": None}]}}, 400, NO_BYTES),
    "no table": ({"json": {"image": "AAAA"}}, 400, "exactly one of the input fields"),
    "broken JSON": ({"data": b"{", "headers": JSON}, 400, "valid JSON"),
    "another type": ({"data": b"x", "headers": {"Content-Type": "image/png"}}, 415, "Got 'image/png'"),
    "no type": ({"data": b"{}"}, 500, "Internal Server Error"),  # MLflow's own; docs/security.md
}


# The lines of docs/serving.md, for a port and a file of the test's; --host and --allow-host are named there.
SERVE_BY_MLFLOW = (
    "MLFLOW_TRACKING_URI=sqlite:///mlruns/mlflow.db mlflow models serve --model-uri models:/chest_xray@best "
    "--env-manager local --port %s"
)
CURL_MLFLOW = """
printf '{"dataframe_records": [{"image": "%%s"}]}' "$(base64 --wrap 0 %s)" | \
    curl --header 'Content-Type: application/json' --data @- http://127.0.0.1:%s/invocations
"""
SERVE = "medtransfer serve chest_xray --host 127.0.0.1 --allow-host lung.hospital.example --port %s"
CURL = "curl --data-binary @%s http://127.0.0.1:%s/predict"


def shell(line: str) -> Any:
    """Run a line that prints JSON."""
    return json.loads(subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout)


def test_the_command_line_the_served_model_and_the_page_give_one_answer(registered: Path, images: Path) -> None:
    files = [images / "a.jpg", images / "b.png", images / "more/c.jpeg"]
    ours = ask_command_line(*map(str, files))
    port = free_port()
    with started(registered, ("bash", "-c", SERVE_BY_MLFLOW % port), f"http://127.0.0.1:{port}/health"):
        served = [shell(CURL_MLFLOW % (file, port))["predictions"][0] for file in files]
        url = f"http://127.0.0.1:{port}/invocations"
        refused = {name: requests.post(url, timeout=60, **request) for name, (request, _, _) in BAD_BODIES.items()}
    port = free_port()
    with started(registered, ("bash", "-c", SERVE % port), f"http://127.0.0.1:{port}/health"):
        shown = [shell(CURL % (file, port)) for file in files]
        named = [
            requests.get(f"http://127.0.0.1:{port}/", headers={"Host": host}, timeout=60).status_code
            for host in ("lung.hospital.example", "localhost", "evil.example")
        ]
    assert named == [200, 200, 400]
    for name, (_, status, reason) in BAD_BODIES.items():
        assert refused[name].status_code == status, (name, refused[name].text)
        assert reason in refused[name].text, name
    for file, answer, told in zip(files, served, shown, strict=True):
        for name in CLASSES:
            assert ours[file.name][name] == pytest.approx(answer[f"p_{name}"], abs=2e-6)
            assert ours[file.name][name] == pytest.approx(told["probabilities"][name], abs=2e-6)
        assert told["predicted"] == answer["predicted"] == max(ours[file.name], key=ours[file.name].__getitem__)


def test_serving_sees_the_pixels_that_training_saw(registered: Path, demo: Path) -> None:
    classifier = open_classifier("chest_xray", None)
    samples = pd.read_csv("artifacts/prepared/chest_xray/samples.csv", dtype=str)
    prepared = np.load("artifacts/prepared/chest_xray/images.npy", mmap_mode="r")
    listing = CHEST_XRAY.read(demo / "chest_xray").samples.set_index("id")
    for row in (0, 100, -1):
        content = (demo / "chest_xray" / listing.path[samples.id.iloc[row]]).read_bytes()
        assert (read_image(classifier, content) == prepared[row]).all()


def sixteen_bits(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def test_serving_scales_sixteen_bits_as_the_data_set(registered: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2000, (32, 32))
    with pytest.raises(UserError, match="has more than 8 bits"):
        read_image(open_classifier("chest_xray", None), sixteen_bits(values))
    description = json.loads(Path("artifacts/prepared/chest_xray/dataset.json").read_text())
    fit = Path("artifacts/runs/chest_xray/imagenet_all-seed0")
    write_classifier(read_params(Path("params.yaml")), fit, {**description, "white_level": 4095}, tmp_path)
    classifier = load_classifier(tmp_path)
    pixels = read_image(classifier, sixteen_bits(values))
    assert (pixels == np.round(values * 255 / 4095)[..., None]).all()
    (drawn,) = show_where(classifier, [sixteen_bits(values)], pixels[None], ask(classifier, pixels[None]))
    assert drawn.size == (32, 32)
    with pytest.raises(UserError, match="has the value 5,000; expected at most 4,095"):
        read_image(classifier, sixteen_bits(values + 5000 - values.max()))


@pytest.fixture(scope="module")
def page(registered: Path) -> TestClient:
    return TestClient(build_app(open_classifier("chest_xray", None), ("127.0.0.1",)), base_url="http://127.0.0.1")


def picture(size: int = 8, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b"", {}, 422, "no image"),
        (b"no image", {}, 422, "cannot be decoded: not JPEG, PNG, TIFF"),
        (picture()[:40], {}, 422, "cannot be decoded"),
        (b"\0" * (MAX_BYTES + 1), {}, 413, "send a smaller image"),
        (picture(), {"Origin": "http://evil.example"}, 403, "evil.example"),
        (picture(), {"Origin": "null"}, 403, "null"),
        (picture(), {"Origin": "http://[::1"}, 403, "http://[::1"),
        (picture(), {"Host": "evil.example"}, 400, "Invalid host"),
        (b'--boundary\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + picture(), {}, 415, "--data-binary"),
        (base64.b64encode(picture()), {}, 415, "--data-binary"),
        (b"data:image/png;base64," + base64.b64encode(picture()), {}, 415, "--data-binary"),
        (b"image=" + base64.b64encode(picture()), {}, 415, "--data-binary"),
        (picture().replace(b"\r\n", b""), {}, 415, "altered by `curl -d`"),
        (picture(kind="JPEG").translate(None, b"\0\r\n"), {}, 415, "altered by `curl -d`"),
        (picture() + b"&" + picture(kind="JPEG"), {}, 415, "several images, expected one per request"),
        (b'{"image": "/9j/"}', {"Content-Type": "application/json"}, 415, "--data-binary"),
        (gzip.compress(picture(), mtime=0), {"Content-Encoding": "gzip"}, 415, "a body that is not compressed"),
    ],
)
def test_a_bad_request_gets_a_reason(
    page: TestClient, body: bytes, headers: dict[str, str], status: int, reason: str
) -> None:
    answer = page.post("/predict", content=body, headers=headers)
    assert answer.status_code == status
    assert reason in answer.text


@pytest.mark.parametrize("start", [b"RIFFH=\0\0WEBP", b"BMB=\x01\0", b"GIF89a=\0"])
def test_an_image_whose_size_looks_like_a_form_is_not_taken_for_one(page: TestClient, start: bytes) -> None:
    answer = page.post("/predict", content=start + bytes(100))
    assert answer.status_code == 422
    assert "cannot be decoded" in answer.text


@pytest.mark.parametrize("known", ["synthetic", "calibrated"])
@pytest.mark.parametrize("value", [True, False])
def test_an_answer_says_what_the_network_was_trained_on_and_whether_it_is_calibrated(
    registered: Path, demo: Path, known: str, value: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_classifier("chest_xray", None)
    classifier = replace(opened, facts={**opened.facts, known: value})
    page = TestClient(build_app(classifier), base_url="http://127.0.0.1")
    xray = min((demo / "chest_xray").rglob("*.jpeg"))
    assert page.post("/predict", content=xray.read_bytes()).json()[known] is value
    assert as_json([], classifier)["model"][known] is value
    monkeypatch.setattr("medtransfer.serving.predict.open_classifier", lambda *names: classifier)
    shown = CliRunner().invoke(cli, ["predict", "chest_xray", str(xray)]).output
    assert ("probabilities are not calibrated" in shown) is (known == "calibrated" and not value)


async def ask_app(app: Any, path: str, method: str = "GET", body: bytes | None = b"") -> int:
    """Ask for a path as it is, which the client would shorten first, in the event loop that runs.

    A body of None never arrives.
    """
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if body is None:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path, "root_path": "",
        "raw_path": path.encode(), "query_string": b"", "headers": [(b"host", b"127.0.0.1")],
    }  # fmt: skip

    await app(scope, receive, send)
    return int(sent[0]["status"])


def test_the_page_behind_a_proxy_that_speaks_tls_may_ask(page: TestClient) -> None:
    assert page.post("/predict", content=picture(), headers={"Origin": "https://127.0.0.1"}).status_code == 200
    assert page.post("/predict", content=picture(), headers={"Origin": "https://other.org"}).status_code == 403


def test_a_proxy_may_send_its_own_host_if_the_pages_name_is_allowed(registered: Path) -> None:
    asked = serve.make_context("serve", ["chest_xray", "--allow-host", "*.Hospital.example"])
    app = build_app(open_classifier("chest_xray", None), ("127.0.0.1", "localhost", *asked.params["hosts"]))
    with TestClient(app, base_url="http://127.0.0.1:8000") as behind:
        for origin, status in (("https://scans.hospital.example", 200), ("https://hospital.example.evil.org", 403)):
            answer = behind.post("/predict", content=picture(), headers={"Origin": origin})
            assert answer.status_code == status
        assert "--allow-host hospital.example.evil.org" in answer.text


def test_images_that_wait_keep_nobody_from_asking_whether_it_lives(
    registered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as may wait, one more, and the two pages, all at once."""
    go_on = threading.Event()
    monkeypatch.setattr(server_page, "_answer", lambda *asked: {"waited": go_on.wait(30)})
    app = build_app(open_classifier("chest_xray", None))

    async def ask_all() -> tuple[list[int], list[int]]:
        waiting = [asyncio.create_task(ask_app(app, "/predict", "POST", picture())) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0.5)
        meanwhile = [
            await ask_app(app, "/predict", "POST", picture()),
            await ask_app(app, "/"),
            await ask_app(app, "/health"),
        ]
        go_on.set()
        return meanwhile, [await one for one in waiting]

    assert asyncio.run(ask_all()) == ([503, 200, 200], [200] * MAX_WAITING)


def test_a_client_that_sends_no_more_loses_its_place(registered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen lost connections would otherwise keep everybody out."""
    monkeypatch.setattr(server_page, "UPLOAD_SECONDS", 0.1)
    app = build_app(open_classifier("chest_xray", None))

    async def ask_all() -> list[int]:
        stalled = [ask_app(app, "/predict", "POST", None) for _ in range(MAX_WAITING)]
        return [*await asyncio.gather(*stalled), await ask_app(app, "/predict", "POST", picture())]

    assert asyncio.run(ask_all()) == [408] * MAX_WAITING + [200]


def test_an_image_of_more_pixels_than_a_camera_has_is_refused(page: TestClient) -> None:
    large = io.BytesIO()
    Image.new("1", (6000, 6000)).save(large, "PNG")
    told = page.post("/predict", content=large.getvalue())
    assert told.status_code == 422
    assert "6000 × 6000 pixels; expected at most 30,000,000" in told.json()["detail"]


@pytest.mark.parametrize("host", ["foo*", "host.org:8000", "*", "a/b"])
def test_a_name_that_is_none_is_refused(host: str) -> None:
    done = CliRunner().invoke(cli, ["serve", "chest_xray", "--allow-host", host])
    assert done.exit_code == 2
    assert f"{host!r}: expected a name such as scans.example.org" in done.output


def test_other_ways_in_are_closed(page: TestClient) -> None:
    assert page.get("/predict").status_code == 405
    for path in ("/docs", "/openapi.json", "/static/x"):
        assert page.get(path).status_code == 404
    for path in ("/../params.yaml", "/health/../../params.yaml", "//etc/passwd"):
        assert asyncio.run(ask_app(page.app, path)) == 404
    assert page.get("/health").json()["status"] == "ok"
    assert page.head("/health").status_code == 200
    assert page.head("/").status_code == 200
    told = page.post("/predict?overlay=maybe", content=picture())
    assert (told.status_code, told.json()["detail"]) == (422, "overlay: found 'maybe'; expected true or false")
    assert "default-src 'none'" in page.get("/").headers["content-security-policy"]


def test_a_network_that_is_not_the_one_that_was_written_is_never_opened(registered: Path, tmp_path: Path) -> None:
    folder, digests = mlflow_models.fetch_classifier("models:/chest_xray@best", tmp_path)
    network = folder / "model.keras"
    network.write_bytes(network.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"model\.keras: SHA-256 .*, expected"):
        load_classifier(folder)
    # Who can write beside the network can write another digest there, but not into the registry.
    facts = json.loads((folder / "classifier.json").read_text()) | {"network_sha256": sha256_of(network)}
    write_json(folder / "classifier.json", facts)
    with pytest.raises(
        UserError, match=rf"model\.keras: SHA-256 {sha256_of(network)}, expected {digests['model.keras']}"
    ):
        load_classifier(folder, digests)
    (folder / "classifier.json").write_text("{}")
    with pytest.raises(UserError, match="no classifier"):
        load_classifier(folder)


@pytest.mark.parametrize("file", ["classifier.json", "model.keras", "training.npz"])
def test_a_registered_file_that_was_changed_is_found_and_registered_again(
    registered: Path, images: Path, file: str
) -> None:
    client = mlflow_store.connect()
    version = client.get_model_version_by_alias("chest_xray", "best")
    assert list(mlflow_models.registered_problems(version)) == []
    # The logged models of the fits have no classifier.json beside them.
    stored = [path.parent / file for path in (registered / "mlruns").rglob("classifier.json")]
    kept = {path: path.read_bytes() for path in stored}
    try:
        for path, content in kept.items():
            changed = content.replace(b"NORMAL", b"NORMAI")
            path.write_bytes(content + b" " if changed == content else changed)
        assert list(mlflow_models.registered_problems(version)) == [f"its {file} is not the one that was registered"]
        done = CliRunner().invoke(cli, ["predict", "chest_xray", str(images / "a.jpg")])
        assert f"{file}: SHA-256 " in str(done.exception)
        again = CliRunner().invoke(cli, ["register", "chest_xray"])
        assert again.exit_code == 0, again.output
        best = client.get_model_version_by_alias("chest_xray", "best")
        assert best.version != version.version
        assert list(mlflow_models.registered_problems(best)) == []
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    client.set_registered_model_alias("chest_xray", "best", version.version)
    client.delete_model_version("chest_xray", best.version)


def test_a_classifier_of_before_its_digest_is_answered_and_compared_by_its_network(
    registered: Path, images: Path
) -> None:
    client = mlflow_store.connect()
    version = client.get_model_version_by_alias("chest_xray", "best")
    tag = mlflow_models.REGISTERED["classifier.json"]
    try:
        client.delete_model_version_tag("chest_xray", version.version, tag)
        untagged = client.get_model_version("chest_xray", version.version)
        assert tag not in untagged.tags
        assert list(mlflow_models.registered_problems(untagged)) == []
        assert ask_command_line(str(images / "a.jpg"))
    finally:
        client.set_model_version_tag("chest_xray", version.version, tag, version.tags[tag])


def test_the_command_line_compares_with_the_registry(
    registered: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow_store.connect()
    version = client.get_model_version_by_alias("chest_xray", "best").version
    digest = client.get_model_version("chest_xray", version).tags[mlflow_models.DIGEST]
    asked = ["predict", "chest_xray", str(images / "a.jpg")]
    try:
        client.set_model_version_tag("chest_xray", version, mlflow_models.DIGEST, "0" * 64)
        assert f"SHA-256 {digest}, expected {'0' * 64}" in str(CliRunner().invoke(cli, asked).exception)
        client.delete_model_version_tag("chest_xray", version, mlflow_models.DIGEST)
        assert f"has no tag {mlflow_models.DIGEST}" in str(CliRunner().invoke(cli, asked).exception)
    finally:
        client.set_model_version_tag("chest_xray", version, mlflow_models.DIGEST, digest)
    other = tmp_path / "other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    refused = CliRunner().invoke(cli, asked)
    assert f"{other}: no such store; correct MLFLOW_TRACKING_URI, or run `medtransfer register" in str(
        refused.exception
    )
    assert not list(tmp_path.iterdir())


def test_a_run_of_another_store_is_named(registered: Path, images: Path) -> None:
    elsewhere = CliRunner().invoke(cli, ["predict", "chest_xray", str(images / "a.jpg"), "--model", "runs:/1/model"])
    assert "runs:/1/model: not available from sqlite" in str(elsewhere.exception)


def test_probabilities_are_those_of_the_network_at_the_fitted_temperature(registered: Path, images: Path) -> None:
    classifier = open_classifier("chest_xray", None)
    temperature = classifier.facts["temperature"]
    assert abs(np.log(temperature)) > 0.1
    pixels = read_image(classifier, (images / "a.jpg").read_bytes())
    network = vgg16.load_network(registered / "artifacts/runs/chest_xray/imagenet_all-seed0/model.keras")
    raw = network.predict_on_batch(pixels[None])[0].astype(np.float64)
    scores = np.exp(np.log(raw) / temperature)
    expected = scores / scores.sum()
    assert np.abs(expected - raw).max() > 0.1
    told = ask_command_line(str(images / "a.jpg"))["a.jpg"]
    assert [told[name] for name in CLASSES] == pytest.approx(expected, abs=1e-5)


def test_what_is_not_registered_is_named(registered: Path) -> None:
    for arguments in (["predict", "ham10000", "params.yaml"], ["serve", "ham10000"]):
        done = CliRunner().invoke(cli, arguments)
        assert isinstance(done.exception, UserError)
        assert "models:/ham10000@best: not available" in str(done.exception)
        assert str(done.exception).endswith("; run `medtransfer register ham10000`")
    for command in (["predict", "chest_xry", "params.yaml"], ["serve", "chest_xry"]):
        unknown = str(CliRunner().invoke(cli, command).exception)
        assert "chest_xry" in unknown
        assert "chest_xray, ham10000" in unknown
        assert "register" not in unknown
    mlflow_store.connect().delete_registered_model_alias("chest_xray", "best")
    done = CliRunner().invoke(cli, ["predict", "chest_xray", "params.yaml"])
    assert str(done.exception).endswith("; run `medtransfer register chest_xray`")
    other = CliRunner().invoke(cli, ["predict", "chest_xray", "params.yaml", "--model", "models:/chest_xray/99"])
    assert "medtransfer register" not in str(other.exception)
    assert CliRunner().invoke(cli, ["register", "chest_xray"]).exit_code == 0  # as it was
    assert "no finished network; run `dvc repro`" in str(CliRunner().invoke(cli, ["register", "ham10000"]).exception)
    assert "study: 'mine' is unknown" in str(CliRunner().invoke(cli, ["register", "mine"]).exception)
    absent = CliRunner().invoke(cli, ["register", "chest_xray", "imagenet_all", "--seed", "7"])
    assert "seeds: lists 0, not 7; add it" in str(absent.exception)


def drop(page: Any, file: Path) -> None:
    """Drop a file on the page as a file manager would."""
    content = base64.b64encode(file.read_bytes()).decode()
    made = """([name, content]) => {
        const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], name));
        return transfer;
    }"""
    transfer = page.evaluate_handle(made, [file.name, content])
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("#drop", event, {"dataTransfer": transfer})


def wait_for_overlay(page: Any, width: int) -> None:
    """Wait for the overlay of an image of this width; the page's policy forbids Playwright's own way to wait."""
    for _ in range(600):
        if page.evaluate("document.getElementById('overlay').naturalWidth") == width:
            return
        page.wait_for_timeout(100)
    raise AssertionError(page.inner_text("body"))


@pytest.mark.usefixtures("drawn_coarsely")
def test_a_browser_shows_the_answer_and_says_that_it_is_no_medical_device(
    registered: Path, images: Path, demo: Path
) -> None:
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("Chromium is not installed (Debian's package: chromium)")
    from playwright.sync_api import sync_playwright

    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(build_app(open_classifier("chest_xray", None)), "127.0.0.1", port, log_level="warning")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
            shown = browser.new_page(viewport={"width": 390, "height": 800})
            errors: list[str] = []
            shown.on("pageerror", lambda error: errors.append(str(error)))
            foreign: list[str] = []
            shown.on("request", lambda request: foreign.append(request.url))
            shown.goto(f"http://127.0.0.1:{port}/")
            assert "not for diagnosis or treatment" in shown.inner_text("body")
            assert "For chest X-rays of children only" in shown.inner_text("body")
            assert "SYNTHETIC" in shown.inner_text("body")
            shown.set_input_files("#file", str(images / "a.jpg"))
            shown.wait_for_selector("#answer:not([hidden])", timeout=60000)
            ours = ask_command_line(str(images / "a.jpg"))["a.jpg"]
            best = max(ours, key=ours.__getitem__)
            assert shown.inner_text("#said").startswith(best)
            assert f"{ours[best]:.3f}" in shown.inner_text("#rows")
            wait_for_overlay(shown, 200)
            assert shown.is_visible("#unlike")  # it is noise
            shown.set_input_files("#file", str(min((demo / "chest_xray").rglob("*.jpeg"))))
            wait_for_overlay(shown, 96)
            assert not shown.is_visible("#unlike")
            drop(shown, images / "b.png")
            wait_for_overlay(shown, 31)
            dropped = ask_command_line(str(images / "b.png"))["b.png"]
            assert f"{max(dropped.values()):.3f}" in shown.inner_text("#rows")
            assert shown.get_attribute("#drop", "class") == ""
            shown.set_input_files("#file", str(images / "notes.txt"))
            shown.wait_for_selector("#problem:not(:empty)", timeout=60000)
            assert "notes.txt: cannot be decoded" in shown.inner_text("#problem")
            assert shown.evaluate("document.documentElement.scrollWidth") <= 390
            browser.close()
        assert errors == []
        assert all(url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:")) for url in foreign)
    finally:
        server.should_exit = True
        thread.join(30)


def test_a_stalled_upload_is_answered_when_the_server_stops(registered: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = build_app(open_classifier("chest_xray", None))
    server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=1, log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=[[listening]])
        thread.start()
        with socket.create_connection(listening.getsockname(), timeout=30) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n12")
            while not server.server_state.tasks:
                threading.Event().wait(0.1)
            server.should_exit = True
            thread.join(30)
            assert client.recv(1000).startswith(b"HTTP/1.1 503")
    assert "Traceback" not in caplog.text
    assert "Exception" not in caplog.text


def test_a_busy_port_is_named(registered: Path) -> None:
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1"]
    port = free_port()
    other = subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                requests.get(f"http://127.0.0.1:{port}/", timeout=1)
                break
            except requests.ConnectionError:
                threading.Event().wait(0.1)
        done = CliRunner().invoke(cli, ["serve", "chest_xray", "--port", str(port)])
        assert f"127.0.0.1:{port}: Address already in use; choose another with --port" in str(done.exception)
    finally:
        other.kill()
        other.wait()


@pytest.mark.usefixtures("registered")
def test_an_address_of_ipv6_is_refused() -> None:
    refused = CliRunner().invoke(cli, ["serve", "chest_xray", "--host", "::1"])
    assert str(refused.exception) == "--host: ::1: expected an IPv4 address, or a host name of this machine"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_ends_the_server_quietly(registered: Path, number: int) -> None:
    port = free_port()
    command = [sys.executable, "-m", "medtransfer", "serve", "chest_xray", "--port", str(port)]
    # Under nohup, the tests ignore SIGHUP, and the server would inherit that.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert process.stdout
    assert process.stdout.readline().startswith("serving chest_xray")
    assert requests.get(f"http://127.0.0.1:{port}", timeout=60).ok
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_the_models_are_loaded_by_mlflow_without_our_help(registered: Path, images: Path) -> None:
    loaded = mlflow.pyfunc.load_model("models:/chest_xray@best")
    table = loaded.predict(pd.DataFrame({"image": [(images / "a.jpg").read_bytes()]}))
    assert list(table.columns) == ["predicted", "p_NORMAL", "p_PNEUMONIA", "unlike_training"]


def test_a_registered_model_names_every_package_that_its_code_imports() -> None:
    code = "import sys, medtransfer.serving.served; "
    code += "print(*[module.__file__ for name, module in sys.modules.items() if name.startswith('medtransfer')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    names = set()
    for node in (node for file in loaded for node in ast.parse(Path(file).read_text()).body):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    names -= {*sys.stdlib_module_names, "medtransfer"}
    installed, found = set(), list(mlflow_models.SERVING)
    while found:
        name = canonicalize_name(found.pop())
        if name not in installed:
            installed.add(name)
            needed = map(Requirement, distribution(name).requires or [])
            found += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    packages = packages_distributions()
    assert {"filelock", "keras"} <= names
    assert [name for name in names if not {*map(canonicalize_name, packages[name])} & installed] == []
