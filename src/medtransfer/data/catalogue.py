"""The study's data sets: classes, layout, licence, source and grouping."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from medtransfer.core.dvc import POINTER, may_have
from medtransfer.core.errors import UserError, check_known
from medtransfer.core.files import files_under
from medtransfer.data.images import visible_files
from medtransfer.data.tables import from_one_hot, read_table

SOURCE_FILE = "source.json"
# The names that people give to the parts of a data set, and ours.
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
ISIC_LABELS = "ISIC2018_Task3_Training_GroundTruth.csv"
ISIC_LESIONS = "ISIC2018_Task3_Training_LesionGroupings.csv"
HAM10000_FOLDERS = ("HAM10000_images_part_1", "HAM10000_images_part_2", "ISIC2018_Task3_Training_Input")
METADATA_COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]


@dataclass(frozen=True)
class Listing:
    """The contents of a raw data set's folder.

    samples : DataFrame with the columns id, label, group and path (below the folder), sorted by id; if the data set has
        parts of its own, also split, which is one of train, validation and test
    problems : one line per mistake
    """

    samples: pd.DataFrame
    problems: list[str]


@dataclass(frozen=True)
class Dataset:
    """A catalogue entry.

    classes : label in the files → its meaning, in the order of every table
    group : what several images can share, such as a patient; split by group, no group is in two splits
    read : folder → Listing
    describe : folder → a table with `id` and one column per attribute of the patient or lesion, such as age
    scope : for which images its networks are, in a few words; empty if unknown
    select : path in the published layout → path below data/<name>, or None for a file that is not needed
    """

    name: str
    title: str
    classes: dict[str, str]
    group: str
    licence: str
    citation: str
    read: Callable[[Path], Listing]
    describe: Callable[[Path], pd.DataFrame] = lambda folder: pd.DataFrame(columns=["id"])
    kaggle: str = ""
    scope: str = ""
    select: Callable[[PurePosixPath], PurePosixPath | None] = lambda path: None


def _select_ham10000(path: PurePosixPath) -> PurePosixPath | None:
    # Kaggle's archive contains the image folders twice, the second time in lower case. Dataverse's metadata end in
    # .tab or in nothing.
    if path.name.lower() in ("ham10000_metadata.csv", "ham10000_metadata.tab", "ham10000_metadata"):
        return PurePosixPath("HAM10000_metadata.csv")
    if path.name in (ISIC_LABELS, ISIC_LESIONS):
        return PurePosixPath(path.name)
    part = {name.lower(): name for name in HAM10000_FOLDERS}.get(path.parent.name.lower())
    return PurePosixPath(part) / path.name if part and re.fullmatch(r"\w+\.jpg", path.name) else None


IMPORT_IT = "import the data set with `medtransfer data import NAME FILE`"


def or_pull(folder: Path) -> str:
    """Return advice for a message about missing data: how to get them from DVC, if data.dvc names them."""
    pointer = folder.parent.with_name(f"{folder.parent.name}.dvc")
    there = pointer.exists() and (pointer != POINTER or may_have(folder.name))
    return f", or run `dvc pull {pointer}`" if there else ""


def _read_ham10000(folder: Path) -> Listing:
    metadata = folder / "HAM10000_metadata.csv"
    try:
        if metadata.exists() or not (folder / ISIC_LABELS).exists():
            table = _read_metadata(metadata)
        else:
            metadata, table = folder / ISIC_LABELS, _read_isic(folder)
    except FileNotFoundError as error:
        other = f", nor {ISIC_LABELS} with {ISIC_LESIONS}"
        raise UserError(f"{error.filename}: not found{other}; {IMPORT_IT}{or_pull(folder)}") from None
    table = table.replace("", pd.NA)
    paths = [path.relative_to(folder) for path in files_under(folder)]
    images = {
        path.stem: path
        for path in paths
        if re.fullmatch(r"(HAM10000_images_part_|ISIC2018_)[^/]*/[^/.]+\.jpg", path.as_posix())
    }
    problems = [
        f"{metadata}: {row.image_id} has no {column}"
        for column in ("image_id", "dx", "lesion_id")
        for row in table[table[column].isna()].itertuples()
    ]
    problems += [f"{metadata}: {image} has more than one row" for image in table.image_id[table.image_id.duplicated()]]
    known = set(table.image_id.dropna())
    problems += [
        f"{metadata}: {image} has no image file in {' or '.join(HAM10000_FOLDERS)}"
        for image in sorted(known - set(images))
    ]
    problems += [f"{folder / images[image]}: no row in {metadata.name}" for image in sorted(set(images) - known)]
    samples = pd.DataFrame({"id": table.image_id, "label": table.dx, "group": table.lesion_id})
    samples["path"] = samples.id.map({image: path.as_posix() for image, path in images.items()})
    samples = samples.dropna().drop_duplicates("id")
    return list_samples(samples, problems, HAM10000.classes, metadata)


def _read_metadata(path: Path) -> pd.DataFrame:
    with path.open(errors="replace") as file:  # read_table refuses another encoding
        return read_table(path, METADATA_COLUMNS, "\t" if "\t" in file.readline() else ",")


def _read_isic(folder: Path) -> pd.DataFrame:
    """Read the labels and lesions of the ISIC 2018 challenge, task 3, whose training images are HAM10000."""
    labels = read_table(folder / ISIC_LABELS, ["image", *(label.upper() for label in HAM10000.classes)])
    lesions = read_table(folder / ISIC_LESIONS, ["image", "lesion_id"])
    dx = from_one_hot(labels, [label.upper() for label in HAM10000.classes], folder / ISIC_LABELS).str.lower()
    lesion = labels.image.map(lesions.drop_duplicates("image").set_index("image").lesion_id)
    return pd.DataFrame({"image_id": labels.image, "dx": dx, "lesion_id": lesion})


def _describe_ham10000(folder: Path) -> pd.DataFrame:
    path = folder / "HAM10000_metadata.csv"
    table = _read_metadata(path) if path.exists() else pd.DataFrame(columns=METADATA_COLUMNS)
    bands = {"0 to 29": 0, "30 to 49": 30, "50 to 69": 50, "70 and over": 70}
    years = pd.to_numeric(table.age, errors="coerce")
    ages = pd.cut(years, [*bands.values(), 200], right=False, labels=list(bands))
    groups = table[["sex", "localization"]].replace("", pd.NA)
    return pd.DataFrame({"id": table.image_id, "age": ages, "sex": groups.sex, "site": groups.localization})


_CHEST_FILE = re.compile(r"(?:^|/)(?:(train|val|test)/)?(NORMAL|PNEUMONIA)/([^/]+\.(?i:jpeg|jpg|png))$")
_CHEST_PATIENT = re.compile(r"(person\d+|(?:NORMAL2-)?IM-\d+)[-_]")


def _select_chest_xray(path: PurePosixPath) -> PurePosixPath | None:
    # The published archive contains the whole tree twice, and macOS's resource forks.
    if "__MACOSX" in path.parts or path.name.startswith("."):
        return None
    found = _CHEST_FILE.search(path.as_posix())
    return PurePosixPath("chest_xray", *filter(None, found.groups())) if found else None


def _read_chest_xray(folder: Path) -> Listing:
    """Read `[chest_xray/]{train,val,test}/<class>/*` or, without the three folders, `<class>/*`."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not found; {IMPORT_IT}{or_pull(folder)}")
    rows, problems = [], []
    for path in (path for path in visible_files(folder) if path.name != SOURCE_FILE):
        patient = _CHEST_PATIENT.match(path.name)
        if path.suffix.lower() not in (".jpeg", ".jpg", ".png"):
            problems.append(f"{path}: not an image; expected .jpeg, .jpg or .png")
        elif not patient:
            problems.append(f"{path}: no patient in the name; expected person<N>_… or [NORMAL2-]IM-<N>-…")
        else:
            rows.append((path.stem, path.parent.name, patient[1], path.relative_to(folder).as_posix()))
    samples = pd.DataFrame(rows, columns=["id", "label", "group", "path"])
    problems += [f"{folder / path}: another image has this name" for path in samples.path[samples.id.duplicated()]]
    parts = samples.path.str.extract(r"(?:^|/)(train|val|test)/[^/]+/[^/]+$")[0].map(PARTS)
    if len(samples) and parts.notna().all():
        samples["split"] = parts
    return list_samples(samples.drop_duplicates("id"), problems, CHEST_XRAY.classes, folder)


