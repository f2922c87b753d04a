"""Compare the speed of this commit with an earlier one: preparing, training, tables and the whole study, as JSON.

Both commits are cloned and installed, and take turns with the same data and settings.
"""

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import pandas as pd
from ruamel.yaml import YAML

from medtransfer.training.device import device_name

ROOT = Path(__file__).parent.parent
MADE = ("artifacts", "reports", "mlruns", "dvc.lock", ".dvc/cache", ".dvc/tmp")
COLLECTED = Path("results/real-64px-by-group")
SIZE = 64
TRAIN = {"batch_size": 32, "epochs": 4, "patience": 4, "dense_units": [256, 256], "precision": "auto"}
# The configuration, and a fraction of the training images that keeps a fit under a minute or two.
FITS = {"all": ("imagenet_all", 0.1), "last_block": ("imagenet_last_block", 0.2), "head": ("imagenet_head", 1.0)}


@click.command()
@click.argument("before")
@click.argument("after", default="HEAD")
@click.option(
    "--ham10000", required=True, type=click.Path(exists=True, path_type=Path), help="The archive of HAM10000."
)
@click.option(
    "--collected", type=click.Path(exists=True, path_type=Path), help=f"Runs for the tables, instead of {COLLECTED}."
)
@click.option("--rounds", default=2, show_default=True, help="How often each commit does each part.")
@click.option("--only", multiple=True, help="Measure only this part; repeat for more.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the clones here, and reuse existing ones.")
def main(
    before: str,
    after: str,
    ham10000: Path,
    collected: Path | None,
    rounds: int,
    only: tuple[str, ...],
    folder: Path | None,
) -> None:
    """Compare two commits; each ratio is the seconds of BEFORE divided by those of AFTER."""
    with tempfile.TemporaryDirectory() as temporary:
        place = (folder or Path(temporary)).resolve()
        sides = {"before": place / "before", "after": place / "after"}
        commits = {"before": install(sides["before"], before), "after": install(sides["after"], after)}
        seconds: dict[str, dict[str, list[float]]] = {}
        runs = (collected or sides["before"] / COLLECTED).resolve()
        for name, measure in measures(sides, ham10000.resolve(), runs).items():
            if only and name not in only:
                continue
            seconds[name] = {side: [] for side in sides}
            for _ in range(rounds):
                for side, clone in sides.items():
                    seconds[name][side].append(measure(clone))
                    click.echo(f"{name}, {side}: {seconds[name][side][-1]:.4g} s", err=True)
    result = {
        "commits": commits,
        "device": device_name(),
        "cores": os.cpu_count(),
        "image_size": SIZE,
        "train": TRAIN,
        "seconds": seconds,
        "ratios": {
            name: round(statistics.median(values["before"]) / statistics.median(values["after"]), 2)
            for name, values in seconds.items()
        },
    }
    click.echo(json.dumps(result, indent=2))


def measures(sides: dict[str, Path], archive: Path, runs: Path) -> dict[str, Callable[[Path], float]]:
    """Return the measurement of each part: a function of a clone that returns seconds, for fits per image."""
    return {
        "study": partial(study_of, settings=sides["before"]),
        "tables": partial(tables_of, collected=runs),
        "prepare": partial(prepare_of, archive=archive),
        **{name: partial(fit_of, configuration=fit, fraction=part) for name, (fit, part) in FITS.items()},
    }


def install(clone: Path, commit: str) -> str:
    """Check out and install a commit in `clone`, unless it exists; return the commit's full hash."""
    if not clone.exists():
        run(["git", "clone", "--quiet", str(ROOT), str(clone)], ROOT)
        run(["git", "checkout", "--quiet", commit], clone)
    run(["make", "--silent", "install"], clone)
    return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=clone, text=True).strip()


def study_of(clone: Path, settings: Path) -> float:
    """Return the seconds of the whole study, with the data and params.yaml of the clone that is measured first."""
    clean(clone)
    if settings != clone:
        shutil.copytree(settings / "data", clone / "data")
        run(["bin/dvc", "add", "--quiet", "data"], clone)
        shutil.copy(settings / "params.yaml", clone)
    with empty_home() as home:
        return run(["bin/medtransfer", "study"], clone, home)


def tables_of(clone: Path, collected: Path) -> float:
    """Return the seconds that it takes to compute the tables of a folder of collected runs."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(collected, Path(folder) / collected.name)
        return run(["bin/medtransfer", "tables", str(copy)], clone)


def prepare_of(clone: Path, archive: Path) -> float:
    """Return the seconds that it takes to prepare HAM10000, without the import."""
    clean(clone)
    (clone / "dvc.lock").unlink(missing_ok=True)  # it describes the demonstration data
    yaml, path = YAML(), clone / "params.yaml"
    values = yaml.load(path)
    values["datasets"]["ham10000"]["image_size"] = SIZE
    values["datasets"]["ham10000"]["split"] = {"by": "image", "validation": 0.2, "test": 0.2, "seed": 0}
    values["train"] |= TRAIN
    yaml.dump(values, path)
    run(["bin/medtransfer", "data", "import", "ham10000", str(archive)], clone)
    return run(["bin/medtransfer", "stage", "prepare", "ham10000"], clone)


def fit_of(clone: Path, configuration: str, fraction: float) -> float:
    """Return a fit's seconds per image: the median over all epochs after the first."""
    yaml, path = YAML(), clone / "params.yaml"
    values = yaml.load(path)
    values["configurations"][configuration] |= {"learning_rate": 1e-4, "fraction": fraction}
    yaml.dump(values, path)
    fit = clone / "artifacts/runs/ham10000" / f"{configuration}-seed0"
    shutil.rmtree(fit, ignore_errors=True)
    run(["bin/medtransfer", "stage", "train", "ham10000", configuration, "--seed", "0"], clone)
    return 1 / float(pd.read_csv(fit / "history.csv").images_per_second[1:].median())


def clean(clone: Path) -> None:
    """Remove what an earlier measurement left behind."""
    for name in (*MADE, "data"):
        path = clone / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    run(["git", "checkout", "--quiet", "--", "."], clone)


@contextmanager
def empty_home() -> Iterator[dict[str, str]]:
    """Yield environment variables that name an empty home."""
    with tempfile.TemporaryDirectory() as home:
        yield {"HOME": home, "XDG_CACHE_HOME": f"{home}/.cache"}


def run(command: list[str], clone: Path, environment: dict[str, Any] | None = None) -> float:
    """Run a command in a clone, where `bin/` means its .venv/bin, and return the seconds that it takes."""
    bin_ = clone / ".venv/bin"
    program, *arguments = command
    variables = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", **(environment or {})}
    begin = time.perf_counter()
    subprocess.run([program.replace("bin/", f"{bin_}/"), *arguments], cwd=clone, env=variables, check=True, stdout=2)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
