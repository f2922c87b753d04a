"""The group of all commands: logging, and a user's mistake as one line and exit code 2."""

import errno
import gc
import io
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from medtransfer.core.errors import UserError

EXIT_USER_ERROR = 2
# What the machine refuses and the user can mend: a full or read-only disk, a missing right.
MACHINE_ERRORS = {
    errno.ENOSPC: "make room or use another disk",
    errno.EDQUOT: "make room or use another disk",
    errno.EROFS: "make room or use another disk",
    errno.EACCES: "fix the permissions",
    errno.EPERM: "fix the permissions",
    errno.ENOTDIR: "name another path",  # a file of the user's where a folder has to be
}


def main() -> None:
    """Run the command line."""
    # Imports make objects by the million that stay; to look through them again and again takes a sixth of a stage.
    gc.set_threshold(100_000)
    signal.signal(signal.SIGTERM, stop_like_ctrl_c)
    # A script's shell starts `medtransfer study &` with Ctrl-C ignored, and so would all that it starts: nothing could
    # stop DVC and the stages as they are to be stopped.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a log file shows each epoch when it ends
    try:
        # Click's own way to end prints the usage and a hint before what is wrong.
        sys.exit(cli(prog_name="medtransfer", standalone_mode=False))
    except click.Abort:
        click.echo("\nStopped. What is finished is kept: run it again and it goes on.", err=True)
        sys.exit(1)
    except UserError as error:
        line = f"medtransfer: {error}"
    except click.exceptions.NoArgsIsHelpError as error:
        line = error.format_message()
    except click.UsageError as error:
        asked = error.ctx.command_path if error.ctx else "medtransfer"
        told = " ".join(error.format_message().split()).rstrip(".")
        line = f"{asked}: {told}. See `{asked} --help`."
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        mend = MACHINE_ERRORS[error.errno]
        line = f"medtransfer: {error.filename or Path.cwd()}: {error.strerror}; {mend}, then run again"
    click.echo(line, err=True)
    sys.exit(EXIT_USER_ERROR)


def stop_like_ctrl_c(signum: int, frame: Any) -> None:
    """End as on Ctrl-C, with the signal's number in the exception."""
    # `timeout` and service managers send it to a study and its stages at once, and the study passes it on as Ctrl-C:
    # a second one would interrupt a run while it ends.
    for repeated in (signal.SIGTERM, signal.SIGINT):
        signal.signal(repeated, signal.SIG_IGN)
    raise KeyboardInterrupt(signum)


@click.group()
@click.version_option(package_name="medtransfer")
def cli() -> None:
    """Transfer learning on medical images: which layers of VGG16 matter?"""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("medtransfer").setLevel(logging.INFO)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # The stages run `medtransfer` and DVC runs the stages: both come from this environment.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
