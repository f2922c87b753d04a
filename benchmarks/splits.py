"""How much does another draw of the training and test images change a score? Only the head, on ten splits.

    python benchmarks/splits.py PROJECT

PROJECT holds the imported real data (data/, data.dvc) and params.yaml. For each split seed, both data sets are prepared
and `imagenet_head` is fitted with three seeds, in a separate folder under PROJECT/splits, so that a stopped run can
continue. Features are computed once per data set, since they do not depend on the split. One row per fit is written to
benchmarks/results/splits.csv.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from medtransfer.analysis.runs import read_run
from medtransfer.analysis.uncertainty import groups_variance
from medtransfer.metrics.scores import MACRO

OUTPUT = Path("benchmarks/results/splits.csv")
MODEL = "imagenet_head"


@click.command()
@click.argument("project", type=click.Path(path_type=Path, exists=True))
@click.option("--splits", default=10, show_default=True)
@click.option("--seeds", default=3, show_default=True)
def main(project: Path, splits: int, seeds: int) -> None:
    """Fit the head on several splits and compare what varies."""
    rows = []
    for split in range(splits):
        folder = lay_out(project.resolve(), split)
        for dataset in ("ham10000", "chest_xray"):
            if not (folder / "artifacts/prepared" / dataset).exists():
                run(folder, "stage", "prepare", dataset)
            for seed in range(seeds):
                fit = folder / "artifacts/runs" / dataset / f"{MODEL}-seed{seed}"
                if not fit.exists():
                    run(folder, "stage", "train", dataset, MODEL, "--seed", str(seed))
                found = read_run(fit)
                value, deviations = found.jackknife.of(MACRO)
                error = np.sqrt(groups_variance(deviations))
                rows.append((dataset, split, seed, round(value, 6), round(float(error), 6), found.record["device"]))
        table = pd.DataFrame(rows, columns=["dataset", "split_seed", "seed", "macro_f1", "groups_error", "device"])
        table.to_csv(OUTPUT, index=False)
        print(json.dumps({name: summary(part) for name, part in table.groupby("dataset")}, indent=1), flush=True)


def lay_out(project: Path, split: int) -> Path:
    """Make a project folder with another split seed."""
    folder = project / "splits" / str(split)
    folder.mkdir(parents=True, exist_ok=True)
    params = YAML(typ="safe").load((project / "params.yaml").read_text())
    for settings in params["datasets"].values():
        settings["split"]["seed"] = split
    YAML().dump(params, folder / "params.yaml")
    for name in ("data", "data.dvc"):
        if not (folder / name).exists():
            (folder / name).symlink_to(project / name)
    return folder


def run(folder: Path, *arguments: str) -> None:
    """Run a command of medtransfer in a project folder."""
    command = [str(Path(sys.executable).with_name("medtransfer")), *arguments]
    subprocess.run(command, cwd=folder, env=os.environ, check=True, stdout=subprocess.DEVNULL)


def summary(table: pd.DataFrame) -> dict[str, float]:
    """Return the standard deviations of macro F1 between splits and between seeds, and the mean error over groups."""
    means = table.groupby("split_seed").macro_f1.mean()
    return {
        "splits": len(means),
        "mean": round(means.mean(), 4),
        "sd_between_splits": round(means.std(ddof=1), 4),
        "sd_between_seeds": round(float(np.sqrt(table.groupby("split_seed").macro_f1.var(ddof=1).mean())), 4),
        "groups_error": round(table.groups_error.mean(), 4),
    }


if __name__ == "__main__":
    main()
