"""The versions of the code and data behind a result."""

import subprocess
from pathlib import Path

from ruamel.yaml import YAML


def git_commit() -> str:
    """Return the commit that is checked out, with `-modified` if tracked files differ from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        # dvc.lock and the reports change while the pipeline runs and do not decide a result.
        changed = _git(
            "status", "--porcelain", "--untracked-files=no", "--", "src", "params.yaml", "dvc.yaml", "data.dvc"
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-modified" if changed else commit


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def data_version(pointer: Path = Path("data.dvc")) -> str:
    """Return DVC's hash of data/, the version of the raw data sets."""
    try:
        return str(YAML(typ="safe").load(pointer.read_text())["outs"][0]["md5"])
    except (OSError, KeyError, IndexError, TypeError):
        return "unknown"
