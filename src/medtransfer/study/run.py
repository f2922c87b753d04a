"""study: run every stage of dvc.yaml that is out of date, independent ones in parallel.

DVC runs one stage at a time, but several `dvc repro` can work in one project. Each gets a share of the stages whose
dependencies are ready. A last `dvc repro` runs the remaining stages and confirms that everything is up to date.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from medtransfer.core.dvc import PIPELINE, RWLOCK, cache_folder, only_not_stored
from medtransfer.core.errors import UserError, first_three, shortened
from medtransfer.core.hardware import SHARED_GPU, gpu_capabilities, gpu_memory
from medtransfer.core.processes import end_with_parent

DVC = (sys.executable, "-m", "dvc")
MAX_JOBS = 2  # one fit leaves cores idle for part of its time; each further fit needs its own memory
SHELL = {"SHELL": "/bin/sh"}  # DVC runs stages in the user's shell, which for a service is often nologin
GPU_BYTES_PER_FIT = 13e9  # six fits at 224 px filled an H100: 50 of its 80 GB in use, the rest held in reserve
INTERRUPTED = "ERROR: interrupted by the user"  # DVC says so even if another of its processes failed

Process = subprocess.Popen[Any]


def default_jobs() -> int:
    """Return how many stages to run in parallel: as many as fit into a GPU's memory, or two without a GPU."""
    fitting = int(gpu_memory() / GPU_BYTES_PER_FIT) if gpu_capabilities() else MAX_JOBS
    return max(1, min(fitting, os.cpu_count() or 1))


def run_study(jobs: int) -> int:
    """Run every stage that is out of date, `jobs` in parallel, and return DVC's exit code.

    Nothing keeps running after a failure or an interruption; finished stages are kept.

    Raises
    ------
    UserError
        If DVC could not store outputs in its cache.
    """
    if not (code := _run_stages(jobs)):
        _check_stored()
    return code


def _run_stages(jobs: int) -> int:
    if jobs == 1:
        return run_dvc("repro")
    for batch in _batches(jobs):
        if code := _run_in_parallel([["--wait-for-lock", "repro", "--single-item", *stages] for stages in batch]):
            return code
    return _run_in_parallel([["repro"]])  # only prints what runs, unlike `run_dvc`


def check_cache_writable() -> None:
    """Check that DVC can store outputs in its cache, since it would notice only after a fit."""
    cache = cache_folder(Path.cwd())
    folder = next(path for path in (cache, *cache.parents) if path.exists())
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: read-only, but DVC must store outputs there; fix the permissions")


def _check_stored() -> None:
    """Check that DVC's cache has all outputs: DVC reports success where it could not copy them, as to a full disk."""
    if lost := _not_stored():
        raise UserError(
            f"{cache_folder(Path.cwd())}: lacks the outputs of {first_three(lost)}; free space on that disk, then run "
            "again, which stores them"
        )


def store_again() -> None:
    """Store whole outputs and data that DVC's cache lacks: DVC would remove outputs and run their stages again.

    The cache may have been emptied, or its disk was full when DVC wanted to store them.
    """
    if lost := _not_stored():
        print(f"storing in DVC's cache, which lacks them: {first_three(lost)}")
        run_dvc("commit", *lost, hints=False)


def _not_stored() -> list[str]:
    """Return the stages and .dvc files of the study whose outputs are whole, but not in DVC's cache."""
    with _compared() as (_, status):
        return [stage for stage, changes in status.items() if ":" not in stage and only_not_stored(changes)]


def run_dvc(*arguments: str, hints: bool = True) -> int:
    """Run DVC and return its exit code; DVC prints errors on stderr and hints, such as `git add`, on stdout."""
    stdout = None if hints else subprocess.DEVNULL  # `--quiet` would hide the errors too
    process = subprocess.Popen(
        [*DVC, *arguments], stdout=stdout, env={**os.environ, **SHELL}, preexec_fn=end_with_parent
    )
    with _stopped_together([process]):
        return process.wait()


