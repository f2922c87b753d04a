"""report: collected results under results/ (or the study here) → tables beside them, and one HTML page."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from medtransfer.analysis.leakage import measure_leakage
from medtransfer.analysis.runs import Run, by_model, read_run, studied
from medtransfer.analysis.tables import compute_tables, read_tables, write_tables
from medtransfer.core.errors import UserError
from medtransfer.core.files import atomic_file
from medtransfer.core.layout import FIGURES, GRADCAM, LAYERS, NOTES, PARAMS, REPORTS, SHARED, TUNING
from medtransfer.core.params import read_params
from medtransfer.core.run_record import find_fits, read_record
from medtransfer.metrics.scores import MACRO
from medtransfer.report.figures import DPI
from medtransfer.report.page import build_page, overview
from medtransfer.report.study import Layers, Picture, Study
from medtransfer.report.tables import markdown

LEAKAGE = "leak.csv"
OVERVIEW = "scores.png"
ROUNDED = 1e-6  # the tables' last digit
LAYER_TABLES = ("rewinding", "similarity", "probes")


def write_result_tables(folder: Path) -> None:
    """Write the tables of a folder that `collect` made, and a figure of its scores, into it.

    Raises
    ------
    UserError
        It contains no runs.
    """
    runs = read_runs(folder / "runs", folder / PARAMS)
    tables = compute_tables(runs)
    write_tables(tables, folder)
    with atomic_file(folder / "results.md") as path:
        path.write_text(markdown(tables, runs))
    with atomic_file(folder / OVERVIEW) as path:
        overview(tables.results).savefig(path, format="png", dpi=DPI)


def write_leakage(leaky: Path, clean: Path) -> Path:
    """Write leak.csv, from `measure_leakage`, into the folder whose split leaks, and return its path.

    Raises
    ------
    UserError
        The two folders were not made with `split.leak` match and remove, or the first does not tell which test images
        share a lesion or patient with training.
    """
    for folder, expected in ((leaky, "match"), (clean, "remove")):
        for dataset, settings in YAML(typ="safe").load((folder / PARAMS).read_text())["datasets"].items():
            found = settings["split"].get("leak", "keep")
            if found != expected:
                raise UserError(f"{folder / PARAMS}: datasets.{dataset}.split.leak: found {found}, expected {expected}")
    sides = [read_runs(folder / "runs", folder / PARAMS) for folder in (leaky, clean)]
    shared = {dataset: _read_shared(leaky, dataset) for dataset in {run.dataset for run in sides[0]}}
    table = measure_leakage(sides[0], sides[1], shared)
    with atomic_file(leaky / LEAKAGE) as path:
        table.round(6).to_csv(path, index=False)
    return leaky / LEAKAGE


def _read_shared(folder: Path, dataset: str) -> pd.DataFrame:
    path = folder / "runs" / dataset / SHARED
    if not path.exists():
        raise UserError(f"{path}: not found; collect these runs again, or their split has no leakage")
    return pd.read_csv(path, dtype=str)


def report(folders: list[Path], output: Path) -> None:
    """Write the page from runs and their tables; the first folder answers the question."""
    page = build_page([read_study(folder) for folder in folders])
    with atomic_file(output) as partial:
        partial.write_text(page, encoding="utf-8")


def read_study(folder: Path) -> Study:
    """Read a folder that `collect` made, or the project itself, with its tables.

    Raises
    ------
    UserError
        It contains no runs, or its tables are missing or belong to other runs.
    """
    collected = (folder / "runs").is_dir()
    if collected:
        runs = read_runs(folder / "runs", folder / PARAMS)
    else:
        runs = [read_run(folder / fit) for fit in studied(read_params(folder / PARAMS))]
    where = folder if collected else folder / REPORTS
    remedy = f"run `medtransfer tables {folder}`" if collected else "run `dvc repro`"
    tables = read_tables(where, remedy)
    if not _is_of(tables.results, runs):
        raise UserError(f"{where / 'results.csv'}: was computed from different models or seeds; {remedy}")
    layers = _read_layers(folder / "layers" if collected else folder / LAYERS, runs)
    pictures = [
        *_activations(folder.glob("*-activations.png") if collected else (folder / FIGURES).glob("*/activations.png")),
        *_gradcams(folder / "gradcam" if collected else folder / GRADCAM, runs),
    ]
    leakage = pd.read_csv(where / LEAKAGE) if (where / LEAKAGE).exists() else None
    tried = folder / TUNING.name if collected else folder / TUNING
    tuning = pd.read_csv(tried) if tried.exists() else None
    written = (folder / NOTES).read_text(encoding="utf-8") if (folder / NOTES).exists() else ""
    notes = [" ".join(paragraph.split()) for paragraph in written.split("\n\n") if paragraph.strip()]
    custom = _custom_data_sets(folder / PARAMS)
    return Study(folder.resolve().name, runs, tables, layers, pictures, leakage, tuning, custom, notes)


def _is_of(table: pd.DataFrame, runs: list[Run]) -> bool:
    """Return whether the results table was computed from these runs: as many seeds, with their macro F1."""
    found = {
        (dataset, model, len(fits)): np.mean([run.scores[MACRO] for run in fits])
        for dataset, model, fits in by_model(runs)
    }
    macro = table[table["class"] == MACRO].to_dict("records")
    written = {(row["dataset"], row["model"], row["seeds"]): row["f1"] for row in macro}
    return found.keys() == written.keys() and all(abs(found[key] - written[key]) < ROUNDED for key in written)


def _custom_data_sets(params: Path) -> dict[str, dict[str, Any]]:
    datasets = YAML(typ="safe").load(params.read_text())["datasets"]
    return {name: settings["catalogue"] for name, settings in datasets.items() if "catalogue" in settings}


def _activations(paths: Iterable[Path]) -> list[Picture]:
    text = (
        "The outputs of the first layer's 64 filters for one test image, with ImageNet and with random weights, before "
        "any training."
    )
    return [
        Picture(
            path.name.removesuffix("-activations.png") if "-" in path.name else path.parent.name,
            text,
            path.read_bytes(),
        )
        for path in sorted(paths)
    ]


def _gradcams(folder: Path, runs: list[Run]) -> list[Picture]:
    text = (
        "Where {} looked (Grad-CAM): for each class, the most confident correct and the most confident wrong "
        "prediction on test images. Bright areas spoke for the prediction. The map has the resolution of the last "
        "convolution's output and is enlarged."
    )
    return [
        Picture(path.parent.parent.name, text.format(path.parent.name), (path.parent / "gradcam.png").read_bytes())
        for path, _ in _records_of(folder, "gradcam", runs)
    ]


def _read_layers(folder: Path, runs: list[Run]) -> list[Layers]:
    return [
        Layers(record, *(pd.read_csv(path.parent / f"{name}.csv") for name in LAYER_TABLES))
        for path, record in _records_of(folder, "layers", runs)
    ]


def _records_of(folder: Path, command: str, runs: list[Run]) -> list[tuple[Path, dict[str, Any]]]:
    """Return the records that `layers` or `gradcam` wrote for single networks, with their paths.

    Raises
    ------
    UserError
        One is about a fit that is not among the runs.
    """
    fits = {(run.dataset, run.model, run.seed): run.record["fit"] for run in runs}
    found = []
    for path in sorted(folder.glob(f"*/*/{command}.json")):
        record = json.loads(path.read_text())
        dataset, model, seed = record["dataset"], record["model"], record["seed"]
        if fits.get((dataset, model, seed)) != record["fit"]:
            raise UserError(
                f"{path}: about the fit {record['fit']}, which is not among the runs; "
                f"run `medtransfer {command} {dataset} {model} --seed {seed}`"
            )
        found.append((path, record))
    return found


def read_runs(folder: Path, params: Path) -> list[Run]:
    """Read every finished fit under a folder, in the order of params.yaml.

    Raises
    ------
    UserError
        There is none.
    """
    found = {path: read_record(path) for path in find_fits(folder)}
    if not found:
        raise UserError(f"{folder}: no finished fit; run `dvc repro`, or name a folder under results/")
    order = _order(params)
    return [read_run(path) for path in sorted(found, key=lambda path: _rank(found[path], order))]


def _order(path: Path) -> list[tuple[str, str]]:
    """Return data sets and models in the order of params.yaml."""
    params = YAML(typ="safe").load(path.read_text())
    return [
        (dataset, model)
        for dataset, study in params["study"].items()
        for model in (*params["baselines"], *study["train"], *study.get("transfer", []))
    ]


def _rank(record: dict[str, Any], order: list[tuple[str, str]]) -> tuple[int, str, int]:
    key = (record["dataset"], record["model"])
    return (order.index(key) if key in order else len(order), record["model"], record["seed"])
