"""The report: one HTML page with everything in it, made from files alone."""

import base64
import io
from collections.abc import Mapping
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
from medtransfer.report.answers import FROM_IMAGENET, answers, title
from medtransfer.report.study import Layers, Study, costs, largest_class_f1, leaves_out_features, trials

SUBJECTS = {"ham10000": "skin lesions (HAM10000)", "chest_xray": "chest X-rays"}
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
        subjects=[SUBJECTS.get(name) or custom.get(name, {}).get("title", name) for name in names],
        custom=custom,
        talks=[name for name in names if is_the_talks(name)],
        units=" or ".join(dict.fromkeys(_units(custom, name) for name in names)),
        synthetic=any(run.record["synthetic"] for study in studies for run in study.runs),
        synthetic_note=tables.SYNTHETIC_NOTE,
        answer=_cells(answered) if len(answered := answers(studies[0])) else None,
        beside_the_talk=any(map(is_the_talks, studies[0].tables.results.dataset.unique())),
        front=_embed(_png(overview(studies[0].tables.results))),
        claims_note=tables.CLAIMS_NOTE,
        studies=[_view(study) for study in studies],
    )


def _units(custom: Mapping[str, Mapping[str, Any]], dataset: str) -> str:
    return f"{custom[dataset]['group']}s" if dataset in custom else tables.units(dataset)


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
    drawn = [*score_figures(study, dataset), *_questions(study, dataset), *_each_model(study, dataset)]
    scores, *others = tables.sections(study.tables, study.runs, dataset)
    # A network with a frozen block does not tell which blocks matter.
    asked = [
        found for found in study.layers if found.record["dataset"] == dataset and (found.similarity.distance > 0).all()
    ]
    return {
        "name": dataset,
        "title": title(dataset),
        "record": runs[0].record,
        "split": split_of(runs[0].record),
        "split_means": SPLITS[split_of(runs[0].record)] if is_the_talks(dataset) else None,
        "classes": _classes(study, dataset),
        "how": _how(runs),
        "tests": len(runs[0].predictions),
        "groups": runs[0].predictions.group.nunique(),
        "units": _units(study.custom, dataset),
        "is_the_talks": is_the_talks(dataset),
        "f1": _shown(*scores),
        "tables": [_shown(*section) for section in (*others, *_leakage(study, dataset))],
        "blocks": [_blocks(found, block_gains(runs, study.tables.pairs)) for found in asked],
        "provenance": _cells(tables.provenance(runs)),
        "figures": [{"text": text, "uri": _embed(_png(figure))} for text, figure in drawn]
        + [
            {"text": picture.text, "uri": _embed(picture.png)}
            for picture in study.pictures
            if picture.dataset == dataset
        ],
    }


def _classes(study: Study, dataset: str) -> str:
    """Return what each class stands for, where the name alone does not say it."""
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


def _leakage(study: Study, dataset: str) -> list[tuple[str, pd.DataFrame]]:
    found = _leakage_of(study, dataset)
    if found is None:
        return []
    text = (
        f"How much leakage flatters each class: F1 with images of the test images' {_units(study.custom, dataset)} in "
        "training less F1 without, on all test images, with 95% intervals."
    )
    return [(text, tables.leakage(found[found.images == ALL]))]


def _leakage_of(study: Study, dataset: str) -> pd.DataFrame | None:
    if study.leakage is None or dataset not in set(study.leakage.dataset):
        return None
    return study.leakage[study.leakage.dataset == dataset]


def score_figures(study: Study, dataset: str) -> list[Drawn]:
    """Return the figures of one data set's macro F1 and of what it costs, each with its caption."""
    part = tables.in_front(study.tables.results[study.tables.results["class"] == MACRO], dataset)
    fits = {model: own for name, model, own in by_model(study.runs) if name == dataset}
    seconds = costs({model: fits[model] for model in part.model}, study.runs)
    warm = [model for model in part.model if leaves_out_features(fits[model])]
    without = f" Without the time to compute features that were already stored: {', '.join(warm)}." if warm else ""
    talks = ", and the talk's" if is_the_talks(dataset) else ""
    mark = _synthetic(study, dataset)
    return [
        (
            f"Macro F1 of each model with its 95% interval, each seed of it where there are several{talks}.",
            figures.scores(part, figures.mark(f"{dataset}: macro F1", mark), _seeds(study, dataset)),
        ),
        (
            "What each model costs: seconds of training (one seed), with those of the fit that it begins from, against "
            "macro F1." + without,
            figures.cost(part, seconds, figures.mark(f"{dataset}: cost against macro F1", mark)),
        ),
    ]


