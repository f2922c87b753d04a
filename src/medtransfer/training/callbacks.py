"""Keras's early stopping and reduction of the learning rate, with a state that a checkpoint can hold."""

from collections.abc import Mapping
from typing import Any

import keras


class _Resumable(keras.callbacks.Callback):
    """A callback whose state can be kept and restored."""

    STATE: tuple[str, ...] = ()
    remembered: Mapping[str, Any] = {}

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Reset the state, as Keras does, then apply the restored one."""
        super().on_train_begin(logs)
        for name, value in self.remembered.items():
            setattr(self, name, value)

    def state(self) -> dict[str, Any]:
        """Return what `remembered` must be to go on from here."""
        return {name: getattr(self, name) for name in self.STATE}


class ResumableStopping(_Resumable, keras.callbacks.EarlyStopping):
    """Keras's early stopping, which keeps the best weights; with `averaged`, those of the moving average.

    The average is in the network while it is scored, and the trained weights are in it at all other times.
    """

    STATE = ("wait", "best", "best_epoch", "stopped_epoch")

    def __init__(self, monitor: str, patience: int, averaged: bool):
        mode = "min" if monitor == "val_loss" else "max"
        super().__init__(monitor, patience=patience, mode=mode, restore_best_weights=True)
        self.averaged = averaged

    def _swap(self) -> None:
        if self.averaged:
            optimizer = self.model.optimizer
            # Keras's SwapEMAWeights adds and subtracts on TensorFlow, which rounds.
            for weight, average in zip(
                self.model.trainable_variables, optimizer._model_variables_moving_average, strict=True
            ):
                value = keras.ops.convert_to_numpy(weight)
                weight.assign(average)
                average.assign(value)

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        """Put the average into the network."""
        self._swap()

    def on_test_end(self, logs: dict[str, float] | None = None) -> None:
        """Put the trained weights back."""
        self._swap()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Keep the scored weights if they are the best."""
        self._swap()
        super().on_epoch_end(epoch, logs)
        self._swap()


class ResumablePlateau(_Resumable, keras.callbacks.ReduceLROnPlateau):
    """Keras's reduction of the learning rate; the rate itself is a variable of the optimizer."""

    STATE = ("wait", "best", "cooldown_counter")
