"""MLflow: what a run is told, and how it is found again.

A run is one fit. Runs go to the server that MLFLOW_TRACKING_URI names or to an SQLite store under
mlruns/, in one experiment a data set.

What a fit leaves on disk comes first; MLflow is told of it and may be slow or away. So everything
here can be said twice and arrives once, and a run is found by the tag FIT, which the fit's own
run.json holds too.
"""

import importlib.metadata
import logging
import os
import re
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import psutil
from filelock import FileLock
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature, infer_signature
from mlflow.types import ColSpec, Schema
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from medtransfer.core.errors import UserError, shortened
from medtransfer.core.files import sha256_of

log = logging.getLogger(__name__)

DEFAULT_URI = "sqlite:///mlruns/mlflow.db"
# Below it DVC runs queued experiments, in copies of the project that it then removes.
COPIES = "/.dvc/tmp/exps/"
FIT = "medtransfer.fit"
PROCESS = "medtransfer.process"
ERROR = "medtransfer.error"
OUTPUTS = "medtransfer.outputs"
MODEL, CLASSIFIER = "model", "classifier"
MODEL_FILES = ("model.keras", "model.skops")
MODEL_DIGEST = "medtransfer.sha256"
BEST = "best"
DIGEST = "medtransfer.network"
# A registered classifier's files, and the tags with their SHA-256.
REGISTERED = {"model.keras": DIGEST, "classifier.json": "medtransfer.classifier"}
PACKAGE = Path(__file__).parent
SERVING = (
    "mlflow", "keras", "matplotlib", "numpy", "pandas", "pillow", "pydantic", "ruamel.yaml", "scikit-learn", "scipy",
)  # fmt: skip
OTHER_SCORES = ("balanced accuracy", "AUC", "Brier score", "calibration error")
OUR_FAULT = "INVALID_PARAMETER_VALUE"
NOT_REGISTERED = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the second where the alias alone is missing
AWAY = (MlflowException, RequestException, SQLAlchemyError, OSError)
# MLflow's own defaults would hold a fit up for minutes and draw bars.
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def connect() -> mlflow.MlflowClient:
    """Point MLflow at the user's server or the project's own store, which is made where it is missing."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or own_uri()
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It prints the traceback of what it then raises, and we say in a line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # its warnings of each try, which we sum up
    mlflow.set_tracking_uri(uri)
    with _one_at_a_time(uri):
        client = mlflow.MlflowClient()  # makes the tables of a store that is new
        client.search_experiments(max_results=1)
    return client


def own_uri() -> str:
    """Return the project's own store; in a copy of the project that DVC made for an experiment, not the copy's."""
    project = _copied_project()
    return DEFAULT_URI.replace("mlruns", f"{project}/mlruns") if project else DEFAULT_URI


def is_there() -> bool:
    """Return whether there is a store that `connect` would not make: the user's server, or the project's own file."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or Path(own_uri().removeprefix("sqlite:///")).exists()


def _copied_project() -> str:
    """Return the project of which this folder is a copy for an experiment; empty where it is the project itself."""
    project, copied, _ = str(Path.cwd()).partition(COPIES)
    return project if copied else ""


def _one_at_a_time(uri: str) -> Any:
    """Return a lock for a store in a file: processes that make its tables at the same time would fail."""
    path = uri.removeprefix("sqlite:///")
    if path == uri:
        return nullcontext()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock")


def absolute_uri() -> str:
    """Return the user's server or the project's own store, for a process in another folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or own_uri()
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri else f"sqlite:///{Path(path).resolve()}"


@dataclass(frozen=True)
class RunTarget:
    """Where a fit's run goes: its experiment, its name, and the id of the run above it, if there is one."""

    experiment: str
    name: str
    parent: str | None = None

    @property
    def tags(self) -> dict[str, str]:
        """The tag by which MLflow shows a run under another."""
        return {MLFLOW_PARENT_RUN_ID: self.parent} if self.parent else {}


