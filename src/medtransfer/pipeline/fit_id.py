"""A fit's id and checkpoints, which are kept until DVC has recorded its outputs."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medtransfer.core.dvc import digest_of, is_stored, recorded_digest
from medtransfer.core.files import hold, write_json
from medtransfer.core.layout import CHECKPOINTS, RUNS

CLAIM = "fit.json"


@contextmanager
def claim_fit(folder: Path, outputs: Path, made_from: dict[str, Any]) -> Iterator[str]:
    """Yield the id of the fit with checkpoints in `folder`: that of an interrupted fit with the same `made_from`.

    If the project was copied since, the fit continues under a new id, because the original may continue as well.
    No other process works on the fit until the block ends. If it ends without an error, the checkpoints are removed;
    within a DVC stage, that is left to `remove_recorded_checkpoints`: DVC records the outputs after the stage has
    ended. If DVC is killed before that, it later removes them and runs the stage again, which must continue the same
    fit.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    process = _read(folder).get("process")
    busy = f"{outputs}: {f'process {process}' if process else 'another process'} is working on this fit"
    with hold(folder.with_name(f"{folder.name}.lock"), busy):
        known = _read(folder)
        made_from = json.loads(json.dumps(made_from))
        if known.get("made_from") != made_from:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            known = {}
        here = folder.resolve()
        begun = Path(known.get("folder", here))  # the same fit is still there if the project was copied, not moved
        copied = begun != here and _read(begun).get("fit") == known["fit"]
        fit = uuid.uuid4().hex if copied or not known else known["fit"]
        claim = {"fit": fit, "made_from": made_from, "process": os.getpid(), "folder": str(here)}
        write_json(folder / CLAIM, claim)
        yield fit
        if "DVC_STAGE" in os.environ:
            write_json(folder / CLAIM, {**claim, "outputs": digest_of(outputs)})
        else:
            shutil.rmtree(folder)


def _read(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / CLAIM).read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def remove_recorded_checkpoints() -> None:
    """Remove the checkpoints of fits whose outputs DVC has recorded and stored; two stages may do so at once.

    Outputs that DVC could not store are made again by the next `dvc repro`, which continues from the checkpoints.
    """
    for path in CHECKPOINTS.glob(f"*/*/{CLAIM}"):
        folder = path.parent
        outputs = _read(folder).get("outputs")
        recorded = recorded_digest(RUNS / folder.relative_to(CHECKPOINTS))
        if outputs and outputs == recorded and is_stored(outputs):
            path.unlink(missing_ok=True)  # first: without it the other files belong to no fit
            shutil.rmtree(folder, ignore_errors=True)
