"""The same seed again, and again with something changed: what changes the bits of the predictions, and by how much?"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from provenance import made_by

# What is changed: environment variables, and the arguments of `predictions`.
VARIATIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "one thread": {"env": {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}},
    "one core": {"command": ("taskset", "-c", "0")},
    "without oneDNN": {"env": {"TF_ENABLE_ONEDNN_OPTS": "0"}},
    "features not stored": {"max_gb": 0.0},
    "mixed_bfloat16": {"precision": "mixed_bfloat16"},
    "JAX": {"env": {"KERAS_BACKEND": "jax"}},
}
BLOCKS = {"all layers": "all", "first block": ["block1"], "last block": ["block5"], "head only": "head"}


@click.command()
@click.option("--epochs", default=4, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(epochs: int, seed: int) -> None:
    """Compare each variation with a first fit on the demo's skin lesions, from random weights."""
    begun = made_by()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="medtransfer-determinism-") as folder:
        for network, trainable in BLOCKS.items():
            settings = {"trainable": trainable, "epochs": epochs, "seed": seed}
            first = in_process(Path(folder), settings, {})
            found[network] = {}
            fits = {}
            for name, variation in VARIATIONS.items():
                fits[name] = in_process(Path(folder), settings, variation)
                found[network][name] = compare(fits[name], first)
                click.echo(f"{network}, {name}: {found[network][name]}", err=True)
            half = in_process(Path(folder), settings, VARIATIONS["mixed_bfloat16"])
            found[network]["mixed_bfloat16 twice"] = compare(half, fits["mixed_bfloat16"])
    click.echo(json.dumps({**begun, "epochs": epochs, "seed": seed, "found": found}, indent=2))


def compare(again: np.ndarray, first: np.ndarray) -> dict[str, Any]:
    """Return how the probabilities of two fits differ."""
    return {
        "same_bits": again.tobytes() == first.tobytes(),
        "largest_difference": float(np.abs(again - first).max()),
        "other_class": int((again.argmax(1) != first.argmax(1)).sum()),
    }


def in_process(folder: Path, settings: dict[str, Any], variation: dict[str, Any]) -> np.ndarray:
    """Return what `predictions` returns in a process of its own."""
    own = {key: value for key, value in variation.items() if key not in ("env", "command")}
    output = folder / "predictions.npy"
    arguments = json.dumps({**settings, **own, "folder": str(folder), "output": str(output)})
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "XDG_CACHE_HOME": str(folder), **variation.get("env", {})}
    command = [*variation.get("command", ()), sys.executable, __file__, "--in-process", arguments]
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    return np.load(output)


def predictions(
    folder: str, output: str, trainable: Any, epochs: int, seed: int, max_gb: float = 1.0, precision: str = "float32"
) -> None:
    """Train as the stage does, from random weights, and write the probabilities of all images."""
    from drawn import draw_data
    from medtransfer.core.params import Configuration, read_params
    from medtransfer.core.prepared import encode_labels
    from medtransfer.data.catalogue import get_dataset
    from medtransfer.data.preparation import prepare_dataset
    from medtransfer.models import freezing, vgg16
    from medtransfer.training.batches import Batches
    from medtransfer.training.device import make_deterministic
    from medtransfer.training.loop import fit, predict
    from medtransfer.training.prefix import use_cached_features

    params = read_params(Path(__file__).parents[2] / "params.yaml")
    data, prepared = Path(folder) / "data", Path(folder) / "prepared"
    if not prepared.exists():
        draw_data(data, 0)
        prepared.mkdir()
        prepare_dataset(get_dataset("ham10000"), data / "ham10000", params.datasets["ham10000"], prepared)
    import pandas as pd

    images = np.load(prepared / "images.npy", mmap_mode="r")
    samples = pd.read_csv(prepared / "samples.csv", dtype=str, keep_default_na=False)
    classes = sorted(set(samples.label))
    rows = {split: np.flatnonzero(samples.split == split) for split in ("train", "validation")}
    settings = params.train.model_copy(update={"epochs": epochs, "precision": precision})
    make_deterministic()
    model = vgg16.build_vgg16(images.shape[1], len(classes), settings, seed)
    blocks = Configuration(weights="random", trainable=trainable).blocks
    freezing.set_trainable(model, blocks)
    network, inputs, _ = use_cached_features(model, blocks, settings, images, max_gb)
    labels = encode_labels(samples, classes)
    training = Batches(inputs, rows["train"], labels, settings.batch_size, seed)
    validation = Batches(inputs, rows["validation"], labels, settings.batch_size)
    fit(network, training, validation, settings)
    np.save(output, predict(network, inputs, np.arange(len(images)), settings.batch_size))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in-process"]:
        predictions(**json.loads(sys.argv[2]))
    else:
        main()
