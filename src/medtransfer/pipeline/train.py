"""train: artifacts/prepared/<dataset> → a network in artifacts/runs/<dataset>/<configuration>-seed<k>."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from medtransfer.core.dvc import check_params_unchanged
from medtransfer.core.errors import check_known
from medtransfer.core.files import atomic_folder, sha256_of
from medtransfer.core.layout import PREPARED, run_folder, run_name, unfinished_folder
from medtransfer.core.params import Configuration, Params, TrainParams
from medtransfer.core.prepared import read_dataset
from medtransfer.core.run_record import write_record
from medtransfer.metrics.scores import MACRO, MICRO
from medtransfer.models import vgg16
from medtransfer.models.settings import read_settings
from medtransfer.models.weights import digest
from medtransfer.pipeline.outputs import describe_fit, tell_mlflow, write_scores
from medtransfer.pipeline.unfinished import claim_fit, end_fit, forget_recorded
from medtransfer.tracking import mlflow_models, mlflow_runs
from medtransfer.training.code import code_digest
from medtransfer.training.device import (
    device_name,
    every_device,
    keep_freed_memory,
    make_deterministic,
)  # fmt: skip
from medtransfer.training.experiment import Experiment, build_network, set_up
from medtransfer.training.feature_cache import hash_array
from medtransfer.training.loop import fit, predict


def train(
    params: Params,
    dataset: str,
    name: str,
    seed: int,
    target: mlflow_runs.RunTarget | None = None,
    origin: Mapping[str, str] | None = None,
) -> None:
    """Fit one freezing configuration and score it on the test images.

    Parameters
    ----------
    target : RunTarget
        Where MLflow keeps the run; in the data set's experiment unless given.
    origin : mapping
        What stands in for what is found in this folder, as `git_commit`.

    Raises
    ------
    UserError
        The configuration or what it begins from is missing, or the data or weights are not what was recorded.
    """
    check_known("params.yaml: configurations", name, params.configurations)
    forget_recorded()
    target = target or mlflow_runs.RunTarget(dataset, run_name(name, seed))
    keras.config.disable_interactive_logging()
    make_deterministic()
    keep_freed_memory()
    with every_device() as devices:
        _train(params, dataset, name, seed, target, {**(origin or {}), "devices": devices})


def _train(
    params: Params, dataset: str, name: str, seed: int, target: mlflow_runs.RunTarget, origin: Mapping[str, Any]
) -> None:
    configuration = params.configurations[name]
    settings = configuration.recipe(params.train, dataset)
    images, samples, description = read_dataset(params, dataset)
    classes = description["classes"]
    model, trained = build_network(
        configuration, settings, description["image_size"], len(classes), seed, params.weights.file
    )
    record = {**describe_fit(description, name, seed), **origin, **describe_network(configuration, settings)}
    hyperparameters = describe_hyperparameters(model, trained, configuration, settings, description, seed)
    check_network(model, hyperparameters, len(classes))
    counts = hyperparameters["weights"]
    print(f"{dataset} {run_name(name, seed)}: trains {', '.join(trained)} ({counts['trainable']:,} weights)")
    unfinished = unfinished_folder(dataset, name, seed)
    made_from = {**describe_origin(model, images, dataset, hyperparameters), "devices": origin["devices"]}
    fit_id = claim_fit(unfinished, made_from)
    with (
        atomic_folder(run_folder(dataset, name, seed)) as folder,
        mlflow_runs.run(target.experiment, target.name, fit_id, hyperparameters, {**record, **target.tags}) as run,
    ):
        run.log_data(samples, dataset, {key: record[key] for key in ("data_source", "data_version")})
        ready = set_up(model, configuration, settings, images, samples, classes, seed, params.cache.max_gb)
        # With the features in the cache or not, the last digits differ.
        made_from["stored_features"] = ready.uses_cached_features
        history = fit(ready.network, ready.training, ready.validation, settings, run.log_epochs, unfinished, made_from)
        history.to_csv(folder / "history.csv", index=False)
        asked = np.concatenate([np.flatnonzero(samples.split == split) for split in ("validation", "test")])
        probabilities = predict(ready.network, ready.inputs, asked, settings.batch_size)
        metrics = write_scores(folder, samples.iloc[asked], probabilities, classes)
        check_network(model, hyperparameters, len(classes))
        check_params_unchanged(params, "train", f"configurations.{name}", "weights")
        save_network(model, folder)
        outcome = {"fit": fit_id, **describe_outcome(ready, history)}
        write_record(folder, {**record, **outcome, **counts}, hyperparameters)
        tell_mlflow(run, folder)
        run.log_model(lambda: log_network(model, np.asarray(images[:1])))
    end_fit(unfinished, run_folder(dataset, name, seed))
    print(f"test images: micro F1 {metrics[MICRO]:.3f}, macro F1 {metrics[MACRO]:.3f}")


def describe_network(configuration: Configuration, settings: TrainParams) -> dict[str, Any]:
    """Return what run.json and MLflow's tags say of the network and of what computes it."""
    return {
        "kind": "network",
        "weights": configuration.weights,
        "trainable_blocks": ",".join((*configuration.blocks, vgg16.HEAD)),
        "backend": keras.backend.backend(),
        "precision": settings.precision,
        "device": device_name(),
    }


