"""tune: a grid of learning rates for each freezing configuration, compared on the validation images."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from medtransfer.core.errors import UserError, check_known
from medtransfer.core.files import atomic_file, sha256_of
from medtransfer.core.layout import PREPARED, TUNING_KEY, run_folder
from medtransfer.core.params import Params
from medtransfer.core.predictions import as_predictions
from medtransfer.core.prepared import read_dataset
from medtransfer.core.recipe import OLD_SCALING, TF, TrainParams
from medtransfer.core.tables import read_table
from medtransfer.metrics.scores import MACRO, score
from medtransfer.training.device import device_name, keep_freed_memory, make_deterministic
from medtransfer.training.experiment import build_network, cache_features
from medtransfer.training.loop import DivergedError, fit, predict


def tune(
    params: Params,
    dataset: str,
    names: list[str],
    rates: list[float],
    fraction: float | None,
    epochs: int,
    output: Path,
    optimizer: str | None = None,
) -> pd.DataFrame:
    """Train every configuration with every learning rate and score each trial on the validation images.

    Test images are not used. A trial that is already in `output`, with the same recipe and data, is not repeated. If
    training diverges, the validation loss is infinite.

    Parameters
    ----------
    fraction, optimizer : float, str
        Replace those of params.yaml.
    epochs : int
        At most; early stopping has the patience of params.yaml.

    Returns
    -------
    DataFrame
        One row per trial in `output` with these configurations, recipe and data, at any rate. Columns: TUNING_KEY;
        best_epoch, val_loss and val_macro_f1 after it; image_size, precision, device, seconds.
    """
    for name in names:
        check_known("params.yaml: configurations", name, params.configurations)
    keras.config.disable_interactive_logging()
    make_deterministic()
    keep_freed_memory()
    table = _read(output)
    data = read_dataset(params, dataset)
    asked = {"epochs": epochs, "optimizer": optimizer, "fraction": fraction}
    changes = {key: value for key, value in asked.items() if value is not None}
    found = []
    for name in names:
        recipe = params.configurations[name].settings(params.train, dataset).model_copy(update=changes)
        key = {
            "dataset": dataset, "configuration": name, "optimizer": recipe.optimizer, "fraction": recipe.fraction,
            "epochs": epochs, "seed": params.seeds[0], "made_from": _origin(params, data[2], name, recipe),
        }  # fmt: skip
        for rate in rates:
            if _matches(table, {**key, "learning_rate": rate}).any():
                continue
            settings = recipe.model_copy(update={"learning_rate": rate})
            row = {**key, "learning_rate": rate, **run_trial(params, data, name, settings)}
            table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
            with atomic_file(output) as path:
                table.to_csv(path, index=False)
            scores = f"validation loss {row['val_loss']:.4f}, macro F1 {row['val_macro_f1']:.3f}"
            print(f"{dataset} {name} with {recipe.optimizer} at {rate:g}: {scores}")
            keras.backend.clear_session()
        found.append(table[_matches(table, key)])
    return pd.concat(found, ignore_index=True)


def run_trial(
    params: Params, data: tuple[np.ndarray, pd.DataFrame, dict[str, Any]], name: str, settings: TrainParams
) -> dict[str, Any]:
    """Train one configuration and return its row without TUNING_KEY; `data` is that of `read_dataset`."""
    images, samples, description = data
    seed, configuration = params.seeds[0], params.configurations[name]
    classes, size = description["classes"], description["image_size"]
    model, _ = build_network(configuration, settings, size, len(classes), seed, params.weights.file)
    ready = cache_features(model, configuration, settings, images, samples, classes, seed, params.cache.max_gb)
    begin = time.perf_counter()
    try:
        history = fit(ready.network, ready.training, ready.validation, settings)
        seconds = float(history.seconds.sum())
        best = history.iloc[int(history.val_loss.argmin())]
        result = {"best_epoch": int(best.epoch), "val_loss": float(best.val_loss)}
        validation = np.flatnonzero(samples.split == "validation")
        probabilities = predict(ready.network, ready.inputs, validation, settings.batch_size)
        result["val_macro_f1"] = score(as_predictions(samples.iloc[validation], probabilities, classes))[MACRO]
    except DivergedError:
        seconds = time.perf_counter() - begin
        result = {"best_epoch": 0, "val_loss": np.inf, "val_macro_f1": np.nan}
    made = {"image_size": size, "precision": settings.precision, "device": device_name()}
    return {**result, **made, "seconds": round(seconds, 1)}


def _origin(params: Params, description: dict[str, Any], name: str, recipe: TrainParams) -> str:
    """Return a digest of what TUNING_KEY does not name: the rest of the recipe, initial weights, blocks and data."""
    configuration, seed = params.configurations[name], params.seeds[0]
    source = run_folder(*configuration.source, seed) / "model.keras" if configuration.source else None
    scaling = OLD_SCALING if recipe.scaling == TF else recipe.scaling  # so that earlier trials are found again
    facts = {
        "recipe": recipe.model_dump(exclude={"learning_rate"}) | {"scaling": scaling},
        "start": [configuration.weights, params.weights.file, source and source.exists() and sha256_of(source)],
        "blocks": configuration.blocks,
        "data": [description[key] for key in ("image_size", "resize_filter")],
        "samples": sha256_of(PREPARED / description["name"] / "samples.csv"),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _matches(table: pd.DataFrame, key: dict[str, Any]) -> pd.Series:
    return (table[list(key)] == pd.Series(key)).all(axis=1)


def _read(output: Path) -> pd.DataFrame:
    if not output.exists():
        return pd.DataFrame(columns=TUNING_KEY)
    try:
        return read_table(output, TUNING_KEY, dtype={"made_from": str}, keep_default_na=True)
    except UserError as error:
        raise UserError(f"{error}; name another file with --output") from None
