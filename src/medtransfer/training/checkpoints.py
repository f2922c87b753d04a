"""Checkpoints: the whole state of a fit after an epoch, so that a killed fit resumes bit for bit.

Keras's BackupAndRestore restores the epoch and the weights, but not the random state, the order of the images or the
state of early stopping.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from medtransfer.core.errors import UserError
from medtransfer.core.files import partial_beside, sha256_of
from medtransfer.training.callbacks import ResumablePlateau, ResumableStopping

log = logging.getLogger(__name__)

KEPT = 2  # the newest, and the one before it in case the newest is damaged
Arrays = dict[str, np.ndarray]


@dataclass
class Fit:
    """A running fit: a checkpoint holds everything here that changes."""

    network: keras.Model
    stopping: ResumableStopping
    plateau: ResumablePlateau | None = None
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def callbacks(self) -> list[keras.callbacks.Callback]:
        """What decides when the learning rate falls and training stops."""
        return [callback for callback in (self.stopping, self.plateau) if callback]


def changing_variables(network: keras.Model) -> dict[str, list[Any]]:
    """Return the variables that training changes; `random` are those of the dropout layers."""
    network.optimizer.build(network.trainable_variables)
    weights = {id(variable) for variable in network.weights}
    return {
        "weights": network.trainable_variables,
        "optimizer": network.optimizer.variables,
        "random": [variable for variable in network.variables if id(variable) not in weights],
    }


def _trainable_positions(network: keras.Model) -> list[int]:
    return [position for position, variable in enumerate(network.weights) if variable.trainable]


def collect(fit: Fit) -> tuple[Arrays, dict[str, Any]]:
    """Return the state of a fit after an epoch: arrays, and facts that JSON can hold.

    Frozen weights are left out because they do not change, and the order of the images because it follows from the
    seed and the epoch.
    """
    arrays = {
        f"{part}/{number}": np.array(keras.ops.convert_to_numpy(variable))  # a copy: JAX returns a view
        for part, variables in changing_variables(fit.network).items()
        for number, variable in enumerate(variables)
    }
    if fit.stopping.wait or fit.stopping.averaged:  # otherwise this epoch's weights are the best
        best = fit.stopping.best_weights
        arrays |= {f"best/{position}": best[position] for position in _trainable_positions(fit.network)}
    facts = {
        "stopping": fit.stopping.state(),
        "plateau": fit.plateau.state() if fit.plateau else {},
        "history": list(fit.history),
    }
    return arrays, facts


def restore(fit: Fit, arrays: Arrays, facts: dict[str, Any]) -> None:
    """Put a newly compiled fit into the state that `collect` returned."""
    for part, variables in changing_variables(fit.network).items():
        for number, variable in enumerate(variables):
            variable.assign(arrays[f"{part}/{number}"])
    best = fit.network.get_weights()
    if facts["stopping"]["wait"] or fit.stopping.averaged:
        for position in _trainable_positions(fit.network):
            best[position] = arrays[f"best/{position}"]
    fit.stopping.remembered = {**facts["stopping"], "best_weights": best}
    if fit.plateau:
        fit.plateau.remembered = facts["plateau"]
    fit.history.extend(facts["history"])


@contextmanager
def saving(folder: Path, made_from: Mapping[str, Any]) -> Iterator[Callable[[Fit], None]]:
    """Yield a function that copies the state of a fit and saves it in a thread, while the next epoch runs.

    If a checkpoint cannot be written, the next call or the end of the block raises the error.
    """
    with ThreadPoolExecutor(1) as thread:
        before: Future[None] | None = None

        def begin(fit: Fit) -> None:
            nonlocal before
            if before:
                before.result()
            arrays, facts = collect(fit)
            before = thread.submit(save, folder, arrays, {"made_from": made_from, **facts})

        yield begin
        if before:
            before.result()


def save(folder: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write a checkpoint, named by epoch and SHA-256, and remove all but the `KEPT` newest.

    Raises
    ------
    UserError
        It cannot be written; earlier checkpoints are untouched.
    """
    epoch = len(facts["history"])
    target = folder / f"epoch-{epoch:05}.npz"
    temporary = partial_beside(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, **{"facts": np.frombuffer(json.dumps(facts).encode(), np.uint8)}, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(target.with_stem(f"{target.stem}-{sha256_of(temporary)}"))
    except OSError as error:
        raise UserError(
            f"{target}: the checkpoint after epoch {epoch} cannot be written: {error.strerror}; free some space, "
            "raise the limit on file sizes or fix the permissions, then run again to resume from the checkpoint before"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


def load(folder: Path, made_from: Mapping[str, Any]) -> tuple[Arrays, dict[str, Any]] | None:
    """Return the newest undamaged checkpoint, or None.

    A damaged one is skipped with a warning. Checkpoints of a fit with another `made_from` are removed.
    """
    for path in _newest_first(folder):
        if sha256_of(path) != path.stem.rpartition("-")[2]:
            log.warning("%s: damaged; using the checkpoint before it", path)
            continue
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        facts = json.loads(arrays.pop("facts").tobytes())
        if facts["made_from"] == json.loads(json.dumps(made_from)):
            return arrays, facts
        log.info("%s: from a fit with other parameters, data, device or code; starting again", path)
        for other in _newest_first(folder):
            other.unlink()
        break
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*.npz"), reverse=True)
