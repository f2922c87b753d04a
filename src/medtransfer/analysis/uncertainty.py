"""How sure a score is: the variance over lesions or patients and the variance between training runs.

Whole groups (lesions or patients) are left out, not images: images of one group are not independent. The two variances
are added, with Welch and Satterthwaite's degrees of freedom (docs/analysis-plan.md).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.special import betaincinv, expit, logit, stdtrit

from medtransfer.metrics.scores import ALL, NONE, Encoded, Metric, Value, metrics_of

LEVEL = 0.05
FEWEST_GROUPS = 10
FEWEST_OF_CLASS = 30  # for an interval of an AUC or a calibration slope: with fewer, one or two decide it
FEWEST_FITS = 3  # two can be alike by chance, and the interval would be too narrow
RESAMPLES = 1000
AT_ONCE = 100  # resamples held in memory
# What an interval covers.
BOTH, GROUPS, EXACT = "groups and seeds", "groups", "exact bound"
ALIKE = "none: all groups alike"
TOO_FEW_FITS = f"none: fewer than {FEWEST_FITS} seeds"


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

    def columns(self, value: str = "value") -> dict[str, object]:
        """Return a table's columns: the score under the name `value`, and `interval` for what the interval covers."""
        columns = asdict(self)
        return {value: columns.pop("value"), "interval": columns.pop("covers"), **columns}


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


def jackknife(encoded: Encoded) -> Jackknife:
    """Return every smooth metric of a fit with and without each group."""
    metrics = [metric for metric in metrics_of(encoded.classes) if metric.smooth]
    kinds = {metric.terms for metric in metrics}
    sums = {terms: sum_by_group(encoded, terms(encoded.codes, encoded.probabilities)) for terms in kinds}
    values, without = zip(*(leave_out(sums[metric.terms], metric.value) for metric in metrics), strict=True)
    held = np.zeros((encoded.groups.max() + 1, len(encoded.classes)), bool)
    held[encoded.groups, encoded.codes] = True
    return Jackknife([metric.name for metric in metrics], np.array(values), np.column_stack(without), held.sum(axis=0))


def leave_out(sums: np.ndarray, value: Value) -> tuple[float, np.ndarray]:
    """Return a score, and the scores without each group (groups,) minus their mean; `sums` from `sum_by_group`.

    Efron, The Jackknife, the Bootstrap and Other Resampling Plans, SIAM 1982.
    """
    total = sums.sum(axis=0)
    left = value(total - sums)
    return float(value(total)), left - left.mean()


def group_sums(encoded: Encoded, metric: Metric) -> np.ndarray:
    """Return the sums of a metric's terms over each group, (groups, terms)."""
    return sum_by_group(encoded, metric.terms(encoded.codes, encoded.probabilities))


def sum_by_group(encoded: Encoded, terms: np.ndarray) -> np.ndarray:
    """Sum the terms of the images, (images, terms), over each group: (groups, terms)."""
    sums = np.zeros((encoded.groups.max() + 1, terms.shape[1]))
    np.add.at(sums, encoded.groups, terms)
    return sums


def groups_variance(deviations: np.ndarray) -> float:
    """Return the jackknife variance of a score from its values without each group, less their mean."""
    count = len(deviations)
    return float((count - 1) / count * (deviations**2).sum())


def freedom(variance: Any, count: int, parts: Sequence[tuple[Any, int]]) -> Any:
    """Return Welch and Satterthwaite's degrees of freedom of a sum of variances; infinity where all are 0.

    `variance` is over `count` groups; each of `parts` is a variance and the number of fits or groups behind it.
    """
    total = variance + sum(part for part, _ in parts)
    squares = variance**2 / (count - 1) + sum(part**2 / (seeds - 1) for part, seeds in parts)
    return np.where(squares > 0, total**2 / np.where(squares > 0, squares, 1), np.inf)[()]


def share_ends(share: float, count: int) -> tuple[float, float]:
    """Return the bounds of a share when none or all of `count` groups are hits (Clopper and Pearson 1934)."""
    bound = float(betaincinv(1, count, 1 - LEVEL / 2))
    return share * (1 - bound), max(share, bound)


def f1_ends(f1: float, count: int) -> tuple[float, float]:
    """Return bounds of the F1 of a class of `count` groups if none or all were found.

    A recall r bounds F1 by 2r / (1 + r), where precision is 1.
    """
    low, high = share_ends(f1, count)
    return 2 * low / (1 + low), 2 * high / (1 + high)


Exact = Callable[[float, int], tuple[float, float]]


