"""The report: one HTML page with everything in it, made only from files."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medtransfer.analysis.agreement import agree
from medtransfer.analysis.calibration import reliability
from medtransfer.analysis.confusion import confusion
from medtransfer.analysis.families import TALK
from medtransfer.analysis.leakage import ALL
from medtransfer.analysis.published import is_the_talks
from medtransfer.analysis.questions import block_counts, block_gains, data_sizes
from medtransfer.analysis.runs import Run, by_model
from medtransfer.core.predictions import classes_of
from medtransfer.core.run_record import SplitRule, split_of
from medtransfer.data.catalogue import CATALOGUE
from medtransfer.metrics.scores import MACRO
from medtransfer.report import figures, tables
from medtransfer.report.answers import FROM_IMAGENET, answers
from medtransfer.report.study import Layers, Study, costs, largest_class_f1, leaves_out_features, trials
from medtransfer.report.words import words_for

POINTS = 3  # of a line, or it is not drawn
# What each way to split means, in plain words.
SPLITS = {
    SplitRule("group", "keep"): "no lesion or patient in two parts",
    SplitRule("image", "keep"): "as in the talk: images of one lesion or patient in several parts",
    SplitRule("image", "remove"): "lesions and patients of the test images are left out of training and validation",
    SplitRule("image", "match"): "images of one lesion or patient in several parts; as many images are left out at "
    "random as where the leak is removed",
}
# What a figure shows, and the figure.
Drawn = tuple[str, Figure]


def build_page(studies: list[Study]) -> str:
    """Return the page; the first study answers the question, the others stand beside it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medtransfer.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    names = list(dict.fromkeys(run.dataset for study in studies for run in study.runs))
    custom = {name: entry for study in studies for name, entry in study.custom.items() if name in names}
    return environment.get_template("page.html.j2").render(
        names=names,
        subjects=[words_for(name, custom).subject for name in names],
        custom=custom,
        talks=[name for name in names if is_the_talks(name)],
        units=" or ".join(dict.fromkeys(words_for(name, custom).groups for name in names)),
        synthetic=any(run.record["synthetic"] for study in studies for run in study.runs),
        synthetic_note=tables.SYNTHETIC_NOTE,
        answer=_cells(answered) if len(answered := answers(studies[0])) else None,
        beside_the_talk=any(map(is_the_talks, studies[0].tables.results.dataset.unique())),
        front=_embed(_png(overview(studies[0].tables.results))),
        claims_note=tables.CLAIMS_NOTE,
        studies=[_view(study) for study in studies],
    )


def _view(study: Study) -> dict[str, Any]:
    record = study.runs[0].record
    return {
        "name": study.name,
        "title": f"Split by {split_of(record)}, {record['image_size']} px",
        "notes": study.notes,
        "claims": _cells(tables.claims(study.tables.claims)) if len(study.tables.claims) else None,
        "datasets": [_dataset_view(study, dataset) for dataset in study.tables.results.dataset.drop_duplicates()],
    }


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
    scores, *others = tables.sections(study.tables, study.runs, dataset)
    if len(found := _leakage(study, dataset)):
        others.append((_leakage_note(study, dataset), tables.leakage(found[found.images == ALL])))
    # A network with a frozen block does not tell which blocks matter.
    asked = [
        found for found in study.layers if found.record["dataset"] == dataset and (found.similarity.distance > 0).all()
    ]
    return {
        "name": dataset,
        "title": words_for(dataset).title,
        "record": runs[0].record,
        "split": split_of(runs[0].record),
        "split_means": SPLITS[split_of(runs[0].record)] if is_the_talks(dataset) else None,
        "classes": _classes(study, dataset),
        "how": _how(runs),
        "tests": len(runs[0].predictions),
        "groups": runs[0].predictions.group.nunique(),
        "units": words_for(dataset, study.custom).groups,
        "is_the_talks": is_the_talks(dataset),
        "f1": _shown(*scores),
        "tables": [_shown(*section) for section in others],
        "blocks": [_blocks(found, block_gains(runs, study.tables.pairs)) for found in asked],
        "provenance": _cells(tables.provenance(runs)),
        "figures": [{"text": text, "uri": _embed(_png(figure))} for text, figure in _figures(study, dataset)]
        + [
            {"text": picture.text, "uri": _embed(picture.png)}
            for picture in study.pictures
            if picture.dataset == dataset
        ],
    }


