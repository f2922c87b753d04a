"""A user's CSV file, with a message for each kind of mistake in it."""

import csv
from pathlib import Path

import pandas as pd

from medtransfer.core.errors import UserError

# What people write where they do not know the patient.
UNKNOWN = (
    *("na", "n/a", "n.a.", "<na>", "nan", "none", "null", "unknown", "unk", "missing", "not available"),
    *("anonymous", "anonymized", "anonymised"),
    *("?", "-", "#n/a", "#ref!", "#value!", "#name?", "#div/0!", "#num!", "#null!"),
)
ROUNDED = r"(?i)\d([.,]\d+)?e\+\d+"  # what Excel, R and pandas make of a long number
# Spreadsheets drop leading zeros, and pandas writes whole numbers as 12.0 in a column with an empty cell.
NUMBER = r"^0*(\d+)(?:\.0+)?$"
DASHES = "[\u2010-\u2015\u2212]"  # as word processors write a hyphen
# What comes along when text is copied from a web page or a Windows dialog.
INVISIBLE = "[\u00ad\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
BINARY = ("0", "0.0", "1", "1.0")  # in one-hot tables


def read_table(path: Path, columns: list[str], delimiter: str = ",") -> pd.DataFrame:
    """Read a user's CSV file in UTF-8 as text; the index is the number of a row in the file, where the header is 1.

    Blank rows, blanks around a cell, empty cells at the end of a row, and columns without a unique name are left out. A
    missing file is a FileNotFoundError; a file that is not CSV, has no row or lacks one of the columns is a UserError.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = csv.reader(file, delimiter=delimiter, strict=True)
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: not a text file in UTF-8; unpack it if it is compressed, or save it as `CSV UTF-8`"
        ) from None
    except (csv.Error, ValueError) as error:
        found = " ".join(str(error).split()) if isinstance(error, csv.Error) else "it is empty"
        raise UserError(f"{path}: cannot be read as CSV in UTF-8: {found}") from None
    header = [name.strip() for name in header]
    for column in columns:
        if header.count(column) != 1:
            found = "no" if column not in header else "more than one"
            signs = {";": "';'", "\t": "tabs", "|": "'|'"}
            other = next((name for sign, name in signs.items() if sign in "".join(header)), None)
            hint = f" (cells are separated by {other}; save it with commas)" if other and len(header) == 1 else ""
            if "".join(header).lower().startswith("sep="):
                hint = " (remove this line, which only Excel understands, and separate cells by commas)"
            raise UserError(f"{path}: {found} column {column!r}; its columns are {', '.join(header)}{hint}")
    width, cells = len(header), {}
    if rows and all(len(row) == width + 1 and row[-1] for row in rows):
        raise UserError(f"{path}: every row has one cell more than the header; if R wrote it, use row.names = FALSE")
    for number, row in enumerate(rows, start=2):
        if any(row[width:]):
            raise UserError(
                f"{path}: row {number} has {len(row)} cells, but the header has {width}; put a cell that contains a "
                "comma in quotes"
            )
        row = [cell.strip() for cell in row]  # a trailing blank would turn one patient or class into two
        if any(row):
            cells[number] = [*row[:width], *[""] * (width - len(row))]
    if not cells:
        raise UserError(f"{path}: no row below the header; expected one per image")
    table = pd.DataFrame.from_dict(cells, orient="index", columns=header, dtype=str)
    return table.loc[:, ~table.columns.duplicated(keep=False) & (table.columns != "")]


def read_groups(table: pd.DataFrame, column: str, path: Path) -> pd.Series:
    """Return the lesion or patient of each row, with one spelling for names that look the same; '' for unknown ones."""
    rounded = table.index[table[column].str.fullmatch(ROUNDED)]
    if len(rounded):
        raise UserError(
            f"{path}: row {rounded[0]}: {column} is {table.loc[rounded[0], column]}, which a program has rounded; "
            "write that column as text"
        )
    groups = one_spelling(table[column])
    if twins := first_alike(groups):
        raise UserError(
            f"{path}: {column} has {' and '.join(map(repr, twins))}, which may be the same; use one spelling, or other "
            "names"
        )
    return groups


def one_spelling(groups: pd.Series) -> pd.Series:
    """Return lesions or patients without invisible characters, and with uniform dashes and blanks; '' if unknown."""
    groups = groups.str.replace(INVISIBLE, "", regex=True).str.normalize("NFC").str.replace(DASHES, "-", regex=True)
    groups = groups.str.replace(r"\s+", " ", regex=True).str.strip()
    return groups.mask(groups.str.lower().isin(UNKNOWN), "")


def first_alike(names: pd.Series) -> list[str]:
    """Return the first two names that probably mean the same, if there are any."""
    distinct = names.drop_duplicates()
    plain = same_if_alike(distinct)
    twins = distinct[plain.duplicated(keep=False)].groupby(plain).agg(list)
    return list(twins.iloc[0][:2]) if len(twins) else []


def same_if_alike(names: pd.Series) -> pd.Series:
    """Return names in a form that is equal for those that probably mean the same: `P1` and `p1`, `007` and `7.0`."""
    return names.str.casefold().str.replace(NUMBER, r"\1", regex=True)


def from_one_hot(table: pd.DataFrame, classes: list[str], path: Path) -> pd.Series:
    """Return the class of each row of a table with one column per class, 1 in one of them and 0 in the others."""
    wrong = table.index[~table[classes].isin(BINARY).all(axis=1) | (table[classes].isin(BINARY[2:]).sum(axis=1) != 1)]
    if len(wrong):
        found = ", ".join(table.loc[wrong[0], classes])
        raise UserError(f"{path}: row {wrong[0]}: found {found}; expected 1 in one of {', '.join(classes)}, else 0")
    return table[classes].isin(BINARY[2:]).idxmax(axis=1)
