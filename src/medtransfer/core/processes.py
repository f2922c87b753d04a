"""Processes that end when the process that started them ends, even if it was killed."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import psutil

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Let Linux send SIGTERM to this process when its parent ends, even if the parent was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end_with_dvc() -> None:
    """Send SIGTERM to this stage when the DVC process that started it ends, even if it was killed."""
    dvc = psutil.Process().parent()
    if dvc and dvc.name() == Path(os.environ.get("SHELL") or "/bin/sh").name:  # dash stays between the two
        dvc = dvc.parent()
    if dvc:
        end_after(dvc.wait)


def end_after(wait: Callable[[], object]) -> None:
    """Send SIGTERM to this process when `wait`, which runs in a thread, returns."""

    def watch() -> None:
        wait()
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=watch, daemon=True).start()
