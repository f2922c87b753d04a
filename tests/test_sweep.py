"""The sweep on Ray: every fit once and the same as alone, whatever happens to a node; nothing is left running."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import matplotlib
import mlflow
import pandas as pd
import psutil
import pytest
import ray
from click.testing import CliRunner, Result
from ray.cluster_utils import Cluster
from ruamel.yaml import YAML

from conftest import PROJECT
from medtransfer.cli import cli
from medtransfer.core.errors import UserError
from medtransfer.core.files import atomic_folder
from medtransfer.core.params import Params
from medtransfer.data.catalogue import CHEST_XRAY, HAM10000
from medtransfer.data.preparation import prepare_dataset
from medtransfer.study import sweep as stage
from medtransfer.study.ray_cluster import Needs, fit_environment, join_ray
from medtransfer.tracking import mlflow_runs

# Seeds share nothing; rates share the features of a frozen prefix.
SEEDS = ("--dataset", "chest_xray", "--configuration", "random_last_block", "--seed", "0", "--seed", "1", "--seed", "2")
LAST_BLOCK = "chest_xray-random_last_block"
RATES = ("--dataset", "chest_xray", "--configuration", "random_last_block", "--seed", "0",
         "--rate", "1e-3", "--rate", "1e-4")  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, demo: Path, params: Params) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    for dataset in (CHEST_XRAY, HAM10000):
        with atomic_folder(folder / dataset.name) as target:
            prepare_dataset(dataset, demo / dataset.name, params.datasets[dataset.name], target)
    return folder


@pytest.fixture
def project(tmp_path: Path, prepared: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with both small data sets prepared and two quick configurations behind frozen prefixes."""
    monkeypatch.chdir(tmp_path)
    # Beside another process of tests, Ray's workers would wait: they are nice by 15.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    head, last = (params.configurations[name] for name in ("imagenet_head", "imagenet_last_block"))
    small = params.model_copy(
        update={
            "train": params.train.model_copy(update={"dense_units": [8, 8], "epochs": 6, "patience": 6}),
            "configurations": {
                "random_head": head.model_copy(update={"weights": "random"}),
                "random_last_block": last.model_copy(update={"weights": "random"}),
            },
            "study": {
                name: studied.model_copy(update={"train": ["random_head", "random_last_block"], "transfer": []})
                for name, studied in params.study.items()
            },
        }
    )
    YAML().dump(small.model_dump(), tmp_path / "params.yaml")
    shutil.copytree(prepared, tmp_path / "artifacts" / "prepared")
    return tmp_path


