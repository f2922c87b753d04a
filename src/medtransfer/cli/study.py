"""Run or check the whole study, and run its single stages."""

import os
import sys

import click

from medtransfer.cli.app import EXIT_USER_ERROR, cli
from medtransfer.cli.results import results
from medtransfer.cli.shared import AT_LEAST_1, SEED, as_dataset, of_fit, quiet_start
from medtransfer.cli.warm import run_warm, warm_process
from medtransfer.core.errors import UserError
from medtransfer.core.hardware import REQUIRE_GPU
from medtransfer.core.layout import DATA, PARAMS
from medtransfer.core.params import TREES, Params, read_params


@cli.command()
@click.option(
    "--jobs", type=AT_LEAST_1, help="Stages to run in parallel.", show_default="one per 13 GB of GPU memory, else 2"
)
@click.option("--require-gpu", is_flag=True, help="Stop with an error if a fit would be computed on the CPU.")
@click.pass_context
def study(context: click.Context, jobs: int | None, require_gpu: bool) -> None:
    """Run the whole study and print the comparison.

    Pulls the data that data.dvc names, then runs every stage that is out of date, in parallel where possible.
    """
    from medtransfer.core.dvc import check_writable
    from medtransfer.study.check import check_files
    from medtransfer.study.run import check_cache_writable, default_jobs, run_study, store_again

    params = check_files()
    check_writable()
    check_cache_writable()
    if require_gpu:
        os.environ[REQUIRE_GPU] = "1"
    server = os.environ.get("MLFLOW_TRACKING_URI")  # the user's server; MLflow sets the variable itself later
    store_again()
    _pull(params)
    with warm_process():
        code = run_study(jobs or default_jobs())
    if code:
        sys.exit(code)
    with quiet_start():
        from medtransfer.audit.repair import repair
        from medtransfer.tracking.mlflow_store import redact
    try:
        # MLflow lacks a fit if it was down when the fit ended, or if the fit came from DVC's cache.
        for line in repair(read_models=False):
            click.echo(line)
    except UserError as error:
        click.echo(f"{error}; run `medtransfer audit --repair` later to log what is missing", err=True)
    context.invoke(results)
    where = redact(server) if server else "http://127.0.0.1:5000 after `make ui`"
    click.echo(f"\nCompare the runs at {where} (experiments {' and '.join(params.study)})")


def _pull(params: Params) -> None:
    """Pull the data that data.dvc names; they must contain every data set of the study."""
    from medtransfer.core.dvc import POINTER, check_unchanged
    from medtransfer.data.custom import dataset_of
    from medtransfer.data.preparation import read_samples
    from medtransfer.study.run import run_dvc

    click.echo("Pulling the data that data.dvc names:")
    if run_dvc("pull", str(POINTER)):
        if DATA.is_dir():
            check_unchanged(DATA)  # DVC's own advice names another command's option
        sys.exit(EXIT_USER_ERROR)
    for name in params.study:
        if not (DATA / name).is_dir():
            read_samples(dataset_of(name, params), DATA / name)


@cli.command()
def check() -> None:
    """Check parameters, pipeline and data, and describe the study."""
    from medtransfer.study.check import check_files, describe_study

    lines = list(describe_study(check_files()))
    click.echo("\n".join([f"{PARAMS}: no mistakes found", *lines]))


@cli.group()
@click.pass_context
def stage(context: click.Context) -> None:
    """Run one stage of dvc.yaml (called by `dvc repro`)."""
    from medtransfer.core.processes import end_with_dvc

    if "DVC_STAGE" in os.environ:
        end_with_dvc()
    # `prepare` needs none of the slow imports.
    if context.invoked_subcommand != "prepare" and (code := run_warm(sys.argv[1:])) is not None:
        sys.exit(code)


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
    """Fit VGG16 with one freezing configuration."""
    read_params(PARAMS)  # reports a mistake before Keras is loaded
    with quiet_start():
        from medtransfer.pipeline.train import train
        from medtransfer.training.device import check_gpu

    check_gpu()
    train(read_params(PARAMS), dataset, configuration, seed)


@stage.command()
@as_dataset
def explain(dataset: str) -> None:
    """Save the first layer's activations.

    Once with ImageNet weights, and once with random weights.
    """
    params = read_params(PARAMS)
    with quiet_start():
        from medtransfer.pipeline.explain import explain

    explain(params, dataset)


@stage.command()
def evaluate() -> None:
    """Score every fit and compare the models with the talk."""
    params = read_params(PARAMS)
    from medtransfer.pipeline.evaluate import evaluate

    evaluate(params)
