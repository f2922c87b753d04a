"""Tuning: each trial once, on training and validation images only, in several processes, and it resumes."""

import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import optuna
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from ruamel.yaml import YAML

from conftest import PROJECT, use_store
from medtransfer.cli import cli
from medtransfer.core.errors import UserError
from medtransfer.core.files import atomic_folder, write_json
from medtransfer.core.params import Params
from medtransfer.core.prepared import read_dataset
from medtransfer.data.catalogue import CHEST_XRAY
from medtransfer.data.preparation import prepare_dataset
from medtransfer.study import tune as stage
from medtransfer.study.search_space import (
    advice,
    at_edge,
    changed,
    check_space,
    choose,
    decode,
    for_params,
    grid,
    parse_space,
)
from medtransfer.study.shared_study import Plan, SharedStudy, lock_of, storing
from medtransfer.tracking import mlflow_store
from medtransfer.training.experiment import build_network, cache_features, training_rows
from medtransfer.training.loop import fit

pytestmark = pytest.mark.usefixtures("narrow")

# A process that runs a command on narrow networks.
WORKER = """
import sys
import keras
from conftest import narrow_vgg16
keras.applications.VGG16 = narrow_vgg16
from medtransfer.cli import main
main()
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, demo: Path, params: Params) -> Path:
    """A prepared data set, beside a feature cache that all tests share."""
    folder = tmp_path_factory.mktemp("prepared")
    with atomic_folder(folder / "chest_xray") as target:
        prepare_dataset(CHEST_XRAY, demo / "chest_xray", params.datasets["chest_xray"], target)
    return folder


@pytest.fixture
def project(tmp_path: Path, prepared: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_store(tmp_path, empty_store, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(prepared / "cache"))
    shutil.copytree(prepared / "chest_xray", tmp_path / "artifacts" / "prepared" / "chest_xray")
    return tmp_path


def with_train(params: Params, **values: Any) -> Params:
    return params.model_copy(update={"train": params.train.model_copy(update=values)})


@pytest.fixture
def small(params: Params) -> Params:
    random_head = params.configurations["imagenet_head"].model_copy(update={"weights": "random"})
    study = params.study["chest_xray"].model_copy(update={"train": ["random_head"], "transfer": []})
    few = with_train(params, dense_units=[8, 8], batch_size=32, epochs=2)
    return few.model_copy(update={"configurations": {"random_head": random_head}, "study": {"chest_xray": study}})


def tune(params: Params, *searched: str, output: str = "tuning.csv", **how: Any) -> pd.DataFrame:
    plan = Plan(parse_space(list(searched)), **how)
    return stage.tune(params, "chest_xray", ["random_head"], plan, Path(output))


def note_trials(monkeypatch: pytest.MonkeyPatch, scores: dict[float, float] | None = None) -> list[Any]:
    """Replace training by a macro F1 for each rate, and return a list that each trial's settings are added to."""
    trials: list[Any] = []

    def note(*arguments: Any) -> dict[str, Any]:
        settings, follow = arguments[3:]
        trials.append(settings)
        score = (scores or {}).get(settings.learning_rate, 0.5)
        if any(follow({"epoch": epoch, "loss": 1.0, "val_macro_f1": score}) for epoch in (1, 2)):
            return {"best_epoch": 0, "val_loss": np.nan, "val_macro_f1": np.nan, "predicted_classes": 0}
        return {"best_epoch": 1, "val_loss": float(len(trials)), "val_macro_f1": score, "predicted_classes": 2}

    monkeypatch.setattr(stage, "train_trial", note)
    return trials


def states(project: Path) -> list[str]:
    storage = f"sqlite:///{project}/tuning.db"
    with lock_of(project / "tuning.db"):  # otherwise, Optuna makes the tables here while a process makes them
        studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    return [trial.state.name for study in studies for trial in study.trials]


def runs_of_searches() -> list[Any]:
    client = mlflow_store.connect()
    return list(client.search_runs([client.get_experiment_by_name("tune chest_xray").experiment_id]))


