"""The real pipeline: what depends on what, and one complete run of a reduced study."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import grimp
import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

import kills
from clones import change_params, clone, dvc, environment, run
from conftest import PROJECT
from drawn import draw_data
from medtransfer.cli import cli
from medtransfer.core.dvc import check_unchanged, warn_of_another_version
from medtransfer.core.errors import UserError
from medtransfer.metrics.scores import mlflow_name
from medtransfer.training.code import DECIDES_FIT, MESSAGES

STAGES = {
    "prepare": "prepare",
    "baseline": "baseline",
    "train-ham10000": "train",
    "train-chest_xray": "train",
    "transfer": "train",
    "explain": "explain",
    "evaluate": "evaluate",
}


# Messages and MLflow logging change no result: editing these refits nothing.
DECIDE_NO_RESULT = tuple(f"src/medtransfer/{name}" for name in (MESSAGES, "tracking/"))


def pipeline() -> dict[str, Any]:
    stages: dict[str, Any] = YAML(typ="safe").load((PROJECT / "dvc.yaml").read_text())["stages"]
    return stages


def test_every_stage_is_known() -> None:
    assert set(pipeline()) == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_only_on_the_code_that_it_imports(stage: str) -> None:
    graph = grimp.build_graph("medtransfer")
    module = f"medtransfer.pipeline.{STAGES[stage]}"
    imported = {module, *graph.find_upstream_modules(module)}
    # The __init__.py of a package contains only a docstring.
    files = {"src/" + name.replace(".", "/") + ".py" for name in imported}
    files = {file for file in files if (PROJECT / file).exists() and not file.startswith(DECIDE_NO_RESULT)}
    declared = {dep for dep in pipeline()[stage]["deps"] if dep.startswith("src/")}
    covering = {file: [dep for dep in declared if file == dep or file.startswith(f"{dep}/")] for file in files}
    assert [file for file, deps in covering.items() if len(deps) != 1] == []
    assert {dep for deps in covering.values() for dep in deps} == declared
    for name in imported:
        package = PROJECT / "src" / name.replace(".", "/") / "__init__.py"
        if package.exists():
            assert re.fullmatch(r'""".*?"""\n', package.read_text(), re.DOTALL), f"{package} holds code"


@pytest.mark.parametrize("stage", ["train-ham10000", "train-chest_xray", "transfer"])
def test_dvc_and_an_unfinished_fit_depend_on_the_same_code(stage: str) -> None:
    declared = {dep for dep in pipeline()[stage]["deps"] if dep.startswith("src/")}
    assert declared == {f"src/medtransfer/{name}" for name in DECIDES_FIT}
    assert f"/src/medtransfer/{MESSAGES}\n" in (PROJECT / ".dvcignore").read_text()


def test_dvc_yaml_lists_what_params_yaml_studies() -> None:
    params, stages = YAML(typ="safe").load((PROJECT / "params.yaml").read_text()), pipeline()
    for stage in ("prepare", "baseline", "explain"):
        assert stages[stage]["matrix"]["dataset"] == "${study}"  # DVC takes the keys
    for dataset in params["study"]:
        assert stages[f"train-{dataset}"]["matrix"]["configuration"] == f"${{study.{dataset}.train}}"
    assert stages["transfer"]["matrix"]["dataset"] == ["chest_xray"]
    assert stages["transfer"]["matrix"]["configuration"] == "${study.chest_xray.transfer}"


# --- the complete study, once

# What is said wherever the demonstration or its scores are shown.
NOTES = (
    "Demonstration data: 701 of 10,015 images of HAM10000, CC BY-NC 4.0, Tschandl, Rosendahl, Kittler",
    "Demonstration data: 200 of 5,856 images of Chest X-Ray Images, CC BY 4.0, Kermany et al.",
)


REDUCED = {
    "study": {"ham10000": {"train": ["imagenet_all", "imagenet_head"]}, "chest_xray": {"train": ["cnn_random"]}},
    "train": {"epochs": 1, "dense_units": [16, 16]},
}


def commit(folder: Path, message: str) -> None:
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    run(folder, "git", "add", "--all")
    run(folder, "git", *who, "commit", "--quiet", "--message", message)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone, in a path with spaces and umlauts, in which the reduced study has run by the user's own command."""
    folder = clone(tmp_path_factory.mktemp("clone") / "Lungenärzte und Co", REDUCED)
    commit(folder, "start")
    (folder / "stdout.txt").write_text(run(folder, "medtransfer", "study"))
    return folder


