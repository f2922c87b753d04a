"""The training loop: Keras's `fit` with early stopping, checkpoints and a history."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from medtransfer.core.errors import UserError
from medtransfer.core.recipe import Augmentation, TrainParams
from medtransfer.training.augmentation import AugmentedNetwork
from medtransfer.training.batches import Batches, feed
from medtransfer.training.callbacks import ResumablePlateau, ResumableStopping
from medtransfer.training.checkpoints import Fit, load, restore, saving
from medtransfer.training.device_loop import DeviceBatches, is_on_device, loop_on_device
from medtransfer.training.gradients import use_fast_gradients
from medtransfer.training.macro_f1 import MacroF1
from medtransfer.training.optimizers import PLATEAU_FACTOR, build_optimizer

log = logging.getLogger(__name__)

SCORES = ["loss", "accuracy", "macro_f1", "val_loss", "val_accuracy", "val_macro_f1"]
HISTORY_COLUMNS = ["epoch", *SCORES, "seconds", "images_per_second"]
HEAD_STEPS = 32


class DivergedError(UserError):
    """The loss is no longer a finite number."""


def fit(
    model: keras.Model,
    training: Batches,
    validation: Batches,
    params: TrainParams,
    on_epoch: Callable[[list[dict[str, float]]], bool | None] = lambda history: None,
    checkpoints: Path | None = None,
    made_from: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Train until the validation score has not improved for `patience` epochs; keep the best weights.

    The state is written to `checkpoints` while the next epoch runs. If that folder has a checkpoint of the same fit,
    training resumes from it and ends with the same weights.

    Parameters
    ----------
    on_epoch : callable
        Called with the history after each epoch, and once when a fit resumes; training stops if it returns True.
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
    state = _start(model, training, validation, params)
    if checkpoints and (found := load(checkpoints, made_from or {})):
        restore(state, *found)
        log.info("resuming after epoch %d of %s", len(state.history), checkpoints)
        on_epoch(state.history)

    items: Callable[[Batches], Any] = DeviceBatches if is_on_device(training.inputs) else feed
    begin = len(state.history)
    with saving(checkpoints, made_from or {}) if checkpoints else nullcontext() as save:

        def end_epoch(epoch: int, logs: dict[str, float]) -> None:
            if save:
                save(state)
            if on_epoch(state.history):
                state.network.stop_training = True

        recorder = _Recorder(state.history, training, params)
        state.network.fit(
            items(training),
            validation_data=items(validation),
            initial_epoch=begin,
            epochs=begin if state.stopping.remembered.get("stopped_epoch") else params.epochs,
            callbacks=[recorder, *state.callbacks, keras.callbacks.LambdaCallback(on_epoch_end=end_epoch)],
            shuffle=False,  # batches are already shuffled by (seed, epoch)
            verbose=0,
        )
    return pd.DataFrame(state.history, columns=HISTORY_COLUMNS)


def best_epoch(history: pd.DataFrame, params: TrainParams) -> int:
    """Return the epoch, from 1, whose weights are kept."""
    scores = history[f"val_{params.stop_on}"].to_numpy()
    return int(scores.argmin() if params.stop_on == "loss" else scores.argmax()) + 1


def _start(model: keras.Model, training: Batches, validation: Batches, params: TrainParams) -> Fit:
    """Return a compiled fit of the network, or of the network with its augmentation, that has not begun."""
    classes = model.output_shape[-1]
    if params.augment != Augmentation():
        model = AugmentedNetwork(model, params.augment, training.seed or 0)
        model.build(training.inputs.shape)
    if mixes_labels(params):
        training.make_labels_one_hot(classes)
        validation.make_labels_one_hot(classes)
    compile_network(model, params, len(training))
    if is_on_device(training.inputs):
        loop_on_device(model, training, classes)
    monitor = f"val_{params.stop_on}"
    stopping = ResumableStopping(monitor, params.patience, averaged=params.average > 0)
    if params.schedule != "plateau":
        return Fit(model, stopping)
    patience = max(1, params.patience // 2)
    plateau = ResumablePlateau(monitor, factor=PLATEAU_FACTOR, patience=patience, mode=stopping.mode)
    return Fit(model, stopping, plateau)


def mixes_labels(params: TrainParams) -> bool:
    """Return whether an image's label is not one class only."""
    return params.label_smoothing > 0 or params.augment.mixup > 0


