"""train: artifacts/prepared/<dataset> → a network in artifacts/runs/<dataset>/<configuration>-seed<k>."""

import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from medtransfer import tracking
from medtransfer.errors import UserError
from medtransfer.evaluation.metrics import MACRO, MICRO
from medtransfer.files import whole_folder, write_json
from medtransfer.models import vgg16
from medtransfer.models.weights import imagenet_weights
from medtransfer.params import Configuration, Params, TrainParams
from medtransfer.stages.inputs import encode_labels, read_dataset
from medtransfer.stages.layout import run_folder, run_name
from medtransfer.stages.results import describe_fit, write_scores
from medtransfer.training.batches import Batches
from medtransfer.training.device import device_name, make_deterministic, place_on_device
from medtransfer.training.fit import fit, predict
from medtransfer.training.prefix import leave_out_prefix


def train(params: Params, dataset: str, name: str, seed: int) -> None:
    """Fit one freezing configuration and score it on the test images."""
    if name not in params.configurations:
        raise UserError(f"params.yaml: configurations.{name}: missing; there are {', '.join(params.configurations)}")
    configuration, settings = params.configurations[name], params.train
    keras.config.disable_interactive_logging()
    make_deterministic()
    images, samples, description = read_dataset(dataset)
    classes = description["classes"]
    model = vgg16.build_vgg16(description["image_size"], len(classes), settings, seed)
    load_start(model, configuration, params, seed)
    trained = vgg16.set_trainable(model, configuration.blocks)
    counts = vgg16.count_weights(model)
    record = {
        **describe_fit(description, name, seed),
        "kind": "network",
        "weights": configuration.weights,
        "trainable_blocks": ",".join((*configuration.blocks, vgg16.HEAD)),
        "backend": keras.backend.backend(),
        "precision": settings.precision,
        "device": device_name(),
    }
    hyperparameters = {
        "train": settings.model_dump(),
        "configuration": configuration.model_dump(),
        "data": {key: description[key] for key in ("image_size", "resize_filter", "split")},
        "seed": seed,
        "weights": counts,
        "trainable_layers": ",".join(trained),
    }
    print(f"{dataset} {run_name(name, seed)}: trains {', '.join(trained)} ({counts['trainable']:,} weights)")
    with (
        whole_folder(run_folder(dataset, name, seed)) as folder,
        tracking.run(dataset, run_name(name, seed), hyperparameters, record) as run_id,
    ):
        tracking.log_data(samples, dataset, {key: record[key] for key in ("data_source", "data_version")})
        begin = time.perf_counter()
        network, inputs = leave_out_prefix(model, configuration.blocks, settings, images, params.cache.max_gb)
        seconds = time.perf_counter() - begin
        history = fit_and_score(network, place_on_device(inputs), samples, classes, settings, seed, folder)
        seconds += float(history.seconds.sum())
        tracking.log_metrics({"seconds_total": seconds, "epochs_run": len(history)})
        save_network(model, np.asarray(images[:1]), folder)
        outcome = {
            "mlflow_run_id": run_id,
            "stored_features": network is not model,
            "seconds": seconds,
            "epochs": len(history),
            "best_epoch": int(history.val_loss.to_numpy().argmin()) + 1,
        }
        write_json(folder / "run.json", {**record, **outcome, **counts})


def fit_and_score(
    network: keras.Model,
    inputs: Any,
    samples: pd.DataFrame,
    classes: list[str],
    settings: TrainParams,
    seed: int,
    folder: Path,
) -> pd.DataFrame:
    """Fit a network and write history, predictions and metrics; return the history."""
    labels = encode_labels(samples, classes)
    rows = {split: np.flatnonzero(samples.split == split) for split in ("train", "validation", "test")}
    training = Batches(inputs, rows["train"], labels, settings.batch_size, seed)
    validation = Batches(inputs, rows["validation"], labels, settings.batch_size)
    history = fit(network, training, validation, settings, tracking.log_epoch)
    history.to_csv(folder / "history.csv", index=False)
    asked = np.concatenate([rows["validation"], rows["test"]])
    probabilities = predict(network, inputs, asked, settings.batch_size)
    metrics = write_scores(folder, samples.iloc[asked], probabilities, classes)
    print(f"test images: micro F1 {metrics[MICRO]:.3f}, macro F1 {metrics[MACRO]:.3f}")
    return history


def save_network(model: keras.Model, example: np.ndarray, folder: Path) -> None:
    """Write the whole network, pixels to probabilities, and log it with an example (1, size, size, 3), uint8."""
    # Without the optimizer, which would treble the file.
    network = keras.Model(model.inputs, model.outputs, name=model.name)
    network.save(folder / "model.keras")
    tracking.log_keras_model(network, example, network.predict_on_batch(example), keras.backend.backend())


def load_start(model: keras.Model, configuration: Configuration, params: Params, seed: int) -> None:
    """Give the convolutional base the weights that the configuration begins from."""
    if configuration.source:
        source = run_folder(*configuration.source, seed) / "model.keras"
        if not source.exists():
            raise UserError(f"{source}: not found; run `dvc repro`")
        vgg16.set_base_weights(model, vgg16.get_base_weights(keras.models.load_model(source, compile=False)))
    elif configuration.weights == "imagenet":
        vgg16.set_base_weights(model, imagenet_weights(params.weights.file))
