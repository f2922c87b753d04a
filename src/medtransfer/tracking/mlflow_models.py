"""Models in MLflow: logging a fitted network or tree, and the registry of classifiers."""

import errno
import importlib.metadata
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature, infer_signature
from mlflow.types import ColSpec, Schema

from medtransfer.core.errors import UserError
from medtransfer.core.files import sha256_of
from medtransfer.core.layout import CARD, FACTS, NETWORK, TRAINING
from medtransfer.core.predictions import probability_columns
from medtransfer.tracking.mlflow_store import FIT, UNREACHABLE, address, every, ignoring_existing, reach, reason, redact

MODEL, CLASSIFIER = "model", "classifier"
MODEL_FILES = ("model.keras", "model.skops")
MODEL_DIGEST = "medtransfer.sha256"
BEST = "best"
DIGEST = "medtransfer.network"
# A registered classifier's files, and the tags with their SHA-256.
REGISTERED = {NETWORK: DIGEST, FACTS: "medtransfer.classifier", TRAINING: "medtransfer.training"}
MAX_DESCRIPTION = 5000  # MLflow's
PACKAGE = Path(__file__).parent.parent
SERVING = (
    "mlflow", "filelock", "keras", "matplotlib", "numpy", "nvidia-ml-py", "pandas", "pillow", "pydantic", "pydicom",
    "ruamel.yaml", "scikit-learn", "scipy",
)  # fmt: skip
NOT_REGISTERED = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the second if only the alias is missing


def registered(client: mlflow.MlflowClient) -> list[Any]:
    """Return the versions of the registered models that `register_classifier` made."""
    return [version for version in every(client.search_model_versions) if DIGEST in version.tags]


def model_problem(client: mlflow.MlflowClient, run: Any, read: bool = True) -> str:
    """Return what is wrong with the run's logged model, or an empty string; `read` checks its files too."""
    ready = [model for model in models_of(client, run) if model.status == "READY"]
    # The empty string, if one of several is undamaged, is the smallest.
    return min((_problem_of(model) if read else "" for model in ready), default="has no model")