def _describe_chest_xray(folder: Path) -> pd.DataFrame:
    ids = pd.Series([path.stem for path in visible_files(folder) if path.name != SOURCE_FILE])
    cause = ids.str.extract("(bacteria|virus)")[0].replace({"bacteria": "bacterial", "virus": "viral"})
    return pd.DataFrame({"id": ids, "cause": cause.fillna("no pneumonia")})


def list_samples(samples: pd.DataFrame, problems: list[str], classes: dict[str, str], where: Path) -> Listing:
    """Return the samples with a known label, sorted by id, and one problem for every other sample."""
    known = samples.label.isin(list(classes))
    problems += [
        f"{where}: {row.id} has the label {row.label!r}, but the classes are {', '.join(classes)}"
        for row in samples[~known].itertuples()
    ]
    samples = samples[known]
    if samples.empty:
        problems.append(f"{where}: no labelled image found")
    # A CSV cell may contain line breaks.
    problems = [" ".join(problem.split()) for problem in problems]
    return Listing(samples.sort_values("id", ignore_index=True), problems)


HAM10000 = Dataset(
    name="ham10000",
    title="HAM10000 (dermatoscopic images of skin lesions)",
    classes={
        "akiec": "actinic keratoses and intraepithelial carcinoma",
        "bcc": "basal cell carcinoma",
        "bkl": "benign keratosis-like lesions",
        "df": "dermatofibroma",
        "mel": "melanoma",
        "nv": "melanocytic nevi",
        "vasc": "vascular lesions",
    },
    group="lesion",
    kaggle="kmader/skin-cancer-mnist-ham10000",
    scope="dermatoscopic images only",
    licence="CC BY-NC 4.0",
    citation=(
        "Tschandl, Rosendahl, Kittler: The HAM10000 dataset, a large collection of multi-source dermatoscopic "
        "images of common pigmented skin lesions. Sci Data 5, 180161 (2018). doi:10.7910/DVN/DBW86T"
    ),
    select=_select_ham10000,
    read=_read_ham10000,
    describe=_describe_ham10000,
)

