"""The group of all commands: logging, and a user's mistake as one line and exit code 2."""

import errno
import gc
import getpass
import io
import locale
import logging
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import click

from medtransfer.core.errors import UserError, shortened
from medtransfer.core.files import user_cache

EXIT_USER_ERROR = 2
BACKENDS = ("tensorflow", "jax")
# Errors of the machine that the user can fix.
MACHINE_ERRORS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space or use another disk"),
    errno.EROFS: "make it writable, or use another disk",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "fix the permissions"),
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), or use another disk",
    **dict.fromkeys((errno.EIO, errno.ESTALE), "check the disk or the network"),
    errno.ENOTDIR: "use another path",  # there is a file where a folder must be
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EEXIST: "expected a folder, not a file or a broken link; remove it, or mount the disk it points to",
}
# How TensorFlow, JAX and the loader of shared libraries say it.
OUT_OF_MEMORY = re.compile("(OOM when allocating|RESOURCE_EXHAUSTED|failed to map segment).*")
MLFLOW_SETTING = re.compile(r"(Failed to convert .+ for )?MLFLOW_\w+( value must be|: )")
KERAS_JSON = re.compile("Invalid `(floatx|epsilon|image_data_format)` configuration")


def main() -> None:
    """Run the command line."""
    if not sys.flags.utf8_mode and locale.getencoding().lower() != "utf-8":
        # The files here are in UTF-8, whatever the user's locale is.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606
    # Imports create millions of lasting objects; scanning them again and again would take a sixth of a stage's time.
    gc.set_threshold(100_000)
    signal.signal(signal.SIGTERM, stop_like_ctrl_c)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as it is with nohup
        signal.signal(signal.SIGHUP, stop_like_ctrl_c)  # the terminal has ended
    # A shell script starts `medtransfer study &` with Ctrl-C ignored, and DVC and the stages would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = signal_again
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # a service may start programs without one, and no file may get its number
            null = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(null, True)
            setattr(sys, name, os.fdopen(null, "w" if number else "r"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A log file shows each epoch as it ends, and a file name need not be UTF-8.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        # Click's standalone mode prints the usage and a hint before the error.
        sys.exit(cli(prog_name="medtransfer", standalone_mode=False))
    except click.Abort:
        click.echo("\nStopped. Run the command again to continue.", err=True)
        sys.exit(1)
    except UserError as error:
        line = f"medtransfer: {error}"
    except click.exceptions.NoArgsIsHelpError as error:
        line = error.format_message()
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "medtransfer"
        problem = " ".join(error.format_message().split()).rstrip(".")
        line = f"{command}: {problem}. See `{command} --help`."
    except Exception as error:
        problem = _of_the_machine(error)
        if not problem:
            raise
        line = f"medtransfer: {problem}, then run again"
    click.echo(line, err=True)
    sys.exit(EXIT_USER_ERROR)


def _of_the_machine(error: Exception) -> str:
    """Return what is wrong with the machine or the user's settings, and the remedy; empty for any other error."""
    said = str(error)
    if isinstance(error, OSError):
        # An error while copying has two names; the second is the file that was written.
        file = Path(str(error.filename2 or error.filename or Path.cwd()))
        above_cache = bool(error.filename) and user_cache().is_relative_to(file)
        if above_cache or (error.errno in MACHINE_ERRORS and file.is_relative_to(user_cache())):
            return f"{file}: {error.strerror}; set XDG_CACHE_HOME to a folder that you can write"
        if error.errno in MACHINE_ERRORS:
            return f"{file}: {error.strerror}; {MACHINE_ERRORS[error.errno]}"
    if os.environ.get("JAX_PLATFORMS") and os.environ.get("KERAS_BACKEND") == "jax":
        from medtransfer.training.device import accelerators

        try:
            accelerators()
        except UserError as refused:
            return str(refused)
    if MLFLOW_SETTING.match(said):
        return f"{shortened(said)}; correct or unset this variable"
    if KERAS_JSON.match(said):
        return f"keras.json in KERAS_HOME or ~/.keras: {shortened(said)}; correct or remove that file"
    found = OUT_OF_MEMORY.search(said)
    if found or isinstance(error, MemoryError):
        why = shortened(found[0] if found else said)
        return f"not enough memory here or on the GPU ({why}); free some, or set a smaller batch_size in params.yaml"
    return ""


def stop_like_ctrl_c(signum: int, frame: Any) -> None:
    """Raise KeyboardInterrupt, as Ctrl-C does, with the signal's number as its argument."""
    # `timeout` and service managers signal a study and its stages together, and the study passes it on as Ctrl-C.
    # A second signal would interrupt a run while it ends.
    for repeated in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(repeated, signal.SIG_IGN)
    raise KeyboardInterrupt(signum)


def signal_again(dropped: Any) -> None:
    """Repeat a signal whose KeyboardInterrupt was dropped a tenth of a second ago; print any other exception.

    Python drops what is raised in a callback of its garbage collector, where JAX has one (JAX 0.10, jax issue 18246).
    """
    if not isinstance(dropped.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)
        return
    number = next(iter(dropped.exc_value.args), signal.SIGINT)
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, stop_like_ctrl_c)
    threading.Timer(0.1, os.kill, (os.getpid(), number)).start()


class _Command(click.Command):
    """A command that refuses empty values, which would otherwise count as not given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for before, value in zip(["", *args], args, strict=False):
            option, equals, given = value.partition("=")
            if not value:
                self._refuse(before if before.startswith("-") else "", ctx)
            if option.startswith("--") and equals and not given:
                self._refuse(option, ctx)
        return super().parse_args(ctx, args)

    def _refuse(self, option: str, ctx: click.Context) -> None:
        raise click.UsageError(f"{option or 'an argument'} is empty; expected a value", ctx)


class _Group(click.Group):
    command_class = _Command
    group_class = type


@click.group(cls=_Group, context_settings={"show_default": True})
@click.version_option(package_name="medtransfer")
def cli() -> None:
    """Transfer learning on medical images: which layers of VGG16 matter?"""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("medtransfer").setLevel(logging.INFO)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    # Keras's limits would change a fit silently; a git hook sets the others for the repository that it belongs to.
    # An unknown level would be an error in every import of MLflow.
    for name in (
        "KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE",
        "MLFLOW_LOGGING_LEVEL",
    ):  # fmt: skip
        os.environ.pop(name, None)
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the current folder was removed; change to the project's folder (cd), then run again") from None
    try:
        Path.home(), getpass.getuser()  # DVC needs both
    except (RuntimeError, KeyError, OSError):
        raise UserError(
            f"user {os.getuid()}: has no name or home; set LOGNAME to a name and HOME to a folder"
        ) from None
    backend = os.environ.setdefault("KERAS_BACKEND", BACKENDS[0])
    if backend not in BACKENDS:
        raise UserError(f"KERAS_BACKEND: found {backend!r}; expected {' or '.join(BACKENDS)}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ["MPLBACKEND"] = "agg"  # an unknown one would be an error in every import of Matplotlib
    # A proxy does not reach an MLflow server on this machine.
    os.environ["no_proxy"] = f"{os.environ.get('no_proxy') or os.environ.get('NO_PROXY', '')},127.0.0.1,localhost"
    # Modules of the user in the project's folder, such as random.py, must not replace Python's in DVC.
    os.environ["PYTHONSAFEPATH"] = "1"
    # DVC runs the stages, which run `medtransfer`: both must come from this environment.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
