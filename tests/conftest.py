"""Fixtures: the project's own params.yaml, shrunk rather than written a second time, and the demo data."""

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from drawn import draw_data
from medtransfer.core.files import atomic_folder
from medtransfer.core.params import Params, read_params
from medtransfer.core.recipe import TrainParams

# As `medtransfer` itself does it (cli.main).
gc.set_threshold(100_000)
# A shell starts `make test &` with Ctrl-C ignored, which the processes that the tests interrupt would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

PROJECT = Path(__file__).resolve().parent.parent
SHARED = PROJECT.parent / "shared"
# DVC that cannot write files of more than 1 MB, as if the disk of its cache were full.
DVC_ON_A_FULL_DISK = ("sh", "-c", 'ulimit -S -f 2048; exec "$0" -m dvc "$@"', sys.executable)
# The collected results that answer the question and those divided as the talk's, relative to the project.
[ANSWER] = re.findall(r"^ANSWER := (.+)$", (PROJECT / "Makefile").read_text(), re.MULTILINE)
AT_64_PX = "results/real-64px-by-group"

# The slowest files: if one of them began last, it would run by itself at the end.
BEGIN_WITH = (
    "pipeline", "jax", "serving", "tracking", "tune", "docs", "custom", "study", "bucket", "training", "audit",
    "bad_input", "checkpoints", "sweep",
)  # fmt: skip

# Options that keep Chromium from contacting other servers.
QUIET = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow files first; `make test` hands files to its processes in this order."""
    names = [f"test_{name}.py" for name in BEGIN_WITH]
    items.sort(key=lambda item: names.index(item.path.name) if item.path.name in names else len(names))


def pytest_runtest_setup() -> None:
    """Exclude what is already loaded from later garbage collections; Keras runs one after every network."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def params() -> Params:
    """The project's own, in a precision that every machine computes in."""
    params = read_params(PROJECT / "params.yaml")
    return params.model_copy(update={"train": params.train.model_copy(update={"precision": "float32"})})


@pytest.fixture(scope="session")
def tiny(params: Params) -> TrainParams:
    """The project's training section with a small head and a short run."""
    return params.train.model_copy(update={"dense_units": [16, 16], "batch_size": 8, "epochs": 2})


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that is made once for all of pytest's processes; tests must not write into it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with atomic_folder(folder) as partial:
                make(partial)
    return folder


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder data/ with both synthetic data sets; tests must not write into it."""
    return make_once(tmp_path_factory, "demo", lambda folder: draw_data(folder, seed=0))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, demo: Path, params: Params) -> Path:
    """The prepared synthetic chest X-rays; tests must not write into it."""
    from medtransfer.data.catalogue import CHEST_XRAY
    from medtransfer.data.preparation import prepare_dataset

    def prepare(folder: Path) -> None:
        prepare_dataset(CHEST_XRAY, demo / "chest_xray", params.datasets["chest_xray"], folder)

    return make_once(tmp_path_factory, "prepared", prepare)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without a run. Copying it saves the second that MLflow takes to make the tables of a new one."""
    from medtransfer.tracking import mlflow_store

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
            mlflow_store.connect()

    return make_once(tmp_path_factory, "empty_store", make) / "mlflow.db"


def use_store(folder: Path, empty_store: Path, patch: pytest.MonkeyPatch) -> None:
    """Make a folder the working directory and give it a new MLflow store, which MLFLOW_TRACKING_URI names."""
    (folder / "mlruns").mkdir()
    shutil.copy(empty_store, folder / "mlruns" / "mlflow.db")
    patch.chdir(folder)
    # MLflow keeps the store of a relative address open when the working directory changes.
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlruns/mlflow.db")


# Layers and channels of VGG16's blocks, with an eighth of its channels.
NARROW_BLOCKS = ((2, 8), (2, 16), (3, 32), (3, 64), (3, 64))


def narrow_vgg16(include_top: bool, weights: None, input_tensor: Any) -> Any:
    """Keras's VGG16 with NARROW_BLOCKS."""
    import keras

    x = input_tensor
    for block, (layers, channels) in enumerate(NARROW_BLOCKS, start=1):
        for number in range(1, layers + 1):
            name = f"block{block}_conv{number}"
            x = keras.layers.Conv2D(channels, 3, activation="relu", padding="same", name=name)(x)
        x = keras.layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x)


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """Every VGG16 that is built here has an eighth of its channels: for tests that need no ImageNet weights."""
    import keras

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.applications, "VGG16", narrow_vgg16)
        yield


@pytest.fixture
def dvc_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project under DVC, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    dvc_init(tmp_path)
    return tmp_path


def dvc_init(folder: Path, config: str = "[core]\n    no_scm = True\n") -> None:
    """Do what `dvc init --no-scm` does, without the two seconds that it takes to start."""
    (folder / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)
    (folder / ".dvc" / "config").write_text(config)
    shutil.copy(PROJECT / ".dvcignore", folder)


def git_init(folder: Path) -> None:
    """Do what `git init` and `dvc init` do."""
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    dvc_init(folder, config="")
    (folder / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")


@pytest.fixture(scope="session")
def shared_zip() -> dict[str, Path]:
    """The real data sets' archives beside the checkout."""
    folder = SHARED / "datasets"
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not in {folder}")
    return {"ham10000": folder / "ham10000.zip", "chest_xray": folder / "chest_xray.zip"}
