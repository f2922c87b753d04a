"""A study as the report reads it: its runs, their tables, and the further analyses of single fits."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pandas as pd

from medtransfer.analysis.families import configuration_of
from medtransfer.analysis.lattice import SUBSETS, block_values
from medtransfer.analysis.runs import Run
from medtransfer.analysis.tables import Tables
from medtransfer.core.layout import TUNING_KEY
from medtransfer.core.params import BLOCKS
from medtransfer.core.predictions import classes_of
from medtransfer.core.run_record import SplitRule, recipe_of, split_of
from medtransfer.metrics.scores import MACRO


@dataclass(frozen=True)
class Layers:
    """The results of `medtransfer layers` for one fit: layers.json and its three tables."""

    record: dict[str, Any]
    rewinding: pd.DataFrame
    similarity: pd.DataFrame
    probes: pd.DataFrame

    @property
    def name(self) -> str:
        """The model and its seed."""
        return f"{self.record['model']} (seed {self.record['seed']})"


@dataclass(frozen=True)
class Picture:
    """A PNG file that a stage drew, the name of its caption in templates/captions.html.j2, and its model, if any."""

    dataset: str
    name: str
    model: str
    png: bytes


def _empty() -> pd.DataFrame:
    return pd.DataFrame(columns=["dataset", "images"])


@dataclass(frozen=True, eq=False)
class Study:
    """The runs of one study and their tables.

    leakage : the table of `medtransfer leakage`, or an empty one
    tuning : the trials of `medtransfer tune`, or an empty table
    custom : the description of custom data sets in params.yaml (title, group, licence, citation), by name
    notes : paragraphs of notes.txt, remarks for the reader
    """

    name: str
    runs: list[Run]
    tables: Tables
    layers: list[Layers] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    leakage: pd.DataFrame = field(default_factory=_empty)
    tuning: pd.DataFrame = field(default_factory=_empty)
    custom: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def of(self, dataset: str) -> list[Run]:
        """Return the runs on one data set."""
        return [run for run in self.runs if run.dataset == dataset]

    def place_of(self, dataset: str) -> tuple[int, SplitRule]:
        """Return the size in pixels and the split of the images of a data set, which all its runs share."""
        record = self.of(dataset)[0].record
        return record["image_size"], split_of(record)

    def layers_of(self, dataset: str) -> list[Layers]:
        """Return the layers of networks without a frozen block, which would hide whether that block matters."""
        found = [layers for layers in self.layers if layers.record["dataset"] == dataset]
        return [layers for layers in found if (layers.similarity.distance > 0).all()]


@cache
def values_of(study: Study, dataset: str) -> pd.DataFrame:
    """Return the `block_values` of one data set, which a table and a figure show."""
    return block_values(study.of(dataset))


def exact_values(study: Study, dataset: str) -> pd.Series:
    """Return the Shapley value of each block in macro F1; empty unless networks with all subsets were trained."""
    values = values_of(study, dataset)
    # From fewer subsets, the order of the blocks is not known.
    single = values[values.blocks.isin(BLOCKS) & (values.metric == MACRO) & (values.subsets == SUBSETS)]
    return single.set_index("blocks").value


def costs(models: Mapping[str, list[Run]], runs: list[Run]) -> dict[str, float]:
    """Return the seconds that one fit of each model took, for the first seed whose networks share one device.

    They include the computation of features and the fit that a network starts from, from `runs`. Seconds of several
    devices are not comparable; without such a seed, the mean over all seeds is returned.
    """
    fitted = {(run.dataset, run.model, run.seed): run for run in runs}
    networks = [fits for fits in models.values() if fits[0].is_network]
    devices = [{run.seed: run.record["device"] for run in fits} for fits in networks]
    common = set.intersection(*map(set, devices)) if devices else set()
    shared = sorted(seed for seed in common if len({device[seed] for device in devices}) == 1)[:1]
    found = {}
    for model, fits in models.items():
        compared = [run for run in fits if run.seed in shared] or fits
        found[model] = sum(_cost(run, fitted) for run in compared) / len(compared)
    return found


def _cost(run: Run, fitted: Mapping[tuple[str, str, int], Run]) -> float:
    seconds = float(run.record["seconds"] + (run.record.get("feature_seconds") or 0))
    source = configuration_of(run.record).source if run.is_network else None
    before = fitted.get((*source, run.seed)) if source else None
    return seconds + (_cost(before, fitted) if before else 0)


def leaves_out_features(fits: list[Run]) -> bool:
    """Return whether the cost of a model leaves out the time to compute features that were already stored."""
    return any(run.record.get("stored_features") and run.record.get("feature_seconds") is None for run in fits)


def largest_class_f1(study: Study, dataset: str) -> float:
    """Return the macro F1 of a network that always predicts the largest class of the data set's validation images."""
    validation = next(run.validation for run in study.of(dataset) if run.validation is not None)
    share = validation.label.value_counts(normalize=True).max()
    return float(2 * share / (1 + share) / len(classes_of(validation)))


def trials(study: Study, dataset: str) -> pd.DataFrame:
    """Return the trials of learning rates on the largest part of the training images, per configuration and optimizer.

    The column `used` says whether the study's fits have this optimizer and rate. A configuration that was searched
    again with other data or settings has the number of the search in its name. The table is empty if the study has no
    network for this data set.
    """
    tried = study.tuning[study.tuning.dataset == dataset]
    if "searched" in tried:  # not those of other settings
        tried = tried[[not set(json.loads(point)) - set(TUNING_KEY) for point in tried.searched.fillna("{}")]]
    networks = [run for run in study.of(dataset) if run.validation is not None]
    if tried.empty or not networks:
        return _empty()
    largest = tried.groupby(["configuration", "optimizer"]).fraction.transform("max")
    recipes = [(run.model, recipe_of(run.record)) for run in networks]
    used = {(model, recipe.optimizer, recipe.learning_rate) for model, recipe in recipes}
    named = zip(tried.configuration, tried.optimizer, tried.learning_rate, strict=True)
    shown = tried.assign(used=[name in used for name in named])[tried.fraction == largest]
    if "made_from" in shown:
        searches = shown.groupby(["configuration", "optimizer", "epochs"]).made_from
        number = searches.transform(lambda made_from: pd.factorize(made_from.fillna(""))[0] + 1)
        shown["configuration"] += [f" ({count})" if count > 1 else "" for count in number]
    return shown
