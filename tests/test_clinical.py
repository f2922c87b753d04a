"""What a clinician asks: sensitivities, thresholds and subgroups, chosen on validation images only."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from medtransfer.analysis.clinical import best_network, class_table, subgroup_table
from medtransfer.analysis.runs import Run
from medtransfer.data.catalogue import CHEST_XRAY, HAM10000, METADATA_COLUMNS
from studies import run


def graded(seed: int = 0, images: int = 400, shift: float = 1.0) -> Run:
    """A network whose probability of PNEUMONIA is higher, on average, for PNEUMONIA; validation and test differ."""
    fit = run("chest_xray", "imagenet_all", 0.9, images=images)

    def drawn(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
        scores = np.random.default_rng(seed).normal(size=images) + shift * (frame.label == "PNEUMONIA")
        ill = 1 / (1 + np.exp(-scores))
        return frame.assign(p_NORMAL=1 - ill, p_PNEUMONIA=ill)

    assert fit.validation is not None
    return dataclasses.replace(
        fit, record={**fit.record, "seed": seed}, predictions=drawn(fit.predictions, 2 * seed),
        validation=drawn(fit.validation, 2 * seed + 1),
    )  # fmt: skip


def rows(table: pd.DataFrame, *keys: str) -> dict[Any, Any]:
    """The rows of a table by the values of some columns."""
    return {tuple(row[key] for key in keys): row for row in table.to_dict("records")}


def test_sensitivity_specificity_and_area_are_those_of_scikit_learn() -> None:
    fit = graded()
    table = class_table([fit])
    found = {key: row["value"] for key, row in rows(table, "class", "measure").items()}
    truth, ill = fit.predictions.label == "PNEUMONIA", fit.predictions.p_PNEUMONIA
    assert found["PNEUMONIA", "sensitivity"] == pytest.approx(recall_score(truth, ill > 0.5))
    assert found["PNEUMONIA", "specificity"] == pytest.approx(recall_score(~truth, ill <= 0.5))
    assert found["NORMAL", "sensitivity"] == found["PNEUMONIA", "specificity"]
    assert found["PNEUMONIA", "AUC"] == pytest.approx(roc_auc_score(truth, ill))
    assert ((table.low < table.value) & (table.value < table.high)).all()


def test_thresholds_come_from_the_validation_images() -> None:
    fit = graded()
    assert fit.validation is not None
    healthy = fit.validation.p_PNEUMONIA[fit.validation.label == "NORMAL"]
    threshold = sorted(healthy)[int(np.ceil(0.9 * (len(healthy) - 1)))]
    assert (healthy <= threshold).mean() >= 0.9
    found = rows(class_table([fit]), "class", "measure")
    called, truth = fit.predictions.p_PNEUMONIA > threshold, fit.predictions.label == "PNEUMONIA"
    assert found["PNEUMONIA", "sensitivity at 0.90"]["value"] == pytest.approx(called[truth].mean())
    assert found["PNEUMONIA", "specificity at 0.90"]["value"] == pytest.approx((~called[~truth]).mean())


def test_a_class_that_is_never_found_gets_the_exact_bound_of_its_sensitivity() -> None:
    fit = graded()
    never = fit.predictions.assign(p_NORMAL=0.9, p_PNEUMONIA=0.1, group=fit.predictions.id)
    found = rows(class_table([dataclasses.replace(fit, predictions=never)]), "class", "measure")
    sensitivity = found["PNEUMONIA", "sensitivity"]
    assert (sensitivity["value"], sensitivity["low"]) == (0, 0)
    assert sensitivity["high"] == pytest.approx(1 - 0.025 ** (1 / 200))  # Clopper and Pearson, none of 200


def test_an_area_has_an_interval_only_with_thirty_groups_of_both_kinds() -> None:
    fit = graded()
    for ill, expected in ((30, "groups"), (29, "none: 29 groups")):
        kept = fit.predictions.assign(group=fit.predictions.id).groupby("label").head(200)
        kept = pd.concat([kept[kept.label == "NORMAL"], kept[kept.label == "PNEUMONIA"][:ill]], ignore_index=True)
        found = rows(class_table([dataclasses.replace(fit, predictions=kept)]), "class", "measure")
        for name in ("NORMAL", "PNEUMONIA"):
            assert found[name, "AUC"]["interval"] == expected
            assert np.isnan(found[name, "AUC"]["low"]) == (ill == 29)


def test_the_network_is_chosen_on_validation_images_among_those_with_enough_seeds() -> None:
    worse = [
        dataclasses.replace(
            fit, record={**fit.record, "model": "worse"}, validation=fit.predictions.assign(label="NORMAL")
        )
        for fit in map(graded, range(5))
    ]
    seeds = [graded(seed) for seed in range(3)]
    single = dataclasses.replace(graded(shift=9), record={**seeds[0].record, "model": "single"})
    assert {fit.model for fit in best_network([single, *worse, *seeds], "chest_xray")} == {"imagenet_all"}
    assert best_network([single, *seeds], "ham10000") == []


def test_each_kind_of_image_has_its_scores_and_small_ones_no_sensitivity() -> None:
    fit = graded()
    sexes = ["male"] * 300 + ["female"] * 82 + ["few"] * 10 + [None] * 8
    table = subgroup_table([fit], {"chest_xray": pd.DataFrame({"id": fit.predictions.id, "sex": sexes})})
    as_age = pd.DataFrame({"id": fit.predictions.id, "sex": pd.Categorical(sexes)})  # as HAM10000's ages are
    pd.testing.assert_frame_equal(subgroup_table([fit], {"chest_xray": as_age}), table)
    found = rows(table, "subgroup", "measure")
    counts = {key[0]: row["images"] for key, row in found.items()}
    assert counts == {"few": 10, "female": 82, "male": 300, "unknown": 8}
    men = fit.predictions[:300]
    right = (men.p_PNEUMONIA > 0.5) == (men.label == "PNEUMONIA")
    assert found["male", "micro avg"]["value"] == pytest.approx(right.mean())
    assert found["male", "PNEUMONIA"]["value"] == pytest.approx(right[men.label == "PNEUMONIA"].mean())
    assert {measure for kind, measure in found if kind in ("few", "unknown")} == {"micro avg"}
    assert found["few", "micro avg"]["interval"] == "none: 5 groups"


def test_the_data_sets_describe_their_images(tmp_path: Path) -> None:
    rows = ["L1,I1,mel,histo,45.0,male,back", "L2,I2,nv,histo,,unknown,ear", "L3,I3,nv,histo,70.0,female,face"]
    (tmp_path / "HAM10000_metadata.csv").write_text("\n".join([",".join(METADATA_COLUMNS), *rows]))
    found = HAM10000.describe(tmp_path).astype(object).fillna("unknown")
    assert found.to_numpy().tolist() == [
        ["I1", "30 to 49", "male", "back"], ["I2", "unknown", "unknown", "ear"], ["I3", "70 and over", "female", "face"]
    ]  # fmt: skip
    for name in ("PNEUMONIA/person1_bacteria_1.jpeg", "PNEUMONIA/person1_virus_6.jpeg", "NORMAL/IM-0001-0001.jpeg"):
        (tmp_path / "chest" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "chest" / name).touch()
        (tmp_path / "chest" / name).with_name(".DS_Store").touch()  # by macOS
    described = CHEST_XRAY.describe(tmp_path / "chest")
    assert dict(zip(described.id, described.cause, strict=True)) == {
        "IM-0001-0001": "no pneumonia", "person1_bacteria_1": "bacterial", "person1_virus_6": "viral"
    }  # fmt: skip
