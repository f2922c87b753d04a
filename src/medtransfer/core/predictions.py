"""predictions.csv: the one interface between models and evaluation.

Columns: SAMPLE, then `p_<class>` for each class in the order of the data set.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medtransfer.core.errors import UserError
from medtransfer.core.files import atomic_file
from medtransfer.core.tables import read_result

SAMPLE = ["id", "group", "split", "label"]
_PREFIX = "p_"


def probability_columns(classes: Sequence[str]) -> list[str]:
    """Return the name of each class's column."""
    return [f"{_PREFIX}{name}" for name in classes]


def as_predictions(samples: pd.DataFrame, probabilities: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """Return the table of the probabilities (n, classes) of n samples, which have the columns of SAMPLE."""
    columns = pd.DataFrame(probabilities, columns=probability_columns(classes))
    return pd.concat([samples[SAMPLE].reset_index(drop=True), columns], axis=1)


def write_predictions(path: Path, samples: pd.DataFrame, probabilities: np.ndarray, classes: list[str]) -> None:
    """Write `as_predictions` in float32, with enough digits to read the same bits back."""
    with atomic_file(path) as partial:
        as_predictions(samples, probabilities.astype(np.float32), classes).to_csv(partial, index=False)


def read_predictions(path: Path, split: str | None = None) -> pd.DataFrame:
    """Read the rows of one split, or all rows, of predictions.csv.

    A UserError if it is missing or its columns, labels or probabilities are wrong.
    """
    try:
        table = read_result(path, SAMPLE, dtype=dict.fromkeys(SAMPLE, str), na_values=None)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `dvc repro`") from None
    classes = classes_of(table)
    unknown = set(table.label) - set(classes)
    if len(classes) < 2 or unknown:
        raise UserError(
            f"{path}: label {', '.join(sorted(unknown)) or 'columns'} without a probability column p_<class>"
        )
    probabilities = probabilities_of(table)
    if probabilities.dtype.kind != "f" or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise UserError(f"{path}: the probabilities of a row must be numbers that add up to 1")
    return table if split is None else table[table.split == split].reset_index(drop=True)


def classes_of(table: pd.DataFrame) -> list[str]:
    """Return the classes in the order of their columns."""
    return [str(column).removeprefix(_PREFIX) for column in table.columns if str(column).startswith(_PREFIX)]


def probabilities_of(table: pd.DataFrame) -> np.ndarray:
    """Return the probabilities, shape (n, classes)."""
    return table[probability_columns(classes_of(table))].to_numpy()


def predicted_labels(table: pd.DataFrame) -> pd.Series:
    """Return the most probable class of each row, or the first of several that are equally probable."""
    return pd.Series(np.array(classes_of(table))[probabilities_of(table).argmax(axis=1)], index=table.index)


def only_prediction(table: pd.DataFrame) -> str | None:
    """Return the class that is predicted for every row; None if several are predicted."""
    predicted = predicted_labels(table).unique()
    return str(predicted[0]) if len(predicted) == 1 else None
