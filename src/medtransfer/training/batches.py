"""The input of a fit: batches of uint8 pixels in an order that depends on (seed, epoch) alone."""

import math
import mmap
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from sklearn.utils.class_weight import compute_sample_weight


class Batches(keras.utils.PyDataset):
    """Batches of a part of a prepared data set, as pixels or as the features of a frozen prefix.

    Parameters
    ----------
    inputs : array of shape (n, height, width, channels), memory-mapped, in memory or on a device
        Pixels, uint8, or features, float32 or bfloat16. Batches lie where the array lies.
    rows : ndarray of shape (m,), which images belong to this part
    labels : ndarray of shape (n,), int
    seed : int, optional
        Reshuffle every epoch with this seed; without it the order is that of `rows`.
    balance : str
        `class_weights`: batches have a third part, the weights of their images, in inverse proportion to the
        size of the class and 1 on average. `sampling`: an epoch draws as many images as there are, with
        replacement, each class as often as any other.

    Attributes
    ----------
    on_batch : callable
        Called when a batch has been read.
    """

    def __init__(
        self,
        inputs: Any,
        rows: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        seed: int | None = None,
        balance: str = "none",
    ):
        # Several workers change the order of JAX's random numbers, and with it the result.
        super().__init__(workers=1, use_multiprocessing=False)
        self.inputs, self.rows, self.labels = inputs, rows, labels
        self.on_batch: Callable[[], None] = lambda: None
        self.batch_size, self.seed = batch_size, seed
        weights = compute_sample_weight("balanced", labels[rows])
        self.chances = weights / weights.sum() if balance == "sampling" else None
        self.weights: np.ndarray | None = None
        if balance == "class_weights":
            self.weights = np.zeros(len(labels), np.float32)
            self.weights[rows] = weights
        self.start_epoch(0)

    def _draw_order(self, epoch: int) -> np.ndarray:
        if self.seed is None:
            return self.rows
        rng = np.random.default_rng([self.seed, epoch])
        if self.chances is not None:
            return rng.choice(self.rows, len(self.rows), p=self.chances)
        return rng.permutation(self.rows)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        rows = self._order[index * self.batch_size : (index + 1) * self.batch_size]
        batch = self.inputs[rows]  # (B, H, W, C)
        if isinstance(self.inputs, np.memmap):
            batch = np.asarray(batch)
            # Pages that were read count as this process's memory until they are given back; the system's
            # file cache keeps them.
            self.inputs._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
        self.on_batch()
        labels = self.labels[rows]  # (B,) int
        return (batch, labels) if self.weights is None else (batch, labels, self.weights[rows])

    def start_epoch(self, epoch: int) -> None:
        """Draw the order of the epoch with this number, the first being 0."""
        self._order = self._draw_order(epoch)


def feed(batches: Batches) -> Any:
    """Return batches as Keras takes them fastest on this backend.

    For TensorFlow that is a `tf.data.Dataset` without autotuning: with it, as Keras makes one, an epoch now
    and then ends only when the tuner wakes up, 5, 10, 20 … seconds after the epoch began.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    parts = [batches.inputs, batches.labels, *([] if batches.weights is None else [batches.weights])]
    signature = tuple(tf.TensorSpec((None, *part.shape[1:]), tf.as_dtype(part.dtype)) for part in parts)
    dataset = tf.data.Dataset.from_generator(
        lambda: (batches[index] for index in range(len(batches))), output_signature=signature
    )
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(batches)))
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)
