"""Scores, intervals, and the comparison with the talk, from predictions.csv alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from medtransfer.analysis.calibration import believable, fit_temperature, scale
from medtransfer.analysis.comparison import Run, compare, score_intervals
from medtransfer.analysis.confusion import confusion
from medtransfer.analysis.intervals import (
    MEASURES,
    compare_pair,
    correct,
    counts_by_group,
    f1_terms,
    intervals,
    studentized,
    weighted_score,
)
from medtransfer.analysis.leakage import measure_leak
from medtransfer.analysis.published import published_f1
from medtransfer.analysis.summary import SCALED, compare_models, summarise
from medtransfer.core.errors import UserError
from medtransfer.core.predictions import predicted_labels, read_predictions, write_predictions
from medtransfer.metrics.scores import AUC, BRIER, CALIBRATION, MACRO, MICRO, score

CLASSES = ["a", "b", "c"]


def predictions(n: int = 90, seed: int = 0, groups: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    probabilities = rng.dirichlet([0.7] * 3, n) + 0.6 * np.eye(3)[truth]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    table = pd.DataFrame({"id": [f"i{k}" for k in range(n)], "group": rng.integers(0, groups, n).astype(str)})
    table["split"], table["label"] = "test", np.array(CLASSES)[truth]
    return pd.concat([table, pd.DataFrame(probabilities, columns=["p_a", "p_b", "p_c"])], axis=1)


def run(table: pd.DataFrame, **record: Any) -> Run:
    return Run({"dataset": "d", "model": "m", "seed": 0, "synthetic": False, "kind": "baseline", **record}, table, None)


def test_scores_by_hand() -> None:
    table = pd.DataFrame({"id": list("wxyz"), "group": list("wxyz"), "split": "test", "label": ["a", "a", "b", "b"]})
    table[["p_a", "p_b", "p_c"]] = [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]]
    metrics = score(table)
    assert metrics["a"] == pytest.approx(2 / 3)
    assert metrics["b"] == pytest.approx(4 / 5)
    assert metrics["c"] == 0
    assert metrics[MICRO] == pytest.approx(3 / 4)
    assert metrics[MACRO] == pytest.approx((2 / 3 + 4 / 5) / 3)
    assert metrics["balanced accuracy"] == pytest.approx(3 / 4)
    assert (confusion(table) == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]).all()


def test_intervals_hold_the_point_estimate_and_come_back_the_same() -> None:
    table = predictions()
    spans, metrics = intervals([table], seed=1), score(table)
    for name in (*CLASSES, MICRO, MACRO):
        low, high = spans[name]
        assert low <= metrics[name] <= high
        assert low < high
    assert spans == intervals([table], seed=1)


def test_the_bootstrap_statistic_is_the_reported_one() -> None:
    table = predictions()
    names = [*CLASSES, *MEASURES]
    groups = table.group.nunique()
    own = dict(zip(names, weighted_score(table, np.ones((1, groups)))[0], strict=True))
    assert own == pytest.approx(score(table))
    weights = np.random.default_rng(2).integers(0, 4, groups)
    repeated = table.loc[table.index.repeat(weights[pd.factorize(table.group)[0]])]
    drawn = dict(zip(names, weighted_score(table, weights[None])[0], strict=True))
    assert drawn == pytest.approx(score(repeated))


def test_probabilities_are_scored_as_by_hand() -> None:
    table = pd.DataFrame({"id": list("wxyz"), "group": list("wxyz"), "split": "test", "label": ["a", "a", "b", "b"]})
    table[["p_a", "p_b"]] = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]]
    metrics = score(table)
    assert metrics[AUC] == 1
    assert metrics[BRIER] == pytest.approx((0.1**2 + 0.6**2 + 0.2**2 + 0.3**2) / 4)
    # .9 right, .6 wrong, .8 right, .7 right, each in a bin of its own
    assert metrics[CALIBRATION] == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)
    alone = score(table[table.label == "a"])
    assert np.isnan(alone[AUC])


def test_a_pair_that_differs_is_told_from_one_that_does_not() -> None:
    better = predictions(n=400, groups=100)
    shuffled = better.assign(**{f"p_{c}": better[f"p_{c}"].sample(frac=1, random_state=1).to_numpy() for c in CLASSES})
    worse = better.assign(
        **shuffled[[f"p_{c}" for c in CLASSES]].div(shuffled[[f"p_{c}" for c in CLASSES]].sum(axis=1), axis=0)
    )
    found = compare_pair([better], [worse], seed=0)
    assert found["difference"] == pytest.approx(score(better)[MACRO] - score(worse)[MACRO])
    assert 0 < found["low"] < found["difference"] < found["high"]
    assert found["p"] < 0.01
    again = compare_pair([worse], [better], seed=0)
    assert again["difference"] == -found["difference"]
    same = compare_pair([better, worse], [worse, better], seed=0)
    assert same["difference"] == pytest.approx(0)
    assert same["p"] > 0.5
    assert list(correct(np.array([0.01, 0.04, 0.03]))) == pytest.approx([0.03, 0.06, 0.06])


def test_few_large_groups_widen_the_interval() -> None:
    table = predictions(n=300)
    alone, together = table.assign(group=table.id), table.sort_values("p_a").assign(group=np.arange(300) // 60)
    widths = [spans[MICRO][1] - spans[MICRO][0] for spans in (intervals([alone], 0), intervals([together], 0))]
    assert widths[1] > widths[0]


def test_predictions_come_back_to_the_bit(tmp_path: Path) -> None:
    table = predictions()
    probabilities = table[["p_a", "p_b", "p_c"]].to_numpy(np.float32)
    write_predictions(tmp_path / "p.csv", table, probabilities, CLASSES)
    again = read_predictions(tmp_path / "p.csv")
    assert (again[["p_a", "p_b", "p_c"]].to_numpy(np.float32) == probabilities).all()
    assert list(again.label) == list(table.label)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="group"), "column group is missing"),
        (lambda t: t.assign(label=t.label.mask(t.index == 0, "z")), "label z without a probability column"),
        (lambda t: t.assign(p_a=t.p_a + 1), "add up to 1"),
    ],
)
def test_a_foreign_models_mistakes_are_named(tmp_path: Path, change: Any, message: str) -> None:
    change(predictions()).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(UserError, match=message):
        read_predictions(tmp_path / "p.csv")


def test_the_published_tables_are_whole() -> None:
    table = published_f1()
    ham, chest = (table[table.dataset == name] for name in ("ham10000", "chest_xray"))
    assert len(ham) == 7 * 9
    assert len(chest) == 5 * 4
    for _, model in table.groupby(["dataset", "model"]):
        macro = model.set_index("class").published
        # The talk rounds to two digits.
        assert macro.drop(["micro avg", "macro avg"]).mean() == pytest.approx(macro["macro avg"], abs=0.011)


def test_seeds_are_averaged_and_published_values_joined() -> None:
    first = predictions().rename(columns={"p_a": "p_akiec"}).replace({"label": {"a": "akiec"}})
    second = first.assign(p_akiec=first.p_b, p_b=first.p_akiec)
    runs = [run(table, dataset="ham10000", model="imagenet_all", seed=s) for s, table in enumerate((first, second))]
    table = compare(runs, score_intervals(runs)).set_index("class")
    assert score(first)["akiec"] != score(second)["akiec"]
    assert table.f1["akiec"] == pytest.approx((score(first)["akiec"] + score(second)["akiec"]) / 2)
    assert table.published["akiec"] == 0.36
    assert np.isnan(table.published["b"])
    assert table.seeds.eq(2).all()
    assert (table.low <= table.f1).all()
    assert (table.f1 <= table.high).all()


def test_a_leak_is_measured_by_class_on_the_same_images() -> None:
    leaky, clean = predictions(), predictions()
    wrong = clean.label == "b"
    clean.loc[wrong, ["p_a", "p_b", "p_c"]] = [0.9, 0.05, 0.05]
    shared = {"d": pd.DataFrame({"id": leaky.id[wrong], "split": "train"})}
    found = measure_leak([run(leaky), run(leaky, model="alone")], [run(clean)], shared)
    assert set(found.model) == {"m"}
    by_images = found[found["class"] == MICRO].set_index("images")
    assert by_images.tested.to_dict() == {"all": 90, "shared": wrong.sum(), "others": 90 - wrong.sum()}
    assert by_images.clean["shared"] == 0
    assert by_images.difference["others"] == 0
    assert by_images.low["shared"] > 0
    table = found[found.images == "all"].set_index("class")
    assert table.clean["b"] == 0
    assert table.difference["b"] == pytest.approx(score(leaky)["b"])
    assert table.low["b"] > 0
    validated = {"d": shared["d"].assign(split="validation")}
    assert set(measure_leak([run(leaky)], [run(clean)], validated).images) == {"all", "shared", "others"}
    network = [run(table, kind="network") for table in (leaky, clean)]
    assert set(measure_leak(network[:1], network[1:], validated).images) == {"all", "others"}  # not fitted on it
    more = measure_leak([run(leaky), run(clean, seed=1)], [run(clean)], shared)
    pd.testing.assert_frame_equal(more, measure_leak([run(leaky)], [run(clean)], shared))  # on the seeds of both
    same = measure_leak([run(leaky)], [run(leaky)], shared)
    assert (same[["difference", "low", "high"]] == 0).all(axis=None)
    with pytest.raises(ValueError, match="different images"):
        measure_leak([run(leaky)], [run(clean.assign(id=clean.id + "x"))], shared)


def slowly_studentized(true: list[np.ndarray], first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """The difference in macro F1 over its standard error by the infinitesimal jackknife, in numbers."""

    def difference(weights: np.ndarray) -> float:
        each = np.repeat(weights, [len(part) for part in true])
        labels, one, other = (np.concatenate(parts) for parts in (true, first, second))
        return float(
            np.mean(
                [
                    2 * each[(labels == name) & (told == name)].sum()
                    / (each[labels == name].sum() + each[told == name].sum()) * sign
                    for told, sign in ((one, 2), (other, -2))
                    for name in CLASSES
                ]
            )
        )  # fmt: skip

    ones = np.ones(len(true))
    shifts = [difference(ones + 1e-6 * row) - difference(ones) for row in np.eye(len(true))]
    return float(difference(ones) / np.linalg.norm(np.array(shifts) / 1e-6))


def test_the_permutation_test_is_scipys() -> None:
    first = predictions(n=60, groups=12)
    second = predictions(n=60, groups=12, seed=4).assign(label=first.label, group=first.group, id=first.id)
    names = list(dict.fromkeys(first.group))
    true = [first.label[first.group == name].to_numpy() for name in names]
    answers = [
        predicted_labels(part)[part.group == name].to_numpy() for part in (first, second) for name in names
    ]  # fmt: skip
    indices = np.arange(len(names))
    expected = scipy.stats.permutation_test(
        (indices, indices + len(names)),
        lambda one, other: slowly_studentized(true, [answers[k] for k in one], [answers[k] for k in other]),
        permutation_type="samples", n_resamples=300, vectorized=False, rng=np.random.default_rng(0),
    )  # fmt: skip
    counts = [np.stack([counts_by_group(fit)]) for fit in (first, second)]
    unswapped = np.zeros((1, len(names)), bool)
    ours = studentized(f1_terms(counts[0]), f1_terms(counts[1]), unswapped, (1, 2, 3))
    assert ours == pytest.approx(abs(expected.statistic), rel=1e-4)
    assert compare_pair([first], [second], seed=0)["p"] == pytest.approx(expected.pvalue, abs=0.09)


def test_a_temperature_at_an_end_of_its_search_is_not_believed() -> None:
    frame = pd.DataFrame({"id": ["a", "b"], "group": ["a", "b"], "split": "validation", "label": ["x", "y"]})
    all_right = frame.assign(p_x=[0.6, 0.4], p_y=[0.4, 0.6])
    assert not believable(fit_temperature(all_right))
    assert not believable(fit_temperature(all_right.assign(label=["y", "x"])))
    assert believable(1.0)


def test_temperature_scaling_finds_the_temperature_that_was_planted() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 3))
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = [CLASSES[rng.choice(3, p=row)] for row in honest]
    table = pd.DataFrame({"id": range(4000), "group": range(4000), "split": "validation", "label": labels})
    table[["p_a", "p_b", "p_c"]] = honest
    overconfident = scale(table, 0.5)
    assert (overconfident[["p_a", "p_b", "p_c"]].to_numpy().argmax(1) == honest.argmax(1)).all()
    assert score(overconfident)[CALIBRATION] > 0.1
    assert fit_temperature(overconfident) == pytest.approx(2, rel=0.1)
    assert score(scale(overconfident, fit_temperature(overconfident)))[CALIBRATION] < 0.03


def test_the_summary_tells_seeds_from_groups() -> None:
    fits = [
        predictions(seed=seed).assign(id=predictions().id, label=predictions().label, group=predictions().group)
        for seed in range(3)
    ]
    runs = [run(table, seed=seed) for seed, table in enumerate(fits)]
    table = summarise(runs, score_intervals(runs)).set_index("measure")
    values = [score(fit)[MACRO] for fit in fits]
    assert table.value[MACRO] == pytest.approx(np.mean(values))
    assert table.sd[MACRO] == pytest.approx(np.std(values, ddof=1))
    assert list(table.index) == list(MEASURES)
    with_validation = [Run(one.record, one.predictions, None, one.predictions) for one in runs]
    assert list(summarise(with_validation, score_intervals(with_validation)).measure) == [*MEASURES, *SCALED.values()]


def other(seed: int) -> pd.DataFrame:
    """Other answers to the same images."""
    return predictions(seed=seed).assign(label=predictions().label, group=predictions().group)


def test_every_pair_of_models_is_compared_and_corrected_together() -> None:
    table = compare_models([run(other(seed), model=model) for seed, model in enumerate(("one", "two", "three"))])
    assert list(zip(table["first"], table["second"], strict=True)) == [
        ("one", "two"),
        ("one", "three"),
        ("two", "three"),
    ]
    assert (table.p_corrected >= table.p).all()
    assert (table.seeds == 1).all()


def test_models_are_paired_on_the_seeds_that_both_have() -> None:
    answers = {("one", 0): 0, ("one", 1): 1, ("two", 2): 2, ("two", 0): 3, ("three", 0): 4, ("four", 5): 5}
    fits = {key: run(other(number), model=key[0], seed=key[1]) for key, number in answers.items()}
    table = compare_models(list(fits.values())).set_index(["first", "second"])
    assert set(table.index) == {("one", "two"), ("one", "three"), ("two", "three")}
    assert (table.seeds == 1).all()
    expected = score(other(0))[MACRO] - score(other(3))[MACRO]
    assert table.difference["one", "two"] == pytest.approx(expected)
    both = compare_models([*fits.values(), run(other(6), model="three", seed=1)])
    pair = both[(both["first"] == "one") & (both["second"] == "three")].iloc[0]
    by_seed = [score(other(ours))[MACRO] - score(other(theirs))[MACRO] for ours, theirs in ((0, 4), (1, 6))]
    assert pair.seeds == 2
    assert pair.difference == pytest.approx(np.mean(by_seed))
    assert pair.sd == pytest.approx(np.std(by_seed, ddof=1))


def test_seeds_tested_on_different_images_are_not_averaged() -> None:
    with pytest.raises(ValueError, match="different images"):
        intervals([predictions(), predictions().iloc[1:]], seed=0)
