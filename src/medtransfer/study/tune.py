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
from medtransfer.core.params import Params, TrainParams
from medtransfer.core.predictions import as_predictions
from medtransfer.core.prepared import read_dataset
from medtransfer.metrics.scores import MACRO, score
from medtransfer.training.device import device_name, keep_freed_memory, make_deterministic
from medtransfer.training.experiment import build_network, set_up
from medtransfer.training.loop import DivergedError, fit, predict

FOUND = ["best_epoch", "val_loss", "val_macro_f1", "image_size", "precision", "device", "seconds"]


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
    """Train every configuration with every learning rate and write how well each did on the validation images.

    No test image is looked at. What `output` already holds of the same recipe and data is not trained again. A rate
    with which training diverges has a validation loss of infinity.

    Parameters
    ----------
    fraction, optimizer : float, str
        Instead of what params.yaml says of each configuration.
    epochs : int
        Early stopping, with the patience of params.yaml, may end a run before.

    Returns
    -------
    DataFrame
        The rows of `output` with these configurations, recipe and data, one per trial, whatever the rate: TUNING_KEY
        and FOUND; val_loss and val_macro_f1 are those after best_epoch.

    Raises
    ------
    UserError
        A configuration or what it begins from is missing, data or `output` are not as expected.
    """
    for name in names:
        check_known("params.yaml: configurations", name, params.configurations)
    keras.config.disable_interactive_logging()
    make_deterministic()
    keep_freed_memory()
    table = _read(output)
    data = read_dataset(params, dataset)
    asked = []
    for name in names:
        recipe = _recipe(params, dataset, name, epochs=epochs, optimizer=optimizer, fraction=fraction)
        key = {
            "dataset": dataset, "configuration": name, "optimizer": recipe.optimizer, "fraction": recipe.fraction,
            "epochs": epochs, "seed": params.seeds[0], "made_from": _origin(params, data[2], name, recipe),
        }  # fmt: skip
        for rate in rates:
            if _rows(table, {**key, "learning_rate": rate}).any():
                continue
            settings = recipe.model_copy(update={"learning_rate": rate})
            row = {**key, "learning_rate": rate, **_run_trial(params, data, name, settings)}
            table = pd.concat([table, pd.DataFrame([row])[[*TUNING_KEY, *FOUND]]], ignore_index=True)
            with atomic_file(output) as path:
                table.to_csv(path, index=False)
            scores = f"validation loss {row['val_loss']:.4f}, macro F1 {row['val_macro_f1']:.3f}"
            print(f"{dataset} {name} with {recipe.optimizer} at {rate:g}: {scores}")
            keras.backend.clear_session()
        asked.append(table[_rows(table, key)])
    return pd.concat(asked, ignore_index=True)


def _recipe(params: Params, dataset: str, name: str, **changes: Any) -> TrainParams:
    """Return a configuration's recipe with the changes that are not None."""
    recipe = params.configurations[name].recipe(params.train, dataset)
    return recipe.model_copy(update={key: value for key, value in changes.items() if value is not None})


def _rows(table: pd.DataFrame, key: dict[str, Any]) -> pd.Series:
    return (table[list(key)] == pd.Series(key)).all(axis=1)


def _origin(params: Params, description: dict[str, Any], name: str, recipe: TrainParams) -> str:
    """Return a digest of what decides a try beside the rest of TUNING_KEY: recipe, start, blocks and data."""
    configuration, seed = params.configurations[name], params.seeds[0]
    source = run_folder(*configuration.source, seed) / "model.keras" if configuration.source else None
    facts = {
        "recipe": recipe.model_dump(exclude={"learning_rate"}),
        "start": [configuration.weights, params.weights.file, source and source.exists() and sha256_of(source)],
        "blocks": configuration.blocks,
        "data": [description[key] for key in ("image_size", "resize_filter")],
        "samples": sha256_of(PREPARED / description["name"] / "samples.csv"),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _read(output: Path) -> pd.DataFrame:
    if not output.exists():
        return pd.DataFrame(columns=TUNING_KEY)
    try:
        table = pd.read_csv(output, dtype={"made_from": str})
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{output}: cannot be read as CSV ({reason}); name another file with --output") from None
    missing = [name for name in TUNING_KEY if name not in table]
    if missing:
        raise UserError(f"{output}: column {missing[0]} is missing; name another file with --output")
    return table


def _run_trial(
    params: Params, data: tuple[np.ndarray, pd.DataFrame, dict[str, Any]], name: str, settings: TrainParams
) -> dict[str, Any]:
    images, samples, description = data
    seed, configuration, classes = params.seeds[0], params.configurations[name], description["classes"]
    model, _ = build_network(
        configuration, settings, description["image_size"], len(classes), seed, params.weights.file
    )
    ready = set_up(model, configuration, settings, images, samples, classes, seed, params.cache.max_gb)
    made = {"image_size": description["image_size"], "precision": settings.precision, "device": device_name()}
    begin = time.perf_counter()
    try:
        history = fit(ready.network, ready.training, ready.validation, settings)
    except DivergedError:
        seconds = round(time.perf_counter() - begin, 1)
        return {"best_epoch": 0, "val_loss": np.inf, "val_macro_f1": np.nan, **made, "seconds": seconds}
    best = history.iloc[int(history.val_loss.to_numpy().argmin())]
    validation = np.flatnonzero(samples.split == "validation")
    probabilities = predict(ready.network, ready.inputs, validation, settings.batch_size)
    return {
        "best_epoch": int(best.epoch),
        "val_loss": float(best.val_loss),
        "val_macro_f1": _macro_f1(samples.iloc[validation], probabilities, classes),
        **made,
        "seconds": round(float(history.seconds.sum()), 1),
    }


def _macro_f1(samples: pd.DataFrame, probabilities: np.ndarray, classes: list[str]) -> float:
    return score(as_predictions(samples, probabilities, classes))[MACRO]