def start(project: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    return start_command(project, "sweep", "grid", "--memory-gb", "0.5", *arguments, **variables)


def start_command(project: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        "PYTHONPATH": str(PROJECT / "src"),
        "XDG_CACHE_HOME": str(project / "cache"),
        "MPLCONFIGDIR": matplotlib.get_cachedir(),  # its list of fonts takes seconds to make
        **variables,
    }
    env.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.Popen(
        [str(Path(sys.executable).parent / "medtransfer"), *arguments],
        cwd=project, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output = process.communicate(timeout=400)[0]
    assert process.returncode == code, output
    return output


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 400) -> None:
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


def check_every_fit_finished_once(project: Path, names: set[str]) -> None:
    table = pd.read_csv(project / "artifacts" / "sweeps" / "grid" / "sweep.csv", keep_default_na=False)
    assert len(table) == len(names)
    assert (table.problem == "").all()
    assert runs(project) == {name: ["FINISHED"] for name in names | {"grid"}}


def projects(project: Path) -> Path:
    return project / "artifacts" / "sweeps" / "grid"


def predictions(project: Path) -> dict[str, bytes]:
    found = projects(project).glob("*/artifacts/runs/*/*/predictions.csv")
    return {str(path.relative_to(projects(project))): path.read_bytes() for path in found}


def with_checkpoint(project: Path) -> int:
    """How many fits are under way that a process can take up again."""
    return len({path.parent for path in projects(project).glob("*/artifacts/checkpoints/*/*/epoch-*.npz")})


def log_lines(project: Path, fit: str, words: str) -> list[str]:
    """The lines with these words in the log of a fit; `*` for all of them."""
    logs = projects(project).glob(f"{fit}/fit.log")
    return [line for log in logs for line in log.read_text().splitlines() if words in line]


def processes_in(folder: Path) -> list[psutil.Process]:
    """Processes that work in the folder or below it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
    return found


def fitting(project: Path) -> list[psutil.Process]:
    """Ray's workers that are at a fit."""
    return [process for process in processes_in(projects(project)) if process.name().startswith("ray::")]


def check_nothing_is_left_running(project: Path, folder: Path) -> None:
    end = time.monotonic() + 20  # Ray's own processes are told to end and then do
    while processes_in(folder) and time.monotonic() < end:
        time.sleep(0.2)
    assert processes_in(folder) == []
    assert "RUNNING" not in {status for found in runs(project).values() for status in found}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of a head that computes nothing and two nodes, each with what Ray takes for a GPU."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=2, num_gpus=1, memory=10**9, object_store_memory=10**8)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def test_a_sweep_fits_everything_once_and_notices_a_changed_fit(project: Path) -> None:
    grid = ("--dataset", "chest_xray", "--configuration", "random_head", "--rate", "1e-3")
    output = finish(start(project, *grid, "--local"))
    assert re.search("^1 fit; each writes a log: .*/fit.log$", output, re.MULTILINE)
    assert "1 of 1 fits finished" in output
    check_every_fit_finished_once(project, {"chest_xray-random_head-seed0-rate0.001"})
    check_nothing_is_left_running(project, project)
    [(name, content)] = predictions(project).items()
    (projects(project) / name).write_bytes(content[: content.rindex(b"\n", 0, -1) + 1])  # without the last row
    told = finish(start(project, *grid, "--local"), 1)
    fit, _, outputs = name.removesuffix("/predictions.csv").partition("/")
    remedy = "was changed after the fit; remove this folder and run the sweep again"
    assert f"1 of 1: {fit}: {projects(project) / fit}: {outputs}: {remedy}" in told


@pytest.mark.slow
def test_a_lost_node_costs_nothing_and_changes_nothing(project: Path, cluster: Cluster) -> None:
    names = {f"{LAST_BLOCK}-seed{seed}" for seed in range(2)}
    process = start(project, *SEEDS[:-2], "--gpus", "1", RAY_ADDRESS=cluster.address)
    wait_for(lambda: with_checkpoint(project) == 2, process)  # so that no node is idle
    assert len(fitting(project)) == 2  # one a GPU, where there is room for two
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    output = finish(process)
    assert [line[:6] for line in output.splitlines() if " of 2: " in line] == ["1 of 2", "2 of 2"]
    assert "2 of 2 fits finished" in output
    check_every_fit_finished_once(project, names)
    disturbed = predictions(project)
    assert len(disturbed) == 2
    seed, *_ = [seed for seed in "01" if log_lines(project, f"{LAST_BLOCK}-seed{seed}", "resuming after epoch")]

    threads = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
    alone = ("stage", "train", "chest_xray", "random_last_block", "--seed", seed)
    assert "resuming after epoch" not in finish(start_command(project, *alone, **threads))
    [found] = [content for path, content in disturbed.items() if f"-seed{seed}/" in path]
    folder = project / "artifacts" / "runs" / "chest_xray" / f"random_last_block-seed{seed}"
    assert (folder / "predictions.csv").read_bytes() == found


@pytest.mark.slow
def test_ctrl_c_and_a_lost_process_cost_nothing(project: Path) -> None:
    process = start(project, *RATES, "--local")
    wait_for(lambda: with_checkpoint(project) == 2, process)
    fitting(project)[0].suspend()  # one that cannot heed Ctrl-C
    process.send_signal(signal.SIGINT)
    finish(process, code=1)
    check_nothing_is_left_running(project, project)
    checkpoints = projects(project).glob("*/artifacts/checkpoints/chest_xray/*/epoch-*.npz")
    assert len({path.parent for path in checkpoints}) == 2

    process = start(project, *RATES, "--local")
    lost, other = fits = [f"{LAST_BLOCK}-seed0-rate{rate}" for rate in ("0.001", "0.0001")]
    wait_for(lambda: len(log_lines(project, lost, "resuming after epoch")) == 1, process)
    for worker in processes_in(projects(project) / lost):
        worker.kill()
    assert "2 of 2 fits finished" in finish(process)
    assert len(log_lines(project, lost, "resuming after epoch")) == 2
    assert len(log_lines(project, other, "resuming after epoch")) == 1
    # What is frozen was computed once for both rates.
    assert len(log_lines(project, "*", "features: computing")) == 1
    assert len(list((project / "cache" / "medtransfer" / "features").glob("*/features.npy"))) == 1
    check_every_fit_finished_once(project, set(fits))
    began = predictions(project)
    assert len(began) == 2
    again = finish(start(project, *RATES, "--local"))
    assert "2 of 2 fits finished" in again
    check_every_fit_finished_once(project, set(fits))
    assert predictions(project) == began


@pytest.mark.slow
def test_fits_share_a_gpu_and_ctrl_c_leaves_nothing_running_on_a_cluster(project: Path, cluster: Cluster) -> None:
    refused = finish(start(project, *SEEDS, "--gpus", "2", RAY_ADDRESS=cluster.address), code=2)
    assert "no node has 1 CPU, 2 GPU, 0.5 GB for a fit; the nodes have " in refused
    assert refused.count("2 CPU, 1 GPU, 1.0 GB") == 2
    process = start(project, *SEEDS, "--gpus", "0.5", RAY_ADDRESS=cluster.address)
    wait_for(lambda: len(fitting(project)) == 3, process)  # on two GPUs
    assert {worker.environ()["TF_FORCE_GPU_ALLOW_GROWTH"] for worker in fitting(project)} == {"true"}
    wait_for(lambda: with_checkpoint(project) >= 1, process)
    process.send_signal(signal.SIGINT)
    finish(process, code=1)
    check_nothing_is_left_running(project, projects(project))  # the cluster itself stays


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["sweep", "grid", *arguments])


