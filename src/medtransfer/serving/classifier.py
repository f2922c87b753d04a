"""The content of an image file → calibrated probabilities, and where the network looked.

A classifier is a folder with the network and, in classifier.json, everything else that determines an answer. The
command line, the served model and the page share it.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

from medtransfer.analysis.calibration import believable, fit_temperature, temper
from medtransfer.core.errors import UserError
from medtransfer.core.files import sha256_of, write_json
from medtransfer.core.predictions import read_predictions
from medtransfer.core.run_record import read_record, recipe_of
from medtransfer.data.images import MAX_PIXELS, WHITE, load_pixels, load_rgb
from medtransfer.layers.gradcam import grad_cam, overlay
from medtransfer.metrics.scores import MACRO, score
from medtransfer.models.vgg16 import load_network

FACTS, NETWORK = "classifier.json", "model.keras"
NOTE = "For research only, not a medical device: not for diagnosis or treatment."
BATCH = 32


@dataclass(frozen=True)
class Classifier:
    """A network and the content of classifier.json.

    facts : dict
        dataset, title, synthetic, classes (in the order of the probabilities), meanings, calibrated (whether the
        validation images determine a temperature), temperature (1 if not calibrated), image_size, resize_filter,
        white_level (None if the data set has no files with 16 bits), network_sha256, flips (axes, for a mean of
        predictions), model, seed, fit, validation_macro_f1
    """

    network: keras.Model
    facts: dict[str, Any]


def write_classifier(fit: Path, description: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the classifier of a finished fit into a folder and return its facts; `description` is dataset.json."""
    record = read_record(fit)
    predictions = read_predictions(fit / "predictions.csv")
    validation = predictions[predictions.split == "validation"].reset_index(drop=True)
    shutil.copyfile(fit / NETWORK, folder / NETWORK)
    temperature = fit_temperature(validation)
    calibrated = believable(temperature)
    facts = {
        **{key: record[key] for key in ("dataset", "model", "seed", "fit", "synthetic")},
        **{key: description[key] for key in ("title", "classes", "meanings", "image_size", "resize_filter")},
        "white_level": description.get("white_level"),
        "calibrated": calibrated,
        "temperature": temperature if calibrated else 1.0,
        "flips": recipe_of(record).flips,
        "validation_macro_f1": score(validation)[MACRO],
        "network_sha256": sha256_of(folder / NETWORK),
    }
    write_json(folder / FACTS, facts)
    return facts


def load_classifier(folder: Path, registered: dict[str, str] | None = None) -> Classifier:
    """Read a classifier's folder; the network is opened only after its digest was compared.

    Parameters
    ----------
    registered : dict, optional
        The files' SHA-256 in MLflow's registry, which reveal changes in the folder.
    """
    try:
        facts = json.loads((folder / FACTS).read_text())
        expected = {NETWORK: facts["network_sha256"], **(registered or {})}
        found = {file: sha256_of(folder / file) for file in expected}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: no classifier ({error}); run `medtransfer register`") from None
    for file, digest in expected.items():
        if found[file] != digest:
            raise UserError(
                f"{folder / file}: SHA-256 {found[file]}, expected {digest}; run `medtransfer register` again"
            )
    keras.config.disable_interactive_logging()
    # Older classifiers lack the keys; all of them were calibrated.
    older = {"calibrated": True, "flips": [[]], "white_level": WHITE}
    return Classifier(load_network(folder / NETWORK), older | facts)


def read_image(classifier: Classifier, content: bytes, name: str = "", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the pixels (size, size, 3), uint8, of an image file of any size, prepared as for training."""
    facts = classifier.facts
    return load_pixels(content, facts["image_size"], facts["resize_filter"], name, max_pixels, facts["white_level"])


def ask(classifier: Classifier, pixels: np.ndarray) -> np.ndarray:
    """Return calibrated probabilities (n, classes), float64, of images (n, size, size, 3), uint8."""
    raw = [
        np.mean(
            [
                classifier.network.predict_on_batch(np.flip(pixels[start : start + BATCH], axes))
                for axes in map(tuple, classifier.facts["flips"])
            ],
            axis=0,
        )
        for start in range(0, len(pixels), BATCH)
    ]
    return temper(np.concatenate(raw), classifier.facts["temperature"])


def describe(classifier: Classifier, probabilities: np.ndarray) -> dict[str, Any]:
    """Return an image's answer, from its probabilities (classes,), as JSON values."""
    classes = classifier.facts["classes"]
    best = classes[int(probabilities.argmax())]
    return {
        "predicted": best,
        "meaning": classifier.facts["meanings"][best],
        "probabilities": {name: round(float(value), 6) for name, value in zip(classes, probabilities, strict=True)},
    }


def show_where(
    classifier: Classifier, contents: Sequence[bytes], pixels: np.ndarray, probabilities: np.ndarray
) -> Iterator[Image.Image]:
    """Yield each image, in its original size, overlaid with where the network looked (Grad-CAM)."""
    heat = grad_cam(classifier.network, pixels, probabilities.argmax(axis=1))
    for content, heat_map in zip(contents, heat, strict=True):
        yield overlay(load_rgb(content, white_level=classifier.facts["white_level"]).image, heat_map)
