"""The report: one HTML page with everything in it, made from files alone."""

import base64
import io
from dataclasses import dataclass, field
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medtransfer.evaluation.claims import LEVEL, judge
from medtransfer.evaluation.comparison import Run, by_model
from medtransfer.evaluation.confusion import confusion
from medtransfer.evaluation.metrics import MACRO
from medtransfer.evaluation.predictions import classes_of
from medtransfer.report import figures, tables

FROM_RANDOM, FROM_IMAGENET = "cnn_random", "imagenet_all"
FIRST_BLOCK, LAST_BLOCK = "imagenet_first_block", "imagenet_last_block"
TITLES = {"ham10000": "skin lesions", "chest_xray": "chest X-rays"}


@dataclass(frozen=True)
class Layers:
    """What `medtransfer layers` found of one fit: layers.json and its three tables."""

    record: dict[str, Any]
    rewinding: pd.DataFrame
    similarity: pd.DataFrame
    probes: pd.DataFrame


@dataclass(frozen=True)
class Picture:
    """A PNG file that a stage drew, and what it shows."""

    dataset: str
    text: str
    png: bytes


@dataclass(frozen=True)
class Study:
    """The runs of one study, and its tables from `compare`, `summarise` and `compare_models`."""

    name: str
    runs: list[Run]
    table: pd.DataFrame
    summary: pd.DataFrame
    pairs: pd.DataFrame
    layers: list[Layers] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    leak: pd.DataFrame | None = None

    @property
    def claims(self) -> pd.DataFrame:
        """The talk's claims that the study can decide."""
        return judge(self.pairs)


def build_page(studies: list[Study]) -> str:
    """Return the page; the first study answers the question, the others stand beside it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medtransfer.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(
        synthetic=any(run.record["synthetic"] for study in studies for run in study.runs),
        synthetic_note=tables.SYNTHETIC_NOTE,
        answer=answer(studies[0]),
        studies=[_view(study) for study in studies],
    )


def answer(study: Study) -> list[str]:
    """Return the answer to the talk's two questions, and what to freeze, as sentences that the numbers decide."""
    gains = _sentences(study, FROM_IMAGENET, FROM_RANDOM)
    layers = _sentences(study, LAST_BLOCK, FIRST_BLOCK)
    found = []
    if gains:
        found.append(
            f"Can knowledge be moved? Starting from ImageNet weights instead of random ones, {'; '.join(gains)}."
        )
    if layers:
        found.append(f"Which layers matter? Training the last block instead of the first, {'; '.join(layers)}.")
    cheap = [text for dataset in study.table.dataset.drop_duplicates() if (text := _cheapest(study, dataset))]
    if cheap:
        found.append(f"What to freeze? {' '.join(cheap)}")
    return found


def _sentences(study: Study, better: str, worse: str) -> list[str]:
    rows = study.claims[(study.claims.better == better) & (study.claims.worse == worse)]
    return [f"{_title(row['dataset'])}: macro F1 {_effect(row)}" for row in rows.to_dict("records")]


def _effect(row: dict[Any, Any]) -> str:
    verb = {"holds": "rises", "does not hold": "falls"}.get(row["verdict"], "does not clearly change,")
    size = f"by {abs(row['difference']):.2f}" if row["verdict"] != "not settled" else f"{row['difference']:+.2f}"
    return f"{verb} {size} [{row['low']:+.2f}, {row['high']:+.2f}]"


