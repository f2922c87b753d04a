"""What several commands share: types of options, options, and the steps around a call."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
PATH = click.Path(path_type=Path)
EXISTING_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)
AT_LEAST_1 = click.IntRange(1)
RATE = click.FloatRange(0, min_open=True)
SEED = click.IntRange(0, 2**31 - 1)

Decorator = Callable[[Callable[..., None]], Callable[..., None]]
as_dataset: Decorator = click.argument("dataset")


def of_fit(**seed: Any) -> Decorator:
    """Return a decorator for the arguments DATASET and CONFIGURATION and the option --seed."""
    configuration, with_seed = click.argument("configuration"), click.option("--seed", type=SEED, **seed)
    return lambda command: as_dataset(configuration(with_seed(command)))


def many(option: str, name: str, **settings: Any) -> Decorator:
    """Return a decorator for an option that may be given several times; the command gets a list without repetitions."""

    def once_each(context: click.Context, parameter: click.Parameter, given: tuple[Any, ...]) -> list[Any]:
        return list(dict.fromkeys(given))

    return click.option(option, name, multiple=True, callback=once_each, **settings)


@contextmanager
def quiet_start() -> Iterator[None]:
    """Hold back what TensorFlow prints while it is imported, which no setting silences; show it if that fails."""
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


def dvc(*arguments: str) -> None:
    """Run DVC; its own message says what went wrong, so only its exit code is passed on."""
    from medtransfer.study.run import run_dvc

    if code := run_dvc(*arguments):
        sys.exit(code)


def print_table(table: Any) -> None:
    """Print a rich table; a pipe has no width, so every column has room there."""
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)
