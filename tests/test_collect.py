"""collect, tables, report and leakage: what a finished study leaves is kept, added to and reported."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from conftest import AT_64_PX, PROJECT
from medtransfer.cli import cli
from medtransfer.core.dvc import digest_of
from medtransfer.core.errors import UserError
from medtransfer.core.files import write_json
from medtransfer.core.layout import PREPARED
from medtransfer.core.params import read_params
from medtransfer.core.run_record import warn_of_leftovers, write_record
from medtransfer.study import collect as collecting
from medtransfer.study.collect import join_params
from medtransfer.study.report import read_study, write_result_tables
from studies import add_seed, finished_study, write_samples


def test_results_are_collected_and_reported_without_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = PROJECT / "results" / "leak-match"
    shutil.copytree(source / "runs" / "chest_xray", tmp_path / "artifacts" / "runs" / "chest_xray")
    (tmp_path / "artifacts" / "prepared" / "chest_xray").mkdir(parents=True)
    record = tmp_path / "artifacts" / "runs" / "chest_xray" / "dataset.json"
    record.rename(tmp_path / "artifacts" / "prepared" / "chest_xray" / "dataset.json")
    fit = source / "runs" / "chest_xray" / "imagenet_head-seed0"
    write_samples(fit, tmp_path / "artifacts" / "prepared" / "chest_xray")
    (tmp_path / "artifacts" / "runs" / "chest_xray" / "imagenet_head-seed0" / "model.keras").write_bytes(b"large")
    shutil.copy(source / "params.yaml", tmp_path)
    shutil.copy(source / "data-version.yaml", tmp_path / "data.dvc")
    monkeypatch.chdir(tmp_path)
    collected = CliRunner().invoke(cli, ["collect", "mine"])
    assert collected.exit_code == 0, collected.output
    files = {path.name for path in Path("results/mine").rglob("*") if path.is_file()}
    assert files >= {"predictions.csv", "history.csv", "run.json", "dataset.json", "params.yaml", "data-version.yaml"}
    assert not any(name.startswith("model.") for name in files)
    early = CliRunner().invoke(cli, ["report", "results/mine", "--output", "page.html"])
    assert "results/mine/differences.csv: not found; run `medtransfer tables results/mine`" in str(early.exception)
    assert not Path("page.html").exists()
    assert CliRunner().invoke(cli, ["tables", "results/mine"]).exit_code == 0
    written = CliRunner().invoke(cli, ["report", "results/mine", "--output", "page.html"])
    assert written.exit_code == 0, written.output
    assert "imagenet_head" in Path("page.html").read_text()
    ours, theirs = pd.read_csv("results/mine/results.csv"), pd.read_csv(source / "results.csv")
    assert Path("results/mine/scores.png").stat().st_size > 1000
    committed = theirs[theirs.dataset == "chest_xray"].reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, committed, check_dtype=False)


def test_fits_of_data_that_have_been_replaced_are_not_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_study(tmp_path, 0, ["imagenet_head"])
    monkeypatch.chdir(tmp_path)
    labels = Path("data/chest_xray/labels.csv")
    labels.parent.mkdir(parents=True)
    labels.write_text("old")
    deps, outs = (
        [{"path": str(folder), "md5": digest_of(folder), "size": 1, "nfiles": 1}]
        for folder in (labels.parent, PREPARED / "chest_xray")
    )
    stage = {"cmd": "prepare", "deps": deps, "outs": outs}
    Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": {"prepare@chest_xray": stage}}) + "\n")
    assert CliRunner().invoke(cli, ["collect", "mine"]).exit_code == 0
    labels.write_text("new")
    done = CliRunner().invoke(cli, ["collect", "other"])
    assert "data/chest_xray: has changed since it was prepared" in str(done.exception)
    assert not Path("results/other").exists()


def test_tables_refuse_a_run_that_has_lost_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished_study(tmp_path, 0, ["imagenet_all", "imagenet_head"])
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(cli, ["collect", "mine"]).exit_code == 0
    Path("results/mine/runs/chest_xray/imagenet_head-seed0/run.json").unlink()
    done = CliRunner().invoke(cli, ["tables", "results/mine"])
    assert "imagenet_head-seed0/run.json: not found" in str(done.exception)
    assert not Path("results/mine/results.csv").exists()


def test_a_file_that_results_lack_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished_study(tmp_path, 0, ["imagenet_all"])
    monkeypatch.chdir(tmp_path)
    Path("data.dvc").rename("away")
    assert "data.dvc: not found" in str(CliRunner().invoke(cli, ["collect", "mine"]).exception)
    Path("away").rename("data.dvc")
    assert CliRunner().invoke(cli, ["collect", "mine"]).exit_code == 0
    params = Path("results/mine/params.yaml")
    text = params.read_text()
    params.write_text(re.sub("(?m)^ +train:", "    trained:", text))
    done = CliRunner().invoke(cli, ["tables", "results/mine"])
    assert "params.yaml: study.ham10000.train: missing" in str(done.exception)
    params.unlink()
    done = CliRunner().invoke(cli, ["collect", "mine", "--add"])
    assert "results/mine/params.yaml: not found; restore it" in str(done.exception)
    params.write_text(text)
    history = Path("results/mine/runs/chest_xray/imagenet_all-seed0/history.csv")
    history.write_text(history.read_text().replace("val_loss", "loss_"))
    assert "history.csv: no column 'val_loss'" in str(CliRunner().invoke(cli, ["tables", "results/mine"]).exception)


def test_collect_and_tables_name_the_fits_of_a_renamed_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finished_study(tmp_path, 0, ["imagenet_all", "imagenet_head"])
    monkeypatch.chdir(tmp_path)
    for command in ("collect mine", "tables results/mine"):
        assert CliRunner().invoke(cli, command.split()).exit_code == 0
    assert caplog.messages == []
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("imagenet_head", "imagenet_new_head"))
    for command, runs in (("collect mine --replace", "artifacts/runs"), ("tables results/mine", "results/mine/runs")):
        caplog.clear()
        assert CliRunner().invoke(cli, command.split()).exit_code == 0
        assert [line.rpartition(": ")[2] for line in caplog.messages] == [
            f"rm -r {runs}/chest_xray/imagenet_head-seed*"
        ]


def test_collect_names_the_fits_of_a_seed_that_the_study_no_longer_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finished_study(tmp_path, 0, ["imagenet_all"])
    monkeypatch.chdir(tmp_path)
    text = Path("params.yaml").read_text()
    (listed,) = re.findall(r"^seeds:.*$", text, re.MULTILINE)
    Path("params.yaml").write_text(text.replace(listed, "seeds: [1]"))
    assert CliRunner().invoke(cli, ["collect", "mine"]).exit_code == 0
    (line,) = [line for line in caplog.messages if "under seeds" in line]
    assert line.endswith("they still count; to remove them: rm -r artifacts/runs/*/*-seed0")


@pytest.mark.parametrize("copy", ["x-seed0-copy", "x-seed0 copy", "x-seed0 (1)", "x copy-seed0"])
def test_the_copy_of_a_fit_is_named_with_the_command_that_removes_it_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, copy: str
) -> None:
    for name in ("x-seed0", copy):
        (tmp_path / "mine" / name).mkdir(parents=True)
        write_record(tmp_path / "mine" / name, {}, {})
    warn_of_leftovers(tmp_path, [("mine", "x")], seeds=[0])
    (line,) = caplog.messages
    _, _, command = line.partition("to remove them: ")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["x-seed0"]


def test_what_the_tables_would_count_wrongly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished_study(tmp_path, 0, ["imagenet_all", "imagenet_head"])
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(cli, ["collect", "mine"]).exit_code == 0
    fits = Path("results/mine/runs/chest_xray")
    shutil.copytree(fits / "imagenet_head-seed0", fits / "imagenet_head-seed1")
    with pytest.raises(UserError, match=r"head-seed1/run\.json: belongs to chest_xray/imagenet_head-seed0, not to"):
        write_result_tables(Path("results/mine"))
    shutil.rmtree(fits / "imagenet_head-seed1")
    answers = fits / "imagenet_head-seed0/predictions.csv"
    table = pd.read_csv(answers, dtype=str)
    tested = table.index[table.split == "test"][0]
    for column, value in (("label", {"NORMAL": "PNEUMONIA"}), ("group", {table.group[tested]: "another"})):
        changed = table.copy()
        changed.loc[tested, column] = value.get(table.loc[tested, column], "NORMAL")
        changed.to_csv(answers, index=False)
        with pytest.raises(UserError, match=f"were tested on different {column}s"):
            write_result_tables(Path("results/mine"))
    table.to_csv(answers, index=False)
    assert CliRunner().invoke(cli, ["tables", "results/mine"]).exit_code == 0
    Path("results/mine/notes.txt").write_bytes(b"\xe4")
    with pytest.raises(UserError, match=r"notes\.txt: expected a text file in UTF-8"):
        read_study(Path("results/mine"))
    with pytest.raises(UserError, match=r"^results: has no runs; expected a folder made by"):
        read_study(Path("results"))
    params = Path("results/mine/params.yaml")
    for text, told in (("a: [", "cannot be read as YAML"), ("datasets: {}", "baselines: missing"), (None, "not found")):
        params.unlink() if text is None else params.write_text(text)
        with pytest.raises(UserError, match=rf"params\.yaml: {told}"):
            write_result_tables(Path("results/mine"))


def test_collect_notices_other_settings_and_an_interrupted_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finished_study(tmp_path, 0, ["imagenet_all", "imagenet_head", "random_forest"])
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(cli, ["collect", "mine"]).exit_code == 0
    assert caplog.messages == []
    Path("results/mine").rename("results/.partial-old-mine")  # killed between two renames
    assert CliRunner().invoke(cli, ["collect", "mine", "--add"]).exit_code == 0
    assert "epochs: 60" in Path("params.yaml").read_text()
    text = (
        Path("params.yaml").read_text().replace("epochs: 60", "epochs: 6").replace("estimators: 100", "estimators: 7")
    )
    text = text.replace(
        "imagenet_head: {weights: imagenet, trainable: head", "imagenet_head: {weights: random, trainable: all"
    )
    Path("params.yaml").write_text(text)
    assert CliRunner().invoke(cli, ["collect", "mine", "--replace"]).exit_code == 0
    assert len(caplog.messages) == 5
    assert "random_forest-seed0: was fitted with n_estimators 100, but params.yaml has 7" in caplog.text
    assert "imagenet_all-seed0: was fitted with epochs 60, but params.yaml has 6" in caplog.text
    assert "imagenet_head-seed0: was fitted with weights imagenet, but params.yaml has random" in caplog.text
    assert "imagenet_head-seed0: was fitted with trainable head, but params.yaml has all" in caplog.text


def test_collect_notices_a_fit_from_an_earlier_source_and_says_how_to_renew_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finished_study(tmp_path, 0, ["ham10000_all"])
    monkeypatch.chdir(tmp_path)
    source, fit = "artifacts/runs/ham10000/imagenet_all-seed0", "artifacts/runs/chest_xray/ham10000_all-seed0"

    def entry(path: str, digit: str) -> dict[str, Any]:
        return {"path": path, "hash": "md5", "md5": 32 * digit + ".dir", "size": 1, "nfiles": 1}

    for now, study in (("0", True), ("1", True), ("1", False)):
        stages = {
            "train": {"cmd": "train", "outs": [entry(source, now)]},
            "transfer": {"cmd": "transfer", "deps": [entry(source, "0")], "outs": [entry(fit, "2")]},
        }
        Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}) + "\n")
        params = read_params(Path("params.yaml"))
        if not study:
            params = params.model_copy(update={"seeds": [1]})
        caplog.clear()
        collecting._warn_of_other_settings(Path(fit), params)
        remedy = "run `dvc repro`" if study else f"remove this fit: rm -r {fit}"
        earlier = [f"{fit}: was fitted from an earlier {source}; {remedy}"]
        assert caplog.messages == (earlier if now == "1" else [])


def test_tables_and_layers_of_other_fits_are_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for fit in ("imagenet_all-seed0", "imagenet_all-seed1", "imagenet_head-seed0"):
        shutil.copytree(PROJECT / AT_64_PX / "runs/chest_xray" / fit, folder / "runs/chest_xray" / fit)
    for found in ("layers/chest_xray/imagenet_all-seed1", "gradcam/chest_xray/imagenet_all-seed0"):
        shutil.copytree(PROJECT / AT_64_PX / found, folder / found)
    shutil.copy(PROJECT / AT_64_PX / "params.yaml", folder)
    write_result_tables(folder)
    assert len(read_study(folder).layers) > 0
    for command, seed in (("layers", 1), ("gradcam", 0)):
        asked = folder / f"{command}/chest_xray/imagenet_all-seed{seed}/{command}.json"
        text = asked.read_text()
        asked.write_text(re.sub(r'"fit": "\w+"', '"fit": "another"', text))
        told = rf"{command}\.json: about an earlier fit, another, .* {command} chest_xray imagenet_all --seed {seed}"
        with pytest.raises(UserError, match=told):
            read_study(folder)
        asked.write_text(text)
    shutil.copytree(folder / "layers/chest_xray/imagenet_all-seed1", folder / "layers/chest_xray/removed-seed1")
    removed = folder / "layers/chest_xray/removed-seed1/layers.json"
    removed.write_text(removed.read_text().replace('"imagenet_all"', '"removed"'))
    assert len(read_study(folder).layers) == 1  # of a configuration that is not among the runs
    answers = folder / "runs/chest_xray/imagenet_all-seed0/predictions.csv"
    text = answers.read_text()
    shutil.copy(folder / "runs/chest_xray/imagenet_head-seed0/predictions.csv", answers)
    with pytest.raises(UserError, match=r"results\.csv: was computed from different models or seeds"):
        read_study(folder)
    answers.write_text(text)
    add_seed(folder / "runs/chest_xray/imagenet_all-seed0", 9)
    with pytest.raises(UserError, match=r"results\.csv: was computed from different models or seeds") as refused:
        read_study(folder)
    (command,) = re.findall("`medtransfer (.+)`", str(refused.value))
    assert CliRunner().invoke(cli, command.split()).exit_code == 0
    assert read_study(folder).runs


def test_which_test_images_share_a_group_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished_study(tmp_path, 0, ["decision_tree"])
    path = Path("artifacts/prepared/chest_xray/samples.csv")
    samples = pd.read_csv(path, dtype=str)
    first, second = samples.group[samples.split == "test"].unique()[:2]
    rows = zip("defg", [first, first, second, first], ["train", "train", "left out", "validation"], strict=True)
    more = pd.DataFrame(rows, columns=["id", "group", "split"]).assign(label="NORMAL")
    pd.concat([samples, more]).to_csv(path, index=False)
    assert CliRunner().invoke(cli, ["collect", "mine"]).exit_code == 0
    told = pd.read_csv("results/mine/runs/chest_xray/shared.csv", dtype=str)
    assert set(told.id) == set(samples.id[(samples.split == "test") & (samples.group == first)])
    assert set(told.split) == {"train", "validation"}


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("params.yaml", "image_size: 64", "image_size: 32", "prepared with image_size 64, but params.yaml has 32"),
        ("{prepared}/dataset.json", '"seed": 0', '"seed": 7', "prepared with split .*'seed': 7"),
        ("{prepared}/samples.csv", ",test", ",train", "images, such as .*, had another split or class"),
    ],
)
def test_fits_of_other_data_are_not_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    finished_study(tmp_path, 0, ["imagenet_head"])
    path = Path(file.format(prepared="artifacts/prepared/chest_xray"))
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    refused = CliRunner().invoke(cli, ["collect", "mine"])
    assert re.search(message, str(refused.exception))
    assert not Path("results").exists()


def test_another_seed_is_added_to_what_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished_study(tmp_path, 1, ["cnn_random", "imagenet_all", "decision_tree"])
    record = Path("artifacts/runs/chest_xray/imagenet_all-seed1/run.json")
    found = json.loads((PROJECT / AT_64_PX / "runs/chest_xray/imagenet_all-seed1/run.json").read_text())
    write_json(record, json.loads(record.read_text()) | {"fit": found["fit"]})
    layers = "layers/chest_xray/imagenet_all-seed1"
    shutil.copytree(PROJECT / AT_64_PX / layers, Path("artifacts") / layers)
    missing = CliRunner().invoke(cli, ["collect", "mine", "--add"])
    assert "results/mine: not found; leave out --add" in str(missing.exception)
    assert CliRunner().invoke(cli, ["collect", "mine"]).exit_code == 0
    Path("results/mine/notes.txt").write_text("Two lines\nof one paragraph.\n\nAnother.\n")
    shutil.rmtree("artifacts")
    finished_study(tmp_path, 0, ["imagenet_all", "imagenet_head", "decision_tree"])
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(
        text.replace("  ham10000_random:", "  more: {weights: random, trainable: head}\n  ham10000_random:")
    )
    added = CliRunner().invoke(cli, ["collect", "mine", "--add"])
    assert added.exit_code == 0, added.output
    found = {path.parent.name for path in Path("results/mine").rglob("run.json")}
    trees = {"decision_tree-seed0", "decision_tree-seed1"}
    assert found == {*trees, "cnn_random-seed1", "imagenet_all-seed0", "imagenet_all-seed1", "imagenet_head-seed0"}
    assert (Path("results/mine") / layers / "layers.json").exists()
    assert len(pd.read_csv("results/mine/tuning.csv")) == 3
    params = read_params(Path("results/mine/params.yaml"))
    assert params.seeds == [0, 1]
    assert "more" in params.configurations
    assert CliRunner().invoke(cli, ["tables", "results/mine"]).exit_code == 0
    table = pd.read_csv("results/mine/results.csv").drop_duplicates("model").set_index("model")
    assert table.seeds.to_dict() == {
        "decision_tree": 2, "cnn_random": 1, "imagenet_all": 2, "imagenet_head": 1,
    }  # fmt: skip
    assert Path("results/mine/notes.txt").read_text().startswith("Two lines")
    assert read_study(Path("results/mine")).notes == ["Two lines of one paragraph.", "Another."]


def test_rates_and_baselines_of_either_are_joined(tmp_path: Path) -> None:
    text = "seeds: [0]\nbaselines: [{}]\nstudy: {{}}\ndatasets: {{}}\nconfigurations:\n  a: {{learning_rate: {{{}}}}}\n"
    known, added = tmp_path / "known.yaml", tmp_path / "added.yaml"
    known.write_text(text.format("random_forest", "one: 1e-4"))
    added.write_text(text.format("decision_tree", "one: 1e-3, two: 1e-5"))
    join_params(known, added)
    joined = YAML(typ="safe").load(added)
    assert joined["baselines"] == ["random_forest", "decision_tree"]
    assert joined["configurations"]["a"]["learning_rate"] == {"one": 1e-4, "two": 1e-5}


def test_fits_of_a_removed_data_set_are_named_before_anything_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finished_study(tmp_path, 0, ["imagenet_all"])
    fit = shutil.copytree("artifacts/runs/chest_xray/imagenet_all-seed0", "artifacts/runs/scans/imagenet_all-seed0")
    record = Path(fit, "run.json")
    record.write_text(record.read_text().replace('"chest_xray"', '"scans"'))
    refused = CliRunner().invoke(cli, ["collect", "mine"])
    assert "artifacts/runs/scans: contains fits of a data set that params.yaml does not have" in str(refused.exception)
    (remove,) = re.findall(r"rm -r \S+", str(refused.exception))
    subprocess.run(remove.split(), check=True)
    assert CliRunner().invoke(cli, ["collect", "mine"]).exit_code == 0


def test_layers_of_earlier_fits_are_not_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    finished_study(tmp_path, 0, ["imagenet_all"])
    for kind, seed in (("layers", 1), ("gradcam", 0)):
        found = f"{kind}/chest_xray/imagenet_all-seed{seed}"
        shutil.copytree(PROJECT / AT_64_PX / found, Path("artifacts") / found)
    record = Path("artifacts/runs/chest_xray/imagenet_all-seed0/run.json")
    fit = json.loads(record.read_text())["fit"]
    record.write_text(record.read_text().replace(fit, "fitted again"))
    assert CliRunner().invoke(cli, ["collect", "mine"]).exit_code == 0
    other, earlier = caplog.messages
    assert other.endswith("imagenet_all-seed1: left out, because it is about a fit that is not collected")
    assert earlier.endswith("run `medtransfer gradcam chest_xray imagenet_all --seed 0`, then collect again")
    assert not list(Path("results/mine").glob("*/chest_xray/*/layers.json"))
    assert CliRunner().invoke(cli, ["tables", "results/mine"]).exit_code == 0
    assert not read_study(Path("results/mine")).pictures


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data_version", "other.dir", "data_version: found other.dir, expected 66ab5bba"),
        ("image_size", 224, "image_size: found 224, expected 64"),
        ("split_by", "image", "split_by: found image, expected group"),
        ("learning_rate", 0.5, "learning_rate: found 0.5, expected 3e-05"),
        ("dropout", 0.1, "dropout: found 0.1, expected 0.5"),
    ],
)
def test_what_was_made_otherwise_is_not_added(
    key: str, value: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finished_study(tmp_path, 0, ["imagenet_all"])
    assert CliRunner().invoke(cli, ["collect", "mine"]).exit_code == 0
    before = sorted(path.read_bytes() for path in Path("results").rglob("*") if path.is_file())
    shutil.rmtree("artifacts")
    finished_study(tmp_path, 1, ["imagenet_all"])
    path = Path("artifacts/runs/chest_xray/imagenet_all-seed1/run.json")
    record = json.loads(path.read_text())
    recipe = record["hyperparameters"]["train"]
    (recipe if key in recipe else record)[key] = value
    write_json(path, record)
    refused = CliRunner().invoke(cli, ["collect", "mine", "--add"])
    assert isinstance(refused.exception, UserError)
    assert message in str(refused.exception)
    assert str(path) in str(refused.exception)
    assert sorted(path.read_bytes() for path in Path("results").rglob("*") if path.is_file()) == before


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("resize_filter", "nearest", "resize_filter: found lanczos, expected nearest"),
        (
            "classes",
            ["PNEUMONIA", "NORMAL"],
            "classes: found ['NORMAL', 'PNEUMONIA'], expected ['PNEUMONIA', 'NORMAL']",
        ),
    ],
)
def test_other_models_of_otherwise_prepared_images_are_not_added(
    key: str, value: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finished_study(tmp_path, 0, ["imagenet_all"])
    assert CliRunner().invoke(cli, ["collect", "mine"]).exit_code == 0
    path = Path("results/mine/runs/chest_xray/dataset.json")
    write_json(path, json.loads(path.read_text()) | {key: value})
    shutil.rmtree("artifacts")
    finished_study(tmp_path, 1, ["decision_tree"])
    refused = CliRunner().invoke(cli, ["collect", "mine", "--add"])
    assert message in str(refused.exception)


def test_folders_whose_data_sets_share_only_the_name_are_not_on_one_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finished_study(tmp_path, 0, ["imagenet_head"])
    for name in ("mine", "other"):
        assert CliRunner().invoke(cli, ["collect", name]).exit_code == 0
    for path in (tmp_path / "results/other/runs").rglob("*"):
        if path.is_file():
            path.write_text(path.read_text().replace("NORMAL", "HEALTHY"))
    for name in ("mine", "other"):
        assert CliRunner().invoke(cli, ["tables", f"results/{name}"]).exit_code == 0
    refused = CliRunner().invoke(cli, ["report", "results/mine", "results/other"])
    assert str(refused.exception) == (
        "chest_xray: has the classes HEALTHY, PNEUMONIA in other, but NORMAL, PNEUMONIA in mine; make a page of each "
        "folder"
    )
    assert not Path("reports").exists()


def test_folders_of_one_name_are_not_on_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished_study(tmp_path, 0, ["imagenet_head"])
    assert CliRunner().invoke(cli, ["collect", "mine"]).exit_code == 0
    assert CliRunner().invoke(cli, ["tables", "results/mine"]).exit_code == 0
    shutil.copytree("results/mine", "earlier/mine")
    refused = CliRunner().invoke(cli, ["report", "results/mine", "earlier/mine"])
    assert str(refused.exception) == (
        "mine: the name of two folders; rename one, since the page names results by folder"
    )


def test_another_network_with_another_common_recipe_is_not_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finished_study(tmp_path, 0, ["imagenet_all", "decision_tree"])
    assert CliRunner().invoke(cli, ["collect", "mine"]).exit_code == 0
    shutil.rmtree("artifacts")
    finished_study(tmp_path, 0, ["imagenet_head"])
    path = Path("artifacts/runs/chest_xray/imagenet_head-seed0/run.json")
    record = json.loads(path.read_text())
    recipe, own = (record["hyperparameters"][key] for key in ("train", "configuration"))
    recipe["scaling"] = "caffe"
    write_json(path, record)
    refused = CliRunner().invoke(cli, ["collect", "mine", "--add"])
    assert "scaling: found caffe, expected tf" in str(refused.exception)
    own["scaling"] = "caffe"  # said by the configuration, it is another family
    write_json(path, record)
    assert CliRunner().invoke(cli, ["collect", "mine", "--add"]).exit_code == 0
    own["recipe"], recipe["optimizer"] = "modern", "adamw"  # a named recipe stands for all of its keys
    write_json(path, record)
    assert CliRunner().invoke(cli, ["collect", "mine", "--replace"]).exit_code == 0
    shutil.rmtree("artifacts")
    finished_study(tmp_path, 0, ["imagenet_all"])
    assert CliRunner().invoke(cli, ["collect", "mine", "--add"]).exit_code == 0


@pytest.mark.parametrize("name", ["../../keep", "../keep", "..", ".", "/tmp/keep", "a/b", "-x", "mine\n"])
def test_a_name_that_leads_out_of_results_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_study(tmp_path / "project", 0, ["decision_tree"])
    (tmp_path / "project/results/keep/runs").mkdir(parents=True)
    (tmp_path / "keep/runs").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path / "project")
    for options in ([], ["--add"], ["--replace"]):
        refused = CliRunner().invoke(cli, ["collect", *options, "--", name])
        assert isinstance(refused.exception, UserError)
        assert f"{name!r}: not a name for collected results" in str(refused.exception)
        assert "\n" not in str(refused.exception)
    assert sorted(tmp_path.rglob("*")) == before


def test_collected_results_are_replaced_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished_study(tmp_path, 0, ["decision_tree"])
    assert CliRunner().invoke(cli, ["collect", "mine"]).exit_code == 0
    Path("results/mine/results.md").write_text("tables")
    Path("results/README.md").write_text("no folder")
    refused = CliRunner().invoke(cli, ["collect", "mine"])
    assert "results/mine: exists; add to it with --add, remove it with --replace" in str(refused.exception)
    both = CliRunner().invoke(cli, ["collect", "mine", "--add", "--replace"])
    assert "--add and --replace" in str(both.exception)
    other = CliRunner().invoke(cli, ["collect", "README.md", "--replace"])
    assert "results/README.md: contains no collected results" in str(other.exception)
    assert Path("results/mine/results.md").exists()
    assert CliRunner().invoke(cli, ["collect", "mine", "--replace"]).exit_code == 0
    assert not Path("results/mine/results.md").exists()
    assert Path("results/mine/runs/chest_xray/decision_tree-seed0/run.json").exists()
    assert Path("results/README.md").read_text() == "no folder"


def test_the_second_of_two_collects_at_once_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished_study(tmp_path, 0, ["decision_tree"])
    mine = Path("results/mine/runs")
    monkeypatch.setattr("medtransfer.study.collect.data_of", lambda fit: mine.mkdir(parents=True))
    late = CliRunner().invoke(cli, ["collect", "mine"])
    assert "results/mine: exists" in str(late.exception)
    assert list(mine.parent.rglob("*")) == [mine]


def test_the_leak_is_measured_between_two_folders_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, fit = PROJECT / AT_64_PX, "runs/chest_xray/imagenet_all-seed0"
    params = (source / "params.yaml").read_text().replace("by: group", "by: image")
    for leak in ("match", "remove"):
        shutil.copytree(
            source / "runs/chest_xray/imagenet_all-seed0", tmp_path / leak / "runs/chest_xray/imagenet_all-seed0"
        )
        assert params.count("seed: 0}") == 2
        (tmp_path / leak / "params.yaml").write_text(params.replace("seed: 0}", f"seed: 0, leakage: {leak}}}"))
    monkeypatch.chdir(tmp_path)
    mixed = CliRunner().invoke(cli, ["leakage", "remove", "match"])
    assert "remove/params.yaml: datasets.ham10000.split.leakage: found remove, expected match" in str(mixed.exception)
    path, made = Path("match/params.yaml"), Path("match/params.yaml").read_text()
    path.write_text(made.replace(", seed: 0,", ","))
    cut = CliRunner().invoke(cli, ["leakage", "match", "remove"])
    assert "match/params.yaml: datasets.ham10000.split.seed: missing" in str(cut.exception)
    # A data set that is not studied does not matter.
    other = "datasets:\n  other: {split: {by: group, validation: 0.2, test: 0.2, seed: 0}}\n"
    path.write_text(made.replace("datasets:\n", other, 1))
    untold = CliRunner().invoke(cli, ["leakage", "match", "remove"])
    assert "match/runs/chest_xray/shared.csv: not found" in str(untold.exception)
    tested = pd.read_csv(f"match/{fit}/predictions.csv", dtype=str).query("split == 'test'").id
    pd.DataFrame({"id": tested[:100], "split": "train"}).to_csv("match/runs/chest_xray/shared.csv", index=False)
    assert CliRunner().invoke(cli, ["leakage", "match", "remove"]).exit_code == 0
    table = pd.read_csv("match/leak.csv")
    assert (table.difference == 0).all()
    assert CliRunner().invoke(cli, ["tables", "match"]).exit_code == 0
    assert CliRunner().invoke(cli, ["report", "match", "--output", "page.html"]).exit_code == 0
    assert "The effect of leakage" in Path("page.html").read_text()


def test_a_folder_without_results_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, told in ((["report"], "params.yaml: not found"), (["collect", "mine"], "params.yaml: not found")):
        result = CliRunner().invoke(cli, arguments)
        assert told in str(result.exception)
    assert list(tmp_path.iterdir()) == []
