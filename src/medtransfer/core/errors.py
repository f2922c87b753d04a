"""The one exception that stands for a user's mistake, and how its line is written."""

import textwrap
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can mend.

    The message is one line: the file or key, what was found, what was expected and what to do.
    The command line prints it without a traceback and exits with 2.
    """


def shortened(text: object, width: int = 200) -> str:
    """Return what somebody else's exception says on one line, without half a word at its end."""
    line = " ".join(str(text).split())
    short = textwrap.shorten(line, width, placeholder=" …")
    return short if len(short) > width // 2 or len(line) <= width else f"{line[: width - 1]}…"


def unknown(where: str, name: str, known: Iterable[str]) -> str:
    """Return the line for a name that is none of the known ones; `where` is the key or file that should hold it."""
    return f"{where}: {name!r} is unknown; there are {', '.join(known)}"


def check_known(where: str, name: str, known: Iterable[str]) -> None:
    """Check that a name is one of the known ones.

    Raises
    ------
    UserError
        It is not; the line is that of `unknown`.
    """
    known = list(known)
    if name not in known:
        raise UserError(unknown(where, name, known))


def counted(count: int, noun: str) -> str:
    """Return `1 image`, `2 images` or `0 images`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
