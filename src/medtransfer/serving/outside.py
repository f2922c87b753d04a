"""Images from another source: their labels, translated to the classes of a data set, and the networks to be scored.

This module imports neither Keras nor MLflow, so that a mistake in a table is reported at once.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medtransfer.analysis.runs import finished_networks
from medtransfer.core.errors import UserError, check_known, counted, first_three
from medtransfer.core.params import Params
from medtransfer.core.prepared import finished_network
from medtransfer.data import dicom
from medtransfer.data.custom import Columns, finder, stem
from medtransfer.data.images import SUFFIXES, is_image, visible_files
from medtransfer.data.tables import BINARY, from_one_hot, one_spelling, read_groups, read_table

log = logging.getLogger(__name__)

EXTERNAL = "external"  # the split of such images in predictions.csv


@dataclass(frozen=True)
class Labels:
    """A table of labels, its columns, and `names`: label in the table → class, or an empty string to leave it out."""

    path: Path
    columns: Columns
    names: Mapping[str, str]


def find_networks(params: Params, dataset: str, names: Sequence[str], seeds: Sequence[int]) -> list[Path]:
    """Return the folders of the named finished networks; by default, of all in the study."""
    check_known("params.yaml: study", dataset, params.study)
    if names or seeds:
        named = names or params.study[dataset].networks
        return [finished_network(params, dataset, name, seed) for name in named for seed in seeds or params.seeds]
    return finished_networks(params, dataset)


def find_labelled(images: Path, labels: Labels, classes: Sequence[str]) -> pd.DataFrame:
    """Return the labelled images of a folder, from `match_labels`."""
    files = {path.relative_to(images).as_posix(): path for path in find_images([images], labels.path)}
    return match_labels(files, read_labels(labels, classes), labels.path)


def find_images(paths: Iterable[Path], labels: Path | None = None) -> list[Path]:
    """Return the given files, and the images in each given folder and its subfolders, sorted.

    Other files in a folder, except `labels`, are named in a warning.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        there = visible_files(path)
        images = [file for file in there if is_image(file) or file.suffix.lower() in dicom.SUFFIXES]
        if not images:
            raise UserError(f"{path}: no image; expected files that end in {', '.join(SUFFIXES)}")
        others = [file for file in sorted({*there} - {*images}) if not (labels and file.samefile(labels))]
        if others:
            log.warning("not images, so skipped: %s", first_three([str(file) for file in others]))
        found += images
    return found


def read_labels(labelled: Labels, classes: Sequence[str]) -> pd.DataFrame:
    """Read a table of labels with one row per image; return image, label and group.

    If the table has no label column, all of its other columns must be one-hot. A label that is not among the names must
    be a class's name; case is ignored. An image without a group, or of an unknown one, is its own group.
    """
    path, columns, names = labelled.path, labelled.columns, labelled.names
    given = [column for column in (columns.image, columns.group) if column]
    hot = columns.label.split(",") if "," in columns.label else []
    table = read_table(path, [*given, *hot])
    if empty := table.index[table[columns.image] == ""].tolist():
        raise UserError(f"{path}: row {empty[0]} has no image; add its name, or remove the row")
    if columns.label in table:
        labels = table[columns.label]
    else:
        hot = hot or [column for column in table.columns if column not in given]
        labels = _from_one_hot(table, hot, labelled)
    for name, target in names.items():
        if name not in {*labels, *hot}:
            raise UserError(f"{path}: no image has the label {name!r}; its labels are {', '.join(sorted(set(labels)))}")
        if target and target not in classes:
            raise UserError(f"{path}: {name!r} cannot become {target!r}; the classes are {', '.join(classes)}")
    classed = _as_classes(labels, names, classes, path)
    group = read_groups(table, columns.group, path) if columns.group else ""
    found = pd.DataFrame({"image": table[columns.image], "label": classed, "group": group})
    alone = int((found.group == "").sum())
    if columns.group and alone:
        log.warning(
            "%s: %s without a %s; each is counted as independent, unless its DICOM file names a patient",
            path, counted(alone, "row"), columns.group,
        )  # fmt: skip
    twice = found.image[found.image.duplicated()]
    if len(twice):
        raise UserError(f"{path}: {twice.iloc[0]} has more than one row; expected one per image")
    found["group"] = found.group.where(found.group != "", found.image)
    kept = found[found.label != ""]
    if kept.empty:
        raise UserError(f"{path}: every label is left out by --map LABEL=; map at least one of them to a class")
    return kept


