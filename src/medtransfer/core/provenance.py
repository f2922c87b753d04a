"""The version of the code behind a result."""

import logging
import subprocess
from pathlib import Path

from medtransfer.core.errors import quoted, shortened

UNKNOWN = "unknown"

log = logging.getLogger(__name__)


def git_commit() -> str:
    """Return the commit that is checked out, with `-modified` if tracked files differ from it.

    It is `unknown`, with a warning, if git does not answer.
    """
    try:
        commit = _git("rev-parse", "HEAD")
        # dvc.lock and the reports change while the pipeline runs and do not decide a result.
        changed = _git(
            "status", "--porcelain", "--untracked-files=no", "--", "src", "params.yaml", "dvc.yaml", "data.dvc"
        )
    except OSError as error:
        return _unknown(str(error))
    except subprocess.CalledProcessError as error:
        return _unknown(error.stderr)
    return f"{commit}-modified" if changed else commit


def _unknown(said: str) -> str:
    log.warning("the git commit is recorded as unknown: %s", shortened(said, 400))
    return UNKNOWN


def commit_problem(commit: str) -> str:
    """Return why a commit cannot be found in this repository, or an empty string if it is there."""
    if commit == UNKNOWN:
        return "git could not name it when the fit was made"
    try:
        _git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    except OSError as error:
        return str(error)
    except subprocess.CalledProcessError as error:
        if error.stderr:
            return shortened(error.stderr, 400)
        fetch = "; run `git fetch`, in a shallow clone `git fetch --unshallow`" if _git("remote") else ""
        return f"it is not in this repository{fetch}"
    return ""


def restoring(*paths: Path) -> str:
    """Return how to restore files of the project."""
    them = "it" if len(paths) == 1 else "them"
    if all(map(_is_tracked, paths)):
        return f"restore {them} (`git checkout {quoted(*paths)}`)"
    return f"copy {them} again from where the project came from"


def _is_tracked(path: Path) -> bool:
    try:
        return bool(_git("ls-files", str(path)))
    except (OSError, subprocess.CalledProcessError):
        return False


def in_git() -> bool:
    """Return whether the project is in a git repository; a ZIP of it is not."""
    return any((folder / ".git").exists() for folder in (Path.cwd(), *Path.cwd().parents))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
