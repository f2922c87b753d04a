"""Where each stage reads and writes, relative to the project's folder."""

import re
from pathlib import Path

from medtransfer.core.errors import UserError

PARAMS = Path("params.yaml")
DATA = Path("data")
PREPARED = Path("artifacts/prepared")
RUNS = Path("artifacts/runs")
UNFINISHED = Path("artifacts/unfinished")
ACTIVATIONS = Path("artifacts/activations")
LAYERS = Path("artifacts/layers")
GRADCAM = Path("artifacts/gradcam")
TUNING = Path("artifacts/tuning.csv")
# Of a data set's collected runs: which test images share a lesion or patient with which other split.
SHARED = "shared.csv"
NOTES = "notes.txt"  # beside collected runs: what a reader has to know that no number says
# What identifies a trial; `made_from` is a digest of the rest of the recipe and of the data.
TUNING_KEY = ["dataset", "configuration", "optimizer", "learning_rate", "fraction", "epochs", "seed", "made_from"]
SWEEPS = Path("artifacts/sweeps")
REPORTS = Path("reports")
FIGURES = REPORTS / "figures"


def run_folder(dataset: str, model: str, seed: int) -> Path:
    """Return the folder of one fit."""
    return RUNS / dataset / run_name(model, seed)


def unfinished_folder(dataset: str, model: str, seed: int) -> Path:
    """Return where a fit that has not ended keeps its checkpoints; DVC removes outputs, so it is none."""
    return UNFINISHED / dataset / run_name(model, seed)


def run_name(model: str, seed: int) -> str:
    """Return the name of one fit, the same on disk and in MLflow."""
    return f"{model}-seed{seed}"


def check_name(name: str, of: str) -> None:
    """Check that a name which a user chose can be a folder's.

    Parameters
    ----------
    of : str
        What it is to name, for the message.

    Raises
    ------
    UserError
        It cannot: it would lead out of the folder that it is for, or be that folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(
            f"{name!r}: no name for {of}; letters, digits, '.', '_' and '-' are, with a letter or digit first"
        )
