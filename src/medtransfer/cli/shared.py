"""Option types, options and helpers that several commands share."""

import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from medtransfer.cli.app import EXIT_USER_ERROR
from medtransfer.core.layout import DATA

FOLDER = click.Path(path_type=Path, file_okay=False)
PATH = click.Path(path_type=Path)
EXISTING_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)
EXISTING_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
AT_LEAST_1 = click.IntRange(1)
SEED = click.IntRange(0, 2**31 - 1)


class _Rate(click.FloatRange):
    """A finite number above 0; FloatRange lets `nan` pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{number} is not a finite number", param, ctx)


class _Output(click.Path):
    """A file to write; pipes, devices and the raw data are refused, because a file would replace them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(str(super().convert(value, param, ctx)))
        if path.exists() and not path.is_file():
            self.fail(f"{path} is not a regular file", param, ctx)
        if path.resolve().is_relative_to(DATA.resolve()):
            self.fail(f"{path} is in {DATA}, which has the raw data only", param, ctx)
        return path


FILE = _Output(path_type=Path, dir_okay=False)
RATE = _Rate(0, min_open=True)
IMAGE_COLUMN = click.option("--image-column", default="image", help="The column with the path of each image.")
LABEL_COLUMN = click.option(
    "--label-column",
    default="label",
    help="The column with the label; for a one-hot table, all class columns, separated by commas.",
)
Decorator = Callable[[Callable[..., None]], Callable[..., None]]
as_dataset: Decorator = click.argument("dataset")


def of_fit(**seed: Any) -> Decorator:
    """Return a decorator that adds DATASET, CONFIGURATION and --seed."""
    configuration, with_seed = click.argument("configuration"), click.option("--seed", type=SEED, **seed)
    return lambda command: as_dataset(configuration(with_seed(command)))


def many(option: str, name: str, **settings: Any) -> Decorator:
    """Return a decorator for an option that can be repeated; the command gets a list without duplicates."""
    return click.option(option, name, multiple=True, callback=lambda *args: list(dict.fromkeys(args[-1])), **settings)


def _read_map(context: click.Context, option: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    names: dict[str, str] = {}
    for pair in pairs:
        name, equals, target = pair.rpartition("=")  # a label may contain the character
        if not equals:
            raise click.BadParameter(f"{pair!r}: expected LABEL=CLASS, or LABEL= to leave its images out")
        if names.setdefault(name, target) != target:
            raise click.BadParameter(f"{name} is mapped to both {names[name]!r} and {target!r}; choose one")
    return names


def with_labels(**settings: Any) -> Decorator:
    """Return a decorator that adds --labels and how to read that file; the command gets them as `Labels`, or None."""
    options = [
        click.option("--labels", type=EXISTING_FILE, help="A CSV file: one label column, or one-hot.", **settings),
        IMAGE_COLUMN,
        LABEL_COLUMN,
        click.option("--group", help="The column that names the lesion or patient, for the intervals."),
        click.option(
            "--map", "names", multiple=True, callback=_read_map, metavar="LABEL=CLASS",
            help="Read LABEL as CLASS; without CLASS, leave its images out. Can be repeated.",
        ),
    ]  # fmt: skip

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_table(
            *, labels: Path | None, image_column: str, label_column: str, group: str | None, names: dict[str, str],
            **others: Any,
        ) -> None:  # fmt: skip
            from medtransfer.data.custom import Columns
            from medtransfer.serving.outside import Labels

            columns = Columns(image_column, label_column, group)
            command(labels=Labels(labels, columns, names) if labels else None, **others)

        for option in reversed(options):
            with_table = option(with_table)
        return with_table

    return decorate


@contextmanager
def quiet_start() -> Iterator[None]:
    """Hide what TensorFlow prints on import, which no setting silences; show it if the import fails."""
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def dvc(*arguments: str, hints: bool = True) -> None:
    """Run DVC and exit if it fails, as after any mistake of the user; DVC prints its own message."""
    from medtransfer.study.run import run_dvc

    if run_dvc(*arguments, hints=hints):
        sys.exit(EXIT_USER_ERROR)
