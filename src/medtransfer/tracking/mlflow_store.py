"""The MLflow store: its address, its experiments, and what happens if it does not answer.

Runs go to the server that MLFLOW_TRACKING_URI names or to an SQLite store under mlruns/.
"""

import atexit
import logging
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import mlflow
from filelock import FileLock
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from medtransfer.core.errors import UserError, quoted, shortened
from medtransfer.core.layout import in_project

log = logging.getLogger(__name__)
SQLITE, OWN_STORE = "sqlite:///", Path("mlruns/mlflow.db")
FIT = "medtransfer.fit"
# Where MLflow's tables have absolute paths.
PATHS = {
    "experiments": "artifact_location", "logged_models": "artifact_location", "runs": "artifact_uri",
    "model_versions": "storage_location",
}  # fmt: skip
NOTE = "mlflow.note.content"  # what MLflow shows as the description
DESCRIPTION = (
    "medtransfer: {}. One run per model and seed. Choose a model by validation/best/macro_f1; test/macro_f1 is for the "
    "report. A run with the tag medtransfer.superseded_by was fitted again."
)
# ImportError: the driver of a database is not installed.
REFUSED = (MlflowException, RequestException, SQLAlchemyError, sqlite3.Error, ImportError)
UNREACHABLE = (*REFUSED, OSError)
# MLflow's own defaults would delay a fit for minutes and draw progress bars.
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# With these, MLflow would log a fit late, or to the user's own run, experiment or model, or register a network
# elsewhere.
IGNORED = (
    "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_CONTEXT", "MLFLOW_REGISTRY_URI",
    "MLFLOW_ACTIVE_MODEL_ID", "MLFLOW_ENABLE_ASYNC_LOGGING",
)  # fmt: skip
SCHEMA = re.compile(r"database schema \(found version (\w+), but expected \w+\)")
MIGRATIONS = Path(mlflow.__file__).with_name("store") / "db_migrations" / "versions"  # one file per version of a schema
WORKSPACES = ("MLFLOW_ENABLE_WORKSPACES", "MLFLOW_WORKSPACE")  # of a server; a store in a file has none

# The addresses of stores that cannot be written, by those of their copies.
COPIED: dict[str, str] = {}


def connect(read_only: bool = False) -> mlflow.MlflowClient:
    """Connect MLflow to the user's server or to the project's own store, which is created if missing.

    With `read_only`, a store in a file that cannot be written is read from a copy. An address that MLflow refuses, such
    as one without http:// or that of a folder, is a UserError.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name in IGNORED:
        os.environ.pop(name, None)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # It warns in every sample of a metric that a GPU lacks.
    logging.getLogger("mlflow.system_metrics.metrics.gpu_monitor").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It prints the traceback of what it then raises, which we report in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns about every retry
    uri = store_uri()
    file = file_of(uri)
    if file and file.exists() and (fixed := read_only_of(file)):
        if not read_only:
            raise UserError(f"{fixed}: read-only, so MLflow cannot record runs there; fix the permissions")
        copy = address_of(_copy_of(file))
        COPIED[copy], uri = uri, copy
    mlflow.set_tracking_uri(uri)
    if not uri.startswith("http"):
        for name in WORKSPACES:
            os.environ.pop(name, None)
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = 5  # each waits twice as long: three seconds instead of two minutes
    with store_lock():
        try:
            client = mlflow.MlflowClient()  # creates the tables of a new store
            client.search_experiments(max_results=1)
        except (MlflowException, ValueError) as error:  # ValueError: urllib cannot divide it into parts
            if isinstance(error, MlflowException) and not is_invalid_value(error):
                raise
            if str(error).startswith("Failed to convert"):  # another variable of MLflow
                raise
            raise UserError(
                f"MLFLOW_TRACKING_URI: {address()}: refused by MLflow ({reason(error)}); expected sqlite:///FILE or "
                "the address of a server, http://HOST:PORT"
            ) from None
        keep_artifacts_here()
    return client


def read_only_of(file: Path) -> Path | None:
    """Return the store's folder or file, whichever this user cannot change, or None."""
    return next((path for path in (file.parent, file) if not os.access(path, os.W_OK)), None)


