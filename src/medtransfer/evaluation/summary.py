"""Every measure of every model with its interval, and every pair of models compared."""

from itertools import combinations

import numpy as np
import pandas as pd

from medtransfer.evaluation.calibration import fit_temperature, scale
from medtransfer.evaluation.comparison import Run, Spans, by_model
from medtransfer.evaluation.intervals import MEASURES, compare_pair, correct, intervals
from medtransfer.evaluation.metrics import BRIER, CALIBRATION, score

PAIR_COLUMNS = ["dataset", "first", "second", "difference", "low", "high", "p", "p_corrected"]
# Scaling keeps the order of the classes: only what looks at the probabilities themselves changes.
SCALED = {name: f"{name}, scaled" for name in (BRIER, CALIBRATION)}


def summarise(runs: list[Run], spans: Spans) -> pd.DataFrame:
    """Return every measure of every model.

    Parameters
    ----------
    spans : dict
        From `score_intervals`.

    Returns
    -------
    DataFrame
        dataset, model, measure (MEASURES; SCALED after temperature scaling on the validation images, for
        models that kept their predictions for those), value (mean over seeds), low and high (95% interval
        over groups), seeds, sd (over the seeds, whose test images are the same; missing for one seed).
    """
    rows = []
    for dataset, model, fits in by_model(runs):
        tables = [run.predictions for run in fits]
        rows += _rows(dataset, model, tables, {name: name for name in MEASURES}, spans[dataset, model])
        if all(run.validation is not None for run in fits):
            scaled = [
                scale(run.predictions, fit_temperature(run.validation)) for run in fits if run.validation is not None
            ]
            rows += _rows(dataset, model, scaled, SCALED, intervals(scaled, fits[0].seed))
    return pd.DataFrame(rows)


def _rows(
    dataset: str, model: str, tables: list[pd.DataFrame], names: dict[str, str], spans: dict[str, tuple[float, float]]
) -> list[dict[str, object]]:
    scores = pd.DataFrame([score(table) for table in tables])
    return [
        {
            "dataset": dataset,
            "model": model,
            "measure": shown,
            "value": scores[name].mean(),
            "low": spans[name][0],
            "high": spans[name][1],
            "seeds": len(tables),
            "sd": scores[name].std(ddof=1) if len(tables) > 1 else np.nan,
        }
        for name, shown in names.items()
    ]


def compare_models(runs: list[Run]) -> pd.DataFrame:
    """Return every pair of models of a data set, compared by macro F1 on the same images.

    Returns
    -------
    DataFrame
        dataset, first, second, difference, low, high, p, p_corrected (for all pairs of the data set).
        Models with different numbers of seeds are left out.
    """
    rows = []
    for dataset in dict.fromkeys(run.dataset for run in runs):
        models = {model: fits for name, model, fits in by_model(runs) if name == dataset}
        own: list[dict[str, object]] = []
        for first, second in combinations(models, 2):
            if len(models[first]) == len(models[second]):
                one, other = ([run.predictions for run in models[name]] for name in (first, second))
                found = compare_pair(one, other, seed=models[first][0].seed)
                own.append({"dataset": dataset, "first": first, "second": second, **found})
        if own:
            corrected = correct(np.array([row["p"] for row in own]))
            rows += [{**row, "p_corrected": value} for row, value in zip(own, corrected, strict=True)]
    return pd.DataFrame(rows, columns=PAIR_COLUMNS)
