"""check: describe a study before it runs, and find mistakes in its files."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from medtransfer.analysis.published import is_the_talks
from medtransfer.core.dvc import PIPELINE, RWLOCK, read_lock, recorded_digest
from medtransfer.core.errors import CONFLICT, UserError, counted, merge_conflict, shortened
from medtransfer.core.files import PARTIAL
from medtransfer.core.layout import DATA, PARAMS, PREPARED, REPORTS, RUNS
from medtransfer.core.params import WEIGHTS_VARIABLE, Params, StudyParams, read_params
from medtransfer.core.provenance import in_git, restoring
from medtransfer.core.recipe import RECIPES, TrainParams
from medtransfer.core.run_record import BY_WORDS, note_of
from medtransfer.data.catalogue import read_source
from medtransfer.data.custom import dataset_of
from medtransfer.data.preparation import read_samples

DVC_CONFIG, DVC_IGNORE = Path(".dvc/config"), Path(".dvcignore")
_STUDIED = re.compile(r"\$\{study\.(\w+)\.(train|transfer)\}")
_SOURCE = re.compile(r"\$\{configurations\.(\w+)\.weights\}")
# What medtransfer uses whatever the user's keras.json has.
KERAS_DEFAULTS = {"floatx": "float32", "image_data_format": "channels_last", "epsilon": 1e-7}
# Keras cannot be imported with other values.
KERAS_VALUES = {
    "floatx": ("float16", "float32", "float64"), "image_data_format": ("channels_first", "channels_last"),
}  # fmt: skip


def check_files(apart_from: str = "") -> Params:
    """Read params.yaml, and check that dvc.yaml, apart from a data set, matches it and that DVC's files can be read."""
    params = read_params(PARAMS)
    check_dvc_files()
    check_pipeline(params, apart_from)
    return params


def check_dvc_files() -> None:
    """Check what DVC needs, and its files that a crash can leave incomplete."""
    if Path.home().exists() and not Path.home().is_dir():
        raise UserError(f"HOME: {Path.home()} is not a folder, and DVC reads its settings there; set HOME to a folder")
    check_hidden_files()
    if not in_git() and "no_scm" not in DVC_CONFIG.read_text():
        raise UserError(
            f"{Path.cwd()}: not a git repository, which DVC needs; "
            "run `git init && git add . && git commit --message Start`"
        )
    for path in (RUNS.parent, RUNS, PREPARED, REPORTS):
        if not path.resolve().is_relative_to(Path.cwd().resolve()):
            raise UserError(
                f"{path}: a link to {path.resolve()}, outside the project, where DVC records no results; replace the "
                "link with that folder, or move the whole project to the other disk"
            )
    for folder in (DATA, PREPARED, RUNS):
        for path in folder.rglob("*"):
            if path.is_symlink() and not path.exists() and not path.name.startswith("."):
                raise UserError(
                    f"{path}: a link to {path.readlink()}, which is missing; `dvc checkout` restores DVC's links, for "
                    "example after a move"
                )
    read_lock()
    recorded_digest(DATA)
    if RWLOCK.exists():
        try:
            json.loads(RWLOCK.read_text())
        except ValueError:
            raise UserError(
                f"{RWLOCK}: incomplete JSON, since a process was killed while writing it; remove it (rm {RWLOCK})"
            ) from None


def check_hidden_files(*others: Path) -> None:
    """Check that DVC's own files are there: `cp -r project/*` copies no file whose name begins with a dot.

    DVC would make another project here, and without this .dvcignore it would find every stage out of date.
    """
    missing = [path for path in (DVC_CONFIG, *others) if not path.exists()]
    if not DVC_IGNORE.exists() or f"{PARTIAL}*" not in DVC_IGNORE.read_text():
        missing.append(DVC_IGNORE)
    if DVC_CONFIG in missing and not in_git():
        missing.append(Path(".git"))
    if missing:
        tops = dict.fromkeys(Path(path.parts[0]) for path in missing)
        raise UserError(
            f"{Path.cwd()}: lacks the project's {', '.join(map(str, missing))} (copying with * leaves out names that "
            f"begin with a dot); {restoring(*tops)}"
        )