def _problem_of(model: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            mlflow.artifacts.download_artifacts(artifact_uri=model.artifact_location, dst_path=folder)
        except UNREACHABLE as error:
            return f"has a model whose files cannot be read ({reason(error)})"
        digests = _digests_of_model(Path(folder))
    if not digests:
        return f"has a model without {' or '.join(MODEL_FILES)}"
    logged = model.tags.get(MODEL_DIGEST)
    return "" if logged in digests else "has a model whose file is not the one that was logged"


def _digests_of_model(folder: Path) -> list[str]:
    return [sha256_of(path) for path in sorted(folder.rglob("*")) if path.name in MODEL_FILES]


def models_of(client: mlflow.MlflowClient, run: Any) -> list[Any]:
    """Return the fit's models; the run may also have classifiers for the registry."""
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return [model for model in models if model.name == MODEL]


def log_keras_model(model: Any, images: np.ndarray) -> None:
    """Log a network that takes raw pixels; `images` (n, size, size, 3), uint8, is its input example."""
    import keras

    _log_model(
        _save_keras_model,
        "keras",
        model=model,
        signature=infer_signature(images, model.predict_on_batch(images)),
        input_example=images,
        pip_requirements=_pinned("mlflow", "keras", "numpy", keras.backend.backend()),
        # Validation would load the network again after every fit; a test compares a loaded network's predictions.
        validate_serving_input=False,
    )


def _save_keras_model(path: str, validate_serving_input: bool, **arguments: Any) -> None:
    # save_model writes the input example into this folder before creating it (mlflow/mlflow#16183).
    Path(path).mkdir(parents=True)
    mlflow.keras.save_model(path=path, **arguments)


def log_sklearn_model(model: Any, features: np.ndarray, trusted_types: Sequence[str]) -> None:
    """Log a tree; `features` (n, size · size · 3), uint8, is its input example."""
    _log_model(
        mlflow.sklearn.save_model,
        "sklearn",
        sk_model=model,
        signature=infer_signature(features, model.predict_proba(features)),
        input_example=features,
        serialization_format="skops",
        skops_trusted_types=list(trusted_types),
        pyfunc_predict_fn="predict_proba",
        pip_requirements=_pinned("mlflow", "scikit-learn", "skops", "numpy"),
    )


def _log_model(save: Callable[..., None], flavor: str, **arguments: Any) -> None:
    """Log a model with the SHA-256 of its file, computed before the upload."""
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


def register_classifier(run_id: str, folder: Path, facts: Mapping[str, Any], alias: str) -> str:
    """Log the folder of a classifier with the run of its fit, register it with an alias and return its version.

    Its model card becomes the version's description. A version that is already registered and undamaged is reused.
    """
    import keras

    client, name = reach(), facts["dataset"]
    tags = {FIT: facts["fit"], **{tag: sha256_of(folder / file) for file, tag in REGISTERED.items()}}
    with ignoring_existing():
        client.create_registered_model(name)
    for known in client.search_model_versions(f"name = '{name}'"):
        if tags.items() <= known.tags.items() and not list(registered_problems(known)):
            client.set_registered_model_alias(name, alias, known.version)
            return str(known.version)
    columns = [ColSpec("double", column) for column in probability_columns(facts["classes"])]
    mlflow.set_experiment(experiment_id=client.get_run(run_id).info.experiment_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # MLflow recommends an input example
        logged = Model.log(
            artifact_path=None,
            name=folder.name,
            flavor=mlflow.pyfunc,
            run_id=run_id,  # does not restart the run
            python_model=str(PACKAGE / "serving" / "served.py"),
            artifacts={folder.name: str(folder)},
            code_paths=[str(PACKAGE)],
            signature=ModelSignature(
                Schema([ColSpec("binary", "image")]),
                Schema([ColSpec("string", "predicted"), *columns, ColSpec("boolean", "unlike_training")]),
            ),
            pip_requirements=_pinned(*SERVING, keras.backend.backend()),
        )
    card = (folder / CARD).read_text(encoding="utf-8")[:MAX_DESCRIPTION]
    version = client.create_model_version(
        name, logged.model_uri, run_id, tags, description=card, model_id=logged.model_id
    )
    client.set_registered_model_alias(name, alias, version.version)
    return str(version.version)


def registered_problems(version: Any) -> Iterator[str]:
    """Download a registered classifier and yield what is wrong with it."""
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
    """Download a registered classifier into a folder; return its path and the SHA-256 of its files by name.

    The digests come from the registry, so changed files cannot change them.
    `uri` is, for example, `models:/ham10000@best` or `models:/ham10000/2`.
    """
    parts = re.fullmatch(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))", uri)
    if not parts:
        expected = "models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN/model"
        raise UserError(f"{uri}: not the address of a model; expected {expected}")
    client = reach(read_only=True)
    name, alias, version = parts["name"], parts["alias"], parts["version"]
    try:
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
        if DIGEST not in found.tags:
            raise UserError(f"{uri}: version {found.version} has no tag {DIGEST}; run `medtransfer register {name}`")
        source = f"models:/{name}/{found.version}/artifacts/{CLASSIFIER}"
        return Path(mlflow.artifacts.download_artifacts(source, dst_path=str(folder))), {
            file: found.tags[tag] for file, tag in REGISTERED.items() if tag in found.tags
        }
    except (*UNREACHABLE, ValueError) as error:
        # MLflow's long message contains the error of the disk to which it copies.
        if full := re.search(rf"\[Errno ({errno.ENOSPC}|{errno.EDQUOT}|{errno.EFBIG})\]", str(error)):
            raise OSError(int(full[1]), os.strerror(int(full[1])), str(folder)) from None
        known = isinstance(error, MlflowException) and error.error_code in NOT_REGISTERED
        advice = f"; run `medtransfer register {name}`" if known and alias == BEST else ""
        raise UserError(f"{redact(uri)}: not available from {address()} ({reason(error)}){advice}") from None


def _pinned(*packages: str) -> list[str]:
    return [f"{package}=={importlib.metadata.version(package)}" for package in packages]
