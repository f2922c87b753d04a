"""On JAX with one GPU: a compiled program that loops over many batches of images or features on the device."""

import math
from collections.abc import Callable
from typing import Any

import keras

from medtransfer.training.batches import Batches

# Batches per program, which Ctrl-C does not interrupt.
STEPS = 64


def is_on_device(inputs: Any) -> bool:
    """Return whether `place_on_device` moved an array to a device."""
    if keras.backend.backend() != "jax":
        return False
    import jax

    return isinstance(inputs, jax.Array)


class DeviceBatches(keras.utils.PyDataset):
    """The same batches, up to STEPS of them per item: the whole arrays, and the rows of each batch."""

    def __init__(self, batches: Batches):
        super().__init__(workers=1, use_multiprocessing=False)
        self.batches = batches

    def __len__(self) -> int:
        whole, rest = divmod(len(self.batches.rows), self.batches.batch_size)
        return math.ceil(whole / STEPS) + bool(rest)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        order, size = self.batches.order, self.batches.batch_size
        whole = len(order) // size * size
        begin, end = index * STEPS * size, min((index + 1) * STEPS * size, whole)
        # A smaller last batch is a separate item.
        rows = order[begin:end].reshape(-1, size) if begin < whole else order[None, whole:]
        self.batches.on_batches(len(rows))
        return self.batches.parts, rows


def loop_on_device(model: keras.Model, batches: Batches, classes: int) -> None:
    """Make a compiled model train and validate on items of DeviceBatches.

    The steps and their order are those of Keras; only its loop over the batches, in Python, is replaced.
    """
    # From one batch, since Keras would build the loss and the metrics from an item.
    _, labels, *_ = batches[0]
    guess = keras.ops.zeros((len(labels), classes))
    model.compute_loss(y=labels, y_pred=guess, training=False)
    model.compute_metrics(None, labels, guess)
    model.train_step, model.test_step = _loop(model, model.train_step), _loop(model, model.test_step)
    model.steps_per_execution = 1


def _loop(model: keras.Model, step: Callable[..., Any]) -> Callable[..., Any]:
    import jax

    def steps(state: Any, item: Any) -> tuple[dict[str, Any], Any]:
        parts, order = item

        def body(state: Any, rows: Any) -> tuple[Any, None]:
            return step(state, tuple(part[rows] for part in parts))[1], None

        state, _ = jax.lax.scan(body, state, order)
        with keras.StatelessScope(state_mapping=zip(model.metrics_variables, state[-1], strict=True)):
            return model.get_metrics_result(), state

    return steps
