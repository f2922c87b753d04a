"""A custom data set: a folder of images with a table of labels, or one folder per class."""

import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from medtransfer.core.errors import UserError, check_known
from medtransfer.core.files import atomic_folder, files_under, write_json
from medtransfer.core.params import CatalogueEntry, Params
from medtransfer.core.tables import read_table
from medtransfer.data.catalogue import CATALOGUE, SOURCE_FILE, Dataset, Listing, list_samples, or_pull
from medtransfer.data.images import FORMATS
from medtransfer.data.progress import progress

LABELS, IMAGES = "labels.csv", "images"
COLUMNS = ["id", "label", "group", "path"]
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)


@dataclass(frozen=True)
class Columns:
    """The columns of the user's table for the image's file name, its label and, if any, its group."""

    image: str = "image"
    label: str = "label"
    group: str | None = None


def dataset_of(name: str, params: Params) -> Dataset:
    """Return the catalogue entry of a data set: one of the study's, or a custom one that params.yaml describes."""
    entry = params.datasets[name].catalogue if name in params.datasets else None
    if entry:
        return custom_dataset(name, entry)
    if name in params.datasets and name not in CATALOGUE:
        raise UserError(f"params.yaml: datasets.{name}.catalogue: missing; `medtransfer data add {name}` writes it")
    check_known("data sets", name, dict.fromkeys([*CATALOGUE, *params.datasets]))
    return CATALOGUE[name]


def custom_dataset(name: str, entry: CatalogueEntry) -> Dataset:
    """Return the catalogue entry of a custom data set."""
    classes = {label: entry.meanings.get(label, label) for label in entry.classes}
    about = entry.model_dump(exclude={"classes", "meanings"})
    return Dataset(name, classes=classes, **about, read=lambda folder: _read(folder, classes))


def find_samples(images: Path, labels: Path | None, columns: Columns) -> pd.DataFrame:
    """Match images with their labels.

    Parameters
    ----------
    images : Path
        A folder of JPEG and PNG files; without `labels`, one folder per class.
    labels : Path, optional
        A CSV file with one row per image, named by file name or by path below `images`, with or without suffix.

    Returns
    -------
    DataFrame
        One row per image: COLUMNS, and `file`, its present path. An image without a group is its own group.
    """
    files = {
        file.relative_to(images).as_posix(): file for file in files_under(images) if file.suffix.lower() in SUFFIXES
    }
    if not files:
        raise UserError(f"{images}: no image; expected files that end in {', '.join(SUFFIXES)}")
    outside = [file for file in files.values() if not file.resolve().is_relative_to(images.resolve())]
    if outside:
        raise UserError(f"{outside[0]}: a link that leaves {images}; copy the file there")
    found = _from_table(files, labels, columns) if labels else _from_folders(files, images)
    found["id"] = [PurePosixPath(path).with_suffix("").as_posix() for path in found.path]
    found["group"] = found.group.where(found.group != "", found.id)
    found["file"] = found.path.map(files)
    found["path"] = f"{IMAGES}/" + found.path
    twins = found.id[found.id.duplicated()]
    if len(twins):
        raise UserError(f"{images}: {twins.iloc[0]} occurs twice, or with two suffixes; rename or remove one")
    return found.sort_values("id", ignore_index=True)[[*COLUMNS, "file"]]


def _from_folders(files: dict[str, Path], images: Path) -> pd.DataFrame:
    loose = [path for path in files if "/" not in path]
    if loose:
        raise UserError(f"{images / loose[0]}: not in the folder of a class; make one per class, or give --labels")
    return pd.DataFrame({"path": list(files), "label": [path.split("/")[0] for path in files], "group": ""})


def _from_table(files: dict[str, Path], labels: Path, columns: Columns) -> pd.DataFrame:
    named = [column for column in (columns.image, columns.label, columns.group) if column]
    table = read_table(labels, named)
    if table.empty:
        raise UserError(f"{labels}: no row below the header; expected one per image")
    # A blank at the end of a cell is invisible, but would turn one patient or class into two.
    table = table.apply(lambda column: column.str.strip())
    for column in named:
        empty = table.index[table[column] == ""]
        if len(empty):
            raise UserError(f"{labels}: row {empty[0]} has no {column}; fill it in or remove the row")
    known = _by_any_name(files)
    paths = []
    for number, name in table[columns.image].items():
        matching = known.get(name.removeprefix("./"), [])
        if len(matching) != 1:
            reason = f"matches {' and '.join(matching[:2])}" if matching else "is not among the images"
            raise UserError(
                f"{labels}: row {number}: {name!r} {reason}; expected the path of one image below the folder"
            )
        paths += matching
    group = table[columns.group] if columns.group else ""
    found = pd.DataFrame({"path": paths, "label": table[columns.label], "group": group})
    twice = found.path[found.path.duplicated()]
    if len(twice):
        raise UserError(f"{labels}: {twice.iloc[0]} has two rows; expected one per image")
    missing = sorted(set(files) - set(found.path))
    if missing:
        print(f"{len(missing)} images without a row in {labels.name} are left out; the first is {missing[0]}")
    return found


def _by_any_name(files: dict[str, Path]) -> dict[str, list[str]]:
    """Return the images by path and by name, each with and without suffix."""
    known: dict[str, list[str]] = {}
    for path in files:
        pure = PurePosixPath(path)
        for name in {path, pure.with_suffix("").as_posix(), pure.name, pure.stem}:
            known.setdefault(name, []).append(path)
    return known | {path: [path] for path in files}


def copy_custom(name: str, samples: pd.DataFrame, data: Path, source: str) -> None:
    """Replace `data`/<name> by the images of `find_samples` once all of them are copied."""
    with atomic_folder(data / name) as folder:
        for row in progress(list(samples.itertuples()), f"copying {name}"):
            target = folder / str(row.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(row.file), target)
        samples[COLUMNS].to_csv(folder / LABELS, index=False)
        write_json(folder / SOURCE_FILE, {"synthetic": False, "source": source})


def _read(folder: Path, classes: dict[str, str]) -> Listing:
    labels = folder / LABELS
    try:
        table = read_table(labels, COLUMNS)
    except FileNotFoundError:
        raise UserError(f"{labels}: not found; add the data set with `medtransfer data add`{or_pull(folder)}") from None
    there = {path.relative_to(folder).as_posix() for path in files_under(folder / IMAGES)}
    inside = table.path.isin(there)
    problems = [f"{labels}: {row.id} has no {row.path}" for row in table[~inside].itertuples()]
    problems += [f"{labels}: {name} has two rows" for name in table.id[table.id.duplicated()]]
    problems += [f"{folder / path}: no row in {LABELS}" for path in sorted(there - set(table.path))]
    return list_samples(table[inside].drop_duplicates("id")[COLUMNS], problems, classes, labels)
