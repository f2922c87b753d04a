"""What do predictions averaged over flips add to macro F1? The same finished networks, with and without them.

    python benchmarks/flips.py PROJECT DATASET MODEL...

Writes benchmarks/results/flips.json: one row per network whose recipe has `test_flips`.
"""

import json
import os
from pathlib import Path
from typing import Any

import click
import numpy as np

from medtransfer.analysis.uncertainty import groups_variance, jackknife
from medtransfer.core.errors import UserError
from medtransfer.core.layout import PARAMS, RUNS
from medtransfer.core.params import read_params
from medtransfer.core.predictions import as_predictions
from medtransfer.core.prepared import read_dataset
from medtransfer.core.run_record import read_record, recipe_of
from medtransfer.metrics.scores import MACRO, encode
from medtransfer.models.vgg16 import load_network
from medtransfer.serving.classifier import predict_probabilities
from medtransfer.training.device import device_name

OUTPUT = Path("benchmarks/results/flips.json").absolute()


@click.command()
@click.argument("project", type=click.Path(path_type=Path, exists=True))
@click.argument("dataset")
@click.argument("models", nargs=-1, required=True)
def main(project: Path, dataset: str, models: tuple[str, ...]) -> None:
    """Score networks with and without test-time flips."""
    os.chdir(project)
    images, samples, description = read_dataset(read_params(PARAMS), dataset)
    tested = np.flatnonzero(samples.split == "test")
    fits = [fit for model in models for fit in sorted((RUNS / dataset).glob(f"{model}-seed*"))]
    rows = [measure(fit, images[tested], samples.iloc[tested], description["classes"]) for fit in fits]
    found = {
        "dataset": dataset, "image_size": description["image_size"], "images": len(tested), "device": device_name(),
        "interval": "95%, over lesions or patients", "networks": rows,
    }  # fmt: skip
    OUTPUT.write_text(json.dumps(found, indent=2) + "\n")


def measure(fit: Path, pixels: np.ndarray, samples: Any, classes: list[str]) -> dict[str, Any]:
    """Return the macro F1 of a network with and without flips, and the interval of the difference."""
    record = read_record(fit)
    flips = recipe_of(record).flip_axes
    if len(flips) == 1:
        raise UserError(f"{fit}: was trained without test_flips; name others")
    network = load_network(fit / "model.keras")
    sides = [
        jackknife(encode(as_predictions(samples, predict_probabilities(network, pixels, views), classes)))
        for views in (flips, ((),))
    ]
    (with_flips, by_with), (without, by_without) = (side.of(MACRO) for side in sides)
    half = 1.96 * float(np.sqrt(groups_variance(by_with - by_without)))
    gain = with_flips - without
    row = {"fit": fit.name, "commit": record["git_commit"], "views": len(flips), "with": with_flips, "without": without}
    row |= {"gain": gain, "low": gain - half, "high": gain + half}
    print(row)
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


if __name__ == "__main__":
    main()
