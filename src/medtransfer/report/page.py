"""The report: one HTML page with everything in it, made only from files."""

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medtransfer.analysis.agreement import agree
from medtransfer.analysis.calibration import reliability
from medtransfer.analysis.confusion import confusion
from medtransfer.analysis.families import TALK
from medtransfer.analysis.lattice import SUBSETS, block_values
from medtransfer.analysis.leakage import ALL
from medtransfer.analysis.published import is_the_talks
from medtransfer.analysis.questions import block_counts, block_gains, data_sizes
from medtransfer.analysis.runs import Run, by_model
from medtransfer.core.predictions import classes_of
from medtransfer.core.run_record import SplitRule, recipe_of, split_of
from medtransfer.data.catalogue import CATALOGUE
from medtransfer.metrics.scores import MACRO
from medtransfer.report import figures, tables
from medtransfer.report.answers import FROM_IMAGENET, answers
from medtransfer.report.render import render
from medtransfer.report.study import Study, costs, largest_class_f1, leaves_out_features, trials
from medtransfer.report.words import words_for

POINTS = 3  # a line with fewer is not drawn
# What each way to split means.
SPLITS = {
    SplitRule("group", "keep"): "no lesion or patient in two parts",
    SplitRule("image", "keep"): "as in the talk: images of one lesion or patient in several parts",
    SplitRule("image", "remove"): "lesions and patients of the test images are left out of training and validation",
    SplitRule("image", "match"): "images of one lesion or patient in several parts; as many images are left out at "
    "random as where the leakage is removed",
}
# The name of a figure's caption in templates/captions.html.j2, the models in it, and the figure.
Drawn = tuple[str, str, Figure]


def build_page(studies: list[Study]) -> str:
    """Return the page; the first study answers the questions, the others follow."""
    names = list(dict.fromkeys(run.dataset for study in studies for run in study.runs))
    custom = {name: entry for study in studies for name, entry in study.custom.items() if name in names}
    answered = answers(studies[0])
    return render(
        "medtransfer.report",
        "page.html.j2",
        names=names,
        subjects=[words_for(name, custom).subject for name in names],
        custom=custom,
        talks=[name for name in names if is_the_talks(name)],
        units=" or ".join(dict.fromkeys(words_for(name, custom).groups for name in names)),
        synthetic=any(run.record["synthetic"] for study in studies for run in study.runs),
        synthetic_note=tables.SYNTHETIC_NOTE,
        answer=answered if len(answered) else None,
        beside_the_talk=any(map(is_the_talks, studies[0].tables.results.dataset.unique())),
        front=_uri(_png(overview(studies[0].tables.results))),
        studies=_views(studies),
    )


def _views(studies: list[Study]) -> list[dict[str, Any]]:
    """Return what the page shows of each study; the figures take nearly all of the time, so every core draws some."""
    with ProcessPoolExecutor() as pool:
        datasets = [
            [pool.submit(_dataset_view, study, dataset) for dataset in study.tables.results.dataset.drop_duplicates()]
            for study in studies
        ]
        return [
            {
                "name": study.name,
                "title": f"Split by {split_of(study.runs[0].record)}, {study.runs[0].record['image_size']} px",
                "notes": study.notes,
                "claims": tables.claims(study.tables.claims) if len(study.tables.claims) else None,
                "datasets": [view.result() for view in views],
            }
            for study, views in zip(studies, datasets, strict=True)
        ]


def overview(table: pd.DataFrame) -> Figure:
    """Return a figure of the macro F1 of the models `in_front` on every data set; `table` from `compare`."""
    macro = table[table["class"] == MACRO]
    parts = {dataset: tables.in_front(macro, dataset) for dataset in macro.dataset.drop_duplicates()}
    return figures.overview(
        {
            figures.mark(f"{dataset}, {own.test_images.iloc[0]} test images", bool(own.synthetic.any())): own
            for dataset, own in parts.items()
        }
    )


def _dataset_view(study: Study, dataset: str) -> dict[str, Any]:
    runs = [run for run in study.runs if run.dataset == dataset]
    recipes = [(recipe_of(run.record), run.record["epochs"]) for run in runs if run.history is not None]
    sections = tables.sections(study.tables, study.runs, dataset)
    leaked = study.leakage[(study.leakage.dataset == dataset) & (study.leakage.images == ALL)]
    known = study.custom.get(dataset, {}).get("classes") or getattr(CATALOGUE.get(dataset), "classes", {})
    return {
        "name": dataset,
        "title": words_for(dataset).title,
        "first": runs[0],
        "split": split_of(runs[0].record),
        "split_means": SPLITS[split_of(runs[0].record)] if is_the_talks(dataset) else None,
        # Only where a class's name does not say what it stands for.
        "meanings": [f"{name}: {meaning}" for name, meaning in known.items() if meaning != name],
        "recipes": [recipe for recipe, _ in recipes if recipe.recipe == "talk"],
        "modern": sum(recipe.recipe == "modern" for recipe, _ in recipes),
        "at_limit": sum(epochs >= recipe.epochs for recipe, epochs in recipes if recipe.recipe == "talk"),
        "units": words_for(dataset, study.custom).groups,
        "tables": [*sections, ("leakage", tables.leakage(leaked))] if len(leaked) else sections,
        "blocks": _blocks(study, dataset),
        "provenance": tables.provenance(runs),
        "figures": [(name, models, _uri(_png(figure))) for name, models, figure in _figures(study, dataset)]
        + [(found.name, found.model, _uri(found.png)) for found in study.pictures if found.dataset == dataset],
    }