CHEST_XRAY = Dataset(
    name="chest_xray",
    title="Chest X-Ray Images (Pneumonia)",
    classes={"NORMAL": "no finding", "PNEUMONIA": "bacterial or viral pneumonia"},
    # The names do not show whether person<N> is the same patient in bacteria and virus images. Treating them as one
    # patient cannot leak.
    group="patient",
    kaggle="paultimothymooney/chest-xray-pneumonia",
    scope="chest X-rays of children only",
    licence="CC BY 4.0",
    citation=(
        "Kermany et al.: Identifying Medical Diagnoses and Treatable Diseases by Image-Based Deep Learning. "
        "Cell 172, 1122-1131 (2018). doi:10.17632/rscbjbr9sj"
    ),
    select=_select_chest_xray,
    read=_read_chest_xray,
    describe=_describe_chest_xray,
)

CATALOGUE = {dataset.name: dataset for dataset in (HAM10000, CHEST_XRAY)}


def get_dataset(name: str) -> Dataset:
    """Return the catalogue entry called `name`."""
    check_known("data sets", name, CATALOGUE)
    return CATALOGUE[name]


def read_source(folder: Path) -> dict[str, Any]:
    """Return `synthetic`, `source` and, if there is one, the `note` of a raw data set, as its import wrote them.

    A folder without a note was put there by hand and counts as real data.
    """
    note = folder / SOURCE_FILE
    if not note.exists():
        return {"synthetic": False, "source": "unknown"}
    try:
        source = json.loads(note.read_text())
        about = {"synthetic": bool(source["synthetic"]), "source": str(source["source"])}
        return {**about, "note": str(source["note"])} if "note" in source else about
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{note}: expected JSON with the keys synthetic and source; import the data set again"
        ) from None
