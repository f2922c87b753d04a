"""Bootstrap intervals and paired tests over lesions or patients.

Whole lesions or patients are drawn, not images: those of one group are not independent
(the cluster bootstrap; Field and Welsh, J. R. Stat. Soc. B 69, 369-390, 2007).
"""

import warnings
from functools import lru_cache

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
ROUNDING = 1e-12
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
    weights = draw_weights(fits[0], seed)
    low, high = span(np.mean([weighted_score(predictions, weights) for predictions in fits], axis=0))
    names = [*classes_of(fits[0]), *MEASURES]
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


def compare_pair(first: list[pd.DataFrame], second: list[pd.DataFrame], seed: int) -> dict[str, float]:
    """Compare the macro F1 of two models on the same images, each averaged over its seeds.

    Returns
    -------
    dict
        `difference` (first less second), `low` and `high` of its 95% bootstrap interval over groups, `sd` of the
        differences of single seeds (NaN for one), and `p`, of a permutation test that swaps the two models'
        answers to whole groups.

    Raises
    ------
    ValueError
        The fits were not tested on the same images, or one model has more seeds than the other.
    """
    _check_same_images([*first, *second])
    if len(first) != len(second):
        raise ValueError(f"{len(first)} fits cannot be paired with {len(second)}")
    ours, theirs = (np.stack([counts_by_group(predictions) for predictions in fits]) for fits in (first, second))
    weights = draw_weights(first[0], seed)
    low, high = span((_macro(_weigh(ours, weights)) - _macro(_weigh(theirs, weights))).mean(axis=0))
    by_seed = _macro(ours.sum(axis=1)) - _macro(theirs.sum(axis=1))
    return {
        "difference": float(by_seed.mean()),
        "low": float(low),
        "high": float(high),
        "sd": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan"),
        "p": _permute(ours, theirs, seed),
    }


def correct(p_values: np.ndarray) -> np.ndarray:
    """Return p-values corrected for their number (Benjamini and Yekutieli, Ann. Stat. 29, 1165, 2001).

    They bound the share of false discoveries whatever the dependence of the tests, which here share images.
    """
    corrected: np.ndarray = scipy.stats.false_discovery_control(p_values, method="by")
    return corrected


def draw_weights(predictions: pd.DataFrame, seed: int) -> np.ndarray:
    """Return how often each group is drawn in each resample, shape (RESAMPLES, groups)."""
    return _draw(predictions.group.nunique(), seed)


# What is drawn depends on these two numbers alone and serves every model of a data set.
@lru_cache(maxsize=2)
def _draw(groups: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)


@lru_cache(maxsize=2)
def _swaps(groups: int, seed: int) -> np.ndarray:
    """Return which groups' answers each permutation swaps, 0 or 1, (PERMUTATIONS, groups) float32."""
    swaps: np.ndarray = np.random.default_rng(seed).integers(0, 2, (PERMUTATIONS, groups), np.uint8)
    return swaps.astype(np.float32)


def weighted_score(predictions: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    """Return F1 a class, then MEASURES, for each weighting of the groups: (resamples, groups) → (resamples, scores).

    Weights that are all 1 give what `score` gives.
    """
    codes, probabilities = encode(predictions)
    groups = pd.factorize(predictions.group)[0]
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == codes
    gaps = np.zeros((weights.shape[1], BINS))
    np.add.at(gaps, (groups, bin_of(confidence)), right - confidence)
    squares = ((probabilities - np.eye(probabilities.shape[1])[codes]) ** 2).sum(axis=1)
    squares /= 2 if probabilities.shape[1] == 2 else 1
    matrix = _weigh(counts_by_group(predictions), weights)  # (resamples, C, C)
    images = weights[:, groups].astype(float)  # (resamples, n)
    by_class, hits, true = _f1(matrix), np.diagonal(matrix, axis1=1, axis2=2), matrix.sum(axis=2)
    total = images.sum(axis=1)
    by_image = np.ascontiguousarray(images.T, np.float32)  # sums of counts this small are exact in float32
    areas = [_weighted_areas(codes == number, column, by_image) for number, column in enumerate(probabilities.T)]
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a resample with one class alone has no area
        recall, area = np.nanmean(hits / true, axis=1), np.nanmean(areas, axis=0)
    averages = [hits.sum(axis=1) / total, by_class.mean(axis=1), recall, area]
    trust = [images @ squares / total, np.abs(weights @ gaps).sum(axis=1) / total]
    return np.column_stack([by_class, *averages, *trust])


def _weighted_areas(positive: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve of `values` (n,) for each weighting (n, resamples); NaN without a pair.

    It is scikit-learn's number without sorting anew for each weighting: the share of pairs of a positive and
    a negative image that are in order, ties counting half.
    """
    order = np.argsort(values)
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    weights, positive = weights[order], positive[order, None]
    ones = np.add.reduceat(weights * positive, starts)
    zeros = np.add.reduceat(weights * ~positive, starts)
    below = np.cumsum(zeros, axis=0) - zeros / 2
    pairs = np.einsum("nr,nr->r", ones, below, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return pairs / (ones.sum(axis=0, dtype=np.float64) * zeros.sum(axis=0, dtype=np.float64))


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
    """Add confusion matrices (..., groups, C, C) up for each weighting (resamples, groups): (..., resamples, C, C)."""
    *lead, groups, classes, _ = counts.shape
    return (weights @ counts.reshape(*lead, groups, -1)).reshape(*lead, len(weights), classes, classes)


def _f1(matrix: np.ndarray) -> np.ndarray:
    """Return F1 a class (..., C) of confusion matrices (..., C, C)."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    both = matrix.sum(axis=-2) + matrix.sum(axis=-1)
    return np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)


def _macro(matrix: np.ndarray) -> np.ndarray:
    return _f1(matrix).mean(axis=-1)


def span(values: np.ndarray) -> np.ndarray:
    """Return the low and high ends of the 95% percentile intervals of (resamples, ...)."""
    ends: np.ndarray = np.nanpercentile(values, [2.5, 97.5], axis=0)
    return ends


def _permute(ours: np.ndarray, theirs: np.ndarray, seed: int) -> float:
    """Return the two-sided p-value of the difference in macro F1 if each group's two answers were swapped at random.

    scipy.stats.permutation_test draws one permutation at a time in Python, which takes ten times as long. The
    observed order counts as one of those drawn (Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9, 39, 2010).
    """
    groups = ours.shape[1]
    totals = ours.sum(axis=1), theirs.sum(axis=1)  # (seeds, C, C)
    moved = (theirs - ours).transpose(1, 0, 2, 3).reshape(groups, -1)  # (groups, seeds · C · C)
    observed = abs((_macro(totals[0]) - _macro(totals[1])).mean())
    change = (_swaps(groups, seed) @ moved.astype(np.float32)).reshape(PERMUTATIONS, *totals[0].shape)
    differences = (_macro(totals[0] + change) - _macro(totals[1] - change)).mean(axis=-1)
    as_large = 1 + int((abs(differences) >= observed - ROUNDING).sum())
    return as_large / (PERMUTATIONS + 1)