def _batches(jobs: int) -> list[list[list[str]]]:
    """Return batches of jobs, each a list of stage names; empty if everything is up to date."""
    import networkx as nx

    with _compared() as (repo, status):
        if all(":" in name for name in status):  # DVC prefixes stages of other pipelines with their file
            return []
        order = {stage.addressing: place for place, stage in enumerate(repo.index.stages)}
        generations = [
            sorted((stage.addressing for stage in stages if stage.path_in_repo == PIPELINE.name), key=order.__getitem__)
            for stages in nx.topological_generations(repo.index.graph.reverse())
        ]
    return divide([stages for stages in generations if stages], jobs)


@contextmanager
def _compared() -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open the project and yield it with its `dvc status`."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    with ExitStack() as stack:
        try:
            repo = stack.enter_context(Repo())
            status = repo.status()
        except LockError as error:
            raise UserError(f"dvc: {_who_works(str(error))}, then run again") from None
        except DvcException as error:
            raise UserError(f"dvc: {shortened(error)}") from None
        yield repo, status


def _who_works(said: str) -> str:
    """Return which processes DVC's error names, and what to do.

    If a container was killed, its process's number may be that of any other process.
    """
    numbers = sorted(set(map(int, re.findall(r"PID (\d+)", said))))
    if not numbers:
        return "another DVC command is working in this project; wait until it ends"
    names = [f"{number} ({psutil.Process(number).name()})" for number in numbers if psutil.pid_exists(number)]
    return (
        f"process {', '.join(names or map(str, numbers))} is working in this project; wait until it ends, or, if it "
        f"has nothing to do with this project, remove {RWLOCK} (`rm {RWLOCK}`)"
    )


def divide(generations: list[list[str]], jobs: int) -> list[list[list[str]]]:
    """Return one batch per generation of stages, divided into at most `jobs` jobs that run in parallel.

    Final batches of a single job are left out.
    """
    batches = [[stages[job::jobs] for job in range(min(jobs, len(stages)))] for stages in generations]
    while batches and len(batches[-1]) < 2:
        batches.pop()
    return batches


def _run_in_parallel(commands: list[list[str]]) -> int:
    """Run DVC commands in parallel; return the exit code of the first that fails, or 0."""
    environment = {**SHARED_GPU, **os.environ, **SHELL, "PYTHONUNBUFFERED": "1"}
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    options |= {"env": environment, "preexec_fn": end_with_parent}
    processes: list[Process] = [subprocess.Popen([*DVC, *command], **options) for command in commands]

    def stop() -> None:
        for process in processes:
            if process.poll() is None:
                _interrupt(process)

    def follow(process: Process) -> int:
        with process:
            print_lines(process.stdout or ())
        return process.returncode

    failed = 0
    with ThreadPoolExecutor(len(processes)) as pool, _stopped_together(processes):
        try:
            for ended in as_completed([pool.submit(follow, process) for process in processes]):
                if code := ended.result():
                    failed = failed or code
                    stop()
        except OSError:  # the reader of our output has ended, or its disk is full
            stop()
            raise
    return failed


def print_lines(lines: Iterable[str]) -> None:
    """Print the output of stages with their names in front, and only the errors of DVC itself."""
    stage = ""
    for line in lines:
        text = line.rstrip()
        if text.startswith("Running stage '"):
            stage = text.split("'")[1]
        elif text.startswith("Updating lock file"):
            stage = ""
        elif text == INTERRUPTED:
            continue
        elif text and not text.startswith("> ") and (stage or text.startswith("ERROR")):
            print(f"{stage}: {text}" if stage else text, flush=True)


@contextmanager
def _stopped_together(processes: list[Process]) -> Iterator[None]:
    """Wait for the processes after Ctrl-C, which reaches them too, or SIGTERM, which is passed on as Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as stop:
        for process in processes:
            if stop.args:  # SIGTERM reached only this process
                _interrupt(process)
            process.wait()
        raise


def _interrupt(process: Process) -> None:
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for one in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGINT)
