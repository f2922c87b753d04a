"""The model card of a fit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtransfer.core.params import Params
from medtransfer.core.run_record import note_of, read_record, split_of
from medtransfer.data.custom import dataset_of
from medtransfer.report.render import render


def model_card(params: Params, fit: Path, data: Mapping[str, Any], served: Mapping[str, Any] | None = None) -> str:
    """Return the model card of a finished fit in Markdown; `data` is dataset.json.

    `served` is the content of classifier.json, for the card of a registered model.
    """
    record, metrics = read_record(fit), json.loads((fit / "metrics.json").read_text())
    about, entry = dataset_of(record["dataset"], params), params.datasets.get(record["dataset"])
    return render(
        "medtransfer.report", "card.md.j2", record=record, split=split_of(record), metrics=metrics, data=data,
        title=about.title,
        custom=entry.catalogue if entry else None, served=served, note=note_of(record),
    )  # fmt: skip
