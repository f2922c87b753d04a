"""collect: the small files of a finished study in artifacts/ → results/<name>, ready to be committed."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from medtransfer.analysis.families import configuration_of, overrides
from medtransfer.analysis.runs import renewed_source, studied, studied_models
from medtransfer.core.dvc import POINTER, check_unchanged, same_data
from medtransfer.core.errors import UserError, quoted
from medtransfer.core.files import atomic_folder, read_json, restore_replaced
from medtransfer.core.layout import (
    COPIED,
    DATA,
    FIGURES,
    GRADCAM,
    LAYERS,
    NOTES,
    PARAMS,
    PREPARED,
    RUNS,
    SHARED,
    SUBGROUPS,
    TUNING,
    TUNING_KEY,
    check_name,
)
from medtransfer.core.params import TREES, Params, read_params
from medtransfer.core.prepared import check_prepared, check_raw_data, data_of
from medtransfer.core.provenance import restoring
from medtransfer.core.run_record import RECORD, find_fits, read_record, recipe_of, split_of, warn_of_leftovers
from medtransfer.core.tables import read_result
from medtransfer.data.custom import dataset_of
from medtransfer.study.collected import analysis_command

log = logging.getLogger(__name__)
RESULTS = Path("results")
KEPT = ("predictions.csv", "history.csv", "metrics.json", RECORD)
NETWORKS = "all networks"


def collect(name: str, *, add: bool = False, replace: bool = False) -> Path:
    """Copy predictions, histories, metrics and provenance of all finished fits, but no models and images.

    The results of `tune`, `layers` and `gradcam` are copied too. `replace` removes the contents of the folder. `add`
    keeps them except its tables, which must then be recomputed; a fit in both places is taken from artifacts/.
    """
    check_name(name, "collected results")
    restore_replaced(RESULTS / name)
    _check_target(RESULTS / name, add, replace)
    params = read_params(PARAMS)
    # A folder without run.json may be a damaged fit, and that of a recorded fit may be missing.
    for path in sorted({*RUNS.glob("*/*/"), *studied(params)}):
        check_unchanged(path)
    fits = find_fits(RUNS)
    if not fits:
        raise UserError(f"{RUNS}: no finished fit; run `dvc repro`")
    warn_of_leftovers(RUNS, studied_models(params), seeds=params.seeds)
    # params.yaml and dataset.json are copied, too, and must describe these fits.
    for dataset in sorted({fit.parent.name for fit in fits}):
        if dataset not in params.datasets:
            raise UserError(
                f"{RUNS / dataset}: contains fits of a data set that {PARAMS} does not have; to collect the others, "
                f"remove them: rm -r {quoted(RUNS / dataset)}"
            )
        check_prepared(params, dataset)
        check_raw_data(dataset)
    for fit in fits:
        data_of(fit)
        _warn_of_other_settings(fit, params)
    if add:
        _check_same_study(fits, RESULTS / name)
    if not POINTER.exists():
        raise UserError(f"{POINTER}: not found; {restoring(POINTER)}")
    with atomic_folder(RESULTS / name) as folder:
        _check_target(RESULTS / name, add, replace)  # another `collect` may have written it meanwhile
        if add:
            _copy_fits_and_findings(RESULTS / name, folder)
        _copy(fits, params, folder)
        _remove_stale(folder)
        if add:
            _join_trials(RESULTS / name / TUNING.name, folder / TUNING.name)
            join_params(RESULTS / name / PARAMS, folder / PARAMS)
    return RESULTS / name


def _warn_of_other_settings(fit: Path, params: Params) -> None:
    """Warn if a model was not fitted with the settings in params.yaml, which is copied, or from the fits here."""
    record = read_record(fit)
    remedy = "run `dvc repro`" if fit in studied(params) else f"remove this fit: rm -r {quoted(fit)}"
    if start := renewed_source(fit, record):
        log.warning("%s: was fitted from an earlier %s; %s", fit, start, remedy)
    used, described = _settings(record, params)
    for key in sorted(used.keys() & described.keys() - {"precision"}):  # `auto` stands for that of a device
        if used[key] != described[key]:
            log.warning(
                "%s: was fitted with %s %s, but %s has %s; restore that file, or %s",
                fit, key, used[key], PARAMS, described[key], remedy,
            )  # fmt: skip


def _settings(record: dict[str, Any], params: Params) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a fit, and those that params.yaml has for its model, which may be none."""
    model = record["model"]
    if model in TREES:
        return record["hyperparameters"][model], getattr(params.trees, model).model_dump()
    if model not in params.configurations:
        return {}, {}
    configuration, initial = params.configurations[model], {"weights", "trainable"}
    used = recipe_of(record).model_dump() | configuration_of(record).model_dump(include=initial)
    described = configuration.settings(params.train, record["dataset"]).model_dump()
    return used, described | configuration.model_dump(include=initial)


