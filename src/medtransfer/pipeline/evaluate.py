"""evaluate: the folders of all fits → tables and figures in reports/; the figures are also added to the MLflow runs."""

from pathlib import Path

import numpy as np
import pandas as pd

from medtransfer.analysis.confusion import confusion, report
from medtransfer.analysis.runs import Run, read_run, studied
from medtransfer.analysis.tables import compute_tables, write_tables
from medtransfer.core.dvc import check_unchanged
from medtransfer.core.files import atomic_folder, write_json
from medtransfer.core.layout import ACTIVATIONS, DATA, FIGURES, REPORTS, run_folder, run_name
from medtransfer.core.params import Params
from medtransfer.core.predictions import classes_of, predicted_labels
from medtransfer.core.prepared import data_of
from medtransfer.data.custom import dataset_of
from medtransfer.pipeline.fit_id import remove_recorded_checkpoints
from medtransfer.report import figures
from medtransfer.report.card import model_card
from medtransfer.report.tables import markdown
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
    tables = compute_tables(runs, attributes)
    write_tables(tables, REPORTS)
    (REPORTS / "results.md").write_text(markdown(tables, runs))
    write_json(REPORTS / "metrics.json", nest(tables.results))
    with atomic_folder(REPORTS / "plots" / "confusion") as folder:
        for run in runs:
            rows = pd.DataFrame({"actual": run.predictions.label, "predicted": predicted_labels(run.predictions)})
            rows.to_csv(folder / f"{run.dataset}-{run_name(run.model, run.seed)}.csv", index=False)
    with atomic_folder(REPORTS / "plots" / "training_accuracy") as folder:
        for dataset in params.study:
            for model, history in first_histories(runs, dataset).items():
                history[["epoch", "accuracy"]].to_csv(folder / f"{dataset}-{model}.csv", index=False)
    with atomic_folder(FIGURES) as folder:
        draw_figures(runs, params, folder)
    unknown = 0
    for run in runs:
        drawn = FIGURES / run.dataset / run_name(run.model, run.seed)
        unknown += not mlflow_runs.attach(run.dataset, run.record["fit"], sorted(drawn.iterdir()))
    if unknown:
        print(f"{unknown} of {len(runs)} fits are not in this MLflow store: their figures are in reports/ only")


def nest(results: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Return F1 as data set → model → class, for DVC's metrics."""
    nested: dict[str, dict[str, dict[str, float]]] = {}
    for row in results.to_dict("records"):
        nested.setdefault(row["dataset"], {}).setdefault(row["model"], {})[row["class"]] = round(row["f1"], 6)
    return nested


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
        synthetic = fits[0].record["synthetic"]
        (folder / dataset).mkdir()
        histories = first_histories(runs, dataset)
        if histories:
            title = figures.mark(f"{dataset}: training accuracy", synthetic)
            labelled = {LEARNING[model]: history for model, history in histories.items()}
            figures.training_accuracy(labelled, title).savefig(folder / dataset / "training_accuracy.png")
        with np.load(ACTIVATIONS / dataset / "activations.npz") as arrays:
            layers = {"ImageNet weights": arrays["imagenet"], "random weights": arrays["random"]}
            title = figures.mark(f"{dataset}: first convolution layer, all filters, image {arrays['id']}", synthetic)
            figures.activations(arrays["image"], layers, title).savefig(folder / dataset / "activations.png")
        data = data_of(run_folder(dataset, fits[0].model, fits[0].seed))
        for run in fits:
            drawn = folder / dataset / run_name(run.model, run.seed)
            draw_run(run, drawn)
            card = model_card(params, run_folder(dataset, run.model, run.seed), data)
            (drawn / "model-card.md").write_text(card, encoding="utf-8")


def draw_run(run: Run, folder: Path) -> None:
    """Write one fit's confusion matrix, text report and, for a network, its curves."""
    title = figures.mark(f"{run.dataset} {run.model}, seed {run.seed}", run.record["synthetic"])
    folder.mkdir()
    matrix = confusion(run.predictions)
    figures.confusion(matrix, classes_of(run.predictions), title).savefig(folder / "confusion.png")
    if run.history is not None:
        figures.curves(run.history, title).savefig(folder / "curves.png")
    (folder / "report.txt").write_text(title + "\n" + report(run.predictions))
