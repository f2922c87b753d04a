"""Finished fits, read back from their folders."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from medtransfer.analysis.families import configuration_of
from medtransfer.analysis.uncertainty import Jackknife, jackknife
from medtransfer.core.dvc import check_unchanged, recorded_digest, used_digest
from medtransfer.core.errors import UserError
from medtransfer.core.layout import RUNS, run_folder
from medtransfer.core.params import Params
from medtransfer.core.predictions import classes_of, predicted_labels, read_predictions
from medtransfer.core.run_record import read_record
from medtransfer.core.tables import read_result
from medtransfer.metrics.scores import Encoded, encode


@dataclass(frozen=True)
class Run:
    """One fit, as the files of its folder describe it.

    record : run.json
    predictions : the test rows of predictions.csv
    history : history.csv, or None for a baseline
    validation : the validation rows of predictions.csv, or None where the model was fitted on those images
    """

    record: dict[str, Any]
    predictions: pd.DataFrame
    history: pd.DataFrame | None
    validation: pd.DataFrame | None = None

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return str(self.record["dataset"])

    @property
    def model(self) -> str:
        """The baseline's or freezing configuration's name."""
        return str(self.record["model"])

    @property
    def seed(self) -> int:
        """The seed of the fit."""
        return int(self.record["seed"])

    @property
    def is_network(self) -> bool:
        """Whether it is a network; the others are baselines."""
        return bool(self.record["kind"] == "network")

    @cached_property
    def encoded(self) -> Encoded:
        """The predictions of the test images as arrays."""
        return encode(self.predictions)

    @property
    def scores(self) -> dict[str, float]:
        """Every smooth metric on the test images."""
        return dict(zip(self.jackknife.names, self.jackknife.values.tolist(), strict=True))

    @cached_property
    def classes_found(self) -> int:
        """The number of classes of which at least one test image is classified correctly."""
        return int(self.predictions.label[predicted_labels(self.predictions) == self.predictions.label].nunique())

    @cached_property
    def jackknife(self) -> Jackknife:
        """Every metric on the test images without each lesion or patient."""
        return jackknife(self.encoded)


def studied(params: Params) -> list[Path]:
    """Return the folder of every fit that params.yaml studies; there may be others beside them."""
    return [run_folder(dataset, model, seed) for dataset, model in studied_models(params) for seed in params.seeds]


def renewed_source(fit: Path, record: dict[str, Any]) -> Path | None:
    """Return the run whose weights a network started from, if it has been trained again since."""
    source = configuration_of(record).source if record["kind"] == "network" else None
    before = run_folder(*source, record["seed"]) if source else None
    return before if before and used_digest(fit, before) not in (None, recorded_digest(before)) else None


def finished_networks(params: Params, dataset: str) -> list[Path]:
    """Return the folders of the networks of a data set that params.yaml studies and that are finished."""
    found = [fit for fit in studied(params) if fit.parent == RUNS / dataset and (fit / "model.keras").exists()]
    if not found:
        raise UserError(f"{RUNS / dataset}: no finished network; run `dvc repro`")
    return found


def studied_models(params: Params) -> list[tuple[str, str]]:
    """Return every data set and model that params.yaml studies."""
    return [
        (dataset, model) for dataset, study in params.study.items() for model in (*params.baselines, *study.networks)
    ]


def read_run(folder: Path) -> Run:
    """Read the folder of one finished fit; a UserError if it is missing, incomplete or changed."""
    check_unchanged(folder)
    try:
        record = read_record(folder)
        columns = ("epoch", "loss", "val_loss")
        history = read_result(folder / "history.csv", columns) if record["kind"] == "network" else None
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{folder}: no finished fit ({error}); run `dvc repro`") from None
    predictions = read_predictions(folder / "predictions.csv")
    tested, validated = (
        predictions[predictions.split == split].reset_index(drop=True) for split in ("test", "validation")
    )
    return Run(record, tested, history, None if validated.empty else validated)


def by_model(runs: Iterable[Run]) -> list[tuple[str, str, list[Run]]]:
    """Return each data set and model with its runs, one per seed, in the order in which they first come."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.dataset, run.model), []).append(run)
    return [(*key, fits) for key, fits in found.items()]


def collapsed(fits: Iterable[Run]) -> bool:
    """Return whether none of these fits finds more than one class."""
    return all(run.classes_found <= 1 for run in fits)


def check_same_images(runs: Iterable[Run]) -> None:
    """Check that fits were tested on the same images, so that they can be compared or averaged."""
    first, *others = runs
    for run in others:
        both = f"{run.dataset}: {first.model}, seed {first.seed}, and {run.model}, seed {run.seed},"
        for what, column in (("images", "id"), ("labels", "label"), ("groups", "group")):
            if not run.predictions[column].equals(first.predictions[column]):
                raise UserError(f"{both} were tested on different {what}; fit both on the same data and split")
        if classes_of(run.predictions) != classes_of(first.predictions):
            raise UserError(f"{both} have other classes or another order of them; fit both with the same classes")