def _classes(study: Study, dataset: str) -> str:
    """Return what each class stands for, where its name does not make this clear."""
    known = study.custom.get(dataset, {}).get("classes") or getattr(CATALOGUE.get(dataset), "classes", {})
    return "; ".join(f"{name}: {meaning}" for name, meaning in known.items() if meaning != name)


def _how(runs: list[Run]) -> str:
    """Say how the networks were trained, and what ended their training."""
    networks = [run for run in runs if run.history is not None]
    if not networks:
        return ""
    recipes = [run.record["hyperparameters"]["train"] for run in networks]
    most = max(recipe["epochs"] for recipe in recipes)
    ended = sum(run.record["epochs"] >= recipe["epochs"] for run, recipe in zip(networks, recipes, strict=True))
    units = " and ".join(map(str, recipes[0]["dense_units"]))
    optimizers = " or ".join(sorted({recipe["optimizer"] for recipe in recipes}))
    return (
        f"Networks: VGG16's blocks, a head of {units} units with dropout {recipes[0]['dropout']:g}, {optimizers}, "
        f"batches of {recipes[0]['batch_size']}, at most {most} epochs, ended after {recipes[0]['patience']} without a "
        f"lower validation loss ({ended or 'none'} of {len(networks)} fits reached the limit), the weights of the best "
        "epoch. Each network by medtransfer stage train DATASET MODEL --seed SEED, each tree by medtransfer stage "
        "baseline likewise."
    )


def _blocks(found: Layers, gains: pd.Series) -> dict[str, Any]:
    # Other networks begin elsewhere or do not train every block.
    asked = gains if found.record["model"] == FROM_IMAGENET else None
    agreement = agree(found.rewinding, found.similarity, found.probes, asked)
    return {
        "model": found.record["model"],
        "seed": found.record["seed"],
        "table": _cells(tables.blocks(agreement)),
        "concordance": f"{agreement.concordance:.2f}",
    }


def _leakage(study: Study, dataset: str) -> pd.DataFrame:
    """Return the rows of one data set in the table of leakage; none if it was not measured."""
    return pd.DataFrame() if study.leakage is None else study.leakage[study.leakage.dataset == dataset]


def _leakage_note(study: Study, dataset: str) -> str:
    groups = words_for(dataset, study.custom).groups
    return (
        f"How much leakage flatters each class: F1 with images of the test images' {groups} in training less F1 "
        "without, on the same test images and with as many training images of each class, with 95% intervals."
    )


def _figures(study: Study, dataset: str) -> Iterator[Drawn]:
    """Yield every figure of one data set with its caption."""
    yield from score_figures(study, dataset)
    yield from _question_figures(study, dataset)
    yield from _model_figures(study, dataset)


def score_figures(study: Study, dataset: str) -> Iterator[Drawn]:
    """Yield the figures of one data set's macro F1 and of what it costs, each with its caption."""
    part = tables.in_front(_macro(study), dataset)
    fits = {model: runs for name, model, runs in by_model(study.runs) if name == dataset}
    talks = ", and the talk's" if is_the_talks(dataset) else ""
    text = f"Macro F1 of each model with its 95% interval, and of each seed{talks}."
    yield text, figures.scores(part, _title(study, dataset, "macro F1"), _seeds(study, dataset))
    seconds = costs({model: fits[model] for model in part.model}, study.runs)
    warm = [model for model in part.model if leaves_out_features(fits[model])]
    text = (
        "What each model costs: seconds of training one seed, including the fit that it starts from, against macro F1."
    )
    text += f" Without the time to compute features that were already stored: {', '.join(warm)}." if warm else ""
    yield text, figures.cost(part, seconds, _title(study, dataset, "cost against macro F1"))


