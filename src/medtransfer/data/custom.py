"""A custom data set: a folder of images with a table of labels, or one folder per class."""

import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from medtransfer.core.errors import UserError, check_known, counted, first_three
from medtransfer.core.files import atomic_folder, write_json
from medtransfer.core.params import CatalogueEntry, Params
from medtransfer.data import dicom
from medtransfer.data.catalogue import CATALOGUE, PARTS, SOURCE_FILE, Dataset, Listing, list_samples, or_pull
from medtransfer.data.images import MAX_PIXELS, SUFFIXES, is_image, visible_files
from medtransfer.data.progress import progress
from medtransfer.data.tables import BINARY, first_alike, from_one_hot, one_spelling, read_groups, read_table

LABELS, IMAGES = "labels.csv", "images"
MASK = re.compile(r"[ _-](mask|segmentation)([ _-]?\d+)?$", re.IGNORECASE)
COLUMNS = ["id", "label", "group", "path"]


@dataclass(frozen=True)
class Columns:
    """The columns of the user's table for the image's file name, its label and, if any, its group and its split.

    `label` names one column or, separated by commas, the columns of a one-hot table.
    """

    image: str = "image"
    label: str = "label"
    group: str | None = None
    split: str | None = None


def dataset_of(name: str, params: Params) -> Dataset:
    """Return the catalogue entry of a data set: one of the study's, or a custom one that params.yaml describes."""
    entry = params.datasets[name].catalogue if name in params.datasets else None
    if entry:
        return custom_dataset(name, entry)
    if name in params.datasets and name not in CATALOGUE:
        raise UserError(
            f"params.yaml: datasets.{name}.catalogue: missing; `medtransfer data add {name} --images FOLDER` writes it"
        )
    check_known("data sets", name, dict.fromkeys([*CATALOGUE, *params.datasets]))
    return CATALOGUE[name]


def custom_dataset(name: str, entry: CatalogueEntry) -> Dataset:
    """Return the catalogue entry of a custom data set."""
    classes = {label: entry.meanings.get(label, label) for label in entry.classes}
    about = entry.model_dump(exclude={"classes", "meanings"})
    return Dataset(name, classes=classes, **about, read=lambda folder: _read(folder, classes))


def find_samples(images: Path, labels: Path | None, columns: Columns) -> pd.DataFrame:
    """Match the images of a folder with their labels.

    `labels` is a CSV file with one row per image, named by file name, by path or, for DICOM, by SOPInstanceUID. Without
    it, the folder contains one folder per class, or train, test and perhaps validation with one folder per class each.

    Returns
    -------
    DataFrame
        One row per image: COLUMNS; split, if the data have parts of their own; and `file`, its present path. An image
        without a group is its own group. Patient ids of DICOM files, also those in the table, are hashed.
    """
    there = visible_files(images)
    files = {file.relative_to(images).as_posix(): file for file in there if is_image(file)}
    if not files:
        raise UserError(f"{images}: no image; expected files that end in {', '.join(SUFFIXES)}, or DICOM")
    for path, file in files.items():
        if path.encode(errors="replace").decode() != path:
            raise UserError(f"{file}: its name is not in UTF-8; rename it")
        if "\\" in path:  # left by some programs that unpack archives made on Windows
            raise UserError(f"{file}: its name contains a backslash; unpack the archive again, or rename it")
        if not file.resolve().is_relative_to(images.resolve()):
            raise UserError(f"{file}: a link to a file outside {images}; replace it with a copy of that file")
    others = sorted(set(there) - set(files.values()))
    others = [file for file in others if not (labels and file.samefile(labels))]
    if others:
        print(f"{counted(len(others), 'file')} left out as non-images: {first_three([str(file) for file in others])}")
    headers = {path: dicom.read_header(file) for path, file in files.items() if dicom.is_dicom(file)}
    uids = {path: header.uid for path, header in headers.items()}
    found = _from_table(files, uids, labels, columns) if labels else _from_folders(files, images)
    found["label"] = found.label.str.replace(r"\s+", " ", regex=True)  # two spaces would make another class
    _check_series({path: headers[path] for path in found.path if path in headers}, images)
    if headers:
        found["group"] = found.group.map(dicom.hide) if columns.group else _patients(found.path, headers, images)
    elif not labels and "split" not in found:
        _note_subfolders(found.path, images)
    found["id"] = [stem(path) for path in found.path]
    found["group"] = found.group.where(found.group != "", found.id)
    found["file"] = found.path.map(files)
    found["path"] = [f"{IMAGES}/{f'{stem(path)}.png' if path in headers else path}" for path in found.path]
    twins = found.id[found.id.duplicated()]
    if len(twins):
        raise UserError(f"{images}: {twins.iloc[0]} occurs twice, or with two suffixes; rename or remove one")
    return found.sort_values("id", ignore_index=True)


