"""How sure a score is: the variance over lesions or patients and the variance between training runs.

Whole groups (lesions or patients) are left out, not images: images of one group are not independent. The two variances
are added, with Welch and Satterthwaite's degrees of freedom (docs/analysis-plan.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import expit, logit

from medtransfer.core.predictions import classes_of
from medtransfer.metrics.scores import ALL, NONE, Metric, encode, metrics_of

LEVEL = 0.05
FEWEST_GROUPS = 10
FEWEST_FITS = 3  # two can be alike by chance, and the interval would be too narrow
RESAMPLES = 1000
AT_ONCE = 100  # resamples held in memory
# What an interval covers.
BOTH, GROUPS, EXACT = "groups and seeds", "groups", "exact bound"
ALIKE = "none: all groups alike"


@dataclass(frozen=True)
class Estimate:
    """A score of a model.

    value : mean over seeds
    low, high : 95% interval; NaN if there are too few groups
    covers : BOTH, GROUPS (with fewer than FEWEST_FITS seeds: of these fits), EXACT (of a class without a hit or without
        a miss) or why there is none
    seeds : number of fits
    sd : standard deviation between the fits; NaN for one
    """

    value: float
    low: float
    high: float
    covers: str
    seeds: int
    sd: float


@dataclass(frozen=True)
class Jackknife:
    """Every smooth metric of one fit, and what it becomes without each group.

    names : metrics
    values : (metrics,)
    without : (groups, metrics), less their mean over groups
    holders : groups that hold each class, (classes,)
    """

    names: list[str]
    values: np.ndarray
    without: np.ndarray
    holders: np.ndarray

    @property
    def groups(self) -> int:
        """The number of groups."""
        return len(self.without)

    def of(self, name: str) -> tuple[float, np.ndarray]:
        """Return one metric's value and its deviations (groups,)."""
        column = self.names.index(name)
        return float(self.values[column]), self.without[:, column]


def jackknife(predictions: pd.DataFrame) -> Jackknife:
    """Leave out each group in turn (Efron, The Jackknife, the Bootstrap and Other Resampling Plans, SIAM 1982)."""
    metrics = [metric for metric in metrics_of(classes_of(predictions)) if metric.smooth]
    values, without = [], []
    for metric in metrics:
        sums = group_sums(predictions, metric)
        total = sums.sum(axis=0)
        values.append(metric.value(total))
        left = metric.value(total - sums)
        without.append(left - left.mean())
    codes, groups = encode(predictions)[0], pd.factorize(predictions.group)[0]
    held = np.zeros((groups.max() + 1, len(classes_of(predictions))), bool)
    held[groups, codes] = True
    return Jackknife([metric.name for metric in metrics], np.array(values), np.column_stack(without), held.sum(axis=0))


def group_sums(predictions: pd.DataFrame, metric: Metric) -> np.ndarray:
    """Return the sums of a metric's terms over each group, (groups, terms), in order of appearance."""
    return sum_by_group(predictions, metric.terms(*encode(predictions)))


def sum_by_group(predictions: pd.DataFrame, terms: np.ndarray) -> np.ndarray:
    """Add up what each image has, (images, terms), over each group: (groups, terms), in order of appearance."""
    groups = pd.factorize(predictions.group)[0]
    sums = np.zeros((groups.max() + 1, terms.shape[1]))
    np.add.at(sums, groups, terms)
    return sums


def groups_variance(deviations: np.ndarray) -> float:
    """Return the jackknife variance of a score from its values without each group, less their mean."""
    count = len(deviations)
    return float((count - 1) / count * (deviations**2).sum())


def freedom(variance: Any, count: int, parts: Sequence[tuple[Any, int]]) -> Any:
    """Return Welch and Satterthwaite's degrees of freedom of a sum of variances; infinity where all are 0.

    Parameters
    ----------
    variance : float or ndarray
        Over `count` groups.
    parts : sequence of (float or ndarray, int)
        The variance of each model's mean over seeds, and the number of its seeds.
    """
    total = variance + sum(part for part, _ in parts)
    squares = variance**2 / (count - 1) + sum(part**2 / (seeds - 1) for part, seeds in parts)
    return np.where(squares > 0, total**2 / np.where(squares > 0, squares, 1), np.inf)[()]


