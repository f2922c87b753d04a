"""Temperature scaling: one number, fitted on validation images, that makes confidence honest.

Guo et al.: On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
"""

import numpy as np
import pandas as pd
import scipy.optimize

from medtransfer.core.predictions import PREFIX, classes_of
from medtransfer.metrics.scores import encode

BOUNDS = (-3.0, 3.0)  # of the temperature's natural logarithm
MARGIN = 0.01  # how near to an end of it the search ends
SMALLEST = 1e-12


def fit_temperature(validation: pd.DataFrame) -> float:
    """Return the temperature that makes the validation labels most likely; above 1 softens the probabilities."""
    codes, probabilities = encode(validation)
    logits = np.log(np.maximum(probabilities, SMALLEST))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(codes)), codes]))

    return float(np.exp(scipy.optimize.minimize_scalar(loss, bounds=BOUNDS, method="bounded").x))


def believable(temperature: float) -> bool:
    """Return whether a temperature is one that the validation images decided: not an end of the search.

    Few images, all told right, are the more likely the surer the network is made.
    """
    return BOUNDS[0] + MARGIN < float(np.log(temperature)) < BOUNDS[1] - MARGIN


def scale(predictions: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """Return the predictions with their probabilities at another temperature; the most probable class stays."""
    _, probabilities = encode(predictions)
    columns = [f"{PREFIX}{name}" for name in classes_of(predictions)]
    return predictions.assign(**dict(zip(columns, temper(probabilities, temperature).T, strict=True)))


def temper(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities (n, classes) at another temperature, float64."""
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), SMALLEST)) / temperature
    return np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