def describe_hyperparameters(
    model: keras.Model,
    trained: tuple[str, ...],
    configuration: Configuration,
    settings: TrainParams,
    description: dict[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Return the hyperparameters of a fit as MLflow and run.json hold them; `description` is dataset.json."""
    return {
        "train": settings.model_dump(),
        "configuration": configuration.model_dump(exclude_none=True),
        "data": {key: description[key] for key in ("image_size", "resize_filter", "split")},
        "seed": seed,
        "weights": vgg16.count_weights(model),
        "trainable_layers": ",".join(trained),
    }


def describe_outcome(ready: Experiment, history: pd.DataFrame) -> dict[str, Any]:
    """Return what run.json says of how a fit went."""
    return {
        "stored_features": ready.uses_cached_features,
        "feature_seconds": ready.feature_seconds,
        "training_images": len(ready.training.rows),
        "seconds": ready.setup_seconds + float(history.seconds.sum()),
        "epochs": len(history),
        "best_epoch": int(history.val_loss.to_numpy().argmin()) + 1,
    }


def describe_origin(
    model: keras.Model, images: np.ndarray, dataset: str, hyperparameters: dict[str, Any]
) -> dict[str, Any]:
    """Return all that decides what a fit ends with: an unfinished one goes on only where this is the same."""
    backend = keras.backend.backend()
    return {
        "hyperparameters": hyperparameters,
        "start": digest(vgg16.get_base_weights(model)),
        "images": hash_array(images),
        "samples": sha256_of(PREPARED / dataset / "samples.csv"),
        "backend": f"{backend} {version(backend)}",
        "keras": version("keras"),
        "device": device_name(),
        "code": code_digest(),
    }


def check_network(model: keras.Model, hyperparameters: dict[str, Any], classes: int) -> None:
    """Check that the network is what params.yaml, DVC and MLflow are told: anything else is a mistake of ours.

    `fit` checks the optimizer and its learning rate.
    """
    for key, found in {**read_settings(model.get_config()), "classes": model.output_shape[-1]}.items():
        said = {"classes": classes, **hyperparameters["train"], **hyperparameters}.get(key)
        if found != said:
            raise RuntimeError(f"the network's {key} is {found}, its parameters say {said}")


def save_network(model: keras.Model, folder: Path) -> None:
    """Write the whole network, pixels to probabilities, without the optimizer, which would treble the file."""
    _without_optimizer(model).save(folder / "model.keras")


def log_network(model: keras.Model, example: np.ndarray) -> None:
    """Log the whole network with an example (1, size, size, 3), uint8."""
    network = _without_optimizer(model)
    mlflow_models.log_keras_model(network, example, network.predict_on_batch(example), keras.backend.backend())


def _without_optimizer(model: keras.Model) -> keras.Model:
    return keras.Model(model.inputs, model.outputs, name=model.name)