@dataclass
class Run:
    """The MLflow run of a fit, and whether MLflow still answers."""

    client: mlflow.MlflowClient | None
    run_id: str | None = None

    def send(self, action: Callable[[mlflow.MlflowClient, str], Any]) -> None:
        """Tell MLflow something; where it does not answer, say so once and go on without it."""
        if self.client is None or self.run_id is None:
            return
        try:
            action(self.client, self.run_id)
        except AWAY as error:
            if _is_ours(error):
                raise
            self.client = None
            _say_away(error)

    def log_epochs(self, rows: Sequence[Mapping[Any, float]]) -> None:
        """Log the rows of a history that MLflow does not have yet, with the epoch as the step."""
        self.send(lambda client, run_id: _send_epochs(client, run_id, rows))

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log metrics of the whole run that MLflow does not have yet; blanks in names become underscores."""
        self.send(lambda client, run_id: _send_metrics(client, run_id, metrics))

    def log_data(self, samples: pd.DataFrame, name: str, origin: Mapping[str, str]) -> None:
        """Log as the run's input a digest of the samples (one row per image), their number, columns and origin."""
        self.send(lambda client, run_id: _send_data(client, run_id, samples, name, origin))

    def log_model(self, log_it: Callable[[], None]) -> None:
        """Log the fitted model by calling `log_it`, unless the run has it."""
        self.send(lambda client, run_id: _send_model(client, run_id, log_it))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self.send(lambda client, run_id: client.log_batch(run_id, tags=[RunTag(*item) for item in tags.items()]))


def _is_ours(error: BaseException) -> bool:
    return isinstance(error, MlflowException) and error.error_code == OUR_FAULT


def redact(text: str) -> str:
    """Return a text with the user, password or token of every address in it as ***."""
    text = re.sub(r"://\S*@", "://***@", text)
    return re.sub(r"(?i)([?&](?:user|password|token)=)[^&\s'\"]*", r"\1***", text)


def address() -> str:
    """Return where MLflow is, without a password, to be shown."""
    return redact(mlflow.get_tracking_uri())


def reason(error: BaseException) -> str:
    """Return what an exception says, on one line and without a password; cut only then, or half of one would stay."""
    return shortened(redact(str(error)))


def _say_away(error: BaseException) -> None:
    log.warning(
        "MLflow at %s does not answer (%s); the fit goes on, and `medtransfer audit --repair` logs it later",
        address(),
        reason(error),
    )


@contextmanager
def run(
    experiment: str,
    name: str,
    fit: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    sample_seconds: float | None = 1,
) -> Iterator[Run]:
    """Log one run; it ends as FINISHED, as KILLED after Ctrl-C, or as FAILED after any other exception.

    The tag ERROR then says what happened.

    Parameters
    ----------
    fit : str
        The id of the fit; a run that it left unfinished is taken up again, without its tag ERROR.
    params : mapping
        The hyperparameters; nested mappings become dotted names.
    sample_seconds : float
        Between two samples of the system metrics; None for no samples.
    """
    active, status = Run(None), "FAILED"
    try:
        _start(active, experiment, name, fit, params, tags, sample_seconds)
        yield active
        status = "FINISHED"
    except BaseException as error:
        status = "KILLED" if _is_interrupt(error) else "FAILED"
        active.tag({ERROR: redact(f"{type(error).__name__}: {error}")[:1000]})
        raise
    finally:
        _end(active, experiment, fit, status)


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether an exception is Ctrl-C or came of it: what C code called may have made another of it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _start(
    active: Run,
    experiment: str,
    name: str,
    fit: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    sample_seconds: float | None,
) -> None:
    try:
        client = connect()
        with _one_at_a_time(mlflow.get_tracking_uri()):
            _set_experiment(experiment)
        close_stale(client)
        if sample_seconds is not None:
            mlflow.set_system_metrics_sampling_interval(sample_seconds)
            mlflow.set_system_metrics_samples_before_logging(1)
        said = {**{key: str(value) for key, value in tags.items()}, FIT: fit, PROCESS: _this_process()}
        values = {key: str(value) for key, value in flatten(params).items()}
        run_id = find(client, experiment, fit)
        if run_id:
            _check_params(client, run_id, values)
        active.client = client
        mlflow.start_run(
            run_id=run_id,
            run_name=None if run_id else name,
            log_system_metrics=sample_seconds is not None,
            tags=None if run_id else said,
        )
        active.run_id = mlflow.active_run().info.run_id
        if run_id:
            active.send(_forget_error)
            active.tag(said)
        logged = [Param(*item) for item in values.items()]
        active.send(lambda client, run_id: client.log_batch(run_id, params=logged))
    except AWAY as error:
        if _is_ours(error):
            raise
        _say_away(error)
        active.client = None


