"""Reading the CSV files of a raw data set, with a message for each mistake in them."""

from pathlib import Path

import pandas as pd

from medtransfer.core.errors import UserError


def read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read a CSV file in UTF-8 as text; an empty cell is an empty string.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    UserError
        It is not CSV, or lacks one of the columns.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as CSV in UTF-8: {' '.join(str(error).split())}") from None
    for column in columns:
        if column not in table:
            raise UserError(f"{path}: no column {column!r}; there are {', '.join(table.columns)}")
    return table
