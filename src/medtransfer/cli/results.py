"""Print, tabulate, report and collect results."""

import sys
from pathlib import Path

import click

from medtransfer.cli.app import cli
from medtransfer.cli.shared import EXISTING_FOLDER, FILE
from medtransfer.core.errors import UserError
from medtransfer.core.layout import REPORTS


@cli.command()
def results() -> None:
    """Print the comparison with the talk that `stage evaluate` wrote."""
    from rich.console import Console

    from medtransfer.analysis.families import TALK
    from medtransfer.core.tables import read_result
    from medtransfer.metrics.scores import MACRO
    from medtransfer.report.tables import terminal

    path = REPORTS / "results.csv"
    if not path.exists():
        raise UserError(f"{path}: not found; run `medtransfer study`")
    table = read_result(path)
    console = Console() if sys.stdout.isatty() else Console(width=160)  # a pipe has no width: room for every column
    for dataset in table.dataset.drop_duplicates():
        console.print(terminal(table, dataset))
        others = table[(table.dataset == dataset) & (table["class"] == MACRO) & (table.family != TALK)]
        if len(others):
            scores = ", ".join(f"{row.model} {row.f1:.2f}" for row in others.itertuples())
            click.echo(f"Macro F1 of models that the talk does not have (their tables: reports/results.md): {scores}")
    click.echo("Tables, figures and provenance: reports/results.md, reports/figures/")


@cli.command()
@click.argument("folders", nargs=-1, type=EXISTING_FOLDER)
@click.option("--output", type=FILE, default=REPORTS / "index.html")
def report(folders: tuple[Path, ...], output: Path) -> None:
    """Write the report: one self-contained HTML page.

    FOLDERS are collected results, the main ones first. Without any, the report covers the study here.
    """
    from medtransfer.study.report import report

    if output.suffix != ".html":
        raise UserError(f"--output: {output}: expected a name that ends in .html")
    report(list(folders) or [Path()], output)
    click.echo(f"report: {output}")


@cli.command()
@click.argument("folder", type=EXISTING_FOLDER)
def tables(folder: Path) -> None:
    """Recompute the tables of collected results."""
    from medtransfer.study.report import write_result_tables

    write_result_tables(folder)
    click.echo(f"tables: {folder / 'results.md'}")


@cli.command()
@click.argument("leaky", type=EXISTING_FOLDER)
@click.argument("clean", type=EXISTING_FOLDER)
def leakage(leaky: Path, clean: Path) -> None:
    """Measure how much leakage raises F1.

    Compares two collected studies on the same test images. LEAKY was made with split.leakage: match, CLEAN with
    split.leakage: remove.
    """
    from medtransfer.study.report import write_leakage

    click.echo(f"leakage: {write_leakage(leaky, clean)}")


@cli.command()
@click.argument("name")
@click.option("--add", is_flag=True, help="Keep the contents of results/NAME, and add other seeds or configurations.")
@click.option("--replace", is_flag=True, help="Replace the contents of results/NAME.")
def collect(name: str, add: bool, replace: bool) -> None:
    """Copy the small files of all finished fits to results/NAME.

    Commit them to keep the results.
    """
    from medtransfer.study.collect import collect

    click.echo(f"collected: {collect(name, add=add, replace=replace)}")
