"""Which classes are taken for which.

Scikit-learn takes a second to load, and the tables do without it.
"""

import numpy as np
import pandas as pd

from medtransfer.core.predictions import classes_of, predicted_labels


def report(predictions: pd.DataFrame) -> str:
    """Return scikit-learn's text report: precision, recall, F1 and support per class."""
    from sklearn.metrics import classification_report

    classes, y_pred = classes_of(predictions), predicted_labels(predictions)
    return str(classification_report(predictions.label, y_pred, labels=classes, digits=3, zero_division=0.0))


def confusion(predictions: pd.DataFrame) -> np.ndarray:
    """Return counts (classes, classes): rows are the true, columns the predicted labels."""
    from sklearn.metrics import confusion_matrix

    matrix: np.ndarray = confusion_matrix(
        predictions.label, predicted_labels(predictions), labels=classes_of(predictions)
    )
    return matrix