def _check_series(headers: dict[str, dicom.Header], images: Path) -> None:
    first: dict[str, tuple[str, str]] = {}
    for path, header in headers.items():
        other, scale = first.setdefault(header.series, (path, header.scale))
        if header.series and scale != header.scale:
            raise UserError(
                f"{images / path}: its window or range of values differs from that of {other} in the same series, "
                "so their pixels cannot be compared; give both the same WindowCenter and WindowWidth"
            )


def _patients(paths: pd.Series, headers: dict[str, dicom.Header], images: Path) -> pd.Series:
    """Return the hashed patient id of each image; '' if no file has one."""
    found = one_spelling(paths.map(lambda path: headers[path].patient if path in headers else ""))
    if (found == "").all():
        print(
            "no DICOM file has a PatientID, so images of one patient can be in two splits; to avoid this, give "
            "--labels with --group"
        )
    if (found != "").any() and (found == "").any():
        raise UserError(
            f"{images / paths[found == ''].iloc[0]}: has no PatientID, but other files have; give --labels with --group"
        )
    if found.nunique() == 1 and found.iloc[0]:
        raise UserError(f"{images}: all DICOM files have the same PatientID; give --labels with --group")
    if twins := first_alike(found):
        first, second = (images / paths[found == name].iloc[0] for name in twins)
        raise UserError(
            f"{first}, {second}: their PatientIDs differ but may belong to the same patient; give --labels with --group"
        )
    return found.map(dicom.hide)


def _from_folders(files: dict[str, Path], images: Path) -> pd.DataFrame:
    files = _without_masks(files)
    parts = {path.split("/")[0] for path in files}
    given = {_part(part) for part in parts}
    if None in given and {"train", "test"} <= given:
        odd = min(part for part in parts if _part(part) is None)
        raise UserError(f"{images / odd}: unexpected folder beside train and test; move it elsewhere, or give --labels")
    first = 0 if None in given else 1  # the level of the classes' folders
    if first and not {"train", "test"} <= given:
        raise UserError(f"{images}: has only the parts {', '.join(sorted(parts))}; expected train and test")
    loose = [path for path in files if path.count("/") <= first]
    if loose:
        raise UserError(f"{images / loose[0]}: not in the folder of a class; make one per class, or give --labels")
    found = pd.DataFrame({"path": list(files), "label": [path.split("/")[first] for path in files], "group": ""})
    if first:
        return found.assign(split=found.path.str.split("/").str[0].map(_part))
    _refuse_unclear_classes(files, images)
    return found


def _without_masks(files: dict[str, Path]) -> dict[str, Path]:
    """Leave out images that are named as the mask of another, such as `7_mask.png` beside `7.png`."""
    names = {stem(path) for path in files}
    masks = {path for path in files if (name := MASK.sub("", stem(path))) != stem(path) and name in names}
    if masks:
        print(f"left out: {counted(len(masks), 'image')} named as the mask of another: {first_three(sorted(masks))}")
    return {path: file for path, file in files.items() if path not in masks}


