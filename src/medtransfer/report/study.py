"""A study as the report reads it: its runs, their tables, and what was asked of single fits."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from medtransfer.evaluation.claims import judge
from medtransfer.evaluation.comparison import Run


@dataclass(frozen=True)
class Layers:
    """What `medtransfer layers` found of one fit: layers.json and its three tables."""

    record: dict[str, Any]
    rewinding: pd.DataFrame
    similarity: pd.DataFrame
    probes: pd.DataFrame


@dataclass(frozen=True)
class Picture:
    """A PNG file that a stage drew, and what it shows."""

    dataset: str
    text: str
    png: bytes


@dataclass(frozen=True)
class Study:
    """The runs of one study, and its tables from `compare`, `summarise` and `compare_models`."""

    name: str
    runs: list[Run]
    table: pd.DataFrame
    summary: pd.DataFrame
    pairs: pd.DataFrame
    layers: list[Layers] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    leak: pd.DataFrame | None = None
    tuning: pd.DataFrame | None = None

    @property
    def claims(self) -> pd.DataFrame:
        """The talk's claims that the study can decide."""
        return judge(self.pairs)


def cost(fits: list[Run]) -> float:
    """Return the seconds of a fit, mean over seeds, with those of its features where another run computed them."""
    # Of a null, and of what was committed before these seconds were kept, nobody knows: `leaves_out_features`.
    return sum(run.record["seconds"] + (run.record.get("feature_seconds") or 0) for run in fits) / len(fits)


def leaves_out_features(fits: list[Run]) -> bool:
    """Return whether the cost of a model leaves out what computing features that were already stored took."""
    return any(run.record.get("stored_features") and run.record.get("feature_seconds") is None for run in fits)
