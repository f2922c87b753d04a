"""Reading CSV files of this project."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medtransfer.core.errors import CONFLICT, UserError, merge_conflict

DIGITS = 6  # decimals in our tables
# The columns of our tables that are text even where they look like numbers or like a missing value.
TEXT = ["dataset", "model", "class", "id", "label", "group", "split", "predicted", "true", "made_from"]


def read_result(path: Path, columns: Sequence[str] = (), **options: Any) -> pd.DataFrame:
    """Read a CSV file of this project: only an empty cell is missing; pandas' `options` replace the defaults.

    A missing file is a FileNotFoundError; a file that is not CSV or lacks one of the columns is a UserError.
    """
    defaults = {"keep_default_na": False, "na_values": [""], "dtype": dict.fromkeys(TEXT, str), "encoding": "utf-8-sig"}
    try:
        table = pd.read_csv(path, **{**defaults, **options})
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as CSV in UTF-8: {' '.join(str(error).split())}") from None
    if any(str(cell).startswith(CONFLICT) for cell in (table.columns[0], *table.iloc[:, 0])):
        raise merge_conflict(path, "run `dvc repro`")
    for column in columns:
        if column not in table:
            raise UserError(f"{path}: no column {column!r}; its columns are {', '.join(table.columns)}")
    return table