def _question_figures(study: Study, dataset: str) -> Iterator[Drawn]:
    """Yield what only some studies can answer: how many blocks, how many images, which rate, leakage."""
    macro = _macro(study)[_macro(study).dataset == dataset]
    others = macro[macro.family != TALK]
    if 0 < len(others) < len(macro):
        title = _title(study, dataset, "beyond the talk, macro F1")
        text = "Macro F1 of each model beyond the talk's with its 95% interval."
        yield text, figures.scores(others, title, _seeds(study, dataset))
    runs = [run for run in study.runs if run.dataset == dataset]
    counts = block_counts(runs, study.tables.results)
    if len(counts) and counts.groupby("start").size().max() >= POINTS:
        text = (
            "How many blocks to train: macro F1 of networks from ImageNet weights that train the last or the first "
            "blocks. 95% intervals."
        )
        yield text, figures.block_counts(counts, _title(study, dataset, "blocks that train"))
    sizes = data_sizes(runs, study.tables.results)
    if sizes.fraction.nunique() >= POINTS:
        text = "When transfer pays: macro F1 against the number of training images, from either weights. 95% intervals."
        yield text, figures.data_sizes(sizes, _title(study, dataset, "training images"))
    tried = trials(study, dataset)
    if tried is not None:
        text = (
            "The learning rates that were tried, with the share of training images and the most epochs above each "
            "panel. A ring marks the rate that is used: that with the lowest validation loss, which need not have the "
            "highest macro F1. Dashed: a model that predicts only the largest class."
        )
        yield text, figures.rates(tried, largest_class_f1(study, dataset), _title(study, dataset, "learning rates"))
    found = _leakage(study, dataset)
    if len(found):
        found = found.assign(name=found["class"].where(found.images == ALL, found["class"] + ", " + found.images))
        text = _leakage_note(study, dataset) + (
            " The micro average is also given for the test images that share one with training, and for the others."
        )
        yield text, figures.leakage(found, _title(study, dataset, "leakage"))


def _model_figures(study: Study, dataset: str) -> Iterator[Drawn]:
    """Yield loss curves, confusion matrices, reliability diagrams and what `layers` found."""
    shown = set(tables.in_front(study.tables.results, dataset).model)
    models = {model: fits for name, model, fits in by_model(study.runs) if name == dataset and model in shown}
    histories = {model: [run.history for run in fits if run.history is not None] for model, fits in models.items()}
    if any(histories.values()):
        text = "Validation loss of each network over the epochs, one line per seed."
        drawn = {model: found for model, found in histories.items() if found}
        yield text, figures.losses(drawn, _title(study, dataset, "validation loss"))
    confusions = {model: np.sum([confusion(run.predictions) for run in fits], axis=0) for model, fits in models.items()}
    classes = classes_of(next(iter(models.values()))[0].predictions)
    text = "Confusion matrices of the test images, counts over all seeds."
    yield text, figures.confusions(confusions, classes, _title(study, dataset, "confusion"))
    bands = {model: reliability(fits) for model, fits in models.items()}
    text = "Calibration: the share of correct predictions by their confidence, with 95% intervals of these fits."
    yield text, figures.reliability(bands, _title(study, dataset, "reliability"))
    for found in study.layers:
        if found.record["dataset"] == dataset:
            model = f"{found.record['model']} (seed {found.record['seed']})"
            text = (
                f"Which layers of {model} matter: macro F1 with one block put back to its start weights, and of a "
                "linear classifier on each block's output; similarity and distance of each layer before and after "
                "training. 95% intervals."
            )
            title = _title(study, dataset, f"{model}: which layers matter")
            yield text, figures.layers(found.rewinding, found.similarity, found.probes, title)


def _macro(study: Study) -> pd.DataFrame:
    return study.tables.results[study.tables.results["class"] == MACRO]


def _seeds(study: Study, dataset: str) -> dict[str, list[float]]:
    """Return the macro F1 of every fit by its model."""
    return {model: [run.scores[MACRO] for run in fits] for name, model, fits in by_model(study.runs) if name == dataset}


def _title(study: Study, dataset: str, text: str) -> str:
    return figures.mark(f"{dataset}: {text}", _synthetic(study, dataset))


def _synthetic(study: Study, dataset: str) -> bool:
    return any(run.record["synthetic"] for run in study.runs if run.dataset == dataset)


def _shown(text: str, frame: pd.DataFrame) -> dict[str, Any]:
    return {"text": text, "table": _cells(frame)}


def _cells(frame: pd.DataFrame) -> dict[str, Any]:
    """Return a table as lists of text; a cell's lines are a list."""
    rows = [
        {"name": str(name), "cells": [str(cell).replace("**", "").split("\n") for cell in row],
         "strong": [str(cell).startswith("**") for cell in row]}
        for name, row in zip(frame.index, frame.to_numpy(), strict=True)
    ]  # fmt: skip
    return {"corner": str(frame.index.name), "columns": [str(column) for column in frame.columns], "rows": rows}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figures.DPI)
    return buffer.getvalue()


def _embed(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
