"""Every figure of a study, by name; the names are those of the captions in templates/captions.html.j2."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medtransfer.analysis.calibration import reliability
from medtransfer.analysis.clinical import best_network
from medtransfer.analysis.confusion import confusion
from medtransfer.analysis.families import TALK
from medtransfer.analysis.lattice import SUBSETS
from medtransfer.analysis.leakage import ALL, CONTRAST, OTHERS, SHARED
from medtransfer.analysis.questions import block_counts, data_sizes
from medtransfer.analysis.runs import Run, by_model
from medtransfer.analysis.uncertainty import GROUPS
from medtransfer.core.predictions import classes_of
from medtransfer.metrics.scores import MACRO
from medtransfer.report import figures, tables
from medtransfer.report.study import Study, costs, largest_class_f1, leaves_out_features, trials, values_of
from medtransfer.report.words import words_for

POINTS = 3  # a line with fewer is not drawn
Drawn = Iterator[tuple[str, Figure]]  # what is said about this figure alone, and the figure


def overview(study: Study) -> Figure:
    """Return a figure of the macro F1 of the models `in_front` on every data set."""
    panels = {}
    for dataset in study.tables.results.dataset.drop_duplicates():
        part = tables.in_front(_macro(study, dataset), dataset)
        title = f"{words_for(dataset).title}, {part.test_images.iloc[0]} test images"
        warned = part.assign(warning=part.model.map(tables.mistuned(study.tables.results, dataset)))
        panels[figures.mark(title, " ".join(tables.noted(part)))] = warned
    return figures.overview(panels)


def _scores(study: Study, dataset: str) -> Drawn:
    part = tables.in_front(_macro(study, dataset), dataset)
    yield "", figures.scores(part, _title(study, dataset, "macro F1"))


def _cost(study: Study, dataset: str) -> Drawn:
    part = tables.in_front(_macro(study, dataset), dataset)
    if any("seconds" in note.lower() for note in study.notes):
        return  # the notes say why they are not comparable
    fits = _fits(study, dataset)
    seconds = costs({model: fits[model] for model in part.model}, study.runs)
    incomplete = [model for model in part.model if leaves_out_features(fits[model])]
    said = f"without the time to compute features, which were cached: {', '.join(incomplete)}" if incomplete else ""
    yield said, figures.cost(part, seconds, _title(study, dataset, "cost against macro F1"))


def _beyond(study: Study, dataset: str) -> Drawn:
    macro = _macro(study, dataset)
    others = macro[macro.family != TALK]
    if 0 < len(others) < len(macro):
        yield "", figures.scores(others, _title(study, dataset, "beyond the talk, macro F1"))


def _blocks(study: Study, dataset: str) -> Drawn:
    counts = block_counts(study.of(dataset), study.tables.results)
    counts["warning"] = counts.model.map(tables.mistuned(study.tables.results, dataset))
    if len(counts) and counts.groupby("start").size().max() >= POINTS:
        warned = counts.dropna(subset="warning").drop_duplicates("model")
        said = "; ".join(f"{model}: {text}" for model, text in zip(warned.model, warned.warning, strict=True))
        yield said, figures.block_counts(counts, _title(study, dataset, "trained blocks"))


def _values(study: Study, dataset: str) -> Drawn:
    values = values_of(study, dataset)
    if len(values):
        subsets = f"{values.subsets.iloc[0]} of {SUBSETS} subsets"
        yield subsets, figures.block_values(values, _title(study, dataset, "what training a block adds"))


def _sizes(study: Study, dataset: str) -> Drawn:
    sizes = data_sizes(study.of(dataset), study.tables.results)
    if sizes.fraction.nunique() >= POINTS:
        yield "", figures.data_sizes(sizes, _title(study, dataset, "training images"))


def _rates(study: Study, dataset: str) -> Drawn:
    tried = trials(study, dataset)
    if len(tried):
        yield "", figures.rates(tried, largest_class_f1(study, dataset), _title(study, dataset, "learning rates"))


def _leakage(study: Study, dataset: str) -> Drawn:
    found = study.leakage[study.leakage.dataset == dataset]
    if len(found):
        unit = words_for(dataset).groups.removesuffix("s")
        images = {SHARED: f"{unit} also in training", OTHERS: "other images", CONTRAST: "their difference"}
        named = found["class"] + ", " + found.images.replace(images)
        found = found.assign(name=named.where(found.images != ALL, found["class"]))
        yield "", figures.leakage(found, _title(study, dataset, "leakage"))


def _losses(study: Study, dataset: str) -> Drawn:
    histories = {
        model: [run.history for run in fits if run.history is not None]
        for model, fits in _fits_in_front(study, dataset).items()
    }
    drawn = {model: found for model, found in histories.items() if found}
    if drawn:
        yield "", figures.losses(drawn, _title(study, dataset, "validation loss"))


def _roc(study: Study, dataset: str) -> Drawn:
    from sklearn.metrics import roc_curve

    fits = best_network(study.runs, dataset)
    if fits:
        curves = {
            name: [roc_curve(run.encoded.codes == number, run.encoded.probabilities[:, number])[:2] for run in fits]
            for number, name in enumerate(classes_of(fits[0].predictions))
        }
        yield fits[0].model, figures.roc(curves, _title(study, dataset, "ROC curves"))


def _confusions(study: Study, dataset: str) -> Drawn:
    models = _fits_in_front(study, dataset)
    best = best_network(study.runs, dataset)
    if best:
        models.setdefault(best[0].model, best)
    matrices = {model: np.sum([confusion(run.predictions) for run in fits], axis=0) for model, fits in models.items()}
    classes = classes_of(next(iter(models.values()))[0].predictions)
    yield "", figures.confusions(matrices, classes, _title(study, dataset, "confusion"))


def _reliability(study: Study, dataset: str) -> Drawn:
    bands = {model: reliability(fits) for model, fits in _fits_in_front(study, dataset).items()}
    yield "", figures.reliability(bands, _title(study, dataset, "reliability"))


def _layers(study: Study, dataset: str) -> Drawn:
    for found in study.layers_of(dataset):
        title = _title(study, dataset, f"{found.name}: which layers matter")
        yield found.name, figures.layers(found.rewinding, found.similarity, found.probes, title)


FIGURES: dict[str, Callable[[Study, str], Drawn]] = {
    "scores": _scores,
    "sizes": _sizes,
    "values": _values,
    "layers": _layers,
    "blocks": _blocks,
    "cost": _cost,
    "beyond": _beyond,
    "roc": _roc,
    "reliability": _reliability,
    "confusions": _confusions,
    "leakage": _leakage,
    "rates": _rates,
    "losses": _losses,
}


def _macro(study: Study, dataset: str) -> pd.DataFrame:
    """Return each model's row of macro F1, with `fits` (that of each fit) and `starred` (an interval of these only)."""
    results, fits = study.tables.results, _fits(study, dataset)
    part = results[(results.dataset == dataset) & (results["class"] == MACRO)]
    values = {model: [run.scores[MACRO] for run in found] for model, found in fits.items()}
    return part.assign(fits=part.model.map(values), starred=part.interval == GROUPS)


def _fits(study: Study, dataset: str) -> dict[str, list[Run]]:
    return {model: fits for _, model, fits in by_model(study.of(dataset))}


def _fits_in_front(study: Study, dataset: str) -> dict[str, list[Run]]:
    shown = set(tables.in_front(study.tables.results, dataset).model)
    return {model: fits for model, fits in _fits(study, dataset).items() if model in shown}


def _title(study: Study, dataset: str, text: str) -> str:
    return figures.mark(f"{words_for(dataset).title}: {text}", " ".join(tables.notes(study.of(dataset))))
