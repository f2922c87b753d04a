"""How much a score is inflated by training on images of the same lesions or patients."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.analysis.differences import Comparison, compare_scores
from medtransfer.analysis.runs import Run, by_model, check_same_images
from medtransfer.analysis.uncertainty import BOTH, TOO_FEW_FITS, Jackknife, jackknife, too_few
from medtransfer.core.predictions import classes_of
from medtransfer.metrics.scores import MACRO, MICRO, Metric, encode, metrics_of

COLUMNS = [
    "dataset", "model", "leaky_seeds", "clean_seeds", "images", "class", "tested", "leaky", "clean", "difference",
    "low", "high", "interval",
]  # fmt: skip
ALL, SHARED, OTHERS, CONTRAST = "all", "shared", "others", "shared less others"
NO_HIT = "none: no hit"
# What a model is fitted on.
SEEN = {"network": ("train",), "baseline": ("train", "validation")}


def measure_leakage(leaky: list[Run], clean: list[Run], shared: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Compare the fits of each model with leakage and without it on the same test images.

    The splits by image of `leaky` and `clean` differ only in leakage: `match` and `remove`. `shared` says by data set
    which test images (id) share a lesion or patient with which split (split) of `leaky`.

    Returns
    -------
    DataFrame
        COLUMNS: images (ALL, SHARED with what the model was fitted on where it leaks, OTHERS, CONTRAST), class (of all
        images each class and MACRO; MICRO of each), tested (their number), leaky and clean (F1, mean over seeds), their
        difference with its 95% interval and what that covers. The two sides were trained on different images, so
        there is no interval without the variance between fits. Leakage can raise scores only on the shared images:
        CONTRAST is their difference minus that of the others. A model without a fit on both sides is left out.
    """
    others = {(dataset, model): fits for dataset, model, fits in by_model(clean)}
    rows = []
    for dataset, model, fits in by_model(leaky):
        if (dataset, model) in others:
            names = {"dataset": dataset, "model": model}
            rows += [{**names, **row} for row in _by_images(fits, others[dataset, model], shared[dataset])]
    return pd.DataFrame(rows, columns=COLUMNS)


def _by_images(leaky: list[Run], clean: list[Run], shared: pd.DataFrame) -> list[dict[str, Any]]:
    check_same_images([*leaky, *clean])
    tested = leaky[0].predictions
    leaks = tested.id.isin(shared.id[shared.split.isin(SEEN[leaky[0].record["kind"]])])
    classes = classes_of(tested)
    sides = {
        images: [[jackknife(encode(run.predictions[kept])) for run in side] for side in (leaky, clean)]
        for images, kept in ((ALL, leaks | True), (SHARED, leaks), (OTHERS, ~leaks))
        if kept.any()
    }
    if SHARED in sides and OTHERS in sides:
        pairs = zip(sides[SHARED], sides[OTHERS], strict=True)
        sides[CONTRAST] = [[_less(one, other) for one, other in zip(*pair, strict=True)] for pair in pairs]
    counts = {ALL: len(leaks), SHARED: int(leaks.sum()), OTHERS: int((~leaks).sum()), CONTRAST: len(leaks)}
    # The contrast is as uncertain as the part with fewer groups.
    smallest = {images: ours[0] for images, (ours, _) in sides.items()}
    if CONTRAST in sides:
        smallest[CONTRAST] = min(smallest[SHARED], smallest[OTHERS], key=lambda part: part.groups)
    return [
        {"images": images, "tested": counts[images], **_difference(ours, theirs, metric, smallest[images])}
        for images, (ours, theirs) in sides.items()
        for metric in metrics_of(classes)
        if metric.name in ({*classes, MACRO, MICRO} if images == ALL else {MICRO})
    ]


def _less(one: Jackknife, other: Jackknife) -> Jackknife:
    """Return one fit's metrics on some groups less those on other groups."""
    without = np.concatenate([one.without, -other.without])
    return Jackknife(one.names, one.values - other.values, without, np.minimum(one.holders, other.holders))


def _difference(ours: list[Jackknife], theirs: list[Jackknife], metric: Metric, smallest: Jackknife) -> dict[str, Any]:
    """Return F1 with and without leakage; there is no interval if `smallest` has too few groups for one."""
    pair = Comparison("", "", "", "", **compare_scores(ours, theirs, metric))
    leaky, clean = (float(np.mean([fit.of(metric.name)[0] for fit in side])) for side in (ours, theirs))
    few = too_few(smallest, metric.needs)
    missing = few or (TOO_FEW_FITS if pair.interval != BOTH else NO_HIT if 0 in (leaky, clean) else "")
    low, high = (np.nan, np.nan) if missing else pair.ends
    return {
        "leaky_seeds": pair.first_seeds,
        "clean_seeds": pair.second_seeds,
        "class": metric.name,
        "leaky": leaky,
        "clean": clean,
        "difference": pair.difference,
        "low": low,
        "high": high,
        "interval": missing or pair.interval,
    }
