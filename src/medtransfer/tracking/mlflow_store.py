"""The MLflow store: where it is, connecting to it, its experiments, and what to say when it does not answer.

Runs go to the server that MLFLOW_TRACKING_URI names or to an SQLite store under mlruns/.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from medtransfer.core.errors import UserError, shortened

log = logging.getLogger(__name__)
DEFAULT_URI = "sqlite:///mlruns/mlflow.db"
# Below it DVC runs queued experiments, in copies of the project that it then removes.
COPIES = "/.dvc/tmp/exps/"
FIT = "medtransfer.fit"
OUR_FAULT = "INVALID_PARAMETER_VALUE"
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
    with one_at_a_time(uri):
        client = mlflow.MlflowClient()  # makes the tables of a store that is new
        client.search_experiments(max_results=1)
    return client


def own_uri() -> str:
    """Return the project's own store; in a copy of the project that DVC made for an experiment, not the copy's."""
    project = copied_project()
    return DEFAULT_URI.replace("mlruns", f"{project}/mlruns") if project else DEFAULT_URI


def is_there() -> bool:
    """Return whether there is a store that `connect` would not make: the user's server, or the project's own file."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or Path(own_uri().removeprefix("sqlite:///")).exists()


def copied_project() -> str:
    """Return the project of which this folder is a copy for an experiment; empty where it is the project itself."""
    project, copied, _ = str(Path.cwd()).partition(COPIES)
    return project if copied else ""


def one_at_a_time(uri: str) -> Any:
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


def is_ours(error: BaseException) -> bool:
    """Return whether MLflow refused what we sent, which is a mistake of ours."""
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


def say_away(error: BaseException) -> None:
    """Warn that MLflow does not answer; the fit goes on."""
    log.warning(
        "MLflow at %s does not answer (%s); the fit goes on, and `medtransfer audit --repair` logs it later",
        address(),
        reason(error),
    )


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


def set_experiment(name: str) -> None:
    """Use an experiment, made first where it is missing.

    Where two processes make it at once, mlflow.set_experiment returns it to the slower one without using it, and that
    one's runs would go to the default experiment.
    """
    if not living_experiment(mlflow.MlflowClient(), name):
        project = copied_project() if mlflow.get_tracking_uri() == own_uri() else ""
        try:  # in a copy its files would lie in the copy
            mlflow.create_experiment(name, artifact_location=f"{project}/mlruns/{name}" if project else None)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    mlflow.set_experiment(name)


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
        if is_ours(error):
            raise
        raise UserError(f"MLflow at {address()} stopped answering ({reason(error)}); run again") from None


def every_run(client: mlflow.MlflowClient, experiment_ids: list[str], asked: str = "") -> Iterator[Any]:
    """Yield all runs of these experiments, the oldest first, page by page."""
    token = None
    while experiment_ids:
        page = client.search_runs(experiment_ids, asked, max_results=200, order_by=["start_time ASC"], page_token=token)
        yield from page
        token = page.token
        if not token:
            return
