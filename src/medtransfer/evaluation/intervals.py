"""Bootstrap intervals and paired tests over lesions or patients.

Whole lesions or patients are drawn, not images: those of one group are not independent
(the cluster bootstrap; Field and Welsh, J. R. Stat. Soc. B 69, 369-390, 2007).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from medtransfer.evaluation.metrics import (
    AUC,
    BALANCED,
    BINS,
    BRIER,
    CALIBRATION,
    MACRO,
    MICRO,
    bin_of,
    encode,
)
from medtransfer.evaluation.predictions import classes_of

RESAMPLES = 1000
PERMUTATIONS = 9999
MEASURES = (MICRO, MACRO, BALANCED, AUC, BRIER, CALIBRATION)


def intervals(fits: list[pd.DataFrame], seed: int) -> dict[str, tuple[float, float]]:
    """Return 95% percentile bootstrap intervals of everything that `score` returns, averaged over fits.

    Parameters
    ----------
    fits : list of DataFrames
        The predictions of several seeds for the same images.
    seed : int
        Of the resampling.

    Raises
    ------
    ValueError
        The fits were not tested on the same images.
    """
    _check_same_images(fits)
    scorers = [weighted_score(predictions) for predictions in fits]

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.mean([scorer(weights) for scorer in scorers], axis=0)

    low, high = _bootstrap(statistic, fits[0], seed)
    names = [*classes_of(fits[0]), *MEASURES]
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


def compare_pair(first: list[pd.DataFrame], second: list[pd.DataFrame], seed: int) -> dict[str, float]:
    """Compare the macro F1 of two models on the same images, each averaged over its seeds.

    Returns
    -------
    dict
        `difference` (first less second), `low` and `high` of its 95% bootstrap interval over groups, and
        `p`, of a permutation test that swaps the two models' answers to whole groups.

    Raises
    ------
    ValueError
        The fits were not tested on the same images, or one model has more seeds than the other.
    """
    _check_same_images([*first, *second])
    if len(first) != len(second):
        raise ValueError(f"{len(first)} fits cannot be paired with {len(second)}")
    ours, theirs = (np.stack([counts_by_group(predictions) for predictions in fits]) for fits in (first, second))

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.array([_macro(_weigh(ours, weights)).mean() - _macro(_weigh(theirs, weights)).mean()])

    low, high = _bootstrap(statistic, first[0], seed)
    groups = ours.shape[1]
    return {
        "difference": float(statistic(np.ones(groups))[0]),
        "low": float(low[0]),
        "high": float(high[0]),
        "p": _permute(ours, theirs, seed),
    }


def correct(p_values: np.ndarray) -> np.ndarray:
    """Return p-values corrected for their number (Benjamini and Yekutieli, Ann. Stat. 29, 1165, 2001).

    They bound the share of false discoveries whatever the dependence of the tests, which here share images.
    """
    corrected: np.ndarray = scipy.stats.false_discovery_control(p_values, method="by")
    return corrected


def weighted_score(predictions: pd.DataFrame) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of the groups' weights (groups,): F1 a class, then MEASURES.

    Weights that are all 1 give what `score` gives.
    """
    codes, probabilities = encode(predictions)
    groups = pd.factorize(predictions.group)[0]
    counts = counts_by_group(predictions)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == codes
    gaps = np.zeros((len(counts), BINS))
    np.add.at(gaps, (groups, bin_of(confidence)), right - confidence)
    squares = ((probabilities - np.eye(probabilities.shape[1])[codes]) ** 2).sum(axis=1)
    squares /= 2 if probabilities.shape[1] == 2 else 1
    areas = [_weighted_area(codes == number, column) for number, column in enumerate(probabilities.T)]

    def scores(weights: np.ndarray) -> np.ndarray:
        matrix = _weigh(counts, weights)
        by_class, images = _f1(matrix), weights[groups]
        there = matrix.sum(axis=1) > 0
        recall = np.diag(matrix)[there] / matrix.sum(axis=1)[there]
        return np.array(
            [
                *by_class,
                np.diag(matrix).sum() / matrix.sum(),
                by_class.mean(),
                recall.mean(),
                np.mean([area(images) for area, seen in zip(areas, there, strict=True) if seen])
                if there.sum() > 1
                else np.nan,
                np.average(squares, weights=images),
                np.abs(weights @ gaps).sum() / images.sum(),
            ]
        )

    return scores


