"""Training speed against a plain Keras notebook, PyTorch where it is installed, and the machine's own limit.

All sides of a configuration take turns in one process; the result has medians, ratios and the fraction of the limit.
"""

import importlib.util
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import keras
import numpy as np
import sides
from limit import matmul_rate, multiply_adds
from rich.console import Console
from rich.progress import track
from rich.table import Table

from medtransfer.core.files import write_json
from medtransfer.core.layout import PARAMS
from medtransfer.core.params import Configuration, read_params
from medtransfer.core.prepared import encode_labels, read_dataset
from medtransfer.core.provenance import git_commit
from medtransfer.core.recipe import TrainParams
from medtransfer.models.weights import imagenet_weights
from medtransfer.training.device import accelerators, device_name
from medtransfer.training.prefix import frozen_prefix

PRECISIONS = ("float32", "mixed_bfloat16")
NOTEBOOK = "keras float32"
# The talk's networks on HAM10000. Random weights cost what ImageNet's cost with all layers trainable.
COLUMN = ("imagenet_all", "imagenet_all", "imagenet_last_block", "imagenet_first_block", "imagenet_first_last")
MEASURED = (*dict.fromkeys(COLUMN), "imagenet_head")
RACED = ("imagenet_all", "imagenet_last_block", "imagenet_head")
RACERS = (NOTEBOOK, "pytorch mixed_bfloat16", "ours mixed_bfloat16")
EPOCHS = 10  # over which the features of a frozen prefix are paid for
LONGER = 5  # times the images, where features are stored
RACE_LIMIT = 4  # times the notebook's epochs

Build = Callable[[sides.Sample, TrainParams, tuple[str, ...], list[np.ndarray], int], sides.Side]


def available_sides() -> dict[str, tuple[Build, str]]:
    """Return each side that can run here: its name, what builds it, and its precision."""
    found: dict[str, tuple[Build, str]] = {NOTEBOOK: (sides.notebook, "float32")}
    if importlib.util.find_spec("torch"):
        found |= {f"pytorch {precision}": (sides.pytorch, precision) for precision in PRECISIONS}
        if accelerators():
            compiled = {"compiled": "default", "with CUDA graphs": "reduce-overhead"}
            found |= {
                f"pytorch {name} {PRECISIONS[1]}": (partial(sides.pytorch, mode=mode), PRECISIONS[1])
                for name, mode in compiled.items()
            }
    return found | {f"ours {precision}": (sides.ours, precision) for precision in PRECISIONS}


