"""Whether predicted probabilities match how often they are right, and temperature scaling, which improves that.

Temperature scaling: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
"""

from typing import Any

import numpy as np
import pandas as pd
import scipy.optimize
from scipy.special import expit, logit

from medtransfer.analysis.families import family
from medtransfer.analysis.runs import Run, by_model
from medtransfer.analysis.uncertainty import (
    FEWEST_GROUPS,
    Estimate,
    estimate,
    groups_variance,
    interval_ends,
    share_ends,
    sum_by_group,
    without_interval,
)
from medtransfer.core.predictions import classes_of, probability_columns
from medtransfer.metrics.scores import BINS, bin_of, encode

BOUNDS = (-3.0, 3.0)  # of the temperature's natural logarithm
MARGIN = 0.01  # how near to an end of it the search ends
SMALLEST = 1e-12
CLIPPED = 1e-6  # a probability of 0 or 1 has no logit
STEPS = 100  # of Newton's method, which takes about ten
COLUMNS = [
    "dataset", "model", "family", "class", "intercept", "intercept_low", "intercept_high", "slope", "slope_low",
    "slope_high", "interval", "seeds",
]  # fmt: skip


def fit_temperature(validation: pd.DataFrame) -> float:
    """Return the temperature that makes the validation labels most likely; above 1 softens the probabilities."""
    _, codes, probabilities, _ = encode(validation)
    logits = np.log(np.maximum(probabilities, SMALLEST))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(codes)), codes]))

    return float(np.exp(scipy.optimize.minimize_scalar(loss, bounds=BOUNDS, method="bounded").x))


def believable(temperature: float) -> bool:
    """Return whether the validation images determined a temperature, not a limit of the search.

    If a few images are all predicted correctly, their likelihood grows with ever more confidence.
    """
    return BOUNDS[0] + MARGIN < float(np.log(temperature)) < BOUNDS[1] - MARGIN


def scale(predictions: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """Return the predictions with their probabilities at another temperature; the most probable class stays."""
    columns = probability_columns(classes_of(predictions))
    scaled = temper(encode(predictions).probabilities, temperature)
    return predictions.assign(**dict(zip(columns, scaled.T, strict=True)))


def temper(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities (n, classes) at another temperature, float64."""
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), SMALLEST)) / temperature
    return np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


def calibration_table(runs: list[Run]) -> pd.DataFrame:
    """Return the calibration intercept and slope of every network and class, one class against the rest.

    A tree's probabilities are shares of training images, many of them exactly 0 or 1, which have no logit.

    For calibrated probabilities, the intercept is 0 and the slope is 1. The intercept is fitted with the slope fixed
    at 1: it is negative if the probabilities of the class are too high on average. A slope below 1 means that the
    probabilities are too extreme (Van Calster et al., BMC Medicine 17, 230, 2019).

    Returns
    -------
    DataFrame
        dataset, model, family, class, intercept and slope, each with `_low` and `_high` (95% interval), interval (what
        it covers), seeds. Where a fit separates the class from all others, the slope is missing. It has no
        interval where fewer than FEWEST_OF_CLASS groups have the class, or fewer than that have other classes.
    """
    rows = []
    networks = [run for run in runs if run.is_network]
    for dataset, model, fits in by_model(networks):
        for number, name in enumerate(classes_of(fits[0].predictions)):
            intercept = _recalibrated(fits, number, with_slope=False)
            slope = without_interval(_recalibrated(fits, number, with_slope=True), fits[0].jackknife, number)
            row: dict[str, Any] = {"dataset": dataset, "model": model, "family": family(fits[0].record), "class": name}
            row |= {"interval": intercept.covers, "seeds": intercept.seeds}
            for measure, found in (("intercept", intercept), ("slope", slope)):
                row |= {measure: found.value, f"{measure}_low": found.low, f"{measure}_high": found.high}
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def _recalibrated(fits: list[Run], number: int, *, with_slope: bool) -> Estimate:
    left = []
    for run in fits:
        is_class, probability = run.encoded.codes == number, run.encoded.probabilities[:, number]
        value, changes = recalibration(is_class, probability, with_slope)
        left.append((value, sum_by_group(run.encoded, changes)[:, 0]))
    return estimate(left, fits[0].jackknife, number, None)


def recalibration(is_class: np.ndarray, probability: np.ndarray, with_slope: bool) -> tuple[float, np.ndarray]:
    """Fit the logit of one class's probability (n,) to whether an image is of that class (n,), by logistic regression.

    Return the slope (of a model with an intercept), or the intercept with the slope fixed at 1; NaN if there is none.
    Then, (n, 1), how much leaving out each image would change it, to first order.
    """
    x = logit(probability.clip(CLIPPED, 1 - CLIPPED))
    columns, offset = (np.column_stack([np.ones_like(x), x]), 0.0) if with_slope else (np.ones((len(x), 1)), x)
    weights = np.zeros(columns.shape[1])
    none = np.nan, np.zeros((len(x), 1))
    for _ in range(STEPS):
        mean = expit(columns @ weights + offset)
        information = columns.T @ (columns * (mean * (1 - mean))[:, None])
        if np.linalg.cond(information) > 1 / SMALLEST:
            return none
        step = np.linalg.solve(information, columns.T @ (is_class - mean))
        weights = weights + step
        if np.abs(step).max() < SMALLEST**0.5:
            changes = -(columns * (is_class - mean)[:, None]) @ np.linalg.inv(information)
            return float(weights[-1]), changes[:, -1:]
    return none


def reliability(fits: list[Run]) -> pd.DataFrame:
    """Return how often the predictions of a model are right, by their confidence, over all of its seeds.

    The columns are confidence (mean of a bin), accuracy, low and high (95% interval over groups, of these fits). Bins
    with predictions for fewer than FEWEST_GROUPS groups are left out.
    """
    parts = []
    for run in fits:
        _, codes, probabilities, _ = run.encoded
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == codes
        bins = np.eye(BINS)[bin_of(confidence)]
        terms = np.hstack([bins * right[:, None], bins * confidence[:, None], bins])
        parts.append(sum_by_group(run.encoded, terms))
    hits, confidences, counts = np.split(np.sum(parts, axis=0), 3, axis=1)
    rows = []
    for hit, confidence, count in zip(hits.T, confidences.T, counts.T, strict=True):
        if (count > 0).sum() >= FEWEST_GROUPS:
            accuracy = hit.sum() / count.sum()
            if accuracy in (0, 1):
                low, high = share_ends(accuracy, int((count > 0).sum()))
            else:
                left = (hit.sum() - hit) / (count.sum() - count)
                low, high = interval_ends(accuracy, np.sqrt(groups_variance(left - left.mean())), len(count) - 1)
            rows.append((confidence.sum() / count.sum(), accuracy, low, high))
    return pd.DataFrame(rows, columns=["confidence", "accuracy", "low", "high"], dtype=float)
