"""Fitting the decision tree or the random forest on a prepared data set: seconds and peak memory, as JSON."""

import json
import os
import resource
import time
from pathlib import Path

import click
import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

from medtransfer.core.params import TREES, read_params
from medtransfer.trees.classifiers import build_tree, flatten_pixels, predict_probabilities


@click.command()
@click.argument("prepared", type=click.Path(path_type=Path))
@click.argument("model", type=click.Choice(TREES))
@click.option("--seed", default=0, show_default=True)
def main(prepared: Path, model: str, seed: int) -> None:
    """Fit MODEL on training + validation of the folder PREPARED (artifacts/prepared/<data set>)."""
    settings = getattr(read_params(Path("params.yaml")).trees, model)
    samples = pd.read_csv(prepared / "samples.csv", dtype=str, keep_default_na=False)
    labels = samples.label.astype("category").cat.codes.to_numpy()
    images = np.load(prepared / "images.npy", mmap_mode="r")
    test = (samples.split == "test").to_numpy()
    tree = build_tree(settings, seed)
    begin = time.perf_counter()
    tree.fit(flatten_pixels(images[~test]), labels[~test])
    fitted = time.perf_counter()
    predicted = predict_probabilities(tree, images[test], int(labels.max()) + 1).argmax(axis=1)
    result = {
        "model": model,
        "settings": settings.model_dump(),
        "image_size": images.shape[1],
        "training_images": int((~test).sum()),
        "seed": seed,
        "cores": os.cpu_count(),
        "fit_seconds": round(fitted - begin, 1),
        "predict_seconds": round(time.perf_counter() - fitted, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "macro_f1": round(float(f1_score(labels[test], predicted, average="macro", zero_division=0)), 3),
    }
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
