"""The one exception that stands for a user's mistake, and how its line counts things."""


class UserError(Exception):
    """Something that the user can mend.

    The message is one line: the file or key, what was found, what was expected and what to do.
    The command line prints it without a traceback and exits with 2.
    """


def counted(count: int, noun: str) -> str:
    """Return `1 image`, `2 images` or `0 images`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