def estimate(fits: Sequence[Jackknife], metric: Metric) -> Estimate:
    """Return a smooth metric of a model with its interval.

    Parameters
    ----------
    fits : sequence of Jackknife
        One per seed, of the same test images.
    """
    values, deviations = zip(*(fit.of(metric.name) for fit in fits), strict=True)
    return combine(np.array(values), groups_variance(np.mean(deviations, axis=0)), fits[0], metric.needs)


def estimate_by_bootstrap(fits: Sequence[pd.DataFrame], counted: Jackknife, metric: Metric, seed: int) -> Estimate:
    """Return a metric that is not smooth, with its bias corrected and an interval, by resampling whole groups.

    The bias of a mean of absolute values grows with every resampling, so it can be measured and taken off: twice the
    value less the mean over resamples (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 10.6).
    """
    sums = [group_sums(predictions, metric) for predictions in fits]
    values = np.array([metric.value(own.sum(axis=0)) for own in sums])
    drawn = np.mean([resample(own, metric, seed) for own in sums], axis=0)
    bias = drawn.mean() - values.mean()
    return combine((values - bias).clip(0), float(drawn.var(ddof=1)), counted, metric.needs)


def resample(sums: np.ndarray, metric: Metric, seed: int) -> np.ndarray:
    """Return a metric of RESAMPLES draws of whole groups with replacement, from `group_sums`."""
    rng, count = np.random.default_rng(seed), len(sums)
    rows = count * np.arange(AT_ONCE)[:, None]
    drawn = []
    for _ in range(0, RESAMPLES, AT_ONCE):
        chosen = rng.integers(count, size=(AT_ONCE, count)) + rows
        times = np.bincount(chosen.ravel(), minlength=AT_ONCE * count).reshape(AT_ONCE, count)
        drawn.append(metric.value(times @ sums))
    return np.concatenate(drawn)


def too_few(counted: Jackknife, needs: str | int = ALL) -> str | None:
    """Return why there are too few groups for an interval, or None.

    Parameters
    ----------
    needs : str or int
        As in Metric. Classes that are not there do not count.
    """
    fewest = counted.groups
    if needs == ALL:
        fewest = min([fewest, *counted.holders[counted.holders > 0]])
    elif needs != NONE:
        fewest = int(counted.holders[needs])
    return f"none: {fewest} groups" if fewest < FEWEST_GROUPS else None


def combine(
    values: np.ndarray, variance: float, counted: Jackknife, needs: str | int, *, bounded: bool = True
) -> Estimate:
    """Return the mean of a score over seeds with its interval.

    Parameters
    ----------
    values : ndarray (seeds,)
    variance : float
        Of their mean, over groups.
    needs : str or int
        As in Metric.
    bounded : bool
        Whether the score lies between 0 and 1.
    """
    value, seeds = float(values.mean()), len(values)
    sd = float(values.std(ddof=1)) if seeds > 1 else np.nan
    few = too_few(counted, needs)
    if bounded and isinstance(needs, int) and value in (0, 1) and not few:
        return Estimate(value, *_exact(value, int(counted.holders[needs])), EXACT, seeds, sd)
    if few or not variance > 0:
        return Estimate(value, np.nan, np.nan, few or ALIKE, seeds, sd)
    parts = [(float(values.var(ddof=1)) / seeds, seeds)] if seeds >= FEWEST_FITS else []
    error = float(np.sqrt(variance + sum(part for part, _ in parts)))
    ends = interval_ends(value, error, freedom(variance, counted.groups, parts), bounded=bounded)
    return Estimate(value, *ends, BOTH if parts else GROUPS, seeds, sd)


def interval_ends(value: float, error: float, degrees: float, *, bounded: bool = True) -> tuple[float, float]:
    """Return the ends of the 95% interval by Student's t, on the logit scale if the value lies between 0 and 1."""
    width = float(stats.t.ppf(1 - LEVEL / 2, degrees)) * error
    if not (bounded and 0 < value < 1):
        return value - width, value + width
    low, high = expit(logit(value) + np.array([-width, width]) / (value * (1 - value)))
    return float(low), float(high)


def _exact(f1: float, count: int) -> tuple[float, float]:
    """Return bounds of the F1 of a class of `count` groups if none or all were found (Clopper and Pearson 1934).

    A recall r bounds F1 by 2r / (1 + r), where precision is 1.
    """
    recall = stats.beta.ppf(1 - LEVEL / 2, 1, count)
    if f1 == 0:
        return 0.0, float(2 * recall / (1 + recall))
    return float(2 * (1 - recall) / (2 - recall)), 1.0
