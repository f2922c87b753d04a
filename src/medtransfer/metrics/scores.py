"""Every metric, declared once: one more is one more entry in METRICS.

A metric is a function of sums over images. `terms` gives what each image adds to the sums, and `value` computes the
metric from them. So the statistics can leave out or resample groups without going back to the images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from medtransfer.core.predictions import classes_of, probabilities_of

MICRO, MACRO = "micro avg", "macro avg"
BALANCED, AUC, BRIER, CALIBRATION = "balanced accuracy", "AUC", "Brier score", "calibration error"
BINS = 15
IN_MLFLOW = {MICRO: "micro_f1", MACRO: "macro_f1"}  # others have the same name there
ALL, NONE = "all", "none"
Terms = Callable[[np.ndarray, np.ndarray], np.ndarray]
Value = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """A number that says how good predictions are.

    name : in tables and in metrics.json
    terms : labels (n,), as numbers of classes, and probabilities (n, classes) → what each image adds, (n, terms)
    value : sums (..., terms) → the metric (...); NaN where it is undefined
    of_probabilities : whether it changes when probabilities are rescaled and their order stays
    smooth : whether the jackknife gives its variance; without it, the bootstrap does
    needs : the classes that an interval needs enough groups of: ALL, NONE, or the number of one
    """

    name: str
    terms: Terms
    value: Value
    of_probabilities: bool = False
    smooth: bool = True
    needs: str | int = NONE


class Encoded(NamedTuple):
    """The predictions of one split as arrays.

    classes : their names
    codes : the labels (n,), as class indices
    probabilities : (n, classes), float64; each row sums to 1
    groups : the number (n,) of each image's lesion or patient, in order of appearance
    """

    classes: list[str]
    codes: np.ndarray
    probabilities: np.ndarray
    groups: np.ndarray


def encode(predictions: pd.DataFrame) -> Encoded:
    """Return the rows of one split as arrays."""
    classes = classes_of(predictions)
    probabilities = probabilities_of(predictions).astype(float)
    return Encoded(
        classes,
        pd.Index(classes).get_indexer(pd.Index(predictions.label)),
        probabilities / probabilities.sum(axis=1, keepdims=True),
        pd.factorize(predictions.group)[0],
    )


def score(predictions: pd.DataFrame) -> dict[str, float]:
    """Return every metric of the rows of one split, F1 per class first."""
    encoded = encode(predictions)
    return {metric.name: measure(encoded, metric) for metric in metrics_of(encoded.classes)}


def measure(encoded: Encoded, metric: Metric) -> float:
    """Return one metric."""
    return float(metric.value(metric.terms(encoded.codes, encoded.probabilities).sum(axis=0)))


def metrics_of(classes: Sequence[str]) -> list[Metric]:
    """Return F1 of each class, then METRICS."""
    return [*(_f1(number, name) for number, name in enumerate(classes)), *METRICS]


def mlflow_name(name: str, split: str = "test") -> str:
    """Return MLflow's name of a metric or, for a class, of its F1, such as `test/macro_f1`."""
    return f"{split}/{IN_MLFLOW.get(name, name) if name in BY_NAME else f'f1/{name}'}".replace(" ", "_")


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """Return the bin, 0 to 14, of each confidence."""
    return np.minimum((confidence * BINS).astype(int), BINS - 1)


def _counts(codes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return for each image its hit, label and prediction, one column per class each: (n, 3 · classes)."""
    classes = np.arange(probabilities.shape[1])
    labels, predicted = codes[:, None] == classes, probabilities.argmax(axis=1)[:, None] == classes
    return np.hstack([labels & predicted, labels, predicted]).astype(float)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def _f1_by_class(sums: np.ndarray) -> np.ndarray:
    """Return F1 (..., classes) of sums of `_counts`; NaN for a class that is neither there nor predicted."""
    hits, labels, predicted = np.split(sums, 3, axis=-1)
    return _ratio(2 * hits, labels + predicted)


def _recall(sums: np.ndarray) -> np.ndarray:
    hits, labels, _ = np.split(sums, 3, axis=-1)
    return _ratio(hits, labels)


def _accuracy(sums: np.ndarray) -> np.ndarray:
    hits, labels, _ = np.split(sums, 3, axis=-1)
    return _ratio(hits.sum(axis=-1), labels.sum(axis=-1))


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the classes for which a value is defined; NaN where there is none."""
    there = ~np.isnan(values)
    return _ratio(np.where(there, values, 0).sum(axis=-1), there.sum(axis=-1).astype(float))


def _f1(number: int, name: str) -> Metric:
    return Metric(name, _counts, lambda sums: _f1_by_class(sums)[..., number], needs=number)


def placements(codes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return five terms per class whose sums give the area under the ROC curve of that class against all others.

    For a positive image, the share of negatives below it; for a negative image, the share of positives above it; ties
    count half. Each is followed by a count; the last term is the area itself (DeLong et al., Biometrics 44, 837-845,
    1988). The area of sums over other images is exact to first order, and exact where no group holds both kinds.
    """
    positive = codes[:, None] == np.arange(probabilities.shape[1])  # (n, classes)
    placed, ranked = np.zeros(probabilities.shape), np.zeros(probabilities.shape)
    for number, (own, values) in enumerate(zip(positive.T, probabilities.T, strict=True)):
        if own.any() and not own.all():
            ranks = rankdata(values)
            placed[own, number] = (ranks[own] - rankdata(values[own])) / (~own).sum()
            placed[~own, number] = 1 - (ranks[~own] - rankdata(values[~own])) / own.sum()
            ranked[:, number] = placed[own, number].mean()
    return np.hstack([placed * positive, positive, placed * ~positive, ~positive, ranked])


def area(sums: np.ndarray) -> np.ndarray:
    """Return the mean area of sums (..., 5 · classes) of `placements` over the classes that are there: (...)."""
    above, positive, below, negative, ranked = np.split(sums, 5, axis=-1)
    return _mean(_ratio(above, positive) + _ratio(below, negative) - _ratio(ranked, positive + negative))


def _squares(codes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return each image's squared error, halved where there are two classes, and 1."""
    errors = ((probabilities - np.eye(probabilities.shape[1])[codes]) ** 2).sum(axis=1)
    return np.column_stack([errors / (2 if probabilities.shape[1] == 2 else 1), np.ones(len(codes))])


def _gaps(codes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return each image's hit less its confidence, in the column of its bin, and 1: (n, BINS + 1)."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == codes
    gaps = np.zeros((len(codes), BINS + 1))
    gaps[np.arange(len(codes)), bin_of(confidence)] = right - confidence
    gaps[:, BINS] = 1
    return gaps


# Micro F1 is the accuracy, as each image has one label. Brier: Monthly Weather Review 78, 1 (1950). Calibration error:
# Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3, with bins of equal width.
METRICS = (
    Metric(MICRO, _counts, _accuracy),
    Metric(MACRO, _counts, lambda sums: _mean(_f1_by_class(sums)), needs=ALL),
    Metric(BALANCED, _counts, lambda sums: _mean(_recall(sums)), needs=ALL),
    Metric(AUC, placements, area, needs=ALL),
    Metric(BRIER, _squares, lambda sums: _ratio(sums[..., 0], sums[..., 1]), of_probabilities=True),
    Metric(
        CALIBRATION,
        _gaps,
        lambda sums: _ratio(np.abs(sums[..., :BINS]).sum(axis=-1), sums[..., BINS]),
        of_probabilities=True,
        smooth=False,
    ),
)
BY_NAME = {metric.name: metric for metric in METRICS}