def _weighted_area(positive: np.ndarray, values: np.ndarray) -> Callable[[np.ndarray], float]:
    """Return a function of the images' weights: the area under the ROC curve of `values` (n,).

    It is scikit-learn's number without sorting anew for each weighting: the share of pairs of a positive and
    a negative image that are in order, ties counting half.
    """
    order = np.argsort(values)
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    positive = positive[order]

    def area(weights: np.ndarray) -> float:
        ones = np.add.reduceat(np.where(positive, weights[order], 0), starts)
        zeros = np.add.reduceat(np.where(positive, 0, weights[order]), starts)
        below = np.cumsum(zeros) - zeros / 2
        return float(ones @ below / (ones.sum() * zeros.sum()))

    return area


def counts_by_group(predictions: pd.DataFrame) -> np.ndarray:
    """Return a confusion matrix for each group, shape (groups, classes, classes), in order of appearance."""
    codes, probabilities = encode(predictions)
    groups = pd.factorize(predictions.group)[0]
    counts = np.zeros((groups.max() + 1, probabilities.shape[1], probabilities.shape[1]))
    np.add.at(counts, (groups, codes, probabilities.argmax(axis=1)), 1)
    return counts


def _check_same_images(fits: list[pd.DataFrame]) -> None:
    if any(list(fit.id) != list(fits[0].id) for fit in fits):
        raise ValueError("the fits were tested on different images")


def _weigh(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Add confusion matrices (..., groups, C, C) up with the groups' weights (groups,)."""
    return np.einsum("...gij,g->...ij", counts, weights)


def _f1(matrix: np.ndarray) -> np.ndarray:
    """Return F1 a class (..., C) of confusion matrices (..., C, C)."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    both = matrix.sum(axis=-2) + matrix.sum(axis=-1)
    return np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)


def _macro(matrix: np.ndarray) -> np.ndarray:
    return _f1(matrix).mean(axis=-1)


def _bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], predictions: pd.DataFrame, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the low and high ends of the 95% intervals of a statistic of the groups' weights."""
    groups = predictions.group.nunique()
    result = scipy.stats.bootstrap(
        (np.arange(groups),),
        lambda drawn: statistic(np.bincount(drawn, minlength=groups).astype(float)),
        n_resamples=RESAMPLES,
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(seed),
    )
    return result.confidence_interval


def _permute(ours: np.ndarray, theirs: np.ndarray, seed: int) -> float:
    """Return the two-sided p-value of the difference in macro F1 if each group's two answers were swapped at random."""
    groups = ours.shape[1]
    totals = ours.sum(axis=1), theirs.sum(axis=1)  # (seeds, C, C)

    def moved(counts: np.ndarray, swapped: np.ndarray) -> np.ndarray:
        seeds, _, classes, _ = counts.shape
        flat = counts.transpose(1, 0, 2, 3).reshape(groups, -1)
        return (swapped @ flat).reshape(*swapped.shape[:-1], seeds, classes, classes)

    def statistic(first: np.ndarray, second: np.ndarray, axis: int) -> Any:
        swapped = np.moveaxis(np.asarray(first) >= groups, axis, -1).astype(float)
        out, back = moved(ours, swapped), moved(theirs, swapped)
        return (_macro(totals[0] - out + back) - _macro(totals[1] - back + out)).mean(axis=-1)

    result = scipy.stats.permutation_test(
        (np.arange(groups), np.arange(groups) + groups),
        statistic,
        permutation_type="samples",
        n_resamples=PERMUTATIONS,
        batch=500,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)
