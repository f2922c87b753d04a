"""Read a prepared data set, and find a finished network."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medtransfer.core.dvc import check_unchanged, digest_of, recorded_digest, used_digest
from medtransfer.core.errors import UserError, check_known, counted, quoted
from medtransfer.core.files import read_json
from medtransfer.core.layout import DATA, PARAMS, PREPARED, run_folder
from medtransfer.core.params import TREES, DatasetParams, Params
from medtransfer.core.predictions import classes_of, read_predictions
from medtransfer.core.run_record import read_record
from medtransfer.core.tables import read_result


class Prepared(NamedTuple):
    """A prepared data set: memory-mapped images (n, size, size, 3), uint8, the samples and dataset.json."""

    images: np.ndarray
    samples: pd.DataFrame
    description: dict[str, Any]


def read_dataset(params: Params, name: str) -> Prepared:
    """Read a data set of params.yaml, which must have been prepared with these parameters."""
    check_known("params.yaml: datasets", name, params.datasets)
    description = check_prepared(params, name)
    return Prepared(np.load(PREPARED / name / "images.npy", mmap_mode="r"), read_samples(name), description)


def check_prepared(params: Params, name: str) -> dict[str, Any]:
    """Return dataset.json of a data set of params.yaml, which must have been prepared with these parameters."""
    folder, description = PREPARED / name, _read_description(name)
    # Validated like params.yaml: a key that is newer than the prepared data gets its default.
    keys = [key for key in DatasetParams.model_fields if key != "catalogue"]
    known = {key: description[key] for key in keys if key in description}
    prepared = DatasetParams.model_validate(known).model_dump()
    expected = params.datasets[name].model_dump()
    if entry := expected["catalogue"]:
        keys += ["classes", "group"]
        prepared |= {"classes": description["classes"], "group": description["group"]}
        expected |= entry
    for key in keys:
        if prepared[key] != expected[key]:
            raise UserError(
                f"{folder}: prepared with {key} {prepared[key]}, but params.yaml has {expected[key]}; "
                f"run `dvc repro prepare@{name}`"
            )
    return description


def _read_description(name: str) -> dict[str, Any]:
    """Return dataset.json of a prepared data set, which must be what DVC recorded."""
    folder = PREPARED / name
    if not (folder / "dataset.json").exists():
        get_data = "get the data (`dvc pull data.dvc`, or see `medtransfer data --help`), then "
        raise UserError(
            f"{folder}: not found; {'' if (DATA / name).is_dir() else get_data}run `dvc repro prepare@{name}`"
        )
    check_unchanged(folder)
    return read_json(folder / "dataset.json", (), f"run `dvc repro prepare@{name}`")


def read_samples(name: str) -> pd.DataFrame:
    """Return samples.csv of a prepared data set."""
    return read_result(PREPARED / name / "samples.csv", dtype=str, na_values=None)


def finished_network(params: Params, dataset: str, name: str, seed: int) -> Path:
    """Return the folder of a finished network."""
    check_known("params.yaml: datasets", dataset, params.datasets)
    if name in TREES:
        raise UserError(f"{name}: a tree, not a network; the networks are {', '.join(params.configurations)}")
    check_known("params.yaml: configurations", name, params.configurations)
    fitted = run_folder(dataset, name, seed)
    if not (fitted / "model.keras").exists():
        study = params.study.get(dataset)
        for section, key, known in (
            ("seeds", seed, params.seeds),
            (f"study.{dataset}", name, study.networks if study else []),
        ):
            if key not in known:
                listed = ", ".join(map(str, known)) or "nothing"
                raise UserError(
                    f"{PARAMS}: {section}: lists {listed}, not {key}; add it and run `dvc repro`, or choose another"
                )
        raise UserError(f"{fitted / 'model.keras'}: not found; run `dvc repro`, or get it with `dvc pull`")
    check_unchanged(fitted)
    return fitted


def data_of(fit: Path) -> dict[str, Any]:
    """Return dataset.json of the data of a finished fit."""
    name = read_record(fit)["dataset"]
    description = _read_description(name)
    check_data_of(fit, description, read_samples(name))
    return description


def check_data_of(fit: Path, description: dict[str, Any], samples: pd.DataFrame) -> None:
    """Check that prepared data have the classes, size, split and pixels with which a network or tree was fitted."""
    record, predictions = read_record(fit), read_predictions(fit / "predictions.csv")
    folder = PREPARED / record["dataset"]
    advice = f"run `dvc repro`, or prepare the data as before, or remove that fit (`rm -r {quoted(fit)}`)"
    # A tree's record has only the size, and an older one may lack parts of the split.
    then = {"image_size": record["image_size"], "source": record["data_source"], "classes": classes_of(predictions)}
    for key, value in (then | record["hyperparameters"].get("data", {})).items():
        now: Any = description.get(key)
        now = {part: now[part] for part in value} if key == "split" else now
        if now != value:
            raise UserError(f"{folder}: has {key} {now}, but {fit} was fitted with {value}; {advice}")
    # Other raw data are split otherwise even if params.yaml is the same.
    columns = ["id", "split", "label"]
    found = samples[samples.split.isin(set(predictions.split))][columns]
    both = found.merge(predictions[columns], how="outer", indicator=True)
    moved = both.id[both._merge != "both"].unique()
    if len(moved):
        raise UserError(
            f"{folder}: {counted(len(moved), 'image')}, such as {moved[0]}, had another split or class when {fit} was "
            f"fitted; {advice}"
        )
    if used_digest(fit, folder) not in (None, recorded_digest(folder)):
        raise UserError(f"{folder}: its files have changed since {fit} was fitted; {advice}")


def check_raw_data(name: str) -> None:
    """Check that the raw files of a data set, where there are any, are those that were prepared."""
    raw = DATA / name
    if raw.is_dir() and used_digest(PREPARED / name, raw) not in (None, digest_of(raw)):
        raise UserError(f"{raw}: has changed since it was prepared; run `dvc repro`")


def encode_labels(samples: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """Return the labels as numbers in the order of the classes, shape (n,), int32."""
    return samples.label.map({name: number for number, name in enumerate(classes)}).to_numpy(np.int32)
