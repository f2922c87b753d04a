"""What training each block adds: Shapley values over the networks that train different subsets of the blocks.

Shapley, A Value for n-Person Games, 1953. With only some of the 32 subsets, weighted least squares estimates the
values, as in KernelSHAP (Lundberg and Lee, NeurIPS 2017, theorem 2); with all of them, it gives the exact values.
"""

from collections.abc import Sequence
from itertools import combinations
from math import comb, factorial

import numpy as np
import pandas as pd

from medtransfer.analysis.families import configuration_of, overrides
from medtransfer.analysis.runs import Run, by_model, check_same_images, collapsed
from medtransfer.analysis.uncertainty import (
    BOTH,
    GROUPS,
    freedom,
    group_sums,
    groups_variance,
    interval_ends,
    leave_out,
    too_few,
)
from medtransfer.core.params import BLOCKS
from medtransfer.metrics.scores import BY_NAME, MACRO, Metric

LOG_LOSS = "log-loss"
SUBSETS = 2 ** len(BLOCKS)
ENDS = 1e9  # the weight of no block and of all blocks, whose scores the values must add up to
CLIPPED = 1e-7  # lower probabilities count as this one, so that the loss is finite
COLUMNS = ["metric", "blocks", "value", "low", "high", "interval", "subsets"]
METRICS = (
    BY_NAME[MACRO],
    Metric(
        LOG_LOSS,
        lambda codes, p: np.column_stack([-np.log(np.maximum(p[np.arange(len(codes)), codes], CLIPPED)), codes >= 0]),
        lambda sums: sums[..., 0] / sums[..., 1],
    ),
)
Subset = frozenset[str]


def block_values(runs: list[Run]) -> pd.DataFrame:
    """Return the Shapley value of each block, and of each pair its interaction where every subset was trained.

    The runs are those of one data set. Networks from ImageNet weights count, with the common recipe and all seeds.

    Returns
    -------
    DataFrame
        COLUMNS: blocks (`block1`, or `block1 + block5` for what the two add beyond their sum), value (in the metric),
        its 95% interval and what it covers, subsets (how many were trained). Empty if they are too few to tell the
        blocks apart. The variance between seeds is pooled over the networks with several.
    """
    found = {frozenset(blocks): fits for _, _, blocks, fits in imagenet_networks(runs) if not collapsed(fits)}
    names = list(found)
    if np.linalg.matrix_rank(_design(names)) <= len(BLOCKS):
        return pd.DataFrame(columns=COLUMNS)
    check_same_images([run for fits in found.values() for run in fits])
    shares = _shapley(names)
    if len(names) == SUBSETS:
        shares |= _interactions(names)
    return pd.DataFrame(
        [row for metric in METRICS for row in _estimates(list(found.values()), metric, shares)], columns=COLUMNS
    )


def imagenet_networks(runs: Sequence[Run]) -> list[tuple[str, str, tuple[str, ...], list[Run]]]:
    """Return data set, model, trained blocks and fits of the networks from ImageNet weights with the common recipe."""
    return [
        (dataset, model, configuration.blocks, fits)
        for dataset, model, fits in by_model(run for run in runs if run.is_network)
        if (configuration := configuration_of(fits[0].record)).weights == "imagenet" and not overrides(fits[0].record)
    ]


def _design(names: list[Subset]) -> np.ndarray:
    return np.array([[1.0, *(block in subset for block in BLOCKS)] for subset in names]).reshape(-1, len(BLOCKS) + 1)


def _shapley(names: list[Subset]) -> dict[str, np.ndarray]:
    """Return each block's coefficients: its value is their product with the scores of the subsets."""
    count, design = len(BLOCKS), _design(names)
    sizes = np.array([len(subset) for subset in names])
    weights = np.array(
        [ENDS if size in (0, count) else (count - 1) / (comb(count, size) * size * (count - size)) for size in sizes]
    )
    root = np.sqrt(weights)[:, None]
    coefficients = np.linalg.pinv(design * root) * root.T
    return dict(zip(BLOCKS, coefficients[1:], strict=True))


def _interactions(names: list[Subset]) -> dict[str, np.ndarray]:
    """Return each pair's coefficients (Grabisch and Roubens, Int. J. Game Theory 28, 547, 1999)."""
    count, found = len(BLOCKS), {}
    for pair in combinations(BLOCKS, 2):
        coefficients = np.zeros(len(names))
        for place, subset in enumerate(names):
            others = len(subset - set(pair))
            weight = factorial(others) * factorial(count - others - 2) / factorial(count - 1)
            coefficients[place] = weight * (-1) ** len(set(pair) - subset)
        found[" + ".join(pair)] = coefficients
    return found


def _estimates(fits: list[list[Run]], metric: Metric, shares: dict[str, np.ndarray]) -> list[tuple[object, ...]]:
    values, deviations, spreads = [], [], []
    for seeds in fits:
        left = [leave_out(group_sums(run.encoded, metric), metric.value) for run in seeds]
        scores = np.array([score for score, _ in left])
        values.append(scores.mean())
        deviations.append(np.mean([without for _, without in left], axis=0))
        spreads.append(((scores - scores.mean()) ** 2).sum())
    counts = np.array([len(seeds) for seeds in fits])
    repeats = int((counts - 1).sum())
    between = float(sum(spreads)) / repeats if repeats else 0.0
    few = too_few(fits[0][0].jackknife, metric.needs)
    if len(fits) < SUBSETS:  # the error of the approximation is as large as the values
        few = f"none: {len(fits)} of {SUBSETS} subsets"
    covers = few or (BOTH if repeats else GROUPS)
    rows: list[tuple[object, ...]] = []
    for name, share in shares.items():
        value = float(share @ values)
        groups, training = groups_variance(share @ deviations), between * float((share**2 / counts).sum())
        degrees = freedom(groups, len(deviations[0]), [(training, repeats + 1)] if repeats else [])
        ends = interval_ends(value, float(np.sqrt(groups + training)), degrees, bounded=False)
        rows.append((metric.name, name, value, *((np.nan, np.nan) if few else ends), covers, len(fits)))  # as COLUMNS
    return rows