def _check_target(folder: Path, add: bool, replace: bool) -> None:
    if add and replace:
        raise UserError("--add and --replace: one keeps what the other removes; give only one of them")
    if not folder.exists():
        if add:
            raise UserError(f"{folder}: not found; leave out --add to create it")
    elif not (folder / "runs").is_dir():
        raise UserError(f"{folder}: contains no collected results; remove it or choose another name")
    elif add and not (folder / PARAMS).exists():
        raise UserError(f"{folder / PARAMS}: not found; restore it, or collect all fits with --replace")
    elif not (add or replace):
        raise UserError(f"{folder}: exists; add to it with --add, remove it with --replace, or choose another name")


def _copy_fits_and_findings(known: Path, folder: Path) -> None:
    for kind in ("runs", "layers", "gradcam"):
        if (known / kind).is_dir():
            shutil.copytree(known / kind, folder / kind)
    for path in (*known.glob(f"*{COPIED}"), *known.glob(NOTES)):
        shutil.copy(path, folder)


def _copy(fits: list[Path], params: Params, folder: Path) -> None:
    shutil.copy(PARAMS, folder / PARAMS)
    shutil.copy(POINTER, folder / "data-version.yaml")
    for fit in fits:
        target = folder / "runs" / fit.relative_to(RUNS)
        target.mkdir(parents=True, exist_ok=True)
        for file in KEPT:
            if (fit / file).exists():
                shutil.copyfile(fit / file, target / file)
    if TUNING.exists():
        shutil.copy(TUNING, folder / TUNING.name)
    for found in (LAYERS, GRADCAM):
        if found.is_dir():
            shutil.copytree(found, folder / found.name, dirs_exist_ok=True)
    for drawn in sorted(FIGURES.glob("*/activations.png")):
        shutil.copyfile(drawn, folder / f"{drawn.parent.name}{COPIED}")
    for dataset in {fit.parent.name for fit in fits}:
        shutil.copyfile(PREPARED / dataset / "dataset.json", folder / "runs" / dataset / "dataset.json")
        samples = read_result(PREPARED / dataset / "samples.csv", dtype=str)
        # Each test image, and each other split with images of its group.
        groups = samples[samples.split.isin(["train", "validation"])][["group", "split"]].drop_duplicates()
        tested = samples[samples.split == "test"][["id", "group"]]
        shared = tested.merge(groups, on="group")[["id", "split"]]
        if len(shared):
            shared.to_csv(folder / "runs" / dataset / SHARED, index=False)
        described = dataset_of(dataset, params).describe(DATA / dataset)
        described = described[described.id.isin(tested.id)]
        if len(described):
            described.sort_values("id").to_csv(folder / "runs" / dataset / SUBGROUPS, index=False)


def _remove_stale(folder: Path) -> None:
    """Remove the results of `layers` and `gradcam` about fits that are not in the folder, with a warning."""
    fits = {read_record(fit)["fit"] for fit in find_fits(folder / "runs")}
    for kind in (LAYERS.name, GRADCAM.name):
        for path in sorted((folder / kind).glob(f"*/*/{kind}.json")):
            command, fit = analysis_command(path), path.parent.relative_to(folder / kind)
            if read_json(path, ("fit",), f"run `{command}` again")["fit"] not in fits:
                again = f"; run `{command}`, then collect again" if (folder / "runs" / fit).is_dir() else ""
                log.warning("%s/%s: left out, because it is about a fit that is not collected%s", kind, fit, again)
                shutil.rmtree(path.parent)


