"""A progress bar that vanishes when it is done, and is not drawn where nobody looks."""

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.progress import track

Item = TypeVar("Item")


def progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items; `total` is their number where `items` has no length."""
    total = len(items) if isinstance(items, Sized) else total
    yield from track(items, description, total, transient=True, disable=not sys.stdout.isatty())
