"""check: describe a study before it runs, and find mistakes in its files."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medtransfer.analysis.published import is_the_talks
from medtransfer.core.dvc import PIPELINE, check_dvc_files, check_pipeline
from medtransfer.core.errors import UserError, counted
from medtransfer.core.layout import DATA, PARAMS
from medtransfer.core.params import WEIGHTS_VARIABLE, Params, read_params
from medtransfer.core.recipe import RECIPES, TrainParams
from medtransfer.core.run_record import BY_WORDS, note_of
from medtransfer.data.catalogue import read_source
from medtransfer.data.custom import dataset_of
from medtransfer.data.preparation import read_samples

KERAS_DEFAULTS = {"floatx": "float32", "image_data_format": "channels_last", "epsilon": 1e-7}


def check_files() -> Params:
    """Read params.yaml, and check that dvc.yaml matches it and that DVC's other files can be read."""
    params = read_params(PARAMS)
    check_dvc_files()
    check_pipeline(params)
    return params


def describe_study(params: Params) -> Iterator[str]:
    """Yield lines about each data set: its images, their size and split, the number of fits, its networks' recipes."""
    _check_weights(params)
    yield from _ignored_settings()
    recipes = {name: _recipes(params, name) for name in params.study}
    if any(recipe.startswith("modern") for found in recipes.values() for recipe in found):
        yield f"The modern recipe is the talk's with {_differences(_named('modern', params), _named('talk', params))}"
    for name, study in params.study.items():
        dataset, settings = dataset_of(name, params), params.datasets[name]
        images = len(read_samples(dataset, DATA / name))
        if note := note_of(read_source(DATA / name)):
            yield f"{name}: {note}"
        fits = len(params.seeds) * (len(params.baselines) + len(study.networks))
        split = {"group": dataset.group, **BY_WORDS}.get(settings.split.by, "image")
        if settings.split.leakage != "keep":
            split += f", leakage: {settings.split.leakage}"
        elif split == "image" and is_the_talks(name):
            split += ", as in the talk"
        yield (
            f"{name}: {images:,} images, {settings.image_size} x {settings.image_size} px, split by {split}; "
            f"{counted(fits, 'fit')}"
        )
        for recipe, networks in recipes[name].items():
            yield f"{name}: {', '.join(networks)}: {recipe}"
        for configuration in study.transfer:
            source = params.configurations[configuration].source
            if source and note_of(read_source(DATA / source[0])) and not note:
                yield (
                    f"{name}: {configuration} would start from a network trained on demonstration data of {source[0]}; "
                    f"import {source[0]}, or remove {configuration} from study.{name}.transfer and from {PIPELINE}"
                )


def _recipes(params: Params, dataset: str) -> dict[str, list[str]]:
    """Return the networks that are trained alike, by their recipe: `modern recipe with head dense`."""
    found: dict[str, list[str]] = {}
    for name in params.study[dataset].networks:
        used = params.configurations[name].settings(params.train, dataset)
        changes = _differences(used, _named(used.recipe, params).on(dataset))
        found.setdefault(f"{used.recipe} recipe" + (f" with {changes}" if changes else ""), []).append(name)
    return found


def _named(recipe: str, params: Params) -> TrainParams:
    return TrainParams(**{**dict(params.train), **RECIPES[recipe], "recipe": recipe})


def _differences(used: TrainParams, named: TrainParams) -> str:
    """Return the keys in which two recipes differ, except for learning rates and epochs, which depend on the data."""
    found, expected = map(_flat, (used, named))
    return ", ".join(f"{key} {value}" for key, value in found.items() if value != expected[key])


def _flat(recipe: TrainParams) -> dict[str, Any]:
    keys = recipe.model_dump(exclude={"recipe", "learning_rate", "epochs", "patience"})
    return {**{f"augment.{key}": value for key, value in keys.pop("augment").items()}, **keys}


def _ignored_settings() -> Iterator[str]:
    """Yield a line if the user's keras.json has settings that medtransfer does not use."""
    file = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras.json"
    try:
        found = json.loads(file.read_text())
        ignored = [f"{key} {found[key]}" for key, value in KERAS_DEFAULTS.items() if found.get(key, value) != value]
    except (OSError, ValueError, AttributeError):
        return
    if found.get("backend", used := os.environ.get("KERAS_BACKEND")) != used:
        ignored.append(f"backend {found['backend']} (KERAS_BACKEND is {used})")
    if ignored:
        yield f"{file}: not used: {', '.join(ignored)}"


def _check_weights(params: Params) -> None:
    initial = {params.configurations[name].weights for study in params.study.values() for name in study.train}
    variable = os.environ.get(WEIGHTS_VARIABLE)
    file = variable or params.weights.file
    if "imagenet" in initial and file and not Path(file).is_file():
        key = WEIGHTS_VARIABLE if variable else f"{PARAMS}: weights.file"
        raise UserError(
            f"{key}: {file}: no such file; expected VGG16's ImageNet weights; leave it empty to download them"
        )
