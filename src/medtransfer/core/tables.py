"""Reading CSV files, with a message for each kind of mistake in them."""

from pathlib import Path
from typing import Any

import pandas as pd

from medtransfer.core.errors import UserError


def read_table(path: Path, columns: list[str], **options: Any) -> pd.DataFrame:
    """Read a CSV file in UTF-8 as text, unless pandas' `options` differ; an empty cell is an empty string.

    A missing file is a FileNotFoundError; a file that is not CSV or lacks one of the columns is a UserError.
    """
    try:
        table = pd.read_csv(path, **{"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig", **options})
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as CSV in UTF-8: {' '.join(str(error).split())}") from None
    for column in columns:
        if column not in table:
            raise UserError(f"{path}: no column {column!r}; its columns are {', '.join(table.columns)}")
    return table
