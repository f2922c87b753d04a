"""tune: search learning rates and other keys of `train` with Optuna, compared on the validation images."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import optuna
import pandas as pd
from optuna.trial import TrialState

from medtransfer.core.errors import UserError, check_known
from medtransfer.core.files import atomic_file, sha256_of
from medtransfer.core.layout import PREPARED, TUNING_KEY
from medtransfer.core.params import Params
from medtransfer.core.predictions import as_predictions, predicted_labels
from medtransfer.core.prepared import Prepared, read_dataset
from medtransfer.core.recipe import TrainParams
from medtransfer.core.tables import read_result
from medtransfer.metrics.scores import MACRO, score
from medtransfer.study.search_space import changed, check_space, decode, extremes, first_point
from medtransfer.study.shared_study import Plan, SharedStudy, living_process, storing
from medtransfer.tracking import mlflow_runs
from medtransfer.training.device import device_name, prepare_backend
from medtransfer.training.experiment import build_network, cache_features, find_source, training_rows
from medtransfer.training.loop import DivergedError, best_epoch, fit, predict

SCORES = ["best_epoch", "val_loss", "val_macro_f1", "predicted_classes"]
COLUMNS = [*TUNING_KEY, "searched", *SCORES, "image_size", "precision", "device", "seconds"]


def tune(params: Params, dataset: str, names: list[str], plan: Plan, output: Path) -> pd.DataFrame:
    """Search the settings of each configuration and score every trial on the validation images.

    Test images are not used. The same search continues where it stopped, and other processes may run it too. `output`
    is the CSV file of all trials; one with the same settings and data is not repeated. Optuna's studies are beside it,
    in a file that ends with .db.

    Returns
    -------
    DataFrame
        One row per finished trial of these searches: COLUMNS. `searched` is the point in JSON. The scores are those
        after the best epoch; the loss is infinite if training diverged, and a pruned trial has none.
    """
    recipes = {}
    for name in names:
        check_known("params.yaml: configurations", name, params.configurations)
        recipes[name] = params.configurations[name].settings(params.train, dataset)
        check_space(params, recipes[name], dataset, plan.space)
        if source := params.configurations[name].source:
            find_source(source, params.seeds[0])
    prepare_backend()
    data, file = read_dataset(params, dataset), output.with_suffix(".db")
    for fraction in extremes(plan.space["fraction"]) if "fraction" in plan.space else ():
        training_rows(data.samples, fraction, params.seeds[0])
    read_trials(output)
    found = []
    with living_process(file) as process, storing(file):
        for name, recipe in recipes.items():
            # A searched key's value in params.yaml does not matter, so another one stands for it.
            fixed = changed(params, recipe, dataset, first_point(plan.space))
            facts = {
                "search": {key: str(values) for key, values in plan.space.items()},
                "sampler": plan.sampler,
                "pruner": plan.pruner,
                "seed": params.seeds[0],
            }
            digest = _digest(facts | _origin(params, data.description, name, fixed.model_dump()))
            study = SharedStudy(file, f"{dataset} {name} {digest}", plan, params.seeds[0], process)
            found.append(_Search(params, data, name, recipe, study, output, facts).run())
    return pd.concat(found, ignore_index=True)


@dataclass(frozen=True)
class _Search:
    """The search of one configuration; `facts` become the parameters of its parent run in MLflow."""

    params: Params
    data: Prepared
    name: str
    recipe: TrainParams
    study: SharedStudy
    output: Path
    facts: dict[str, Any]

    def run(self) -> pd.DataFrame:
        """Run every trial that has not begun; return the rows of all that are finished."""
        parent = self.log_parent({})
        while trial := self.study.claim():
            point = decode(trial.params, self.study.plan.space)
            try:
                settings = changed(self.params, self.recipe, self.data.description["name"], point)
            except UserError as error:  # these values do not go together
                print(f"{self.name}: skipped: {error}")
                self.study.finish(trial, None, None)
                continue
            row = self.run_trial(trial, settings, parent) | {"searched": json.dumps(point)}
            pruned = np.isnan(row["val_loss"])
            self.study.finish(trial, row, None if pruned else float(np.nan_to_num(row["val_macro_f1"])))
            scores = f"validation loss {row['val_loss']:.4f}, macro F1 {row['val_macro_f1']:.3f}"
            print(f"{row['dataset']} {self.name} {row['searched']}: {'pruned' if pruned else scores}")
            self.write()
            keras.backend.clear_session()
        rows = self.write()
        if running := len(self.study.trials(TrialState.RUNNING)):
            print(f"{self.name}: {running} trials are still running in other processes; run again when they have ended")
        best = rows.val_macro_f1.max()
        self.log_parent({"trials": len(rows)} | ({f"{mlflow_runs.BEST}/macro_f1": best} if np.isfinite(best) else {}))
        return rows

    def log_parent(self, metrics: dict[str, float]) -> str | None:
        """Log the parent run and return its id; it does not stay open, because several processes share it."""
        tags = {"dataset": self.data.description["name"], "model": self.name, "optuna": optuna.__version__}
        experiment, study = f"tune {tags['dataset']}", self.study.name
        with self.study.lock, mlflow_runs.run(experiment, self.name, study, self.facts, tags, None) as run:
            run.log_metrics(metrics)
        return run.run_id

    def run_trial(self, trial: optuna.Trial, settings: TrainParams, parent: str | None) -> dict[str, Any]:
        """Return the row of a trial, from the CSV file if it is there; log it as a child of the parent run."""
        seed, dataset = self.params.seeds[0], self.data.description["name"]
        origin = _origin(self.params, self.data.description, self.name, settings.model_dump(exclude={"learning_rate"}))
        key = {"dataset": dataset, "configuration": self.name, "seed": seed, "made_from": _digest(origin)}
        key |= settings.model_dump(include={"optimizer", "learning_rate", "fraction", "epochs"})
        target = mlflow_runs.RunTarget(f"tune {dataset}", f"{self.name}-{trial.number}", parent)
        tags = {"dataset": dataset, "model": self.name, **target.tags}
        logged = {"train": settings.model_dump(), "seed": seed}
        fit_id = f"{self.study.name} {trial.number}"
        with mlflow_runs.run(target.experiment, target.name, fit_id, logged, tags, None) as run:

            def follow(epoch: dict[str, float]) -> bool:
                run.log_epochs([epoch])
                trial.report(epoch["val_macro_f1"], int(epoch["epoch"]))
                return trial.should_prune()

            table = read_trials(self.output)
            known = table[(table[list(key)] == pd.Series(key)).all(axis=1) & table.val_loss.notna()]
            if len(known):
                row = {str(column): value for column, value in known.to_dict("records")[0].items()}
            else:
                row = {**key, **train_trial(self.params, self.data, self.name, settings, follow)}
            best = {f"{mlflow_runs.BEST}/{key}": row[f"val_{key}"] for key in ("loss", "macro_f1")}
            run.log_metrics({key: value for key, value in best.items() if np.isfinite(value)})
        return row

    def write(self) -> pd.DataFrame:
        """Add the finished trials to the CSV file; return them."""
        rows = pd.DataFrame(self.study.rows(), columns=COLUMNS)
        with self.study.lock, atomic_file(self.output) as path:
            table = pd.concat([read_trials(self.output), rows], ignore_index=True)
            # Another search may have finished a trial that this one pruned.
            table = table.sort_values("val_loss", key=pd.isna, kind="stable").drop_duplicates(TUNING_KEY).sort_index()
            table.to_csv(path, index=False)
        return rows


def train_trial(
    params: Params, data: Prepared, name: str, settings: TrainParams, follow: Callable[[dict[str, float]], bool]
) -> dict[str, Any]:
    """Train one configuration and return its row without TUNING_KEY.

    `follow` gets each row of the history and returns whether to prune the trial.
    """
    _, samples, description = data
    seed, configuration = params.seeds[0], params.configurations[name]
    classes, size = description["classes"], description["image_size"]
    model, _ = build_network(configuration, settings, size, len(classes), seed, params.weights.file)
    ready = cache_features(model, configuration, settings, data, seed, params.cache.max_gb)
    pruned = False

    def on_epoch(history: list[dict[str, float]]) -> bool:
        nonlocal pruned
        pruned = follow(history[-1])
        return pruned

    begin = time.perf_counter()
    result = dict(zip(SCORES, (0, np.nan, np.nan, 0), strict=True))
    try:
        history = fit(ready.network, ready.training, ready.validation, settings, on_epoch)
        if not pruned:
            best = history.iloc[best_epoch(history, settings) - 1]
            rows = np.flatnonzero(samples.split == "validation")
            probabilities = predict(ready.network, ready.inputs, rows, settings.batch_size, settings.flip_axes)
            predicted = as_predictions(samples.iloc[rows], probabilities, classes)
            scores = score(predicted)[MACRO], predicted_labels(predicted).nunique()
            result = dict(zip(SCORES, (int(best.epoch), float(best.val_loss), *scores), strict=True))
    except DivergedError:
        result["val_loss"] = np.inf
    made = {"image_size": size, "precision": settings.precision, "device": device_name()}
    return {**result, **made, "seconds": round(time.perf_counter() - begin, 1)}


def _origin(params: Params, description: dict[str, Any], name: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the result of a trial: recipe, initial weights, blocks and data."""
    configuration, seed = params.configurations[name], params.seeds[0]
    source = configuration.source and sha256_of(find_source(configuration.source, seed))
    return {
        "recipe": recipe,
        "start": [configuration.weights, params.weights.file, source],
        "blocks": configuration.blocks,
        "data": [description[key] for key in ("image_size", "resize_filter", "white_level") if key in description],
        "samples": sha256_of(PREPARED / description["name"] / "samples.csv"),
    }


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def read_trials(output: Path) -> pd.DataFrame:
    """Return the trials in the CSV file, which may not exist yet; a UserError if it lacks one of COLUMNS."""
    if not output.exists():
        return pd.DataFrame(columns=COLUMNS)
    try:
        return read_result(output, COLUMNS, keep_default_na=True, float_precision="round_trip")
    except UserError as error:
        raise UserError(f"{error}; name another file with --output") from None