def compare(
    images: np.ndarray,
    labels: np.ndarray,
    rows: dict[str, np.ndarray],
    settings: TrainParams,
    configurations: dict[str, Configuration],
    weights: list[np.ndarray],
    options: dict[str, int],
    save: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Measure every configuration of `MEASURED` that is given.

    Parameters
    ----------
    images : ndarray of shape (n, size, size, 3), uint8
    labels : ndarray of shape (n,), int
    rows : dict
        The rows of `train` and `validation`.
    options : dict
        `images`: training images of an epoch of the whole network; `rounds`: measured epochs a side, 0 for none;
        `race_images`: training images of the race to the notebook's accuracy, 0 for none;
        `race_epochs`; `seed`.
    save : callable
        Called with what has been measured so far.

    Returns
    -------
    dict
        What bench.json holds.
    """
    names = [name for name in MEASURED if name in configurations]
    classes = int(labels.max()) + 1
    rates = {precision: matmul_rate(precision) for precision in PRECISIONS}
    result: dict[str, Any] = {
        **_describe(settings, options),
        "image_size": images.shape[1],
        "training_images": len(rows["train"]),
        "matmul_multiply_adds_per_second": rates,
        "configurations": {},
    }
    with _workplace() as folder:
        rng = np.random.default_rng(options["seed"])
        part = {split: rng.permutation(values) for split, values in rows.items()}
        small = _sample(folder / "small", images, labels, part, options["images"])
        large = _sample(folder / "large", images, labels, part, min(LONGER * options["images"], len(part["train"])))
        for name in track(names if options["rounds"] else [], "configurations"):
            blocks = configurations[name].blocks
            entry = measure(small, large, settings, blocks, weights, options["rounds"], options["seed"])
            for side, (_, precision) in available_sides().items():
                stored = side.startswith("ours")
                needed = multiply_adds(images.shape[1], settings.dense_units, classes, blocks, stored=stored)
                limit = rates[precision] / needed
                entry[side] |= {
                    "multiply_adds_per_image": needed,
                    "limit_images_per_second": limit,
                    "fraction_of_limit": entry[side]["images_per_second"] / limit,
                }
            result["configurations"][name] = entry
            save(result)
        if options["race_images"]:
            raced = _sample(folder / "race", images, labels, part, options["race_images"])
            result["race"] = {}
            for name in track([name for name in names if name in RACED], "race"):
                result["race"][name] = race(raced, settings, configurations[name].blocks, weights, options)
                save(result)
        result["peak_memory_gb"] = {
            name: {
                side: peak_memory(side, large, settings, configurations[name].blocks, weights)
                for side in available_sides()
            }
            for name in track([name for name in names if name == "imagenet_last_block"], "memory")
        }
    result["column_seconds"] = column_seconds(result["configurations"], len(rows["train"]))
    return result


def measure(
    small: sides.Sample,
    large: sides.Sample,
    settings: TrainParams,
    blocks: tuple[str, ...],
    weights: list[np.ndarray],
    rounds: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Return images a second of each side, the median of `rounds` epochs after one to warm up.

    Sides that pass the whole network train on `small`; behind stored features an epoch of it would be
    too short to measure, and they train on `large`.
    """
    built, images = {}, {}
    for name, (build, precision) in available_sides().items():
        sample = large if name.startswith("ours") and frozen_prefix(blocks) else small
        built[name] = build(sample, settings.model_copy(update={"precision": precision}), blocks, weights, seed)
        images[name] = sample.training
    seconds: dict[str, list[float]] = {name: [] for name in built}
    for measured in range(rounds + 1):
        for name, side in built.items():
            begin = time.perf_counter()
            side.epoch()
            if measured:
                seconds[name].append(time.perf_counter() - begin)
    entry: dict[str, dict[str, float]] = {}
    for name, side in built.items():
        epoch = statistics.median(seconds[name])
        entry[name] = {
            "images": images[name],
            "images_per_second": images[name] / epoch,
            "fill_seconds": side.fill_seconds,
            "images_per_second_over_10_epochs": EPOCHS * images[name] / (side.fill_seconds + EPOCHS * epoch),
        }
    plain = entry[NOTEBOOK]["images_per_second"]
    for values in entry.values():
        values["ratio"] = values["images_per_second_over_10_epochs"] / plain
        values["ratio_once_filled"] = values["images_per_second"] / plain
    keras.backend.clear_session()
    return entry


def race(
    sample: sides.Sample,
    settings: TrainParams,
    blocks: tuple[str, ...],
    weights: list[np.ndarray],
    options: dict[str, int],
) -> dict[str, Any]:
    """Return each side's seconds, validation and features included, to the notebook's best validation accuracy."""
    target, found = 1.1, {}
    for name, (build, precision) in available_sides().items():
        if name not in RACERS:
            continue
        side = build(sample, settings.model_copy(update={"precision": precision}), blocks, weights, options["seed"])
        epochs = options["race_epochs"] * (1 if name == NOTEBOOK else RACE_LIMIT)
        seconds = side.fill_seconds
        accuracies: list[float] = []
        reached: list[float] = []
        while len(accuracies) < epochs and max(accuracies, default=0) < target:
            begin = time.perf_counter()
            side.epoch()
            accuracies.append(side.validate())
            seconds += time.perf_counter() - begin
            reached.append(seconds)
        if name == NOTEBOOK:
            target = max(accuracies)
        first = next((number for number, accuracy in enumerate(accuracies) if accuracy >= target), None)
        found[name] = {
            "epochs": None if first is None else first + 1,
            "seconds": None if first is None else reached[first],
            "accuracies": accuracies,
        }
    keras.backend.clear_session()
    return {"target_accuracy": target, "images": sample.training, "sides": found}


def column_seconds(configurations: dict[str, dict[str, dict[str, float]]], images: int) -> dict[str, float] | None:
    """Return each side's seconds for the talk's five networks, `EPOCHS` epochs each, from the measured rates."""
    if not set(COLUMN) <= set(configurations):
        return None
    return {
        side: sum(EPOCHS * images / configurations[name][side]["images_per_second_over_10_epochs"] for name in COLUMN)
        for side in available_sides()
    }


def peak_memory(
    side: str, sample: sides.Sample, settings: TrainParams, blocks: tuple[str, ...], weights: list[np.ndarray]
) -> float:
    """Return the peak resident memory, in GB, of a fresh process that trains one epoch."""
    build, precision = available_sides()[side]
    changed = settings.model_copy(update={"precision": precision})
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_train_once, (build, sample, changed, blocks, weights))