def _part(folder: str) -> str | None:
    """Return the part of a data set that a folder's name means (`train_set`), or None."""
    return PARTS.get(re.sub(r"[ _-]?(set|data|images|split)$", "", folder.lower()))


def _refuse_unclear_classes(files: Iterable[str], images: Path) -> None:
    """Refuse folders that all contain the same folders: the classes may be the outer or the inner ones."""
    inner: dict[str, set[str]] = {}
    for path in files:
        folder, _, rest = path.partition("/")
        inner.setdefault(folder, set()).add(rest.rpartition("/")[0].split("/")[0])
    names = next(iter(inner.values()))
    if len(inner) > 1 and len(names) > 1 and all(found == names for found in inner.values()):
        raise UserError(
            f"{images}: {first_three(sorted(inner))} contain the same folders, {first_three(sorted(names))}; expected "
            "one folder per class, or train and test with such folders; rename the folders, or give --labels"
        )


def _note_subfolders(paths: pd.Series, images: Path) -> None:
    """Say that images of one folder below a class, which may be a patient's, are not kept together."""
    folders = paths[paths.str.count("/") > 1].str.rsplit("/", n=1).str[0]
    if len(folders):
        print(
            f"{images / folders.iloc[0]}: images of one folder can be in two splits; if it is a patient, give --labels "
            "with --group"
        )


def _from_table(files: dict[str, Path], uids: dict[str, str], labels: Path, columns: Columns) -> pd.DataFrame:
    classes = columns.label.split(",")
    named = [columns.image, *classes, *(column for column in (columns.group, columns.split) if column)]
    table = read_table(labels, named)
    filled = table.assign(**{columns.group: read_groups(table, columns.group, labels)}) if columns.group else table
    for column in named:
        empty = table.index[filled[column] == ""]
        if len(empty):
            cell = table.loc[empty[0], column]
            raise UserError(
                f"{labels}: row {empty[0]} has no {column}{cell and f', but {cell!r}'}; fill it in or remove the row"
            )
    if len(classes) > 1:
        label = from_one_hot(table, classes, labels)
    else:
        _refuse_one_hot(table, classes[0], labels)
        label = table[classes[0]]
    paths = _match(table[columns.image], finder(files, uids), labels)
    found = pd.DataFrame({"path": paths, "label": label.to_numpy()})
    found["group"] = filled[columns.group].to_numpy() if columns.group else ""
    if columns.split:
        found["split"] = _parts(table[columns.split], labels).to_numpy()
    twice = found.path[found.path.duplicated()]
    if len(twice):
        raise UserError(f"{labels}: {twice.iloc[0]} has more than one row; expected one per image")
    missing = sorted(set(files) - set(found.path))
    if missing:
        print(f"left out: {counted(len(missing), 'image')} without a row in {labels.name}: {first_three(missing)}")
    return found


def _match(names: pd.Series, find: Callable[[str], list[str]], labels: Path) -> list[str]:
    """Return the path of the one image that each row of a table names."""
    paths = []
    for number, name in names.items():
        matching = find(name)
        if len(matching) != 1:
            reason = f"matches {' and '.join(matching[:2])}" if matching else "is not among the images"
            raise UserError(
                f"{labels}: row {number}: {name!r} {reason}; expected the path of one image below the folder"
            )
        paths += matching
    return paths


def _parts(cells: pd.Series, labels: Path) -> pd.Series:
    parts = cells.str.lower().map(PARTS)
    if parts.isna().any():
        number = cells.index[parts.isna()][0]
        raise UserError(f"{labels}: row {number}: {cells[number]!r} is not a split; expected train, validation or test")
    return parts


