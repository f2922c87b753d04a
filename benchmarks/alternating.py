"""Several networks trained in turn, so that whatever else the machine does slows all of them alike."""

import statistics
import time
from collections.abc import Mapping

import keras
import numpy as np

WARM_UP = 2  # rounds that are not counted


def training_speeds(
    models: Mapping[str, keras.Model], pixels: np.ndarray, labels: np.ndarray, rounds: int
) -> dict[str, float]:
    """Return the images per second of each network's training step: the median over rounds."""
    seconds: dict[str, list[float]] = {side: [] for side in models}
    for _ in range(rounds + WARM_UP):
        for side, model in models.items():
            begin = time.perf_counter()
            model.train_on_batch(pixels, labels)
            seconds[side].append(time.perf_counter() - begin)
    return {side: len(pixels) / statistics.median(values[WARM_UP:]) for side, values in seconds.items()}
