"""The real pipeline: what depends on what, and one run of all of it on a reduced study."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grimp
import mlflow
import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from conftest import PROJECT

STAGES = {
    "prepare": "prepare",
    "baseline": "baseline",
    "train-ham10000": "train",
    "train-chest_xray": "train",
    "transfer": "train",
    "explain": "explain",
    "evaluate": "evaluate",
}


def pipeline() -> dict[str, Any]:
    stages: dict[str, Any] = YAML(typ="safe").load((PROJECT / "dvc.yaml").read_text())["stages"]
    return stages


def test_every_stage_is_known() -> None:
    assert set(pipeline()) == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_modules_it_imports(stage: str) -> None:
    graph = grimp.build_graph("medtransfer")
    module = f"medtransfer.stages.{STAGES[stage]}"
    imported = {module, *graph.find_upstream_modules(module)}
    # Packages' own files hold a docstring and nothing else.
    files = {"src/" + name.replace(".", "/") + ".py" for name in imported}
    expected = {file for file in files if (PROJECT / file).exists()}
    declared = {dep for dep in pipeline()[stage]["deps"] if dep.endswith(".py")}
    assert declared == expected
    for name in imported:
        package = PROJECT / "src" / name.replace(".", "/") / "__init__.py"
        if package.exists():
            assert re.fullmatch(r'""".*?"""\n', package.read_text(), re.DOTALL), f"{package} holds code"


def test_dvc_yaml_lists_what_params_yaml_studies() -> None:
    params, stages = YAML(typ="safe").load((PROJECT / "params.yaml").read_text()), pipeline()
    for stage in ("prepare", "baseline", "explain"):
        assert stages[stage]["matrix"]["dataset"] == list(params["study"])
    for dataset in params["study"]:
        assert stages[f"train-{dataset}"]["matrix"]["configuration"] == f"${{study.{dataset}.train}}"
    assert stages["transfer"]["matrix"]["configuration"] == params["study"]["chest_xray"]["transfer"]


# --- the whole of it, once


def run(folder: Path, *command: str, code: int = 0) -> str:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    # The clone's own code runs, not the one that is installed.
    env |= {"PYTHONPATH": str(folder / "src"), "GIT_CONFIG_GLOBAL": "/dev/null"}
    env.pop("MLFLOW_TRACKING_URI", None)
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=900)
    assert result.returncode == code, f"{command}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def dvc(folder: Path, *arguments: str) -> str:
    return run(folder, sys.executable, "-m", "dvc", *arguments)


def clone(target: Path) -> Path:
    """Copy what git would clone, with the changes that are not committed yet, to a repository of its own."""
    listed = run(PROJECT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in listed:
        if (PROJECT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, target / name)
    (target / "dvc.lock").write_text("schema: '2.0'\n")
    return target


def reduce(folder: Path) -> None:
    yaml = YAML()
    params = yaml.load((folder / "params.yaml").read_text())
    params["study"]["ham10000"]["train"] = ["imagenet_all", "imagenet_head"]
    params["study"]["chest_xray"]["train"] = ["cnn_random"]
    params["train"] |= {"epochs": 1, "dense_units": [16, 16]}
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(params, file)


def commit(folder: Path, message: str) -> None:
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    run(folder, "git", "add", "--all")
    run(folder, "git", *who, "commit", "--quiet", "--message", message)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the reduced study has run by the user's own command."""
    folder = clone(tmp_path_factory.mktemp("clone") / "medtransfer")
    run(folder, "git", "init", "--quiet")
    reduce(folder)
    commit(folder, "start")
    (folder / "stdout.txt").write_text(run(folder, "medtransfer", "study"))
    return folder


def fits(study: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(study.glob("artifacts/runs/*/*/run.json"))]


def store(study: Path) -> mlflow.MlflowClient:
    uri = f"sqlite:///{study}/mlruns/mlflow.db"
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


def test_the_study_prints_the_comparison_and_where_to_look(study: Path) -> None:
    printed = (study / "stdout.txt").read_text()
    assert "SYNTHETIC demonstration data" in printed
    assert "macro avg" in printed
    assert "make ui" in printed


