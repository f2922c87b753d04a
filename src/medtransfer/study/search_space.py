"""The search space of tune: dotted keys of `train` with the values to try, as Optuna's distributions.

A listed value is a choice in JSON: Optuna cannot store lists in SQLite.
"""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from medtransfer.core.errors import UserError, counted, shortened
from medtransfer.core.params import Configuration, Params, validate_params, value_of
from medtransfer.core.recipe import RECIPES, Section, TrainParams

Values = CategoricalDistribution | FloatDistribution | IntDistribution
Space = dict[str, Values]
OPTION = "--search"
RANGE = re.compile(r"([^:\[{,]+):([^:]+?)(:log)?")
SHORTER = ("fraction", "epochs")  # a single value only makes the trials shorter, so it is not recommended
EDGE = 0.05  # a value in the outer 5% of a range is at its edge


def parse_space(texts: list[str]) -> Space:
    """Return the search space of options such as `learning_rate=1e-5:1e-3:log` and `dropout=0.3,0.5`."""
    space: Space = {}
    for text in texts:
        key, _, values = text.partition("=")
        if key in space:
            raise UserError(f"{OPTION} {text}: {key} is listed twice; give each key once")
        try:
            space[key] = _distribution(values)
        except (YAMLError, ValueError, TypeError) as error:
            raise UserError(
                f"{OPTION} {text}: {shortened(error)}; expected KEY=VALUE,VALUE or KEY=LOW:HIGH or KEY=LOW:HIGH:log"
            ) from None
    return space


def _distribution(values: str) -> Values:
    load = YAML(typ="safe").load
    if bounds := RANGE.fullmatch(values):
        low, high = load(bounds[1]), load(bounds[2])
        if not all(math.isfinite(bound) for bound in (low, high)):
            raise ValueError(f"the range from {low} to {high} is not finite")
        kind = IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
        return kind(low, high, log=bool(bounds[3]))
    choices = [json.dumps(value) for value in load(f"[{values}]")]
    if twice := [choice for choice in choices if choices.count(choice) > 1]:
        raise ValueError(f"{twice[0]} is listed twice")
    return CategoricalDistribution(choices)


def check_space(params: Params, recipe: TrainParams, dataset: str, space: Space) -> None:
    """Check each choice and both ends of each range, with the first values of the other keys.

    A UserError if `train` has no such key or refuses a value.
    """
    for key, values in space.items():
        for value in extremes(values):
            changed(params, recipe, dataset, {**first_point(space), key: value})


def first_point(space: Space) -> dict[str, Any]:
    """Return the first value of each key."""
    return {key: extremes(values)[0] for key, values in space.items()}


def extremes(values: Values) -> list[Any]:
    """Return all choices, or the ends of a range."""
    if isinstance(values, CategoricalDistribution):
        return [json.loads(str(choice)) for choice in values.choices]
    return [values.low, values.high]


def changed(params: Params, recipe: TrainParams, dataset: str, point: Mapping[str, Any]) -> TrainParams:
    """Return the recipe with the values of a point; a UserError if params.yaml could not have them.

    A named recipe in the point replaces all its keys, except those that are in the point too.
    """
    train = recipe.model_dump()
    named = RECIPES.get(str(point.get("recipe")), {})
    train |= {key: value.model_dump() if isinstance(value, Section) else value for key, value in named.items()}
    for key, value in point.items():
        *sections, last = key.split(".")
        place = train
        for section in sections:
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        place[last] = value
    return validate_params({**params.model_dump(), "train": train}, OPTION).train.on(dataset)


def grid(space: Space) -> list[dict[str, Any]]:
    """Return every combination of the choices, as Optuna stores them; a UserError if a key has a range."""
    choices = {}
    for key, values in space.items():
        if not isinstance(values, CategoricalDistribution):
            raise UserError(f"{OPTION} {key}: a grid has no ranges; list the values, or add --sampler random or tpe")
        choices[key] = values.choices
    return [dict(zip(choices, point, strict=True)) for point in itertools.product(*choices.values())]


