"""Every measure of every model with its interval, and every pair of models compared."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.analysis.calibration import believable, fit_temperature, scale
from medtransfer.analysis.comparison import Run, Spans, by_model
from medtransfer.analysis.families import family, question
from medtransfer.analysis.intervals import MEASURES, compare_pair, correct, intervals
from medtransfer.metrics.scores import BRIER, CALIBRATION, score

PAIR_COLUMNS = [
    "dataset", "family", "first", "second", "seeds", "difference", "low", "high", "sd", "least", "most", "p",
    "p_corrected",
]  # fmt: skip
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
        dataset, model, family (see `families`), measure (MEASURES; SCALED after temperature scaling on the
        validation images, for models that kept their predictions for those and whose temperatures are `believable`),
        value (mean over seeds), low and high (95% interval over groups), seeds, sd (over the seeds, whose test images
        are the same; missing for one).
    """
    rows = []
    for dataset, model, fits in by_model(runs):
        names = {name: name for name in MEASURES}
        rows += _rows(fits[0], [run.scores for run in fits], names, spans[dataset, model])
        temperatures = [fit_temperature(run.validation) for run in fits if run.validation is not None]
        if len(temperatures) == len(fits) and all(map(believable, temperatures)):
            scaled = [scale(run.predictions, found) for run, found in zip(fits, temperatures, strict=True)]
            rows += _rows(fits[0], list(map(score, scaled)), SCALED, intervals(scaled, fits[0].seed))
    return pd.DataFrame(rows)


def _rows(
    run: Run, by_seed: list[dict[str, float]], names: dict[str, str], spans: dict[str, tuple[float, float]]
) -> list[dict[str, object]]:
    scores = pd.DataFrame(by_seed)
    return [
        {
            "dataset": run.dataset,
            "model": run.model,
            "family": family(run.record),
            "measure": shown,
            "value": scores[name].mean(),
            "low": spans[name][0],
            "high": spans[name][1],
            "seeds": len(scores),
            "sd": scores[name].std(ddof=1) if len(scores) > 1 else np.nan,
        }
        for name, shown in names.items()
    ]


def compare_models(runs: list[Run]) -> pd.DataFrame:
    """Return the pairs of models of a data set, compared by macro F1 on the same images and with the same seeds.

    Returns
    -------
    DataFrame
        dataset, family (the question that the pair answers, see `families`), first, second, seeds (how many both
        have), difference, low, high, sd (of the differences of single seeds; missing for one seed), least and most (of
        them), p, p_corrected (for all pairs of the data set and family). Pairs that answer no question are left out, as
        are those without a seed in common.
    """
    rows = []
    for dataset in dict.fromkeys(run.dataset for run in runs):
        models = [fits for name, _, fits in by_model(runs) if name == dataset]
        pairs = [pair for one, other in combinations(models, 2) if (pair := _compare(one, other))]
        for asked in dict.fromkeys(pair["family"] for pair in pairs):
            own = [pair for pair in pairs if pair["family"] == asked]
            corrected = correct(np.array([pair["p"] for pair in own]))
            rows += [{**pair, "p_corrected": value} for pair, value in zip(own, corrected, strict=True)]
    return pd.DataFrame(rows, columns=PAIR_COLUMNS)


def _compare(first: list[Run], second: list[Run]) -> dict[str, Any] | None:
    asked = question(first[0].record, second[0].record)
    ours, theirs = ({run.seed: run.predictions for run in fits} for fits in (first, second))
    seeds = sorted(set(ours) & set(theirs))
    if asked is None or not seeds:
        return None
    found = compare_pair([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds], seed=seeds[0])
    names = {"dataset": first[0].dataset, "family": asked, "first": first[0].model, "second": second[0].model}
    return {**names, "seeds": len(seeds), **found}
