"""Search learning rates, sweep over fits, analyse finished networks, and manage cached weights and features."""

import os
import sys
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from medtransfer.cli.app import cli
from medtransfer.cli.shared import AT_LEAST_1, FILE, PATH, RATE, SEED, as_dataset, many, of_fit, quiet_start
from medtransfer.core.errors import UserError, check_known, counted
from medtransfer.core.layout import PARAMS, SWEEPS, TUNING, check_name
from medtransfer.core.params import read_params

SAMPLERS, PRUNERS = ("grid", "random", "tpe"), ("none", "median")


@cli.command()
@as_dataset
@many("--configuration", "names", help="Search only this configuration; repeat for more.")
@many(
    "--search",
    "searched",
    metavar="KEY=VALUES",
    default=("learning_rate=1e-5,3e-5,1e-4,3e-4,1e-3",),
    help="A key of train in params.yaml with the values to try: a list, a range LOW:HIGH or LOW:HIGH:log, or one "
    "value. Repeat for more keys; a dot leads to a nested key, as in augment.crop.",
)
@click.option("--sampler", type=click.Choice(SAMPLERS), default=SAMPLERS[0], help="grid takes lists only.")
@click.option("--trials", type=AT_LEAST_1, default=20, help="The number of trials of random and tpe.")
@click.option("--pruner", type=click.Choice(PRUNERS), default=PRUNERS[0], help="median stops poor trials early.")
@click.option("--output", type=FILE, default=TUNING, help="The table of trials; Optuna's file is beside it, as .db.")
def tune(dataset: str, names: list[str], searched: list[str], output: Path, **settings: Any) -> None:
    """Search learning rates and other training settings.

    The choice is made on the validation images, for each configuration. Prints the best settings for params.yaml. An
    interrupted search resumes, and several processes can run the same one.
    """
    if output.suffix == ".db":
        raise UserError(f"--output: {output}: is the name of Optuna's file; expected a name that ends in .csv")
    params = read_params(PARAMS)
    check_known("params.yaml: study", dataset, params.study)
    with quiet_start():
        from medtransfer.study.search_space import advice, parse_space
        from medtransfer.study.shared_study import Plan
        from medtransfer.study.tune import tune
        from medtransfer.training.device import check_gpu

    check_gpu()
    params = read_params(PARAMS)  # `precision: auto` is that of the device
    study, plan = params.study[dataset], Plan(parse_space(searched), **settings)
    table = tune(params, dataset, names or study.networks, plan, output)
    for name in table.configuration.drop_duplicates():
        for line in advice(params, dataset, name, plan.space, table[table.configuration == name]):
            click.echo(line)


@cli.command()
@click.argument("name")
@many("--dataset", "datasets", show_default="all in params.yaml")
@many("--configuration", "names", show_default="study.DATASET.train in params.yaml")
@many("--seed", "seeds", type=SEED, show_default="from params.yaml")
@many("--rate", "rates", type=RATE, help="Learning rate.", show_default="from params.yaml")
@click.option("--cpus", type=AT_LEAST_1, default=1, help="CPUs per fit.")
@click.option("--gpus", type=click.FloatRange(0), default=0.0, help="GPUs per fit; with 0.25, four fits share one GPU.")
@click.option("--memory-gb", type=click.FloatRange(0, min_open=True), default=2.0, help="Memory per fit.")
@click.option("--retries", type=click.IntRange(0), default=3, help="Retries after a worker or node dies.")
@click.option("--local", is_flag=True, help="Start Ray on this machine instead of using the cluster at RAY_ADDRESS.")
def sweep(
    name: str, datasets: list[str], names: list[str], seeds: list[int], rates: list[float], local: bool, **needs: Any
) -> None:
    """Run a grid of fits in parallel on Ray.

    The grid: data sets x configurations x seeds x rates. Repeat a grid option to give it several values. Fits and their
    table go to artifacts/sweeps/NAME, and their MLflow runs to the experiment `sweep NAME`, under one parent run. An
    interrupted sweep resumes.
    """
    params = read_params(PARAMS)
    check_name(name, "a sweep")
    if not find_spec("ray"):
        raise UserError("Ray is not installed; run `pip install --editable '.[cluster]'`")
    if not local and (Path.home() / ".ray" / "auth_token").exists():
        # As `ray start --head` does since 2.60. Ray reads it when it is imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from medtransfer.study.ray_cluster import Needs
    from medtransfer.study.sweep import plan, sweep

    fits = plan(params, datasets or list(params.study), names, seeds or params.seeds, rates)
    table = sweep(params, name, fits, Needs(**needs), local)
    failed = int((table.problem != "").sum())
    click.echo(f"{len(table) - failed} of {len(table)} fits finished: {SWEEPS / name / 'sweep.csv'}")
    if failed:
        click.echo(f"{failed} failed; see the logs in {SWEEPS / name}/*/fit.log", err=True)
        sys.exit(1)