def _seeds(study: Study, dataset: str) -> dict[str, list[float]]:
    """Return the macro F1 of every fit by its model."""
    return {model: [run.scores[MACRO] for run in fits] for name, model, fits in by_model(study.runs) if name == dataset}


def _questions(study: Study, dataset: str) -> list[Drawn]:
    """Draw what only some studies can answer: how many blocks, how many images, which rate, leakage."""
    mark = _synthetic(study, dataset)
    drawn = []
    macro = study.tables.results[(study.tables.results.dataset == dataset) & (study.tables.results["class"] == MACRO)]
    others = macro[macro.family != TALK]
    if 0 < len(others) < len(macro):
        text = "Macro F1 of each model beyond the talk's with its 95% interval."
        name = figures.mark(f"{dataset}: beyond the talk, macro F1", mark)
        drawn.append((text, figures.scores(others, name, _seeds(study, dataset))))
    runs = [run for run in study.runs if run.dataset == dataset]
    counts, sizes = block_counts(runs, study.tables.results), data_sizes(runs, study.tables.results)
    if len(counts) and counts.groupby("start").size().max() >= POINTS:
        text = (
            "How many blocks to train: macro F1 of networks from ImageNet weights, with the blocks that train counted "
            "from the last one or from the first one. 95% intervals."
        )
        drawn.append((text, figures.block_counts(counts, figures.mark(f"{dataset}: blocks that train", mark))))
    if sizes.fraction.nunique() >= POINTS:
        text = "When transfer pays: macro F1 against the number of training images, from either weights. 95% intervals."
        drawn.append((text, figures.data_sizes(sizes, figures.mark(f"{dataset}: training images", mark))))
    tried = trials(study, dataset)
    if tried is not None:
        text = (
            "The learning rates that were tried, on a part or all of the training images, for so many epochs at most. "
            "In a ring the one that is used: that with the lowest validation loss, which need not be the one with the "
            "highest macro F1. Dashed: a model that only ever answers the largest class."
        )
        name = figures.mark(f"{dataset}: learning rates", mark)
        drawn.append((text, figures.rates(tried, largest_class_f1(study, dataset), name)))
    found = _leakage_of(study, dataset)
    if found is not None:
        text = (
            f"How much leakage flatters each class: F1 with images of the test images' {_units(study.custom, dataset)} "
            "in training, less F1 without, on the same test images and with as many training images of each class. The "
            "micro average is also given for the test images that share one with training, and for the others. 95% "
            "intervals."
        )
        found = found.assign(name=found["class"].where(found.images == ALL, found["class"] + ", " + found.images))
        drawn.append((text, figures.leakage(found, figures.mark(f"{dataset}: leakage", mark))))
    return drawn


def _each_model(study: Study, dataset: str) -> list[Drawn]:
    shown = set(tables.in_front(study.tables.results, dataset).model)
    models = [(model, fits) for name, model, fits in by_model(study.runs) if name == dataset and model in shown]
    confusions = {model: np.sum([confusion(run.predictions) for run in fits], axis=0) for model, fits in models}
    histories = {model: [run.history for run in fits if run.history is not None] for model, fits in models}
    histories = {model: found for model, found in histories.items() if found}
    classes, mark = classes_of(models[0][1][0].predictions), _synthetic(study, dataset)
    drawn = [
        (
            "Confusion matrices of the test images, counts over all seeds.",
            figures.confusions(confusions, classes, figures.mark(dataset, mark)),
        )
    ]
    bands = {model: reliability(fits) for model, fits in models}
    text = "Calibration: the share of correct predictions by their confidence, with 95% intervals of these fits."
    drawn.append((text, figures.reliability(bands, figures.mark(f"{dataset}: reliability", mark))))
    if histories:
        text = "Validation loss of each network over the epochs, one line per seed."
        drawn.insert(0, (text, figures.losses(histories, figures.mark(f"{dataset}: validation loss", mark))))
    for found in study.layers:
        if found.record["dataset"] == dataset:
            name = f"{dataset}, {found.record['model']}, seed {found.record['seed']}: which layers matter"
            text = (
                f"Which layers of {found.record['model']} (seed {found.record['seed']}) matter: macro F1 with one "
                "block put back to its start weights, and of a linear classifier on each block's output; similarity "
                "and distance of each layer before and after training. 95% intervals."
            )
            drawing = figures.layers(found.rewinding, found.similarity, found.probes, figures.mark(name, mark))
            drawn.append((text, drawing))
    return drawn


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
