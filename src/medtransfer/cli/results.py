"""The comparison, its tables and the report, of the study here or of collected results."""

from pathlib import Path

import click

from medtransfer.cli.app import cli
from medtransfer.cli.shared import EXISTING_FOLDER, FILE, print_table
from medtransfer.core.errors import UserError
from medtransfer.core.layout import REPORTS


@cli.command()
def results() -> None:
    """Print the comparison with the talk that `evaluate` wrote."""
    print_results()


def print_results() -> None:
    """Print the tables of the study here; a UserError if there are none."""
    import pandas as pd

    from medtransfer.analysis.families import TALK
    from medtransfer.metrics.scores import MACRO
    from medtransfer.report.tables import terminal

    path = REPORTS / "results.csv"
    if not path.exists():
        raise UserError(f"{path}: not found; run `medtransfer study`")
    table = pd.read_csv(path)
    for dataset in table.dataset.drop_duplicates():
        print_table(terminal(table, dataset))
        others = table[(table.dataset == dataset) & (table["class"] == MACRO) & (table.family != TALK)]
        if len(others):
            told = ", ".join(f"{row.model} {row.f1:.2f}" for row in others.itertuples())
            click.echo(f"Beyond the talk's models, macro F1: {told}")
    click.echo("Tables, figures and how each run was made: reports/results.md, reports/figures/")


@cli.command()
@click.argument("folders", nargs=-1, type=EXISTING_FOLDER)
@click.option("--output", type=FILE, default=REPORTS / "index.html", show_default=True)
def report(folders: tuple[Path, ...], output: Path) -> None:
    """Write the report, one page with everything in it, of FOLDERS under results/ or of the study here.

    The first folder answers the question, the others stand beside it.
    """
    from medtransfer.study.report import report

    report(list(folders) or [Path()], output)
    click.echo(f"the report: {output}")


@cli.command()
@click.argument("folder", type=EXISTING_FOLDER)
def tables(folder: Path) -> None:
    """Compute the tables of FOLDER, which `collect` made, from the predictions in it."""
    from medtransfer.study.report import write_result_tables

    write_result_tables(folder)
    click.echo(f"tables: {folder / 'results.md'}")


@cli.command()
@click.argument("leaky", type=EXISTING_FOLDER)
@click.argument("clean", type=EXISTING_FOLDER)
def leakage(leaky: Path, clean: Path) -> None:
    """Measure how much leakage raises F1: compare two collected studies on the same test images.

    LEAKY was made with split.leak: match, CLEAN with split.leak: remove.
    """
    from medtransfer.study.report import write_leakage

    click.echo(f"leakage: {write_leakage(leaky, clean)}")


@cli.command()
@click.argument("name")
@click.option("--add", is_flag=True, help="Keep what results/NAME holds and add to it, as another seed.")
@click.option("--replace", is_flag=True, help="Remove what results/NAME holds.")
def collect(name: str, add: bool, replace: bool) -> None:
    """Copy what is small of all finished fits to results/NAME, to be committed."""
    from medtransfer.study.collect import collect

    click.echo(f"collected: {collect(name, add=add, replace=replace)}")
