"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """Something that the user can mend.

    The message is one line: the file or key, what was found, what was expected and what to do.
    The command line prints it without a traceback and exits with 2.
    """
