"""The tables of a study, from its runs or from the files that hold them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medtransfer.analysis.calibration import COLUMNS as CALIBRATION
from medtransfer.analysis.calibration import calibration_table
from medtransfer.analysis.claims import COLUMNS as CLAIMS
from medtransfer.analysis.claims import compare_claims, judge
from medtransfer.analysis.clinical import CLASSES, SUBGROUPS, class_table, subgroup_table
from medtransfer.analysis.differences import Comparison, as_table, compare_models, read_comparisons
from medtransfer.analysis.families import overrides
from medtransfer.analysis.runs import Run
from medtransfer.analysis.scores import RESULTS, SUMMARY, f1_table, summarise
from medtransfer.core.errors import UserError
from medtransfer.core.files import atomic_file
from medtransfer.core.run_record import BY_WORDS, recipe_of, split_of
from medtransfer.core.tables import DIGITS, read_result

# The files, apart from differences.csv, and their columns; for a sample of the data, results has a note too.
COLUMNS = {
    "summary": SUMMARY,
    "calibration": CALIBRATION,
    "classes": CLASSES,
    "subgroups": SUBGROUPS,
    "claims": CLAIMS,
    "results": RESULTS,
}


@dataclass(frozen=True)
class Tables:
    """What is computed of a study's runs.

    results : F1 per class beside the talk's, from `f1_table`
    summary : every metric, from `summarise`
    calibration : intercepts and slopes, from `calibration_table`
    classes : each class against all others, from `class_table`
    subgroups : scores by age, sex and the like, from `subgroup_table`
    pairs : models compared, from `compare_models`
    claims : the talk's claims, from `judge`
    """

    results: pd.DataFrame
    summary: pd.DataFrame
    calibration: pd.DataFrame
    classes: pd.DataFrame
    subgroups: pd.DataFrame
    pairs: list[Comparison]
    claims: pd.DataFrame


def compute_tables(runs: list[Run], attributes: Mapping[str, pd.DataFrame]) -> Tables:
    """Return the tables of a study; `attributes` as for `subgroup_table`."""
    pairs = compare_models(runs)
    outside = {}
    for run in runs:
        if (split := split_of(run.record)).by != "group":
            outside[run.dataset] = f"split by {BY_WORDS.get(split.by, split.by)}"
        elif run.is_network and recipe_of(run.record).recipe != "talk" and not overrides(run.record):
            outside[run.dataset] = "not the talk's recipe"
    return Tables(
        f1_table(runs), summarise(runs), calibration_table(runs), class_table(runs), subgroup_table(runs, attributes),
        pairs, judge(compare_claims(runs), outside),
    )  # fmt: skip


def write_tables(tables: Tables, folder: Path) -> None:
    """Write every table as CSV, with DIGITS decimals.

    `report` compares results.csv with the fits, so it must be written last.
    """
    (folder / "results.csv").unlink(missing_ok=True)
    contents = {"differences": as_table(tables.pairs), **{name: getattr(tables, name) for name in COLUMNS}}
    for name, content in contents.items():
        with atomic_file(folder / f"{name}.csv") as path:
            content.round(DIGITS).to_csv(path, index=False)


def read_tables(folder: Path, remedy: str) -> Tables:
    """Read what `write_tables` wrote; a UserError if a file is missing (ending with `remedy`) or lacks a column."""
    for name in ("differences", *COLUMNS):
        if not (folder / f"{name}.csv").exists():
            raise UserError(f"{folder / name}.csv: not found; {remedy}")
    read = {name: read_result(folder / f"{name}.csv", columns) for name, columns in COLUMNS.items()}
    return Tables(**read, pairs=read_comparisons(folder / "differences.csv"))
