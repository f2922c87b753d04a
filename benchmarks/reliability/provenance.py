"""What a figure was measured with; it stands beside the figure."""

import importlib.metadata
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from medtransfer.core.provenance import git_commit
from medtransfer.training.device import device_name

STUDY = ("dvc", "jax", "keras", "mlflow", "scikit-learn", "tensorflow")


def made_by(packages: Sequence[str] = STUDY) -> dict[str, Any]:
    """Return the command, date, commit, packages' versions and machine, and how busy that was before."""
    return {
        "command": shlex.join(["python", str(Path(sys.argv[0])), *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "commit": git_commit(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "device": device_name(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
    }
