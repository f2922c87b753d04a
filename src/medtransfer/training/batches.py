"""The input of a fit: batches of uint8 pixels in an order that depends on (seed, epoch) alone."""

import math

import keras
import numpy as np


class Batches(keras.utils.PyDataset):
    """Batches of a part of a prepared data set.

    Parameters
    ----------
    images : ndarray of shape (n, size, size, 3), uint8, memory-mapped or in memory
    rows : ndarray of shape (m,), which images belong to this part
    labels : ndarray of shape (n,), int
    seed : int, optional
        Shuffle anew every epoch with this seed; without it the order is that of `rows`.

    """

    def __init__(
        self, images: np.ndarray, rows: np.ndarray, labels: np.ndarray, batch_size: int, seed: int | None = None
    ):
        # Several workers change the order of JAX's random numbers, and with it the result.
        super().__init__(workers=1, use_multiprocessing=False)
        self.images, self.rows, self.labels = images, rows, labels
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        self._order = self._draw_order()

    def _draw_order(self) -> np.ndarray:
        if self.seed is None:
            return self.rows
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self._order[index * self.batch_size : (index + 1) * self.batch_size]
        return np.asarray(self.images[rows]), self.labels[rows]  # (B, S, S, 3) uint8, (B,) int

    def on_epoch_end(self) -> None:
        """Draw the next epoch's order."""
        self.epoch += 1
        self._order = self._draw_order()
