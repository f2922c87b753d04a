"""What all stages import, loaded once by the process from which they are forked (cli/warm.py)."""

import mlflow.keras
import mlflow.pyfunc
import mlflow.sklearn
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

from medtransfer.pipeline import baseline, evaluate, explain, train

__all__ = ["baseline", "evaluate", "explain", "train"]

# Reads the metadata of all installed packages, which MLflow keeps for each model that it logs.
warn_dependency_requirement_mismatches(["mlflow"])
