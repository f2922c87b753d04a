"""Questions that several configurations answer together: the right runs are compared, and the numbers are theirs."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from medtransfer.analysis.agreement import WAYS, agree
from medtransfer.analysis.differences import Comparison, find_pair
from medtransfer.analysis.families import LATTICE, RECIPES, SIZES, TALK, WEIGHTS, family, family_of_pair
from medtransfer.analysis.questions import block_counts, data_sizes, recipe_changes
from medtransfer.analysis.runs import Run
from medtransfer.core.params import BLOCKS, Configuration, Params
from medtransfer.metrics.scores import MACRO
from studies import layer_tables

NOTHING = pd.DataFrame()


def pair_of(first: str, second: str, difference: float) -> Comparison:
    return Comparison(
        "ham10000", "talk", first, second, difference,
        groups=100, groups_sd=0.05, first_seeds=1, second_seeds=1, first_sd=np.nan, second_sd=np.nan,
    )  # fmt: skip


def fit(params: Params, model: str, *, right: int = 1, **configuration: object) -> Run:
    """A run of which the record counts, and how many of its four answers are right."""
    chosen = Configuration.model_validate({"weights": "imagenet", "trainable": "all", **configuration})
    record = {
        "dataset": "ham10000", "model": model, "seed": 0, "kind": "network",
        "training_images": int(1000 * (chosen.fraction or 1)),
        "hyperparameters": {
            "train": chosen.settings(params.train, "ham10000").model_dump(),
            "configuration": chosen.model_dump(exclude_none=True),
        },
    }  # fmt: skip
    answers = pd.DataFrame({"group": list("abcd"), "label": ["mel", "mel", "nv", "nv"], "p_mel": [1.0, 1.0, 0.0, 0.0]})
    answers.loc[right:, "p_mel"] = 1 - answers.p_mel
    return Run(record, answers.assign(p_nv=1 - answers.p_mel), NOTHING)


def scores(runs: list[Run]) -> pd.DataFrame:
    """What `f1_table` returns, with another number for each model."""
    rows = [
        {
            "dataset": run.dataset,
            "model": run.model,
            "class": name,
            "f1": number / 10,
            "low": 0.0,
            "high": 1.0,
            "interval": "groups",
            "seeds": 1,
        }
        for number, run in enumerate(runs)
        for name in ("nv", MACRO)
    ]
    return pd.DataFrame(rows)


def baseline() -> Run:
    return Run({"dataset": "ham10000", "model": "random_forest", "seed": 0, "kind": "baseline"}, NOTHING, None)


def test_blocks_are_counted_from_either_end(params: Params) -> None:
    runs = [
        baseline(),
        fit(params, "all"),
        fit(params, "head", trainable="head"),
        fit(params, "first", trainable=["block1"], learning_rate=1e-3),
        fit(params, "last_two", trainable=["block5", "block4"]),
        fit(params, "first_last", trainable=["block1", "block5"]),
        fit(params, "random", weights="random"),
        fit(params, "caffe", scaling="caffe"),
        fit(params, "few", fraction=0.1),
        fit(params, "sgd_first", trainable=["block1"], optimizer="sgd"),
    ]
    table = block_counts(runs, scores(runs)).set_index(["start", "blocks"])
    assert table.model.to_dict() == {
        ("first", 5): "all", ("last", 5): "all", ("first", 0): "head", ("last", 0): "head",
        ("first", 1): "first", ("last", 2): "last_two",
    }  # fmt: skip
    assert table.f1["last", 2] == pytest.approx(0.4)


def test_data_sizes_are_those_of_whole_networks_with_the_common_recipe(params: Params) -> None:
    runs = [
        baseline(),
        fit(params, "all"),
        fit(params, "all_10", fraction=0.1),
        fit(params, "random_10", weights="random", fraction=0.1),
        fit(params, "weighted_10", fraction=0.1, balance="class_weights"),
        fit(params, "caffe", scaling="caffe"),
        fit(params, "head_10", fraction=0.1, trainable="head"),
        fit(params, "chain_10", fraction=0.1, weights="ham10000/all"),
    ]
    table = data_sizes(runs, scores(runs)).set_index("model")
    assert table.images.to_dict() == {"all": 1000, "all_10": 100, "random_10": 100}
    assert table.weights.to_dict() == {"all": "imagenet", "all_10": "imagenet", "random_10": "random"}
    assert table.f1["random_10"] == pytest.approx(0.3)


def test_a_recipe_is_compared_with_the_nearest_one_that_it_extends(params: Params) -> None:
    runs = [
        baseline(),
        fit(params, "all"),
        fit(params, "head", trainable="head"),
        fit(params, "caffe", scaling="caffe"),
        fit(params, "weighted", balance="class_weights", learning_rate=3e-5, right=3),
        fit(params, "both", balance="sampling", scaling="caffe"),
        fit(params, "few", fraction=0.1),
        fit(params, "head_sgd", trainable="head", optimizer="sgd"),
        fit(params, "two", label_smoothing=0.1, epochs=16),
    ]
    names = [run.model for run in runs]
    pairs = [pair_of(one, two, 0.2) for one in names for two in names if one < two]
    table = recipe_changes(runs, pairs).set_index("model")
    assert table.base.to_dict() == {
        "caffe": "all",
        "weighted": "all",
        "both": "caffe",
        "head_sgd": "head",
        "two": "all",
    }
    assert table["change"].to_dict() == {
        "caffe": "scaling: caffe", "weighted": "balance: class_weights", "both": "balance: sampling",
        "head_sgd": "optimizer: sgd", "two": "epochs: 16; label_smoothing: 0.1",
    }  # fmt: skip
    assert table.difference["weighted"] == -0.2  # the pair has `all` first
    assert table.low["weighted"] < -0.2 < table.high["weighted"] < 0
    assert table.micro.to_dict() == {"caffe": 0.0, "weighted": 0.5, "both": 0.0, "head_sgd": 0.0, "two": 0.0}
    assert find_pair(pairs, "ham10000", "all", "nothing") is None
    same = find_pair([pair_of("all", "weighted", 0.0)], "ham10000", "weighted", "all")
    assert same is not None
    assert f"{same.difference:+.1f}" == "+0.0"


def test_each_pair_answers_one_question_or_none(params: Params) -> None:
    runs = {
        "tree": baseline(),
        "random": fit(params, "random", weights="random"),
        "all": fit(params, "all"),
        "first": fit(params, "first", trainable=["block1"]),
        "chain": fit(params, "chain", weights="ham10000/imagenet_all"),
        "other_chain": fit(params, "other_chain", weights="ham10000/cnn_random"),
        "random_last": fit(params, "random_last", weights="random", trainable=["block5"]),
        "last": fit(params, "last", trainable=["block5"]),
        "last_two": fit(params, "last_two", trainable=["block4", "block5"]),
        "first_two": fit(params, "first_two", trainable=["block1", "block2"]),
        "caffe": fit(params, "caffe", scaling="caffe"),
        "both": fit(params, "both", scaling="caffe", balance="sampling"),
        "modern": fit(params, "modern", recipe="modern"),
        "modern_random": fit(params, "modern_random", recipe="modern", weights="random", epochs=48, patience=48),
        "modern_plain": fit(params, "modern_plain", recipe="modern", augment={}),
        "longer": fit(params, "longer", epochs=120),
        "all_10": fit(params, "all_10", fraction=0.1),
        "random_10": fit(params, "random_10", weights="random", fraction=0.1),
        "random_5": fit(params, "random_5", weights="random", fraction=0.05),
    }
    pairs = {
        frozenset(pair): asked
        for pair in combinations(runs, 2)
        if (asked := family_of_pair(*(runs[name].record for name in pair)))
    }
    talk = ("tree", "random", "all", "first", "last", "chain")
    assert pairs == {
        **{frozenset((one, two)): LATTICE for one in ("all", "first", "last") for two in ("last_two", "first_two")},
        **{frozenset(("other_chain", other)): WEIGHTS for other in ("random", "all", "chain")},
        **{frozenset(pair): TALK for pair in combinations(talk, 2)},
        frozenset(("last_two", "first_two")): LATTICE,
        frozenset(("random_last", "random")): LATTICE,
        frozenset(("random_last", "last")): WEIGHTS,
        frozenset(("all", "caffe")): RECIPES,
        frozenset(("caffe", "both")): RECIPES,
        frozenset(("all", "both")): RECIPES,
        frozenset(("all", "longer")): RECIPES,
        frozenset(("modern", "modern_random")): RECIPES,
        frozenset(("modern", "modern_plain")): RECIPES,
        frozenset(("all", "modern_plain")): RECIPES,
        frozenset(("all", "modern")): RECIPES,
        frozenset(("random", "modern_random")): RECIPES,
        frozenset(("all_10", "random_10")): SIZES,
    }
    assert {family(runs[name].record) for name in talk} == {TALK}
    assert family(runs["both"].record) == RECIPES
    assert {family(runs[name].record) for name in ("other_chain", "random_last")} == {WEIGHTS}


def test_ways_that_agree_and_ways_that_do_not() -> None:
    rising, falling = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]
    values = pd.Series(rising, BLOCKS)
    asked = agree(*layer_tables(dict.fromkeys(WAYS, rising)), values)
    assert list(asked.blocks.columns) == list(WAYS)
    assert asked.concordance == pytest.approx(1)
    assert list(asked.blocks.trained) == rising
    other = agree(*layer_tables(dict.fromkeys(WAYS, rising)), values[::-1].set_axis(BLOCKS))
    assert other.concordance == pytest.approx(0.36)
    same = agree(*layer_tables(dict.fromkeys(WAYS, rising)))
    assert same.concordance == pytest.approx(1)
    np.testing.assert_allclose(same.blocks.to_numpy(), np.repeat(np.array(rising)[:, None], 4, axis=1))
    split = agree(*layer_tables({"rewinding": rising, "outputs": rising, "weights": falling, "probes": falling}))
    assert split.concordance == pytest.approx(0)
    assert split.blocks["weights"].idxmax() == "block1"
    assert split.blocks["rewinding"].idxmax() == "block5"
