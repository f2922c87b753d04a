"""The feature cache: a frozen prefix's output for every image of a data set, computed once.

An entry is a folder in the user's cache, named by the digest of what decides its content: `features.npy`,
memory-mapped by every fit with the same prefix, and `made_from.json`.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from filelock import FileLock, Timeout
from rich.filesize import decimal

from medtransfer.core.files import hold, sha256_of, user_cache, write_array_header, write_json

log = logging.getLogger(__name__)

GB = 10**9
DTYPES = {"float32": np.dtype(np.float32), "mixed_bfloat16": np.dtype(ml_dtypes.bfloat16)}
# Left free on the disk in addition to what is written.
SPARE_BYTES = GB
# The suffix of a file that says why the entry of that name is not computed.
NOT_CACHED = ".not-cached"


def cache_folder() -> Path:
    """Return the folder of all entries."""
    return user_cache() / "features"


def entries() -> list[dict[str, Any]]:
    """Return every entry, least recently used first: path, bytes, last_used, made_from.

    made_from is None if the entry is incomplete or a power cut made it unreadable.
    """
    found = []
    for array in cache_folder().glob("*/features.npy"):
        record = array.with_name("made_from.json")
        with suppress(FileNotFoundError):  # another process may have removed it
            entry = {
                "path": array.parent,
                "bytes": array.stat().st_size,
                "last_used": (record if record.exists() else array).stat().st_mtime,
                "made_from": _read_made_from(array.parent),
            }
            found.append(entry)
    return sorted(found, key=lambda entry: entry["last_used"])


def _read_made_from(folder: Path) -> Any:
    try:
        return json.loads((folder / "made_from.json").read_text())
    except (FileNotFoundError, ValueError):
        return None


def clear() -> int:
    """Remove every entry that no process is filling; return the bytes freed."""
    for path in cache_folder().glob(f"*{NOT_CACHED}"):
        path.unlink()
    return sum(entry["bytes"] for entry in entries() if _remove(entry["path"]))


def _remove(folder: Path) -> bool:
    """Remove an entry; return False if another process holds it. A process that has it mapped can still read it."""
    try:
        with FileLock(folder.with_suffix(".lock"), timeout=0), suppress(FileNotFoundError):  # as in `entries`
            shutil.rmtree(folder)
    except Timeout:
        return False
    return True


def cached_features(
    made_from: Mapping[str, Any],
    shape: tuple[int, ...],
    compute: Callable[[int], Iterator[np.ndarray]],
    max_bytes: float,
    objection: Callable[[], str] = str,
) -> tuple[np.ndarray | None, float | None]:
    """Return the memory-mapped features for `made_from`; compute them if they are not cached.

    An interrupted computation resumes where it stopped. A second process that needs the same features waits.

    Parameters
    ----------
    made_from : mapping
        Everything that decides the features, including `precision`; its digest names the entry.
    shape : tuple of int
        (images, h, w, channels)
    compute : callable
        Given a row, yields the features from that row on, batch by batch.
    max_bytes : float
        The largest size of the whole cache; the least recently used entries are removed first.
    objection : callable
        Called if the features are not cached yet; returns a reason not to cache them, or an empty string. The reason
        is stored, since the same fit must decide the same way when it resumes.

    Returns
    -------
    ndarray of `shape`, float32 or bfloat16, or None
        None if there is an objection, or `max_bytes` or the disk is too small; the log says so.
    float or None
        The seconds that an earlier run took to compute them: 0 if this run did or there are none, None if unknown.
    """
    dtype = DTYPES[made_from["precision"]]
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / key
    cache_folder().mkdir(parents=True, exist_ok=True)
    with hold(folder.with_suffix(".lock"), f"{folder}: another process is computing these features"):
        if earlier := _is_whole(folder):
            log.info("features: %s from %s", made_from["prefix"], folder)
        elif reason := _add(folder, made_from, shape, compute, max_bytes, objection):
            log.info("features: %s, so the prefix is computed in every epoch", reason)
            return None, 0.0
        os.utime(folder / "made_from.json")
        seconds = _read_made_from(folder)["seconds"]
        # NumPy's file format has no bfloat16 and returns two plain bytes.
        features = np.load(folder / "features.npy", mmap_mode="r").view(dtype)
    return features, seconds if earlier or seconds is None else 0.0


def _add(
    folder: Path,
    made_from: Mapping[str, Any],
    shape: tuple[int, ...],
    compute: Callable[[int], Iterator[np.ndarray]],
    max_bytes: float,
    objection: Callable[[], str],
) -> str:
    """Compute an entry, whose seconds are None if it was resumed; return why it cannot be stored, or ''."""
    dtype, begin = DTYPES[made_from["precision"]], time.perf_counter()
    size = math.prod(shape) * dtype.itemsize
    try:
        if reason := _keep_reason(folder, objection) or _make_room(size, max_bytes, folder):
            return reason
        log.info("features: computing %s for %d images, %s", made_from["prefix"], shape[0], decimal(size))
        resumed = _fill(folder, shape, dtype, compute)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        return str(error)
    seconds = None if resumed else time.perf_counter() - begin
    digest = sha256_of(folder / "features.npy")
    write_json(folder / "made_from.json", {**made_from, "sha256": digest, "seconds": seconds})
    return ""


def _keep_reason(folder: Path, objection: Callable[[], str]) -> str:
    kept = folder.with_suffix(NOT_CACHED)
    if not kept.exists() and (reason := objection()):
        kept.write_text(reason)
    return kept.read_text() if kept.exists() else ""


def _is_whole(folder: Path) -> bool:
    """Return whether an entry is complete; remove a damaged one."""
    if not (folder / "made_from.json").exists():
        return False
    made_from = _read_made_from(folder)
    if made_from and (folder / "features.npy").exists() and made_from["sha256"] == sha256_of(folder / "features.npy"):
        return True
    log.warning("features: %s is damaged and must be recomputed", folder)
    shutil.rmtree(folder)
    return False


def _make_room(size: int, max_bytes: float, folder: Path) -> str:
    """Remove entries until `size` bytes fit; return the reason if that is not possible, else an empty string."""
    if size > max_bytes:
        return f"they take {decimal(size)} and cache.max_gb is {max_bytes / GB:g}"
    others = [entry for entry in entries() if entry["path"] != folder]
    held = sum(entry["bytes"] for entry in others)
    for entry in others:
        if held + size > max_bytes and _remove(entry["path"]):
            held -= entry["bytes"]
    if held + size > max_bytes:
        return f"other runs are filling {decimal(held)} of the {max_bytes / GB:g} GB of cache.max_gb"
    started = folder / "features.npy"
    missing = size - (started.stat().st_size if started.exists() else 0)
    free = shutil.disk_usage(cache_folder()).free
    if missing + SPARE_BYTES > free:
        return f"they take {decimal(size)} and {cache_folder()} has {decimal(free)} free"
    return ""


def _fill(
    folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any], compute: Callable[[int], Iterator[np.ndarray]]
) -> bool:
    """Write features.npy, or append to an interrupted one; return whether there was one."""
    folder.mkdir(exist_ok=True)
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    with (folder / "features.npy").open("a+b") as file:
        if file.tell() == 0:
            write_array_header(file, np.dtype(dtype.str), shape)
        file.seek(0)
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        start, size = file.tell(), file.seek(0, os.SEEK_END)
        rows = (size - start) // row_bytes
        file.truncate(start + rows * row_bytes)
        for batch in compute(rows):
            file.write(batch.astype(dtype, copy=False).tobytes())
            file.flush()
        os.fsync(file.fileno())
    return bool(rows)
