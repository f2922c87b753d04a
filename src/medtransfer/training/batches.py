"""The input of a fit: batches of pixels or features, in an order that depends only on (seed, epoch)."""

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
        Pixels, uint8, or features, float32 or bfloat16. Batches are on the same device as the array.
    rows : ndarray of shape (m,)
        The images of this part.
    labels : ndarray of shape (n,), int
    seed : int, optional
        Reshuffle every epoch with this seed; without it, keep the order of `rows`.
    power : float
        See `balance`.
    flipped : tuple of int
        Axes of a batch along which its images are flipped.
    balance : str
        `class_weights`: batches have a third part, the weights of their images, inversely proportional to the size
        of the class and 1 on average. `sampling`: an epoch draws as many images as `rows` has, with replacement, each
        with a weight of its class's size to the power of minus `power`; with 1, each class is drawn equally often.

    Attributes
    ----------
    order : ndarray of shape (m,)
        The rows of this epoch, batch after batch.
    on_batches : callable
        Called with the number of batches just read.
    """

    def __init__(
        self,
        inputs: Any,
        rows: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        seed: int | None = None,
        balance: str = "none",
        power: float = 1.0,
        flipped: tuple[int, ...] = (),
    ):
        # Several workers change the order of JAX's random numbers, and with it the result.
        super().__init__(workers=1, use_multiprocessing=False)
        self.inputs, self.rows, self.labels = inputs, rows, labels
        self.on_batches: Callable[[int], None] = lambda count: None
        self.batch_size, self.seed, self.flipped = batch_size, seed, flipped
        weights = compute_sample_weight("balanced", labels[rows])
        sampled = weights**power
        self.sampling_weights = sampled / sampled.sum() if balance == "sampling" else None
        self.weights: np.ndarray | None = None
        if balance == "class_weights":
            self.weights = np.zeros(len(labels), np.float32)
            self.weights[rows] = weights
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Draw the order of the images for this epoch; the first epoch is 0."""
        rng = np.random.default_rng([self.seed or 0, epoch])
        if self.seed is None:
            self.order = self.rows
        elif self.sampling_weights is not None:
            self.order = rng.choice(self.rows, len(self.rows), p=self.sampling_weights)
        else:
            self.order = rng.permutation(self.rows)

    def make_labels_one_hot(self, classes: int) -> None:
        """Make the labels one-hot, float32."""
        self.labels = np.eye(classes, dtype=np.float32)[self.labels]

    @property
    def parts(self) -> tuple[Any, ...]:
        """The arrays from which batches take rows: inputs, labels and, with `class_weights`, weights."""
        return (self.inputs, self.labels) if self.weights is None else (self.inputs, self.labels, self.weights)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        batch = self.inputs[rows]  # (B, H, W, C)
        if isinstance(self.inputs, np.memmap):
            batch = np.asarray(batch)
            # Pages that were read count as this process's memory until released; the system's file cache keeps them.
            self.inputs._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
        if self.flipped:
            batch = np.flip(batch, self.flipped)
        self.on_batches(1)
        return batch, *(part[rows] for part in self.parts[1:])


def feed(batches: Batches) -> Any:
    """Return batches in the form that is fastest for Keras on this backend.

    For TensorFlow that is a `tf.data.Dataset` without autotuning: with autotuning, which Keras turns on, an epoch
    sometimes waits several seconds for the tuner before it ends.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    signature = tuple(tf.TensorSpec((None, *part.shape[1:]), tf.as_dtype(part.dtype)) for part in batches.parts)
    dataset = tf.data.Dataset.from_generator(
        lambda: (batches[index] for index in range(len(batches))), output_signature=signature
    )
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(batches)))
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)