def decode(stored: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Return the values of a trial's parameters; those from a range are rounded to three digits within it."""
    point = dict(stored)
    for key, value in stored.items():
        values = space[key]
        if isinstance(values, CategoricalDistribution):
            point[key] = json.loads(value)
        elif isinstance(values, FloatDistribution):
            point[key] = min(max(float(f"{value:.3g}"), values.low), values.high)
    return point


def at_edge(space: Space, point: Mapping[str, Any]) -> list[str]:
    """Return a line for each number of a point that is the smallest or largest of those that were searched."""
    lines = []
    for key, value in point.items():
        values = space[key]
        numbers = extremes(values)
        if values.single() or not all(type(number) in (int, float) for number in numbers):
            continue
        low, high = min(numbers), max(numbers)
        scale = math.log if getattr(values, "log", False) else float
        margin = 0 if isinstance(values, CategoricalDistribution) else EDGE * (scale(high) - scale(low))
        if not scale(low) + margin < scale(value) < scale(high) - margin:
            lines.append(f"{key}: {value:g} is at the edge of {low:g} to {high:g}; search beyond it")
    return lines


def advice(params: Params, dataset: str, name: str, space: Space, trials: pd.DataFrame) -> Iterator[str]:
    """Yield the lines that tell the user which settings of one configuration are best."""
    best = choose(trials)
    if best is None:
        yield f"{name}: {counted(len(trials), 'trial')}; each diverged, was pruned or predicts only one class"
        return
    own = params.configurations[name].settings(params.train, dataset).model_dump()
    point = {
        key: value
        for key, value in json.loads(best.searched).items()
        if not space[key].single() or key == "learning_rate" or (key not in SHORTER and value_of(own, key) != value)
    }
    scores = f"macro F1 {best.val_macro_f1:.3f}, validation loss {best.val_loss:.4f}"
    yield f"{name}: {for_params(params, dataset, name, point)}  # {scores}, best of {counted(len(trials), 'trial')}"
    yield from (f"{name}: {line}" for line in at_edge(space, point))


def choose(trials: pd.DataFrame) -> pd.Series | None:
    """Return the trial with the best validation macro F1, and the lower loss in a tie, or None if none is eligible.

    A trial is not eligible if it diverged, was pruned, or its network predicts only one class.
    """
    eligible = trials[np.isfinite(trials.val_loss) & (trials.predicted_classes > 1)]
    ordered = eligible.sort_values(["val_macro_f1", "val_loss"], ascending=[False, True], kind="stable")
    return ordered.iloc[0] if len(ordered) else None


def for_params(params: Params, dataset: str, name: str, point: Mapping[str, Any]) -> str:
    """Return the values of a point as they stand in a configuration's entry in params.yaml.

    The rates of other data sets stay. `augment` is given in full, since that of a configuration replaces the common
    one. Keys that a configuration cannot override begin with `train.`.
    """
    configuration = params.configurations[name]
    if any(key.startswith("augment.") for key in point):
        trial = changed(params, configuration.settings(params.train, dataset), dataset, point)
        point = {key: value for key, value in point.items() if not key.startswith("augment.")}
        point["augment"] = trial.augment.model_dump(exclude_defaults=True)
    values = {key if key in Configuration.model_fields else f"train.{key}": value for key, value in point.items()}
    if "learning_rate" in values:
        known = configuration.learning_rate
        if known is not None and not isinstance(known, dict):
            studied = {other for other, study in params.study.items() if name in study.networks}
            known = dict.fromkeys(sorted(studied), known)
        rates = {**(known or {}), dataset: values["learning_rate"]}
        values["learning_rate"] = f"{{{', '.join(f'{other}: {rate}' for other, rate in rates.items())}}}"
    return ", ".join(
        f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()
    )
