"""The report's page: its verdicts follow the numbers, it holds everything it shows, and it reads on any screen."""

import dataclasses
import hashlib
import html
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from medtransfer.analysis.comparison import Run
from ruamel.yaml import YAML

from conftest import ANSWER, PROJECT
from medtransfer.analysis.agreement import WAYS
from medtransfer.analysis.claims import CLAIMS, judge
from medtransfer.analysis.families import LATTICE, RECIPES, SIZES, TALK, family
from medtransfer.analysis.questions import find_pair
from medtransfer.analysis.runs import evaluate_runs
from medtransfer.cli import cli
from medtransfer.core.dvc import _digest_of, file_digests
from medtransfer.core.errors import UserError
from medtransfer.core.files import write_json
from medtransfer.core.params import Configuration, read_params
from medtransfer.metrics.scores import MACRO, MICRO
from medtransfer.pipeline.outputs import LEAK
from medtransfer.report import figures, tables
from medtransfer.report.answers import answers
from medtransfer.report.page import SPLITS, _scores, build_page, overview
from medtransfer.report.study import Layers, Study, costs, largest_class_f1, trials
from medtransfer.study.report import read_study, write_result_tables
from test_questions import EFFECT, layer_tables

# Asked of the browser once the page is there, since --dump-dom prints attributes.
PROBE = """<script>addEventListener("load", () => {
  const images = [...document.images];
  document.body.dataset.images = images.length;
  document.body.dataset.missing = images.filter(image => !image.naturalWidth).length;
  document.body.dataset.wider = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.body.dataset.requests = performance.getEntriesByType("resource")
    .filter(entry => !entry.name.startsWith("data:")).length;
});</script>"""


# What `prepare` keeps of each image, here only what tells who is in two splits.
SAMPLES = "id,group,split a,p,test b,p,test c,q,test d,p,train e,p,train f,q,left g,p,validation".replace(" ", "\n")
TRAIN = read_params(PROJECT / "params.yaml").train


