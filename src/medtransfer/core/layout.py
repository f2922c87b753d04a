"""The paths that stages read and write, relative to the project's folder."""

import os
import re
from pathlib import Path

from medtransfer.core.errors import UserError

PARAMS = Path("params.yaml")
DATA = Path("data")
PREPARED = Path("artifacts/prepared")
RUNS = Path("artifacts/runs")
CHECKPOINTS = Path("artifacts/checkpoints")
ACTIVATIONS = Path("artifacts/activations")
LAYERS = Path("artifacts/layers")
GRADCAM = Path("artifacts/gradcam")
TUNING = Path("artifacts/tuning.csv")
SHARED = "shared.csv"  # in collected runs: the test images that share a lesion or patient with another split
SUBGROUPS = "subgroups.csv"  # in collected runs: the age, sex and the like of the test images, where they are known
COPIED = "-activations.png"  # beside collected runs, after the name of a data set
NOTES = "notes.txt"  # beside collected runs: remarks for the reader
# The columns that identify a trial; `made_from` is a digest of the rest of the recipe and of the data.
TUNING_KEY = ["dataset", "configuration", "optimizer", "learning_rate", "fraction", "epochs", "seed", "made_from"]
SWEEPS = Path("artifacts/sweeps")
REPORTS = Path("reports")
FIGURES = REPORTS / "figures"
# In the folder of a registered classifier.
FACTS, NETWORK, TRAINING, CARD = "classifier.json", "model.keras", "training.npz", "model-card.md"

# DVC runs queued experiments here, in temporary copies of the project.
COPIES = "/.dvc/tmp/exps/"


def in_project(path: str | Path) -> Path:
    """Return a path as absolute; a relative one starts at the project, also in a copy that DVC made of it."""
    # Unlike resolve, this keeps links.
    return Path(os.path.abspath(Path(str(Path.cwd()).partition(COPIES)[0], path)))  # noqa: PTH100


def run_folder(dataset: str, model: str, seed: int) -> Path:
    """Return the folder of a fit's outputs."""
    return RUNS / dataset / run_name(model, seed)


def checkpoints_folder(dataset: str, model: str, seed: int) -> Path:
    """Return the folder of a fit's checkpoints; it is not an output because DVC removes outputs."""
    return CHECKPOINTS / dataset / run_name(model, seed)


def run_name(model: str, seed: int) -> str:
    """Return a fit's name, the same on disk and in MLflow."""
    return f"{model}-seed{seed}"


def check_name(name: str, of: str) -> None:
    """Check that a name chosen by a user is safe as a folder's name; `of` is what it names."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(
            f"{name!r}: not a name for {of}; expected letters, digits, '.', '_' and '-', with a letter or digit first"
        )
