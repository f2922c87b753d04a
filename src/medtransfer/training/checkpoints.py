"""Checkpoints: the whole state of a fit after an epoch, so that a killed run ends as if it had never been killed.

Keras's BackupAndRestore brings back the epoch and the weights, but neither the random state nor the
order of the images nor what early stopping remembers.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from medtransfer.core.errors import UserError
from medtransfer.core.files import partial_beside, sha256_of

log = logging.getLogger(__name__)

KEPT = 2  # the newest, and the one before in case it is damaged
Arrays = dict[str, np.ndarray]


@dataclass
class Fit:
    """What a fit consists of while it runs: everything here that changes is in a checkpoint."""

    network: keras.Model
    stopping: "ResumableStopping"
    history: list[dict[str, float]] = field(default_factory=list)


class ResumableStopping(keras.callbacks.EarlyStopping):
    """Keras's early stopping on the validation loss, which can begin from what it remembered."""

    def __init__(self, patience: int):
        super().__init__("val_loss", patience=patience, restore_best_weights=True)
        self.remembered: dict[str, Any] = {}

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Forget, as Keras does, and remember what was restored."""
        super().on_train_begin(logs)
        for name, value in self.remembered.items():
            setattr(self, name, value)

    @property
    def stopped(self) -> bool:
        """Whether the remembered state is that of a fit that has ended."""
        return bool(self.remembered.get("stopped_epoch"))


def _weights(fit: Fit) -> list[Any]:
    return fit.network.trainable_variables


def _optimizer(fit: Fit) -> list[Any]:
    fit.network.optimizer.build(fit.network.trainable_variables)
    return fit.network.optimizer.variables


def _random(fit: Fit) -> list[Any]:
    weights = {id(variable) for variable in fit.network.weights}
    return [variable for variable in fit.network.variables if id(variable) not in weights]


VARIABLES: dict[str, Callable[[Fit], list[Any]]] = {"weights": _weights, "optimizer": _optimizer, "random": _random}


def _trainable_positions(network: keras.Model) -> list[int]:
    trainable = {id(variable) for variable in network.trainable_variables}
    return [position for position, variable in enumerate(network.weights) if id(variable) in trainable]


def collect(fit: Fit) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays and the other facts of the state of a fit after an epoch.

    Frozen weights are left out: they are what the fit was made from. So is the order of the images: it is a
    function of the seed and the epoch.
    """
    arrays = {
        f"{part}/{number}": keras.ops.convert_to_numpy(variable)
        for part, variables in VARIABLES.items()
        for number, variable in enumerate(variables(fit))
    }
    if fit.stopping.wait:  # else this epoch is the best
        best = fit.stopping.best_weights
        arrays |= {f"best/{position}": best[position] for position in _trainable_positions(fit.network)}
    facts = {
        "stopping": {
            "wait": fit.stopping.wait,
            "best": float(fit.stopping.best),
            "best_epoch": fit.stopping.best_epoch,
            "stopped_epoch": fit.stopping.stopped_epoch,
        },
        "history": fit.history,
    }
    return arrays, facts


def _restore_variables(part: str) -> Callable[[Fit, Arrays, dict[str, Any]], None]:
    def restore(fit: Fit, arrays: Arrays, facts: dict[str, Any]) -> None:
        for number, variable in enumerate(VARIABLES[part](fit)):
            variable.assign(arrays[f"{part}/{number}"])

    return restore


def _restore_best(fit: Fit, arrays: Arrays, facts: dict[str, Any]) -> None:
    best = fit.network.get_weights()
    if facts["stopping"]["wait"]:
        for position in _trainable_positions(fit.network):
            best[position] = arrays[f"best/{position}"]
    fit.stopping.remembered["best_weights"] = best


def _restore_stopping(fit: Fit, arrays: Arrays, facts: dict[str, Any]) -> None:
    fit.stopping.remembered |= facts["stopping"]


def _restore_history(fit: Fit, arrays: Arrays, facts: dict[str, Any]) -> None:
    fit.history[:] = facts["history"]


RESTORE: dict[str, Callable[[Fit, Arrays, dict[str, Any]], None]] = {
    "weights": _restore_variables("weights"),
    "optimizer": _restore_variables("optimizer"),
    "random": _restore_variables("random"),
    "best": _restore_best,
    "stopping": _restore_stopping,
    "history": _restore_history,
}


def restore(fit: Fit, arrays: Arrays, facts: dict[str, Any]) -> None:
    """Bring a fit that has just been compiled into the state that `collect` returned."""
    for part in RESTORE.values():
        part(fit, arrays, facts)


def save(folder: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write a checkpoint, named by epoch and SHA-256, and remove all but the `KEPT` newest.

    Raises
    ------
    UserError
        It cannot be written; those before it are untouched.
    """
    epoch = len(facts["history"])
    target = folder / f"epoch-{epoch:05}.npz"
    partial = partial_beside(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, **{"facts": np.frombuffer(json.dumps(facts).encode(), np.uint8)}, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        partial.rename(target.with_stem(f"{target.stem}-{sha256_of(partial)}"))
    except OSError as error:
        raise UserError(
            f"{target}: the checkpoint after epoch {epoch} cannot be written: {error.strerror}; "
            "make room or give the right to write, then run again: it goes on from the checkpoint before"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


def load(folder: Path, made_from: Mapping[str, Any]) -> tuple[Arrays, dict[str, Any]] | None:
    """Return the newest whole checkpoint of a fit that was made from the same, or None.

    A damaged one is passed over with a line in the log; those of another fit are removed.
    """
    for path in _newest_first(folder):
        if sha256_of(path) != path.stem.rpartition("-")[2]:
            log.warning("%s: damaged, so the checkpoint before it is used", path)
            continue
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        facts = json.loads(arrays.pop("facts").tobytes())
        if facts["made_from"] == json.loads(json.dumps(made_from)):
            return arrays, facts
        log.info("%s: of a fit with other parameters, data, device or code, so this one starts again", path)
        for other in _newest_first(folder):
            other.unlink()
        return None
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*.npz"), reverse=True)
