"""Write docs/commands.md, the help of every `medtransfer` command."""

from collections.abc import Iterator
from pathlib import Path

import click

from medtransfer.cli import cli

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
WIDTH = 100
START = """\
# Commands

What `--help` says. `tools/commands.py` writes this page; `make help` lists what `make` does.
"""


def page() -> str:
    """Return the page."""
    parts = [f"\n## {path}\n\n```text\n{text}\n```\n" for path, text in helps("medtransfer", cli)]
    return START + "".join(parts)


def helps(path: str, command: click.Command, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """Yield the path and the help of a command and of those below it."""
    context = click.Context(
        command, info_name=path.rsplit(" ", 1)[-1], parent=parent, terminal_width=WIDTH, **command.context_settings
    )
    yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below
            yield from helps(f"{path} {name}", below, context)


if __name__ == "__main__":
    PAGE.write_text(page())
