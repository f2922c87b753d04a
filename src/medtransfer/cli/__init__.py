"""The `medtransfer` command, one module per group of commands: each parses, calls and prints.

A command imports what it needs when it runs. So the help appears at once, and Keras's backend is chosen before Keras is
imported.
"""

from medtransfer.cli import data, networks, results, serving, study, tracking  # noqa: F401 - each adds its commands
from medtransfer.cli.app import cli, main

__all__ = ["cli", "main"]
