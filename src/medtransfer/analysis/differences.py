"""Two models compared: the difference of their macro F1, and how sure it is."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from medtransfer.analysis.families import family_of_pair
from medtransfer.analysis.runs import Run, by_model, check_same_images, collapsed
from medtransfer.analysis.uncertainty import (
    BOTH,
    FEWEST_FITS,
    GROUPS,
    LEVEL,
    TOO_FEW_FITS,
    Jackknife,
    deviation,
    freedom,
    groups_variance,
    too_few,
)
from medtransfer.core.tables import read_result
from medtransfer.metrics.scores import BY_NAME, MACRO, Metric

COLLAPSED = "none: finds one class"


@dataclass(frozen=True)
class Comparison:
    """The difference in macro F1 between two models of a data set on the same test images, first less second.

    family : the question that the pair answers (see `families`)
    difference : of the means over seeds
    groups : number of lesions or patients among the test images
    groups_sd : standard error of the difference over these groups
    first_seeds, second_seeds : number of fits of each model
    first_sd, second_sd : standard deviation between the fits of each model; NaN for one
    few : why there is no interval, such as too few groups; else empty
    """

    dataset: str
    family: str
    first: str
    second: str
    difference: float
    groups: int
    groups_sd: float
    first_seeds: int
    second_seeds: int
    first_sd: float
    second_sd: float
    few: str = ""

    @property
    def fewest_seeds(self) -> int:
        """The number of seeds of the model that has fewer."""
        return min(self.first_seeds, self.second_seeds)

    @property
    def interval(self) -> str:
        """What the interval covers, or why there is none.

        BOTH with FEWEST_FITS seeds of each model, and GROUPS, for these fits only, with fewer of each. With fewer of
        one model, the interval would leave out the variance that is known of the other.
        """
        if self.few or self.fewest_seeds >= FEWEST_FITS:
            return self.few or BOTH
        return GROUPS if max(self.first_seeds, self.second_seeds) < FEWEST_FITS else TOO_FEW_FITS

    @property
    def _parts(self) -> list[tuple[float, int]]:
        if self.fewest_seeds < FEWEST_FITS:
            return []
        sides = ((self.first_sd, self.first_seeds), (self.second_sd, self.second_seeds))
        return [(sd**2 / seeds, seeds) for sd, seeds in sides]

    @cached_property
    def error(self) -> float:
        """The standard error of the difference."""
        return float(np.sqrt(self.groups_sd**2 + sum(part for part, _ in self._parts)))

    @cached_property
    def freedom(self) -> float:
        """Welch and Satterthwaite's degrees of freedom."""
        return float(freedom(self.groups_sd**2, self.groups, self._parts))

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the 95% interval; NaN where there is none."""
        return self.ends_at(LEVEL)

    def ends_at(self, level: float) -> tuple[float, float]:
        """Return the ends of the interval that covers the truth with a probability of 1 - `level`."""
        if self.interval not in (BOTH, GROUPS):
            return np.nan, np.nan
        width = float(stdtrit(self.freedom, 1 - level / 2)) * self.error
        return self.difference - width, self.difference + width

    @property
    def p(self) -> float:
        """The two-sided p-value of no difference between the recipes; NaN with too few seeds or groups."""
        if self.interval != BOTH:
            return np.nan
        return float(2 * stdtr(self.freedom, -abs(self.difference) / self.error)) if self.error else 1.0

    def reversed(self) -> "Comparison":
        """Return the comparison of the second model with the first."""
        return replace(
            self,
            first=self.second,
            second=self.first,
            difference=0.0 - self.difference,  # no -0.0
            first_seeds=self.second_seeds,
            second_seeds=self.first_seeds,
            first_sd=self.second_sd,
            second_sd=self.first_sd,
        )


COLUMNS = [field.name for field in fields(Comparison)]


def compare_models(runs: list[Run]) -> list[Comparison]:
    """Compare all pairs of models of a data set that answer a question, each with all of its seeds.

    There is no interval if no seed of a model finds more than one class: such scores hardly vary between seeds.
    """
    models = by_model(runs)
    broken = {(dataset, model) for dataset, model, fits in models if collapsed(fits)}
    pairs = [
        compare(first, second, family)
        for (dataset, _, first), (other, _, second) in combinations(models, 2)
        if dataset == other and (family := family_of_pair(first[0].record, second[0].record))
    ]
    return [
        replace(pair, few=COLLAPSED) if {(pair.dataset, pair.first), (pair.dataset, pair.second)} & broken else pair
        for pair in pairs
    ]


def compare(first: list[Run], second: list[Run], family: str) -> Comparison:
    """Compare two models by the macro F1 of these fits."""
    check_same_images([*first, *second])
    ours, theirs = ([run.jackknife for run in side] for side in (first, second))
    return Comparison(
        first[0].dataset, family, first[0].model, second[0].model, **compare_scores(ours, theirs, BY_NAME[MACRO])
    )


def compare_scores(first: list[Jackknife], second: list[Jackknife], metric: Metric) -> dict[str, Any]:
    """Return the numbers of a Comparison of two models by a smooth metric; the fits are of the same test images."""
    ours, by_ours = _stacked(first, metric.name)
    theirs, by_theirs = _stacked(second, metric.name)
    return {
        "difference": float(ours.mean() - theirs.mean()),
        "groups": first[0].groups,
        "groups_sd": float(np.sqrt(groups_variance(by_ours.mean(axis=0) - by_theirs.mean(axis=0)))),
        "first_seeds": len(ours),
        "second_seeds": len(theirs),
        "first_sd": deviation(ours),
        "second_sd": deviation(theirs),
        "few": too_few(first[0], metric.needs) or "",
    }


def _stacked(fits: list[Jackknife], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a metric of each fit, (seeds,), and its deviations without each group, (seeds, groups)."""
    values, deviations = zip(*(fit.of(name) for fit in fits), strict=True)
    return np.array(values), np.array(deviations)


def find_pair(pairs: Iterable[Comparison], dataset: str, first: str, second: str) -> Comparison | None:
    """Return the comparison of two models, first less second; `pairs` has each pair once, in either order."""
    for pair in pairs:
        if (pair.dataset, pair.first, pair.second) == (dataset, first, second):
            return pair
        if (pair.dataset, pair.second, pair.first) == (dataset, first, second):
            return pair.reversed()
    return None


def as_table(pairs: Iterable[Comparison]) -> pd.DataFrame:
    """Return comparisons as a table: COLUMNS, then low, high and interval (what the interval covers)."""
    rows = [{**asdict(pair), "low": pair.ends[0], "high": pair.ends[1], "interval": pair.interval} for pair in pairs]
    return pd.DataFrame(rows, columns=[*COLUMNS, "low", "high", "interval"])


def read_comparisons(path: Path) -> list[Comparison]:
    """Read what `as_table` returned from a CSV file."""
    table = read_result(path, COLUMNS, na_values={name: [""] for name in ("first_sd", "second_sd")})
    return [
        Comparison(**{str(name): value for name, value in row.items()}) for row in table[COLUMNS].to_dict("records")
    ]
