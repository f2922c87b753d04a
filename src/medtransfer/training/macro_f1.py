"""Macro F1 as a metric of Keras."""

from typing import Any

import keras


class MacroF1(keras.metrics.Metric):
    """The mean F1 of the classes that are present or predicted, as in `metrics.scores`."""

    def __init__(self, classes: int):
        super().__init__(name="macro_f1")
        self.classes = classes
        self.counts = self.add_weight(
            shape=(classes, classes), initializer="zeros", name="counts"
        )  # [truth, predicted]

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Count a batch: labels (batch,) or one-hot (batch, classes), probabilities (batch, classes)."""
        ops = keras.ops
        if len(y_true.shape) == 2 and y_true.shape[-1] == self.classes:
            y_true = ops.argmax(y_true, axis=-1)
        truth = ops.one_hot(ops.cast(ops.reshape(y_true, (-1,)), "int32"), self.classes)
        predicted = ops.one_hot(ops.argmax(y_pred, axis=-1), self.classes)
        self.counts.assign(self.counts + ops.matmul(ops.transpose(truth), predicted))

    def result(self) -> Any:
        """Return the macro F1 of all batches."""
        ops = keras.ops
        hits = ops.diagonal(self.counts)
        either = ops.sum(self.counts, axis=0) + ops.sum(self.counts, axis=1)
        f1 = 2 * hits / ops.maximum(either, 1)
        return ops.sum(f1) / ops.maximum(ops.sum(ops.cast(either > 0, "float32")), 1)
