"""The raw data sets in data/: get them, put them under DVC, check and describe them."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from medtransfer.cli.app import cli
from medtransfer.cli.shared import EXISTING_FOLDER, FOLDER, PATH, SEED, dvc
from medtransfer.core.errors import UserError, counted
from medtransfer.core.layout import DATA, PARAMS
from medtransfer.core.params import read_params


@cli.group()
def data() -> None:
    """Get, check and describe the raw data sets in data/."""


@data.command()
@click.option("--seed", type=SEED, default=0, show_default=True)
def demo(seed: int) -> None:
    """Draw the synthetic stand-in for both data sets and put it under DVC."""
    from medtransfer.data.demo import draw_demo

    _get_what_is_named()
    draw_demo(DATA, seed)
    dvc("add", "data")
    click.echo("SYNTHETIC stand-ins for ham10000 and chest_xray are in data/: drawn pictures, nothing medical in them")


@data.command()
@click.argument("name")
def fetch(name: str) -> None:
    """Download a data set from Kaggle and put it in data/, under DVC."""
    from medtransfer.data.catalogue import get_dataset
    from medtransfer.data.importing import fetch_dataset

    _get_what_is_named()
    _put_under_dvc(name, fetch_dataset(get_dataset(name), DATA))


@data.command("import")
@click.argument("name")
@click.argument("path", type=PATH)
def import_(name: str, path: Path) -> None:
    """Put a zip or folder in the Kaggle layout in data/, under DVC."""
    from medtransfer.data.catalogue import get_dataset
    from medtransfer.data.importing import import_dataset

    _get_what_is_named()
    _put_under_dvc(name, import_dataset(get_dataset(name), path, DATA))


@data.command()
@click.argument("name")
@click.option("--images", required=True, type=EXISTING_FOLDER)
@click.option(
    "--labels", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A CSV file, one row per image."
)
@click.option("--image-column", default="image", show_default=True)
@click.option("--label-column", default="label", show_default=True)
@click.option("--group", help="The column with what no two splits may share, such as the patient.")
@click.option("--title", show_default="NAME, or as params.yaml has it")
@click.option("--licence", show_default="unknown, or as params.yaml has it")
@click.option("--citation", show_default="none, or as params.yaml has it")
@click.option("--only", is_flag=True, help="Take the other data sets out of the study.")
def add(
    name: str, images: Path, labels: Path | None, image_column: str, label_column: str, group: str | None, only: bool,
    **about: str | None
) -> None:  # fmt: skip
    """Put a data set of your own in data/, under DVC, and into the study.

    Without --labels, each class is a folder of its own in --images. Then `dvc repro` studies it.
    """
    from medtransfer.data.custom import Columns
    from medtransfer.study.check import check_files
    from medtransfer.study.custom_data import About, add_own

    if group and not labels:
        raise UserError("--group: names a column of --labels, which is missing; give both or neither")
    if not only:
        _get_what_is_named()
    params = check_files()
    columns = Columns(image_column, label_column, group)
    _put_under_dvc(name, add_own(params, name, images, labels, columns, About(**about), only))
    others = [other for other in params.study if other != name]
    if only and others:
        click.echo(f"out of the study: {', '.join(others)}; this version of the data has of them what lies in data/")
    click.echo("params.yaml and dvc.yaml have it now: look at them, then `dvc repro`")


def _get_what_is_named() -> None:
    """Get the data that data.dvc names before others lie beside them: `dvc add` leaves out what is not there."""
    from medtransfer.core.dvc import POINTER
    from medtransfer.study.run import run_dvc

    if POINTER.exists() and not DATA.is_dir() and (code := run_dvc("pull", str(POINTER))):
        click.echo(f"{POINTER}: names data that DVC cannot get; remove this file to begin without them", err=True)
        sys.exit(code)


def _put_under_dvc(name: str, files: int) -> None:
    dvc("add", "data")
    click.echo(f"{name}: {files} files are in data/{name}; data.dvc names this version: commit it to keep it")


@data.command()
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
def validate(names: tuple[str, ...], as_json: bool) -> None:
    """Check images, labels, metadata and duplicates; exit with 2 where something is wrong."""
    from medtransfer.data.checks import validate

    reports = [validate(dataset, DATA / dataset.name) for dataset in _datasets(names)]
    if as_json:
        click.echo(json.dumps(reports, indent=2))
    else:
        for report in reports:
            _print_validation(report)
    wrong = sum(len(report["problems"]) for report in reports)
    if wrong:
        raise UserError(f"{counted(wrong, 'problem')} in the raw data; mend or import it again")


def _datasets(names: tuple[str, ...]) -> list[Any]:
    """Return the catalogue's entries, by default of the study's data sets and of what else is there."""
    from medtransfer.data.catalogue import CATALOGUE, get_dataset
    from medtransfer.data.custom import dataset_of

    if not PARAMS.exists():
        return [get_dataset(name) for name in names or CATALOGUE]
    params = read_params(PARAMS)
    there = [name for name in params.datasets if name in params.study or (DATA / name).is_dir()]
    return [dataset_of(name, params) for name in names or there]


def _print_validation(report: dict[str, Any]) -> None:
    mark = "SYNTHETIC " if report["synthetic"] else ""
    crossing = sum(entry["crosses_labels"] for entry in report["duplicates"])
    click.echo(f"{mark}{report['name']}: {report['images']} images of {report['groups']} {report['group']}s")
    click.echo("  " + ", ".join(f"{label} {entry['images']}" for label, entry in report["classes"].items()))
    click.echo(f"  {len(report['duplicates'])} sets of byte-equal images, {crossing} of them with different labels")
    click.echo(f"  {counted(len(report['problems']), 'problem')}")
    for problem in report["problems"][:20]:
        click.echo(f"    {problem}")
    if len(report["problems"]) > 20:
        click.echo("    … (--json lists them all)")


@data.command()
@click.argument("names", nargs=-1)
@click.option("--plots", type=FOLDER, default=Path("artifacts/class_distribution"), show_default=True)
def describe(names: tuple[str, ...], plots: Path) -> None:
    """Print classes, counts, groups, licence and citation; plot the class distribution."""
    from medtransfer.data.checks import class_counts, describe
    from medtransfer.report.figures import class_distribution, mark

    for dataset in _datasets(names):
        name = dataset.name
        entry = describe(dataset, DATA / name)
        _print_description(entry)
        plots.mkdir(parents=True, exist_ok=True)
        plot = plots / f"{name}.png"
        class_distribution(class_counts(entry), mark(f"{name}: images a class", entry["synthetic"]), plot)
        click.echo(f"  plot: {plot}\n")


def _print_description(entry: dict[str, Any]) -> None:
    click.echo(f"{'SYNTHETIC stand-in for ' if entry['synthetic'] else ''}{entry['title']}")
    click.echo(f"  {entry['images']} images of {entry['groups']} {entry['group']}s; from {entry['source']}")
    for label, counts in entry["classes"].items():
        click.echo(
            f"  {label:<10} {counts['images']:>6} images {counts['groups']:>6} {entry['group']}s  {counts['meaning']}"
        )
    click.echo(f"  licence of the real data set: {entry['licence']}")
    click.echo(f"  cite: {entry['citation']}")
