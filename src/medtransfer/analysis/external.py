"""External validation: the scores of networks on images from another source, beside those on their own test images."""

from dataclasses import replace

import numpy as np
import pandas as pd

from medtransfer.analysis.runs import Run, by_model
from medtransfer.analysis.scores import scaled, score_fits
from medtransfer.analysis.uncertainty import Estimate, combine, too_few, with_interval
from medtransfer.core.predictions import classes_of
from medtransfer.metrics.scores import ALL, Metric, metrics_of

ABSENT, SCALED = "undefined: no images", ", scaled"
SIDES = ("internal", "external")
COLUMNS = [
    "dataset", "model", "measure", "support", "groups",
    *(f"{side}{part}" for side in SIDES for part in ("", "_low", "_high")), "interval",
    "difference", "low", "high", "difference_interval", "seeds",
]  # fmt: skip


def compare_sources(outside: list[Run], inside: list[Run]) -> pd.DataFrame:
    """Return each model's scores on images from another source, and their differences from the internal ones.

    `outside` and `inside` are the same fits in the same order, with their predictions for either source's images. A
    class without an image from the other source has no score there and no difference, and averages over classes leave
    it out on both sides.

    Returns
    -------
    DataFrame
        COLUMNS: support and groups (external images of the class, or of all, and their lesions or patients), internal
        and external (means over seeds) with 95% intervals, interval (what the external one covers), difference
        (external less internal) with its interval and what it covers. Measures of probabilities come also with
        `, scaled`: at the temperature of the validation images.
    """
    rows = []
    for (dataset, model, there), (_, _, here) in zip(by_model(outside), by_model(inside), strict=True):
        tested, metrics = there[0].predictions, _metrics(there)
        compared = [(metric.name, there, here, metric) for metric in metrics]
        if at_temperature := scaled(there):
            probabilistic = [metric for metric in metrics if metric.of_probabilities]
            compared += [(metric.name + SCALED, at_temperature, scaled(here), metric) for metric in probabilistic]
        for measure, far, near, metric in compared:
            labelled = tested[tested.label == measure] if isinstance(metric.needs, int) else tested
            row: dict[str, object] = {"dataset": dataset, "model": model, "measure": measure}
            row |= {"support": len(labelled), "groups": labelled.group.nunique(), "seeds": len(there)}
            rows.append({**row, **_compare(far, near, metric)})
    return pd.DataFrame(rows, columns=COLUMNS)


def estimate_present(fits: list[Run]) -> dict[str, Estimate]:
    """Return every metric of a model, whose fits have one seed each; averages leave out classes without an image."""
    return {metric.name: _estimate(fits, metric) for metric in _metrics(fits)}


def _metrics(fits: list[Run]) -> list[Metric]:
    """Return every metric; averages over classes are over those that have an image."""
    classes = classes_of(fits[0].predictions)
    present = np.isin(classes, fits[0].predictions.label)
    return [_among(metric, present) if metric.needs == ALL else metric for metric in metrics_of(classes)]


def _among(metric: Metric, present: np.ndarray) -> Metric:
    """Return an average over classes that leaves out those that are not `present` (classes,)."""

    def terms(codes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        by_class = metric.terms(codes, probabilities)  # (n, k · classes)
        return by_class * np.tile(present, by_class.shape[1] // len(present))

    return replace(metric, terms=terms)


def _estimate(fits: list[Run], metric: Metric) -> Estimate:
    jackknifed = fits[0].jackknife
    if isinstance(metric.needs, int) and not jackknifed.holders[metric.needs]:
        return Estimate(np.nan, np.nan, np.nan, ABSENT, len(fits), np.nan)
    return combine(*score_fits(fits, metric), jackknifed, metric.needs)


def _compare(outside: list[Run], inside: list[Run], metric: Metric) -> dict[str, object]:
    found = [_estimate(fits, metric) for fits in (inside, outside)]
    difference = found[1] if found[1].covers == ABSENT else _difference(inside, outside, metric)
    row: dict[str, object] = {"interval": found[1].covers, "difference_interval": difference.covers}
    for side, estimate in zip(SIDES, found, strict=True):
        row |= {side: estimate.value, f"{side}_low": estimate.low, f"{side}_high": estimate.high}
    row |= {"difference": difference.value, "low": difference.low, "high": difference.high}
    return row


def _difference(inside: list[Run], outside: list[Run], metric: Metric) -> Estimate:
    """Return external minus internal: the images differ, so their variances add; the networks are the same."""
    (near, near_variance), (far, far_variance) = score_fits(inside, metric), score_fits(outside, metric)
    near_jackknife, far_jackknife = inside[0].jackknife, outside[0].jackknife
    few = too_few(far_jackknife, metric.needs) or too_few(near_jackknife, metric.needs)
    variances = [(far_variance, far_jackknife.groups), (near_variance, near_jackknife.groups)]
    return with_interval(far - near, variances, few, bounded=False)