@cli.command()
@of_fit(default=lambda: read_params(PARAMS).seeds[0], show_default="the first in params.yaml")
def layers(dataset: str, configuration: str, seed: int) -> None:
    """Measure which layers of a finished network matter.

    Resets one block at a time to its initial weights, compares each layer with itself before training, and fits a
    linear classifier on the output of each block.
    """
    params = read_params(PARAMS)
    with quiet_start():
        from medtransfer.study.finished import analyse_layers

    click.echo(f"layers: {analyse_layers(params, dataset, configuration, seed)}")


@cli.command()
@of_fit(default=lambda: read_params(PARAMS).seeds[0], show_default="the first in params.yaml")
def gradcam(dataset: str, configuration: str, seed: int) -> None:
    """Draw Grad-CAM heatmaps of a finished network.

    For each class, the images are the most confident correct and the most confident wrong prediction.
    """
    params = read_params(PARAMS)
    with quiet_start():
        from medtransfer.study.finished import explain_predictions

    click.echo(f"gradcam: {explain_predictions(params, dataset, configuration, seed)}")


@cli.group()
def weights() -> None:
    """Fetch or verify VGG16's ImageNet weights."""


@weights.command()
def fetch() -> None:
    """Download and verify the weights, unless the user's cache has them."""
    with quiet_start():
        from medtransfer.models.weights import cache_path, fetch_weights, is_cached

    if is_cached():
        click.echo(f"ImageNet weights: already in {cache_path()}, all 26 tensors")
    else:
        fetch_weights()


@weights.command()
@click.argument("path", type=PATH)
def verify(path: Path) -> None:
    """Check that a file contains VGG16's ImageNet weights."""
    with quiet_start():
        from medtransfer.models.weights import read_weights

    read_weights(path)
    click.echo(f"{path}: VGG16's ImageNet weights, all 26 tensors")


@cli.group()
def cache() -> None:
    """Show or clear the stored outputs of frozen blocks."""


@cache.command()
def show() -> None:
    """List the cached features, least recently used first."""
    from medtransfer.training.feature_cache import GB, cache_folder, entries

    found = entries()
    for entry in found:
        made_from = entry["made_from"]
        facts = "incomplete"
        if made_from:
            used = datetime.fromtimestamp(entry["last_used"]).strftime("%Y-%m-%d %H:%M")
            facts = (
                f"last used {used}  {made_from['prefix']}, {made_from['image_size']} px, {made_from['precision']}, "
                f"{made_from['backend']} on {made_from['device']}"
            )
        click.echo(f"{entry['path'].name}  {entry['bytes'] / GB:8.3f} GB  {facts}")
    total = sum(entry["bytes"] for entry in found) / GB
    max_gb = read_params(PARAMS).cache.max_gb
    click.echo(f"{counted(len(found), 'folder')}, {total:.3f} of {max_gb:g} GB (cache.max_gb), in {cache_folder()}")


@cache.command()
def clear() -> None:
    """Remove all cached features; they are recomputed when needed."""
    from medtransfer.training.feature_cache import GB, clear

    click.echo(f"removed {clear() / GB:.3f} GB")
