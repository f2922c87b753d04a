"""F1 per class and its averages, ranking, and calibration."""

import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, f1_score, roc_auc_score

from medtransfer.core.predictions import classes_of, predicted_labels, probabilities_of

MICRO, MACRO = "micro avg", "macro avg"
BALANCED, AUC, BRIER, CALIBRATION = "balanced accuracy", "AUC", "Brier score", "calibration error"
BINS = 15


def score(predictions: pd.DataFrame) -> dict[str, float]:
    """Score the rows of one split.

    Returns
    -------
    dict
        F1 of each class by its name, `micro avg` (which is the accuracy, each image having one
        label) and `macro avg`; a class that is neither there nor predicted has an F1 of 0.
        `balanced accuracy`. `AUC`: the mean over the classes that are there of the area under the
        ROC curve of one class against all others. `Brier score`: of all classes (halved where there
        are two; Brier, Monthly Weather Review 78, 1, 1950). `calibration error`: see `calibration_error`.
    """
    classes, y_true, y_pred = classes_of(predictions), predictions.label, predicted_labels(predictions)
    by_class = f1_score(y_true, y_pred, labels=classes, average=None, zero_division=0.0)
    codes, probabilities = encode(predictions)
    return {
        **{name: float(value) for name, value in zip(classes, by_class, strict=True)},
        MICRO: float(f1_score(y_true, y_pred, labels=classes, average="micro", zero_division=0.0)),
        MACRO: float(np.mean(by_class)),
        BALANCED: float(balanced_accuracy_score(y_true, y_pred)),
        AUC: area_under_curve(codes, probabilities),
        BRIER: float(brier_score_loss(codes, probabilities, labels=range(len(classes)))),
        CALIBRATION: calibration_error(codes, probabilities),
    }


def encode(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels (n,) as numbers in the order of the classes, and probabilities (n, classes) with a sum of 1."""
    codes = predictions.label.map({name: number for number, name in enumerate(classes_of(predictions))}).to_numpy(int)
    probabilities = probabilities_of(predictions).astype(float)
    return codes, probabilities / probabilities.sum(axis=1, keepdims=True)


def area_under_curve(codes: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean one-against-all area under the ROC curve of the classes that are there; NaN if there is one."""
    there = np.unique(codes)
    if len(there) < 2:
        return float("nan")
    return float(np.mean([roc_auc_score(codes == number, probabilities[:, number]) for number in there]))


def calibration_error(codes: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the expected calibration error: how far confidence is from accuracy, on average over 15 equal bins.

    Guo et al.: On Calibration of Modern Neural Networks, ICML 2017, equation 3.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == codes
    gaps = np.bincount(bin_of(confidence), weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(codes))


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """Return the bin, 0 to 14, of each confidence."""
    return np.minimum((confidence * BINS).astype(int), BINS - 1)
