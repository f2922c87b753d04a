"""The sweep on Ray: every fit once and the same as alone, whatever happens to a node; nothing is left running."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pandas as pd
import psutil
import pytest
from ray.cluster_utils import Cluster
from ruamel.yaml import YAML

from conftest import PROJECT
from medtransfer.datasets.catalogue import CHEST_XRAY
from medtransfer.errors import UserError
from medtransfer.files import whole_folder
from medtransfer.params import Params
from medtransfer.prepare import prepare_dataset
from medtransfer.stages import sweep as stage

SEEDS = (0, 1)
GRID = ("--seed", "0", "--seed", "1", "--memory-gb", "0.5")


@pytest.fixture
def project(tmp_path: Path, demo: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the small X-rays prepared and two quick configurations, one behind a frozen prefix."""
    monkeypatch.chdir(tmp_path)
    head, last = (params.configurations[name] for name in ("imagenet_head", "imagenet_last_block"))
    small = params.model_copy(
        update={
            "train": params.train.model_copy(update={"dense_units": [8, 8], "epochs": 6, "patience": 6}),
            "configurations": {
                "random_head": head.model_copy(update={"weights": "random"}),
                "random_last_block": last.model_copy(update={"weights": "random"}),
            },
            "study": {"chest_xray": params.study["chest_xray"].model_copy(update={"transfer": []})},
        }
    )
    small.study["chest_xray"].train[:] = list(small.configurations)
    YAML().dump(small.model_dump(), tmp_path / "params.yaml")
    with whole_folder(tmp_path / "artifacts" / "prepared" / "chest_xray") as folder:
        prepare_dataset(CHEST_XRAY, demo / "chest_xray", params.datasets["chest_xray"], folder)
    return tmp_path


def start(project: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(PROJECT / "src"), "XDG_CACHE_HOME": str(project / "cache"), **variables}
    env.pop("MLFLOW_TRACKING_URI", None)
    command = [str(Path(sys.executable).parent / "medtransfer"), "sweep", "grid", "--dataset", "chest_xray"]
    return subprocess.Popen(
        [*command, *GRID, *arguments],
        cwd=project, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output = process.communicate(timeout=400)[0]
    assert process.returncode == code, output
    return output


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.2)


def runs(project: Path) -> dict[str, list[str]]:
    """The runs' statuses by name, of the sweep's one experiment."""
    client = mlflow.MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")
    [experiment] = [entry for entry in client.search_experiments() if entry.name != "Default"]
    assert experiment.name == "sweep grid"
    found = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in found if run.info.run_name == "grid"]
    statuses: dict[str, list[str]] = {}
    for run in found:
        assert run is parent or run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        statuses.setdefault(run.info.run_name, []).append(run.info.status)
    return statuses


def check_every_fit_finished_once(project: Path) -> pd.DataFrame:
    table = pd.read_csv(project / "artifacts" / "sweeps" / "grid" / "sweep.csv", keep_default_na=False)
    assert len(table) == 4
    assert (table.problem == "").all()
    names = {f"chest_xray-{name}-seed{seed}" for name in ("random_head", "random_last_block") for seed in SEEDS}
    assert runs(project) == {name: ["FINISHED"] for name in names | {"grid"}}
    return table


def predictions(project: Path) -> dict[str, bytes]:
    found = sorted((project / "artifacts" / "sweeps" / "grid" / "as-params" / "artifacts" / "runs").glob("*/*"))
    return {path.name: (path / "predictions.csv").read_bytes() for path in found}


def processes_of(project: Path) -> list[int]:
    """Processes that work in the project's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(project):
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
    return [pid for pid in found if pid != os.getpid()]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of a head that computes nothing and two nodes with room for one fit each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1, memory=10**9, object_store_memory=stage.OBJECT_STORE_BYTES)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def test_a_lost_node_costs_nothing_and_changes_nothing(project: Path, cluster: Cluster) -> None:
    process = start(project, RAY_ADDRESS=cluster.address)
    unfinished = project / "artifacts" / "sweeps" / "grid" / "as-params" / "artifacts" / "unfinished"
    wait_for(lambda: len(list(unfinished.glob("*/*/epoch-*.npz"))) > 0, process)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    output = finish(process)
    assert "4 of 4 fits finished" in output
    check_every_fit_finished_once(project)
    disturbed = predictions(project)
    (project / "artifacts" / "sweeps" / "grid").rename(project / "disturbed")
    (project / "mlruns").rename(project / "disturbed-mlruns")

    finish(start(project, "--local"))
    check_every_fit_finished_once(project)
    assert predictions(project) == disturbed


def test_ctrl_c_leaves_nothing_running_and_it_goes_on(project: Path) -> None:
    process = start(project, "--local")
    unfinished = project / "artifacts" / "sweeps" / "grid" / "as-params" / "artifacts" / "unfinished"
    wait_for(lambda: len(list(unfinished.glob("*/*/epoch-*.npz"))) > 0, process)
    process.send_signal(signal.SIGINT)
    assert "run it again and it goes on" in finish(process, code=1)
    end = time.monotonic() + 20  # Ray's own processes are told to end and then do
    while processes_of(project) and time.monotonic() < end:
        time.sleep(0.2)
    assert processes_of(project) == []
    assert "RUNNING" not in {status for found in runs(project).values() for status in found}

    assert "4 of 4 fits finished" in finish(start(project, "--local"))
    check_every_fit_finished_once(project)
    began = predictions(project)
    assert "4 of 4 fits finished" in finish(start(project, "--local"))
    check_every_fit_finished_once(project)
    assert predictions(project) == began


def test_the_grid_has_a_fit_for_every_combination(project: Path, params: Params) -> None:
    from medtransfer.params import read_params

    small = read_params(project / "params.yaml")
    fits = stage.plan(small, ["chest_xray"], [], [0, 1], [1e-3, 1e-4])
    assert len(set(fits)) == len(fits) == 8
    root = project / "artifacts" / "sweeps" / "rates"
    first = stage.lay_out(small, root, fits)
    for rate in ("0.001", "0.0001"):
        written = read_params(root / f"rate-{rate}" / "params.yaml")
        recipe = written.configurations["random_head"].recipe(written.train, "chest_xray")
        assert recipe.learning_rate == float(rate)
    assert stage.lay_out(small, root, fits[:2]) == first
    other = small.model_copy(update={"train": small.train.model_copy(update={"batch_size": 64})})
    with pytest.raises(UserError, match=r"sweep\.json: made with another train\.batch_size"):
        stage.lay_out(other, root, fits)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--dataset", "mnist", "--local"), "params.yaml: study.mnist: missing; there are chest_xray"),
        (("--configuration", "none", "--local"), "params.yaml: configurations.none: missing; there are random_head"),
        (("--cpus", "999", "--local"), "no node has 999 CPU, 0 GPU and 0.5 GB for a fit: there are"),
    ],
)
def test_what_cannot_run_is_one_line(project: Path, arguments: tuple[str, ...], line: str) -> None:
    assert line in finish(start(project, *arguments), code=2)


def test_without_a_cluster_one_line_says_what_to_do(project: Path) -> None:
    assert "use this machine alone with --local" in finish(start(project, RAY_ADDRESS="127.0.0.1:9"), code=2)
