"""report: collected results under results/ (or the study here) → tables beside them, and one HTML page."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from medtransfer.analysis.leakage import measure_leakage
from medtransfer.analysis.runs import Run, by_model, read_run, studied
from medtransfer.analysis.tables import compute_tables, read_tables, write_tables
from medtransfer.core.errors import UserError, shortened
from medtransfer.core.files import atomic_file, is_partial
from medtransfer.core.layout import (
    FIGURES,
    GRADCAM,
    LAYERS,
    NOTES,
    PARAMS,
    REPORTS,
    SHARED,
    SUBGROUPS,
    TUNING,
    run_name,
)
from medtransfer.core.params import CatalogueEntry, Split, read_params
from medtransfer.core.run_record import RECORD, find_fits, read_record, warn_of_leftovers
from medtransfer.core.tables import read_result
from medtransfer.metrics.scores import MACRO
from medtransfer.report.drawings import overview
from medtransfer.report.page import build_page
from medtransfer.report.study import Layers, Picture, Study
from medtransfer.report.tables import markdown

LEAKAGE = "leak.csv"
OVERVIEW = "scores.png"
ROUNDED = 1e-6  # the tables' last digit
LAYER_TABLES = ("rewinding", "similarity", "probes")
COPIED = "-activations.png"


def write_result_tables(folder: Path) -> None:
    """Write the tables of collected results, and a figure of their scores, into their folder."""
    runs = _read_collected(folder)
    described = {run.dataset: folder / "runs" / run.dataset / SUBGROUPS for run in runs}
    attributes = {name: read_result(path, dtype=str) for name, path in described.items() if path.exists()}
    tables = compute_tables(runs, attributes)
    write_tables(tables, folder)
    study = Study(folder.name, runs, tables)
    with atomic_file(folder / "results.md") as path:
        path.write_text(markdown(study))
    with atomic_file(folder / OVERVIEW) as path:
        overview(study).savefig(path, format="png")


def write_leakage(leaky: Path, clean: Path) -> Path:
    """Write leak.csv, from `measure_leakage`, into the folder whose split has leakage, and return its path.

    It is a UserError if the two folders were not made with `split.leakage` match and remove, or if the first does not
    say which test images share a lesion or patient with training.
    """
    for folder, expected in ((leaky, "match"), (clean, "remove")):
        params = _read_yaml(folder / PARAMS)
        for dataset in params["study"]:
            try:
                found = Split.model_validate(params["datasets"][dataset]["split"]).leak
            except (KeyError, ValidationError):
                raise UserError(
                    f"{folder / PARAMS}: datasets.{dataset} has no valid split; restore that file"
                ) from None
            if found != expected:
                raise UserError(
                    f"{folder / PARAMS}: datasets.{dataset}.split.leakage: found {found}, expected {expected}"
                )
    runs = _read_collected(leaky)
    shared = {}
    for dataset in {run.dataset for run in runs}:
        path = leaky / "runs" / dataset / SHARED
        if not path.exists():
            raise UserError(f"{path}: not found; collect these runs again, or their split has no leakage")
        shared[dataset] = read_result(path, dtype=str)
    table = measure_leakage(runs, _read_collected(clean), shared)
    with atomic_file(leaky / LEAKAGE) as path:
        table.round(6).to_csv(path, index=False)
    return leaky / LEAKAGE


def report(folders: list[Path], output: Path) -> None:
    """Write the page from runs and their tables; the first folder answers the questions."""
    page = build_page([read_study(folder) for folder in folders])
    with atomic_file(output) as partial:
        partial.write_text(page, encoding="utf-8")


def read_study(folder: Path) -> Study:
    """Read a folder that `collect` made, or the project itself, with its tables.

    It is a UserError if it contains no runs, if its tables are missing or belong to other runs, or if `layers` or
    `gradcam` described a fit that is not among its runs.
    """
    if (folder / "runs").is_dir():
        runs = _read_collected(folder)
        artifacts, tabled, remedy = folder, folder, f"run `medtransfer tables {folder}`"
    else:
        runs = [read_run(folder / fit) for fit in studied(read_params(folder / PARAMS))]
        artifacts, tabled, remedy = folder / TUNING.parent, folder / REPORTS, "run `dvc repro`"
    tables = read_tables(tabled, remedy)
    if not _belong_to(tables.results, runs):
        raise UserError(f"{tabled / 'results.csv'}: was computed from different models or seeds; {remedy}")
    layers = [
        Layers(record, *(read_result(path.parent / f"{name}.csv") for name in LAYER_TABLES))
        for path, record in _read_records(artifacts / LAYERS.name, "layers", runs)
    ]
    tables_of = {"leakage": tabled / LEAKAGE, "tuning": artifacts / TUNING.name}
    written = _read_notes(folder / NOTES)
    datasets = _read_yaml(folder / PARAMS)["datasets"]
    return Study(
        folder.resolve().name, runs, tables, layers, _read_pictures(folder, artifacts, runs),
        custom={
            name: CatalogueEntry.model_validate(settings["catalogue"]).model_dump()
            for name, settings in datasets.items()
            if settings.get("catalogue")
        },
        notes=[" ".join(paragraph.split()) for paragraph in written.split("\n\n") if paragraph.strip()],
        **{key: read_result(path) for key, path in tables_of.items() if path.exists()},
    )  # fmt: skip


def _read_notes(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise UserError(f"{path}: not in UTF-8; save it in that encoding") from None


def _belong_to(table: pd.DataFrame, runs: list[Run]) -> bool:
    """Return whether a table of results was computed from these runs: as many seeds, with their macro F1."""
    found = {
        (dataset, model, len(fits)): np.mean([run.scores[MACRO] for run in fits])
        for dataset, model, fits in by_model(runs)
    }
    macro = table[table["class"] == MACRO].to_dict("records")
    written = {(row["dataset"], row["model"], row["seeds"]): row["f1"] for row in macro}
    return found.keys() == written.keys() and all(abs(found[key] - written[key]) < ROUNDED for key in written)


def _read_pictures(folder: Path, artifacts: Path, runs: list[Run]) -> list[Picture]:
    """Return the activations and Grad-CAM pictures of a study."""
    # `collect` copies <data set>/activations.png to <data set>-activations.png.
    drawn = {path.parent.name: path for path in sorted((folder / FIGURES).glob("*/activations.png"))}
    drawn |= {path.name.removesuffix(COPIED): path for path in sorted(folder.glob(f"*{COPIED}"))}
    found = [Picture(dataset, "activations", "", path.read_bytes()) for dataset, path in drawn.items()]
    for path, record in _read_records(artifacts / GRADCAM.name, "gradcam", runs):
        png = (path.parent / "gradcam.png").read_bytes()
        found.append(Picture(record["dataset"], "gradcam", path.parent.name, png))
    return found


def _read_records(folder: Path, command: str, runs: list[Run]) -> list[tuple[Path, dict[str, Any]]]:
    """Return the records that `layers` or `gradcam` wrote for single networks, with their paths."""
    fits = {(run.dataset, run.model, run.seed): run.record["fit"] for run in runs}
    found = []
    for path in sorted(folder.glob(f"*/*/{command}.json")):
        try:
            record = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(
                f"{path}: cannot be read as JSON ({error}); remove {path.parent}, or make it again"
            ) from None
        dataset, model, seed = record["dataset"], record["model"], record["seed"]
        if fits.get((dataset, model, seed)) != record["fit"]:
            raise UserError(
                f"{path}: about the fit {record['fit']}, which is not among the runs; "
                f"run `medtransfer {command} {dataset} {model} --seed {seed}`"
            )
        found.append((path, record))
    return found


def _read_collected(folder: Path) -> list[Run]:
    """Return the runs of collected results, in the order of their params.yaml; there must be some."""
    for path in sorted((folder / "runs").glob("*/*/")):
        if not is_partial(path) and not (path / RECORD).exists():
            raise UserError(f"{path / RECORD}: not found; restore the file, or remove this folder")
    fits = find_fits(folder / "runs")
    if not fits:
        raise UserError(f"{folder / 'runs'}: no finished fit; run `dvc repro`, or name a folder under results/")
    params = _read_yaml(folder / PARAMS)
    order = [
        (dataset, model)
        for dataset, study in params["study"].items()
        for model in (*params["baselines"], *study["train"], *study.get("transfer", []))
    ]
    warn_of_leftovers(folder / "runs", order)

    for fit in fits:
        _check_place(fit)

    def rank(fit: Path) -> tuple[int, str, int]:
        record = read_record(fit)
        key = (record["dataset"], record["model"])
        return order.index(key) if key in order else len(order), record["model"], record["seed"]

    return [read_run(fit) for fit in sorted(fits, key=rank)]


def _check_place(fit: Path) -> None:
    """Check that a fit is in its own folder: a copy elsewhere would count as another seed, model or data set."""
    record = read_record(fit)
    own = Path(record["dataset"], run_name(record["model"], record["seed"]))
    if fit.parts[-2:] != own.parts:
        raise UserError(f"{fit / RECORD}: belongs to {own}, not to this folder; move or remove it")


def _read_yaml(path: Path) -> Any:
    """Read params.yaml without validation: collected results keep that of older versions."""
    try:
        params = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; restore it, or collect the fits again") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {shortened(error)}; restore it") from None
    for section in ("datasets", "study", "baselines"):
        if not isinstance(params, dict) or section not in params:
            raise UserError(f"{path}: has no {section}; expected the params.yaml of these fits, so restore it")
    for name, study in params["study"].items():
        if not isinstance(study, dict) or "train" not in study:
            raise UserError(
                f"{path}: study.{name} has no train; expected the params.yaml of these fits; restore that file"
            )
    return params
