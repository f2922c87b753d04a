"""Tuning: each trial once, on training and validation images only, and it resumes where it stopped."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from conftest import PROJECT
from medtransfer.cli import cli
from medtransfer.core.errors import UserError
from medtransfer.core.files import atomic_folder
from medtransfer.core.layout import TUNING_KEY
from medtransfer.core.params import Params
from medtransfer.data.catalogue import CHEST_XRAY
from medtransfer.data.preparation import prepare_dataset
from medtransfer.study import tune as stage
from medtransfer.training.experiment import training_rows

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, demo: Path, params: Params) -> Path:
    """A prepared data set, beside a feature cache that all tests share."""
    folder = tmp_path_factory.mktemp("prepared")
    with atomic_folder(folder / "chest_xray") as target:
        prepare_dataset(CHEST_XRAY, demo / "chest_xray", params.datasets["chest_xray"], target)
    return folder


@pytest.fixture
def project(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(prepared / "cache"))
    shutil.copytree(prepared / "chest_xray", tmp_path / "artifacts" / "prepared" / "chest_xray")
    return tmp_path


def small(params: Params) -> Params:
    random_head = params.configurations["imagenet_head"].model_copy(update={"weights": "random"})
    return params.model_copy(
        update={
            "train": params.train.model_copy(update={"dense_units": [8, 8], "batch_size": 32}),
            "configurations": {"random_head": random_head},
        }
    )


def test_a_trial_is_run_once_and_the_grid_can_grow(
    project: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = project / "tuning.csv"
    first = stage.tune(small(params), "chest_xray", ["random_head"], [1e-3], 1.0, 2, output)
    trials = []
    original = stage.run_trial

    def note(*arguments: object) -> dict[str, object]:
        trials.append(arguments[3].learning_rate)  # type: ignore[attr-defined]
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "run_trial", note)
    table = stage.tune(small(params), "chest_xray", ["random_head"], [1e-3, 1e-2], 1.0, 2, output)
    assert trials == [1e-2]
    assert list(table.learning_rate) == [1e-3, 1e-2]
    assert table.val_loss[0] == first.val_loss[0]
    assert table.val_macro_f1.between(0, 1).all()
    assert pd.read_csv(output).shape == table.shape


def test_test_images_change_nothing(project: Path, params: Params) -> None:
    folder = project / "artifacts" / "prepared" / "chest_xray"
    before = stage.tune(small(params), "chest_xray", ["random_head"], [1e-3], 1.0, 1, project / "a.csv")
    images, samples = np.load(folder / "images.npy"), pd.read_csv(folder / "samples.csv")
    images[samples.split == "test"] = 0
    np.save(folder / "images.npy", images)
    samples.loc[samples.split == "test", "label"] = "NORMAL"
    samples.to_csv(folder / "samples.csv", index=False)
    after = stage.tune(small(params), "chest_xray", ["random_head"], [1e-3], 1.0, 1, project / "b.csv")
    scores = ["best_epoch", "val_loss", "val_macro_f1"]
    assert after[scores].equals(before[scores])


def test_another_optimizer_is_another_trial(project: Path, params: Params) -> None:
    output = project / "tuning.csv"
    few = small(params)
    stage.tune(few, "chest_xray", ["random_head"], [1e-3], 1.0, 1, output)
    other = few.model_copy(update={"train": few.train.model_copy(update={"optimizer": "sgd"})})
    stage.tune(other, "chest_xray", ["random_head"], [1e-3], 1.0, 1, output)
    table = pd.read_csv(output)
    assert list(table.optimizer) == ["adam", "sgd"]
    assert table.val_loss[0] != table.val_loss[1]
    pd.read_csv(output).drop(columns="optimizer").to_csv(output, index=False)
    with pytest.raises(UserError, match=r"tuning\.csv: no column 'optimizer'; .*; name another file"):
        stage.tune(few, "chest_xray", ["random_head"], [1e-3], 1.0, 1, output)


def test_another_recipe_or_other_data_are_another_trial(
    project: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = []

    def note(*arguments: object) -> dict[str, object]:
        trials.append(arguments[3].batch_size)  # type: ignore[attr-defined]
        return {"val_loss": len(trials), "val_macro_f1": 0.5}

    monkeypatch.setattr(stage, "run_trial", note)
    output, few = project / "tuning.csv", small(params)
    recipes = {
        "first": few,
        "batches": few.model_copy(update={"train": few.train.model_copy(update={"batch_size": 4})}),
        "start": few.model_copy(
            update={
                "configurations": {
                    "random_head": few.configurations["random_head"].model_copy(update={"weights": "imagenet"})
                }
            }
        ),
    }
    found = [stage.tune(recipe, "chest_xray", ["random_head"], [1e-3], 1.0, 1, output) for recipe in recipes.values()]
    assert trials == [32, 4, 32]
    assert [list(table.val_loss) for table in found] == [[1], [2], [3]]
    samples = project / "artifacts" / "prepared" / "chest_xray" / "samples.csv"
    samples.write_text(samples.read_text().replace("validation", "train", 1))
    stage.tune(few, "chest_xray", ["random_head"], [1e-3], 1.0, 1, output)
    assert len(trials) == 4
    stage.tune(few, "chest_xray", ["random_head"], [1e-3], 1.0, 1, output)
    assert len(trials) == 4


def test_a_rate_that_diverges_does_not_end_the_grid(project: Path, params: Params) -> None:
    table = stage.tune(small(params), "chest_xray", ["random_head"], [1e38, 1e-3], 1.0, 1, project / "a.csv", "sgd")
    assert list(np.isfinite(table.val_loss)) == [False, True]
    again = stage.tune(small(params), "chest_xray", ["random_head"], [1e38, 1e-3], 1.0, 1, project / "a.csv", "sgd")
    assert list(again.val_loss) == list(table.val_loss)


def test_a_configurations_own_fraction_is_used(project: Path, params: Params) -> None:
    few = small(params)
    own = few.configurations["random_head"].model_copy(update={"fraction": 0.5})
    other = few.model_copy(update={"configurations": {"random_head": own}})
    table = stage.tune(other, "chest_xray", ["random_head"], [1e-3], None, 1, project / "a.csv")
    assert list(table.fraction) == [0.5]


def test_a_configurations_own_optimizer_is_used(project: Path, params: Params) -> None:
    few = small(params)
    own = few.configurations["random_head"].model_copy(update={"optimizer": "sgd"})
    other = few.model_copy(update={"configurations": {"random_head": own}})
    table = stage.tune(other, "chest_xray", ["random_head"], [1e-3], 1.0, 1, project / "a.csv")
    named = stage.tune(few, "chest_xray", ["random_head"], [1e-3], 1.0, 1, project / "b.csv", "sgd")
    assert list(table.optimizer) == ["sgd"]
    assert table.drop(columns="seconds").equals(named.drop(columns="seconds"))


def test_transfers_are_tuned_as_well(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def note(_: Params, dataset: str, names: list[str], *rest: object, **settings: object) -> pd.DataFrame:
        asked.extend(names)
        return pd.DataFrame(columns=[*TUNING_KEY, "val_loss"])

    monkeypatch.setattr(stage, "tune", note)
    monkeypatch.chdir(PROJECT)
    result = CliRunner().invoke(cli, ["tune", "chest_xray", "--output", str(tmp_path / "tuning.csv")])
    assert result.exit_code == 0, result.output
    assert asked == [*params.study["chest_xray"].train, *params.study["chest_xray"].transfer]


def test_an_unknown_configuration_is_named(params: Params, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"configurations: 'nothing' is unknown; choose one of cnn_random"):
        stage.tune(params, "chest_xray", ["nothing"], [1e-3], 1.0, 1, tmp_path / "a.csv")


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
