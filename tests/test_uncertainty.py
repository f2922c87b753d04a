"""Intervals and p-values agree with a slow computation, cover both sources, and are left out where they must be."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medtransfer.analysis.calibration import calibration_table, recalibration, reliability
from medtransfer.analysis.claims import CLAIMS, Evidence, compare_claims, correct, judge
from medtransfer.analysis.differences import COLLAPSED, Comparison, as_table, compare_models, read_comparisons
from medtransfer.analysis.power import detectable, seeds_needed
from medtransfer.analysis.runs import Run
from medtransfer.analysis.scores import estimate_of
from medtransfer.analysis.uncertainty import (
    BOTH,
    EXACT,
    FEWEST_GROUPS,
    FEWEST_OF_CLASS,
    GROUPS,
    TOO_FEW_FITS,
    jackknife,
    resample,
)
from medtransfer.core.errors import UserError
from medtransfer.core.predictions import as_predictions
from medtransfer.metrics.scores import AUC, BY_NAME, CALIBRATION, MACRO, MICRO, encode, metrics_of, score
from medtransfer.report.tables import calibration as shown_calibration

CLASSES = ["a", "b", "c"]
TREE = {"dataset": "ham10000", "kind": "baseline", "synthetic": False}


def predictions(n: int = 300, seed: int = 0, groups: int = 60, skill: float = 0.6) -> pd.DataFrame:
    """Predictions for the same images, whatever the seed, which decides the predictions."""
    truth = np.random.default_rng(7).choice(3, n, p=[0.5, 0.3, 0.2])
    group = truth * groups + np.random.default_rng(8).integers(0, groups // 3, n)  # a lesion has one diagnosis
    samples = pd.DataFrame({"id": map(str, range(n)), "group": group.astype(str), "split": "test"})
    samples["label"] = np.array(CLASSES)[truth]
    drawn = np.random.default_rng(seed).dirichlet([0.7] * 3, n) + skill * np.eye(3)[truth]
    return as_predictions(samples, drawn / drawn.sum(axis=1, keepdims=True), CLASSES)


def run(table: pd.DataFrame, model: str = "m", seed: int = 0) -> Run:
    return Run({**TREE, "model": model, "seed": seed}, table, None)


def network(table: pd.DataFrame) -> Run:
    configuration = {"weights": "imagenet", "trainable": "all"}
    record = {**TREE, "kind": "network", "model": "m", "seed": 0, "hyperparameters": {"configuration": configuration}}
    return Run(record, table, None)


def runs(model: str, seeds: int, skill: float = 0.6) -> list[Run]:
    offset = sum(map(ord, model))
    return [run(predictions(seed=offset + seed, skill=skill), model, seed) for seed in range(seeds)]


def comparison(**changes: object) -> Comparison:
    values: dict[str, object] = {
        "dataset": "ham10000", "family": "talk", "first": "imagenet_all", "second": "cnn_random", "difference": 0.1,
        "groups": 1500, "groups_sd": 0.01, "first_seeds": 6, "second_seeds": 6, "first_sd": 0.02, "second_sd": 0.02,
    }  # fmt: skip
    return Comparison(**{**values, **changes})  # type: ignore[arg-type]


def test_leaving_a_group_out_is_scoring_without_its_images() -> None:
    table = predictions()
    found = jackknife(encode(table))
    slow = pd.DataFrame([score(table[table.group != name]) for name in table.group.drop_duplicates()])
    for name in found.names:
        value, without = found.of(name)
        assert value == pytest.approx(score(table)[name])
        np.testing.assert_allclose(without, slow[name] - slow[name].mean(), atol=1e-12)
    assert found.holders.tolist() == [table.group[table.label == name].nunique() for name in CLASSES]


def test_resampling_is_scoring_repeated_images() -> None:
    table = predictions(n=60, groups=12)
    metric = BY_NAME[CALIBRATION]
    sums = np.array([metric.terms(*_encoded(part)).sum(axis=0) for _, part in table.groupby("group", sort=False)])
    drawn = resample(sums, metric, seed=0)
    assert len(drawn) == 1000
    assert drawn.mean() > score(table)[CALIBRATION]  # the bias that is taken off
    assert (resample(sums, metric, seed=0) == drawn).all()
    twice = pd.concat([table, table])
    assert metric.value(2 * sums.sum(axis=0)) == pytest.approx(score(twice)[CALIBRATION])


def _encoded(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    codes = table.label.map({name: number for number, name in enumerate(CLASSES)}).to_numpy(int)
    probabilities = table[[f"p_{name}" for name in CLASSES]].to_numpy()
    return codes, probabilities / probabilities.sum(axis=1, keepdims=True)


def test_an_interval_covers_groups_and_with_several_seeds_training_too() -> None:
    one, three = estimate_of(runs("m", 1), BY_NAME[MACRO]), estimate_of(runs("m", 3), BY_NAME[MACRO])
    assert (one.covers, three.covers) == (GROUPS, BOTH)
    assert np.isnan(one.sd)
    values = [score(fit.predictions)[MACRO] for fit in runs("m", 3)]
    assert three.value == pytest.approx(np.mean(values))
    assert three.sd == pytest.approx(np.std(values, ddof=1))
    for found in (one, three):
        assert 0 < found.low < found.value < found.high < 1
    shaky = [run(predictions(skill=skill), seed=seed) for seed, skill in enumerate((0.1, 0.6, 2))]
    assert estimate_of(shaky, BY_NAME[MACRO]).high - estimate_of(shaky, BY_NAME[MACRO]).low > 0.5


def test_images_of_few_large_groups_tell_less() -> None:
    table = predictions(n=300, groups=60)
    by_image = table.assign(group=table.id)
    one_by_one = estimate_of([run(by_image)], BY_NAME[AUC])
    together = estimate_of([run(table.sort_values("p_a").assign(group=np.arange(300) // 15))], BY_NAME[AUC])
    assert together.high - together.low > one_by_one.high - one_by_one.low


@pytest.mark.parametrize("groups", [1, 5, FEWEST_GROUPS - 1])
def test_with_few_groups_there_is_no_interval_but_their_number(groups: int) -> None:
    table = predictions(n=90)
    few = run(table.assign(group=(np.arange(90) % groups).astype(str)))
    found = estimate_of([few], BY_NAME[MICRO])
    assert np.isnan([found.low, found.high]).all()
    assert found.covers == f"none: {groups} groups"
    [pair] = compare_models([few, run(few.predictions, "other")])
    assert pair.interval.startswith("none: ")
    assert np.isnan([*pair.ends, pair.p]).all()


def test_a_class_of_few_groups_has_no_interval_and_the_others_have() -> None:
    table = predictions()
    rare = table[(table.label != "c") | (table.index < 20)].reset_index(drop=True)
    held = rare.group[rare.label == "c"].nunique()
    assert 0 < held < FEWEST_GROUPS
    found = {metric.name: estimate_of([run(rare)], metric).covers for metric in metrics_of(CLASSES)}
    assert found["c"] == found[MACRO] == found[AUC] == f"none: {held} groups"
    assert found["a"] == found[MICRO] == GROUPS


def test_a_class_without_a_hit_has_an_exact_upper_bound() -> None:
    table = predictions()
    table.loc[table.label == "c", ["p_a", "p_b", "p_c"]] = [0.9, 0.05, 0.05]
    lesions = table.group[table.label == "c"].nunique()
    recall = stats.binomtest(0, lesions).proportion_ci(method="exact").high
    c_metric = metrics_of(CLASSES)[2]
    never = table.assign(p_c=0.0, p_a=1 - table.p_b)
    found = estimate_of([run(never)], c_metric)
    assert (found.value, found.low, found.covers) == (0, 0, EXACT)
    assert found.high == pytest.approx(2 * recall / (1 + recall))
    right = table.assign(**{f"p_{name}": (table.label == name).astype(float) for name in CLASSES})
    found = estimate_of([run(right)], c_metric)
    assert (found.value, found.high, found.covers) == (1, 1, EXACT)
    assert 0 < found.low < 1
    assert np.isnan(estimate_of([run(right)], BY_NAME[MICRO]).low)  # nothing varies, so nothing can be said


def test_a_class_that_is_neither_there_nor_predicted_is_left_out_of_macro_f1() -> None:
    table = predictions()
    two = table[table.label != "c"].assign(p_c=0.0)
    two = two.assign(p_a=two.p_a / (two.p_a + two.p_b), p_b=two.p_b / (two.p_a + two.p_b))
    found = score(two)
    assert np.isnan(found["c"])
    assert found[MACRO] == pytest.approx((found["a"] + found["b"]) / 2)


def test_seeds_alone_give_welchs_test() -> None:
    first, second = [0.5, 0.55, 0.62], [0.4, 0.41, 0.46, 0.43]
    pair = comparison(
        difference=np.mean(first) - np.mean(second), groups_sd=0.0, first_seeds=3, second_seeds=4,
        first_sd=np.std(first, ddof=1), second_sd=np.std(second, ddof=1),
    )  # fmt: skip
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert pair.p == pytest.approx(expected.pvalue)
    assert pair.freedom == pytest.approx(expected.df)
    assert pair.ends == pytest.approx(tuple(expected.confidence_interval()))


def test_a_comparison_uses_all_seeds_and_reverses() -> None:
    [pair] = compare_models([*runs("good", 3, skill=0.9), *runs("bad", 4, skill=0.3)])
    means = [
        np.mean([score(fit.predictions)[MACRO] for fit in side]) for side in (runs("good", 3, 0.9), runs("bad", 4, 0.3))
    ]
    assert pair.difference == pytest.approx(means[0] - means[1])
    assert (pair.first_seeds, pair.second_seeds, pair.interval) == (3, 4, BOTH)
    assert 0 < pair.ends[0] < pair.difference < pair.ends[1]
    back = pair.reversed()
    assert back.ends == (-pair.ends[1], -pair.ends[0])
    assert back.p == pair.p
    assert back.reversed() == pair
    for seeds, covers in ((3, TOO_FEW_FITS), (2, GROUPS)):
        [few] = compare_models([*runs("good", seeds), *runs("bad", 2)])
        assert few.interval == covers
        assert np.isfinite(few.ends).all() == (covers == GROUPS)
        assert np.isnan(few.p)
    [same] = compare_models([*runs("good", 1), *[run(fit.predictions, "copy") for fit in runs("good", 1)]])
    assert same.ends == (0, 0)


def test_fits_of_different_images_are_not_compared_or_averaged() -> None:
    other = run(predictions().assign(id=lambda table: table.id + "x"), "other")
    with pytest.raises(UserError, match="m, seed 0, and other, seed 0, were tested on different images"):
        compare_models([run(predictions()), other])
    turned = predictions()[[*predictions().columns[:-2], *predictions().columns[:-3:-1]]]
    with pytest.raises(UserError, match="m, seed 1, have other classes or another order of them"):
        estimate_of([run(predictions()), run(turned, seed=1)], BY_NAME[MACRO])
    with pytest.raises(UserError, match="different images"):
        estimate_of([run(predictions()), run(predictions().iloc[1:], seed=1)], BY_NAME[MACRO])


def test_comparisons_come_back_from_their_file(tmp_path: Path) -> None:
    pairs = [comparison(), comparison(second_seeds=1, second_sd=np.nan), comparison(few="none: 4 groups")]
    as_table(pairs).to_csv(tmp_path / "differences.csv", index=False)
    again = read_comparisons(tmp_path / "differences.csv")
    assert [(pair.interval, pair.difference) for pair in again] == [(pair.interval, 0.1) for pair in pairs]
    assert again[0] == pairs[0]


def test_holms_correction_counts_claims_that_cannot_be_judged() -> None:
    assert correct(np.array([0.01, 0.04, 0.03]), 3) == pytest.approx([0.03, 0.06, 0.06])
    assert correct(np.array([0.01, np.nan, 0.001]), 9) == pytest.approx([0.08, np.nan, 0.009], nan_ok=True)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "holds"),
        ({"difference": -0.1}, "does not hold"),
        ({"difference": 0.02, "groups_sd": 0.03}, "not shown"),
        ({"difference": 0.001, "groups_sd": 0.001, "first_sd": 0.001, "second_sd": 0.001}, "difference below .02"),
        ({"second_seeds": 5}, "fewer than 6 seeds"),
        ({"first_seeds": 2, "second_seeds": 2}, "fewer than 6 seeds"),
        ({"few": "none: 4 groups"}, "none: 4 groups"),
    ],
)
def test_a_claim_is_judged_as_planned(changes: dict[str, object], verdict: str) -> None:
    tested = Evidence(CLAIMS[3], comparison(**changes))
    [found] = judge([tested], {}).to_dict("records")
    assert found["verdict"] == verdict
    judged = "seeds" not in verdict and "groups" not in verdict
    assert np.isfinite(found["p"]) == judged
    assert np.isfinite(found["low"]) == (judged or (tested.pair.first_seeds == 6 and not tested.pair.few))
    if judged:
        assert found["p_corrected"] == pytest.approx(min(len(CLAIMS) * found["p"], 1))
        assert found["simultaneous_low"] < found["low"] < found["high"] < found["simultaneous_high"]
    [by_image] = judge([tested], {"ham10000": "split by image"}).to_dict("records")
    assert by_image["verdict"] == "not tested: split by image"
    assert np.isnan(by_image["p"])


def test_the_first_batch_of_seeds_counts_until_the_second_is_whole() -> None:
    def counts(first: int, second: int) -> tuple[int, int, int]:
        fits = [*runs("imagenet_all", first), *runs("imagenet_last_block", second)]
        [found] = compare_claims(fits[::-1])
        unseen = found.unseen.first_seeds if found.unseen else 0
        return found.pair.first_seeds, found.pair.second_seeds, unseen

    assert counts(3, 4) == (3, 4, 0)
    assert counts(9, 12) == (6, 6, 3)
    assert counts(10, 12) == (10, 10, 7)


def test_a_network_that_collapses_in_some_seeds_is_judged_with_ten() -> None:
    for claim in CLAIMS:
        [found] = judge([Evidence(claim, comparison(dataset=claim.dataset))], {}).to_dict("records")
        collapses = (claim.dataset, "cnn_random") in ((claim.dataset, claim.first), (claim.dataset, claim.second))
        few = claim.dataset == "ham10000" and collapses
        assert (found["verdict"] == "fewer than 10 seeds") == few


def test_false_positives_are_as_rare_as_the_level_says() -> None:
    """Two equal recipes with three seeds each; a seed varies twice as much as the error over lesions."""
    rng, draws, seeds, spread = np.random.default_rng(0), 4000, 3, 2.0
    lesions = rng.normal(size=(draws, 1))
    first, second = (rng.normal(0, spread, (draws, seeds)) for _ in range(2))
    differences = (lesions + first).mean(axis=1) - second.mean(axis=1)
    sds = [side.std(axis=1, ddof=1) for side in (first, second)]
    rejected = [
        comparison(
            difference=difference, groups_sd=1.0, first_seeds=seeds, second_seeds=seeds, first_sd=one, second_sd=two
        ).p < 0.05
        for difference, one, two in zip(differences, *sds, strict=True)
    ]  # fmt: skip
    assert 0.03 < np.mean(rejected) < 0.08


def test_intervals_cover_the_truth() -> None:
    """The fit's own test images stand for the population; 200 draws of whole groups."""
    population, rng = predictions(n=600, groups=120), np.random.default_rng(1)
    truth = score(population)
    parts = list(population.groupby("group").indices.values())
    covered: dict[str, list[bool]] = {MACRO: [], MICRO: []}
    for _ in range(200):
        drawn = [parts[number] for number in rng.integers(len(parts), size=len(parts))]
        groups = np.repeat(np.arange(len(drawn)), list(map(len, drawn)))
        fit = run(population.iloc[np.concatenate(drawn)].assign(group=groups).reset_index(drop=True))
        for name, hits in covered.items():
            found = estimate_of([fit], BY_NAME[name])
            hits.append(found.low <= truth[name] <= found.high)
    assert 0.90 <= np.mean(covered[MACRO]) <= 0.99
    assert 0.90 <= np.mean(covered[MICRO]) <= 0.99


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    pair = comparison(groups_sd=1e-9, first_seeds=6, second_seeds=6)
    level = 0.05
    size = detectable(pair, level)
    rng = np.random.default_rng(0)
    first, second = rng.normal(size, 0.02, (4000, 6)), rng.normal(0, 0.02, (4000, 6))
    found = stats.ttest_ind(first, second, axis=1, equal_var=False).pvalue < level
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)
    assert seeds_needed(pair, size * 1.001, level, 2) == 6
    assert seeds_needed(pair, size * 1.001, level, 10) == 10
    assert seeds_needed(pair, size * 0.9, level, 2) > 6
    assert seeds_needed(comparison(groups_sd=0.05), 0.05, level, 2) == np.inf  # no number of seeds helps
    assert np.isnan(detectable(comparison(first_seeds=1), level))