def test_a_second_repro_runs_nothing(study: Path) -> None:
    assert "Data and pipelines are up to date." in dvc(study, "repro")


def test_every_fit_left_its_files(study: Path) -> None:
    assert {(fit["dataset"], fit["model"]) for fit in fits(study)} == {
        *((dataset, tree) for dataset in ("ham10000", "chest_xray") for tree in ("decision_tree", "random_forest")),
        ("ham10000", "imagenet_all"),
        ("ham10000", "imagenet_head"),
        ("chest_xray", "cnn_random"),
        ("chest_xray", "ham10000_all"),
    }
    for fit in fits(study):
        folder = study / "artifacts" / "runs" / fit["dataset"] / f"{fit['model']}-seed0"
        metrics = json.loads((folder / "metrics.json").read_text())
        assert 0 <= metrics["macro avg"] <= metrics["micro avg"] <= 1
        assert fit["synthetic"] is True
        assert re.fullmatch(r"[0-9a-f]{40}", fit["git_commit"])


def test_trees_and_networks_share_the_test_images(study: Path) -> None:
    for dataset in ("ham10000", "chest_xray"):
        tested = set()
        for path in (study / "artifacts" / "runs" / dataset).glob("*/predictions.csv"):
            table = pd.read_csv(path, dtype=str)
            tested.add(tuple(sorted(table.id[table.split == "test"])))
        assert len(tested) == 1


def test_the_reports_are_whole(study: Path) -> None:
    table = pd.read_csv(study / "reports" / "results.csv")
    assert len(table) == 4 * 9 + 4 * 4
    assert table.published.isna().sum() == 9  # head only, which the talk does not have
    assert "SYNTHETIC" in (study / "reports" / "results.md").read_text()
    figures = study / "reports" / "figures"
    for name in ("ham10000/activations.png", "chest_xray/activations.png", "ham10000/training_accuracy.png"):
        assert (figures / name).exists()
    assert len(list(figures.glob("*/*/confusion.png"))) == 8
    assert len(list(figures.glob("*/*/curves.png"))) == 4
    assert (study / "reports" / "metrics.json").exists()


def test_mlflow_has_one_finished_run_a_fit_with_everything(study: Path) -> None:
    client = store(study)
    by_id: dict[str, Any] = {}
    for experiment in ("ham10000", "chest_xray"):
        found = client.get_experiment_by_name(experiment)
        assert found
        by_id |= {run.info.run_id: run for run in client.search_runs([found.experiment_id])}
    assert set(by_id) == {fit["mlflow_run_id"] for fit in fits(study)}
    for fit in fits(study):
        logged = by_id[fit["mlflow_run_id"]]
        assert logged.info.status == "FINISHED"
        assert logged.info.run_name == f"{fit['model']}-seed0"
        tags, metrics = logged.data.tags, logged.data.metrics
        assert tags["synthetic"] == "True"
        assert tags["git_commit"] == fit["git_commit"]
        assert tags["data_version"].endswith(".dir")
        assert {"dataset", "seed", "backend", "precision", "device"} <= set(tags)
        scores = json.loads(
            next(study.glob(f"artifacts/runs/{fit['dataset']}/{fit['model']}-seed0/metrics.json")).read_text()
        )
        for name, value in scores.items():
            key = f"test_{name}" if name == "balanced accuracy" else f"test_f1_{name}"
            assert metrics[key.replace(" ", "_")] == value
        assert any(name.startswith("system/") for name in metrics)
        assert len(logged.inputs.dataset_inputs) == 1
        reports = {Path(entry.path).name for entry in client.list_artifacts(fit["mlflow_run_id"])}
        assert {"confusion.png", "report.txt"} <= reports
        if fit["kind"] == "network":
            assert {"weights", "trainable_blocks"} <= set(tags)
            assert logged.data.params["train.learning_rate"] == "0.0001"
            assert "curves.png" in reports
            for name in ("loss", "accuracy", "val_loss", "val_accuracy", "seconds", "images_per_second"):
                steps = [point.step for point in client.get_metric_history(fit["mlflow_run_id"], name)]
                assert steps == [1]


