"""Importing a data set into data/ from a zip file, a folder or Kaggle."""

import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from medtransfer.core.errors import UserError, counted, shortened
from medtransfer.core.files import atomic_file, files_under, partial_beside, replace_folder, sha256_of, write_json
from medtransfer.data.catalogue import IMPORT_IT, SOURCE_FILE, Dataset
from medtransfer.data.images import MAX_BYTES
from medtransfer.data.progress import progress

MAX_ENTRIES = 200_000


@dataclass(frozen=True)
class Entry:
    """A file of the source: its path there, its size in bytes, and functions for its CRC-32 and its content."""

    path: PurePosixPath
    size: int
    crc: Callable[[], int]
    open: Callable[[], Any]


def import_dataset(dataset: Dataset, path: Path, data: Path, source: str | None = None) -> int:
    """Copy a data set to `data`/<name>, replacing what is there, and return its number of files.

    `path` is a zip file or a folder in the layout of the Kaggle data set; `source` is the origin to note, by default
    the file's name and SHA-256, or the folder's name. The copy becomes visible when it is complete. An interrupted
    import continues: files that are already there with the right size and CRC-32 are kept.
    """
    if path.is_dir():
        return _copy(dataset, _folder_entries(path), data, source or f"folder {path.name}", path)
    if not path.exists():
        raise UserError(f"{path}: not found; expected a zip file or a folder with {dataset.title}")
    with path.open("rb") as file:  # given a path, is_zipfile hides missing permissions
        if not zipfile.is_zipfile(file):
            raise UserError(
                f"{path}: neither a folder nor a complete zip file; download it again, or unpack it and give the folder"
            )
        # Counted before zipfile, which needs half a kilobyte of memory per entry, opens it.
        file.seek(0)
        entries = sum(block.count(b"PK\1\2") for block in iter(lambda: file.read(1 << 20), b""))
        _check_count(entries, path)
    with _unpacking(str(path)):
        archive = zipfile.ZipFile(path)
    source = source or f"{path.name} sha256:{sha256_of(path)}"
    with archive:
        return _copy(dataset, _zip_entries(archive, path), data, source, path)


def _copy(dataset: Dataset, entries: Iterator[Entry], data: Path, source: str, path: Path) -> int:
    chosen = _choose(dataset, entries, path)
    staging = partial_beside(data / dataset.name)
    staging.mkdir(parents=True, exist_ok=True)
    needed, free = sum(entry.size for entry in chosen.values()), shutil.disk_usage(staging).free
    if needed > free:
        raise UserError(
            f"{path}: needs {needed / 1e6:.0f} MB, but {staging} has {free / 1e6:.0f} MB free; make room there"
        )
    try:
        _fill(dataset, staging, chosen, path)
    except UserError:
        # Only an interrupted import may leave files behind, to continue from.
        shutil.rmtree(staging)
        raise
    write_json(staging / SOURCE_FILE, {"synthetic": False, "source": source})
    replace_folder(staging, data / dataset.name)
    return len(chosen)


def _fill(dataset: Dataset, staging: Path, chosen: dict[PurePosixPath, Entry], path: Path) -> None:
    for file in files_under(staging):
        if PurePosixPath(file.relative_to(staging).as_posix()) not in chosen:
            file.unlink()
    for target, entry in progress(chosen.items(), f"importing {dataset.name}"):
        _copy_entry(entry, staging / target, path)
    try:
        problems = dataset.read(staging).problems
    except UserError as error:
        message = str(error).replace(f"{staging}/", "").partition(f"; {IMPORT_IT}")[0]
        raise UserError(f"{path}: {message}, in any of its folders; nothing was imported") from None
    if problems:
        first = problems[0].replace(f"{staging}/", "")
        raise UserError(f"{path}: {first} ({counted(len(problems), 'problem')} in all); nothing was imported")


def _choose(dataset: Dataset, entries: Iterator[Entry], path: Path) -> dict[PurePosixPath, Entry]:
    chosen: dict[PurePosixPath, Entry] = {}
    for entry in entries:
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
        raise UserError(f"{path}: no files of {dataset.title}; expected the layout of Kaggle's {dataset.kaggle}")
    return chosen


def _check_count(entries: int, path: Path) -> None:
    if entries > MAX_ENTRIES:
        raise UserError(f"{path}: more than {MAX_ENTRIES:,} entries, which no data set of the study has")


def _copy_entry(entry: Entry, target: Path, path: Path) -> None:
    if target.exists() and target.stat().st_size == entry.size and _crc_of(target) == entry.crc():
        return
    with (
        _unpacking(f"{path}: {entry.path}"),
        entry.open() as reader,
        atomic_file(target) as partial,
        partial.open("wb") as writer,
    ):
        shutil.copyfileobj(reader, writer)


@contextmanager
def _unpacking(what: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{what}: damaged ({error}); nothing was imported, download the zip file again") from None
    except RuntimeError as error:  # it has a password, or a compression that Python lacks
        raise UserError(
            f"{what}: cannot be unpacked here ({error}); unpack the zip file yourself and give the folder"
        ) from None


def _zip_entries(archive: zipfile.ZipFile, path: Path) -> Iterator[Entry]:
    for info in archive.infolist():
        name = PurePosixPath(info.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in "".join(name.parts[:1]):
            raise UserError(f"{path}: entry {info.filename!r} would leave the target folder; nothing was imported")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"{path}: entry {info.filename!r} is a link or a device; nothing was imported")
        if not info.is_dir():
            yield Entry(name, info.file_size, partial(int, info.CRC), partial(archive.open, info))


def _folder_entries(folder: Path) -> Iterator[Entry]:
    root, files = folder.resolve(), files_under(folder)
    _check_count(len(files), folder)
    for file in files:
        if not file.resolve().is_relative_to(root):
            raise UserError(f"{file}: a link to a file outside {folder}; replace it with a copy of that file")
        name = PurePosixPath(file.relative_to(folder).as_posix())
        yield Entry(name, file.stat().st_size, partial(_crc_of, file), partial(file.open, "rb"))


def _crc_of(file: Path) -> int:
    return zlib.crc32(file.read_bytes())


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
