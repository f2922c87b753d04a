"""Fixtures: the project's own params.yaml, shrunk rather than written a second time, and the demo data."""

import gc
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from medtransfer.core.params import Params, TrainParams, read_params
from medtransfer.data.demo import draw_demo

# As `medtransfer` itself does it (cli.main).
gc.set_threshold(100_000)
# A shell starts `make test &` with Ctrl-C ignored, which the processes that the tests interrupt would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

PROJECT = Path(__file__).resolve().parent.parent
SHARED = PROJECT.parent / "shared"
# The collected results that answer the question and those divided as the talk's, relative to the project.
[ANSWER] = re.findall(r"^ANSWER := (.+)$", (PROJECT / "Makefile").read_text(), re.MULTILINE)

# These take minutes: begun last, one of them would run alone at the end.
BEGIN_WITH = ("pipeline", "sweep", "docs", "checkpoints", "training", "devices", "tracking", "jax", "custom")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow files first; `make test` hands files to its processes in this order."""
    names = [f"test_{name}.py" for name in BEGIN_WITH]
    items.sort(key=lambda item: names.index(item.path.name) if item.path.name in names else len(names))


@pytest.fixture(scope="session")
def params() -> Params:
    """The project's own, in a precision that every machine computes in."""
    params = read_params(PROJECT / "params.yaml")
    return params.model_copy(update={"train": params.train.model_copy(update={"precision": "float32"})})


@pytest.fixture(scope="session")
def tiny(params: Params) -> TrainParams:
    """The project's training section with a small head and a short run."""
    return params.train.model_copy(update={"dense_units": [16, 16], "batch_size": 8, "epochs": 2})


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder data/ with both synthetic data sets; tests must not write into it."""
    data = tmp_path_factory.mktemp("demo") / "data"
    draw_demo(data, seed=0)
    return data


@pytest.fixture
def dvc_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project under DVC, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], check=True)
    return tmp_path


@pytest.fixture(scope="session")
def shared_zip() -> dict[str, Path]:
    """The real data sets' archives beside the checkout."""
    folder = SHARED / "datasets"
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not in {folder}")
    return {"ham10000": folder / "ham10000.zip", "chest_xray": folder / "chest_xray.zip"}
