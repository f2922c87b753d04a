"""The scores of every model, each with its interval, and F1 beside the talk's."""

from dataclasses import replace

import numpy as np
import pandas as pd

from medtransfer.analysis.calibration import believable, fit_temperature, scale
from medtransfer.analysis.families import family
from medtransfer.analysis.published import published_f1
from medtransfer.analysis.runs import Run, by_model, check_same_images, collapsed
from medtransfer.analysis.uncertainty import (
    BOTH,
    GROUPS,
    Estimate,
    combine,
    group_sums,
    groups_variance,
    leave_out,
    resample,
)
from medtransfer.core.predictions import classes_of
from medtransfer.core.run_record import note_of
from medtransfer.metrics.scores import MACRO, METRICS, MICRO, Metric, metrics_of

INTERVAL = ["low", "high", "interval", "seeds", "sd"]
RESULTS = [
    "dataset",
    "model",
    "family",
    "class",
    "support",
    "groups",
    "f1",
    *INTERVAL,
    "published",
    "test_images",
    "synthetic",
]
SUMMARY = ["dataset", "model", "family", "measure", "value", *INTERVAL]


def f1_table(runs: list[Run]) -> pd.DataFrame:
    """Return F1 of every data set, model and class beside the published value.

    Returns
    -------
    DataFrame
        RESULTS: class (or an average), support (test images of the class) and groups (their lesions or patients), f1
        (mean over seeds), the 95% interval and what it covers (see Estimate), published (missing where the talk has
        none); `note` if there is one on the data.
    """
    rows = []
    for dataset, model, fits in by_model(runs):
        record, tested = fits[0].record, fits[0].predictions
        names = {"dataset": dataset, "model": model, "family": family(record)}
        about = {"test_images": len(tested), "synthetic": record["synthetic"], "note": note_of(record)}
        classes = classes_of(tested)
        for metric in metrics_of(classes):
            if metric.name in (*classes, MICRO, MACRO):
                counted = tested[tested.label == metric.name] if metric.name in classes else tested
                sizes = {"class": metric.name, "support": len(counted), "groups": counted.group.nunique()}
                rows.append({**names, **sizes, **estimate_of(fits, metric).columns("f1"), **about})
    table = pd.DataFrame(rows).merge(published_f1(), how="left", on=["dataset", "model", "class"])
    return table[[*RESULTS, "note"] if table.note.any() else RESULTS]


def summarise(runs: list[Run]) -> pd.DataFrame:
    """Return every metric of every model.

    Returns
    -------
    DataFrame
        SUMMARY: measure (the name of a metric; with `, scaled` after temperature scaling on the validation images, for
        models that kept their predictions for those and whose temperatures are `believable`), value (mean over seeds),
        the 95% interval and what it covers.
    """
    rows = []
    for dataset, model, fits in by_model(runs):
        names = {"dataset": dataset, "model": model, "family": family(fits[0].record)}
        tempered = scaled(fits)
        for metric in METRICS:
            rows.append({**names, "measure": metric.name, **estimate_of(fits, metric).columns()})
        for metric in METRICS if tempered else ():
            if metric.of_probabilities:
                measure = f"{metric.name}, scaled"
                rows.append({**names, "measure": measure, **estimate_of(tempered, metric).columns()})
    return pd.DataFrame(rows)[SUMMARY]


def estimate_of(fits: list[Run], metric: Metric) -> Estimate:
    """Return a metric of a model, whose fits have one seed each, with its interval."""
    check_same_images(fits)
    found = combine(*score_fits(fits, metric), fits[0].jackknife, metric.needs)
    # Training runs that all fail alike do not show how much training runs differ.
    return replace(found, covers=GROUPS) if found.covers == BOTH and collapsed(fits) else found


def score_fits(fits: list[Run], metric: Metric) -> tuple[np.ndarray, float]:
    """Return a metric of each fit, (seeds,), and the variance of their mean over groups.

    A metric that is not smooth is resampled, and its bias is corrected. The bias of a mean of absolute values grows
    with every resampling, so it can be measured and subtracted: twice the value minus the mean over resamples
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 10.6).
    """
    sums = [group_sums(run.encoded, metric) for run in fits]
    values, deviations = map(np.array, zip(*(leave_out(own, metric.value) for own in sums), strict=True))
    if metric.smooth:
        return values, groups_variance(deviations.mean(axis=0))
    drawn = resample(np.stack(sums, axis=1), metric, fits[0].seed).mean(axis=1)
    return (values - (drawn.mean() - values.mean())).clip(0), float(drawn.var(ddof=1))


def scaled(fits: list[Run]) -> list[Run]:
    """Return the fits after temperature scaling, or an empty list if that is impossible for one of them."""
    temperatures = [fit_temperature(run.validation) for run in fits if run.validation is not None]
    if len(temperatures) < len(fits) or not all(map(believable, temperatures)):
        return []
    return [Run(run.record, scale(run.predictions, found), None) for run, found in zip(fits, temperatures, strict=True)]