def test_however_a_sweep_ends_nothing_is_running_under_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit's process was killed more often than Ray retries it, or with Ray itself."""
    from medtransfer.core.params import read_params

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlruns/mlflow.db")
    monkeypatch.setattr(stage, "join_ray", lambda params, needs, local: None)
    small, needs = read_params(project / "params.yaml"), Needs(1, 0, 0.5, 1)
    fits = stage.plan(small, ["chest_xray"], ["random_head"], [0], [])
    endings = {RuntimeError: "FAILED", KeyboardInterrupt: "KILLED", None: "FINISHED"}
    for number, (error, status) in enumerate(endings.items(), start=1):

        def run_all(
            fits: list[stage.GridPoint],
            root: Path,
            needs: Needs,
            experiment: str,
            parent: str,
            error: type[BaseException] | None = error,
        ) -> pd.DataFrame:
            client = mlflow.MlflowClient()
            known = client.get_experiment_by_name(experiment).experiment_id
            tags = mlflow_runs.RunTarget(experiment, "lost", parent).tags | {mlflow_runs.PROCESS: "node 1 0"}
            client.create_run(known, run_name="lost", tags=tags)
            if error:
                raise error
            return pd.DataFrame([{"problem": "WorkerCrashedError", "val_macro_f1": float("nan")}])

        monkeypatch.setattr(stage, "run_all", run_all)
        with pytest.raises(error) if error else nullcontext():
            stage.sweep(small, "grid", fits, needs, local=True)
        assert runs(project) == {"grid": [status], "lost": ["KILLED"] * number}


def test_the_grid_has_a_fit_for_every_combination(project: Path) -> None:
    from medtransfer.core.params import read_params

    small = read_params(project / "params.yaml")
    fits = stage.plan(small, ["chest_xray"], [], [0, 1], [1e-3, 3e-5])
    assert len(set(fits)) == len(fits) == 8
    root = project / "artifacts" / "sweeps" / "rates"
    first = stage.lay_out(small, root, fits)
    for fit in fits:
        written = read_params(root / fit.name / "params.yaml")
        recipe = written.configurations[fit.configuration].settings(written.train, "chest_xray")
        assert recipe.learning_rate == fit.learning_rate
        assert written.seeds == [fit.seed]
    named = small.model_copy(update={"weights": small.weights.model_copy(update={"file": "here.h5"})})
    assert stage.lay_out(named, root, fits[::-1]) == first
    link = root / fits[0].name / "artifacts" / "prepared" / "chest_xray"
    link.unlink()
    link.symlink_to(project / "elsewhere", target_is_directory=True)  # as after the project was moved
    stage.lay_out(small, root, fits)
    assert link.resolve() == (project / "artifacts" / "prepared" / "chest_xray").resolve()
    with pytest.raises(UserError, match=r"sweep\.json: differs in fits, configurations; choose another name"):
        stage.lay_out(small, root, fits[1:3])
    other = small.model_copy(update={"train": small.train.model_copy(update={"batch_size": 64})})
    with pytest.raises(UserError, match=r"sweep\.json: differs in train;"):
        stage.lay_out(other, root, fits)
    samples = project / "artifacts" / "prepared" / "chest_xray" / "samples.csv"
    samples.write_text(samples.read_text().replace("validation", "train", 1))
    with pytest.raises(UserError, match=r"sweep\.json: differs in data;"):
        stage.lay_out(small, root, fits)


