"""A fit's id and checkpoints, which are kept until DVC has recorded its outputs."""

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from medtransfer.core.dvc import digest_of, recorded_digest
from medtransfer.core.files import write_json
from medtransfer.core.layout import CHECKPOINTS, RUNS


def claim_fit(folder: Path, made_from: dict[str, Any]) -> str:
    """Return the id of the fit with checkpoints in `folder`: that of an interrupted fit with the same `made_from`."""
    path = folder / "fit.json"
    made_from = json.loads(json.dumps(made_from))
    try:
        known = json.loads(path.read_text())
        if known["made_from"] == made_from:
            return str(known["fit"])
        shutil.rmtree(folder)
    except (FileNotFoundError, ValueError, KeyError):
        pass
    fit = uuid.uuid4().hex
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"fit": fit, "made_from": made_from})
    return fit


def end_fit(folder: Path, outputs: Path) -> None:
    """Remove a fit's checkpoints; within a DVC stage, leave that to `remove_recorded_checkpoints`.

    DVC records the outputs after the stage has ended. If DVC is killed before that, it later removes them and runs the
    stage again, which must continue the same fit.
    """
    if "DVC_STAGE" not in os.environ:
        shutil.rmtree(folder)
        return
    claim = json.loads((folder / "fit.json").read_text())
    write_json(folder / "fit.json", {**claim, "outputs": digest_of(outputs)})


def remove_recorded_checkpoints() -> None:
    """Remove the checkpoints of fits whose outputs are in dvc.lock; two stages may do so at once."""
    for path in CHECKPOINTS.glob("*/*/fit.json"):
        folder = path.parent
        try:
            outputs = json.loads(path.read_text()).get("outputs")
        except (FileNotFoundError, ValueError):
            continue
        if outputs and outputs == recorded_digest(RUNS / folder.relative_to(CHECKPOINTS)):
            path.unlink(missing_ok=True)  # first: without it the other files belong to no fit
            shutil.rmtree(folder, ignore_errors=True)
