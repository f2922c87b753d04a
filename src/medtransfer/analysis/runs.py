"""Reading finished fits back, and the tables of several of them."""

import json
from pathlib import Path

import pandas as pd

from medtransfer.analysis.comparison import Run, compare, score_intervals
from medtransfer.analysis.summary import compare_models, summarise
from medtransfer.core.dvc import check_unchanged
from medtransfer.core.errors import UserError
from medtransfer.core.layout import run_folder
from medtransfer.core.params import Params
from medtransfer.core.predictions import read_predictions


def studied(params: Params) -> list[Path]:
    """Return the folder of every fit that params.yaml studies; others may lie beside them."""
    return [
        run_folder(dataset, model, seed)
        for dataset, study in params.study.items()
        for model in (*params.baselines, *study.train, *study.transfer)
        for seed in params.seeds
    ]


def read_run(folder: Path) -> Run:
    """Read the folder of one finished fit.

    Raises
    ------
    UserError
        It is not there, not whole, or has changed since.
    """
    check_unchanged(folder)
    try:
        record = json.loads((folder / "run.json").read_text())
        history = pd.read_csv(folder / "history.csv") if record["kind"] == "network" else None
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{folder}: no finished fit ({error}); run `dvc repro`") from None
    predictions = read_predictions(folder / "predictions.csv")
    tested, validated = (
        predictions[predictions.split == split].reset_index(drop=True) for split in ("test", "validation")
    )
    return Run(record, tested, history, None if validated.empty else validated)


def evaluate_runs(runs: list[Run]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return the tables of `compare`, `summarise` and `compare_models`."""
    spans = score_intervals(runs)
    return compare(runs, spans), summarise(runs, spans), compare_models(runs)