def test_a_fit_sees_only_the_gpus_that_it_asked_for(
    project: Path, params: Params, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setattr(stage, "run_fit", lambda *_: {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "all")})
    fits = [stage.GridPoint("chest_xray", "random_head", 0, None)]
    for gpus, seen in ((0, ""), (1, "0")):
        needs = Needs(1, gpus, 0.5, 0)
        join_ray(params, needs, local=False)
        try:
            assert list(stage.run_all(fits, project, needs, "x", None).gpus) == [seen]
        finally:
            ray.shutdown()


def test_a_cluster_that_refuses_is_told_apart_from_none(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setattr(ray, "init", refuse)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(UserError, match="RAY_AUTH_MODE=token"):
            join_ray(params, Needs(1, 0, 0.5, 1), local=False)
    with pytest.raises(UserError, match="no Ray cluster answers"):
        join_ray(params, Needs(1, 0, 0.5, 1), local=False)
    with pytest.raises(
        UserError, match=r"Ray does not start here \(Failed .*\); if a path is too long, set RAY_TMPDIR"
    ):
        join_ray(params, Needs(1, 0, 0.5, 1), local=True)


@pytest.mark.parametrize(
    ("written", "local", "mode"), [(True, False, "token"), (True, True, None), (False, False, None)]
)
def test_rays_token_is_used_where_there_is_one(
    project: Path, tmp_path: Path, written: bool, local: bool, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.delenv("RAY_AUTH_MODE")
    if written:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray/auth_token").touch()
    seen = []

    def fail(*arguments: object) -> None:
        seen.append(os.environ.get("RAY_AUTH_MODE"))
        raise UserError("far enough")

    monkeypatch.setattr("medtransfer.study.sweep.sweep", fail)
    CliRunner().invoke(cli, ["sweep", "grid", *(["--local"] if local else [])])
    assert seen == [mode]


def test_a_weights_file_is_found_from_every_project_folder(
    project: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDTRANSFER_WEIGHTS", raising=False)
    named = params.model_copy(update={"weights": params.weights.model_copy(update={"file": "here.h5"})})
    needs = Needs(1, 0, 0.5, 1)
    assert fit_environment(named, needs)["MEDTRANSFER_WEIGHTS"] == str(project / "here.h5")
    monkeypatch.setenv("MEDTRANSFER_WEIGHTS", "there.h5")
    assert fit_environment(named, needs)["MEDTRANSFER_WEIGHTS"] == str(project / "there.h5")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--dataset", "mnist"], "params.yaml: study: 'mnist' is unknown; choose one of ham10000, chest_xray"),
        (["--configuration", "none"], "params.yaml: configurations: 'none' is unknown; choose one of random_head"),
        (["--seed", "0"], "no Ray cluster answers at 127.0.0.1:9 "),
    ],
)
def test_what_cannot_run_is_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], line: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    refused = invoke(*arguments)
    assert isinstance(refused.exception, UserError)
    assert line in str(refused.exception)
    assert "\n" not in str(refused.exception)
    assert not (project / "artifacts" / "sweeps").exists()


def test_a_name_that_leads_out_of_the_sweeps_is_refused(project: Path) -> None:
    refused = CliRunner().invoke(cli, ["sweep", "../../keep"])
    assert isinstance(refused.exception, UserError)
    assert "'../../keep'" in str(refused.exception)
