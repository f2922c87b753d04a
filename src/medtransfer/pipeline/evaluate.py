"""evaluate: the folders of all fits → tables and figures in reports/; the figures are also added to the MLflow runs."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from medtransfer.analysis.confusion import confusion, report
from medtransfer.analysis.runs import Run, read_run, studied
from medtransfer.core.dvc import check_unchanged
from medtransfer.core.errors import UserError
from medtransfer.core.files import atomic_folder, write_json
from medtransfer.core.layout import ACTIVATIONS, CARD, DATA, FIGURES, REPORTS, run_folder, run_name
from medtransfer.core.params import Params
from medtransfer.core.predictions import classes_of
from medtransfer.core.prepared import data_of
from medtransfer.core.run_record import note_of
from medtransfer.core.tables import DIGITS
from medtransfer.data.custom import dataset_of
from medtransfer.metrics.scores import MACRO, MICRO
from medtransfer.pipeline.fit_id import remove_recorded_checkpoints
from medtransfer.report import figures
from medtransfer.report.card import model_card
from medtransfer.report.tables import write_results
from medtransfer.tracking import mlflow_runs

# The two networks whose training accuracy the talk compares.
LEARNING = {"cnn_random": "random weights", "imagenet_all": "ImageNet weights"}


def evaluate(params: Params) -> None:
    """Score every fit of the study and compare it with the talk."""
    remove_recorded_checkpoints()
    runs = [read_run(folder) for folder in studied(params)]
    for dataset in params.study:
        check_unchanged(ACTIVATIONS / dataset)
    attributes = {name: dataset_of(name, params).describe(DATA / name) for name in params.study}
    tables = write_results(Path.cwd().name, runs, attributes, REPORTS).tables
    versions = {f"{run.dataset}-{run.model}": run.record["data_version"][:8] for run in runs}
    with atomic_folder(REPORTS / "metrics") as folder:
        for names, part in tables.results.groupby(["dataset", "model"], sort=False):
            name, scores = "-".join(map(str, names)), dict(zip(part["class"], part.f1.round(DIGITS), strict=True))
            averages = {"macro_f1": scores.pop(MACRO), "micro_f1": scores.pop(MICRO)}
            write_json(folder / f"{name}.json", {**averages, "f1": scores, "data": versions[name]})
    with atomic_folder(FIGURES) as folder:
        draw_figures(runs, params, folder)
    with atomic_folder(REPORTS / "plots") as folder:
        for drawn in FIGURES.rglob("*.png"):
            shutil.copyfile(drawn, folder / "-".join(drawn.relative_to(FIGURES).parts))
    unknown = 0
    for run in runs:
        drawn = FIGURES / run.dataset / run_name(run.model, run.seed)
        unknown += not mlflow_runs.attach(run.dataset, run.record["fit"], sorted(drawn.iterdir()))
    if unknown:
        print(f"{unknown} of {len(runs)} fits are not in this MLflow store: their figures are in reports/ only")


def first_histories(runs: list[Run], dataset: str) -> dict[str, pd.DataFrame]:
    """Return the histories of the networks in LEARNING on a data set, each of its first seed, by network."""
    found = {}
    for model in LEARNING:
        fits = [run for run in runs if (run.dataset, run.model) == (dataset, model)]
        if fits and fits[0].history is not None:
            found[model] = fits[0].history
    return found


def draw_figures(runs: list[Run], params: Params, folder: Path) -> None:
    """Draw what the talk shows (learning curves, confusion matrices, first-layer activations); write model cards."""
    for dataset in dict.fromkeys(run.dataset for run in runs):
        fits = [run for run in runs if run.dataset == dataset]
        note = note_of(fits[0].record)
        (folder / dataset).mkdir()
        histories = first_histories(runs, dataset)
        if histories:
            title = figures.mark(f"{dataset}: training accuracy", note)
            labelled = {LEARNING[model]: history for model, history in histories.items()}
            figures.training_accuracy(labelled, title).savefig(folder / dataset / "training_accuracy.png")
        drawn_from = ACTIVATIONS / dataset / "activations.npz"
        if not drawn_from.exists():
            raise UserError(f"{drawn_from}: not found; run `dvc repro explain@{dataset}`")
        with np.load(drawn_from) as arrays:
            layers = {"ImageNet weights": arrays["imagenet"], "random weights": arrays["random"]}
            title = figures.mark(f"{dataset}: first convolution layer, all filters, image {arrays['id']}", note)
            figures.activations(arrays["image"], layers, title).savefig(folder / dataset / "activations.png")
        data = data_of(run_folder(dataset, fits[0].model, fits[0].seed))
        for run in fits:
            drawn = folder / dataset / run_name(run.model, run.seed)
            draw_run(run, drawn)
            card = model_card(params, run_folder(dataset, run.model, run.seed), data)
            (drawn / CARD).write_text(card, encoding="utf-8")


def draw_run(run: Run, folder: Path) -> None:
    """Write one fit's confusion matrix, text report and, for a network, its curves."""
    title = figures.mark(f"{run.dataset} {run.model}, seed {run.seed}", note_of(run.record))
    folder.mkdir()
    matrix = confusion(run.predictions)
    figures.confusion(matrix, classes_of(run.predictions), title).savefig(folder / "confusion.png")
    if run.history is not None:
        figures.curves(run.history, title).savefig(folder / "curves.png")
    (folder / "report.txt").write_text(title + "\n" + report(run.predictions))
