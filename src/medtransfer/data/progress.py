"""A progress bar that vanishes when it is done and is drawn only on a terminal."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import track

Item = TypeVar("Item")


def progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items; `total` is their number if `items` has no length."""
    yield from track(items, description, total, transient=True, disable=not sys.stdout.isatty())