def _copy_of(file: Path) -> Path:
    """Copy a store to a temporary folder, which is removed when the process ends."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = Path(shutil.copyfile(file, Path(folder, file.name)))
    keep_artifacts_here(copy, file.parent)
    return copy


def store_uri() -> str:
    """Return the address of the user's store or else of the project's own; the path of a file is absolute.

    A relative path starts at the project: in a copy that DVC made for an experiment, at the original. Blanks around the
    address are ignored, such as the carriage return from a file with Windows line endings.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"{SQLITE}{OWN_STORE}"
    file = file_of(uri)
    if not file:
        return uri
    file = in_project(file)
    if file.is_dir():
        raise UserError(f"MLFLOW_TRACKING_URI: {file} is a folder; expected a file, such as {SQLITE}{OWN_STORE}")
    if set("?#") & set(file.name):
        raise UserError(
            f"MLFLOW_TRACKING_URI: {file.name}: has '?' or '#'; expected a file, such as {SQLITE}{OWN_STORE}"
        )
    if set("?#") & set(str(file.parent)):
        raise UserError(f"{file.parent}: MLflow cannot keep runs where a folder's name has '?' or '#'; rename it")
    return address_of(file)


def file_of(uri: str) -> Path | None:
    """Return the file of an SQLite store, or None if the address is not that of a file."""
    return Path(unquote(uri.removeprefix(SQLITE))) if uri.startswith(SQLITE) else None


def address_of(file: Path) -> str:
    """Return the address of an SQLite store."""
    return SQLITE + escaped(file)


def escaped(path: Path) -> str:
    """Return a path as part of an address: SQLAlchemy and MLflow would take `50%20` for the folder `50 `."""
    return str(path).replace("%", "%25")


def keep_artifacts_here(store: Path | None = None, mlruns: Path | None = None) -> None:
    """Let the artifact addresses in a store point to the folder mlruns/, from which MLflow may have been moved.

    MLflow stores absolute paths. After the project was moved or copied, or when a container sees it elsewhere, they
    would lead to another folder. By default, the store is MLflow's and the folder is that of the store.
    """
    file = store or file_of(mlflow.get_tracking_uri())
    if file is None or (mlruns or file.parent).name != OWN_STORE.parent.name:
        return
    here = Path(escaped(mlruns or file.parent))
    with closing(sqlite3.connect(file, timeout=20)) as tables, tables:
        found = tables.execute("SELECT artifact_location FROM experiments WHERE artifact_location NOT NULL").fetchall()
        places = [Path(location) for (location,) in found]
        # An experiment that is elsewhere and not here belongs to another project with the same database.
        foreign = {place.parent for place in places if place.is_dir() and not (here / place.name).is_dir()}
        for folder in {place.parent for place in places} - {here} - foreign:
            if folder.is_absolute() and folder.name == here.name:
                for table, path in PATHS.items():
                    tables.execute(
                        f"UPDATE {table} SET {path} = :new || substr({path}, length(:old) + 1) "  # noqa: S608
                        f"WHERE instr({path}, :old) = 1",
                        {"old": f"{folder}/", "new": f"{here}/"},
                    )


def is_there() -> bool:
    """Return whether there is a store, without creating one: a server or a file that exists."""
    file = file_of(store_uri())
    return file is None or file.exists()


def store_lock() -> Any:
    """Return a lock for a store in a file: processes that create its tables at the same time would fail."""
    file = file_of(mlflow.get_tracking_uri())
    if file is None:
        return nullcontext()
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{file}.lock")


def is_invalid_value(error: BaseException) -> bool:
    """Return whether MLflow refused an invalid value, which would be a bug of this project."""
    return isinstance(error, MlflowException) and error.error_code == "INVALID_PARAMETER_VALUE"


def redact(text: str) -> str:
    """Return a text with the user, password and token of every address replaced by ***."""
    text = re.sub(r"://\S*@", "://***@", text)
    return re.sub(r"(?i)([?&](?:user|password|token)=)[^&\s'\"]*", r"\1***", text)


def address() -> str:
    """Return MLflow's address without its password."""
    return redact(_original())


def _original() -> str:
    """Return MLflow's address, or that of the store whose copy it reads."""
    uri = mlflow.get_tracking_uri()
    return COPIED.get(uri, uri)


