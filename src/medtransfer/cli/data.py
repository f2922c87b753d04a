"""Get the raw data sets in data/, put them under DVC, check and describe them."""

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from filelock import FileLock, Timeout

from medtransfer.cli.app import EXIT_USER_ERROR, cli
from medtransfer.cli.shared import EXISTING_FILE, EXISTING_FOLDER, FOLDER, IMAGE_COLUMN, LABEL_COLUMN, PATH, dvc
from medtransfer.core.dvc import (
    DEMONSTRATION,
    IMPORTED,
    PIPELINE,
    POINTER,
    cache_folder,
    check_replaceable,
    check_unchanged,
    is_as_recorded,
    is_stored,
    recorded_digest,
)
from medtransfer.core.errors import UserError, counted, first_three
from medtransfer.core.files import atomic_file, restored_on_error
from medtransfer.core.layout import DATA, PARAMS
from medtransfer.core.params import read_params
from medtransfer.core.run_record import note_of


@cli.group()
def data() -> None:
    """Get, check and describe the raw data sets in data/."""


@data.command()
def demo() -> None:
    """Put the demonstration data back into data/.

    The repository contains them. Commit data.dvc first. The current data stay in DVC's cache; `git checkout HEAD
    data.dvc && dvc checkout data.dvc` restores them.
    """
    _lock_data(DEMONSTRATION)
    check_replaceable()
    with restored_on_error(DATA, POINTER):
        shutil.copyfile(DEMONSTRATION, POINTER)
        dvc("pull", "--remote", DEMONSTRATION.parent.name, str(POINTER))
    shutil.copyfile(POINTER, IMPORTED)


@data.command()
@click.argument("name")
def fetch(name: str) -> None:
    """Download a data set from Kaggle to data/ and put it under DVC."""
    from medtransfer.data.catalogue import get_dataset
    from medtransfer.data.importing import fetch_dataset

    dataset = get_dataset(name)
    _copy(name, lambda: fetch_dataset(dataset, DATA))


@data.command("import")
@click.argument("name")
@click.argument("path", type=PATH)
def import_(name: str, path: Path) -> None:
    """Copy a downloaded data set to data/ and put it under DVC.

    PATH is a zip file or a folder in the Kaggle layout.
    """
    from medtransfer.data.catalogue import get_dataset
    from medtransfer.data.importing import import_dataset

    dataset = get_dataset(name)
    _refuse_inside(name, path)
    _copy(name, lambda: import_dataset(dataset, path, DATA))


@data.command()
@click.argument("name")
@click.option("--images", required=True, type=EXISTING_FOLDER, help="The folder with the images.")
@click.option("--labels", type=EXISTING_FILE, help="A CSV file with one row per image.")
@IMAGE_COLUMN
@LABEL_COLUMN
@click.option("--group", help="The column that names the patient or lesion; all its images go into one split.")
@click.option("--split-column", "split", help="The column that assigns each image to train, validation or test.")
@click.option("--title", help="What reports call the data set.", show_default="NAME, or from params.yaml")
@click.option("--licence", help="Its licence, for reports.", show_default="unknown, or from params.yaml")
@click.option("--citation", help="How to cite it, for reports.", show_default="none, or from params.yaml")
@click.option("--only", is_flag=True, help="Remove the other data sets from the study.")
def add(
    name: str,
    images: Path,
    labels: Path | None,
    image_column: str,
    label_column: str,
    group: str | None,
    split: str | None,
    only: bool,
    **about: str | None,
) -> None:
    """Add a custom data set to data/, DVC and the study.

    Without --labels, --images must contain one folder per class, or folders train, test and optionally
    validation with one folder per class in each. Run `dvc repro` afterwards.
    """
    from medtransfer.data.custom import Columns
    from medtransfer.study.check import check_files
    from medtransfer.study.custom_data import add_custom, check_custom_name

    check_custom_name(name)  # first: it may be a path, and what is at data/NAME is replaced
    for option, column in (("--group", group), ("--split-column", split)):
        if column and not labels:
            raise UserError(f"{option}: given without --labels, the table with that column; give both or neither")
    _refuse_inside(name, images, labels)
    _lock_data()
    if not only or DATA.is_dir():
        _pull_and_store()
    _check_others(name)
    params = check_files(apart_from=name)  # a killed `data add` may have written one of the files only
    columns = Columns(image_column, label_column, group, split)
    given = {key: value for key, value in about.items() if value}
    with restored_on_error(DATA / name, PARAMS, PIPELINE, POINTER):
        count = add_custom(params, name, images, labels, columns, given, only)
        try:
            _put_under_dvc(name, count)
        except (SystemExit, UserError):
            click.echo(f"{name}: not added; params.yaml, dvc.yaml and data/ are unchanged", err=True)
            raise
    others = [other for other in params.study if other != name]
    if only and others:
        click.echo(f"removed from the study: {', '.join(others)}; their files in data/, if any, stay under DVC")
    size = read_params(PARAMS).datasets[name].image_size
    click.echo(
        f"recorded in params.yaml and dvc.yaml, at {size} x {size} px (datasets.{name}.image_size); next: "
        f"`medtransfer data validate {name} && dvc repro`"
    )


