"""Which classes are taken for which."""

import numpy as np
import pandas as pd
from sklearn.metrics import classification_report, confusion_matrix

from medtransfer.core.predictions import classes_of, predicted_labels


def report(predictions: pd.DataFrame) -> str:
    """Return scikit-learn's text report: precision, recall, F1 and support per class."""
    classes, y_pred = classes_of(predictions), predicted_labels(predictions)
    return str(classification_report(predictions.label, y_pred, labels=classes, digits=3, zero_division=0.0))


def confusion(predictions: pd.DataFrame) -> np.ndarray:
    """Return counts (classes, classes): rows are the true, columns the predicted labels."""
    matrix: np.ndarray = confusion_matrix(
        predictions.label, predicted_labels(predictions), labels=classes_of(predictions)
    )
    return matrix
