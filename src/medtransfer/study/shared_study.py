"""A study of Optuna's in an SQLite file that processes of one machine share, and that resumes where it stopped."""

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import OperationalError

from medtransfer.core.errors import UserError, shortened
from medtransfer.study.search_space import Space, grid

PROCESS, ROW = "process", "row"  # attributes of a trial
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Plan:
    """What to search and how: with the sampler `grid` every combination, else as many as `trials` says."""

    space: Space
    sampler: str = "grid"
    pruner: str = "none"
    trials: int = 20


class SharedStudy:
    """Optuna's study of this name in `file`; `process` is from `living_process`."""

    def __init__(self, file: Path, name: str, plan: Plan, seed: int, process: str):
        self.file, self.name, self.plan, self.seed = file, name, plan, seed
        self.process, self.lock = process, lock_of(file)
        self.points = grid(plan.space) if plan.sampler == "grid" else []
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        _check_optunas(file)
        address = URL.create("sqlite", database=str(file))  # in a string, a question mark would start the options
        with self.lock:  # otherwise, two processes could create the tables at once
            try:
                storage = optuna.storages.RDBStorage(str(address), {"connect_args": {"timeout": 60}})
            except RuntimeError as error:  # another version of Optuna wrote it
                raise UserError(
                    f"{file}: {shortened(error)} Or move it away, or choose another --output; then run again"
                ) from None
            self.study = optuna.create_study(
                storage=storage,
                study_name=name,
                pruner=MedianPruner() if plan.pruner == "median" else NopPruner(),
                direction="maximize",
                load_if_exists=True,
            )

    def claim(self) -> optuna.Trial | None:
        """Return the next trial, or None if all have begun; a trial whose process has ended is run again.

        Optuna's own GridSampler leaves out points if several processes share a study.
        """
        with self.lock:
            for trial in self.trials(TrialState.RUNNING):
                if _has_ended(self.file, trial.user_attrs.get(PROCESS, "unknown")):
                    self.study.enqueue_trial(trial.params | trial.system_attrs.get("fixed_params", {}))
                    self.study.tell(trial.number, state=TrialState.FAIL)
            for point in self.points:
                self.study.enqueue_trial(point, skip_if_exists=True)
            begun = len(self.trials(TrialState.RUNNING, *FINISHED))
            if not self.trials(TrialState.WAITING) and begun >= (len(self.points) or self.plan.trials):
                return None
            # With one seed, every process and every resumed search would draw the same points.
            [seed] = np.random.SeedSequence([self.seed, len(self.study.trials)]).generate_state(1).tolist()
            self.study.sampler = (TPESampler if self.plan.sampler == "tpe" else RandomSampler)(seed=seed)
            claimed = self.study.ask(dict(self.plan.space))
            claimed.set_user_attr(PROCESS, self.process)
            return claimed

    def finish(self, trial: optuna.Trial, row: dict[str, Any] | None, value: float | None) -> None:
        """End a trial with its value, or with None as pruned; keep its row, which is None if it was not tried."""
        trial.set_user_attr(ROW, row)
        self.study.tell(trial, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of all finished trials that were tried."""
        return [row for trial in self.trials(*FINISHED) if (row := trial.user_attrs[ROW])]

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in these states."""
        return self.study.get_trials(deepcopy=False, states=states)


@contextmanager
def storing(file: Path) -> Iterator[None]:
    """Raise a UserError if SQLite cannot write a study's file, for example because the disk is full."""
    try:
        yield
    except (OperationalError, StorageInternalError) as error:
        cause = error if isinstance(error, OperationalError) else error.__cause__
        if not isinstance(cause, OperationalError):
            raise
        raise UserError(
            f"{file}: cannot be written ({cause.orig}); free some space or use another disk, then run again"
        ) from None


def lock_of(file: Path, process: str = "") -> FileLock:
    """Return the lock of a file that processes share, or the lock that one of these processes holds while it lives."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file.with_suffix(f".{process}.lock" if process else ".lock"))


@contextmanager
def living_process(file: Path) -> Iterator[str]:
    """Yield an id of this process and hold its lock, which is released however the process ends."""
    process = uuid.uuid4().hex
    lock = lock_of(file, process)
    try:
        with lock:
            yield process
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)


def _check_optunas(file: Path) -> None:
    """Refuse another program's file, such as MLflow's database: Optuna would add its tables to it."""
    try:
        with closing(sqlite3.connect(file)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        raise UserError(f"{file}: not an Optuna database ({error}); move it away, or choose another --output") from None
    if tables and "studies" not in tables:
        raise UserError(f"{file}: a database of another program, not Optuna's; choose another --output")


def _has_ended(file: Path, process: str) -> bool:
    lock = lock_of(file, process)
    try:
        with lock.acquire(timeout=0):
            Path(lock.lock_file).unlink()
    except Timeout:
        return False
    return True
