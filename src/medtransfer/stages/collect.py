"""collect: artifacts/ of a finished study → results/<name>, small files only, which can be committed."""

import json
import shutil
from pathlib import Path

from medtransfer.errors import UserError
from medtransfer.files import whole_folder
from medtransfer.stages.layout import FIGURES, GRADCAM, LAYERS, PARAMS, PREPARED, RUNS, TUNING

RESULTS = Path("results")
KEPT = ("predictions.csv", "history.csv", "metrics.json", "run.json")


def collect(name: str) -> Path:
    """Copy predictions, histories, metrics and provenance of all finished fits; models and images stay.

    What `tune`, `layers` and `gradcam` found comes along.

    Raises
    ------
    UserError
        There is no finished fit.
    """
    fits = sorted(path.parent for path in RUNS.glob("*/*/run.json"))
    if not fits:
        raise UserError(f"{RUNS}: no finished fit; run `dvc repro`")
    with whole_folder(RESULTS / name) as folder:
        shutil.copy(PARAMS, folder / "params.yaml")
        shutil.copy("data.dvc", folder / "data-version.yaml")
        for fit in fits:
            target = folder / "runs" / fit.relative_to(RUNS)
            target.mkdir(parents=True)
            for file in KEPT:
                if (fit / file).exists():
                    shutil.copyfile(fit / file, target / file)
        if TUNING.exists():
            shutil.copy(TUNING, folder / TUNING.name)
        if LAYERS.is_dir():
            shutil.copytree(LAYERS, folder / "layers")
        for found in sorted(GRADCAM.glob("*/*")):
            shutil.copytree(found, folder / "gradcam" / found.relative_to(GRADCAM))
        for drawn in sorted(FIGURES.glob("*/activations.png")):
            shutil.copyfile(drawn, folder / f"{drawn.parent.name}-activations.png")
        for dataset in {json.loads((fit / "run.json").read_text())["dataset"] for fit in fits}:
            shutil.copyfile(PREPARED / dataset / "dataset.json", folder / "runs" / dataset / "dataset.json")
    return RESULTS / name
