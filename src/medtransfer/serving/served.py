"""The classifier as MLflow serves it: a table with files' contents in the column `image` → a table of answers.

MLflow runs this file when it loads the model ("models from code"), so that no pickle is written or read.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException

from medtransfer.core.errors import UserError
from medtransfer.core.predictions import probability_columns
from medtransfer.serving.classifier import ask, load_classifier, read_image


class ImageClassifier(mlflow.pyfunc.PythonModel):
    """What `mlflow models serve` and `mlflow.pyfunc.load_model` call."""

    def load_context(self, context: Any) -> None:
        """Open the network."""
        self.classifier = load_classifier(Path(context.artifacts["classifier"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return predicted, p_<class> and unlike_training per image; one that cannot be decoded is an error."""
        classes = self.classifier.facts["classes"]
        try:
            pixels = [
                read_image(self.classifier, bytes(content), f"image {number}")
                for number, content in enumerate(model_input["image"])
            ]
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        answers = ask(self.classifier, np.stack(pixels)) if pixels else []
        probabilities = np.array([answer.probabilities for answer in answers]).reshape(-1, len(classes))
        table = pd.DataFrame(probabilities, columns=probability_columns(classes))
        table.insert(0, "predicted", np.array(classes)[probabilities.argmax(axis=1)])
        return table.assign(unlike_training=np.array([answer.unlike_training for answer in answers], bool))


mlflow.models.set_model(ImageClassifier())
