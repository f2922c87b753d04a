"""A data set of the user's own: a folder of images with a table of labels, or one folder per class."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd
from rich.progress import track

from medtransfer.core.errors import UserError, check_known
from medtransfer.core.files import atomic_file, files_under, partial_beside, replace_folder, write_json
from medtransfer.core.params import CatalogueEntry, Params
from medtransfer.data.catalogue import CATALOGUE, SOURCE_FILE, Dataset, Listing, get_dataset, list_samples, or_pull
from medtransfer.data.images import FORMATS

LABELS, IMAGES = "labels.csv", "images"
COLUMNS = ["id", "label", "group", "path"]
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)


@dataclass(frozen=True)
class Columns:
    """Which columns of the user's table hold the image's file name, its label and its group, if any."""

    image: str = "image"
    label: str = "label"
    group: str | None = None


def dataset_of(name: str, params: Params) -> Dataset:
    """Return the catalogue's entry of a data set that params.yaml lists, the study's or the user's own.

    Raises
    ------
    UserError
        There is none.
    """
    entry = params.datasets[name].catalogue if name in params.datasets else None
    if name in params.datasets and not entry and name not in CATALOGUE:
        raise UserError(f"params.yaml: datasets.{name}.catalogue: missing; `medtransfer data add {name}` writes it")
    check_known("data sets", name, dict.fromkeys([*CATALOGUE, *params.datasets]))
    return own_dataset(name, entry) if entry else get_dataset(name)


def own_dataset(name: str, entry: CatalogueEntry) -> Dataset:
    """Return the catalogue's entry of a data set that params.yaml describes."""
    return Dataset(
        name=name,
        title=entry.title,
        classes=dict(entry.classes),
        group=entry.group,
        images=0,
        kaggle="",
        licence=entry.licence,
        citation=entry.citation,
        select=lambda path: None,
        read=lambda folder: _read(folder, dict(entry.classes)),
    )


def find_samples(images: Path, labels: Path | None, columns: Columns) -> pd.DataFrame:
    """Bring images and labels together.

    Parameters
    ----------
    images : Path
        A folder of JPEG and PNG files; without `labels`, each class in a folder of its own.
    labels : Path, optional
        A CSV file with one row per image. Its images are file names or paths below `images`, with or without suffix.

    Returns
    -------
    DataFrame
        COLUMNS, one row per image, and `file`, where it lies now. An image without a group is a group of its own.

    Raises
    ------
    UserError
        A row has no image or an empty cell, two rows or files have one name, or there is nothing.
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
    found["path"] = [f"{IMAGES}/{path}" for path in found.path]
    twins = found.id[found.id.duplicated()]
    if len(twins):
        raise UserError(f"{images}: {twins.iloc[0]} is there twice, or with two suffixes; rename or remove one")
    return found.sort_values("id", ignore_index=True)[[*COLUMNS, "file"]]


def _from_folders(files: dict[str, Path], images: Path) -> pd.DataFrame:
    loose = [path for path in files if "/" not in path]
    if loose:
        raise UserError(
            f"{images / loose[0]}: in no class's folder; put each class into a folder of its own, or give --labels"
        )
    return pd.DataFrame({"path": list(files), "label": [path.split("/")[0] for path in files], "group": ""})


def _from_table(files: dict[str, Path], labels: Path, columns: Columns) -> pd.DataFrame:
    try:
        table = pd.read_csv(labels, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{labels}: cannot be read as CSV in UTF-8: {' '.join(str(error).split())}") from None
    if table.empty:
        raise UserError(f"{labels}: no row below the header; expected one an image")
    asked = [column for column in (columns.image, columns.label, columns.group) if column]
    for column in asked:
        if column not in table.columns:
            raise UserError(f"{labels}: no column {column!r}; there are {', '.join(table.columns)}")
        empty = table.index[table[column].str.strip() == ""]
        if len(empty):
            raise UserError(f"{labels}: row {empty[0] + 2} has no {column}; fill it in or remove the row")
    known = _by_any_name(files)
    paths = []
    for number, name in enumerate(table[columns.image], start=2):
        matching = known.get(name.strip().removeprefix("./"), [])
        if len(matching) != 1:
            reason = f"means {' and '.join(matching[:2])}" if matching else "is not among the images"
            raise UserError(
                f"{labels}: row {number}: {name!r} {reason}; expected the path of one image below the folder"
            )
        paths += matching
    # A blank at the end, which nobody sees in a table, would make two patients or classes of one.
    group = table[columns.group].str.strip() if columns.group else ""
    found = pd.DataFrame({"path": paths, "label": table[columns.label].str.strip(), "group": group})
    twice = found.path[found.path.duplicated()]
    if len(twice):
        raise UserError(f"{labels}: {twice.iloc[0]} has two rows; expected one an image")
    if len(found) < len(files):
        missing = sorted(set(files) - set(found.path))
        print(f"{len(missing)} images have no row in {labels.name} and are left out, {missing[0]} the first of them")
    return found


def _by_any_name(files: dict[str, Path]) -> dict[str, list[str]]:
    """Return every image by its path, its name, and both without suffix."""
    known: dict[str, list[str]] = {}
    for path in files:
        pure = PurePosixPath(path)
        for name in dict.fromkeys((path, pure.with_suffix("").as_posix(), pure.name, pure.stem)):
            known.setdefault(name, []).append(path)
    return known | {path: [path] for path in files}


def copy_own(name: str, samples: pd.DataFrame, data: Path, source: str) -> None:
    """Copy the images of `find_samples` to `data`/<name>, in place of what is there, once all of them are copied."""
    staging = partial_beside(data / name)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        for row in track(
            list(samples.itertuples()), f"copying {name}", transient=True, disable=not sys.stdout.isatty()
        ):
            target = staging / str(row.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(row.file), target)
        with atomic_file(staging / LABELS) as path:
            samples[COLUMNS].to_csv(path, index=False)
        write_json(staging / SOURCE_FILE, {"synthetic": False, "source": source})
        replace_folder(staging, data / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _read(folder: Path, classes: dict[str, str]) -> Listing:
    labels = folder / LABELS
    try:
        table = pd.read_csv(labels, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{labels}: not found; add the data set with `medtransfer data add`{or_pull(folder)}") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{labels}: cannot be read as CSV: {' '.join(str(error).split())}") from None
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise UserError(f"{labels}: column {', '.join(missing)} is missing; expected {', '.join(COLUMNS)}")
    inside = pd.Series([_inside(folder, path) for path in table.path], index=table.index, dtype=bool)
    lacking = table[~inside]
    problems = [f"{labels}: {row.id} has no {row.path}" for row in lacking.itertuples()]
    problems += [f"{labels}: {name} has two rows" for name in table.id[table.id.duplicated()]]
    listed = set(table.path)
    problems += [
        f"{path}: no row in {LABELS}"
        for path in files_under(folder / IMAGES)
        if path.relative_to(folder).as_posix() not in listed
    ]
    return list_samples(table[inside].drop_duplicates("id")[COLUMNS], problems, classes, labels)


def _inside(folder: Path, path: str) -> bool:
    return ".." not in PurePosixPath(path).parts and path.startswith(f"{IMAGES}/") and (folder / path).is_file()