def _forget_error(client: mlflow.MlflowClient, run_id: str) -> None:
    if ERROR in client.get_run(run_id).data.tags:  # MLflow refuses to delete a tag that a run has not
        client.delete_tag(run_id, ERROR)


def living_experiment(client: mlflow.MlflowClient, name: str) -> Any:
    """Return an experiment, or None where there is none.

    Raises
    ------
    UserError
        It was deleted: its name is taken, but no run can be made in it.
    """
    known = client.get_experiment_by_name(name)
    if known and known.lifecycle_stage == "deleted":
        raise UserError(
            f"MLflow's experiment {name} at {address()} was deleted; give it back "
            f"(mlflow experiments restore --experiment-id {known.experiment_id}), or remove it for good (mlflow gc)"
        )
    return known


def _set_experiment(name: str) -> None:
    """Use an experiment, made first where it is missing.

    Where two processes make it at once, mlflow.set_experiment returns it to the slower one without using it, and that
    one's runs would go to the default experiment.
    """
    if not living_experiment(mlflow.MlflowClient(), name):
        project = _copied_project() if mlflow.get_tracking_uri() == own_uri() else ""
        try:  # in a copy its files would lie in the copy
            mlflow.create_experiment(name, artifact_location=f"{project}/mlruns/{name}" if project else None)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    mlflow.set_experiment(name)


def _check_params(client: mlflow.MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    for key, found in client.get_run(run_id).data.params.items():
        if values.get(key) != found:
            raise UserError(
                f"MLflow's run {run_id}: {key} is {found}, but the fit that it belongs to has {values.get(key)}: "
                "it was changed there; delete the run (mlflow runs delete --run-id ...) and run again"
            )


def _end(active: Run, experiment: str, fit: str, status: str) -> None:
    try:
        if mlflow.active_run():
            mlflow.end_run(status)
        elif active.client and (run_id := find(active.client, experiment, fit)):
            active.client.set_terminated(run_id, status)  # Ctrl-C came while MLflow was starting it
    except AWAY as error:
        if active.client is not None:
            _say_away(error)


def reach() -> mlflow.MlflowClient:
    """Connect where there is nothing to do without MLflow.

    Raises
    ------
    UserError
        MLflow does not answer.
    """
    try:
        return connect()
    except AWAY as error:
        mend = "; start it, or correct MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") else ""
        raise UserError(f"MLflow at {address()} does not answer ({reason(error)}){mend}") from None


@contextmanager
def answering() -> Iterator[None]:
    """Let an MLflow that stops answering end a command with one line: its traceback would show the address.

    Raises
    ------
    UserError
        MLflow stopped answering.
    """
    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        if _is_ours(error):
            raise
        raise UserError(f"MLflow at {address()} stopped answering ({reason(error)}); run again") from None


def find(client: mlflow.MlflowClient, experiment: str, fit: str) -> str | None:
    """Return the id of the run of a fit in the experiment of this name."""
    known = client.get_experiment_by_name(experiment)
    found = client.search_runs([known.experiment_id], f"tags.`{FIT}` = '{fit}'", max_results=1) if known else []
    return found[0].info.run_id if found else None


def _this_process() -> str:
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def _host_of(run: Any) -> str:
    """Return the machine of a run's process; empty where the run is none of ours."""
    host, *numbers = run.data.tags.get(PROCESS, "").split(" ")
    return host if len(numbers) == 2 and all(number.isdecimal() for number in numbers) else ""


