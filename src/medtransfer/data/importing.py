"""Importing a data set into data/ from a zip file, a folder or Kaggle."""

import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from medtransfer.core.errors import UserError, counted, shortened
from medtransfer.core.files import atomic_folder, files_under, sha256_of, write_json
from medtransfer.data.catalogue import SOURCE_FILE, Dataset
from medtransfer.data.progress import progress

MAX_BYTES = 500_000_000  # of one file, unpacked


class Entry(NamedTuple):
    """A file of the source: its path there, its size in bytes, and a function that opens it."""

    path: PurePosixPath
    size: int
    open: Callable[[], Any]


def import_dataset(dataset: Dataset, path: Path, data: Path, source: str | None = None) -> int:
    """Copy a data set in its published layout to `data`/<name>, replacing what is there once the copy is complete.

    Parameters
    ----------
    path : Path
        A zip file or a folder in the layout of the Kaggle data set.
    data : Path
        The folder of the raw data sets.
    source : str, optional
        The origin to note; by default the file's name and SHA-256, or the folder's name.

    Returns
    -------
    int
        The number of files copied.
    """
    if path.is_dir():
        return _copy(dataset, _folder_entries(path), data, source or f"folder {path.name}", path)
    if not path.exists():
        raise UserError(f"{path}: not found; expected a zip file or a folder with {dataset.title}")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [
                Entry(PurePosixPath(info.filename), info.file_size, partial(archive.open, info))
                for info in archive.infolist()
                if not info.is_dir()
            ]
            return _copy(dataset, entries, data, source or f"{path.name} sha256:{sha256_of(path)}", path)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"{path}: cannot be read as a zip file ({shortened(error)}); nothing was imported, download it again"
        ) from None


def _folder_entries(folder: Path) -> list[Entry]:
    root = folder.resolve()
    entries = []
    for file in files_under(folder):
        if not file.resolve().is_relative_to(root):
            raise UserError(f"{file}: a link that leaves {folder}; nothing was imported")
        entries.append(Entry(PurePosixPath(file.relative_to(folder)), file.stat().st_size, partial(file.open, "rb")))
    return entries


def _copy(dataset: Dataset, entries: Sequence[Entry], data: Path, source: str, path: Path) -> int:
    copied: dict[PurePosixPath, PurePosixPath] = {}
    with atomic_folder(data / dataset.name) as folder:
        for entry in progress(entries, f"importing {dataset.name}"):
            # Only names of the published layout are copied, so that no entry can leave the folder.
            target = dataset.select(entry.path)
            if target is None:
                continue
            if entry.size > MAX_BYTES:
                raise UserError(
                    f"{path}: {entry.path} unpacks to {entry.size:,} bytes; expected an image, at most {MAX_BYTES:,}"
                )
            with entry.open() as reader:
                content = reader.read()
            twin = copied.setdefault(target, entry.path)
            if twin != entry.path and (folder / target).read_bytes() != content:
                raise UserError(
                    f"{path}: {twin} and {entry.path} differ but would become one file; remove the wrong one"
                )
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            (folder / target).write_bytes(content)
        if not copied:
            raise UserError(
                f"{path}: holds nothing of {dataset.title}; expected the layout of Kaggle's {dataset.kaggle}"
            )
        _check_listing(dataset, folder, path)
        write_json(folder / SOURCE_FILE, {"synthetic": False, "source": source})
    return len(copied)


def _check_listing(dataset: Dataset, folder: Path, path: Path) -> None:
    try:
        problems = dataset.read(folder).problems
    except UserError as error:
        problems = [str(error).split(";")[0]]
    if problems:
        first = problems[0].replace(f"{folder}/", "")
        raise UserError(f"{path}: {first} ({counted(len(problems), 'problem')} in all); nothing was imported")


def fetch_dataset(dataset: Dataset, data: Path) -> int:
    """Download a data set from Kaggle and import it; an interrupted download continues."""
    # kagglehub reads the environment and sets up logging when it is imported.
    import kagglehub
    import kagglehub.exceptions
    import requests

    try:
        folder = kagglehub.dataset_download(dataset.kaggle)
    except (
        requests.RequestException,
        kagglehub.exceptions.KaggleApiHTTPError,
        kagglehub.exceptions.DataCorruptionError,
    ) as error:
        raise UserError(
            f"Kaggle's {dataset.kaggle} cannot be downloaded: {shortened(error, 300)}; download it in a browser "
            f"and run `medtransfer data import {dataset.name} FILE`"
        ) from None
    return import_dataset(dataset, Path(folder), data, source=f"kaggle {dataset.kaggle}")