def _refuse_one_hot(table: pd.DataFrame, column: str, labels: Path) -> None:
    binary = [str(name) for name in table if table[name].isin(BINARY).all()]
    if column not in binary:
        return
    hot = table[binary].astype(float)
    # Leave out unrelated columns of 0 and 1, such as sex.
    binary = [name for name in binary if name == column or not (hot[name] * hot[column]).any()]
    if len(binary) > 1 and (hot[binary].sum(axis=1) == 1).all():
        raise UserError(
            f"{labels}: {column} is one of the columns of a one-hot table; give all: --label-column {','.join(binary)}"
        )


def finder(files: dict[str, Path], uids: dict[str, str]) -> Callable[[str], list[str]]:
    """Return the function that finds the images that a table's cell names, by path, by name or by UID."""
    paths, names = dict[str, list[str]](), dict[str, list[str]]()
    for path in files:
        lower = _comparable(path)
        for name in {lower, stem(lower)}:
            paths.setdefault(name, []).append(path)
        ends = {"/".join(parts[start:]) for parts in [lower.split("/")] for start in range(len(parts))}
        for name in {*ends, *map(stem, ends), uids.get(path, lower)}:
            names.setdefault(name, []).append(path)

    def find(cell: str) -> list[str]:
        name = _comparable(cell.replace("\\", "/").removeprefix("./"))
        parts = name.split("/")
        # A table may have been written elsewhere: what precedes the path below our folder does not matter.
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        exact = paths.get(name) or names.get(name)
        return exact or next((paths[end] for end in ends if end in paths), [])

    return find


def _comparable(path: str) -> str:
    """Return a path or name in NFC with its suffix in lower case."""
    path = unicodedata.normalize("NFC", path)  # macOS may write ü as two characters, which look the same
    pure = PurePosixPath(path)
    return f"{stem(path)}{pure.suffix.lower()}" if stem(path) != path else path


def stem(path: str) -> str:
    """Return a path without its image suffix; a DICOM file may be named by its UID, whose end is not a suffix."""
    pure = PurePosixPath(path)
    return path[: -len(pure.suffix)] if pure.suffix.lower() in (*SUFFIXES, *dicom.SUFFIXES) else path


def copy_custom(name: str, samples: pd.DataFrame, data: Path, source: str) -> None:
    """Replace `data`/<name> by the images of `find_samples` once all of them are copied."""
    with atomic_folder(data / name) as folder:
        for row in progress(list(samples.itertuples()), f"copying {name}"):
            target = folder / str(row.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if dicom.is_dicom(Path(str(row.file))):  # its tags name a person
                dicom.read_picture(Path(str(row.file)), str(row.file), MAX_PIXELS).save(target)
            else:
                shutil.copyfile(str(row.file), target)
        samples.drop(columns="file").to_csv(folder / LABELS, index=False, columns=_columns(samples))
        write_json(folder / SOURCE_FILE, {"synthetic": False, "source": source})


def _columns(table: pd.DataFrame) -> list[str]:
    return [*COLUMNS, "split"] if "split" in table else COLUMNS


def _read(folder: Path, classes: dict[str, str]) -> Listing:
    labels = folder / LABELS
    try:
        table = read_table(labels, COLUMNS)
    except FileNotFoundError:
        name = folder.name
        raise UserError(
            f"{labels}: not found; add the data set again (`medtransfer data add {name} --images FOLDER`, with the "
            f"options for its table) or remove it (`medtransfer data remove {name}`){or_pull(folder)}"
        ) from None
    there = {path.relative_to(folder).as_posix() for path in visible_files(folder / IMAGES)}
    inside = table.path.isin(there)
    problems = [f"{labels}: {row.id} has no {row.path}" for row in table[~inside].itertuples()]
    problems += [f"{labels}: {name} has more than one row" for name in table.id[table.id.duplicated()]]
    problems += [f"{folder / path}: no row in {LABELS}" for path in sorted(there - set(table.path))]
    return list_samples(table[inside].drop_duplicates("id")[_columns(table)], problems, classes, labels)