def run(dataset: str, model: str, right: float, images: int = 200, **own: object) -> Run:
    """A run that is right about a share of the images; `own` is what its configuration says."""
    configuration = Configuration.model_validate({"weights": "imagenet", "trainable": "all", **own})
    classes = ["NORMAL", "PNEUMONIA"]
    codes = np.arange(images) % 2
    told = np.where(np.random.default_rng(len(model)).random(images) < right, codes, 1 - codes)
    frame = pd.DataFrame({"id": map(str, range(images)), "group": [str(i // 2) for i in range(images)]})
    frame = frame.assign(split="test", label=[classes[code] for code in codes])
    for number, name in enumerate(classes):
        frame[f"p_{name}"] = np.where(told == number, 0.9, 0.1)
    record = {
        "dataset": dataset, "model": model, "seed": 0, "synthetic": False, "image_size": 32, "split_by": "group",
        "data_version": "abc.dir", "precision": "float32", "backend": "tensorflow", "device": "CPU", "seconds": 2.0,
        "git_commit": "0123456789", "epochs": 2, "best_epoch": 1, "kind": "network",
        "training_images": int(100 * (configuration.fraction or 1)),
        "hyperparameters": {
            "train": configuration.recipe(TRAIN, dataset).model_dump(),
            "configuration": configuration.model_dump(exclude_none=True),
        },
    }  # fmt: skip
    history = pd.DataFrame({"epoch": [1, 2], "val_loss": [0.5, 0.6]})
    return Run(record, frame, history, frame.assign(split="validation"))


def runs(random: float = 0.7, imagenet: float = 0.95) -> list[Run]:
    return [run("chest_xray", "cnn_random", random), run("chest_xray", "imagenet_all", imagenet)]


def evaluate_study(name: str, runs: list[Run]) -> Study:
    return Study(name, runs, *evaluate_runs(runs))


def test_a_claim_holds_falls_or_stays_open_as_the_numbers_say() -> None:
    found = {}
    for name, values in {"holds": (0.6, 0.95), "falls": (0.95, 0.6), "open": (0.8, 0.8)}.items():
        study = evaluate_study("s", runs(*values))
        row = study.claims.set_index("better").loc["imagenet_all"]
        found[name] = row["verdict"]
        first, second = (1, 0) if values[0] < values[1] else (0, 1)
        assert np.sign(row["difference"]) == np.sign(first - second) or name == "open"
        assert row["low"] <= row["difference"] <= row["high"]
    assert found == {"holds": "holds", "falls": "does not hold", "open": "not settled"}


def test_a_claim_is_decided_whichever_model_comes_first_in_its_pair() -> None:
    pair = {**EFFECT, "dataset": "chest_xray", "p": 0.001, "p_corrected": 0.002}
    forward = judge(pd.DataFrame([{**pair, "first": "imagenet_all", "second": "cnn_random"}]))
    backward = judge(pd.DataFrame([{**pair, "first": "cnn_random", "second": "imagenet_all"}]))
    assert list(forward.verdict) == ["holds"]
    assert list(backward.verdict) == ["does not hold"]
    assert backward[["difference", "low", "high"]].iloc[0].tolist() == [-0.2, -0.3, -0.1]


@pytest.mark.parametrize(
    ("random", "imagenet", "seeds", "verdict"),
    [(0.6, 0.95, 2, "higher"), (0.95, 0.6, 2, "lower"), (0.8, 0.8, 2, "not shown"), (0.6, 0.95, 1, "not shown")],
)
def test_a_verdict_follows_the_numbers_and_needs_a_second_seed(
    random: float, imagenet: float, seeds: int, verdict: str
) -> None:
    fits = runs(random, imagenet)
    study = evaluate_study("s", [*fits, *same_again(fits)] if seeds == 2 else fits)
    told = answers(study)
    assert told.index.tolist() == ["ImageNet weights instead of random weights"]
    assert told.verdict.tolist() == [f"**{verdict}**"]
    assert told.seeds.tolist() == [str(seeds)]
    assert f"<strong>{verdict}</strong>" in build_page([study])


def test_the_committed_results_give_the_verdicts_of_the_readme() -> None:
    verdicts = answers(read_study(PROJECT / ANSWER)).groupby("change", sort=False).verdict.agg(list)
    assert verdicts.to_dict() == {
        "ImageNet weights instead of random weights": ["**higher**", "**higher**"],
        "train the last block instead of the first": ["**not shown**", "**not shown**"],
        "train the first and last blocks instead of all": ["**not shown**", "**not shown**"],
        "train the last block instead of all": ["**not shown**", "**not shown**"],
        "train the head alone instead of all": ["**not shown**", "**lower**"],
    }


def test_nothing_is_clear_of_which_one_seed_says_the_opposite() -> None:
    pair = {**EFFECT, "dataset": "chest_xray", "p": 0.001, "p_corrected": 0.002, "seeds": 2}
    names = {"first": "imagenet_all", "second": "cnn_random"}
    for least, verdict in ((0.1, "holds"), (-0.1, "not settled")):
        assert list(judge(pd.DataFrame([{**pair, **names, "least": least, "most": 0.5}])).verdict) == [verdict]
    fits = [*runs(0.6, 0.9), *runs(0.75, 0.7)]
    for fit in fits[2:]:
        fit.record["seed"] = 1
    study = evaluate_study("s", fits)
    found = study.pairs.iloc[0]
    assert found.p_corrected < 0.05
    assert found.least < 0 < found.most
    assert answers(study).verdict.tolist() == ["**not shown**"]


def same_again(fits: list[Run]) -> list[Run]:
    """The fits once more, as if another seed had given the same."""
    return [dataclasses.replace(fit, record={**fit.record, "seed": 1}) for fit in fits]


def test_models_that_are_none_of_the_talks_make_a_page_alone() -> None:
    fits = [run("chest_xray", "caffe", 0.9, scaling="caffe"), run("chest_xray", "weighted", 0.8, balance="sampling")]
    study = evaluate_study("s", fits)
    assert list(tables.pivot(study.table, "chest_xray").columns) == ["caffe", "weighted"]
    assert "weighted" in tables.markdown(study.table, study.summary, study.pairs, study.runs)
    assert "caffe" in build_page([study])
    overview(study.table)


def test_claims_are_corrected_for_their_own_number() -> None:
    pair = {**EFFECT, "dataset": "ham10000", "p": 0.01, "p_corrected": 0.2}
    table = judge(pd.DataFrame([{**pair, "first": "imagenet_all", "second": "cnn_random"}]))
    assert table.p_corrected.tolist() == [0.01]
    assert table.verdict.tolist() == ["holds"]


def found_layers(rising: bool, noise: float = 0.05) -> Layers:
    order = np.linspace(0.1, 0.5, 5) if rising else np.linspace(0.5, 0.1, 5)
    ways = {**dict.fromkeys(WAYS, np.linspace(0.1, 0.5, 5).tolist()), "weights": order.tolist()}
    tables = layer_tables(ways)
    for table in (tables[0], tables[2]):
        table["low"], table["high"] = table.macro_f1 - noise, table.macro_f1 + noise
    return Layers({"dataset": "chest_xray", "model": "imagenet_all", "seed": 0}, *tables)


def test_the_trials_on_most_images_are_drawn_and_the_used_rates_marked() -> None:
    study = evaluate_study("s", runs())
    assert trials(study, "chest_xray") is None
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
    assert shown is not None
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
    assert shown is not None
    assert shown[shown.configuration == "cnn_random"].fraction.tolist() == [0.5]


def test_what_only_a_larger_study_can_answer_is_drawn() -> None:
    fits = [
        run("chest_xray", "imagenet_all", 0.9),
        run("chest_xray", "imagenet_last_block", 0.9, trainable=["block5"]),
        run("chest_xray", "imagenet_head", 0.8, trainable="head"),
        run("chest_xray", "imagenet_all_caffe", 0.9, scaling="caffe"),
        run("chest_xray", "imagenet_all_10", 0.7, fraction=0.1),
    ]
    small = build_page([evaluate_study("s", fits)])
    assert "How many blocks to train" in small
    assert "When transfer pays" not in small
    assert "scaling: caffe" in small
    large = build_page([evaluate_study("s", [*fits, run("chest_xray", "imagenet_all_5", 0.6, fraction=0.05)])])
    assert "When transfer pays" in large


def test_the_page_says_what_else_a_reader_has_to_know() -> None:
    study = dataclasses.replace(evaluate_study("s", runs(0.6, 0.95)), notes=["Two machines & one clock."])
    page = build_page([study])
    assert "<li>Two machines &amp; one clock.</li>" in page
    assert "NORMAL: no finding; PNEUMONIA: bacterial or viral pneumonia." in page
    assert re.search(r"at most \d+ epochs, ended after \d+ without a lower validation loss \(none of 2 fits", page)
    assert "holds, one fit" in page  # a seed cannot say the opposite where there is one
    again = evaluate_study("s", [*study.runs, *same_again(study.runs)])
    assert "holds, one fit" not in build_page([again])
    assert "What to know of these runs" not in build_page([again])


def test_an_interval_near_0_has_a_third_decimal() -> None:
    near, far = {"difference": 0.007, "low": -0.0004, "high": 0.015}, {"difference": 0.1, "low": 0.049, "high": 0.15}
    assert tables.spanned(near, "difference", "low", "high") == ["+0.007", "-0.000", "+0.015"]
    assert tables.spanned(far, "difference", "low", "high") == ["+0.10", "+0.05", "+0.15"]


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
    (_, figure), *_ = _scores(study, "chest_xray")
    (dots,) = [line for line in figure.axes[0].lines if line.get_label() == "each seed of ours"]
    f1 = study.table[(study.table["class"] == MACRO) & (study.table.model == "imagenet_all")].f1.item()
    assert np.asarray(dots.get_xdata()) == pytest.approx(np.array([f1, f1]))  # one fit twice
    alone = evaluate_study("s", [first])
    assert "each seed of ours" not in [line.get_label() for line in _scores(alone, "chest_xray")[0][1].axes[0].lines]


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
    of_the_talk = large.pairs[large.pairs.family == TALK].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_the_talk, small.pairs)
    pd.testing.assert_frame_equal(answers(large), answers(small))
    for shown in (tables.pivot, lambda table, dataset: tables.differences(large.pairs, dataset)):
        assert not {"all_caffe", "all_10", "last_two"} & set(shown(large.table, "chest_xray").columns)
    assert set(tables.measures(large.summary, "chest_xray").index) == {run.model for run in fits}
    beyond = dict(tables.beyond_the_talk(large.table, large.summary, large.pairs, large.runs, "chest_xray"))
    assert [list(frame.index) for frame in beyond.values()] == [
        [run.model for run in added], ["all_caffe"], ["10 (10%)", "100 (100%)"], ["imagenet_all", "imagenet_head"],
    ]  # fmt: skip
    assert tables.beyond_the_talk(small.table, small.summary, small.pairs, small.runs, "chest_xray") == []


README_ROWS = {
    "ImageNet weights instead of random weights": ("imagenet_all", "cnn_random", "{difference} [{low}, {high}]"),
    "&nbsp;&nbsp;lowest and highest of three seeds": ("imagenet_all", "cnn_random", "{least} to {most}"),
    "train the last block instead of the first": (
        "imagenet_last_block", "imagenet_first_block", "{difference} [{low}, {high}]",
    ),
    "train the last block instead of all blocks": (
        "imagenet_last_block", "imagenet_all", "{difference} [{low}, {high}]",
    ),
}  # fmt: skip


def test_the_readme_says_what_the_committed_results_say() -> None:
    """Each cell of its table is a comparison of the committed runs, and its verdicts follow from the cells."""
    answered = (PROJECT / "README.md").read_text().partition("## The answer so far")[2].partition("## Start")[0]
    pairs = pd.read_csv(PROJECT / ANSWER / "differences.csv")
    for said, (first, second, shape) in README_ROWS.items():
        asked = [find_pair(pairs, dataset, first, second) for dataset in ("ham10000", "chest_xray")]
        found = [pair for pair in asked if pair]
        assert len(found) == 2
        cells = []
        for pair in found:
            assert pair["seeds"] == 3
            cells.append(shape.format(**{key: f"{value:+.3f}" for key, value in pair.items()}))
        assert f"| {said} | {' | '.join(cells)} |" in answered
        if second == "cnn_random":
            assert all(pair["least"] > 0 for pair in found), "Does transfer help? In every seed"
        else:
            assert all(pair["low"] < 0 < pair["high"] for pair in found), "not shown"
    assert answered.count("\n| ") == 1 + len(README_ROWS) + 1


def test_the_leak_of_each_class_is_shown() -> None:
    study = evaluate_study("s", runs())
    same = {"dataset": "chest_xray", "model": "m", "class": MICRO, "seeds": 1}
    macro = {**same, "class": MACRO, "images": "all"}
    leak = pd.DataFrame(
        [
            {**macro, "difference": 0.02, "low": -0.06, "high": 0.08},
            {**macro, "model": "worse", "difference": -0.2, "low": -0.3, "high": -0.1},
            {**same, "images": "shared", "difference": 0.04, "low": 0.01, "high": 0.07},
            {**same, "images": "others", "difference": 0.0, "low": -0.01, "high": 0.01},
        ]
    )
    page = build_page([dataclasses.replace(study, leak=leak)])
    assert "How much the leak flatters each class: F1 with images of the test images&#39; patients in" in page


def test_the_lattice_of_trained_blocks_is_one_of_the_ways() -> None:
    names = [f"block{number}" for number in range(1, 6)]
    prefixes = [
        run("chest_xray", f"first_{count}", 0.5 + 0.09 * count, trainable=names[:count]) for count in range(1, 5)
    ]
    fits = [
        run("chest_xray", "imagenet_all", 0.95),
        run("chest_xray", "imagenet_head", 0.5, trainable="head"),
        *prefixes,
    ]
    study = dataclasses.replace(evaluate_study("s", fits), layers=[found_layers(rising=True)])
    page = build_page([study])
    assert "macro F1 added by training it" in page
    other = found_layers(rising=True)
    other.record["model"] = "first_4"  # the lattice is of networks from ImageNet weights, not of this one
    assert "macro F1 added by training it" not in build_page([dataclasses.replace(study, layers=[other])])


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
    beyond = tables.beyond_the_talk(study.table, study.summary, study.pairs, study.runs, "chest_xray")
    ((text, table),) = [(text, table) for text, table in beyond if text.startswith("Chains")]
    assert text.endswith("One seed alone: cnn_random, ham10000_random, ham10000_all.")
    assert dict(zip(table.index, table.model, strict=True)) == {
        "random → chest_xray": "cnn_random",
        "imagenet → chest_xray": "imagenet_all",
        "random → ham10000 → chest_xray": "ham10000_random",
        "imagenet → ham10000 → chest_xray": "ham10000_all",
    }
    f1 = study.table[(study.table["class"] == MACRO) & (study.table.dataset == "chest_xray")].set_index("model").f1
    row = table.loc["imagenet → ham10000 → chest_xray"]
    for start, model in (("random", "cnn_random"), ("imagenet", "imagenet_all")):
        assert row[f"less {start}"].startswith(f"{f1['ham10000_all'] - f1[model]:+.2f}\n[")
    assert row["p, random"] == "< .001"
    assert list(table.loc["random → chest_xray", ["less random", "p, random"]]) == ["-", "-"]
    assert "p, imagenet" in build_page([study])
    assert not tables.beyond_the_talk(study.table, study.summary, study.pairs, study.runs, "ham10000")


def test_the_committed_tables_are_what_the_code_gives(tmp_path: Path) -> None:
    """One folder, the smallest; that the others are of this code too, the next test says."""
    source = PROJECT / "results" / "leak-remove"
    shutil.copytree(source / "runs", tmp_path / "runs")
    shutil.copy(source / "params.yaml", tmp_path)
    write_result_tables(tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert set(made) > {"results.csv", "summary.csv", "differences.csv", "claims.csv", "results.md", "scores.png"}
    assert made == {name: (source / name).read_bytes() for name in made}


def test_the_lock_of_the_results_names_the_files_here() -> None:
    """DVC computes the tables anew only where someone asks it; this notices that what they are made of has changed."""
    stages, lock = (
        YAML(typ="safe").load((PROJECT / "results" / name).read_text())["stages"] for name in ("dvc.yaml", "dvc.lock")
    )
    expected = {"leak": stages["leak"]["deps"]}
    for study in stages["tables"]["matrix"]["study"]:
        expected[f"tables@{study}"] = [path.replace("${item.study}", study) for path in stages["tables"]["deps"]]
    assert {name: [entry["path"] for entry in stage["deps"]] for name, stage in lock.items()} == expected
    for stage in lock.values():
        for entry in (*stage["deps"], *stage["outs"]):
            assert dvc_hash(PROJECT / entry["path"]) == entry["md5"], (
                f"{entry['path']}: run `dvc repro results/dvc.yaml`"
            )


def dvc_hash(path: Path) -> str:
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()
    return _digest_of({name: md5 for name, md5 in file_digests(path).items() if "__pycache__" not in name})


def test_every_further_configuration_can_stand_beside_the_committed_ones() -> None:
    ours = read_params(PROJECT / ANSWER / "params.yaml")
    more = read_params(PROJECT / "results" / "params-extra.yaml")
    assert (more.train, more.datasets) == (ours.train, ours.datasets)
    assert set(more.seeds) <= set(ours.seeds)
    for name in set(more.configurations) & set(ours.configurations):  # collected by now
        assert more.configurations[name] == ours.configurations[name], name
    records = {
        name: {"kind": "network", "hyperparameters": {"configuration": found.model_dump(exclude_none=True)}}
        for name, found in more.configurations.items()
    }
    assert Counter(map(family, records.values())) == {RECIPES: 10, SIZES: 8, LATTICE: 6}
    assert set(more.study["ham10000"].train) == set(more.configurations)
    # As results/README.md says: the rates of the whole network or the last block, for the head its own, and for SGD
    # the one that collapsed.
    tuning = pd.read_csv(PROJECT / ANSWER / "tuning.csv").query("fraction == 1")
    best = tuning.loc[tuning.groupby(["configuration", "dataset"]).val_loss.idxmin()]
    for name, found in more.configurations.items():
        whole = "cnn_random" if found.weights == "random" else "imagenet_all"
        rates = ours.configurations["imagenet_last_block" if "last_block" in name else whole].learning_rate
        own = best[best.configuration == name]
        expected = dict(zip(own.dataset, own.learning_rate, strict=True)) if len(own) else rates
        assert found.learning_rate == (expected if found.optimizer is None else 1e-4), name


def test_every_way_of_splitting_is_put_into_words() -> None:
    assert set(SPLITS) == {"group", *(f"image{leak}" for leak in LEAK.values())}
    assert f"split by group ({SPLITS['group']})" in build_page([evaluate_study("s", runs())])


def test_make_report_lets_the_answering_folder_answer(tmp_path: Path) -> None:
    (tmp_path / "requirements").mkdir()
    for file in ("Makefile", "pyproject.toml", "requirements/lock.txt"):
        shutil.copy(PROJECT / file, tmp_path / file)
    for folder in (ANSWER, "results/leak-match", "results/real-224px-by-group"):
        (tmp_path / folder / "runs").mkdir(parents=True)
    printed = subprocess.run(["make", "--dry-run", "report"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"medtransfer report {ANSWER} results/leak-match results/real-224px-by-group\n" in printed.stdout


def test_every_claim_is_about_models_of_the_study(params) -> None:  # type: ignore[no-untyped-def]
    known = {
        (dataset, model)
        for dataset, study in params.study.items()
        for model in (*params.baselines, *study.train, *study.transfer)
    }
    assert {(claim.dataset, model) for claim in CLAIMS for model in (claim.better, claim.worse)} <= known


def test_the_page_is_one_file_with_an_alternative_text_for_each_picture() -> None:
    class Reader(HTMLParser):
        pictures: list[dict[str, str | None]] = []  # noqa: RUF012
        links: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            if tag == "img":
                self.pictures.append(given)
            self.links += [str(given[key]) for key in ("src", "href") if key in given]

    reader = Reader()
    reader.feed(build_page([evaluate_study("first", runs()), evaluate_study("second", runs())]))
    assert len(reader.pictures) == 1 + 2 * 4  # in front, and of each study
    assert all(len(picture["alt"] or "") > 20 for picture in reader.pictures)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in reader.links)


def test_names_of_the_data_cannot_put_markup_into_the_page() -> None:
    named = [run("<script>x</script>", "cnn_random", 0.7), run("<script>x</script>", "imagenet_all", 0.9)]
    page = build_page([evaluate_study("s", named)])
    assert "<script" not in page
    assert html.escape("<script>x</script>") in page


def test_what_is_said_of_the_talks_data_is_not_said_of_ones_own() -> None:
    named = [run("mine", "cnn_random", 0.7), run("mine", "imagenet_all", 0.9)]
    entry = {"title": "My scans", "group": "person", "licence": "CC0", "citation": "Us, 2026"}
    own = dataclasses.replace(evaluate_study("s", named), own={"mine": entry, "unused": {**entry, "title": "No scans"}})
    words = ("HAM10000", "Chest X-Ray", "Guangzhou", "patients", "talk&#39;s in brackets", "224 px")
    page, both = build_page([own]), build_page([own, evaluate_study("first", runs())])
    assert [word for word in words if word in page] == []
    assert "licence CC0, citation Us, 2026; a group is a person" in page
    assert "No scans" not in page
    assert [word for word in words if word not in both] == ["HAM10000"]
    assert "My scans and chest X-rays" in both
    assert "CC0" not in build_page([evaluate_study("first", runs())])


def test_text_and_ground_differ_enough_in_light_and_dark() -> None:
    style = (PROJECT / "src/medtransfer/report/templates/page.html.j2").read_text()
    blocks = re.findall(r":root \{([^}]*)\}", style)
    assert len(blocks) == 2
    for block in blocks:
        color = dict(re.findall(r"--(\w+): (#\w+)", block))
        for text in ("text", "accent", "warn"):
            for ground in ("paper", "soft"):
                assert contrast(color[text], color[ground]) >= 4.5, (text, ground)  # WCAG 2.1, level AA


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours (WCAG 2.1)."""

    def luminance(color: str) -> float:
        digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
        parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.fixture(scope="module")
def real_page() -> str:
    """The page of the committed results."""
    return build_page([read_study(PROJECT / ANSWER)])


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_every_picture_and_nothing_wider_than_the_screen(
    width: int, real_page: str, tmp_path: Path
) -> None:
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("Chromium is not installed (Debian's package: chromium)")
    pictures = str(real_page.count("<img "))
    page = real_page.replace("</body>", PROBE + "</body>")
    (tmp_path / "page.html").write_text(page)
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--enable-logging=stderr", f"--window-size={width},900",
        f"--user-data-dir={tmp_path / 'user'}", "--dump-dom", f"file://{tmp_path / 'page.html'}",
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = dict(re.findall(r'data-(images|missing|wider|requests)="(-?\d+)"', shown.stdout))
    assert found == {"images": pictures, "missing": "0", "wider": "0", "requests": "0"}
    assert "CONSOLE" not in shown.stderr, shown.stderr[-2000:]


def test_results_are_collected_and_reported_without_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = PROJECT / "results" / "leak-match"
    shutil.copytree(source / "runs" / "chest_xray", tmp_path / "artifacts" / "runs" / "chest_xray")
    (tmp_path / "artifacts" / "prepared" / "chest_xray").mkdir(parents=True)
    record = tmp_path / "artifacts" / "runs" / "chest_xray" / "dataset.json"
    record.rename(tmp_path / "artifacts" / "prepared" / "chest_xray" / "dataset.json")
    (tmp_path / "artifacts" / "prepared" / "chest_xray" / "samples.csv").write_text(SAMPLES)
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
    assert "results/mine/results.csv: not found; run `medtransfer tables results/mine`" in str(early.exception)
    assert not Path("page.html").exists()
    assert CliRunner().invoke(cli, ["tables", "results/mine"]).exit_code == 0
    written = CliRunner().invoke(cli, ["report", "results/mine", "--output", "page.html"])
    assert written.exit_code == 0, written.output
    assert "imagenet_head" in Path("page.html").read_text()
    ours, theirs = pd.read_csv("results/mine/results.csv"), pd.read_csv(source / "results.csv")
    assert Path("results/mine/scores.png").stat().st_size > 1000
    committed = theirs[theirs.dataset == "chest_xray"].reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, committed, check_dtype=False)


def test_tables_and_layers_of_other_fits_are_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(PROJECT / ANSWER, folder)
    assert len(read_study(folder).layers) > 0
    for command, seed in (("layers", 1), ("gradcam", 0)):
        asked = folder / f"{command}/chest_xray/imagenet_all-seed{seed}/{command}.json"
        text = asked.read_text()
        asked.write_text(re.sub(r'"fit": "\w+"', '"fit": "another"', text))
        told = rf"{command}\.json: of the fit another, .* {command} chest_xray imagenet_all --seed {seed}"
        with pytest.raises(UserError, match=told):
            read_study(folder)
        asked.write_text(text)
    answers = folder / "runs/chest_xray/imagenet_all-seed0/predictions.csv"
    text = answers.read_text()
    shutil.copy(folder / "runs/chest_xray/imagenet_head-seed0/predictions.csv", answers)
    with pytest.raises(UserError, match=r"results\.csv: not of the models and seeds whose runs lie beside it"):
        read_study(folder)
    answers.write_text(text)
    add_seed(folder / "runs/chest_xray/imagenet_all-seed0", 9)
    with pytest.raises(UserError, match=r"results\.csv: not of the models and seeds whose runs lie beside it"):
        read_study(folder)


def add_seed(fit: Path, seed: int) -> Path:
    """Put a copy of a fit beside it, as if another seed had given the same."""
    target = fit.with_name(fit.name.replace("seed0", f"seed{seed}"))
    shutil.copytree(fit, target)
    record = json.loads((target / "run.json").read_text())
    write_json(target / "run.json", {**record, "seed": seed, "fit": f"{record['fit']}{seed}"})
    return target


def finished_study(folder: Path, seed: int, models: list[str]) -> None:
    """Lay a study out as its stages leave it, of fits of the committed results."""
    source = PROJECT / ANSWER
    for model in models:
        fit = folder / "artifacts/runs/chest_xray" / f"{model}-seed0"
        shutil.copytree(source / "runs/chest_xray" / fit.name, fit)
        if seed:
            add_seed(fit, seed)
            shutil.rmtree(fit)
    (folder / "artifacts/prepared/chest_xray").mkdir(parents=True)
    shutil.copy(source / "runs/chest_xray/dataset.json", folder / "artifacts/prepared/chest_xray")
    (folder / "artifacts/prepared/chest_xray/samples.csv").write_text(SAMPLES)
    text = (source / "params.yaml").read_text().replace("seeds: [0, 1, 2]", f"seeds: [{seed}]")
    (folder / "params.yaml").write_text(text)
    shutil.copy(source / "data-version.yaml", folder / "data.dvc")
    tuning = pd.read_csv(source / "tuning.csv", dtype=str).iloc[seed : seed + 2]
    tuning.to_csv(folder / "artifacts/tuning.csv", index=False)


def test_which_test_images_share_a_group_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished_study(tmp_path, 0, ["decision_tree"])
    assert CliRunner().invoke(cli, ["collect", "mine"]).exit_code == 0
    told = Path("results/mine/runs/chest_xray/shared.csv").read_text().split()
    assert told == ["id,split", "a,train", "a,validation", "b,train", "b,validation"]


def test_another_seed_is_added_to_what_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished_study(tmp_path, 0, ["cnn_random", "imagenet_all", "decision_tree"])
    layers = "layers/chest_xray/imagenet_all-seed1"
    shutil.copytree(PROJECT / ANSWER / layers, Path("artifacts") / layers)
    missing = CliRunner().invoke(cli, ["collect", "mine", "--add"])
    assert "results/mine: not found; leave out --add" in str(missing.exception)
    assert CliRunner().invoke(cli, ["collect", "mine"]).exit_code == 0
    Path("results/mine/notes.txt").write_text("Two lines\nof one paragraph.\n\nAnother.\n")
    shutil.rmtree("artifacts")
    finished_study(tmp_path, 1, ["imagenet_all", "imagenet_head", "decision_tree"])
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(
        text.replace("  ham10000_random:", "  more: {weights: random, trainable: head}\n  ham10000_random:")
    )
    added = CliRunner().invoke(cli, ["collect", "mine", "--add"])
    assert added.exit_code == 0, added.output
    found = {path.parent.name for path in Path("results/mine").rglob("run.json")}
    trees = {"decision_tree-seed0", "decision_tree-seed1"}
    assert found == {*trees, "cnn_random-seed0", "imagenet_all-seed0", "imagenet_all-seed1", "imagenet_head-seed1"}
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
    shutil.rmtree("results/mine/layers")  # of another fit
    assert read_study(Path("results/mine")).notes == ["Two lines of one paragraph.", "Another."]


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
    assert "scaling: found caffe, expected talk" in str(refused.exception)
    own["scaling"] = "caffe"  # said by the configuration, it is another family
    write_json(path, record)
    assert CliRunner().invoke(cli, ["collect", "mine", "--add"]).exit_code == 0


@pytest.mark.parametrize("name", ["../../keep", "../keep", "..", ".", "", "/tmp/keep", "a/b", "-x", "mine\n"])
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
        assert f"{name!r}: no name for collected results" in str(refused.exception)
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
    assert "give one of them" in str(both.exception)
    other = CliRunner().invoke(cli, ["collect", "README.md", "--replace"])
    assert "results/README.md: holds no collected results" in str(other.exception)
    assert Path("results/mine/results.md").exists()
    assert CliRunner().invoke(cli, ["collect", "mine", "--replace"]).exit_code == 0
    assert not Path("results/mine/results.md").exists()
    assert Path("results/mine/runs/chest_xray/decision_tree-seed0/run.json").exists()
    assert Path("results/README.md").read_text() == "no folder"


def test_the_leak_is_measured_between_two_folders_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = PROJECT / ANSWER
    params = (source / "params.yaml").read_text()
    for leak in ("match", "remove"):
        shutil.copytree(source / "runs/chest_xray/imagenet_all-seed0", tmp_path / leak / "runs/chest_xray/m-seed0")
        assert params.count("seed: 0}") == 2
        (tmp_path / leak / "params.yaml").write_text(params.replace("seed: 0}", f"seed: 0, leak: {leak}}}"))
    monkeypatch.chdir(tmp_path)
    mixed = CliRunner().invoke(cli, ["leak", "remove", "match"])
    assert "remove/params.yaml: datasets.ham10000.split.leak: found remove, expected match" in str(mixed.exception)
    untold = CliRunner().invoke(cli, ["leak", "match", "remove"])
    assert "match/runs/chest_xray/shared.csv: not found" in str(untold.exception)
    tested = pd.read_csv("match/runs/chest_xray/m-seed0/predictions.csv", dtype=str).query("split == 'test'").id
    pd.DataFrame({"id": tested[:100], "split": "train"}).to_csv("match/runs/chest_xray/shared.csv", index=False)
    assert CliRunner().invoke(cli, ["leak", "match", "remove"]).exit_code == 0
    table = pd.read_csv("match/leak.csv")
    assert (table.difference == 0).all()
    assert CliRunner().invoke(cli, ["tables", "match"]).exit_code == 0
    assert CliRunner().invoke(cli, ["report", "match", "--output", "page.html"]).exit_code == 0
    assert "How much the leak flatters each class" in Path("page.html").read_text()


def test_a_folder_without_results_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, told in ((["report"], "params.yaml: not found"), (["collect", "mine"], "no finished fit")):
        result = CliRunner().invoke(cli, arguments)
        assert told in str(result.exception)
    assert list(tmp_path.iterdir()) == []
