"""Tables and figures: every synthetic number says so, and every figure is drawn."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from conftest import PROJECT
from medtransfer.analysis.external import SIDES
from medtransfer.analysis.runs import Run
from medtransfer.analysis.scores import f1_table
from medtransfer.core.params import Configuration, read_params
from medtransfer.core.run_record import split_of
from medtransfer.report import figures, tables
from medtransfer.report.render import render
from studies import evaluate_study

TRAIN = read_params(PROJECT / "params.yaml").train
CONFIGURATION = Configuration(weights="random", trainable="all", learning_rate={"ham10000": 3e-4, "chest_xray": 7e-5})


def run(model: str, synthetic: bool, network: bool) -> Run:
    labels = ["NORMAL", "PNEUMONIA"] * 20
    frame = pd.DataFrame({"id": map(str, range(40)), "group": map(str, range(40)), "split": "test", "label": labels})
    frame["p_NORMAL"] = np.where(frame.label == "NORMAL", 0.8, 0.3)
    frame["p_PNEUMONIA"] = 1 - frame.p_NORMAL
    record = {
        "dataset": "chest_xray", "model": model, "seed": 0, "synthetic": synthetic,
        "image_size": 32, "split_by": "image", "split_leakage": "keep",
        "data_version": "abc.dir", "precision": "float32", "backend": "tensorflow", "device": "CPU x", "seconds": 1.25,
        "git_commit": "0123456789abcdef-modified", "epochs": 4, "training_images": 100, "best_epoch": 2,
        "kind": "network" if network else "baseline",
        "hyperparameters": {
            "train": CONFIGURATION.settings(TRAIN, "chest_xray").model_dump(),
            "configuration": CONFIGURATION.model_dump(exclude_none=True),
        },
    }  # fmt: skip
    history = pd.DataFrame({"epoch": [1, 2], "accuracy": [0.5, 0.6]})
    return Run(record, frame, history if network else None, frame.assign(split="validation") if network else None)


def markdown(runs: list[Run]) -> str:
    return tables.markdown(evaluate_study("study", runs))


@pytest.mark.parametrize("synthetic", [True, False])
def test_the_note_on_the_data_is_shown_with_every_table(synthetic: bool) -> None:
    runs = [run("decision_tree", synthetic, network=False), run("imagenet_all", synthetic, network=True)]
    table = f1_table(runs)
    console = Console(record=True, width=140, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(tables.terminal(table, "chest_xray"))
    for text in (markdown(runs), console.export_text()):
        assert ("SYNTHETIC" in text) == synthetic
    assert figures.mark("title", "a note " * 20).startswith("title\na note a note")
    claimed = markdown([*runs, run("cnn_random", synthetic, network=True)]).partition("## chest_xray")[0]
    assert "not tested: split by image" in claimed
    assert "which differences the study could detect" not in claimed  # a table of dashes
    assert ("SYNTHETIC" in claimed) == synthetic


def test_the_table_has_ours_the_talks_and_how_each_run_was_made() -> None:
    runs = [run("decision_tree", False, network=False), run("imagenet_all", False, network=True)]
    text = markdown(runs)
    assert "| NORMAL | 1.00 (0.75)<br>[0.91, 1.00] | 1.00 (0.91)<br>[0.91, 1.00] |" in text
    assert "| micro avg | 1.00 (0.87)<br>all groups alike |" in text
    assert "| imagenet_all, seed 0 | 4 (2) | 7e-05 | float32 | tensorflow | CPU x | 1.2 | 0123456789† |" in text
    assert "| decision_tree, seed 0 | - |" in text
    assert "| model | micro avg | macro avg | balanced accuracy | AUC | Brier score | calibration error |" in text
    assert "| decision_tree | 0.000<br>[0.000, 0.000] * |" in text


def test_a_network_that_predicts_only_one_class_is_warned_of_where_it_is_shown() -> None:
    """The table has the talk's models only."""
    good, other, bad = (run(name, False, network=True) for name in ("imagenet_all", "blocks_2", "imagenet_all"))
    other.record["hyperparameters"]["configuration"] |= {"weights": "imagenet", "trainable": ["block2"]}
    for collapsed in (other, bad):
        collapsed.predictions[["p_NORMAL", "p_PNEUMONIA"]] = [0.1, 0.9]
    assert "warning" not in tables.pivot(f1_table([good, other]), "chest_xray").index
    warned = tables.pivot(f1_table([bad, other]), "chest_xray")
    assert "predicts only PNEUMONIA" in str(warned.loc["warning", "imagenet_all"])


def test_a_data_set_that_the_talk_had_not_is_not_compared_with_it() -> None:
    runs = [run(name, False, network=name == "imagenet_all") for name in ("decision_tree", "imagenet_all")]
    assert "The talk's F1 is in parentheses" in markdown(runs)
    for fit in runs:
        fit.record["dataset"] = "mine"
    console = Console(record=True, width=140, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(tables.terminal(f1_table(runs), "mine"))
    assert "mine: F1, 95% interval" in console.export_text()
    for word in ("talk", "lesion", "patient"):
        assert word not in markdown(runs)


def test_a_card_names_the_datasheet_or_what_the_user_said_of_the_data() -> None:
    record = run("imagenet_all", False, network=True).record | {"weights": "imagenet", "trainable_blocks": "all"}
    data = {
        "classes": ["a", "b"], "image_size": 32, "source": "folder scans", "group": "patient",
        "images": {"train": 6, "validation": 2, "test": 2}, "test_images_sharing_a_group": 0,
    }  # fmt: skip
    values = {
        "record": record,
        "title": "Scans",
        "split": split_of(record),
        "metrics": {"a": 0.5},
        "note": "a few images",
        "served": None,
    }
    assert "docs/datasheets/" in render("medtransfer.report", "card.md.j2", data=data, custom=None, **values)
    custom = {"licence": "CC0", "citation": "Us, 2026"}
    own = render("medtransfer.report", "card.md.j2", data=data, custom=custom, **values)
    assert "Scans (licence: CC0; citation: Us, 2026), version" in own
    assert "docs/datasheets/" not in own
    assert "| train.learning_rate | 7e-05 |" in own
    assert "**a few images**" in own


ENDS = ("", "_low", "_high")


def test_every_figure_is_a_picture(tmp_path: Path) -> None:
    history = pd.DataFrame(
        {"epoch": [1, 2], **{key: [0.5, 0.6] for key in ("loss", "accuracy", "val_loss", "val_accuracy")}}
    )
    figures.class_distribution({"a": 3, "b": 5}, "t").savefig(tmp_path / "1.png")
    figures.confusion(np.array([[3, 1], [0, 5]]), ["a", "b"], "t").savefig(tmp_path / "2.png")
    figures.curves(history, "t").savefig(tmp_path / "3.png")
    figures.training_accuracy({"x": history}, "t").savefig(tmp_path / "4.png")
    outputs = {name: np.random.default_rng(0).random((8, 8, 64)) for name in ("one", "two")}
    figures.activations(np.zeros((8, 8, 3), np.uint8), outputs, "$1_$.png").savefig(tmp_path / "5.png")
    compared = pd.DataFrame({"model": ["x", "y"], **{f"{side}{end}": [0.5, 0.6] for side in SIDES for end in ENDS}})
    figures.external(compared, "t").savefig(tmp_path / "6.png")
    for number in range(1, 7):
        pixels = np.asarray(Image.open(tmp_path / f"{number}.png").convert("L"))
        assert min(pixels.shape) > 200
        assert pixels.std() > 1
