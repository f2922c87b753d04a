"""The one exception that stands for a user's mistake, and how its line is written."""

import textwrap


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


def counted(count: int, noun: str) -> str:
    """Return `1 image`, `2 images` or `0 images`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
