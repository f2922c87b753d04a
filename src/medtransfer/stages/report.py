"""report: folders of collected results (or artifacts/ itself) → tables beside them and one HTML page."""

import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from medtransfer.errors import UserError
from medtransfer.evaluation.comparison import Run
from medtransfer.files import whole_file
from medtransfer.report.page import Study, build_page, evaluate_study
from medtransfer.stages.evaluate import read_run, write_tables
from medtransfer.stages.layout import PARAMS, RUNS


def report(folders: list[Path], output: Path) -> None:
    """Write the page; the first folder answers the question.

    Each folder of collected results also gets its tables anew: results.md, results.csv, summary.csv,
    differences.csv.
    """
    studies = []
    for folder in folders:
        study = read_study(folder)
        if (folder / "runs").is_dir():
            write_tables(study.table, study.summary, study.pairs, study.runs, folder)
        studies.append(study)
    page = build_page(studies)
    with whole_file(output) as partial:
        partial.write_text(page, encoding="utf-8")


def read_study(folder: Path) -> Study:
    """Read every finished fit of a folder that `collect` made, or of the project itself.

    Raises
    ------
    UserError
        There is none.
    """
    own = folder / "runs" if (folder / "runs").is_dir() else folder / RUNS
    found = {path.parent: json.loads(path.read_text()) for path in own.glob("*/*/run.json")}
    if not found:
        raise UserError(f"{own}: no finished fit; run `dvc repro`, or name a folder under results/")
    order = _order(folder / PARAMS)
    paths = sorted(found, key=lambda path: _rank(found[path], order))
    runs: list[Run] = [read_run(path) for path in paths]
    return evaluate_study(folder.resolve().name, runs)


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
