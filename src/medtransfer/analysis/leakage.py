"""How much images of the same lesions or patients in training flatter a score."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.analysis.differences import Comparison, compare_scores
from medtransfer.analysis.runs import Run, by_model, check_same_images
from medtransfer.analysis.uncertainty import jackknife
from medtransfer.core.predictions import classes_of
from medtransfer.metrics.scores import MACRO, MICRO, metrics_of

COLUMNS = [
    "dataset", "model", "leaky_seeds", "clean_seeds", "images", "class", "tested", "leaky", "clean", "difference",
    "low", "high", "interval",
]  # fmt: skip
ALL, SHARED, OTHERS = "all", "shared", "others"
# What a model is fitted on.
SEEN = {"network": ("train",), "baseline": ("train", "validation")}


def measure_leakage(leaky: list[Run], clean: list[Run], shared: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Compare the fits of each model with leakage and without it on the same test images.

    Parameters
    ----------
    leaky, clean : lists of Run
        Of splits by image that differ in leakage only: `match` and `remove`.
    shared : mapping of DataFrames
        By data set, which test images (id) share a lesion or patient with which split (split) of `leaky`.

    Returns
    -------
    DataFrame
        COLUMNS: images (ALL, SHARED with what the model was fitted on where it leaks, OTHERS), class (of all images
        each class and MACRO; MICRO of each), tested (their number), leaky and clean (F1, mean over seeds), their
        difference with its 95% interval and what that covers. Only the shared images can be flattered; on the others
        the two fits differ because they saw other images. A model without a fit on both sides is left out.
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
    every = pd.Series(True, index=leaks.index)
    return [
        {"images": images, **row}
        for images, kept in ((ALL, every), (SHARED, leaks), (OTHERS, ~leaks))
        if kept.any()
        for row in _differences(leaky, clean, kept, {*classes_of(tested), MACRO, MICRO} if images == ALL else {MICRO})
    ]


def _differences(leaky: list[Run], clean: list[Run], kept: pd.Series, names: set[str]) -> list[dict[str, Any]]:
    ours, theirs = ([jackknife(run.predictions[kept]) for run in side] for side in (leaky, clean))
    rows = []
    for metric in metrics_of(classes_of(leaky[0].predictions)):
        if metric.name in names:
            pair = Comparison(leaky[0].dataset, "", "", "", **compare_scores(ours, theirs, metric))
            rows.append(
                {
                    "leaky_seeds": pair.first_seeds,
                    "clean_seeds": pair.second_seeds,
                    "class": metric.name,
                    "tested": int(kept.sum()),
                    "leaky": np.mean([fit.of(metric.name)[0] for fit in ours]),
                    "clean": np.mean([fit.of(metric.name)[0] for fit in theirs]),
                    "difference": pair.difference,
                    "low": pair.ends[0],
                    "high": pair.ends[1],
                    "interval": pair.interval,
                }
            )
    return rows