def changed(study: Path) -> dict[str, Any]:
    """Return the study's stages that are not up to date."""
    stages: dict[str, Any] = json.loads(dvc(study, "status", "--json", "dvc.yaml", "data.dvc"))
    return stages


def fits(study: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(study.glob("artifacts/runs/*/*/run.json"))]


def store(study: Path) -> mlflow.MlflowClient:
    uri = f"sqlite:///{study}/mlruns/mlflow.db"
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


def test_the_study_prints_the_comparison_and_where_to_look(study: Path) -> None:
    printed = (study / "stdout.txt").read_text()
    assert NOTES[0] in printed
    assert "macro avg" in printed
    assert "make ui" in printed


def test_the_first_line_of_a_fit_names_its_device(study: Path) -> None:
    printed = (study / "stdout.txt").read_text()
    for fit in fits(study):
        seed = "-seed0" if fit["kind"] == "network" else ""
        assert f": {fit['dataset']} {fit['model']}{seed} on {fit['device']}: " in printed


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
        assert fit["synthetic"] is False
        card = (study / "reports" / "figures" / fit["dataset"] / folder.name / "model-card.md").read_text()
        assert fit["note"] in NOTES
        assert fit["note"] in card
        assert "not a medical device" in card
        assert f"| macro avg | {metrics['macro avg']:.3f} |" in card
        assert re.fullmatch(r"[0-9a-f]{40}", fit["git_commit"])


def test_trees_and_networks_share_the_test_images(study: Path) -> None:
    for dataset in ("ham10000", "chest_xray"):
        tested = set()
        for path in (study / "artifacts" / "runs" / dataset).glob("*/predictions.csv"):
            table = pd.read_csv(path, dtype=str)
            tested.add(tuple(sorted(table.id[table.split == "test"])))
        assert len(tested) == 1


def test_the_reports_are_complete(study: Path) -> None:
    table = pd.read_csv(study / "reports" / "results.csv")
    assert len(table) == 4 * 9 + 4 * 4
    assert table.note.str.startswith(NOTES).all()
    assert table.published.isna().sum() == 9  # head only, which the talk does not have
    text = (study / "reports" / "results.md").read_text()
    assert all(note in text for note in NOTES)
    figures = study / "reports" / "figures"
    for name in ("ham10000/activations.png", "chest_xray/activations.png", "ham10000/training_accuracy.png"):
        assert (figures / name).exists()
    assert len(list(figures.glob("*/*/confusion.png"))) == 8
    assert len(list(figures.glob("*/*/curves.png"))) == 4
    assert len(list((study / "reports" / "metrics").iterdir())) == 8


