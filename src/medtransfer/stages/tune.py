"""tune: a grid of learning rates for each freezing configuration, compared on the validation images."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from medtransfer.errors import UserError
from medtransfer.evaluation.metrics import MACRO, score
from medtransfer.files import whole_file
from medtransfer.models import vgg16
from medtransfer.params import Params, TrainParams
from medtransfer.stages.inputs import encode_labels, read_dataset, training_rows
from medtransfer.stages.layout import TUNING_KEY
from medtransfer.stages.train import load_start
from medtransfer.training.batches import Batches
from medtransfer.training.device import device_name, keep_freed_memory, make_deterministic
from medtransfer.training.fit import fit, predict
from medtransfer.training.prefix import leave_out_prefix


def tune(
    params: Params,
    dataset: str,
    names: list[str],
    rates: list[float],
    fraction: float,
    epochs: int,
    output: Path,
    optimizer: str | None = None,
) -> pd.DataFrame:
    """Train every configuration with every learning rate and write how well each did on the validation images.

    No test image is looked at. What `output` already holds is not trained again.

    Parameters
    ----------
    fraction : float
        The part of the training images that is used, the same classes' shares in it.
    epochs : int
        Early stopping, with the patience of params.yaml, may end a run before.
    optimizer : str
        Instead of what params.yaml says of each configuration.

    Returns
    -------
    DataFrame
        A row a run: TUNING_KEY, best_epoch, val_loss and val_macro_f1 after it, image_size, precision, device, seconds.
    """
    unknown = [name for name in names if name not in params.configurations]
    if unknown:
        raise UserError(
            f"params.yaml: configurations.{unknown[0]}: missing; there are {', '.join(params.configurations)}"
        )
    keras.config.disable_interactive_logging()
    make_deterministic()
    keep_freed_memory()
    table = _read(output)
    for name in names:
        recipe = params.configurations[name].recipe(params.train, dataset)
        used = optimizer or recipe.optimizer
        for rate in rates:
            settings = recipe.model_copy(update={"learning_rate": rate, "epochs": epochs, "optimizer": used})
            key = dict(zip(TUNING_KEY, (dataset, name, used, rate, fraction, epochs, params.seeds[0]), strict=True))
            if (table[TUNING_KEY] == pd.Series(key)).all(axis=1).any():
                continue
            row = {**key, **_try(params, dataset, name, settings, fraction)}
            table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
            with whole_file(output) as path:
                table.to_csv(path, index=False)
            print(
                f"{dataset} {name} with {used} at {rate:g}: "
                f"validation loss {row['val_loss']:.4f}, macro F1 {row['val_macro_f1']:.3f}"
            )
            keras.backend.clear_session()
    return table


def _read(output: Path) -> pd.DataFrame:
    if not output.exists():
        return pd.DataFrame(columns=TUNING_KEY)
    table = pd.read_csv(output)
    missing = [name for name in TUNING_KEY if name not in table]
    if missing:
        raise UserError(f"{output}: column {missing[0]} is missing; name another file with --output")
    return table


def _try(params: Params, dataset: str, name: str, settings: TrainParams, fraction: float) -> dict[str, Any]:
    images, samples, description = read_dataset(params, dataset)
    seed, configuration = params.seeds[0], params.configurations[name]
    model = vgg16.build_vgg16(description["image_size"], len(description["classes"]), settings, seed)
    load_start(model, configuration, params, seed)
    vgg16.set_trainable(model, configuration.blocks)
    network, inputs, _ = leave_out_prefix(model, configuration.blocks, settings, images, params.cache.max_gb)
    labels, rows = encode_labels(samples, description["classes"]), training_rows(samples, fraction, seed)
    validation = np.flatnonzero(samples.split == "validation")
    history = fit(
        network,
        Batches(inputs, rows, labels, settings.batch_size, seed, settings.balance),
        Batches(inputs, validation, labels, settings.batch_size),
        settings,
    )
    best = history.iloc[int(history.val_loss.to_numpy().argmin())]
    probabilities = predict(network, inputs, validation, settings.batch_size)
    return {
        "best_epoch": int(best.epoch),
        "val_loss": float(best.val_loss),
        "val_macro_f1": _macro_f1(samples.iloc[validation], probabilities, description["classes"]),
        "image_size": description["image_size"],
        "precision": settings.precision,
        "device": device_name(),
        "seconds": round(float(history.seconds.sum()), 1),
    }


def _macro_f1(samples: pd.DataFrame, probabilities: np.ndarray, classes: list[str]) -> float:
    table = samples[["id", "group", "split", "label"]].reset_index(drop=True)
    table[[f"p_{name}" for name in classes]] = probabilities
    return score(table)[MACRO]
