"""The MLflow store of this project: check it, mend it, copy it to a server."""

import os
import sys

import click

from medtransfer.cli.app import cli
from medtransfer.cli.shared import quiet_start
from medtransfer.core.errors import UserError, counted


@cli.command()
@click.option("--repair", is_flag=True, help="End stale runs and log again from the outputs what MLflow lacks.")
@click.option("--host", help="With --repair: another machine, on which nothing runs any more; its runs are ended too.")
def audit(repair: bool, host: str | None) -> None:
    """Check that DVC's outputs, MLflow's runs, parameters and data agree; exit with 1 where they differ."""
    if host and not repair:
        raise UserError("--host: given without --repair, which ends the runs of that machine; give both")
    with quiet_start():
        from medtransfer.audit import audit as store

    if not store.is_there_anything():
        click.echo("nothing to audit yet: no stage has run here; `medtransfer study` runs them")
        return
    if repair:
        for line in store.repair(host):
            click.echo(line)
    differences = store.audit()
    for line in [*store.others(), *differences]:
        click.echo(line)
    fits = len(store.fit_folders())
    click.echo(f"{counted(fits, 'fit')}, {counted(len(differences), 'difference')}")
    if differences:
        sys.exit(1)


@cli.group()
def track() -> None:
    """The MLflow store of this project and a server."""


@track.command()
def push() -> None:
    """Copy the runs of mlruns/ to the server that MLFLOW_TRACKING_URI names, each once.

    Parameters, curves, system metrics, data, figures and models come along, with their times and statuses.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError("MLFLOW_TRACKING_URI: not set; set it to the server's address, such as http://127.0.0.1:5000")
    from medtransfer.audit.push import push

    counts = push()
    running = f", {counts['running']} still run and were left out" if counts["running"] else ""
    click.echo(f"{counts['copied']} runs copied, {counts['already']} were there already{running}")