def ask(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run a command in the folder, but in this process, which has loaded Keras, and return what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def test_the_layers_that_matter_are_found_and_the_page_shows_them(study: Path) -> None:
    """On the smaller data set's network that starts from a finished run."""
    ask(study, "layers", "chest_xray", "ham10000_all")
    folder = study / "artifacts" / "layers" / "chest_xray" / "ham10000_all-seed0"
    rewinding = pd.read_csv(folder / "rewinding.csv").set_index("block")
    reported = json.loads((study / "artifacts/runs/chest_xray/ham10000_all-seed0/metrics.json").read_text())
    assert rewinding.macro_f1["none"] == pytest.approx(reported["macro avg"], abs=1e-6)
    similarity = pd.read_csv(folder / "similarity.csv")
    assert len(similarity) == 13
    assert similarity.distance.between(0, 1, inclusive="neither").all()  # every layer moved, none far in one epoch
    assert similarity.cka.between(0, 1.000001).all()
    probes = pd.read_csv(folder / "probes.csv")
    assert list(probes.network) == ["start"] * 5 + ["tuned"] * 5
    ask(study, "gradcam", "chest_xray", "ham10000_all")
    assert (study / "artifacts" / "gradcam" / "chest_xray" / "ham10000_all-seed0" / "gradcam.png").exists()
    ask(study, "report")
    page = (study / "reports" / "index.html").read_text()
    assert "ham10000_all (seed 0)" in page
    assert all(note in page for note in NOTES)


def runs_by_fit(client: mlflow.MlflowClient) -> dict[str, Any]:
    experiments = [client.get_experiment_by_name(name) for name in ("ham10000", "chest_xray")]
    found = client.search_runs([entry.experiment_id for entry in experiments if entry])
    by_fit = {run.data.tags["medtransfer.fit"]: run for run in found}
    assert len(by_fit) == len(found)
    return by_fit


def test_mlflow_has_one_complete_run_per_fit(study: Path) -> None:
    client = store(study)
    by_fit = runs_by_fit(client)
    assert set(by_fit) == {fit["fit"] for fit in fits(study)}
    for fit in fits(study):
        logged = by_fit[fit["fit"]]
        assert logged.info.status == "FINISHED"
        assert logged.info.run_name == f"{fit['model']}-seed0"
        tags, metrics = logged.data.tags, logged.data.metrics
        assert tags["note"] == fit["note"]
        assert tags["git_commit"] == fit["git_commit"]
        assert tags["data_version"].endswith(".dir")
        assert {"dataset", "seed", "backend", "precision", "device"} <= set(tags)
        scores = json.loads(
            next(study.glob(f"artifacts/runs/{fit['dataset']}/{fit['model']}-seed0/metrics.json")).read_text()
        )
        for name, value in scores.items():
            assert metrics[mlflow_name(name)] == value
        shared = {"configuration": fit["model"], "weights": fit.get("weights", "none"), "seed": "0"}
        blocks = {"imagenet_head": "head"}.get(fit["model"], "all") if fit["kind"] == "network" else "none"
        assert (shared | {"blocks": blocks}).items() <= logged.data.params.items()
        assert any(name.startswith("system/") for name in metrics)
        assert len(logged.inputs.dataset_inputs) == 1
        reports = {Path(entry.path).name for entry in client.list_artifacts(logged.info.run_id)}
        assert {"confusion.png", "report.txt"} <= reports
        if fit["kind"] == "network":
            assert {"weights", "trainable_blocks"} <= set(tags)
            assert "train.learning_rate" in logged.data.params
            assert "curves.png" in reports
            for name in (
                "train/loss",
                "train/accuracy",
                "validation/loss",
                "validation/accuracy",
                "validation/macro_f1",
                "train/images_per_second",
            ):
                steps = [point.step for point in client.get_metric_history(logged.info.run_id, name)]
                assert steps == [1]
            assert metrics["validation/best/macro_f1"] == pytest.approx(metrics["validation/macro_f1"])
            assert metrics["validation/best/loss"] == metrics["validation/loss"]


def test_logged_models_predict_from_raw_pixels_what_was_written(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)  # the store keeps its artifacts' addresses
    by_fit = runs_by_fit(store(study))
    for fit in fits(study):
        folder = study / "artifacts" / "prepared" / fit["dataset"]
        images, samples = np.load(folder / "images.npy"), pd.read_csv(folder / "samples.csv")
        pixels = images[samples.split == "test"]
        if fit["kind"] == "baseline":
            pixels = pixels.reshape(len(pixels), -1)
        model = mlflow.pyfunc.load_model(f"runs:/{by_fit[fit['fit']].info.run_id}/model")
        written = pd.read_csv(
            study / "artifacts" / "runs" / fit["dataset"] / f"{fit['model']}-seed0" / "predictions.csv"
        )
        probabilities = written[written.split == "test"].filter(like="p_").to_numpy()
        np.testing.assert_allclose(model.predict(pixels), probabilities, atol=1e-6)


def test_transfer_started_from_the_finished_run(study: Path) -> None:
    fit = next(fit for fit in fits(study) if fit["model"] == "ham10000_all")
    assert fit["weights"] == "ham10000/imagenet_all"
    lock = YAML(typ="safe").load((study / "dvc.lock").read_text())["stages"]
    deps = [entry["path"] for entry in lock["transfer@chest_xray-ham10000_all-0"]["deps"]]
    assert "artifacts/runs/ham10000/imagenet_all-seed0" in deps


def test_dvc_shows_metrics_and_plots(study: Path) -> None:
    shown = json.loads(dvc(study, "metrics", "show", "--json"))
    scores = shown[""]["data"]["reports/metrics/ham10000-imagenet_all.json"]["data"]
    assert {"macro_f1", "micro_f1", "f1", "data"} == set(scores)
    page = dvc(study, "plots", "show", "--out", "plots_page")
    assert "file://" in page
    text = (study / "plots_page" / "index.html").read_text()
    assert "chest_xray-cnn_random-seed0-confusion.png" in text
    assert "ham10000-training_accuracy.png" in text
    assert "http" not in text  # it needs no network


# --- the store is checked


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    """A copy of the finished study that a test may damage; its MLflow store still names the original folder."""
    committed = shutil.ignore_patterns("results")
    target = tmp_path / "medtransfer"
    return Path(shutil.copytree(study, target, symlinks=True, ignore=committed, copy_function=copy_small))


def copy_small(source: str, target: str) -> None:
    """Copy a file, but link what no test writes to: networks, Git's objects and the copied remote."""
    path = Path(source)
    if path.stat().st_size < 10_000_000 and not {"objects", "embedded"} & {*path.parts}:
        shutil.copy2(source, target)
    else:
        os.link(source, target)


def test_the_audit_finds_nothing_wrong_with_a_fresh_study(study: Path) -> None:
    assert ask(study, "audit").splitlines()[-1] == "8 fits, 0 differences"


@pytest.mark.slow
def test_what_mlflow_lost_is_logged_again_from_the_outputs(study: Path, copy: Path) -> None:
    shutil.rmtree(copy / "mlruns")
    lost = run(copy, "medtransfer", "audit", code=1)
    assert lost.count("MLflow has no run of this fit") == 8
    repaired = run(copy, "medtransfer", "audit", "--repair")
    assert repaired.splitlines()[-1] == "8 fits, 0 differences"
    before, after = (runs_by_fit(store(folder)) for folder in (study, copy))
    for fit, original in before.items():
        again = after[fit]
        assert again.info.status == "FINISHED"
        assert again.info.run_name == original.info.run_name
        assert again.data.params == original.data.params
        assert "confusion.png" in {file.path for file in store(copy).list_artifacts(again.info.run_id)}
        for name, value in original.data.metrics.items():
            if not name.startswith("system/"):
                assert again.data.metrics[name] == value, name


def test_planted_drifts_are_found(copy: Path) -> None:
    drifts = [
        ("ham10000/random_forest-seed0", "predictions.csv", "test", "text"),
        ("ham10000/imagenet_head-seed0", "run.json", '"learning_rate": 0.001', '"learning_rate": 0.002'),
        ("ham10000/imagenet_all-seed0", "metrics.json", "0.", "1."),
        ("chest_xray/cnn_random-seed0", "history.csv", "\n1,", "\n2,"),
    ]
    for fit, file, old, new in drifts:
        path = copy / "artifacts" / "runs" / fit / file
        path.chmod(0o644)
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
    found = ask(copy, "audit", code=1).splitlines()
    for fit, *_ in drifts:
        assert [line for line in found if fit in line and "differs from dvc.lock" in line], (fit, found)


def test_a_damaged_input_is_named_before_anything_is_trained(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    lock = YAML(typ="safe").load((copy / "dvc.lock").read_text())["stages"]
    folders = [Path(out["path"]) for stage in lock.values() for out in stage["outs"] if out["md5"].endswith(".dir")]
    for folder in [*folders, Path("data")]:
        check_unchanged(folder)  # our hash is DVC's
    rng = np.random.default_rng(0)
    for folder in (Path("artifacts/prepared/ham10000"), Path("data")):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for _ in range(25):
            path = files[rng.integers(len(files))]
            content = path.read_bytes()
            offset = int(rng.integers(len(content)))
            path.chmod(0o644)
            path.write_bytes(content[:offset] + bytes([content[offset] ^ 1 << rng.integers(8)]) + content[offset + 1 :])
            with pytest.raises(UserError, match=rf"{folder}: differs from .*{re.escape(path.name)}.*checkout"):
                check_unchanged(folder)
            path.write_bytes(content)
        check_unchanged(folder)


@pytest.mark.parametrize("cached", [True, False], ids=["the cache is whole", "the cache is damaged too"])
def test_damaged_data_are_restored_by_the_advice_in_the_message(
    copy: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    monkeypatch.chdir(copy)
    path = next(path for path in sorted(Path("data/ham10000").rglob("*.jpg")))
    content = path.read_bytes()
    places = [path]
    if not cached:
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        places.append(Path(".dvc/cache/files/md5") / md5[:2] / md5[2:])
    for place in places:
        place.chmod(0o644)
        place.write_bytes(b"damaged")
    said = failing(copy, "medtransfer", "stage", "prepare", "ham10000")
    *_, command = re.findall(r"`dvc ([^`]+)`", said)
    for moved in re.findall(r"after moving (.+) away", said):
        assert moved.split() == [str(place) for place in places]
        for number, name in enumerate(moved.split()):
            Path(name).rename(f"moved-{number}")
    dvc(copy, *command.split())
    assert path.read_bytes() == content
    check_unchanged(Path("data"))


def test_data_that_differ_from_the_last_commit_get_a_warning(
    copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(copy)
    warn_of_another_version()
    assert caplog.text == ""
    path = next(path for path in sorted(Path("data/ham10000").rglob("*.jpg")))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"0")
    dvc(copy, "commit", "--quiet", "--force", "data.dvc")  # as `dvc repro` does before it runs prepare
    warn_of_another_version()
    assert "git checkout HEAD data.dvc && dvc checkout --force data.dvc" in caplog.text


def test_a_cut_dvc_file_gets_a_line_that_says_how_to_restore_it(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = shutil.ignore_patterns("artifacts", "cache", "embedded", "mlruns", "results")
    shutil.copytree(study, tmp_path / "cut", symlinks=True, ignore=large, copy_function=copy_small)
    monkeypatch.chdir(tmp_path / "cut")
    contents = ("", "schema: '2.0'\nstages:\n  prepare@ham10000:\n    outs:\n    - path: arti", "[", "{}")
    cuts = [
        *(("dvc.lock", content, "git checkout dvc.lock") for content in contents),
        *(("data.dvc", content, "git checkout data.dvc") for content in contents),
        (".dvc/tmp/rwlock", '{"write": {"data', "rm .dvc/tmp/rwlock"),
    ]
    for name, cut, command in cuts:
        path = Path(name)
        whole = path.read_text() if path.exists() else "{}"
        path.write_text(cut)
        refused = CliRunner().invoke(cli, ["study"])
        assert isinstance(refused.exception, UserError)
        assert command in str(refused.exception)
        path.write_text(whole)


def failing(folder: Path, *command: str) -> str:
    """Return the one line with which a command ends with exit code 2."""
    result = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_data_that_were_prepared_differently_are_not_trained_on(copy: Path) -> None:
    change_params(copy, {"datasets": {"ham10000": {"image_size": 48}}})
    said = failing(copy, "medtransfer", "stage", "baseline", "ham10000", "random_forest", "--seed", "0")
    assert "prepared with image_size 32, but params.yaml has 48" in said
    (command,) = re.findall("`(dvc repro .+)`", said)
    run(copy, *command.split())
    assert json.loads((copy / "artifacts/prepared/ham10000/dataset.json").read_text())["image_size"] == 48


@pytest.mark.slow
def test_params_that_change_while_a_stage_runs_stop_it(copy: Path) -> None:
    """DVC would write the new values into dvc.lock, beside outputs that were made with the old ones."""
    kept = kills.fingerprints(copy)
    process = subprocess.Popen(
        ["medtransfer", "stage", "train", "ham10000", "imagenet_head", "--seed", "0"],
        cwd=copy, env=environment(copy), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    while "trains head_dense1" not in process.stdout.readline():
        assert process.poll() is None
    change_params(copy, {"train": {"dropout": 0.25}})
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    assert re.search(r"params.yaml: train.dropout: changed from .+ to 0.25 while the stage", stderr.splitlines()[-1])
    assert kills.fingerprints(copy) == kept


# --- kills


@pytest.mark.slow
def test_a_study_that_is_killed_ends_with_the_bits_of_one_that_is_not(tmp_path: Path) -> None:
    """benchmarks/reliability/kills.py has the long version: every stage, and more kills."""
    study = {"ham10000": {"train": ["imagenet_last_block"]}, "chest_xray": {"transfer": []}}
    changes = {"study": study, "baselines": [], "train": {"epochs": 3, "dense_units": [16, 16]}}
    plan = [("prepare", "as it ends"), ("train", "in a checkpoint"), ("train", "before it is recorded")]
    found = kills.compare(tmp_path, changes, [plan], seed=0, target=("train-ham10000",))
    assert found["differing"] == []
    assert found["compared_files"] == 8
    assert found["exit_codes"] == [0]
    assert found["resumed_from_a_checkpoint"] >= 1
    once = {"runs": 1, "finished": 1, "fits_with_two_runs": 0, "epochs_lost": 0, "epochs_logged_twice": 0}
    once["epochs_with_other_seconds"] = 0
    assert found["mlflow"] == once


# --- what runs again


@pytest.mark.slow
def test_the_same_seed_gives_the_same_predictions_to_the_bit(study: Path) -> None:
    path = study / "artifacts" / "runs" / "ham10000" / "imagenet_head-seed0" / "predictions.csv"
    before = path.read_bytes()
    dvc(study, "repro", "--force", "--single-item", "train-ham10000@ham10000-imagenet_head-0")
    assert path.read_bytes() == before


@pytest.mark.slow
def test_an_earlier_version_of_the_data_can_be_restored(study: Path) -> None:
    pointer = (study / "data.dvc").read_text()
    commit(study, "finished")
    before = (study / "data" / "ham10000" / "HAM10000_metadata.csv").read_bytes()
    draw_data(study / "data", seed=1)
    dvc(study, "add", "--quiet", "data")
    assert (study / "data.dvc").read_text() != pointer
    assert {name.split("@")[0] for name in changed(study)} >= {"prepare"}
    run(study, "git", "checkout", "--quiet", "data.dvc")
    dvc(study, "checkout", "--quiet", "data.dvc")
    assert (study / "data" / "ham10000" / "HAM10000_metadata.csv").read_bytes() == before
    dvc(study, "repro")  # evaluate alone: a fit was made again above
    assert not changed(study)


def test_changing_a_configuration_reruns_only_its_fits(study: Path) -> None:
    change_params(study, {"configurations": {"imagenet_head": {"trainable": ["block5"]}}})
    status = changed(study)
    assert set(status) == {"train-ham10000@ham10000-imagenet_head-0"}


def test_editing_what_decides_no_fit_retrains_nothing(study: Path) -> None:
    code = study / "src" / "medtransfer"
    folders = [code / name for name in ("analysis", "audit", "report", "serving", "study", "tracking")]
    edited = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".j2")]
    edited += [code / "core" / "errors.py", *(code / "cli").glob("*.py")]
    for path in edited:
        path.write_text(path.read_text() + "# changed\n")
    status = changed(study)
    assert {name for name in status if not name.startswith("train-ham10000@ham10000-imagenet_head")} == {"evaluate"}
