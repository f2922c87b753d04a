"""F1 a class and its averages."""

import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score, f1_score

from medtransfer.evaluation.predictions import classes_of, predicted_labels

MICRO, MACRO = "micro avg", "macro avg"


def score(predictions: pd.DataFrame) -> dict[str, float]:
    """Score the rows of one split.

    Returns
    -------
    dict
        F1 of each class by its name, `micro avg` (which is the accuracy, each image having one
        label), `macro avg` and `balanced accuracy`. A class that is neither there nor predicted
        has an F1 of 0.
    """
    classes, y_true, y_pred = classes_of(predictions), predictions.label, predicted_labels(predictions)
    by_class = f1_score(y_true, y_pred, labels=classes, average=None, zero_division=0.0)
    return {
        **{name: float(value) for name, value in zip(classes, by_class, strict=True)},
        MICRO: float(f1_score(y_true, y_pred, labels=classes, average="micro", zero_division=0.0)),
        MACRO: float(np.mean(by_class)),
        "balanced accuracy": float(balanced_accuracy_score(y_true, y_pred)),
    }
