"""Bootstrap intervals over lesions or patients."""

import numpy as np
import pandas as pd
import scipy.stats

from medtransfer.evaluation.metrics import MACRO, MICRO
from medtransfer.evaluation.predictions import classes_of, predicted_labels

RESAMPLES = 1000


def intervals(fits: list[pd.DataFrame], seed: int) -> dict[str, tuple[float, float]]:
    """Return 95% percentile bootstrap intervals of the F1 values of `score`, averaged over fits.

    Whole lesions or patients are drawn, not images: those of one group are not independent
    (the cluster bootstrap; Field and Welsh, J. R. Stat. Soc. B 69, 369-390, 2007).

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
    if any(list(fit.id) != list(fits[0].id) for fit in fits):
        raise ValueError("the seeds of one model were tested on different images")
    classes = classes_of(fits[0])
    counts = np.stack([_counts_by_group(predictions, classes) for predictions in fits])  # (seeds, groups, C, C)

    def statistic(drawn: np.ndarray) -> np.ndarray:
        return np.mean([_f1_of_counts(matrix) for matrix in counts[:, drawn].sum(axis=1)], axis=0)

    result = scipy.stats.bootstrap(
        (np.arange(counts.shape[1]),),
        statistic,
        n_resamples=RESAMPLES,
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return {name: (float(a), float(b)) for name, a, b in zip([*classes, MICRO, MACRO], low, high, strict=True)}


def _counts_by_group(predictions: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """Return a confusion matrix for each group, shape (groups, classes, classes)."""
    code = {name: number for number, name in enumerate(classes)}
    groups = pd.factorize(predictions.group)[0]
    counts = np.zeros((groups.max() + 1, len(classes), len(classes)))
    np.add.at(counts, (groups, predictions.label.map(code), predicted_labels(predictions).map(code)), 1)
    return counts


def _f1_of_counts(matrix: np.ndarray) -> list[float]:
    """Return F1 a class, micro and macro average of a confusion matrix (classes, classes)."""
    hits = np.diag(matrix)
    both = matrix.sum(axis=0) + matrix.sum(axis=1)
    by_class = np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)
    return [*by_class, hits.sum() / matrix.sum(), by_class.mean()]
