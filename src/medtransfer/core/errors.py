"""The exception for a user's mistake, and helpers for its message."""

import shlex
from collections.abc import Iterable, Sequence

CONFLICT = "<<<<<<<"  # begins a line that git adds to a file with a merge conflict


class UserError(Exception):
    """Something that the user can fix.

    The message is one line: the file or key, what was found, what was expected and what to do.
    The command line prints it without a traceback and exits with 2.
    """


def merge_conflict(path: object, then: str) -> UserError:
    """Return the error for a file with a merge conflict; `then` says what to do after taking one side."""
    return UserError(
        f"{path}: has a merge conflict; take either side (`git checkout --ours {quoted(path)}` or "
        f"`git checkout --theirs {quoted(path)}`), then {then}"
    )


def shortened(text: object, width: int = 300) -> str:
    """Return a foreign exception's message on one line of at most `width` characters; its cause may be at its end."""
    line, end = " ".join(str(text).split()), width // 3
    return line if len(line) <= width else f"{line[: width - end - 1]}…{line[-end:]}"


def quoted(*paths: object) -> str:
    """Return paths as arguments of a command that a shell runs: a name may contain a blank."""
    return shlex.join(map(str, paths))


def first_three(names: Sequence[str]) -> str:
    """Return `a, b, c and 2 more`, or all names if there are at most three."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def unknown(where: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name; `where` is the key or file that it is in."""
    return f"{where}: {name!r} is unknown; choose one of {', '.join(known)}"


def check_known(where: str, name: str, known: Iterable[str]) -> None:
    """Check that a name is one of the known ones."""
    known = list(known)
    if name not in known:
        raise UserError(unknown(where, name, known))


def counted(count: int, noun: str) -> str:
    """Return `1 image`, `2 images` or `0 images`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