def _train_once(
    build: Build, sample: sides.Sample, settings: TrainParams, blocks: tuple[str, ...], weights: list[np.ndarray]
) -> float:
    # A memory map arrives as a copy; the file is opened anew instead.
    sample.images = np.load(sample.folder / "images.npy", mmap_mode="r")
    build(sample, settings, blocks, weights, 0).epoch()
    return _peak_bytes() / 1e9


def _peak_bytes() -> int:
    """Return this process's peak resident memory. getrusage's would include the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@contextmanager
def _workplace() -> Iterator[Path]:
    """Yield a temporary folder that also holds a new feature cache."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory(prefix="medtransfer-bench-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = before


def _sample(
    folder: Path, images: np.ndarray, labels: np.ndarray, rows: dict[str, np.ndarray], training: int
) -> sides.Sample:
    folder.mkdir()
    validation = max(1, training * len(rows["validation"]) // len(rows["train"]))
    return sides.make_sample(images, labels, rows["train"][:training], rows["validation"][:validation], folder)


def _describe(settings: TrainParams, options: dict[str, int]) -> dict[str, Any]:
    packages = ["keras", keras.backend.backend(), *(["torch"] if importlib.util.find_spec("torch") else [])]
    return {
        "device": device_name(),
        "cores": os.cpu_count(),
        "versions": {package: version(package) for package in packages},
        "options": options,
        "settings": settings.model_dump(exclude={"precision"}),
    }


def table(result: dict[str, Any]) -> Table:
    """Return the speeds as a terminal table."""
    shown = Table(title=f"Images a second, {result['image_size']} px, {result['device']}, {result['cores']} cores")
    columns = ("configuration", "side", "trained on", "epoch", f"over {EPOCHS} epochs", "times", "of the limit")
    for column in columns:
        shown.add_column(column, justify="left" if column in ("configuration", "side") else "right")
    for name, entry in result["configurations"].items():
        for side, values in entry.items():
            shown.add_row(
                name,
                side,
                str(values["images"]),
                f"{values['images_per_second']:.1f}",
                f"{values['images_per_second_over_10_epochs']:.1f}",
                f"{values['ratio']:.2f}",
                f"{values['fraction_of_limit']:.0%}",
            )
        shown.add_section()
    return shown


@click.command()
@click.argument("dataset", default="ham10000")
@click.option("--images", default=320, show_default=True, help="Training images per epoch of a whole network.")
@click.option("--rounds", default=3, show_default=True, help="Measured epochs per side, after one to warm up.")
@click.option("--race-images", default=960, show_default=True, help="For the race to equal accuracy; 0: no race.")
@click.option("--race-epochs", default=3, show_default=True, help="Epochs of the notebook in the race.")
@click.option("--seed", default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path("artifacts/bench.json"), show_default=True)
def main(dataset: str, output: Path, **options: int) -> None:
    """Measure training on DATASET, prepared by the study in this folder; 40 minutes on 2 cores at 64 px."""
    params = read_params(PARAMS)
    images, samples, description = read_dataset(params, dataset)
    rows = {split: np.flatnonzero(samples.split == split) for split in ("train", "validation")}
    if max(options["images"], options["race_images"]) > len(rows["train"]):
        raise click.UsageError(f"{dataset} has {len(rows['train'])} training images; give fewer")
    labels = encode_labels(samples, description["classes"])
    weights = imagenet_weights(params.weights.file)
    made_by = {
        "command": " ".join(["benchmarks/speed/speed.py", *sys.argv[1:]]),
        "git_commit": git_commit(),
        "data": description["source"],
        "synthetic": description["synthetic"],
    }

    def save(result: dict[str, Any]) -> None:
        write_json(output, {**made_by, **result})

    result = compare(images, labels, rows, params.train, params.configurations, weights, options, save)
    save(result)
    Console(width=None if sys.stdout.isatty() else 140).print(table(result))
    click.echo(f"everything measured: {output}")


if __name__ == "__main__":
    main()
