"""Our scores beside the published ones."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from medtransfer.analysis.families import family
from medtransfer.analysis.intervals import intervals
from medtransfer.analysis.published import published_f1
from medtransfer.core.predictions import classes_of
from medtransfer.metrics.scores import MACRO, MICRO, score

COLUMNS = ["dataset", "model", "family", "class", "seeds", "f1", "low", "high", "published", "test_images", "synthetic"]
# The low and high ends of each score's interval, by data set and model.
Spans = dict[tuple[str, str], dict[str, tuple[float, float]]]


@dataclass(frozen=True)
class Run:
    """One fit as the files of its folder tell it.

    record : run.json
    predictions : the test rows of predictions.csv
    history : history.csv, or None for a baseline
    validation : the validation rows of predictions.csv, or None where the model was fitted on those images
    """

    record: dict[str, Any]
    predictions: pd.DataFrame
    history: pd.DataFrame | None
    validation: pd.DataFrame | None = None

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return str(self.record["dataset"])

    @property
    def model(self) -> str:
        """The baseline's or freezing configuration's name."""
        return str(self.record["model"])

    @property
    def seed(self) -> int:
        """The seed of the fit."""
        return int(self.record["seed"])

    @cached_property
    def scores(self) -> dict[str, float]:
        """What `score` says of the test images; every table asks for it, and it takes a tenth of a second."""
        return score(self.predictions)

    @cached_property
    def validation_scores(self) -> dict[str, float] | None:
        """What `score` says of the validation images."""
        return None if self.validation is None else score(self.validation)


def score_intervals(runs: list[Run]) -> Spans:
    """Return the 95% intervals of every score of every data set and model, over its seeds."""
    return {
        (dataset, model): intervals([run.predictions for run in fits], seed=fits[0].seed)
        for dataset, model, fits in by_model(runs)
    }


def compare(runs: list[Run], spans: Spans) -> pd.DataFrame:
    """Return F1 of every run, data set and class beside the published value.

    Parameters
    ----------
    spans : dict
        From `score_intervals`, which takes most of the time and serves several tables.

    Returns
    -------
    DataFrame
        dataset, model, family (see `families`), class (or an average), seeds, f1 (mean over seeds), low and high (95%
        interval over groups), published (missing where the talk has none),
        test_images, synthetic.
    """
    rows = []
    for dataset, model, fits in by_model(runs):
        scores = pd.DataFrame([run.scores for run in fits]).mean()
        rows += [
            {
                "dataset": dataset,
                "model": model,
                "family": family(fits[0].record),
                "class": name,
                "seeds": len(fits),
                "f1": scores[name],
                "low": spans[dataset, model][name][0],
                "high": spans[dataset, model][name][1],
                "test_images": len(fits[0].predictions),
                "synthetic": fits[0].record["synthetic"],
            }
            for name in [*classes_of(fits[0].predictions), MICRO, MACRO]
        ]
    table = pd.DataFrame(rows).merge(published_f1(), how="left", on=["dataset", "model", "class"])
    return table[COLUMNS]


def by_model(runs: list[Run]) -> list[tuple[str, str, list[Run]]]:
    """Return data set, model and its runs, one a seed, in the order in which they first come."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.dataset, run.model), []).append(run)
    return [(*key, fits) for key, fits in found.items()]
