"""Bootstrap intervals and paired tests over lesions or patients.

Whole lesions or patients are drawn, not images: those of one group are not independent
(the cluster bootstrap; Field and Welsh, J. R. Stat. Soc. B 69, 369-390, 2007).
"""

import warnings
from functools import lru_cache

import numpy as np
import pandas as pd

from medtransfer.core.predictions import classes_of
from medtransfer.metrics.scores import (
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

RESAMPLES = 1000
PERMUTATIONS = 9999
AT_ONCE = 1000  # permutations held in memory
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
        differences of single seeds (NaN for one), `least` and `most` of them, and `p`, of a studentized permutation
        test that swaps the two models' answers to whole groups.

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
        "least": float(by_seed.min()),
        "most": float(by_seed.max()),
        "p": _permute(ours, theirs, seed),
    }


def correct(p_values: np.ndarray) -> np.ndarray:
    """Return p-values corrected for their number (Holm, Scand. J. Stat. 6, 65-70, 1979).

    They bound the chance of any false discovery whatever the dependence of the tests, which here share images, and
    are never smaller among more tests than among fewer of the same.
    """
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    return np.minimum(corrected, 1)


def draw_weights(predictions: pd.DataFrame, seed: int) -> np.ndarray:
    """Return how often each group is drawn in each resample, shape (RESAMPLES, groups)."""
    return _draw(predictions.group.nunique(), seed)


# What is drawn depends on these two numbers alone and serves every model of a data set.
@lru_cache(maxsize=2)
def _draw(groups: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)


@lru_cache(maxsize=2)
def _swaps(groups: int, seed: int) -> np.ndarray:
    """Return which groups' answers each permutation swaps, (PERMUTATIONS, groups) bool."""
    return np.random.default_rng(seed).integers(0, 2, (PERMUTATIONS, groups), np.uint8).astype(bool)


def weighted_score(predictions: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    """Return F1 per class, then MEASURES, for each weighting of the groups: (resamples, groups) → (resamples, scores).

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

    It is scikit-learn's number without sorting again for each weighting: the share of pairs of a positive and
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
    """Return F1 per class (..., C) of confusion matrices (..., C, C)."""
    return _f1_of(2 * np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(axis=-2) + matrix.sum(axis=-1))


def _f1_of(twice_hits: np.ndarray, both: np.ndarray) -> np.ndarray:
    return np.divide(twice_hits, both, out=np.zeros_like(both), where=both > 0)


def _macro(matrix: np.ndarray) -> np.ndarray:
    return _f1(matrix).mean(axis=-1)


def span(values: np.ndarray) -> np.ndarray:
    """Return the low and high ends of the 95% percentile intervals of (resamples, ...)."""
    ends: np.ndarray = np.nanpercentile(values, [2.5, 97.5], axis=0)
    return ends


def _permute(ours: np.ndarray, theirs: np.ndarray, seed: int) -> float:
    """Return the two-sided p-value of the difference in macro F1 if each group's two answers were swapped at random.

    Every difference is divided by its own standard error. Else the test would ask whether the models' answers are
    interchangeable, and two that fail on different classes have other errors when they are mixed (Janssen, Stat.
    Probab. Lett. 36, 9-21, 1997; Chung and Romano, Ann. Stat. 41, 484-507, 2013). The observed order counts as one of
    those drawn (Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9, 39, 2010).
    """
    first, second = f1_terms(ours), f1_terms(theirs)
    seeds, groups, classes, _ = ours.shape
    unswapped = np.zeros((1, groups), bool)
    observed = studentized(first, second, unswapped, (seeds, 2, classes))[0]
    swaps = _swaps(groups, seed)
    drawn = [
        studentized(first, second, swaps[begin : begin + AT_ONCE], (seeds, 2, classes))
        for begin in range(0, PERMUTATIONS, AT_ONCE)
    ]
    as_large = 1 + int((np.concatenate(drawn) >= observed * (1 - ROUNDING)).sum())
    return as_large / (PERMUTATIONS + 1)


def f1_terms(counts: np.ndarray) -> np.ndarray:
    """Return what F1 is a ratio of, twice the hits and labels plus answers: (groups, seeds · 2 · C)."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    terms = np.stack([2 * hits, counts.sum(axis=-2) + counts.sum(axis=-1)], axis=2)  # (seeds, groups, 2, C)
    return terms.transpose(1, 0, 2, 3).reshape(counts.shape[1], -1)


def studentized(first: np.ndarray, second: np.ndarray, swaps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return, for each way of swapping, the size of the difference in macro F1 over its standard error.

    The standard error is the infinitesimal jackknife's over groups: what each adds to the difference, to first order,
    squared and summed (Efron, The Jackknife, the Bootstrap and Other Resampling Plans, SIAM 1982, chapter 6).

    Parameters
    ----------
    first, second : ndarrays (groups, terms)
        From `f1_terms`; `shape` is that of a group's terms.
    swaps : ndarray (ways, groups), bool
    """
    moved = swaps.astype(float) @ (second - first)
    (ours, by_ours), (theirs, by_theirs) = (
        _macro_and_slopes(totals, shape) for totals in (first.sum(axis=0) + moved, second.sum(axis=0) - moved)
    )
    kept, swapped = first @ by_ours - second @ by_theirs, second @ by_ours - first @ by_theirs  # (groups, ways)
    error = np.sqrt((np.where(swaps.T, swapped, kept) ** 2).sum(axis=0))
    difference = np.abs(ours - theirs)
    with np.errstate(divide="ignore"):
        return np.divide(difference, error, out=np.zeros_like(error), where=difference > ROUNDING)


def _macro_and_slopes(totals: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return macro F1 averaged over seeds (ways,), and its derivatives with respect to the terms (terms, ways)."""
    twice_hits, both = totals.reshape(-1, *shape).transpose(2, 0, 1, 3)  # (ways, seeds, C)
    share = np.divide(1, both, out=np.zeros_like(both), where=both > 0) / (shape[0] * shape[2])
    f1 = _f1_of(twice_hits, both)
    slopes = np.stack([share, -f1 * share], axis=2).reshape(len(totals), -1).T
    return f1.mean(axis=(1, 2)), slopes