@data.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove a custom data set from data/ and the study.

    Its finished fits stay in artifacts/.
    """
    from medtransfer.data.custom import dataset_of
    from medtransfer.study.check import check_files
    from medtransfer.study.custom_data import remove_custom

    _lock_data()
    _pull_and_store()
    params = check_files()
    dataset_of(name, params)  # refuses an unknown name
    _check_others("" if (DATA / name).is_dir() else name)  # the command that brings it back knows only DVC's version
    with restored_on_error(DATA / name, PARAMS, PIPELINE, POINTER):
        remove_custom(params, name)
        _add_to_dvc()
    click.echo(f"{name}: removed from data/, params.yaml and dvc.yaml")
    click.echo(
        "if it was committed, `git checkout HEAD data.dvc dvc.yaml params.yaml && dvc checkout data.dvc` restores it "
        "and discards what has changed in these files since"
    )


def _refuse_inside(name: str, *paths: Path | None) -> None:
    """Refuse to copy a data set from its own folder, whose whole content the copy replaces."""
    for path in filter(None, paths):
        if path.resolve().is_relative_to((DATA / name).resolve()):
            raise UserError(f"{path}: is in {DATA / name}, which this command replaces; move it elsewhere first")


def _lock_data(*needed: Path) -> None:
    """Let no other command change data/ until this one ends: each would undo the other's changes to params.yaml.

    A folder that is no DVC project, or lacks files that are needed, is refused: it would become one.
    """
    from medtransfer.study.check import check_hidden_files

    if not PARAMS.exists():
        read_params(PARAMS)  # says in which folder to run it
    check_hidden_files(*needed)
    path, context = IMPORTED.with_suffix(".lock"), click.get_current_context()
    try:
        context.with_resource(FileLock(path, timeout=0))
    except Timeout:
        raise UserError(f"{DATA}: another command is changing it; run this one again after it has ended") from None
    context.call_on_close(partial(path.unlink, missing_ok=True))  # before the lock is released


def _copy(name: str, copy: Callable[[], int]) -> None:
    """Copy a data set to data/ and put it under DVC, or leave everything as it was."""
    from medtransfer.study.check import check_files

    _lock_data()
    _pull_and_store()
    _check_others(name)
    check_files()  # what `dvc add` would refuse only after the copy
    with restored_on_error(DATA / name, POINTER):
        _put_under_dvc(name, copy())


def _check_others(name: str) -> None:
    """Refuse if somebody changed data/ apart from data/`name`: `dvc add` would record the change, damage included."""
    if DATA.is_dir():
        check_unchanged(DATA, apart_from=name)


def _pull_and_store() -> None:
    """Pull the data that data.dvc names, if data/ is missing, and store them, if DVC's cache lacks them.

    `dvc add` would drop missing data from data.dvc, and what the command removes can only be restored from the cache.
    """
    from medtransfer.study.run import run_dvc

    if not POINTER.exists():
        return
    if DATA.is_dir():
        if not is_stored(recorded_digest(DATA) or "") and is_as_recorded(DATA):
            dvc("commit", str(POINTER), hints=False)
            _check_stored()
    elif run_dvc("pull", str(POINTER)):
        click.echo(f"{POINTER}: DVC cannot get its data; delete this file to start without them", err=True)
        sys.exit(EXIT_USER_ERROR)


def _add_to_dvc() -> None:
    """Record data/ in data.dvc as a change that the user intends."""
    dvc("add", "data", hints=False)
    _check_stored()
    shutil.copyfile(POINTER, IMPORTED)


def _check_stored() -> None:
    """Check that DVC's cache has the data: DVC reports success where it could not copy them, as to a full disk."""
    if not is_stored(recorded_digest(DATA) or ""):
        raise UserError(f"{cache_folder(Path.cwd())}: lacks files of {DATA}; free space on that disk, then run again")