def compile_network(model: keras.Model, params: TrainParams, steps: int) -> None:
    """Compile a network with the loss, the optimizer and the metrics of every fit; `steps` are those of an epoch."""
    network = model.network if isinstance(model, AugmentedNetwork) else model
    use_fast_gradients(network)
    convolves = any(isinstance(layer, keras.layers.Conv2D) for layer in network.layers)
    smoothed = keras.losses.CategoricalCrossentropy(label_smoothing=params.label_smoothing)
    model.compile(
        optimizer=build_optimizer(params, steps),
        loss=smoothed if mixes_labels(params) else "sparse_categorical_crossentropy",
        metrics=["accuracy", MacroF1(network.output_shape[-1])],
        # TensorFlow has no deterministic XLA.
        jit_compile=keras.backend.backend() == "jax",
        # A step through dense layers takes less time than the Python around it. Ctrl-C waits for one execution.
        steps_per_execution=1 if convolves else HEAD_STEPS,
    )


def predict(
    model: keras.Model, inputs: Any, rows: np.ndarray, batch_size: int, flips: Sequence[tuple[int, ...]] = ((),)
) -> np.ndarray:
    """Return probabilities (len(rows), classes), float32, for these rows of the pixels or features.

    They are the mean over `flips`, each a tuple of axes.
    """
    found = []
    for flipped in flips:
        batches = Batches(inputs, rows, np.zeros(len(inputs), np.int32), batch_size, flipped=flipped)
        found.append(model.predict(feed(batches), verbose=0))
    return found[0] if len(found) == 1 else np.mean(found, axis=0)


class _Recorder(keras.callbacks.Callback):
    """Records the history and prints a line per epoch; on a terminal, also shows a progress bar."""

    def __init__(self, rows: list[dict[str, float]], training: Batches, params: TrainParams):
        super().__init__()
        self.rows, self.training, self.recipe = rows, training, params
        columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TimeRemainingColumn())
        self.console = Console()
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("", total=len(training), epoch="")
        training.on_batches = lambda count: self.bar.advance(self.task, count)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self.bar.start()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self.bar.stop()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.begin = self.trained = time.perf_counter()
        self.training.start_epoch(epoch)
        self.bar.reset(self.task, epoch=f"{epoch + 1}/{self.recipe.epochs}")

    # A hook per batch would make Keras wait for the device after every batch.
    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        keras.ops.convert_to_numpy(self.model.trainable_variables[-1])  # waits for the last step
        self.trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        seconds = time.perf_counter() - self.begin
        row = {name: float((logs or {})[name]) for name in SCORES}
        if not all(math.isfinite(value) for value in row.values()):
            self.bar.stop()
            rate = f"{float(self.model.optimizer.learning_rate):g}"
            decay = f", or weight_decay, which is {self.recipe.weight_decay:g}" if self.recipe.weight_decay else ""
            raise DivergedError(
                f"epoch {epoch + 1}: the loss is {row['loss']} and the validation loss {row['val_loss']}, expected "
                f"finite numbers; lower the learning rate, which is {rate}{decay}"
            )
        speed = len(self.training.rows) / (self.trained - self.begin)
        self.rows.append({"epoch": epoch + 1, **row, "seconds": seconds, "images_per_second": speed})
        values = "  ".join(f"{name} {value:.{4 if 'loss' in name else 3}f}" for name, value in row.items())
        line = f"epoch {epoch + 1}/{self.recipe.epochs}  {values}  {speed:.0f} images/s"
        self.console.print(line, highlight=False, soft_wrap=True)
