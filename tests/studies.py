"""Studies for tests: runs whose predictions are made up, and folders of fits from the committed results."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from conftest import AT_64_PX, PROJECT
from medtransfer.analysis.agreement import WAYS
from medtransfer.analysis.runs import Run
from medtransfer.analysis.tables import compute_tables
from medtransfer.core.files import write_json
from medtransfer.core.params import BLOCKS, Configuration, read_params
from medtransfer.report.study import Layers, Study

TRAIN = read_params(PROJECT / "params.yaml").train


def run(dataset: str, model: str, right: float, images: int = 200, **changes: object) -> Run:
    """A run that predicts a share of the images correctly; `changes` are settings of its configuration."""
    configuration = Configuration.model_validate({"weights": "imagenet", "trainable": "all", **changes})
    classes = ["NORMAL", "PNEUMONIA"]
    codes = np.arange(images) % 2
    predicted = np.where(np.random.default_rng(len(model)).random(images) < right, codes, 1 - codes)
    frame = pd.DataFrame({"id": map(str, range(images)), "group": [str(i // 2) for i in range(images)]})
    frame = frame.assign(split="test", label=[classes[code] for code in codes])
    for number, name in enumerate(classes):
        frame[f"p_{name}"] = np.where(predicted == number, 0.9, 0.1)
    record = {
        "dataset": dataset, "model": model, "seed": 0, "synthetic": False, "image_size": 32,
        "split_by": "group", "split_leakage": "keep",
        "data_version": "abc.dir", "precision": "float32", "backend": "tensorflow", "device": "CPU", "seconds": 2.0,
        "git_commit": "0123456789", "epochs": 2, "best_epoch": 1, "kind": "network",
        "training_images": int(100 * (configuration.fraction or 1)),
        "hyperparameters": {
            "train": configuration.settings(TRAIN, dataset).model_dump(),
            "configuration": configuration.model_dump(exclude_none=True),
        },
    }  # fmt: skip
    history = pd.DataFrame({"epoch": [1, 2], "val_loss": [0.5, 0.6]})
    return Run(record, frame, history, frame.assign(split="validation"))


def runs(random: float = 0.7, imagenet: float = 0.95) -> list[Run]:
    return [run("chest_xray", "cnn_random", random), run("chest_xray", "imagenet_all", imagenet)]


def evaluate_study(name: str, runs: list[Run]) -> Study:
    return Study(name, runs, compute_tables(runs, {}))


def with_seeds(fits: list[Run], seeds: int = 6) -> list[Run]:
    """The fits as if several seeds had given the same."""
    return [dataclasses.replace(fit, record={**fit.record, "seed": seed}) for fit in fits for seed in range(seeds)]


def layer_tables(order: dict[str, list[float]]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The tables of `medtransfer layers` in which each way finds the blocks to matter as much as given."""
    losses = [0.0, *order["rewinding"]]
    rewinding = pd.DataFrame({"block": ["none", *BLOCKS], "macro_f1": [0.9 - loss for loss in losses]})
    similarity = pd.DataFrame(
        [
            {"layer": f"{block}_conv{layer}", "block": block, "cka": 1 - change, "distance": distance}
            for block, change, distance in zip(BLOCKS, order["outputs"], order["weights"], strict=True)
            for layer in (1, 2)
        ]
    )
    probes = pd.DataFrame(
        [
            {"block": block, "network": network, "macro_f1": 0.3 + gain}
            for network, gains in (("start", [0.0] * 5), ("tuned", order["probes"]))
            for block, gain in zip(BLOCKS, gains, strict=True)
        ]
    )
    return rewinding, similarity, probes


def found_layers(rising: bool, noise: float = 0.05) -> Layers:
    order = np.linspace(0.1, 0.5, 5) if rising else np.linspace(0.5, 0.1, 5)
    ways = {**dict.fromkeys(WAYS, np.linspace(0.1, 0.5, 5).tolist()), "weights": order.tolist()}
    tables = layer_tables(ways)
    for table in (tables[0], tables[2]):
        table["low"], table["high"] = table.macro_f1 - noise, table.macro_f1 + noise
    made = {"backend": "tensorflow", "device": "CPU x", "seconds": 1.2, "git_commit": "abc"}
    return Layers({"dataset": "chest_xray", "model": "imagenet_all", "seed": 0, **made}, *tables)


def add_seed(fit: Path, seed: int) -> Path:
    """Put a copy of a fit beside it, as if another seed had given the same."""
    target = fit.with_name(fit.name.replace("seed0", f"seed{seed}"))
    shutil.copytree(fit, target)
    record = json.loads((target / "run.json").read_text())
    write_json(target / "run.json", {**record, "seed": seed, "fit": f"{record['fit']}{seed}"})
    return target


def write_samples(fit: Path, folder: Path) -> pd.DataFrame:
    """Write samples.csv as `prepare` does, but without training images, of which a fit keeps nothing."""
    samples = pd.read_csv(fit / "predictions.csv", dtype=str)[["id", "label", "group", "split"]]
    samples.to_csv(folder / "samples.csv", index=False)
    return samples


def finished_study(folder: Path, seed: int, models: list[str]) -> None:
    """Lay a study out as its stages leave it, of fits of the committed results."""
    source = PROJECT / AT_64_PX
    (folder / "artifacts/prepared/chest_xray").mkdir(parents=True)
    network = source / "runs/chest_xray/imagenet_head-seed0"  # a tree has no validation images
    write_samples(network, folder / "artifacts/prepared/chest_xray")
    for model in models:
        fit = folder / "artifacts/runs/chest_xray" / f"{model}-seed0"
        shutil.copytree(source / "runs/chest_xray" / fit.name, fit)
        if seed:
            add_seed(fit, seed)
            shutil.rmtree(fit)
    shutil.copy(source / "runs/chest_xray/dataset.json", folder / "artifacts/prepared/chest_xray")
    text = re.sub(r"^seeds: .*", f"seeds: [{seed}]", (source / "params.yaml").read_text(), flags=re.MULTILINE)
    (folder / "params.yaml").write_text(text)
    shutil.copy(source / "data-version.yaml", folder / "data.dvc")
    tuning = pd.read_csv(source / "tuning.csv", dtype=str).iloc[seed : seed + 2]
    tuning.to_csv(folder / "artifacts/tuning.csv", index=False)
