"""Files and folders that are written atomically, and their digests."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from medtransfer.core.errors import UserError

PARTIAL = ".partial-"
log = logging.getLogger(__name__)


def partial_beside(target: Path) -> Path:
    """Return the path of a partial `target`: beside it, with a name that .dvcignore lists."""
    return target.with_name(f"{PARTIAL}{target.name}")


def is_partial(path: Path) -> bool:
    """Return whether a file or folder is the partial one of a process that works or was killed."""
    return path.name.startswith(PARTIAL)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `target` by a rename when the block ends without error.

    If another process is writing the same folder, wait until it has ended.
    """
    with _locked(target) as partial:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        try:
            yield partial
            replace_folder(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def hold(lock: Path, busy: str) -> Iterator[None]:
    """Hold a lock file; if another process holds it for longer than a moment, say what that does (`busy`) and wait."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=1)
    except Timeout:
        log.warning("%s; waiting for it", busy)
        held.acquire()
    try:
        yield
    finally:
        held.release()


@contextmanager
def _locked(target: Path) -> Iterator[Path]:
    """Yield the path of a partial `target` that no other process writes.

    An error that names no file, such as that for a full disk, names the target.
    """
    partial = partial_beside(target)
    partial.parent.mkdir(parents=True, exist_ok=True)
    lock = Path(f"{partial}.lock")
    try:
        with hold(lock, f"{target}: another process is writing it"):
            try:
                yield partial
            finally:
                lock.unlink(missing_ok=True)
    except OSError as error:
        error.filename = error.filename or str(target)
        raise


def replace_folder(source: Path, target: Path) -> None:
    """Rename the folder `source` to `target`, replacing an older one."""
    old = target.with_name(f"{PARTIAL}old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def restore_replaced(target: Path) -> None:
    """Put back a folder that a process killed within `replace_folder` had renamed."""
    old = target.with_name(f"{PARTIAL}old-{target.name}")
    if old.exists() and not target.exists():
        old.rename(target)


@contextmanager
def restored_on_error(folder: Path, *files: Path) -> Iterator[None]:
    """Put back a folder's content and files, or their absence, if the block changes them and then ends with an error.

    The folder itself stays: it may be a link, or a mounted one.
    """
    kept = folder.with_name(f"{PARTIAL}kept-{folder.name}")
    contents = {path: path.read_bytes() if path.exists() else None for path in files}
    missing = [path for path in (folder, folder.parent) if not path.exists()]
    shutil.rmtree(kept, ignore_errors=True)  # of a process that was killed
    if not missing:
        _copy_linked(folder, kept)
    try:
        yield
    except BaseException:
        if missing or _listing(folder) != _listing(kept):
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            for path in missing:
                with suppress(OSError):  # an unfinished copy beside the folder stays
                    path.rmdir()
            if not missing:
                _copy_linked(kept, folder)
        for path, content in contents.items():
            path.unlink(missing_ok=True) if content is None else path.write_bytes(content)
        shutil.rmtree(kept, ignore_errors=True)
        raise
    shutil.rmtree(kept, ignore_errors=True)


def _listing(folder: Path) -> dict[Path, tuple[int, int] | None]:
    """Return the size and time of each file under a folder, and None for each folder, by their paths in it."""
    found = {path.relative_to(folder): path.lstat() for path in folder.rglob("*")}
    return {path: None if S_ISDIR(stat.st_mode) else (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def _copy_linked(source: Path, target: Path) -> None:
    """Copy a folder with hard links, or the files where links are impossible, as to another disk."""

    def link(file: str, copy: str) -> None:
        try:
            os.link(file, copy)
        except OSError:
            shutil.copy2(file, copy)

    shutil.copytree(source, target, symlinks=True, copy_function=link, dirs_exist_ok=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a path beside `target`, or the file that it links to, and rename it to that at the end if all went well.

    If another process is writing the same file, wait until it has ended.
    """
    target = target.resolve()
    with _locked(target) as partial:
        try:
            yield partial
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def files_under(folder: Path) -> list[Path]:
    """Return the files under a folder, sorted; unlike with Path.rglob, an unreadable or linked folder is an error.

    So is a link to a missing file, unless it is hidden, as Emacs makes them.
    """

    def refuse(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        linked = [path for path in (Path(parent, name) for name in sorted(folders)) if path.is_symlink()]
        if linked:
            raise UserError(f"{linked[0]}: a link to a folder; expected a folder, so copy it there")
        paths = [Path(parent, name) for name in names]
        for path in paths:
            if path.is_symlink() and not path.exists() and not path.name.startswith("."):
                raise UserError(
                    f"{path}: a link to a missing file; get that file (try `dvc checkout`) or remove the link"
                )
        found += [path for path in paths if path.is_file()]
    return sorted(found)


def write_array_header(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Start a .npy file to which rows are then appended: unlike with a memory map, a full disk raises an error."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def user_cache() -> Path:
    """Return the folder for caches that the user's projects share."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (folder if folder.is_absolute() else Path.home() / ".cache") / "medtransfer"  # as the XDG standard says


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: Path, keys: Collection[str], remedy: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    A missing file raises FileNotFoundError. One that is not a JSON object, or lacks one of the keys, raises a UserError
    that ends with `remedy`.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); {remedy}") from None
    for key in keys:
        if not isinstance(found, dict) or key not in found:
            raise UserError(f"{path}: has no {key}; {remedy}")
    return dict(found)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_folder(folder: Path) -> str:
    """Return the SHA-256 over the names and digests of all files under a folder."""
    lines = [f"{path.relative_to(folder)} {sha256_of(path)}\n" for path in sorted(folder.rglob("*")) if path.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