def test_a_trial_is_run_once_and_the_grid_can_grow(
    project: Path, small: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tune(small, "learning_rate=1e-3")
    trials = note_trials(monkeypatch)
    table = tune(small, "learning_rate=1e-3,1e-2")
    assert [settings.learning_rate for settings in trials] == [1e-2]
    assert list(table.learning_rate) == [1e-3, 1e-2]
    assert table[stage.SCORES].iloc[:1].equals(first[stage.SCORES])
    assert table.val_macro_f1.between(0, 1).all()
    assert pd.read_csv("tuning.csv").shape == table.shape
    tune(small, "learning_rate=1e-3,1e-2")
    Path("tuning.db").unlink()
    tune(small, "learning_rate=1e-3,1e-2")
    assert len(trials) == 1
    Path("tuning.csv").unlink()
    assert tune(small, "learning_rate=1e-3,1e-2").equals(table)
    assert pd.read_csv("tuning.csv").shape == table.shape


@pytest.mark.parametrize("name", ["a?b=c", "50%", "%2e", "a#b"])
def test_optunas_file_is_beside_the_table_whatever_its_name(
    project: Path, small: Params, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In an address of SQLAlchemy's, these characters are syntax."""
    note_trials(monkeypatch)
    tune(small, "learning_rate=1e-3", output=f"{name}.csv")
    assert {path.name for path in project.glob("*.*") if path.is_file()} == {
        f"{name}.{kind}" for kind in ("csv", "db", "lock")
    }


def test_following_a_trial_changes_nothing(project: Path, small: Params) -> None:
    few = with_train(small, epochs=3)
    data = read_dataset(few, "chest_xray")
    configuration, classes = few.configurations["random_head"], data[2]["classes"]
    model, _ = build_network(configuration, few.train, 32, len(classes), 0, None)
    ready = cache_features(model, configuration, few.train, data, 0, 0)
    history = fit(ready.network, ready.training, ready.validation, few.train)
    epochs: list[dict[str, float]] = []

    def follow(epoch: dict[str, float], last: int = 3) -> bool:
        epochs.append(epoch)
        return len(epochs) > last

    row = stage.train_trial(few, data, "random_head", few.train, follow)
    assert [epoch["val_loss"] for epoch in epochs] == history.val_loss.tolist()
    assert row["val_loss"] == history.val_loss.min()
    assert row["val_macro_f1"] == pytest.approx(epochs[row["best_epoch"] - 1]["val_macro_f1"])
    epochs.clear()
    augmented = changed(few, few.train, "chest_xray", {"augment.flips": "horizontal"})
    row = stage.train_trial(few, data, "random_head", augmented, lambda epoch: follow(epoch, last=1))
    assert len(epochs) == 2
    assert np.isnan(row["val_loss"])


def test_test_images_change_nothing(project: Path, small: Params) -> None:
    folder = project / "artifacts" / "prepared" / "chest_xray"
    before = tune(small, "learning_rate=1e-3", output="a.csv")
    images, samples = np.load(folder / "images.npy"), pd.read_csv(folder / "samples.csv")
    images[samples.split == "test"] = 0
    np.save(folder / "images.npy", images)
    samples.loc[samples.split == "test", "label"] = "NORMAL"
    samples.to_csv(folder / "samples.csv", index=False)
    after = tune(small, "learning_rate=1e-3", output="b.csv")
    assert after[stage.SCORES].equals(before[stage.SCORES])
    assert after.made_from[0] != before.made_from[0]


def test_another_recipe_or_other_data_are_another_trial(
    project: Path, small: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = note_trials(monkeypatch)
    head = small.configurations["random_head"]
    recipes = {
        "first": small,
        "batches": with_train(small, batch_size=4),
        "start": small.model_copy(
            update={"configurations": {"random_head": head.model_copy(update={"weights": "imagenet"})}}
        ),
    }
    found = [tune(recipe, "learning_rate=1e-3") for recipe in recipes.values()]
    assert [settings.batch_size for settings in trials] == [32, 4, 32]
    assert [list(table.val_loss) for table in found] == [[1], [2], [3]]
    samples = project / "artifacts" / "prepared" / "chest_xray" / "samples.csv"
    samples.write_text(samples.read_text().replace("validation", "train", 1))
    tune(small, "learning_rate=1e-3")
    tune(small, "learning_rate=1e-3")
    assert len(trials) == len(pd.read_csv("tuning.csv")) == 4
    description = project / "artifacts" / "prepared" / "chest_xray" / "dataset.json"
    write_json(description, json.loads(description.read_text()) | {"white_level": 4095})
    tune(small, "learning_rate=1e-3")
    assert len(trials) == 5


def test_any_key_is_searched_and_one_value_fixes_it(
    project: Path, small: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = note_trials(monkeypatch)
    head = small.configurations["random_head"].model_copy(update={"optimizer": "sgd", "fraction": 0.5})
    own = small.model_copy(update={"configurations": {"random_head": head}})
    tune(own, "dense_units=[4, 4],[8, 8]", "dropout=0.1,0.2", "fraction=0.25")
    assert [(settings.dense_units, settings.dropout) for settings in trials] == [
        ([4, 4], 0.1), ([4, 4], 0.2), ([8, 8], 0.1), ([8, 8], 0.2),
    ]  # fmt: skip
    assert {(settings.optimizer, settings.fraction, settings.learning_rate) for settings in trials} == {
        ("sgd", 0.25, 1e-3)
    }
    table = pd.read_csv("tuning.csv")
    assert json.loads(table.searched[1]) == {"dense_units": [4, 4], "dropout": 0.2, "fraction": 0.25}
    assert table.made_from.is_unique


def test_values_that_do_not_go_together_are_skipped(
    project: Path, small: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = note_trials(monkeypatch)
    tune(small, "schedule=cosine", "epochs=4,1", "warmup=0,2")  # each value is possible with the first of the other key
    assert "skipped: " in capsys.readouterr().out
    tune(small, "schedule=cosine", "epochs=4,1", "warmup=0,2")
    assert [(settings.epochs, settings.warmup) for settings in trials] == [(4, 0), (4, 2), (1, 0)]
    assert len(pd.read_csv("tuning.csv")) == 3
    space = parse_space(["average=0.99:0.9999"])
    assert decode({"average": 0.99964}, space) == {"average": 0.9999}
    assert decode({"average": 0.99321}, space) == {"average": 0.993}


def test_a_rate_that_diverges_does_not_end_the_grid_and_is_not_chosen(project: Path, small: Params) -> None:
    table = tune(small, "learning_rate=1e38,1e-3", "optimizer=sgd")
    assert list(np.isfinite(table.val_loss)) == [False, True]
    assert states(project) == ["COMPLETE", "COMPLETE"]
    again = tune(small, "learning_rate=1e38,1e-3", "optimizer=sgd")
    assert again.equals(table)
    assert choose(table.iloc[:1]) is None


@pytest.mark.parametrize(("sampler", "first", "then"), [("random", 2, 4), ("tpe", 6, 12)])
def test_points_of_processes_and_starts_differ(
    sampler: str, first: int, then: int, project: Path, small: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = note_trials(monkeypatch)
    searched = ("learning_rate=1e-5:1e-2:log", "dropout=0.0:0.5", "batch_size=8:64:log", "balance=none,sampling")
    for count in (first, then):
        assert len(tune(small, *searched, sampler=sampler, trials=count)) == count
    rates = [settings.learning_rate for settings in trials]
    assert len(set(rates)) == len(rates) == then
    assert all(1e-5 <= rate <= 1e-2 and rate == float(f"{rate:.3g}") for rate in rates)
    assert {type(settings.batch_size) for settings in trials} == {int}
    tune(small, *searched, sampler=sampler, trials=then, output="other.csv")
    assert [settings.learning_rate for settings in trials[then:]] == rates
    assert len(pd.read_csv("tuning.csv")) == then


@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_an_interrupted_trial_is_run_again(
    sampler: str, project: Path, small: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = note_trials(monkeypatch)
    finish = stage.train_trial

    def interrupt(*arguments: Any) -> Any:
        row = finish(*arguments)
        if len(trials) == 2:
            raise KeyboardInterrupt
        return row

    monkeypatch.setattr(stage, "train_trial", interrupt)
    searched = "learning_rate=1e-4,1e-3,1e-2" if sampler == "grid" else "learning_rate=1e-4:1e-2"
    with pytest.raises(KeyboardInterrupt):
        tune(small, searched, sampler=sampler, trials=3)
    table = tune(small, searched, sampler=sampler, trials=3)
    rates = [settings.learning_rate for settings in trials]
    assert [rates.count(rate) for rate in rates[:2]] == [1, 2]
    assert set(table.learning_rate) == set(rates)
    assert states(project).count("COMPLETE") == len(table) == len(set(rates)) == 3
    assert states(project).count("FAIL") == 1
    assert not list(project.glob("tuning.*.lock"))


def test_a_poor_trial_is_pruned_and_run_when_nothing_is_pruned(
    project: Path, small: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = note_trials(monkeypatch, {1e-6: 0.1})
    rates = "learning_rate=1e-1,1e-2,1e-3,1e-4,1e-5,1e-6"
    table = tune(small, rates, pruner="median")
    assert states(project) == ["COMPLETE"] * 5 + ["PRUNED"]
    assert table.val_loss.isna().tolist() == [False] * 5 + [True]
    table = tune(small, rates)
    assert len(trials) == 7
    assert table.val_macro_f1.tolist() == [0.5] * 5 + [0.1]
    assert tune(small, rates, pruner="median").val_loss.isna().sum() == 1
    assert pd.read_csv("tuning.csv").val_loss.notna().tolist() == [True] * 6


def test_trials_are_children_of_one_run_in_mlflow(project: Path, small: Params) -> None:
    tune(small, "learning_rate=1e-4,1e-3", "dropout=0.1")
    tune(small, "learning_rate=1e-4,1e-3", "dropout=0.1")
    runs = runs_of_searches()
    [parent] = [run for run in runs if MLFLOW_PARENT_RUN_ID not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert sorted(children) == ["random_head-0", "random_head-1"]
    table = pd.read_csv("tuning.csv")
    for number, row in table.iterrows():
        run = children[f"random_head-{number}"]
        assert run.data.tags[MLFLOW_PARENT_RUN_ID] == parent.info.run_id
        assert float(run.data.params["train.learning_rate"]) == row.learning_rate
        assert run.data.params["train.dropout"] == "0.1"
        assert run.data.metrics["validation/best/macro_f1"] == row.val_macro_f1
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "validation/macro_f1")
        assert [point.step for point in history] == [1, 2]
    assert parent.data.metrics == {"trials": 2, "validation/best/macro_f1": table.val_macro_f1.max()}
    assert {run.info.status for run in runs} == {"FINISHED"}


def start(project: Path, small: Params, *arguments: str) -> subprocess.Popen[str]:
    with (project / "params.yaml").open("w") as file:
        YAML().dump(small.model_dump(), file)
    command = [sys.executable, "-c", WORKER, "tune", "chest_xray", "--output", "tuning.csv", *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_two_processes_share_a_grid_and_one_may_be_killed(project: Path, small: Params) -> None:
    points = ("--search", "learning_rate=1e-4,1e-3", "--search", "dropout=0.1,0.5", "--search", "epochs=20")
    killed = start(project, small, *points)
    deadline = time.monotonic() + 120
    while not (project / "tuning.db").exists() or "RUNNING" not in states(project):
        assert time.monotonic() < deadline
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    workers = [start(project, small, *points) for _ in range(2)]
    printed = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], printed
    found = states(project)
    assert found.count("COMPLETE") == 4
    assert found.count("FAIL") == 1
    table = pd.read_csv("tuning.csv")
    assert len(table.drop_duplicates(["learning_rate", "made_from"])) == len(table) == 4
    assert sum(line.startswith("chest_xray random_head") for text in printed for line in text.splitlines()) == 4
    runs = runs_of_searches()
    assert [MLFLOW_PARENT_RUN_ID in run.data.tags for run in runs].count(False) == 1
    # The kill may come before or after MLflow has the run.
    assert [run.info.status for run in runs].count("KILLED") == len(runs) - 5 <= 1


@pytest.mark.parametrize(
    ("searched", "key"),
    [
        ("dropot=0.1", r"train\.dropot: unknown key; did you mean dropout\?"),
        ("dropout=0.3,2", r"train\.dropout: found 2 "),
        ("dropout=0.1:1.5", r"train\.dropout: found 1.5 "),
        ("batch_size=8.5:32", r"train\.batch_size: found 8.5 "),
        ("optimizer=adam,adamm", r"train\.optimizer: found 'adamm'"),
        ("dropout.rate=0.1", r"train\.dropout: "),
        ("augment.zoom=0.1", r"train\.augment\.zoom: unknown key"),
        ("learning_rate=0:1:log", r"learning_rate=0:1:log: "),
        ("learning_rate=1:0.1", r"learning_rate=1:0.1: "),
        ("learning_rate", r"--search learning_rate: "),
        ("learning_rate=[1", r"learning_rate=\[1: "),
        ("dropout=0.1:0.2", r"--search dropout: a grid has no ranges"),
    ],
)
def test_a_wrong_search_is_refused_in_one_line(
    searched: str, key: str, project: Path, small: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = note_trials(monkeypatch)
    with pytest.raises(UserError, match=key) as caught:
        tune(small, "epochs=1", searched)
    assert "\n" not in str(caught.value)
    assert not trials


def test_the_search_space_is_read_as_yaml() -> None:
    space = parse_space(["a=1e-5,3e-5", "b=1e-5:1e-3:log", "c=8:64", "d=null,{x: true}", "e.f=0.5"])
    assert space == {
        "a": CategoricalDistribution(["1e-05", "3e-05"]),
        "b": FloatDistribution(1e-5, 1e-3, log=True),
        "c": IntDistribution(8, 64),
        "d": CategoricalDistribution(["null", '{"x": true}']),
        "e.f": CategoricalDistribution(["0.5"]),
    }
    with pytest.raises(UserError, match="a is listed twice"):
        parse_space(["a=1", "a=2"])
    with pytest.raises(UserError, match=r"0\.5 is listed twice"):
        parse_space(["a=0.5,0.50"])
    with pytest.raises(UserError, match="the range from 1e-05 to inf is not finite"):
        parse_space(["a=1e-5:.inf"])
    assert grid(parse_space(["a=1,2", "b=x"])) == [{"a": "1", "b": '"x"'}, {"a": "2", "b": '"x"'}]


def test_sections_and_named_recipes_are_searched(params: Params) -> None:
    def settings(**point: Any) -> Any:
        point = {key.replace("_", ".", 1) if key.startswith("augment") else key: value for key, value in point.items()}
        return changed(params, params.train, "ham10000", point)

    assert settings(augment_crop=0.5).augment.crop == 0.5
    modern = settings(recipe="modern", dropout=0.1, augment_crop=0.5)
    assert (modern.optimizer, modern.dropout, modern.augment.crop, modern.augment.flips) == ("adamw", 0.1, 0.5, "any")
    assert modern.augment.brightness == 0.2
    # A value is checked together with the others.
    check_space(params, params.train, "ham10000", parse_space(["optimizer=adamw", "weight_decay=1e-4:1e-1:log"]))
    with pytest.raises(UserError, match="weight_decay"):
        check_space(params, params.train, "ham10000", parse_space(["weight_decay=1e-4:1e-1:log"]))


def trials_of(*rows: tuple[float, float, float, int]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["learning_rate", "val_macro_f1", "val_loss", "predicted_classes"])
    return table.assign(searched=[json.dumps({"learning_rate": rate, "dropout": 0.3}) for rate in table.learning_rate])


def test_the_best_macro_f1_is_chosen_and_never_a_network_that_predicts_one_class() -> None:
    best = choose(trials_of((1e-5, 0.9, 0.1, 1), (1e-4, 0.6, 0.9, 2), (1e-3, 0.6, 0.8, 7), (1e-2, 0.5, 0.2, 2)))
    assert best is not None
    assert best.learning_rate == 1e-3
    assert choose(trials_of((1e-5, 0.9, 0.1, 1), (1e-4, np.nan, np.inf, 0), (1e-4, np.nan, np.nan, 0))) is None


def test_the_printed_line_keeps_other_rates_and_names_an_edge(params: Params) -> None:
    def printed(rates: Any, searched: str, rate: float) -> list[str]:
        changed = params.configurations["imagenet_all"].model_copy(update={"learning_rate": rates})
        own = params.model_copy(update={"configurations": params.configurations | {"imagenet_all": changed}})
        space = parse_space([f"learning_rate={searched}", "dropout=0.3"])
        return list(advice(own, "ham10000", "imagenet_all", space, trials_of((rate, 0.5, 0.9, 2))))

    [line] = printed({"ham10000": 1e-2, "chest_xray": 3e-5}, "1e-5,1e-4,1e-3", 1e-4)
    assert "learning_rate: {ham10000: 0.0001, chest_xray: 3e-05}" in line
    assert ", dropout: 0.3  #" in line  # differs from the configuration's
    line, edge = printed(3e-3, "1e-5,1e-4", 1e-4)
    assert "learning_rate: {chest_xray: 0.003, ham10000: 0.0001}" in line
    assert "learning_rate: 0.0001 is at the edge of 1e-05 to 0.0001" in edge
    [line] = printed(None, "1e-5:1e-3:log", 1e-4)
    assert "learning_rate: {ham10000: 0.0001}" in line
    assert len(printed(None, "1e-5:1e-3:log", 1.1e-5)) == 2
    assert not at_edge(parse_space(["flip=true,false", "optimizer=adam,sgd"]), {"flip": True, "optimizer": "sgd"})
    searched = parse_space(["learning_rate=1e-4", "dropout=0.2,0.3,0.4"])
    [line] = advice(params, "ham10000", "imagenet_all", searched, trials_of((1e-4, 0.5, 0.9, 2)))
    assert "imagenet_all: learning_rate: {ham10000: 0.0001, chest_xray: 5e-05}, dropout: 0.3" in line
    searched = parse_space(["optimizer=sgd", "fraction=0.2", "learning_rate=1e-4,1e-3"])
    trials = trials_of((1e-4, 0.5, 0.9, 2))
    trials["searched"] = json.dumps({"optimizer": "sgd", "fraction": 0.2, "learning_rate": 1e-4})
    line, *_ = advice(params, "ham10000", "imagenet_all", searched, trials)
    assert "optimizer: sgd, learning_rate: {ham10000: 0.0001, " in line
    assert "fraction" not in line
    point = {"batch_size": 16, "augment.crop": 0.5, "recipe": "modern"}
    printed_point = for_params(params, "ham10000", "imagenet_all", point)
    before, augment = printed_point.split(", augment: ")
    assert before == "train.batch_size: 16, recipe: modern"
    assert YAML(typ="safe").load(augment) == {
        "flips": "any", "crop": 0.5, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2,
    }  # fmt: skip


def test_another_programs_file_is_not_searched_in(tmp_path: Path) -> None:
    """Optuna would add its tables to MLflow's database."""
    file, plan = tmp_path / "x.db", Plan(parse_space(["dropout=0.1"]))
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE runs (run_uuid TEXT)")
    for told in ("a database of another program", "not an Optuna database"):
        before = file.read_bytes()
        with pytest.raises(UserError, match=told):
            SharedStudy(file, "search", plan, 0, "me")
        assert file.read_bytes() == before
        file.write_text("garbage, not a database")


def test_a_database_of_another_version_of_optuna_is_one_line(tmp_path: Path) -> None:
    file, plan = tmp_path / "x.db", Plan(parse_space(["dropout=0.1"]))
    SharedStudy(file, "search", plan, 0, "me")
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE version_info SET schema_version = 99")
        database.execute("UPDATE alembic_version SET version_num = 'v99'")
        database.commit()
    with pytest.raises(UserError, match=r"x\.db: The runtime optuna version .* or choose another --output"):
        SharedStudy(file, "search", plan, 0, "me")


def test_a_full_disk_is_named_and_the_search_can_go_on(tmp_path: Path) -> None:
    file, plan = tmp_path / "x.db", Plan(parse_space(["dropout=0.1,0.2"]))
    study = SharedStudy(file, "search", plan, 0, "me")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        with pytest.raises(UserError, match=r"x\.db: cannot be written \(.*\); free some space"), storing(file):
            study.claim()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert study.claim()


def test_a_table_of_an_older_version_is_refused(project: Path, small: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = note_trials(monkeypatch)
    tune(small, "learning_rate=1e-3")
    pd.read_csv("tuning.csv").drop(columns="optimizer").to_csv("tuning.csv", index=False)
    with pytest.raises(UserError, match=r"tuning\.csv: no column 'optimizer'; .*; name another file"):
        tune(small, "learning_rate=1e-2")
    assert len(trials) == 1


def test_transfers_are_tuned_as_well(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def note(_: Params, dataset: str, names: list[str], *rest: object) -> pd.DataFrame:
        asked.extend(names)
        return pd.DataFrame(columns=stage.COLUMNS)

    monkeypatch.setattr(stage, "tune", note)
    monkeypatch.chdir(PROJECT)
    result = CliRunner().invoke(cli, ["tune", "chest_xray", "--output", str(tmp_path / "tuning.csv")])
    assert result.exit_code == 0, result.output
    assert asked == [*params.study["chest_xray"].train, *params.study["chest_xray"].transfer]


def test_an_unknown_configuration_is_named(params: Params, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"configurations: 'nothing' is unknown; choose one of cnn_random"):
        stage.tune(params, "chest_xray", ["nothing"], Plan({}), tmp_path / "a.csv")


def test_a_search_whose_source_is_not_trained_yet_leaves_nothing(project: Path, params: Params) -> None:
    with pytest.raises(UserError, match=r"ham10000/imagenet_all-seed0/model\.keras: not found; run `dvc repro`"):
        stage.tune(params, "chest_xray", ["ham10000_all"], Plan({}), Path("tuning.csv"))
    assert not Path("tuning.db").exists()
    assert mlflow_store.connect().get_experiment_by_name("tune chest_xray") is None


def test_a_part_keeps_the_classes_shares_and_only_training_images() -> None:
    samples = pd.DataFrame({"label": ["a"] * 300 + ["b"] * 100, "split": (["train"] * 3 + ["test"]) * 100})
    rows = training_rows(samples, 0.1, seed=0)
    assert len(rows) == 30
    assert set(samples.split[rows]) == {"train"}
    assert samples.label[rows].value_counts().to_dict() == {"a": 22, "b": 8}
    assert (training_rows(samples, 0.1, seed=0) == rows).all()
    with pytest.raises(UserError, match=r"fraction 0.005 of 300 training images: too few"):
        training_rows(samples, 0.005, seed=0)
    rare = samples.assign(label=["a"] * 296 + ["b"] * 103 + ["c"])
    rare.loc[392:398, "label"] = "c"
    with pytest.raises(UserError, match=r"fraction 0.02 of 300 training images: .*none of c is left"):
        training_rows(rare, 0.02, seed=0)
    assert (training_rows(samples, 1.0, seed=0) == np.flatnonzero(samples.split == "train")).all()