def _from_one_hot(table: pd.DataFrame, hot: list[str], labelled: Labels) -> pd.Series:
    other = [column for column in hot if not table[column].isin(BINARY).all()]
    if other or not hot:
        raise UserError(
            f"{labelled.path}: no column {labelled.columns.label!r}, and not all other columns are one-hot (0 or 1): "
            f"{', '.join(other)}; name the column of the label, or all one-hot columns with commas, with "
            f"--label-column; its columns are {', '.join(table.columns)}"
        )
    return from_one_hot(table, hot, labelled.path)


def _as_classes(labels: pd.Series, names: Mapping[str, str], classes: Sequence[str], path: Path) -> pd.Series:
    """Return the class of each label: its name in `names`, or the class of the same name in upper or lower case."""
    small = {name.casefold(): name for name in classes}
    classed = labels.map({name: names.get(name, small.get(name.casefold())) for name in labels.unique()})
    unknown = Counter(labels[classed.isna()])
    if unknown:
        counts = ", ".join(f"{name!r} ({count} images)" for name, count in unknown.most_common())
        raise UserError(
            f"{path}: no class is called {counts}; the classes are {', '.join(classes)}. Map each label with "
            "--map LABEL=CLASS, or leave its images out with --map LABEL="
        )
    return classed


def match_labels(files: dict[str, Path], table: pd.DataFrame, labels: Path) -> pd.DataFrame:
    """Return the labelled images: id, group, split, label and file, in the order of `files`, which has files by path.

    A row of the table, from `read_labels`, names an image as in `data add`. Rows without an image and images without a
    row are left out, with a warning. A DICOM image without a group has its patient as its group, and the groups of
    DICOM images, which may be patient ids, are hashed.
    """
    headers = {path: dicom.read_header(file) for path, file in files.items() if dicom.is_dicom(file)}
    patients = one_spelling(pd.Series({path: header.patient for path, header in headers.items()}, dtype=str))
    find, rows = finder(files, {path: header.uid for path, header in headers.items()}), dict[str, Any]()
    for row in table.itertuples():
        matching = find(str(row.image))
        if len(matching) > 1:
            raise UserError(f"{labels}: {row.image} matches {first_three(matching)}; use their paths instead")
        for path in matching:
            if path in rows:
                raise UserError(f"{labels}: {path} has two rows, {rows[path].image} and {row.image}; remove one")
            rows[path] = row
    if not rows:
        raise UserError(f"{labels}: names none of the {len(files)} images, such as {next(iter(files))}")
    unlabelled, missing = len(files) - len(rows), len(table) - len(rows)
    if unlabelled or missing:
        log.warning(
            "left out: %s without a label, %s without an image", counted(unlabelled, "image"), counted(missing, "row")
        )
    found = []
    for path, file in files.items():
        if known := rows.get(path):
            group = patients.get(path, "") if known.group == known.image else known.group
            hidden = dicom.hide(group) if path in headers else group
            found.append((stem(path), hidden or known.group, known.label, file))
    samples = pd.DataFrame(found, columns=["id", "group", "label", "file"]).assign(split=EXTERNAL)
    twins = samples.id[samples.id.duplicated()]
    if len(twins):
        raise UserError(f"{twins.iloc[0]}: occurs with two suffixes; rename or remove one of these images")
    return samples
