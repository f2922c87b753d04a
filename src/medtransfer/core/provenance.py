"""The version of the code behind a result."""

import subprocess


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
