"""train: artifacts/prepared/<dataset> → a network in artifacts/runs/<dataset>/<configuration>-seed<k>."""

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import keras
import numpy as np
import pandas as pd

from medtransfer.core.dvc import check_params_unchanged
from medtransfer.core.errors import check_known
from medtransfer.core.files import atomic_folder, sha256_of
from medtransfer.core.layout import PREPARED, checkpoints_folder, run_folder, run_name
from medtransfer.core.params import Configuration, Params
from medtransfer.core.prepared import read_dataset
from medtransfer.core.recipe import TrainParams
from medtransfer.core.run_record import write_record
from medtransfer.metrics.scores import MACRO, MICRO
from medtransfer.models import freezing, vgg16
from medtransfer.models.weights import digest
from medtransfer.pipeline.fit_id import claim_fit, remove_recorded_checkpoints
from medtransfer.pipeline.outputs import describe_fit, log_to_mlflow, mlflow_params, write_scores
from medtransfer.tracking import mlflow_models, mlflow_runs
from medtransfer.training.code import code_digest
from medtransfer.training.device import device_name, every_device, prepare_backend
from medtransfer.training.experiment import Experiment, build_network, cache_features
from medtransfer.training.loop import best_epoch, fit, predict

# What a classifier must know of the data; white_level only if the data set has one.
DATA_KEYS = ("image_size", "resize_filter", "split", "white_level")


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
    target : RunTarget, optional
        Where MLflow keeps the run; by default in the data set's experiment.
    origin : mapping, optional
        Entries of run.json that replace those found in this folder, such as `git_commit`.
    """
    check_known("params.yaml: configurations", name, params.configurations)
    remove_recorded_checkpoints()
    prepare_backend()
    target = target or mlflow_runs.RunTarget(dataset, run_name(name, seed))
    with every_device() as devices:
        _train(params, dataset, name, seed, target, {**(origin or {}), "devices": devices})


def _train(
    params: Params, dataset: str, name: str, seed: int, target: mlflow_runs.RunTarget, origin: Mapping[str, Any]
) -> None:
    configuration, outputs = params.configurations[name], run_folder(dataset, name, seed)
    settings = configuration.settings(params.train, dataset)
    images, samples, description = data = read_dataset(params, dataset)
    classes, size = description["classes"], description["image_size"]
    network, trained = build_network(configuration, settings, size, len(classes), seed, params.weights.file)
    counts = freezing.count_weights(network)
    hyperparameters = {
        "train": settings.model_dump(),
        "configuration": configuration.model_dump(exclude_none=True),
        "data": {key: description[key] for key in DATA_KEYS if key in description},
        "seed": seed,
        "weights": counts,
        "trainable_layers": ",".join(trained),
    }
    record = {**describe_fit(description, name, seed), **origin, **describe_network(configuration, settings)}
    weights = f"{counts['trainable']:,} weights"
    print(f"{dataset} {run_name(name, seed)} on {record['device']}: trains {', '.join(trained)} ({weights})")
    logged = mlflow_params(record, hyperparameters)
    inputs = {**describe_inputs(network, images, dataset, hyperparameters), "devices": origin["devices"]}
    checkpoints = checkpoints_folder(dataset, name, seed)
    with (
        claim_fit(checkpoints, outputs, inputs) as fit_id,
        atomic_folder(outputs) as folder,
        mlflow_runs.run(target.experiment, target.name, fit_id, logged, {**record, **target.tags}) as run,
    ):
        run.log_data(PREPARED / dataset / "samples.csv", record)
        ready = cache_features(network, configuration, settings, data, seed, params.cache.max_gb)
        # The last digits depend on whether the features come from the cache.
        inputs["stored_features"] = ready.uses_cached_features

        def log_saved(history: list[dict[str, float]]) -> None:
            # The last epoch's checkpoint is still being written; if that fails, the epoch is trained again.
            run.log_epochs(history[:-1])

        history = fit(ready.network, ready.training, ready.validation, settings, log_saved, checkpoints, inputs)
        scored = np.concatenate([np.flatnonzero(samples.split == split) for split in ("validation", "test")])
        probabilities = predict(ready.network, ready.inputs, scored, settings.batch_size, settings.flip_axes)
        check_params_unchanged(params, "train", f"configurations.{name}", "weights")
        metrics = write_scores(folder, samples.iloc[scored], probabilities, classes)
        history.to_csv(folder / "history.csv", index=False)
        # Without the optimizer, which would triple the size of the file.
        saved = keras.Model(network.inputs, network.outputs, name=network.name)
        saved.save(folder / "model.keras")
        outcome = {"fit": fit_id, **describe_outcome(ready, history, settings)}
        write_record(folder, {**record, **outcome, **counts}, hyperparameters)
        log_to_mlflow(run, folder)
        run.log_model(lambda: mlflow_models.log_keras_model(saved, np.asarray(images[:1])))
    print(f"test images: micro F1 {metrics[MICRO]:.3f}, macro F1 {metrics[MACRO]:.3f}")


def describe_network(configuration: Configuration, settings: TrainParams) -> dict[str, str]:
    """Return what run.json records about the network and where it is trained."""
    return {
        "kind": "network",
        "weights": configuration.weights,
        "trainable_blocks": ",".join((*configuration.blocks, freezing.HEAD)),
        "backend": keras.backend.backend(),
        "keras": version("keras"),
        "precision": settings.precision,
        "device": device_name(),
    }


def describe_outcome(ready: Experiment, history: pd.DataFrame, settings: TrainParams) -> dict[str, Any]:
    """Return what run.json records about the course of the fit."""
    return {
        "stored_features": ready.uses_cached_features,
        "feature_seconds": ready.feature_seconds,
        "training_images": len(ready.training.rows),
        "seconds": ready.setup_seconds + float(history.seconds.sum()),
        "epochs": len(history),
        "best_epoch": best_epoch(history, settings),
    }


def describe_inputs(
    network: keras.Model, images: np.ndarray, dataset: str, hyperparameters: dict[str, Any]
) -> dict[str, Any]:
    """Return everything that decides the result of a fit: an interrupted fit resumes only if nothing has changed."""
    backend = keras.backend.backend()
    return {
        "hyperparameters": hyperparameters,
        "start": digest(vgg16.get_base_weights(network)),
        "images": hashlib.sha256(images.data).hexdigest(),
        "samples": sha256_of(PREPARED / dataset / "samples.csv"),
        "backend": f"{backend} {version(backend)}",
        "keras": version("keras"),
        "device": device_name(),
        "code": code_digest(),
    }