def _cheapest(study: Study, dataset: str) -> str | None:
    """Say which network takes the least time of those that are not worse than the best one, p < .05."""
    fits = {model: own for name, model, own in by_model(study.runs) if name == dataset and own[0].history is not None}
    table = study.table[(study.table.dataset == dataset) & (study.table["class"] == MACRO)].set_index("model")
    if len(fits) < 2:
        return None
    best = str(table.f1[list(fits)].idxmax())
    pairs = study.pairs[(study.pairs.dataset == dataset) & (study.pairs.p_corrected < LEVEL)]
    worse = {*pairs["second"][pairs["first"] == best], *pairs["first"][pairs["second"] == best]}
    equal = [model for model in fits if model not in worse]
    seconds = {model: sum(run.record["seconds"] for run in fits[model]) / len(fits[model]) for model in equal}
    cheap = min(seconds, key=lambda model: seconds[model])
    if cheap == best:
        return f"{_title(dataset)}: {best} scores best ({table.f1[best]:.2f}), and nothing cheaper comes near."
    return (
        f"{_title(dataset)}: {cheap} ({table.f1[cheap]:.2f}, {seconds[cheap]:.0f} s) is not clearly worse than the "
        f"best, {best} ({table.f1[best]:.2f}, {seconds[best]:.0f} s)."
    )


def _title(dataset: str) -> str:
    return TITLES.get(dataset, dataset)


def _view(study: Study) -> dict[str, Any]:
    return {
        "name": study.name,
        "claims": study.claims.to_dict("records"),
        "datasets": [_dataset_view(study, dataset) for dataset in study.table.dataset.drop_duplicates()],
    }


def _dataset_view(study: Study, dataset: str) -> dict[str, Any]:
    runs = [run for run in study.runs if run.dataset == dataset]
    record = runs[0].record
    models = [(model, fits) for _, model, fits in by_model(runs)]
    confusions = {model: np.sum([confusion(run.predictions) for run in fits], axis=0) for model, fits in models}
    histories = {model: [run.history for run in fits if run.history is not None] for model, fits in models}
    histories = {model: found for model, found in histories.items() if found}
    part = study.table[(study.table.dataset == dataset) & (study.table["class"] == MACRO)]
    seconds = {model: sum(run.record["seconds"] for run in fits) / len(fits) for model, fits in models}
    mark = record["synthetic"]
    drawn = [
        (
            "Macro F1 of each model with its 95% interval, and the talk's.",
            figures.scores(part, figures.mark(f"{dataset}: macro F1", mark)),
        ),
        (
            "What each model costs: seconds of training against macro F1.",
            figures.cost(part, seconds, figures.mark(f"{dataset}: cost against macro F1", mark)),
        ),
        (
            "Validation loss of each network over the epochs, a line a seed.",
            figures.losses(histories, figures.mark(f"{dataset}: validation loss", mark)),
        ),
        (
            "Confusion matrices of the test images, counts over all seeds.",
            figures.confusions(confusions, classes_of(runs[0].predictions), figures.mark(dataset, mark)),
        ),
    ]
    if study.leak is not None and dataset in set(study.leak.dataset):
        text = (
            "How much the leak flatters each class: F1 with images of the test images' lesions or patients in "
            "training, less F1 without, on the same test images and with as many training images of each class. "
            "95% intervals."
        )
        drawing = figures.leak(study.leak[study.leak.dataset == dataset], figures.mark(f"{dataset}: the leak", mark))
        drawn.insert(0, (text, drawing))
    for found in study.layers:
        if found.record["dataset"] == dataset:
            title = f"{dataset}, {found.record['model']}, seed {found.record['seed']}: which layers matter"
            text = (
                f"Which layers of {found.record['model']} (seed {found.record['seed']}) matter: macro F1 with one "
                "block put back to its start weights, and of a linear classifier on each block's output; similarity "
                "and distance of each layer before and after training. 95% intervals."
            )
            drawing = figures.layers(found.rewinding, found.similarity, found.probes, figures.mark(title, mark))
            drawn.append((text, drawing))
    return {
        "name": dataset,
        "record": record,
        "tests": len(runs[0].predictions),
        "groups": runs[0].predictions.group.nunique(),
        "f1": _cells(tables.pivot(study.table, dataset)),
        "measures": _cells(tables.measures(study.summary, dataset)),
        "differences": _cells(tables.differences(study.pairs, dataset)),
        "provenance": _cells(tables.provenance(runs)),
        "figures": [{"text": text, "uri": _embed(_png(figure))} for text, figure in drawn]
        + [
            {"text": picture.text, "uri": _embed(picture.png)}
            for picture in study.pictures
            if picture.dataset == dataset
        ],
    }


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
