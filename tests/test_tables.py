"""Tables and figures of a study: the right rows and numbers, whatever else stands in the study."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medtransfer.analysis.runs import Run
from medtransfer.analysis.tables import compute_tables, read_tables, write_tables
from medtransfer.core.errors import UserError
from medtransfer.core.predictions import probabilities_of, read_predictions, write_predictions
from medtransfer.core.tables import read_result
from medtransfer.metrics.scores import MACRO
from medtransfer.report import figures, tables
from medtransfer.report.answers import answers
from medtransfer.report.drawings import FIGURES, overview
from medtransfer.report.page import build_page
from medtransfer.report.study import costs, largest_class_f1, trials
from studies import evaluate_study, run, runs
from test_questions import pair_of


def test_an_interval_near_0_has_a_third_decimal() -> None:
    near, far = pair_of("a", "b", 0.007), pair_of("a", "b", 0.1)
    assert tables.difference(dataclasses.replace(near, groups_sd=0.004)) == "+0.007\n[-0.001, +0.015] *"
    assert tables.difference(far) == "+0.100\n[+0.001, +0.199] *"  # 0.00 would hide on which side of 0 it is


def test_more_configurations_change_no_other_answer_and_no_table_of_the_talk() -> None:
    fits = [
        run("chest_xray", "cnn_random", 0.8, weights="random"),
        run("chest_xray", "imagenet_all", 0.9),
        run("chest_xray", "imagenet_head", 0.85, trainable="head"),
    ]
    added = [
        run("chest_xray", "all_caffe", 0.9, scaling="caffe"),
        run("chest_xray", "all_10", 0.7, fraction=0.1),
        run("chest_xray", "random_10", 0.5, weights="random", fraction=0.1),
        run("chest_xray", "last_two", 0.9, trainable=["block4", "block5"]),
    ]
    small, large = evaluate_study("s", fits), evaluate_study("s", [*fits, *added])
    assert [pair for pair in large.tables.pairs if pair.family == "talk"] == small.tables.pairs
    pd.testing.assert_frame_equal(answers(large), answers(small))
    added_names = [run.model for run in added]
    for frame in (
        tables.pivot(large.tables.results, "chest_xray"), tables.differences(large.tables.pairs, "chest_xray")
    ):  # fmt: skip
        assert not set(added_names) & set(frame.columns)
    assert set(tables.measures(large.tables.summary, "chest_xray").index) == {run.model for run in fits}
    beyond = tables.beyond_the_talk(large, "chest_xray")
    assert [list(frame.index) for _, frame in beyond] == [
        added_names, ["all_caffe"], ["10 (10%)", "100 (100%)"], ["imagenet_all", "imagenet_head"],
    ]  # fmt: skip
    assert tables.beyond_the_talk(small, "chest_xray") == []


def test_classes_named_like_missing_values_stay_text(tmp_path: Path) -> None:
    fits, names = runs(), {"NORMAL": "None", "PNEUMONIA": "NA"}
    for fit in fits:
        fit.predictions.rename(columns={f"p_{old}": f"p_{new}" for old, new in names.items()}, inplace=True)
        fit.predictions["label"] = fit.predictions.label.map(names)
    write_tables(compute_tables(fits, {}), tmp_path)
    found = read_tables(tmp_path, "")
    assert {"None", "NA"} <= set(found.results["class"])
    assert {"None", "NA"} <= set(found.calibration["class"])
    write_predictions(tmp_path / "p.csv", fits[0].predictions, probabilities_of(fits[0].predictions), ["None", "NA"])
    assert set(read_predictions(tmp_path / "p.csv").label) == {"None", "NA"}


def test_interrupted_tables_are_not_taken_for_whole_ones(tmp_path: Path) -> None:
    tables = compute_tables(runs(), {})
    write_tables(tables, tmp_path)
    (tmp_path / "differences.csv").unlink()
    (tmp_path / "differences.csv").mkdir()  # so that it cannot be written
    with pytest.raises(OSError, match="differences"):
        write_tables(tables, tmp_path)
    assert not (tmp_path / "results.csv").exists()


def test_a_confusion_matrix_of_many_classes_stays_small() -> None:
    few, many = (
        figures.confusion(np.eye(classes, dtype=int), [f"c{number}" for number in range(classes)], "t")
        for classes in (7, 200)
    )
    assert len(few.axes[0].texts) == 49
    assert not many.axes[0].texts
    assert max(many.get_size_inches()) <= 18
    assert len(many.axes[0].get_xticklabels()) <= 30


def test_chains_stand_beside_random_and_imagenet_weights() -> None:
    whole = run("chest_xray", "imagenet_all", 0.95)
    fits = [
        run("ham10000", "cnn_random", 0.8, weights="random"),
        run("ham10000", "imagenet_all", 0.9),
        run("chest_xray", "cnn_random", 0.6, weights="random"),
        whole,
        dataclasses.replace(whole, record={**whole.record, "seed": 1}),
        run("chest_xray", "imagenet_head", 0.8, trainable="head"),
        run("chest_xray", "ham10000_random", 0.62, weights="ham10000/cnn_random"),
        run("chest_xray", "ham10000_all", 0.9, weights="ham10000/imagenet_all"),
    ]
    study = evaluate_study("s", fits)
    beyond = tables.beyond_the_talk(study, "chest_xray")
    (table,) = [table for _, table in beyond if table.index.name == "chain"]
    assert table.seeds.tolist() == [1, 2, 1, 1]
    assert dict(zip(table.index, table.model, strict=True)) == {
        "random → chest_xray": "cnn_random",
        "imagenet → chest_xray": "imagenet_all",
        "random → ham10000 → chest_xray": "ham10000_random",
        "imagenet → ham10000 → chest_xray": "ham10000_all",
    }
    f1 = (
        study.tables.results[(study.tables.results["class"] == MACRO) & (study.tables.results.dataset == "chest_xray")]
        .set_index("model")
        .f1
    )
    row = table.loc["imagenet → ham10000 → chest_xray"]
    for start, model in (("random", "cnn_random"), ("ImageNet", "imagenet_all")):
        assert row[f"minus {start} weights"].startswith(f"{f1['ham10000_all'] - f1[model]:+.2f}\n[")
    assert table.loc["random → chest_xray", "minus random weights"] == "-"
    assert not tables.beyond_the_talk(study, "ham10000")


def test_the_trials_on_most_images_are_drawn_and_the_used_rates_marked() -> None:
    study = evaluate_study("s", runs())
    assert trials(study, "chest_xray").empty
    assert largest_class_f1(study, "chest_xray") == pytest.approx(1 / 3)
    tuning = pd.DataFrame(
        {
            "dataset": "chest_xray", "fraction": 0.2, "epochs": 5,
            "configuration": ["cnn_random", "imagenet_all", "imagenet_all"],
            "optimizer": ["adam", "adam", "sgd"],
            "learning_rate": [1e-4, 1e-4, 1e-3], "val_macro_f1": [1 / 3, 0.9, 0.8],
        }
    )  # fmt: skip
    tried = dataclasses.replace(study, tuning=tuning)
    assert "The learning rates that were tried" in build_page([tried])
    shown = trials(tried, "chest_xray")
    assert shown.used.tolist() == [True, True, False]  # what the fits have
    adam, sgd = figures.rates(shown, 1 / 3, "t").axes
    assert (adam.get_title(), sgd.get_title()) == (
        "adam, 20% of the images, 5 epochs",
        "sgd, 20% of the images, 5 epochs",
    )
    rings = [
        [np.size(line.get_xdata()) for line in axes.lines if line.get_fillstyle() == "none"] for axes in (adam, sgd)
    ]
    assert rings == [[2], [0]]
    # The trial on more images counts.
    more = tuning.iloc[:1].assign(fraction=0.5, val_macro_f1=0.8)
    shown = trials(dataclasses.replace(study, tuning=pd.concat([tuning, more])), "chest_xray")
    assert shown[shown.configuration == "cnn_random"].fraction.tolist() == [0.5]
    # Trials of other settings are not shown; tables of older versions do not say what was searched.
    searched = pd.Series([None, '{"learning_rate": 1e-4, "fraction": 0.2}', '{"dropout": 0.3}'])
    shown = trials(dataclasses.replace(study, tuning=tuning.assign(searched=searched)), "chest_xray")
    assert shown.index.tolist() == [0, 1]
    # A line joins no trials with other data or settings.
    again = pd.concat(
        [tuning.assign(made_from="a"), tuning.iloc[[1, 1]].assign(made_from="b", learning_rate=[1e-4, 1e-3])]
    )
    shown = trials(dataclasses.replace(study, tuning=again), "chest_xray")
    assert shown.configuration.tolist() == ["cnn_random", "imagenet_all", "imagenet_all", *2 * ["imagenet_all (2)"]]


def test_seconds_of_several_machines_are_not_compared() -> None:
    def fit(model: str, seed: int, device: str, seconds: float) -> Run:
        made = run("chest_xray", model, 0.9)
        return dataclasses.replace(made, record={**made.record, "seed": seed, "device": device, "seconds": seconds})

    head = [fit("head", 0, "A", 10), fit("head", 1, "B", 500)]
    assert costs({"head": head, "all": [fit("all", 0, "A", 100)]}, []) == {"head": 10, "all": 100}
    assert costs({"head": head}, head) == {"head": 10}
    assert costs({"head": head, "all": [fit("all", 1, "B", 9), fit("all", 0, "C", 1)]}, []) == {"head": 500, "all": 9}
    assert costs({"head": head, "all": [fit("all", 0, "C", 100)]}, head) == {"head": 255, "all": 100}
    # Another machine may bear the same name.
    assert costs({"head": [*head, fit("head", 2, "A", 90)], "all": [fit("all", 0, "A", 100)]}, head) == {
        "head": 10,
        "all": 100,
    }


def test_a_chain_costs_what_it_begins_from_too() -> None:
    source, chained = (
        run("ham10000", "imagenet_all", 0.9),
        run("chest_xray", "c", 0.9, weights="ham10000/imagenet_all"),
    )
    source.record["seconds"], chained.record["seconds"] = 30.0, 4.0
    assert costs({"c": [chained]}, [source, chained]) == {"c": 34}
    assert costs({"c": [chained]}, [chained]) == {"c": 4}


def test_each_seed_has_a_dot_where_there_are_several() -> None:
    first = run("chest_xray", "imagenet_all", 0.9)
    second = dataclasses.replace(first, record={**first.record, "seed": 1})
    study = evaluate_study("s", [first, second, run("chest_xray", "imagenet_head", 0.8, trainable="head")])
    ((_, figure),) = FIGURES["scores"](study, "chest_xray")
    (dots,) = [line for line in figure.axes[0].lines if line.get_label() == "each training run"]
    f1 = study.tables.results[
        (study.tables.results["class"] == MACRO) & (study.tables.results.model == "imagenet_all")
    ].f1.item()
    assert np.asarray(dots.get_xdata()) == pytest.approx(np.array([f1, f1]))  # one fit twice
    alone = evaluate_study("s", [first])
    ((_, figure),) = FIGURES["scores"](alone, "chest_xray")
    assert "each training run" not in [line.get_label() for line in figure.axes[0].lines]


def test_the_modern_recipe_comes_first_among_the_recipes() -> None:
    fits = [
        *runs(),
        run("chest_xray", "caffe", 0.9, scaling="caffe"),
        run("chest_xray", "modern", 0.9, recipe="modern"),
    ]
    found = dict(tables.beyond_the_talk(evaluate_study("s", fits), "chest_xray"))["recipes"]
    assert found.change.tolist() == ["the modern recipe", "scaling: caffe"]


def test_models_that_are_none_of_the_talks_make_a_page_alone() -> None:
    fits = [run("chest_xray", "caffe", 0.9, scaling="caffe"), run("chest_xray", "weighted", 0.8, balance="sampling")]
    study = evaluate_study("s", fits)
    assert list(tables.pivot(study.tables.results, "chest_xray").columns) == ["caffe", "weighted"]
    assert "weighted" in tables.markdown(study)
    assert "caffe" in build_page([study])
    overview(study)


def test_a_merge_conflict_in_results_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    header, told = "dataset,model,f1\n", r"results.csv: has a merge conflict; take either side .* then run `dvc repro`"
    for before, inside in ((header, ""), ("", header)):
        path.write_text(f"{before}<<<<<<< HEAD\n{inside}a,b,0.1\n=======\n{inside}a,b,0.2\n>>>>>>> theirs\n")
        with pytest.raises(UserError, match=told):
            read_result(path)
