"""The training loop: Keras's `fit` with early stopping, checkpoints and a history."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from medtransfer.core.errors import UserError
from medtransfer.core.params import TrainParams
from medtransfer.training.batches import Batches, feed
from medtransfer.training.checkpoints import Fit, ResumableStopping, collect, load, restore, save
from medtransfer.training.gradients import use_fast_gradients

log = logging.getLogger(__name__)

HISTORY_COLUMNS = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds", "images_per_second"]
HEAD_STEPS = 32


class DivergedError(UserError):
    """The loss is no longer a finite number."""


def fit(
    model: keras.Model,
    training: Batches,
    validation: Batches,
    params: TrainParams,
    on_epoch: Callable[[list[dict[str, float]]], None] = lambda history: None,
    checkpoints: Path | None = None,
    made_from: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Train until the validation loss has not fallen for `patience` epochs; keep the best weights.

    The whole state is written to `checkpoints` after every epoch. If that folder has a checkpoint of the same fit,
    training resumes from it and ends with the same weights.

    Parameters
    ----------
    on_epoch : callable
        Called with the whole history after each epoch, and once when a fit resumes.
    checkpoints : Path, optional
        A folder for this fit only, which the caller removes. Without it, an interrupted fit starts again.
    made_from : mapping, optional
        Everything that decides the result, as JSON values.

    Returns
    -------
    DataFrame
        One row per epoch: HISTORY_COLUMNS. `seconds` includes validation, `images_per_second` does not.

    Raises
    ------
    DivergedError, UserError
        The loss is no longer a finite number, or a checkpoint cannot be written.
    """
    compile_network(model, params)
    state = Fit(model, ResumableStopping(params.patience))
    if checkpoints and (found := load(checkpoints, made_from or {})):
        restore(state, *found)
        log.info("resuming after epoch %d of %s", len(state.history), checkpoints)
        on_epoch(state.history)

    def keep(epoch: int, logs: dict[str, float]) -> None:
        if checkpoints:
            arrays, facts = collect(state)
            save(checkpoints, arrays, {"made_from": made_from or {}, **facts})
        on_epoch(state.history)

    begin = len(state.history)
    recorder = _Recorder(state.history, training, params.epochs)
    model.fit(
        feed(training),
        validation_data=feed(validation),
        initial_epoch=begin,
        epochs=begin if state.stopping.remembered.get("stopped_epoch") else params.epochs,
        callbacks=[recorder, state.stopping, keras.callbacks.LambdaCallback(on_epoch_end=keep)],
        # Batches are already shuffled by (seed, epoch); Keras would shuffle them again.
        shuffle=False,
        verbose=0,
    )
    return pd.DataFrame(state.history, columns=HISTORY_COLUMNS)


def compile_network(model: keras.Model, params: TrainParams) -> None:
    """Compile a network with the loss, the optimizer and the metrics of every fit."""
    use_fast_gradients(model)
    convolves = any(isinstance(layer, keras.layers.Conv2D) for layer in model.layers)
    model.compile(
        optimizer=build_optimizer(params),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        # TensorFlow has no deterministic XLA.
        jit_compile=keras.backend.backend() == "jax",
        # A step through dense layers takes less time than the Python around it. Ctrl-C waits for one execution.
        steps_per_execution=1 if convolves else HEAD_STEPS,
    )


def build_optimizer(params: TrainParams) -> keras.optimizers.Optimizer:
    """Return the optimizer named in params.yaml; SGD has a momentum of 0.9."""
    if params.optimizer == "sgd":
        return keras.optimizers.SGD(params.learning_rate, momentum=0.9)
    kind = {"adam": keras.optimizers.Adam, "rmsprop": keras.optimizers.RMSprop}[params.optimizer]
    return kind(params.learning_rate)


def predict(model: keras.Model, inputs: Any, rows: np.ndarray, batch_size: int) -> np.ndarray:
    """Return probabilities (len(rows), classes), float32, for these rows of the pixels or features."""
    batches = Batches(inputs, rows, np.zeros(len(inputs), np.int32), batch_size)
    probabilities: np.ndarray = model.predict(feed(batches), verbose=0)
    return probabilities


class _Recorder(keras.callbacks.Callback):
    """Records the history and prints a line per epoch; on a terminal, also shows a progress bar."""

    def __init__(self, rows: list[dict[str, float]], training: Batches, epochs: int):
        super().__init__()
        self.rows, self.training, self.epochs = rows, training, epochs
        columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TimeRemainingColumn())
        self.console = Console()
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("", total=len(training), epoch="")
        training.on_batch = lambda: self.bar.advance(self.task)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self.bar.start()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self.bar.stop()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.begin = self.trained = time.perf_counter()
        self.training.start_epoch(epoch)
        self.bar.reset(self.task, epoch=f"{epoch + 1}/{self.epochs}")

    # A hook per batch would make Keras wait for the device after every batch.
    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        keras.ops.convert_to_numpy(self.model.trainable_variables[-1])  # waits for the last step
        self.trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        seconds = time.perf_counter() - self.begin
        row = {name: float((logs or {})[name]) for name in HISTORY_COLUMNS[1:5]}
        if not all(math.isfinite(value) for value in row.values()):
            self.bar.stop()
            raise DivergedError(
                f"epoch {epoch + 1}: the loss is {row['loss']} and the validation loss {row['val_loss']}, expected "
                f"finite numbers; lower the learning rate, which is {float(self.model.optimizer.learning_rate):g}"
            )
        speed = len(self.training.rows) / (self.trained - self.begin)
        self.rows.append({"epoch": epoch + 1, **row, "seconds": seconds, "images_per_second": speed})
        values = "  ".join(f"{name} {value:.{3 if 'accuracy' in name else 4}f}" for name, value in row.items())
        line = f"epoch {epoch + 1}/{self.epochs}  {values}  {speed:.0f} images/s"
        self.console.print(line, highlight=False, soft_wrap=True)
