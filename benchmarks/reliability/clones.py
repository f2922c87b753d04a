"""A copy of the project as git would clone it, with the changes that are not committed yet, to run and to harm."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

EMPTY_LOCK = "schema: '2.0'\n"  # as it is committed
PROJECT = Path(__file__).resolve().parents[2]


def clone(target: Path, changes: dict[str, Any]) -> Path:
    """Copy the project, merge `changes` into its params.yaml, and forget what its dvc.lock knew."""
    listed = run(PROJECT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in listed:
        if (PROJECT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, target / name)
    (target / "dvc.lock").write_text(EMPTY_LOCK)
    run(target, "git", "init", "--quiet")
    change_params(target, changes)
    return target


def change_params(folder: Path, changes: dict[str, Any]) -> None:
    """Merge nested values into the clone's params.yaml."""
    yaml = YAML()
    params = yaml.load((folder / "params.yaml").read_text())
    _merge(params, changes)
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(params, file)


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def environment(folder: Path) -> dict[str, str]:
    """Return the environment in which the clone's own code runs, not the one that is installed."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    env |= {"PYTHONPATH": str(folder / "src"), "GIT_CONFIG_GLOBAL": "/dev/null", "MLFLOW_DISABLE_TELEMETRY": "true"}
    env.pop("MLFLOW_TRACKING_URI", None)
    return env


def run(folder: Path, *command: str, code: int = 0) -> str:
    """Run a command in the clone and return what it printed; anything but the exit code `code` is an error."""
    result = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=900)
    assert result.returncode == code, f"{command}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def dvc(folder: Path, *arguments: str) -> str:
    """Run DVC in the clone."""
    return run(folder, sys.executable, "-m", "dvc", *arguments)