def _is_gone(run: Any) -> bool:
    """Return whether the process of a run of this machine has ended."""
    pid, created = run.data.tags[PROCESS].split()[1:]
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" != created
    except psutil.NoSuchProcess:
        return True


def every_run(client: mlflow.MlflowClient, experiment_ids: list[str], asked: str = "") -> Iterator[Any]:
    """Yield all runs of these experiments, the oldest first, page by page."""
    token = None
    while experiment_ids:
        page = client.search_runs(experiment_ids, asked, max_results=200, order_by=["start_time ASC"], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _running(client: mlflow.MlflowClient) -> Iterator[Any]:
    experiments = [entry.experiment_id for entry in client.search_experiments()]
    return every_run(client, experiments, "attributes.status = 'RUNNING'")


def stale_runs(client: mlflow.MlflowClient) -> list[Any]:
    """Return the runs that MLflow calls RUNNING though their process on this machine is gone."""
    return [run for run in _running(client) if _host_of(run) == socket.gethostname() and _is_gone(run)]


def runs_elsewhere(client: mlflow.MlflowClient) -> list[tuple[Any, str]]:
    """Return the runs that MLflow calls RUNNING on another machine, which cannot be asked, and its name."""
    return [(run, host) for run in _running(client) if (host := _host_of(run)) not in ("", socket.gethostname())]


def close_stale(client: mlflow.MlflowClient, host: str | None = None) -> list[Any]:
    """End stale runs, and all that are RUNNING on another machine `host`, as KILLED and return them."""
    stale = stale_runs(client)
    if host:
        stale += [run for run, where in runs_elsewhere(client) if where == host]
    for run in stale:
        client.set_terminated(run.info.run_id, "KILLED")
    return stale


def close_children(client: mlflow.MlflowClient, parent: str) -> None:
    """End what is RUNNING under a run as KILLED; for after its processes were ended, here or on other machines."""
    children = [run for run in _running(client) if run.data.tags.get(MLFLOW_PARENT_RUN_ID) == parent]
    for run in children:
        client.set_terminated(run.info.run_id, "KILLED")


def fits_of(client: mlflow.MlflowClient, status: str | None = None) -> dict[str, list[Any]]:
    """Return the runs of fits, of all or of one status, by the name of their experiment."""
    asked = f"attributes.status = '{status}'" if status else ""
    return {
        entry.name: [run for run in every_run(client, [entry.experiment_id], asked) if FIT in run.data.tags]
        for entry in client.search_experiments()
    }


def registered(client: mlflow.MlflowClient) -> list[Any]:
    """Return the versions of the registered models that `register_classifier` made."""
    return [version for version in client.search_model_versions() if DIGEST in version.tags]


def model_problem(client: mlflow.MlflowClient, run: Any, read: bool = True) -> str:
    """Return what is wrong with the model logged with the run, of which the files are read; empty where nothing is."""
    ready = [model for model in _models_of(client, run) if model.status == "READY"]
    problems = [_problem_of(model) if read else "" for model in ready]
    return min(problems, default="has no model")  # "" where one of several is whole


def _problem_of(model: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            mlflow.artifacts.download_artifacts(artifact_uri=model.artifact_location, dst_path=folder)
        except AWAY as error:
            return f"has a model whose files cannot be read ({reason(error)})"
        digests = _digests_of_model(Path(folder))
    if not digests:
        return f"has a model without {' or '.join(MODEL_FILES)}"
    logged = model.tags.get(MODEL_DIGEST)  # older ones have none
    return "has a model whose file is not the one that was logged" if logged and logged not in digests else ""


def _digests_of_model(folder: Path) -> list[str]:
    return [sha256_of(path) for path in sorted(folder.rglob("*")) if path.name in MODEL_FILES]


def _models_of(client: mlflow.MlflowClient, run: Any) -> list[Any]:
    """Return the run's own models; what is registered lies beside them."""
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return [model for model in models if model.name == MODEL]


def metric_name(name: str) -> str:
    """Return MLflow's name of a test score: of the F1 of a class or average, or of one of `OTHER_SCORES`."""
    return f"test_{name if name in OTHER_SCORES else f'f1_{name}'}".replace(" ", "_")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into one with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _send_epochs(client: mlflow.MlflowClient, run_id: str, rows: Sequence[Mapping[Any, float]]) -> None:
    known = client.get_run(run_id).data.metrics
    logged = {point.step for point in client.get_metric_history(run_id, "loss")} if "loss" in known else set()
    now = int(time.time() * 1000)
    missing = [row for row in rows if row["epoch"] not in logged]
    # An epoch's values arrive together or not at all.
    for row in missing:
        points = [Metric(key, float(value), now, int(row["epoch"])) for key, value in row.items() if key != "epoch"]
        client.log_batch(run_id, metrics=points)


def _send_metrics(client: mlflow.MlflowClient, run_id: str, metrics: Mapping[str, float]) -> None:
    known = client.get_run(run_id).data.metrics
    now = int(time.time() * 1000)
    named = {key.replace(" ", "_"): float(value) for key, value in metrics.items()}
    client.log_batch(
        run_id, metrics=[Metric(key, value, now, 0) for key, value in named.items() if known.get(key) != value]
    )


def _send_data(
    client: mlflow.MlflowClient, run_id: str, samples: pd.DataFrame, name: str, origin: Mapping[str, str]
) -> None:
    if client.get_run(run_id).inputs.dataset_inputs:
        return
    source = CodeDatasetSource(dict(origin))
    dataset = mlflow.data.from_pandas(samples, source=source, targets="label", name=name)
    mlflow.log_input(dataset, context="training")


def _send_model(client: mlflow.MlflowClient, run_id: str, log_it: Callable[[], None]) -> None:
    run = client.get_run(run_id)
    if not model_problem(client, run):
        return
    for model in _models_of(client, run):
        client.delete_logged_model(model.model_id)
    log_it()


def log_keras_model(model: Any, images: np.ndarray, probabilities: np.ndarray, backend: str) -> None:
    """Log a network that takes raw pixels; `images` (n, size, size, 3), uint8, is its input example."""
    _log_model(
        _save_keras_model,
        "keras",
        model=model,
        signature=infer_signature(images, probabilities),
        input_example=images,
        pip_requirements=_pinned("mlflow", "keras", "numpy", backend),
        # It would load the network again after every fit; the tests compare a loaded one's answers.
        validate_serving_input=False,
    )


def _save_keras_model(path: str, validate_serving_input: bool, **arguments: Any) -> None:
    # It writes the input example into a folder that it has not made yet (mlflow/mlflow#16183).
    Path(path).mkdir(parents=True)
    mlflow.keras.save_model(path=path, **arguments)


def log_sklearn_model(
    model: Any, features: np.ndarray, probabilities: np.ndarray, trusted_types: Sequence[str]
) -> None:
    """Log a tree; `features` (n, size · size · 3), uint8, is its input example, probabilities its output."""
    _log_model(
        mlflow.sklearn.save_model,
        "sklearn",
        sk_model=model,
        signature=infer_signature(features, probabilities),
        input_example=features,
        serialization_format="skops",
        skops_trusted_types=list(trusted_types),
        pyfunc_predict_fn="predict_proba",
        pip_requirements=_pinned("mlflow", "scikit-learn", "skops", "numpy"),
    )


def _log_model(save: Callable[..., None], flavor: str, **arguments: Any) -> None:
    """Log a model with the SHA-256 of its file, taken before the file goes to the store."""
    digests: list[str] = []

    def save_and_hash(path: str, **given: Any) -> None:
        save(path=path, **given)
        digests.extend(_digests_of_model(Path(path)))

    logged = Model.log(
        artifact_path=None,
        name=MODEL,
        flavor=SimpleNamespace(save_model=save_and_hash),
        flavor_name=flavor,
        **arguments,
    )
    (digest,) = digests
    mlflow.MlflowClient().set_logged_model_tags(logged.model_id, {MODEL_DIGEST: digest})


def register_classifier(
    client: mlflow.MlflowClient, name: str, run_id: str, folder: Path, facts: Mapping[str, Any], backend: str
) -> str:
    """Log a folder CLASSIFIER with the run of its fit, register it and give it the alias BEST; return its version.

    What is registered already and is whole is not registered again.
    """
    tags = {FIT: facts["fit"], **{tag: sha256_of(folder / file) for file, tag in REGISTERED.items()}}
    for known in _versions(client, name):  # makes the name where it is new
        if tags.items() <= known.tags.items() and not list(registered_problems(known)):
            client.set_registered_model_alias(name, BEST, known.version)
            return str(known.version)
    answers = [ColSpec("string", "predicted"), *(ColSpec("double", f"p_{label}") for label in facts["classes"])]
    mlflow.set_experiment(experiment_id=client.get_run(run_id).info.experiment_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # MLflow asks for an example of the input
        logged = Model.log(
            artifact_path=None,
            name=folder.name,
            flavor=mlflow.pyfunc,
            run_id=run_id,  # without starting the run again
            python_model=str(PACKAGE / "serving" / "served.py"),
            artifacts={folder.name: str(folder)},
            code_paths=[str(PACKAGE)],
            signature=ModelSignature(Schema([ColSpec("binary", "image")]), Schema(answers)),
            pip_requirements=_pinned(*SERVING, backend),
        )
    version = client.create_model_version(name, logged.model_uri, run_id, tags, model_id=logged.model_id)
    client.set_registered_model_alias(name, BEST, version.version)
    return str(version.version)


def _versions(client: mlflow.MlflowClient, name: str) -> list[Any]:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return list(client.search_model_versions(f"name = '{name}'"))


def registered_problems(version: Any) -> Iterator[str]:
    """Read a registered classifier and yield what is wrong with it."""
    with tempfile.TemporaryDirectory() as temporary:
        try:
            folder, digests = fetch_classifier(f"models:/{version.name}/{version.version}", Path(temporary))
        except UserError as error:
            yield str(error)
            return
        for file, digest in digests.items():
            if not (folder / file).is_file() or sha256_of(folder / file) != digest:
                yield f"its {file} is not the one that was registered"


def fetch_classifier(uri: str, folder: Path) -> tuple[Path, dict[str, str]]:
    """Download a registered classifier into a folder and return where it lies and the SHA-256 of its files, by name.

    The digests are the registry's: what lies in the store of files cannot change them. An older one has the network's
    alone.

    Parameters
    ----------
    uri : str
        `models:/ham10000@best` or `models:/ham10000/2`.

    Raises
    ------
    UserError
        MLflow does not answer, or has no such classifier.
    """
    asked = re.fullmatch(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))", uri)
    if not asked:
        raise UserError(f"{uri}: no registered model's address; expected models:/NAME@ALIAS or models:/NAME/VERSION")
    client = reach()
    name, alias, version = asked["name"], asked["alias"], asked["version"]
    try:
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
        if DIGEST not in found.tags:
            raise UserError(f"{uri}: version {found.version} has no tag {DIGEST}; run `medtransfer register`")
        source = f"models:/{name}/{found.version}/artifacts/{CLASSIFIER}"
        return Path(mlflow.artifacts.download_artifacts(source, dst_path=str(folder))), {
            file: found.tags[tag] for file, tag in REGISTERED.items() if tag in found.tags
        }
    except (*AWAY, ValueError) as error:
        known = isinstance(error, MlflowException) and error.error_code in NOT_REGISTERED
        advice = f"; run `medtransfer register {name}`" if known and alias == BEST else ""
        raise UserError(f"{redact(uri)}: cannot be had from {address()} ({reason(error)}){advice}") from None


def _pinned(*packages: str) -> list[str]:
    return [f"{package}=={importlib.metadata.version(package)}" for package in packages]


def attach(experiment: str, fit: str, files: list[Path]) -> bool:
    """Add files to the run of a finished fit; return False where MLflow does not know it or does not answer.

    They lie in no folder: MLflow's page of compared runs shows those side by side and no others.
    """
    try:
        client = connect()
        run_id = find(client, experiment, fit)
        if run_id is None:
            return False
        for file in files:
            client.log_artifact(run_id, str(file))
    except AWAY as error:
        _say_away(error)
        return False
    return True
