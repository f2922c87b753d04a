"""Check and repair the MLflow store of this project, or copy it to a server."""

import os
import sys

import click

from medtransfer.cli.app import cli
from medtransfer.cli.shared import quiet_start
from medtransfer.core.errors import UserError, counted
from medtransfer.core.layout import PARAMS, RUNS
from medtransfer.core.params import read_params
from medtransfer.core.run_record import find_fits, warn_of_leftovers


@cli.command()
@click.option("--repair", is_flag=True, help="End stale runs, and log what MLflow lacks, using the outputs.")
@click.option(
    "--host", help="With --repair: also end the runs of the named machine; use it only if nothing runs there."
)
def audit(repair: bool, host: str | None) -> None:
    """Check that DVC's outputs, MLflow, parameters and data agree.

    The exit code is 1 if they differ.
    """
    if host and not repair:
        raise UserError("--host: given without --repair; give both to end the runs of that machine")
    with quiet_start():
        from medtransfer.analysis.runs import studied_models
        from medtransfer.audit import audit as checking
        from medtransfer.audit import repair as repairing

    params = read_params(PARAMS)
    if not checking.is_there_anything():
        click.echo("nothing to audit: no stage has run here; run `medtransfer study` first")
        return
    warn_of_leftovers(
        RUNS, studied_models(params), "are not in reports/, but collect would take them", seeds=params.seeds
    )
    repaired = repairing.repair(host) if repair else []
    differences = checking.audit()
    total = f"{counted(len(find_fits(RUNS)), 'fit')}, {counted(len(differences), 'difference')}"
    click.echo("\n".join([*repaired, *checking.others(), *differences, total]))
    if differences:
        sys.exit(1)


@cli.group()
def track() -> None:
    """Share the MLflow runs of this project."""


@track.command()
def push() -> None:
    """Copy the runs in mlruns/ to MLflow's server, each only once.

    The server's address is MLFLOW_TRACKING_URI. Copies parameters, curves, system metrics, data, figures, models, times
    and statuses.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError("MLFLOW_TRACKING_URI: not set; expected the server's address, such as http://127.0.0.1:5000")
    from medtransfer.audit.push import push

    counts = push()
    running = f", {counts['running']} still running and skipped" if counts["running"] else ""
    click.echo(f"{counted(counts['copied'], 'run')} copied, {counts['already']} already there{running}")
