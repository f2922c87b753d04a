"""Bringing a data set into data/: from a zip, from a folder, or from Kaggle."""

import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from rich.progress import track

from medtransfer.core.errors import UserError, counted, shortened
from medtransfer.core.files import atomic_file, files_under, partial_beside, replace_folder, sha256_of, write_json
from medtransfer.data.catalogue import IMPORT_IT, SOURCE_FILE, Dataset

MAX_ENTRIES = 200_000
MAX_BYTES = 500_000_000  # of one file, unpacked


@dataclass(frozen=True)
class Entry:
    """A file of the source: its path there, its size in bytes, its CRC-32 and how to open it."""

    path: PurePosixPath
    size: int
    crc: Callable[[], int]
    open: Callable[[], IO[bytes]]


def import_dataset(dataset: Dataset, path: Path, data: Path, source: str | None = None) -> int:
    """Copy a data set in its published layout to `data`/<name>, in place of what is there.

    The copy is made in a folder of its own and renamed when it is whole. An import that was
    interrupted goes on: files that are already there with the right size and CRC-32 are kept.

    Parameters
    ----------
    path : Path
        A zip file or a folder in the layout of the Kaggle data set.
    data : Path
        The folder of the raw data sets.
    source : str, optional
        What to note as the origin; the file's name and SHA-256, or the folder's name by default.

    Returns
    -------
    int
        The number of files copied or kept.

    Raises
    ------
    UserError
        `path` is missing, damaged, holds entries that leave the target folder, or no such data set.
    """
    if path.is_dir():
        return _copy(dataset, _folder_entries(path), data, source or f"folder {path.name}", path)
    if not path.exists():
        raise UserError(f"{path}: not found; expected a zip file or a folder with {dataset.title}")
    with path.open("rb") as file:  # given a path, is_zipfile says no where the right to read is missing
        if not zipfile.is_zipfile(file):
            raise UserError(f"{path}: neither a folder nor a whole zip file; download it again")
        _refuse_many_entries(dataset, _count_entries(file), path)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{path}: a damaged zip file ({error}); nothing was imported, download it again") from None
    with archive:
        return _copy(
            dataset, _zip_entries(archive, path), data, source or f"{path.name} sha256:{sha256_of(path)}", path
        )


def _copy(dataset: Dataset, entries: Iterator[Entry], data: Path, source: str, path: Path) -> int:
    chosen = _choose(dataset, entries, path)
    staging = partial_beside(data / dataset.name)
    staging.mkdir(parents=True, exist_ok=True)
    _refuse_full_disk(staging, sum(entry.size for entry in chosen.values()))
    try:
        _fill(dataset, staging, chosen, path)
    except UserError:
        # A refused source leaves nothing; an import that was interrupted leaves what it has and goes on from there.
        shutil.rmtree(staging)
        raise
    write_json(staging / SOURCE_FILE, {"synthetic": False, "source": source})
    replace_folder(staging, data / dataset.name)
    return len(chosen)


def _fill(dataset: Dataset, staging: Path, chosen: dict[PurePosixPath, Entry], path: Path) -> None:
    for stale in [file for file in staging.rglob("*") if file.is_file()]:
        if PurePosixPath(stale.relative_to(staging).as_posix()) not in chosen:
            stale.unlink()
    for target, entry in track(
        chosen.items(), f"importing {dataset.name}", transient=True, disable=not sys.stdout.isatty()
    ):
        _copy_entry(entry, staging / target, path)
    try:
        problems = dataset.read(staging).problems
    except UserError as error:
        told = str(error).replace(f"{staging}/", "").replace(f"; {IMPORT_IT}", "")
        raise UserError(f"{path}: {told}; nothing was imported") from None
    if problems:
        first = problems[0].replace(f"{staging}/", "")
        raise UserError(f"{path}: {first} ({counted(len(problems), 'problem')} in all); nothing was imported")


def _choose(dataset: Dataset, entries: Iterator[Entry], path: Path) -> dict[PurePosixPath, Entry]:
    chosen: dict[PurePosixPath, Entry] = {}
    for number, entry in enumerate(entries):
        _refuse_many_entries(dataset, number + 1, path)
        target = dataset.select(entry.path)
        if target is None:
            continue
        if entry.size > MAX_BYTES:
            raise UserError(
                f"{path}: {entry.path} unpacks to {entry.size:,} bytes; expected an image, at most {MAX_BYTES:,}"
            )
        twin = chosen.setdefault(target, entry)
        if twin is not entry and (twin.size, twin.crc()) != (entry.size, entry.crc()):
            raise UserError(
                f"{path}: {twin.path} and {entry.path} differ but would become one file; remove the wrong one"
            )
    if not chosen:
        raise UserError(f"{path}: holds nothing of {dataset.title}; expected the layout of Kaggle's {dataset.kaggle}")
    return chosen


def _refuse_many_entries(dataset: Dataset, entries: int, path: Path) -> None:
    if entries > MAX_ENTRIES:
        raise UserError(
            f"{path}: more than {MAX_ENTRIES:,} entries; expected {dataset.images:,} images, so no {dataset.title}"
        )


def _count_entries(file: IO[bytes]) -> int:
    """Count the entries in a zip's directory; zipfile needs half a kilobyte of memory for each when it opens it."""
    file.seek(0)
    return sum(block.count(b"PK\1\2") for block in iter(lambda: file.read(1 << 20), b""))


def _copy_entry(entry: Entry, target: Path, path: Path) -> None:
    if target.exists() and target.stat().st_size == entry.size and _crc_of(target) == entry.crc():
        return
    try:
        with entry.open() as reader, atomic_file(target) as partial, partial.open("wb") as writer:
            shutil.copyfileobj(reader, writer)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{path}: {entry.path} is damaged ({error}); nothing was imported, download it again") from None


def _zip_entries(archive: zipfile.ZipFile, path: Path) -> Iterator[Entry]:
    for info in archive.infolist():
        name = PurePosixPath(info.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in "".join(name.parts[:1]):
            raise UserError(f"{path}: entry {info.filename!r} would leave the target folder; nothing was imported")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"{path}: entry {info.filename!r} is a link or a device; nothing was imported")
        if not info.is_dir():
            yield Entry(
                name,
                info.file_size,
                lambda info=info: info.CRC,  # type: ignore[misc]
                lambda info=info: archive.open(info),  # type: ignore[misc]
            )


def _folder_entries(folder: Path) -> Iterator[Entry]:
    root = folder.resolve()
    for file in files_under(folder):
        if not file.resolve().is_relative_to(root):
            raise UserError(f"{file}: a link that leaves {folder}; nothing was imported")
        yield Entry(
            PurePosixPath(file.relative_to(folder).as_posix()),
            file.stat().st_size,
            lambda file=file: _crc_of(file),  # type: ignore[misc]
            lambda file=file: file.open("rb"),  # type: ignore[misc]
        )


def _crc_of(file: Path) -> int:
    crc = 0
    with file.open("rb") as reader:
        while block := reader.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def _refuse_full_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{folder}: {needed / 1e6:.0f} MB needed but {free / 1e6:.0f} MB free; make room on this disk")


def fetch_dataset(dataset: Dataset, data: Path) -> int:
    """Download a data set from Kaggle (an interrupted download goes on) and import it.

    Raises
    ------
    UserError
        Kaggle cannot be reached or refuses.
    """
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
