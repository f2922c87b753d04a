"""The `medtransfer` command, one module per group of commands: each parses, calls and prints.

What a command needs is imported when it runs: the help appears at once, and Keras's backend is
settled before Keras is imported.
"""

from medtransfer.cli import data, networks, results, serving, study, tracking  # noqa: F401 - each adds its commands
from medtransfer.cli.app import cli, main

__all__ = ["cli", "main"]
