"""What a fit keeps to go on with, until DVC has recorded its outputs."""

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from medtransfer.core.dvc import digest_of, recorded_digest
from medtransfer.core.files import write_json
from medtransfer.core.layout import RUNS, UNFINISHED


def claim_fit(folder: Path, made_from: dict[str, Any]) -> str:
    """Return the id of the fit, the same again where an unfinished one was made from the same.

    Parameters
    ----------
    folder : Path
        Where the unfinished fit keeps what it needs to go on.
    """
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
    """Remove what a fit kept; within a stage of DVC, note its outputs and leave that to `forget_recorded`.

    DVC records the outputs after the stage has ended; where it is killed before, it removes them and runs the stage
    again, which must be the same fit.
    """
    if "DVC_STAGE" not in os.environ:
        shutil.rmtree(folder)
        return
    claim = json.loads((folder / "fit.json").read_text())
    write_json(folder / "fit.json", {**claim, "outputs": digest_of(outputs)})


def forget_recorded() -> None:
    """Remove what fits kept whose outputs are in dvc.lock by now; two stages may do so at once."""
    for path in UNFINISHED.glob("*/*/fit.json"):
        folder = path.parent
        try:
            outputs = json.loads(path.read_text()).get("outputs")
        except (FileNotFoundError, ValueError):
            continue
        if outputs and outputs == recorded_digest(RUNS / folder.relative_to(UNFINISHED)):
            path.unlink(missing_ok=True)  # first: without it the rest is of no fit
            shutil.rmtree(folder, ignore_errors=True)
