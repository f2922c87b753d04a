"""Checks against what DVC recorded.

DVC silently checks out a damaged object of its cache and calls it up to date. So every stage hashes its inputs and
compares them with dvc.lock.
"""

import hashlib
import json
import logging
import os
import re
import subprocess
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from medtransfer.core.errors import CONFLICT, UserError, first_three, merge_conflict, quoted, shortened
from medtransfer.core.files import PARTIAL, files_under
from medtransfer.core.layout import DATA, PARAMS
from medtransfer.core.params import Params, read_params, value_of
from medtransfer.core.provenance import restoring

log = logging.getLogger(__name__)

LOCK = Path("dvc.lock")
PIPELINE = Path("dvc.yaml")
POINTER = Path("data.dvc")
IMPORTED = Path(".dvc/tmp/imported.dvc")  # data.dvc as an import left it
RWLOCK = Path(".dvc/tmp/rwlock")
DVC_LOCK = Path(".dvc/tmp/lock")
DEMONSTRATION = Path(".dvc/embedded/data.dvc")  # what data.dvc is for the data in the remote `embedded`
MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


def check_unchanged(folder: Path, apart_from: str = "") -> None:
    """Compare a folder, apart from one folder within it, with its record in dvc.lock, or data/ with data.dvc.

    Without a record, as when a stage runs outside `dvc repro`, nothing is compared.
    """
    recorded = recorded_digest(folder)
    if recorded is None or recorded == digest_of(folder):
        return
    found = _file_digests(folder)
    where = POINTER if folder == DATA else LOCK
    if not found:
        raise UserError(f"{folder}: not found, but {where} names it; {_how_to_get(folder)}")
    listed = _listed(recorded)
    differing = sorted(name for name in found.keys() | listed.keys() if listed and found.get(name) != listed.get(name))
    if apart_from and listed:
        differing = [name for name in differing if not name.startswith(f"{apart_from}/")]
        if not differing:
            return
    names = f": {first_three(differing)}" if differing else ""
    raise UserError(
        f"{folder}: differs from {where} ({recorded}){names}; it was damaged or changed on disk; "
        f"{_remedy(folder, differing, listed)}"
    )


def _how_to_get(folder: Path) -> str:
    if folder == DATA:
        return f"run `dvc pull {POINTER}`"
    if DATA.exists():
        return "run `dvc repro`"
    return f"run `dvc pull` if a remote has it, or else `dvc pull {POINTER}` and then `dvc repro`"


def _remedy(folder: Path, differing: list[str], listed: dict[str, str]) -> str:
    """Return how to restore what DVC recorded: from its cache or, if that is also damaged, by making it again."""
    bad = [name for name in differing if name in listed and not _is_whole(listed[name])]
    whole = bool(listed) and not bad
    objects = [_cached(listed[name]) for name in bad]
    new = first_three([str(folder / name) for name in differing if name not in listed])
    move = f"move {new} away, which DVC would delete, and " if new else ""
    if folder == DATA:
        places = quoted(*(folder / name for name in bad), *objects) or str(DATA)
        undo = f"`dvc checkout --force {POINTER}`" if whole else f"`dvc pull {POINTER}` after moving {places} away"
        return f"`dvc add {DATA}` keeps a change; to undo it, {move}run {undo}"
    if whole:
        return f"DVC's cache has the original: {move}run `dvc checkout --force {quoted(folder)}`"
    return f"remove {quoted(folder, *objects)} and run `dvc repro`"


def _is_whole(md5: str) -> bool:
    """Return whether DVC's cache has the file with this hash, undamaged."""
    return _cached(md5).is_file() and _md5_of(_cached(md5)) == md5


def warn_of_another_version() -> None:
    """Warn if data.dvc differs from the last commit and the last import.

    `dvc repro` records any change in data/ as a new version, damage included.
    """
    committed = _committed_pointer()
    imported = IMPORTED.read_text() if IMPORTED.exists() else ""
    if committed and POINTER.exists() and POINTER.read_text() not in (committed, imported):
        log.warning(
            "%s: its data differ from those of the last commit. If you changed them, `git commit %s` keeps the change; "
            "if not, they are damaged, and `git checkout HEAD %s && dvc checkout --force %s` restores them",
            *[POINTER] * 4,
        )


