"""How large a difference a study can find, and how many seeds it needs."""

import numpy as np
from scipy import optimize, stats

from medtransfer.analysis.differences import Comparison
from medtransfer.analysis.uncertainty import BOTH, freedom

POWER = 0.8
MOST_SEEDS = 100


def detectable(pair: Comparison, level: float) -> float:
    """Return the smallest true difference that the two-sided t-test at `level` finds with POWER; NaN with one seed."""
    if pair.interval != BOTH:
        return np.nan
    return pair.error * _standard_errors(pair.freedom, level)


def seeds_needed(pair: Comparison, difference: float, level: float) -> float:
    """Return the seeds per model with which a true difference is found with POWER; infinity above MOST_SEEDS.

    The deviations over groups and between seeds are taken to be those that were measured.
    """
    if pair.interval != BOTH:
        return np.nan
    for seeds in range(2, MOST_SEEDS + 1):
        parts = [(sd**2 / seeds, seeds) for sd in (pair.first_sd, pair.second_sd)]
        error = np.sqrt(pair.groups_sd**2 + sum(part for part, _ in parts))
        if error * _standard_errors(freedom(pair.groups_sd**2, pair.groups, parts), level) <= difference:
            return seeds
    return np.inf


def _standard_errors(degrees: float, level: float) -> float:
    """Return how many standard errors a true difference must measure."""
    degrees = min(degrees, 1e6)  # scipy's noncentral t knows no infinity
    limit = stats.t.ppf(1 - level / 2, degrees)
    return float(optimize.brentq(lambda shift: stats.nct.sf(limit, degrees, shift) - POWER, 0, limit * 10 + 10))
