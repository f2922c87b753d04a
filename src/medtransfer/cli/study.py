"""The study: all of it, a check of it, and the single stages that `dvc repro` runs."""

import os
import sys

import click

from medtransfer.cli.app import cli
from medtransfer.cli.results import print_results
from medtransfer.cli.shared import AT_LEAST_1, SEED, as_dataset, dvc, of_fit, quiet_start
from medtransfer.core.errors import UserError
from medtransfer.core.layout import PARAMS
from medtransfer.core.params import TREES, read_params


@cli.command()
@click.option("--jobs", type=AT_LEAST_1, help="Stages to run at once.", show_default="1 with a GPU, else 2")
def study(jobs: int | None) -> None:
    """Run the whole study and print the comparison.

    Gets the data that data.dvc names and runs every stage that is out of date, some side by side.
    """
    from medtransfer.study.check import check_files
    from medtransfer.study.run import default_jobs, run_study

    params = check_files()
    server = os.environ.get("MLFLOW_TRACKING_URI")  # the user's: MLflow puts its own there later
    click.echo("The data that data.dvc names:")
    dvc("pull", "data.dvc")
    if code := run_study(jobs or default_jobs()):
        sys.exit(code)
    _log_what_is_missing()
    print_results()
    from medtransfer.tracking.mlflow_store import redact

    where = redact(server) if server else "`make ui`, then open http://127.0.0.1:5000"
    click.echo(f"\nCompare the runs: {where} (experiments {' and '.join(params.study)})")


def _log_what_is_missing() -> None:
    """Log the fits that MLflow does not know: it was away when they ended, or they came from DVC's cache."""
    with quiet_start():
        from medtransfer.audit.audit import repair
    try:
        for line in repair(read_models=False):
            click.echo(line)
    except UserError as error:
        click.echo(f"{error}; `medtransfer audit --repair` logs later what it lacks", err=True)


@cli.command()
def check() -> None:
    """Check params.yaml, dvc.yaml and that the study's data are there, and say what the study has."""
    from medtransfer.study.check import check_files, describe_study

    lines = list(describe_study(check_files()))
    click.echo("\n".join([f"{PARAMS}: no mistake found", *lines]))


@cli.group()
def stage() -> None:
    """Run one stage of dvc.yaml (`dvc repro` calls these)."""


@stage.command()
@as_dataset
def prepare(dataset: str) -> None:
    """Verify, split, decode and resize a data set."""
    from medtransfer.pipeline.prepare import prepare

    prepare(read_params(PARAMS), dataset)


@stage.command()
@as_dataset
@click.argument("model", type=click.Choice(TREES))
@click.option("--seed", type=SEED, required=True)
def baseline(dataset: str, model: str, seed: int) -> None:
    """Fit a decision tree or a random forest on pixel values."""
    params = read_params(PARAMS)
    from medtransfer.pipeline.baseline import baseline

    baseline(params, dataset, model, seed)


@stage.command()
@of_fit(required=True)
def train(dataset: str, configuration: str, seed: int) -> None:
    """Fit one freezing configuration of VGG16."""
    params = read_params(PARAMS)
    with quiet_start():
        from medtransfer.pipeline.train import train

    train(params, dataset, configuration, seed)


@stage.command()
@as_dataset
def explain(dataset: str) -> None:
    """Write the first layer's activations with ImageNet and with random weights."""
    params = read_params(PARAMS)
    with quiet_start():
        from medtransfer.pipeline.explain import explain

    explain(params, dataset)


@stage.command()
def evaluate() -> None:
    """Score every fit and compare with the talk."""
    params = read_params(PARAMS)
    from medtransfer.pipeline.evaluate import evaluate

    evaluate(params)