def estimate(
    fits: Iterable[tuple[float, np.ndarray]], jackknifed: Jackknife, needs: str | int, exact: Exact | None = f1_ends
) -> Estimate:
    """Return the mean of a score over seeds with its interval; `fits` from `leave_out`, the rest as in `combine`."""
    values, deviations = zip(*fits, strict=True)
    return combine(np.array(values), groups_variance(np.mean(deviations, axis=0)), jackknifed, needs, exact)


def resample(sums: np.ndarray, metric: Metric, seed: int) -> np.ndarray:
    """Return a metric of RESAMPLES draws of whole groups with replacement.

    `sums` is (groups, ..., terms); the same draws are used for every index between: (RESAMPLES, ...).
    """
    rng, count = np.random.default_rng(seed), len(sums)
    rows = count * np.arange(AT_ONCE)[:, None]
    drawn = []
    for _ in range(0, RESAMPLES, AT_ONCE):
        chosen = rng.integers(count, size=(AT_ONCE, count)) + rows
        times = np.bincount(chosen.ravel(), minlength=AT_ONCE * count).reshape(AT_ONCE, count)
        drawn.append(metric.value(np.tensordot(times, sums, axes=1)))
    return np.concatenate(drawn)


def too_few(jackknifed: Jackknife, needs: str | int) -> str | None:
    """Return why there are too few groups for what `needs` says as in Metric, or None; absent classes do not count."""
    fewest = jackknifed.groups
    if needs == ALL:
        fewest = min([fewest, *jackknifed.holders[jackknifed.holders > 0]])
    elif needs != NONE:
        fewest = int(jackknifed.holders[needs])
    return f"none: {fewest} groups" if fewest < FEWEST_GROUPS else None


def without_interval(found: Estimate, jackknifed: Jackknife, number: int) -> Estimate:
    """Drop the interval if fewer than FEWEST_OF_CLASS groups have the class, or fewer have any other class."""
    fewest = min(jackknifed.holders[number], jackknifed.holders.sum() - jackknifed.holders[number])
    if fewest >= FEWEST_OF_CLASS:
        return found
    return replace(found, low=np.nan, high=np.nan, covers=f"none: {fewest} groups")


def combine(
    values: np.ndarray, variance: float, jackknifed: Jackknife, needs: str | int, exact: Exact | None = f1_ends
) -> Estimate:
    """Return the mean of a score over seeds with its interval, from the values (seeds,) and their mean's variance.

    `exact` gives the bounds if no group, or every group, of the class that `needs` names is a hit; it is None if the
    score is not between 0 and 1.
    """
    value, few = float(values.mean()), too_few(jackknifed, needs)
    if exact and isinstance(needs, int) and value in (0, 1) and not few:
        ends = exact(value, int(jackknifed.holders[needs]))
        return Estimate(value, *ends, EXACT, len(values), deviation(values))
    return with_interval(values, [(variance, jackknifed.groups)], few, bounded=exact is not None)


def with_interval(
    values: np.ndarray, variances: Sequence[tuple[float, int]], few: str | None, *, bounded: bool
) -> Estimate:
    """Return the mean of values (seeds,) with its interval.

    Each of `variances` is the variance of the mean over some groups, and their number; the variance between seeds is
    added. `few` is from `too_few`. There is no interval if one of the variances is 0.
    """
    value, seeds = float(values.mean()), len(values)
    (variance, count), *parts = variances
    if few or not all(part > 0 for part, _ in variances):
        return Estimate(value, np.nan, np.nan, few or ALIKE, seeds, deviation(values))
    if seeds >= FEWEST_FITS:
        parts.append((float(values.var(ddof=1)) / seeds, seeds))
    error = float(np.sqrt(variance + sum(part for part, _ in parts)))
    ends = interval_ends(value, error, freedom(variance, count, parts), bounded=bounded)
    return Estimate(value, *ends, BOTH if seeds >= FEWEST_FITS else GROUPS, seeds, deviation(values))


def deviation(values: np.ndarray) -> float:
    """Return the standard deviation between fits; NaN for one."""
    return float(values.std(ddof=1)) if len(values) > 1 else np.nan


def interval_ends(value: float, error: float, degrees: float, *, bounded: bool = True) -> tuple[float, float]:
    """Return the ends of the 95% interval by Student's t, on the logit scale if the value lies between 0 and 1."""
    width = float(stdtrit(degrees, 1 - LEVEL / 2)) * error
    if bounded and value in (0, 1):
        return max(value - width, 0.0), min(value + width, 1.0)
    if not (bounded and 0 < value < 1):
        return value - width, value + width
    low, high = expit(logit(value) + np.array([-width, width]) / (value * (1 - value)))
    return float(low), float(high)