def _put_under_dvc(name: str, files: int) -> None:
    _add_to_dvc()
    click.echo(f"{name}: {files} files are in data/{name}; commit data.dvc to keep this version")


@data.command()
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
def validate(names: tuple[str, ...], as_json: bool) -> None:
    """Check images, labels, metadata and duplicates.

    The exit code is 2 if there are problems.
    """
    from medtransfer.data.checks import validate

    reports = [validate(dataset, DATA / dataset.name) for dataset in _datasets(names)]
    if as_json:
        click.echo(json.dumps(reports, indent=2))
    else:
        for report in reports:
            _print_validation(report)
    wrong = sum(len(report["problems"]) for report in reports)
    if wrong:
        raise UserError(
            f"{counted(wrong, 'problem')} in the raw data; correct the files that you imported or added, then import "
            "or add the data set again"
        )


def _datasets(names: tuple[str, ...]) -> list[Any]:
    """Return the named data sets, by default those in the study or in data/."""
    from medtransfer.data.custom import dataset_of

    params = read_params(PARAMS)
    there = [name for name in params.datasets if name in params.study or (DATA / name).is_dir()]
    return [dataset_of(name, params) for name in names or there]


def _print_validation(report: dict[str, Any]) -> None:
    crossing = sum(entry["crosses_labels"] for entry in report["duplicates"])
    click.echo(f"{report['name']}: {report['images']} images of {counted(report['groups'], report['group'])}")
    if note := note_of(report):
        click.echo(f"  {note}")
    click.echo("  " + ", ".join(f"{label} {entry['images']}" for label, entry in report["classes"].items()))
    click.echo(f"  {counted(len(report['duplicates']), 'set')} of identical images, {crossing} with conflicting labels")
    if mixed := report["mixed_groups"]:
        several = f"{counted(len(mixed), report['group'])} with images of several classes"
        click.echo(f"  {several}: {first_three(mixed)}")
    click.echo(f"  {counted(len(report['problems']), 'problem')}")
    for problem in report["problems"][:20]:
        click.echo(f"    {problem}")
    if len(report["problems"]) > 20:
        click.echo("    … (--json lists them all)")


@data.command()
@click.argument("names", nargs=-1)
@click.option("--plots", type=FOLDER, default=Path("artifacts/class_distribution"), help="Where the plots go.")
def describe(names: tuple[str, ...], plots: Path) -> None:
    """Print classes, counts, groups, licence and citation.

    Also plots the class distribution.
    """
    from medtransfer.data.checks import describe
    from medtransfer.report.figures import class_distribution, mark

    for dataset in _datasets(names):
        name = dataset.name
        entry = describe(dataset, DATA / name)
        _print_description(entry)
        plot = plots / f"{name}.png"
        title = mark(f"{name}: images per class", note_of(entry))
        figure = class_distribution({label: counts["images"] for label, counts in entry["classes"].items()}, title)
        with atomic_file(plot) as partial:
            figure.savefig(partial, format="png")
        click.echo(f"  plot: {plot}\n")


def _print_description(entry: dict[str, Any]) -> None:
    click.echo("\n".join(filter(None, [entry["title"], note_of(entry)])))
    click.echo(f"  {entry['images']} images of {counted(entry['groups'], entry['group'])}; from {entry['source']}")
    for label, counts in entry["classes"].items():
        images, groups = f"{counts['images']:>6} images", f"{counts['groups']:>6} {entry['group']}s"
        click.echo(f"  {label:<10} {images} {groups}  {counts['meaning']}")
    click.echo(f"  licence: {entry['licence']}")
    click.echo(f"  cite: {entry['citation']}")