def _check_same_study(fits: list[Path], folder: Path) -> None:
    """Check that fits can be added to those in a folder: same data, same recipe of a model.

    All networks must share the common recipe, which the report takes for granted.
    """
    known: dict[tuple[str, ...], Any] = {}
    for fit in find_fits(folder / "runs"):
        known |= _facts(read_record(fit), folder / "runs")
    for fit in fits:
        for key, found in _facts(read_record(fit), PREPARED).items():
            before = known.get(key, found)
            same = key[1:] == ("data_version",) and same_data(key[0], before, found)
            if before != found and not same:
                raise UserError(
                    f"{fit / RECORD}: {key[-1]}: found {found}, expected {before} as in {folder}; collect it "
                    "under another name"
                )


def _facts(record: dict[str, Any], prepared: Path) -> dict[tuple[str, ...], Any]:
    """Return what decided a fit, apart from its seed.

    A key names which fits share the value (those of a data set, of one of its models or all its networks), then what
    it is.
    """
    dataset, model, split = record["dataset"], record["model"], split_of(record)
    described = json.loads((prepared / dataset / "dataset.json").read_text())
    facts: dict[tuple[str, ...], Any] = {
        (dataset, "data_version"): record["data_version"],
        (dataset, "image_size"): record["image_size"],
        (dataset, "split_by"): split.by,
        (dataset, "split_leakage"): split.leakage,
        **{(dataset, key): described.get(key) for key in ("classes", "split", "resize_filter", "white_level")},
        (dataset, model, "weights from"): record.get("weights"),
    }
    for key, value in record["hyperparameters"].items():
        # The configuration may name rates for other data sets; the rest of it is in the recipe and the layers.
        if key not in ("seed", "configuration", "train"):
            values = value if isinstance(value, dict) else {key: value}
            facts |= {(dataset, model, name): part for name, part in values.items()}
    if record["kind"] == "network":
        recipe, changed = recipe_of(record).model_dump(), overrides(record)
        own = {"learning_rate", *(recipe if "recipe" in changed else changed)}
        for key, value in recipe.items():
            facts[dataset, model, key] = value
            if key not in own:
                facts[dataset, NETWORKS, key] = value
    return facts


def _join_trials(known: Path, added: Path) -> None:
    """Write the trials of both files to `added`; a trial in both is taken from `known`."""
    files = [path for path in (known, added) if path.exists()]
    if files:
        # As text, so that no digit changes. Older trials lack columns of the key that are newer.
        rows = pd.concat([read_result(path, dtype=str) for path in files])
        rows.drop_duplicates([name for name in TUNING_KEY if name in rows]).to_csv(added, index=False)


def join_params(known: Path, added: Path) -> None:
    """Merge both params.yaml into `added`: all seeds, configurations, rates and models; the rest is from `known`."""
    yaml = YAML()
    yaml.width = 4096  # or it folds lines
    params, new = yaml.load(known), yaml.load(added)
    params["seeds"] = sorted({*params["seeds"], *new["seeds"]})
    params["baselines"] = list(dict.fromkeys([*params["baselines"], *new["baselines"]]))
    for name, configuration in new["configurations"].items():
        own = params["configurations"].setdefault(name, configuration)
        rates = own.get("learning_rate"), configuration.get("learning_rate")
        if all(isinstance(rate, dict) for rate in rates):
            own["learning_rate"] = {**rates[1], **rates[0]}
    for dataset, study in new["study"].items():
        params["datasets"].setdefault(dataset, new["datasets"][dataset])
        joined = params["study"].setdefault(dataset, study)
        for key, names in study.items():
            joined[key] = list(dict.fromkeys([*joined.get(key, []), *names]))
    yaml.dump(params, added)