def _blocks(study: Study, dataset: str) -> list[dict[str, Any]]:
    """Return how much each block of a network matters, for each network that `layers` analysed."""
    runs = [run for run in study.runs if run.dataset == dataset]
    found = []
    for layers in study.layers:
        # A network with a frozen block cannot show which blocks matter.
        if layers.record["dataset"] == dataset and (layers.similarity.distance > 0).all():
            # The gains are those of networks from ImageNet weights.
            gains = block_gains(runs, study.tables.pairs) if layers.record["model"] == FROM_IMAGENET else None
            agreement = agree(layers.rewinding, layers.similarity, layers.probes, gains)
            concordance = f"{agreement.concordance:.2f}"
            found.append({"of": layers.record, "table": tables.blocks(agreement), "concordance": concordance})
    return found


def _figures(study: Study, dataset: str) -> Iterator[Drawn]:
    """Yield every figure of one data set."""
    yield from score_figures(study, dataset)
    yield from _question_figures(study, dataset)
    yield from _model_figures(study, dataset)


def score_figures(study: Study, dataset: str) -> Iterator[Drawn]:
    """Yield the figures of one data set's macro F1 and of what it costs."""
    part = tables.in_front(_macro(study, dataset), dataset)
    fits = _fits(study, dataset)
    yield "scores", "", figures.scores(part, _title(study, dataset, "macro F1"), _seeds(study, dataset))
    seconds = costs({model: fits[model] for model in part.model}, study.runs)
    incomplete = [model for model in part.model if leaves_out_features(fits[model])]
    title = _title(study, dataset, "cost against macro F1")
    yield "cost", ", ".join(incomplete), figures.cost(part, seconds, title)


def _question_figures(study: Study, dataset: str) -> Iterator[Drawn]:
    """Yield the figures that only some studies have: number of blocks, number of images, learning rates, leakage."""
    macro = _macro(study, dataset)
    others = macro[macro.family != TALK]
    if 0 < len(others) < len(macro):
        title = _title(study, dataset, "beyond the talk, macro F1")
        yield "beyond", "", figures.scores(others, title, _seeds(study, dataset))
    runs = [run for run in study.runs if run.dataset == dataset]
    counts = block_counts(runs, study.tables.results)
    if len(counts) and counts.groupby("start").size().max() >= POINTS:
        yield "blocks", "", figures.block_counts(counts, _title(study, dataset, "blocks that train"))
    values = block_values(runs)
    if len(values):
        subsets = f"{values.subsets.iloc[0]} of {SUBSETS}"
        yield "values", subsets, figures.block_values(values, _title(study, dataset, "what training a block adds"))
    sizes = data_sizes(runs, study.tables.results)
    if sizes.fraction.nunique() >= POINTS:
        yield "sizes", "", figures.data_sizes(sizes, _title(study, dataset, "training images"))
    tried = trials(study, dataset)
    if len(tried):
        title = _title(study, dataset, "learning rates")
        yield "rates", "", figures.rates(tried, largest_class_f1(study, dataset), title)
    found = study.leakage[study.leakage.dataset == dataset]
    if len(found):
        found = found.assign(name=found["class"].where(found.images == ALL, found["class"] + ", " + found.images))
        yield "leakage", "", figures.leakage(found, _title(study, dataset, "leakage"))


def _model_figures(study: Study, dataset: str) -> Iterator[Drawn]:
    """Yield loss curves, confusion matrices, reliability diagrams and the results of `layers`."""
    shown = set(tables.in_front(study.tables.results, dataset).model)
    models = {model: fits for model, fits in _fits(study, dataset).items() if model in shown}
    histories = {model: [run.history for run in fits if run.history is not None] for model, fits in models.items()}
    drawn = {model: found for model, found in histories.items() if found}
    if drawn:
        yield "losses", "", figures.losses(drawn, _title(study, dataset, "validation loss"))
    confusions = {model: np.sum([confusion(run.predictions) for run in fits], axis=0) for model, fits in models.items()}
    classes = classes_of(next(iter(models.values()))[0].predictions)
    yield "confusions", "", figures.confusions(confusions, classes, _title(study, dataset, "confusion"))
    bands = {model: reliability(fits) for model, fits in models.items()}
    yield "reliability", "", figures.reliability(bands, _title(study, dataset, "reliability"))
    for found in study.layers:
        if found.record["dataset"] == dataset:
            model = f"{found.record['model']} (seed {found.record['seed']})"
            title = _title(study, dataset, f"{model}: which layers matter")
            yield "layers", model, figures.layers(found.rewinding, found.similarity, found.probes, title)


def _macro(study: Study, dataset: str) -> pd.DataFrame:
    results = study.tables.results
    return results[(results.dataset == dataset) & (results["class"] == MACRO)]


def _fits(study: Study, dataset: str) -> dict[str, list[Run]]:
    return {model: fits for name, model, fits in by_model(study.runs) if name == dataset}


def _seeds(study: Study, dataset: str) -> dict[str, list[float]]:
    """Return the macro F1 of every fit, by model."""
    return {model: [run.scores[MACRO] for run in fits] for model, fits in _fits(study, dataset).items()}


def _title(study: Study, dataset: str, text: str) -> str:
    synthetic = any(run.record["synthetic"] for run in study.runs if run.dataset == dataset)
    return figures.mark(f"{dataset}: {text}", synthetic)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