def test_calibration_finds_the_slope_and_intercept_that_were_planted() -> None:
    rng, n = np.random.default_rng(0), 6000
    logits = rng.normal(0, 1.5, n)
    right = rng.random(n) < 1 / (1 + np.exp(-logits))
    said = 1 / (1 + np.exp(-2 * logits))  # twice as extreme as it should be
    samples = pd.DataFrame({"id": map(str, range(n)), "group": map(str, range(n)), "split": "test"})
    samples["label"] = np.where(right, "b", "a")
    table = as_predictions(samples, np.column_stack([1 - said, said]), ["a", "b"])
    slope, changes = recalibration(right, said, with_slope=True)
    assert slope == pytest.approx(0.5, abs=0.05)
    assert changes.shape == (n, 1)
    frame = calibration_table([network(table), run(table)]).set_index("class")
    assert len(frame) == 2  # trees have no table
    assert frame.slope_low["b"] < 0.5 < frame.slope_high["b"]
    assert frame.intercept["b"] == pytest.approx(-frame.intercept["a"], abs=1e-6)
    honest = as_predictions(samples, np.column_stack([1 / (1 + np.exp(logits)), 1 / (1 + np.exp(-logits))]), ["a", "b"])
    frame = calibration_table([network(honest)]).set_index("class")
    assert frame.slope["b"] == pytest.approx(1, abs=0.1)
    assert frame.intercept["b"] == pytest.approx(0, abs=0.1)
    band = reliability([run(honest)])
    assert ((band.low <= band.accuracy) & (band.accuracy <= band.high)).all()
    assert (band.confidence - band.accuracy).abs().max() < 0.1


