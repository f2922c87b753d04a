"""Scores, intervals, and the comparison with the talk, from predictions.csv alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, f1_score, roc_auc_score

from medtransfer.analysis.calibration import believable, fit_temperature, scale
from medtransfer.analysis.confusion import confusion
from medtransfer.analysis.leakage import measure_leakage
from medtransfer.analysis.published import published_f1
from medtransfer.analysis.runs import Run
from medtransfer.analysis.scores import f1_table, summarise
from medtransfer.core.errors import UserError
from medtransfer.core.params import Params
from medtransfer.core.predictions import predicted_labels, probabilities_of, read_predictions, write_predictions
from medtransfer.metrics.scores import AUC, BRIER, CALIBRATION, MACRO, METRICS, MICRO, mlflow_name, score
from medtransfer.pipeline.evaluate import draw_figures

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
    assert np.isnan(metrics["c"])  # neither there nor predicted
    assert metrics[MICRO] == pytest.approx(3 / 4)
    assert metrics[MACRO] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert metrics["balanced accuracy"] == pytest.approx(3 / 4)
    assert (confusion(table) == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]).all()


def test_metrics_are_those_of_scikit_learn() -> None:
    table = predictions(n=200)
    found, predicted, probabilities = score(table), predicted_labels(table), probabilities_of(table)
    by_class = f1_score(table.label, predicted, labels=CLASSES, average=None)
    assert [found[name] for name in CLASSES] == pytest.approx(by_class)
    assert found[MACRO] == pytest.approx(by_class.mean())
    assert found["balanced accuracy"] == pytest.approx(balanced_accuracy_score(table.label, predicted))
    assert found[AUC] == pytest.approx(roc_auc_score(table.label, probabilities, multi_class="ovr", labels=CLASSES))
    assert found[BRIER] == pytest.approx(brier_score_loss(table.label, probabilities, labels=CLASSES))


def test_every_metric_has_its_own_name_in_mlflow() -> None:
    names = [mlflow_name(name) for name in (*CLASSES, *(metric.name for metric in METRICS))]
    assert len(set(names)) == len(names)
    assert {"test/f1/a", "test/macro_f1", "test/AUC", "test/calibration_error"} <= set(names)


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
        (lambda t: t.drop(columns="group"), "no column 'group'"),
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
    table = f1_table(runs).set_index("class")
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
    sides = [[run(table, seed=seed) for seed in range(3)] for table in (leaky, clean)]
    found = measure_leakage([*sides[0], run(leaky, model="alone")], sides[1], shared)
    assert set(found.model) == {"m"}
    by_images = found[found["class"] == MICRO].set_index("images")
    contrast = by_images.loc["shared less others"]
    assert by_images.tested.to_dict() == {
        "all": 90, "shared": wrong.sum(), "others": 90 - wrong.sum(), "shared less others": 90,
    }  # fmt: skip
    assert by_images.clean["shared"] == 0
    assert by_images.difference["others"] == 0
    assert contrast.difference == pytest.approx(by_images.difference["shared"])
    assert 0 < contrast.low < contrast.difference < contrast.high
    assert np.isnan(by_images.low["shared"])  # no hit at all: the groups do not show how sure that is
    assert by_images.interval["shared"] == "none: no hit"
    table = found[found.images == "all"].set_index("class")
    assert table.clean["b"] == 0
    assert table.difference["b"] == pytest.approx(score(leaky)["b"])
    assert table.interval.drop("b").eq("groups and seeds").all()
    validated = {"d": shared["d"].assign(split="validation")}
    assert set(measure_leakage([run(leaky)], [run(clean)], validated).images) == {*by_images.index}
    network = [run(table, kind="network") for table in (leaky, clean)]
    assert set(measure_leakage(network[:1], network[1:], validated).images) == {"all", "others"}  # not fitted on it
    twins = [
        [run(table.assign(group=table.label.where(wrong, table.id)), seed=seed) for seed in range(3)]
        for table in (leaky, leaky)
    ]
    few = measure_leakage(twins[0], twins[1], shared).set_index(["images", "class"])
    assert few.interval["shared", MICRO] == few.interval["shared less others", MICRO] == "none: 1 groups"
    assert np.isnan(few.low["shared less others", MICRO])
    fewer = measure_leakage(sides[0], sides[1][:2], shared)
    assert set(fewer.clean_seeds) == {2}
    assert set(fewer.interval) == {"none: fewer than 3 seeds"}
    assert fewer.low.isna().all()
    with pytest.raises(UserError, match="different images"):
        measure_leakage([run(leaky)], [run(clean.assign(id=clean.id + "x"))], shared)


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


def test_the_summary_has_every_metric_also_after_scaling() -> None:
    fits = [
        predictions(seed=seed).assign(id=predictions().id, label=predictions().label, group=predictions().group)
        for seed in range(3)
    ]
    runs = [run(table, seed=seed) for seed, table in enumerate(fits)]
    table = summarise(runs).set_index("measure")
    assert table.value[MACRO] == pytest.approx(np.mean([score(fit)[MACRO] for fit in fits]))
    assert list(table.index) == [metric.name for metric in METRICS]
    with_validation = [Run(one.record, one.predictions, None, one.predictions) for one in runs]
    scaled = [f"{name}, scaled" for name in (BRIER, CALIBRATION)]
    assert list(summarise(with_validation).measure) == [*table.index, *scaled]


def test_activations_that_are_missing_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"activations\.npz: not found; run `dvc repro explain@chest_xray`"):
        draw_figures([run(predictions(), dataset="chest_xray")], params, tmp_path)
