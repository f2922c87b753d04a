"""How much images of the same lesions or patients in training flatter a score."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.analysis.comparison import Run, by_model
from medtransfer.analysis.intervals import MEASURES, draw_weights, span, weighted_score
from medtransfer.core.predictions import classes_of
from medtransfer.metrics.scores import MACRO, MICRO, score

COLUMNS = ["dataset", "model", "seeds", "images", "class", "tested", "leaky", "clean", "difference", "low", "high"]
ALL, SHARED, OTHERS = "all", "shared", "others"
# What a model is fitted on.
SEEN = {"network": ("train",), "baseline": ("train", "validation")}


def measure_leak(leaky: list[Run], clean: list[Run], shared: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Compare fits with the leak and without it on the same test images, a model at a time, on the seeds of both.

    Parameters
    ----------
    leaky, clean : lists of runs
        Of splits by image that differ in `leak` alone: `match` and `remove`.
    shared : mapping of DataFrames
        By data set, which test images (id) share a lesion or patient with which split (split) of `leaky`.

    Returns
    -------
    DataFrame
        dataset, model, seeds (how many both sides have), images (ALL, SHARED with what the model was fitted on where it
        leaks, OTHERS), class (of all images each class and MACRO; MICRO of each), tested (their number), leaky, clean
        (F1, mean over seeds), difference, low and high (its 95% interval over lesions or patients). Only the shared
        images can be flattered; on the others the two fits differ because they saw other images. A model without a seed
        on both sides is left out.

    Raises
    ------
    ValueError
        The two sides were tested on different images.
    """
    others = {(run.dataset, run.model, run.seed): run for run in clean}
    rows = []
    for dataset, model, fits in by_model(leaky):
        paired = [(run, others[key]) for run in fits if (key := (dataset, model, run.seed)) in others]
        if paired:
            names = {"dataset": dataset, "model": model, "seeds": len(paired)}
            rows += [{**names, **row} for row in _by_images(paired, shared[dataset])]
    return pd.DataFrame(rows, columns=COLUMNS)


def _by_images(paired: list[tuple[Run, Run]], shared: pd.DataFrame) -> list[dict[str, Any]]:
    sides = [[run.predictions for run in side] for side in zip(*paired, strict=True)]
    first, tested = paired[0][0], sides[0][0]
    if any(list(table.id) != list(tested.id) for side in sides for table in side):
        raise ValueError(f"{first.dataset} {first.model}: the two sides were tested on different images")
    leaks = tested.id.isin(shared.id[shared.split.isin(SEEN[first.record["kind"]])])
    every = pd.Series(True, index=leaks.index)
    rows = []
    for images, kept in ((ALL, every), (SHARED, leaks), (OTHERS, ~leaks)):
        names = [*classes_of(tested), MACRO, MICRO] if images == ALL else [MICRO]
        leaky, clean = ([table[kept] for table in side] for side in sides)
        if kept.any():
            rows += [{"images": images, **row} for row in _differences(leaky, clean, names, first.seed)]
    return rows


def _differences(
    leaky: list[pd.DataFrame], clean: list[pd.DataFrame], names: list[str], seed: int
) -> list[dict[str, Any]]:
    scored = [*classes_of(leaky[0]), *MEASURES]
    ours, theirs = (pd.DataFrame([score(table) for table in side]).mean() for side in (leaky, clean))
    weights = draw_weights(leaky[0], seed)
    drawn = [np.mean([weighted_score(table, weights) for table in side], axis=0) for side in (leaky, clean)]
    asked = [scored.index(name) for name in names]
    low, high = (dict(zip(names, ends, strict=True)) for ends in span((drawn[0] - drawn[1])[:, asked]))
    return [
        {
            "class": name,
            "tested": len(leaky[0]),
            "leaky": ours[name],
            "clean": theirs[name],
            "difference": ours[name] - theirs[name],
            "low": low[name],
            "high": high[name],
        }
        for name in names
    ]
