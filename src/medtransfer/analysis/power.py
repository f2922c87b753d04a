"""How large a difference a study can find, and how many seeds it needs."""

from bisect import bisect_left

import numpy as np
from scipy.special import nctdtrinc, stdtrit

from medtransfer.analysis.differences import Comparison
from medtransfer.analysis.uncertainty import BOTH, freedom

POWER = 0.8
MOST_SEEDS = 10**6


def detectable(pair: Comparison, level: float) -> float:
    """Return the smallest true difference that the two-sided t-test at `level` finds with POWER; NaN without seeds."""
    if pair.interval != BOTH:
        return np.nan
    return pair.error * _standard_errors(pair.freedom, level)


def seeds_needed(pair: Comparison, difference: float, level: float, fewest: int) -> float:
    """Return the seeds per model with which a true difference is found with POWER, at least `fewest`.

    The deviations over groups and between seeds are taken to be those that were measured. Infinity: no number of seeds
    is enough with these groups.
    """
    if pair.interval != BOTH:
        return np.nan

    def enough(seeds: int) -> bool:
        parts = [(sd**2 / seeds, seeds) for sd in (pair.first_sd, pair.second_sd)]
        error = np.sqrt(pair.groups_sd**2 + sum(part for part, _ in parts))
        return error * _standard_errors(freedom(pair.groups_sd**2, pair.groups, parts), level) <= difference

    counts = range(fewest, MOST_SEEDS)
    found = bisect_left(counts, True, key=enough)
    return counts[found] if found < len(counts) else np.inf


def _standard_errors(degrees: float, level: float) -> float:
    """Return the smallest detectable difference, in standard errors."""
    degrees = min(degrees, 1e6)  # SciPy's noncentral t does not accept infinity
    return float(nctdtrinc(degrees, 1 - POWER, stdtrit(degrees, 1 - level / 2)))