def check_pipeline(params: Params, apart_from: str = "") -> None:
    """Check that dvc.yaml trains what params.yaml studies, and nothing else, apart from one data set."""
    if not PIPELINE.exists():
        return
    if apart_from:  # which may be in one of the files only
        params = params.model_copy(update={"study": params.study | {apart_from: StudyParams(train=[], transfer=[])}})
    studied = {
        (dataset, name): f"study.{dataset}.{kind}"
        for dataset, study in params.study.items()
        for kind, names in (("train", study.train), ("transfer", study.transfer))
        for name in names
    }
    trained = {(dataset, name) for dataset, name in _read_trained(params) if dataset != apart_from}
    for dataset, name in sorted(trained - studied.keys(), key=str):
        raise UserError(
            f"{PARAMS}: study.{dataset}: has no {name}, but a stage of {PIPELINE} trains it; add it, or remove it "
            f"from {PIPELINE}"
        )
    for dataset, name in sorted(studied.keys() - trained):
        raise UserError(
            f"{PIPELINE}: no stage trains {name} on {dataset}, but {PARAMS} lists it under {studied[dataset, name]}; "
            "add it to the pipeline (docs/freezing.md), or remove it there"
        )


def _read_trained(params: Params) -> set[tuple[str, str]]:
    """Return the (data set, configuration) pairs that the stages of dvc.yaml train."""
    trained = set()
    try:
        for stage, content in YAML(typ="safe").load(PIPELINE.read_text())["stages"].items():
            if not isinstance(content, dict):
                raise ValueError(f"the stage {stage} is empty")
            matrix = content.get("matrix", {})
            if "configuration" in matrix:
                names = _configurations(params, matrix["configuration"], " ".join(content["deps"]))
                trained |= {(dataset, name) for dataset in matrix["dataset"] for name in names}
    except (YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        if CONFLICT.encode() in PIPELINE.read_bytes():
            raise merge_conflict(PIPELINE, "run again") from None
        raise UserError(
            f"{PIPELINE}: cannot be read as a pipeline: {shortened(error)}; fix it, or {restoring(PIPELINE)}"
        ) from None
    return trained


def _configurations(params: Params, listed: str | list[str], deps: str) -> list[str]:
    """Return the configurations of a stage's matrix, without those that start from a run that it does not depend on."""
    if key := _STUDIED.fullmatch(str(listed)):
        listed = _studied(params, key[1], key[2])
    names = [listed] if isinstance(listed, str) else listed
    known = params.configurations
    sources = {known[name].weights for name in _SOURCE.findall(deps) if name in known}
    return [name for name in names if not sources or name not in known or known[name].weights in sources]


def _studied(params: Params, dataset: str, key: str) -> list[str]:
    """Return a list of configurations that dvc.yaml reads from params.yaml, where DVC needs it even if it is empty."""
    if dataset not in params.study:
        write = f", or write `{dataset}: {{train: [], transfer: []}}`" if dataset in params.datasets else ""
        raise UserError(
            f"{PARAMS}: study.{dataset}: not found, but {PIPELINE} reads study.{dataset}.{key}; remove that data set's "
            f"stages from {PIPELINE}{write}"
        )
    study = params.study[dataset]
    if key not in study.model_fields_set:
        raise UserError(f"{PARAMS}: study.{dataset}.{key}: not found, but {PIPELINE} reads it; write `{key}: []`")
    return list(getattr(study, key))


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
    studied = {name for study in params.study.values() for name in study.networks}
    if unused := [name for name in params.configurations if name not in studied]:
        yield f"not trained on any data set: {', '.join(unused)} (list them under study.NAME.train)"


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
    """Yield a line if the user's keras.json has settings that medtransfer does not use; refuse what Keras refuses."""
    file = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras.json"
    try:
        found = json.loads(file.read_text())
        ignored = [f"{key} {found[key]}" for key, value in KERAS_DEFAULTS.items() if found.get(key, value) != value]
    except (OSError, ValueError, AttributeError):
        return
    for key, values in KERAS_VALUES.items():
        if found.get(key, values[0]) not in values:
            raise UserError(
                f"{file}: {key}: found {found[key]!r}; expected {' or '.join(values)}; correct or remove that file"
            )
    if found.get("backend", used := os.environ.get("KERAS_BACKEND")) != used:
        ignored.append(f"backend {found['backend']} (KERAS_BACKEND is {used})")
    if ignored:
        yield f"{file}: not used: {', '.join(ignored)}"


def _check_weights(params: Params) -> None:
    variable = os.environ.get(WEIGHTS_VARIABLE)
    file = variable or params.weights.file
    if file and not Path(file).is_file():
        key = WEIGHTS_VARIABLE if variable else f"{PARAMS}: weights.file"
        raise UserError(
            f"{key}: {file}: no such file; expected VGG16's ImageNet weights; leave it empty to download them"
        )