def test_leaving_a_group_out_changes_the_slope_as_computed() -> None:
    table = predictions(n=900, groups=180)
    is_class, said = table.label == CLASSES[0], table[f"p_{CLASSES[0]}"]
    slope, changes = recalibration(is_class.to_numpy(), said.to_numpy(), with_slope=True)
    for name in table.group.unique()[:5]:
        kept = table.group != name
        without, _ = recalibration(is_class[kept].to_numpy(), said[kept].to_numpy(), with_slope=True)
        assert without - slope == pytest.approx(changes[~kept].sum(), rel=0.15, abs=2e-4)


def test_the_slope_of_a_class_with_few_groups_has_no_interval() -> None:
    """One or two groups decide it. What has an interval gets a star where there is one seed."""
    for groups in (60, 600):
        table = predictions(n=3 * groups, groups=groups)
        holders = table[table.label == CLASSES[0]].group.nunique()
        found = calibration_table([network(table)])
        row: Any = found.set_index("class").loc[CLASSES[0]]
        assert str(shown_calibration(found, "ham10000").loc["m", CLASSES[0]]).count("] *") == 1 + (groups == 600)
        assert np.isfinite([row.slope, row.intercept_low]).all()
        assert np.isnan(row.slope_low) == (holders < FEWEST_OF_CLASS)
        assert (holders < FEWEST_OF_CLASS) == (groups == 60)


def test_a_class_told_apart_without_error_has_no_slope() -> None:
    is_class = np.arange(30) < 10
    assert np.isnan(recalibration(is_class, np.where(is_class, 0.9, 0.05), with_slope=True)[0])


def test_seeds_that_all_predict_one_class_do_not_show_how_much_seeds_differ() -> None:
    good, other = runs("random_forest", 3), runs("decision_tree", 3)
    broken = [run(fit.predictions.assign(p_a=0.8, p_b=0.1, p_c=0.1), fit.model, fit.seed) for fit in other]
    wrong = broken[0].predictions.label.eq("c").idxmax()
    broken[0].predictions.loc[wrong, "p_b"] = 0.9  # one wrong prediction of another class changes nothing
    (pair,) = compare_models([*good, *broken])
    assert pair.interval == COLLAPSED
    assert np.isnan(pair.ends).all()
    assert estimate_of(broken, BY_NAME[MICRO]).covers == GROUPS
    (pair,) = compare_models([*good, broken[0], *other[1:]])
    assert pair.interval == BOTH
    assert estimate_of(good, BY_NAME[MICRO]).covers == BOTH
