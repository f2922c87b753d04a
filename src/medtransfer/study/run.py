"""study: every stage of dvc.yaml that is out of date, those that do not wait for each other side by side.

DVC runs one stage at a time, but lets several `dvc repro` work in one project. Each of ours gets a share of the stages
that wait for nothing; what is left, and whether all is done, is for a last `dvc repro` to say.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Thread

import psutil

from medtransfer.core.dvc import PIPELINE
from medtransfer.core.hardware import gpu_capabilities

DVC = (sys.executable, "-m", "dvc")
MAX_JOBS = 2  # a fit uses every core for a part of its time only; each more takes its own memory


def default_jobs() -> int:
    """Return how many stages run at once: one where they would share a GPU, else two."""
    return 1 if gpu_capabilities() else min(MAX_JOBS, os.cpu_count() or 1)


def run_study(jobs: int) -> int:
    """Run every stage that is out of date, `jobs` at once, and return DVC's exit code.

    After a failure or an interruption nothing goes on running; what had finished is kept.
    """
    if jobs > 1:
        for batch in _batches(jobs):
            code = _side_by_side([["--wait-for-lock", "repro", "--single-item", *stages] for stages in batch])
            if code:
                return code
        return _side_by_side([["repro"]])  # stages that wait for all jobs; prints only what runs
    return run_dvc("repro")


def run_dvc(*arguments: str) -> int:
    """Run DVC and return its exit code; its own message says what went wrong."""
    process = subprocess.Popen([*DVC, *arguments])
    with _stopped_together([process]):
        return process.wait()


def _batches(jobs: int) -> list[list[list[str]]]:
    """Return batches of jobs, each a list of stage names: a stage that waits for another job is in a later batch.

    There are none if everything is up to date. A last batch of a single job is left out.
    """
    import networkx as nx
    from dvc.repo import Repo

    with Repo() as repo:
        if all(":" in name for name in repo.status()):  # DVC names stages of other pipelines by their file
            return []
        order = {stage.addressing: place for place, stage in enumerate(repo.index.stages)}
        waits_for = {
            stage.addressing: {other.addressing for other in after} for stage, after in repo.index.graph.adj.items()
        }
        generations = [
            sorted((stage.addressing for stage in stages if stage.path_in_repo == PIPELINE.name), key=order.__getitem__)
            for stages in nx.topological_generations(repo.index.graph.reverse())
        ]
    return divide([stages for stages in generations if stages], waits_for, jobs)


def divide(generations: list[list[str]], waits_for: Mapping[str, set[str]], jobs: int) -> list[list[list[str]]]:
    """Divide generations of stages into batches of jobs.

    If a generation has fewer stages than there are jobs, and each of its stages waits for a single job of the batch
    before, each stage joins the job that it waits for.
    """
    batches: list[list[list[str]]] = []
    for stages in generations:
        before = batches[-1] if batches else []
        awaited = [[group for group in before if waits_for[stage].intersection(group)] for stage in stages]
        if len(stages) < jobs and all(len(groups) == 1 for groups in awaited):
            for stage, (group,) in zip(stages, awaited, strict=True):
                group.append(stage)
        else:
            batches.append([[stage] for stage in stages])
    while batches and len(batches[-1]) < 2:
        batches.pop()
    return [_share(groups, jobs) for groups in batches]


def _share(groups: list[list[str]], jobs: int) -> list[list[str]]:
    shared: list[list[str]] = [[] for _ in range(min(jobs, len(groups)))]
    for group in groups:
        min(shared, key=len).extend(group)
    return shared


def _side_by_side(commands: list[list[str]]) -> int:
    """Run commands of DVC at once and return the exit code of the first that failed, or 0.

    Raises
    ------
    OSError
        What they say cannot be printed; they have ended then.
    """
    processes = [
        subprocess.Popen(
            [*DVC, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        for arguments in commands
    ]
    codes: list[int] = []
    unprinted: list[OSError] = []

    def follow(process: "subprocess.Popen[str]") -> None:
        lines = process.stdout or ()
        try:
            _print_lines(lines)
        except OSError as error:  # the reader of this output has ended, or its disk is full
            unprinted.append(error)
            stop()
            for _ in lines:  # else it would wait for room in the pipe
                pass
        codes.append(process.wait())
        if codes[-1]:
            stop()

    def stop() -> None:
        for process in processes:
            if process.poll() is None:
                _interrupt(process)

    threads = [Thread(target=follow, args=(process,), daemon=True) for process in processes]
    with _stopped_together(processes):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if unprinted:
        raise unprinted[0]
    return next((code for code in codes if code), 0)


def _print_lines(lines: Iterable[str]) -> None:
    """Print what stages say with their names before it, and of DVC's own words the errors."""
    stage = ""
    for line in lines:
        text = line.rstrip()
        if text.startswith("Running stage '"):
            stage = text.split("'")[1]
        elif text.startswith("Updating lock file"):
            stage = ""
        elif text and not text.startswith("> ") and (stage or text.startswith("ERROR")):
            print(f"{stage}: {text}" if stage else text, flush=True)


@contextmanager
def _stopped_together(processes: "list[subprocess.Popen[str]] | list[subprocess.Popen[bytes]]") -> Iterator[None]:
    """Wait for the processes after Ctrl-C, which reaches them too, or SIGTERM, which is passed on as Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as stop:
        for process in processes:
            if stop.args:  # SIGTERM came to this process alone
                _interrupt(process)
            process.wait()
        raise


def _interrupt(process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> None:
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for one in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGINT)