def test_logged_models_give_the_written_predictions_from_raw_pixels(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study)  # the store keeps its artifacts' addresses
    store(study)
    for fit in fits(study):
        folder = study / "artifacts" / "prepared" / fit["dataset"]
        images, samples = np.load(folder / "images.npy"), pd.read_csv(folder / "samples.csv")
        pixels = images[samples.split == "test"]
        if fit["kind"] == "baseline":
            pixels = pixels.reshape(len(pixels), -1)
        model = mlflow.pyfunc.load_model(f"runs:/{fit['mlflow_run_id']}/model")
        written = pd.read_csv(
            study / "artifacts" / "runs" / fit["dataset"] / f"{fit['model']}-seed0" / "predictions.csv"
        )
        probabilities = written[written.split == "test"].filter(like="p_").to_numpy()
        np.testing.assert_allclose(model.predict(pixels), probabilities, atol=1e-6)


def test_transfer_began_from_the_finished_run(study: Path) -> None:
    fit = next(fit for fit in fits(study) if fit["model"] == "ham10000_all")
    assert fit["weights"] == "ham10000/imagenet_all"
    lock = YAML(typ="safe").load((study / "dvc.lock").read_text())["stages"]
    deps = [entry["path"] for entry in lock["transfer@chest_xray-ham10000_all-0"]["deps"]]
    assert "artifacts/runs/ham10000/imagenet_all-seed0" in deps


def test_dvc_shows_metrics_and_plots(study: Path) -> None:
    shown = json.loads(dvc(study, "metrics", "show", "--json"))
    assert "macro avg" in shown[""]["data"]["reports/metrics.json"]["data"]["ham10000"]["imagenet_all"]
    page = dvc(study, "plots", "show", "--out", "plots_page")
    assert "file://" in page
    text = (study / "plots_page" / "index.html").read_text()
    assert "chest_xray-cnn_random-seed0.csv" in text
    assert "training_accuracy" in text


def test_the_same_seed_gives_the_same_predictions_to_the_bit(study: Path) -> None:
    path = study / "artifacts" / "runs" / "ham10000" / "imagenet_head-seed0" / "predictions.csv"
    before = path.read_bytes()
    dvc(study, "repro", "--force", "--single-item", "train-ham10000@ham10000-imagenet_head-0")
    assert path.read_bytes() == before


def test_swapping_data_sets_is_a_version_to_go_back_to(study: Path) -> None:
    pointer = (study / "data.dvc").read_text()
    commit(study, "finished")
    before = (study / "data" / "ham10000" / "HAM10000_metadata.csv").read_bytes()
    run(study, "medtransfer", "data", "demo", "--seed", "1")
    assert (study / "data.dvc").read_text() != pointer
    assert {name.split("@")[0] for name in json.loads(dvc(study, "status", "--json"))} >= {"prepare"}
    run(study, "git", "checkout", "--quiet", "data.dvc")
    dvc(study, "checkout", "--quiet", "data.dvc")
    assert (study / "data" / "ham10000" / "HAM10000_metadata.csv").read_bytes() == before
    dvc(study, "repro")  # evaluate alone: a fit was made again above
    assert "up to date" in dvc(study, "status")


def test_changing_one_configuration_reruns_only_it(study: Path) -> None:
    yaml = YAML()
    params = yaml.load((study / "params.yaml").read_text())
    params["configurations"]["imagenet_head"]["trainable"] = ["block5"]
    with (study / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    status = json.loads(dvc(study, "status", "--json"))
    assert set(status) == {"train-ham10000@ham10000-imagenet_head-0"}


def test_editing_a_plot_retrains_nothing(study: Path) -> None:
    figures = study / "src" / "medtransfer" / "report" / "figures.py"
    figures.write_text(figures.read_text() + "# changed\n")
    status = json.loads(dvc(study, "status", "--json"))
    assert {name for name in status if not name.startswith("train-ham10000@ham10000-imagenet_head")} == {"evaluate"}
