"""What a clinician asks of a network: each class against all others, and patients of different kinds.

The network is the one with the highest macro F1 on the validation images, and the thresholds are those that give a
chosen specificity there, so that no test image has a part in either.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from medtransfer.analysis.runs import Run, by_model
from medtransfer.analysis.uncertainty import (
    FEWEST_FITS,
    FEWEST_GROUPS,
    Estimate,
    estimate,
    leave_out,
    share_ends,
    sum_by_group,
    without_interval,
)
from medtransfer.core.predictions import classes_of
from medtransfer.metrics.scores import BY_NAME, MACRO, MICRO, NONE, Value, area, encode, measure, placements

SPECIFICITIES = (0.90, 0.95)
SENSITIVITY, SPECIFICITY, AREA = "sensitivity", "specificity", "AUC"
FOUND = ["value", "low", "high", "interval", "seeds"]
CLASSES = ["dataset", "model", "class", "measure", *FOUND]
SUBGROUPS = ["dataset", "model", "by", "subgroup", "images", "groups", "measure", *FOUND]


def best_network(runs: Sequence[Run], dataset: str) -> list[Run]:
    """Return the fits of the network with the highest mean macro F1 on the validation images; empty without any.

    Only networks with FEWEST_FITS seeds are compared, or with the most if none has as many: the best of many single
    fits may be best only by chance.
    """
    networks = [fits for _, _, fits in by_model(run for run in runs if run.dataset == dataset and run.is_network)]
    fewest = min(FEWEST_FITS, max(map(len, networks), default=0))
    return max((fits for fits in networks if len(fits) >= fewest), key=validated, default=[])


def validated(fits: list[Run]) -> float:
    """Return the mean macro F1 of the fits of a network on the validation images."""
    tables = [run.validation for run in fits if run.validation is not None]
    return float(np.mean([measure(encode(table), BY_NAME[MACRO]) for table in tables]))


def class_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return sensitivity, specificity and area under the ROC curve of each class against all others.

    The columns are CLASSES, for each data set's `best_network`. A measure with `at` is that at the threshold that gives
    this specificity on the validation images; its interval does not include the choice of the threshold. The AUC has
    one only where at least FEWEST_OF_CLASS groups have the class and at least as many have other classes.
    """
    rows = []
    for dataset in dict.fromkeys(run.dataset for run in runs):
        fits = best_network(runs, dataset)
        for number, name in enumerate(classes_of(fits[0].predictions) if fits else []):
            about = {"dataset": dataset, "model": fits[0].model, "class": name}
            rows += [{**about, "measure": measure, **found.columns()} for measure, found in _measures(fits, number)]
    return pd.DataFrame(rows, columns=CLASSES)


def _measures(fits: list[Run], number: int) -> list[tuple[str, Estimate]]:
    called = {"": _most_probable(fits, number)}
    for wanted in SPECIFICITIES:
        limits = [_threshold(run.validation, number, wanted) for run in fits]
        called[f" at {wanted:.2f}"] = [
            run.encoded.probabilities[:, number] > limit for run, limit in zip(fits, limits, strict=True)
        ]
    found = []
    for suffix, calls in called.items():
        found.append((SENSITIVITY + suffix, _called(fits, number, calls, True)))
        found.append((SPECIFICITY + suffix, _called(fits, number, calls, False)))
    others = (fits[0].encoded.codes != number).astype(int)
    ranked = [placements(others, run.encoded.probabilities[:, [number]]) for run in fits]
    auc = without_interval(_estimate(fits, ranked, area, NONE), fits[0].jackknife, number)
    return [*found, (AREA, auc)]


def _most_probable(fits: list[Run], number: int) -> list[np.ndarray]:
    """Return, for each fit, for which images (n,) this class is the most probable one."""
    return [run.encoded.probabilities.argmax(axis=1) == number for run in fits]


def _called(fits: list[Run], number: int, calls: list[np.ndarray], kind: bool) -> Estimate:
    """Return the sensitivity (`kind` is True) or specificity (False) of the calls of each fit, (n,)."""
    images = (fits[0].encoded.codes == number) == kind
    terms = [np.column_stack([images & (call == kind), images]) for call in calls]
    with np.errstate(invalid="ignore"):  # without the only group of a class, 0/0
        return _estimate(fits, terms, lambda sums: sums[..., 0] / sums[..., 1], number if kind else NONE)


def _threshold(validation: pd.DataFrame | None, number: int, specificity: float) -> float:
    """Return the probability above which a class is called, for a specificity on the validation images."""
    _, codes, probabilities, _ = encode(validation)  # type: ignore[arg-type]  # `best_network` has some
    return float(np.quantile(probabilities[codes != number, number], specificity, method="higher"))


def _estimate(fits: list[Run], terms: list[np.ndarray], value: Value, needs: str | int) -> Estimate:
    """Return a measure with its interval from what each image adds to it, (images, terms), for each fit."""
    found = [leave_out(sum_by_group(run.encoded, own), value) for run, own in zip(fits, terms, strict=True)]
    return estimate(found, fits[0].jackknife, needs, share_ends)


def subgroup_table(runs: Sequence[Run], attributes: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return accuracy and sensitivities of each data set's `best_network` on its test images of each kind.

    `attributes` has, for each data set with any, a table with `id` and one column per attribute, such as age or sex;
    images without a value are a group of their own, `unknown`. The columns are SUBGROUPS: images and groups (their
    lesions or patients) count the test images. The sensitivity to a class that fewer than FEWEST_GROUPS groups have is
    left out.
    """
    rows = []
    for dataset, table in attributes.items():
        fits = best_network(runs, dataset)
        for name in table.columns.drop("id") if fits else []:
            kinds = fits[0].predictions.id.map(table.set_index("id")[name]).astype(object).fillna("unknown")
            for kind, chosen in kinds.groupby(kinds):
                part = [Run(run.record, run.predictions.loc[chosen.index].reset_index(drop=True), None) for run in fits]
                tested = part[0].predictions
                about = {"dataset": dataset, "model": fits[0].model, "by": name, "subgroup": kind}
                about |= {"images": len(tested), "groups": tested.group.nunique()}
                jackknifed = part[0].jackknife
                correct = estimate((run.jackknife.of(MICRO) for run in part), jackknifed, BY_NAME[MICRO].needs)
                measures = {MICRO: correct}
                for number, held in enumerate(jackknifed.holders):
                    if held >= FEWEST_GROUPS:
                        measures[classes_of(tested)[number]] = _called(part, number, _most_probable(part, number), True)
                rows += [{**about, "measure": measure, **found.columns()} for measure, found in measures.items()]
    return pd.DataFrame(rows, columns=SUBGROUPS)
