"""run.json, the record of a finished fit. Only this module reads and writes it."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medtransfer.core.errors import UserError, quoted
from medtransfer.core.files import is_partial, read_json, write_json
from medtransfer.core.recipe import TrainParams

log = logging.getLogger(__name__)

RECORD = "run.json"
KEYS = ("dataset", "model", "seed", "kind", "fit", "git_commit", "hyperparameters")
BY_WORDS = {"given": "the data set's publishers"}
SYNTHETIC_NOTE = (
    "SYNTHETIC demonstration data: drawn pictures. These values say nothing about medicine or about the talk."
)
# What a description of a split adds if images are left out of training.
LEAKAGE_WORDS = {"keep": "", "remove": ", leakage removed", "match": ", same training size as without leakage"}


class SplitRule(NamedTuple):
    """How the images of a fit were split: `split.by` and `split.leakage` of params.yaml."""

    by: str
    leakage: str

    def __str__(self) -> str:
        return BY_WORDS.get(self.by, self.by) + LEAKAGE_WORDS[self.leakage]


def read_record(fit: Path) -> dict[str, Any]:
    """Return the record in the folder of a finished fit; a UserError if it is missing or damaged."""
    try:
        return read_json(fit / RECORD, KEYS, "restore it with `git checkout` or `dvc repro`")
    except FileNotFoundError:
        raise UserError(f"{fit}: no finished fit ({RECORD} is missing); run `dvc repro`") from None


def write_record(fit: Path, record: dict[str, Any], hyperparameters: dict[str, Any]) -> None:
    """Write the record into the folder of a fit."""
    write_json(fit / RECORD, {**record, "hyperparameters": hyperparameters})


def find_fits(runs: Path) -> list[Path]:
    """Return the folders of the finished fits under `runs`/<data set>/<model>-seed<k>, sorted."""
    return sorted(path.parent for path in runs.glob(f"*/*/{RECORD}") if not is_partial(path.parent))


def warn_of_leftovers(
    runs: Path, studied: Collection[tuple[str, str]], then: str = "still count", seeds: Collection[int] | None = None
) -> None:
    """Warn of fits under `runs` of other (data set, model) pairs, such as those of a renamed configuration.

    With `seeds`, also of fits with other seeds. `then` is what happens to them.
    """
    fits = find_fits(runs)
    found = {(fit.parent.name, fit.name.rpartition("-seed")[0]) for fit in fits}
    for dataset, model in sorted(found - set(studied)):
        log.warning(
            "%s: contains fits of %s, which params.yaml does not list under study; they %s; to remove them: "
            "rm -r %s*",
            runs / dataset, model, then, quoted(runs / dataset / f"{model}-seed"),
        )  # fmt: skip
    others = {fit.name.rpartition("-seed")[2] for fit in fits} - set(map(str, seeds)) if seeds else set()
    for seed in sorted(others):
        log.warning(
            "%s: contains fits with seed %s, which params.yaml does not list under seeds; they %s; to remove them: "
            "rm -r %s/*/*%s",
            runs, seed, then, quoted(runs), quoted(f"-seed{seed}"),
        )  # fmt: skip


def note_of(about: Mapping[str, Any]) -> str:
    """Return what must be said wherever these data or their scores are shown; empty for a complete data set.

    `about` is a fit's record or the description of a data set.
    """
    return str(about.get("note") or (SYNTHETIC_NOTE if about["synthetic"] else ""))


def recipe_of(record: dict[str, Any]) -> TrainParams:
    """Return the training recipe of a network."""
    return TrainParams.model_validate(record["hyperparameters"]["train"])


def split_of(record: dict[str, Any]) -> SplitRule:
    """Return how the images of a fit were split."""
    return SplitRule(record["split_by"], record["split_leakage"])
