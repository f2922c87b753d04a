"""predictions.csv: the one interface between models and evaluation.

Columns: id, group, split, label, then `p_<class>` for each class in the order of the data set.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from medtransfer.core.errors import UserError
from medtransfer.core.files import atomic_file

PREFIX = "p_"


def write_predictions(path: Path, samples: pd.DataFrame, probabilities: np.ndarray, classes: list[str]) -> None:
    """Write the probabilities (n, classes) of n samples (columns id, group, split, label).

    They are written as float32 with as many digits as it takes to read the same bits back.
    """
    table = samples[["id", "group", "split", "label"]].reset_index(drop=True)
    columns = [f"{PREFIX}{name}" for name in classes]
    table = pd.concat([table, pd.DataFrame(probabilities.astype(np.float32), columns=columns)], axis=1)
    with atomic_file(path) as partial:
        table.to_csv(partial, index=False)


def read_predictions(path: Path) -> pd.DataFrame:
    """Read predictions.csv and check its columns, labels and probabilities.

    Raises
    ------
    UserError
        The file is missing, lacks a column, has an unknown label or probabilities that are none.
    """
    try:
        table = pd.read_csv(path, dtype={"id": str, "group": str, "split": str, "label": str}, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `dvc repro`") from None
    missing = {"id", "group", "split", "label"} - set(table.columns)
    if missing:
        raise UserError(f"{path}: column {', '.join(sorted(missing))} is missing")
    classes = classes_of(table)
    unknown = set(table.label) - set(classes)
    if len(classes) < 2 or unknown:
        raise UserError(
            f"{path}: label {', '.join(sorted(unknown)) or 'columns'} without a probability column p_<class>"
        )
    probabilities = probabilities_of(table)
    if probabilities.dtype.kind != "f" or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise UserError(f"{path}: the probabilities of a row must be numbers that add up to 1")
    return table


def classes_of(table: pd.DataFrame) -> list[str]:
    """Return the classes in the order of their columns."""
    return [str(column).removeprefix(PREFIX) for column in table.columns if str(column).startswith(PREFIX)]


def probabilities_of(table: pd.DataFrame) -> np.ndarray:
    """Return the probabilities, shape (n, classes)."""
    return table[[f"{PREFIX}{name}" for name in classes_of(table)]].to_numpy()


def predicted_labels(table: pd.DataFrame) -> pd.Series:
    """Return the most probable class of each row; the first of several equal ones."""
    return pd.Series(np.array(classes_of(table))[probabilities_of(table).argmax(axis=1)], index=table.index)


def only_answer(table: pd.DataFrame) -> str | None:
    """Return the one class that every row is said to be; None where the rows are said to be several."""
    answers = predicted_labels(table).unique()
    return str(answers[0]) if len(answers) == 1 else None
