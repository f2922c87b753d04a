"""report: collected results under results/ (or the study here) → tables beside them, and one HTML page."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from medtransfer.analysis.leakage import COLUMNS as LEAKAGE_COLUMNS
from medtransfer.analysis.leakage import measure_leakage
from medtransfer.analysis.runs import Run, by_model, read_run, studied
from medtransfer.analysis.tables import read_tables
from medtransfer.core.errors import UserError, quoted
from medtransfer.core.files import atomic_file, read_json
from medtransfer.core.layout import COPIED, FIGURES, NOTES, PARAMS, REPORTS, SHARED, SUBGROUPS, TUNING
from medtransfer.core.params import read_params
from medtransfer.core.predictions import classes_of
from medtransfer.core.tables import DIGITS, read_result
from medtransfer.metrics.scores import MACRO
from medtransfer.report.drawings import overview
from medtransfer.report.page import build_page
from medtransfer.report.study import Layers, Picture, Study
from medtransfer.report.tables import write_results
from medtransfer.study.collected import analysis_command, read_collected, read_collected_params

log = logging.getLogger(__name__)
LEAKAGE = "leak.csv"
OVERVIEW = "scores.png"
# The tables of `layers` and their columns.
LAYER_TABLES = {
    "rewinding": ("block", "macro_f1", "low", "high"),
    "similarity": ("layer", "block", "cka", "distance"),
    "probes": ("block", "macro_f1", "low", "high", "network"),
}
TRIAL_COLUMNS = ("dataset", "configuration", "optimizer", "learning_rate", "fraction", "val_loss", "val_macro_f1")


def write_result_tables(folder: Path) -> None:
    """Write the tables of collected results, and a figure of their scores, into their folder."""
    runs = read_collected(folder)
    described = {run.dataset: folder / "runs" / run.dataset / SUBGROUPS for run in runs}
    attributes = {name: read_result(path, dtype=str) for name, path in described.items() if path.exists()}
    study = write_results(folder.name, runs, attributes, folder)
    with atomic_file(folder / OVERVIEW) as path:
        overview(study).savefig(path, format="png")


def write_leakage(leaky: Path, clean: Path) -> Path:
    """Write leak.csv, from `measure_leakage`, into the folder whose split has leakage, and return its path.

    It is a UserError if the two folders were not made with `split.leakage` match and remove, or if the first does not
    say which test images share a lesion or patient with training.
    """
    for folder, expected in ((leaky, "match"), (clean, "remove")):
        params = read_collected_params(folder)
        for dataset in params.study:
            if (found := params.datasets[dataset].split.leakage) != expected:
                raise UserError(
                    f"{folder / PARAMS}: datasets.{dataset}.split.leakage: found {found}, expected {expected}"
                )
    runs = read_collected(leaky)
    shared = {}
    for dataset in {run.dataset for run in runs}:
        path = leaky / "runs" / dataset / SHARED
        if not path.exists():
            raise UserError(f"{path}: not found; collect these runs again, or their split has no leakage")
        shared[dataset] = read_result(path, dtype=str)
    table = measure_leakage(runs, read_collected(clean), shared)
    with atomic_file(leaky / LEAKAGE) as path:
        table.round(DIGITS).to_csv(path, index=False)
    return leaky / LEAKAGE


def report(folders: list[Path], output: Path) -> None:
    """Write the page from runs and their tables; the first folder answers the questions."""
    studies = [read_study(folder) for folder in folders]
    _check_names(studies)
    _check_same_data_sets(studies)
    page = build_page(studies)
    with atomic_file(output) as partial:
        partial.write_text(page, encoding="utf-8")


def _check_names(studies: list[Study]) -> None:
    """Check that no two folders have the same name: the page names results by folder."""
    names = [study.name for study in studies]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{twice[0]}: the name of two folders; rename one, since the page names results by folder")


def _check_same_data_sets(studies: list[Study]) -> None:
    """Check that a name means the same data set in each folder: the page has one chapter for both."""
    known: dict[str, tuple[str, list[str]]] = {}
    for study in studies:
        for run in study.runs:
            found = classes_of(run.predictions)
            folder, classes = known.setdefault(run.dataset, (study.name, found))
            if sorted(found) != sorted(classes):
                raise UserError(
                    f"{run.dataset}: has the classes {', '.join(found)} in {study.name}, but {', '.join(classes)} in "
                    f"{folder}; make a page of each folder"
                )


def read_study(folder: Path) -> Study:
    """Read a folder that `collect` made, or the project itself, with its tables.

    It is a UserError if it contains no runs, if its tables are missing or belong to other runs, or if `layers` or
    `gradcam` described an earlier fit of a network.
    """
    if (folder / "runs").is_dir():
        runs = read_collected(folder)
        artifacts, tabled, remedy = folder, folder, f"run `medtransfer tables {quoted(folder)}`"
    elif folder != Path() and not (folder / PARAMS).exists():
        raise UserError(f"{folder}: has no runs; expected a folder made by `medtransfer collect NAME`, or a project")
    else:
        runs = [read_run(folder / fit) for fit in studied(read_params(folder / PARAMS))]
        artifacts, tabled, remedy = folder / TUNING.parent, folder / REPORTS, "run `dvc repro`"
    tables = read_tables(tabled, remedy)
    if not _belong_to(tables.results, runs):
        raise UserError(f"{tabled / 'results.csv'}: was computed from different models or seeds; {remedy}")
    layers = [
        Layers(record, *(read_result(path.parent / f"{name}.csv", columns) for name, columns in LAYER_TABLES.items()))
        for path, record in _read_records(artifacts, "layers", [f"{name}.csv" for name in LAYER_TABLES], runs)
    ]
    tables_of = {"leakage": (tabled / LEAKAGE, LEAKAGE_COLUMNS), "tuning": (artifacts / TUNING.name, TRIAL_COLUMNS)}
    written = _read_notes(folder / NOTES)
    datasets = read_collected_params(folder).datasets
    return Study(
        folder.resolve().name, runs, tables, layers, _read_pictures(folder, artifacts, runs),
        custom={name: found.catalogue.model_dump() for name, found in datasets.items() if found.catalogue},
        notes=[" ".join(paragraph.split()) for paragraph in written.split("\n\n") if paragraph.strip()],
        **{key: read_result(path, columns) for key, (path, columns) in tables_of.items() if path.exists()},
    )  # fmt: skip


def _read_notes(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected a text file in UTF-8") from None


def _belong_to(table: pd.DataFrame, runs: list[Run]) -> bool:
    """Return whether a table of results was computed from these runs: as many seeds, with their macro F1."""
    found = {
        (dataset, model, len(fits)): np.mean([run.scores[MACRO] for run in fits])
        for dataset, model, fits in by_model(runs)
    }
    macro = table[table["class"] == MACRO].to_dict("records")
    written = {(row["dataset"], row["model"], row["seeds"]): row["f1"] for row in macro}
    return found.keys() == written.keys() and all(abs(found[key] - written[key]) < 10**-DIGITS for key in written)


def _read_pictures(folder: Path, artifacts: Path, runs: list[Run]) -> list[Picture]:
    """Return the activations and Grad-CAM pictures of a study."""
    drawn = {path.parent.name: path for path in sorted((folder / FIGURES).glob("*/activations.png"))}
    drawn |= {path.name.removesuffix(COPIED): path for path in sorted(folder.glob(f"*{COPIED}"))}
    found = [Picture(dataset, "activations", "", _read_png(path)) for dataset, path in drawn.items()]
    for path, record in _read_records(artifacts, "gradcam", ["gradcam.png"], runs):
        png = _read_png(path.parent / "gradcam.png")
        found.append(Picture(record["dataset"], "gradcam", path.parent.name, png))
    return found


def _read_png(path: Path) -> bytes:
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError) as error:  # Pillow's errors for a damaged file
        raise UserError(f"{path}: cannot be read as a picture ({error}); restore it, or remove it") from None
    return path.read_bytes()


def _read_records(
    artifacts: Path, kind: str, files: Collection[str], runs: list[Run]
) -> list[tuple[Path, dict[str, Any]]]:
    """Return the records that `layers` or `gradcam` wrote for single networks, with their paths.

    `files` must be beside each record. One of a network that is not among the runs is left out with a warning.
    """
    fits = {(run.dataset, run.model, run.seed): run.record["fit"] for run in runs}
    found = []
    for path in sorted((artifacts / kind).glob(f"*/*/{kind}.json")):
        then = "and collect the results again" if (artifacts / PARAMS).exists() else "again"
        remedy = f"remove {path.parent}, or run `{analysis_command(path)}` {then}"
        record = read_json(path, ("dataset", "model", "seed", "fit"), remedy)
        for file in files:
            if not (path.parent / file).exists():
                raise UserError(f"{path.parent / file}: not found; {remedy}")
        fit = fits.get((record["dataset"], record["model"], record["seed"]))
        if fit is None:
            log.warning("%s: left out, because this network is not among the runs", path.parent)
            continue
        if fit != record["fit"]:
            raise UserError(f"{path}: about an earlier fit, {record['fit']}, not about {fit}; {remedy}")
        found.append((path, record))
    return found