def reason(error: BaseException) -> str:
    """Return an exception's message on one line, without passwords: redacted before it is shortened.

    Before the cause of a failed download, MLflow repeats its address in three lines that end in #####.
    """
    return shortened(redact(str(error).rpartition("#####")[2]))


def warn_unreachable(error: BaseException) -> None:
    """Warn that MLflow does not answer; the fit goes on."""
    log.warning(
        "MLflow at %s does not answer (%s); the fit continues; run `medtransfer audit --repair` later to log it",
        address(),
        reason(error),
    )


def mlflow_command(arguments: str) -> str:
    """Return a command of MLflow for this store, quoted for a shell."""
    return f"`MLFLOW_TRACKING_URI={quoted(address())} mlflow {arguments}`"


def living_experiment(client: mlflow.MlflowClient, name: str) -> Any:
    """Return an experiment or None; a UserError if it was deleted, since its name is taken but it accepts no runs."""
    known = client.get_experiment_by_name(name)
    if known and known.lifecycle_stage == "deleted":
        restore = mlflow_command(f"experiments restore --experiment-id {known.experiment_id}")
        store = f"--backend-store-uri {quoted(address())} " if file_of(mlflow.get_tracking_uri()) else ""
        remove = mlflow_command(f"gc {store}--experiment-ids {known.experiment_id}")
        raise UserError(
            f"MLflow's experiment {name} at {address()} was deleted; restore it ({restore}) or remove it permanently "
            f"({remove}{'' if store else ' on the server'})"
        )
    return known


def set_experiment(name: str) -> None:
    """Use an experiment; create it first if it is missing.

    If two processes create it at once, mlflow.set_experiment returns it to the slower one without using it, and the
    runs of that process would go to the default experiment.
    """
    if not living_experiment(mlflow.MlflowClient(), name):
        with ignoring_existing():
            mlflow.create_experiment(name, tags={NOTE: DESCRIPTION.format(name)})
        keep_artifacts_here()  # if this is a copy that DVC made for an experiment
    mlflow.set_experiment(name)


@contextmanager
def ignoring_existing() -> Iterator[None]:
    """Ignore MLflow's refusal to create what exists already."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def answering() -> Iterator[None]:
    """Raise a UserError if MLflow does not answer: a traceback would show the password in its address."""
    try:
        yield
    except REFUSED as error:
        if is_invalid_value(error):
            raise
        file, found = file_of(_original()), SCHEMA.search(str(error))
        refused = getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED")
        if "database is locked" in str(error):
            remedy = "another program is using it; close that program and run again"
        elif "disk is full" in str(error):
            remedy = "free some space on that disk, and run again"
        elif found and list(MIGRATIONS.glob(f"{found[1]}_*")):
            remedy = f"back up the database, then run `mlflow db upgrade {quoted(address())}`, and run again"
        elif found:
            remedy = f"an MLflow newer than {mlflow.__version__} wrote it; use that version here too, or another store"
        elif refused:
            remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of an account that may do this"
        elif file:
            aside = quoted(file, f"{file}.damaged")
            remedy = f"if it is damaged, move it aside (mv -n {aside}) and run `medtransfer audit --repair`, "
            remedy += "which logs the fits again"
        elif "CERTIFICATE_VERIFY_FAILED" in str(error):
            remedy = "set MLFLOW_TRACKING_SERVER_CERT_PATH to the file with the server's certificate, and run again"
        else:
            remedy = "start it or correct MLFLOW_TRACKING_URI, and run again"
        why = found[0] if found else reason(error)  # MLflow advises an upgrade, whichever of the two is newer
        verb = "refuses this account" if refused else "does not answer"
        raise UserError(f"MLflow at {address()} {verb} ({why}); {remedy}") from None


@answering()
def reach(read_only: bool = False) -> mlflow.MlflowClient:
    """Connect, for a command that cannot work without MLflow."""
    return connect(read_only)


def every(search: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
    """Yield the results of one of a client's searches, page after page."""
    token = None
    while token != "":
        page = search(*arguments, page_token=token, **options)
        yield from page
        token = page.token or ""


def every_run(client: mlflow.MlflowClient, experiment_ids: list[str], condition: str = "") -> Iterator[Any]:
    """Yield all runs of these experiments, oldest first."""
    return every(client.search_runs, experiment_ids, condition, max_results=200, order_by=["start_time ASC"])