def same_data(name: str, one: str, other: str) -> bool:
    """Return whether two versions of data/ have the same files in data/`name`; False if DVC's cache lacks one."""
    if one == other:
        return True
    first, second = (
        {path: md5 for path, md5 in _listed(version).items() if path.startswith(f"{name}/")} for version in (one, other)
    )
    return bool(first) and first == second


def may_have(name: str) -> bool:
    """Return whether data.dvc may have files in data/`name`; True if its list of files is not in DVC's cache."""
    listed = _listed(recorded_digest(DATA) or "")
    return not listed or any(path.startswith(f"{name}/") for path in listed)


def check_replaceable() -> None:
    """Check that a commit names the version of the data in data/, so that it can be found in DVC's cache later."""
    if DATA.is_dir():
        check_unchanged(DATA)
    committed = _committed_pointer()
    if POINTER.exists() and POINTER.read_text() not in (committed, DEMONSTRATION.read_text()):
        keep = f"keep it (`git add {POINTER} && git commit --message Data {POINTER}`)"
        discard = f" or discard it (`git checkout HEAD {POINTER}`)" if committed else ""
        raise UserError(f"{POINTER}: this version of the data has not been committed; {keep}{discard}, then run again")


def _committed_pointer() -> str:
    """Return the last commit's data.dvc, or an empty string."""
    try:
        shown = subprocess.run(["git", "show", f"HEAD:./{POINTER}"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return shown.stdout


def check_writable() -> None:
    """Check that DVC can lock the project, as it does even to compare files."""
    folder = DVC_LOCK.parents[1]
    if folder.exists() and not os.access(folder, os.W_OK):
        raise UserError(f"{Path.cwd()}: read-only, but DVC must write a lock there; use a writable copy")


def check_params_unchanged(params: Params, *keys: str) -> None:
    """Check that params.yaml still has the values with which a stage started.

    DVC records in dvc.lock the values that the file has when the stage ends. A key is a section or a dotted name.
    """
    for key in keys:
        given, found = (value_of(values.model_dump(), key) for values in (params, read_params(PARAMS)))
        if given != found:
            while isinstance(given, dict) and isinstance(found, dict):
                part = min(name for name in given | found if given.get(name) != found.get(name))
                key, given, found = f"{key}.{part}", given.get(part), found.get(part)
            raise UserError(
                f"{PARAMS}: {key}: changed from {given} to {found} while the stage ran; its outputs belong to the old "
                "value, but DVC would record the new one; run `dvc repro` again"
            )


def read_lock() -> dict[str, Any]:
    """Return the stages of dvc.lock by name.

    A truncated file is refused. A cut between two complete outputs of one stage goes unnoticed, but only `evaluate` has
    several, and no stage reads them.
    """
    if not LOCK.exists():
        return {}
    try:
        lock = _parse(_locked_text())
        _require(lock, "schema")
        stages: dict[str, Any] = lock.get("stages", {})
        for stage in stages.values():
            _require(stage, "cmd", "outs")
            for entry in (*stage.get("deps", []), *stage["outs"]):
                _check_entry(entry)
    except (YAMLError, UnicodeDecodeError, ValueError, TypeError, AttributeError):
        raise _unreadable(LOCK, "run `dvc repro`; finished stages come from DVC's cache") from None
    return stages


def _locked_text() -> str:
    """Return the text of dvc.lock, which a second `dvc repro` writes in place while it holds DVC's lock."""
    if not os.access(DVC_LOCK.parent, os.W_OK):
        return LOCK.read_text()
    try:
        with FileLock(DVC_LOCK, timeout=1):
            return LOCK.read_text()
    except Timeout:  # `dvc exp run --run-all`, for example, holds it until its queue is empty
        text, before = LOCK.read_text(), None
        while text != before:  # an unchanged text is not being written
            time.sleep(0.5)
            text, before = LOCK.read_text(), text
        return text


def _unreadable(path: Path, then: str) -> UserError:
    """Return the error for a file of DVC that is truncated or has a merge conflict."""
    if CONFLICT.encode() in path.read_bytes():
        return merge_conflict(path, then)
    return UserError(f"{path}: empty or truncated; {restoring(path)}, then {then}")


def _require(values: Any, *keys: str) -> None:
    for key in keys:
        if not isinstance(values, dict) or not values.get(key):
            raise ValueError(f"it has no {key}")


def _check_entry(entry: Any) -> None:
    """Check that DVC's record of a file or folder is complete."""
    _require(entry, "path", "md5")
    if not MD5.fullmatch(entry["md5"]) or "size" not in entry or ("nfiles" in entry) != entry["md5"].endswith(".dir"):
        raise ValueError("the record of a file is truncated")


@lru_cache(maxsize=2)
def _parse(text: str) -> Any:
    """Parse a whole YAML file, only once for all folders that a stage compares."""
    if not text.endswith("\n"):
        raise ValueError("its last line is truncated")
    return YAML(typ="safe").load(text)


def recorded_digest(folder: Path) -> str | None:
    """Return the hash that DVC recorded for a folder, or None if it recorded none."""
    if folder == DATA:
        return _pointed() if POINTER.exists() else None
    outs = {out["path"]: out["md5"] for stage in read_lock().values() for out in stage["outs"]}
    return outs.get(folder.as_posix())


def used_digest(output: Path, folder: Path) -> str | None:
    """Return the hash that a folder had when DVC's stage made `output` from it, or None without a record."""
    for stage in read_lock().values():
        if output.as_posix() in [out["path"] for out in stage["outs"]]:
            return {dep["path"]: dep["md5"] for dep in stage.get("deps", [])}.get(folder.as_posix())
    return None


def _pointed() -> str:
    try:
        (entry,) = _parse(POINTER.read_text())["outs"]
        _check_entry(entry)
    except (YAMLError, UnicodeDecodeError, ValueError, TypeError, KeyError):
        raise _unreadable(POINTER, f"run `dvc checkout {POINTER}`") from None
    return str(entry["md5"])


def digest_of(folder: Path) -> str:
    """Return a folder's hash as DVC computes it: the MD5 of the JSON list of its files."""
    listing = [{"md5": md5, "relpath": name} for name, md5 in sorted(_file_digests(folder).items())]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def data_version() -> str:
    """Return DVC's hash of data/, the version of the raw data sets."""
    return recorded_digest(DATA) or "unknown"


def _file_digests(folder: Path) -> dict[str, str]:
    """Return the MD5 of each finished file under a folder, by its path in the folder."""
    paths = [path for path in files_under(folder) if not any(part.startswith(PARTIAL) for part in path.parts)]
    return {path.relative_to(folder).as_posix(): _md5_of(path) for path in paths}


def _md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def is_stored(recorded: str) -> bool:
    """Return whether DVC's cache has a recorded folder with all its files.

    DVC reports success where it could not copy files into its cache, for example because the disk is full.
    """
    listed = _listed(recorded)
    return bool(listed) and all(_cached(md5).is_file() for md5 in listed.values())


def only_not_stored(changes: list[Any]) -> bool:
    """Return whether a stage's entry of `dvc status` says only that DVC's cache lacks outputs that are whole here."""
    outs: dict[str, str] = {}
    for change in changes:
        if not isinstance(change, dict) or set(change) != {"changed outs"}:
            return False
        outs |= change["changed outs"]
    return set(outs.values()) == {"not in cache"} and all(is_as_recorded(Path(path)) for path in outs)


def is_as_recorded(path: Path) -> bool:
    """Return whether a file or folder is what DVC recorded."""
    if path.is_file():
        return recorded_digest(path) == _md5_of(path)
    return path.is_dir() and recorded_digest(path) == digest_of(path)


def _cached(md5: str) -> Path:
    usual, name = Path(".dvc/cache/files/md5"), Path(md5[:2], md5[2:])
    return usual / name if (usual / name).exists() else cache_folder(Path.cwd()) / name


@lru_cache(maxsize=1)
def cache_folder(project: Path) -> Path:
    """Return the folder of the project's DVC cache, which several projects may share; importing DVC takes a second."""
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        with Repo(project) as repo:
            folder = Path(repo.cache.local.path)
    except (NotDvcRepoError, SCMError):  # no .dvc, or no .git
        return Path(".dvc/cache/files/md5")
    except DvcException as error:
        raise UserError(f"dvc: {shortened(error)}") from None
    return folder.relative_to(project) if folder.is_relative_to(project) else folder


def _listed(recorded: str) -> dict[str, str]:
    """Return DVC's own list of a folder's files; empty if its cache does not have it."""
    try:
        return {entry["relpath"]: entry["md5"] for entry in json.loads(_cached(recorded).read_text())}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
