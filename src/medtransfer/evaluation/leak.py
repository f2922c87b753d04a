"""How much images of the same lesions or patients in training flatter a score."""

import numpy as np
import pandas as pd

from medtransfer.evaluation.comparison import Run, by_model
from medtransfer.evaluation.intervals import MEASURES, draw_weights, span, weighted_score
from medtransfer.evaluation.metrics import MACRO, score
from medtransfer.evaluation.predictions import classes_of

COLUMNS = ["dataset", "model", "class", "leaky", "clean", "difference", "low", "high"]


def measure_leak(leaky: list[Run], clean: list[Run]) -> pd.DataFrame:
    """Compare fits with the leak and without it on the same test images, a model at a time.

    Parameters
    ----------
    leaky, clean : lists of runs
        Of splits by image that differ in `leak` alone: `match` and `remove`.

    Returns
    -------
    DataFrame
        dataset, model, class (or MACRO), leaky, clean (F1, mean over seeds), difference, low and high (its 95%
        interval over lesions or patients). A model that only one side has is left out.

    Raises
    ------
    ValueError
        The two sides were tested on different images.
    """
    others = {(dataset, model): fits for dataset, model, fits in by_model(clean)}
    rows = []
    for dataset, model, fits in by_model(leaky):
        if (dataset, model) not in others:
            continue
        sides = [[run.predictions for run in side] for side in (fits, others[dataset, model])]
        if any(list(table.id) != list(sides[0][0].id) for side in sides for table in side):
            raise ValueError(f"{dataset} {model}: the two sides were tested on different images")
        names = [*classes_of(sides[0][0]), *MEASURES]
        ours, theirs = (pd.DataFrame([score(table) for table in side]).mean() for side in sides)
        weights = draw_weights(sides[0][0], fits[0].seed)
        drawn = [np.mean([weighted_score(table, weights) for table in side], axis=0) for side in sides]
        low, high = span(drawn[0] - drawn[1])
        for position, name in enumerate(names):
            if name in (*classes_of(sides[0][0]), MACRO):
                rows.append(
                    {
                        "dataset": dataset,
                        "model": model,
                        "class": name,
                        "leaky": ours[name],
                        "clean": theirs[name],
                        "difference": ours[name] - theirs[name],
                        "low": low[position],
                        "high": high[position],
                    }
                )
    return pd.DataFrame(rows, columns=COLUMNS)
