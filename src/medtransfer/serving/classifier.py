"""The content of an image file → calibrated probabilities, and where the network looked.

A classifier is a folder with the network, the training images in feature space, the model card and, in classifier.json,
everything else that determines an answer. The command line, the served model and the page share it.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

from medtransfer.analysis.calibration import believable, fit_temperature, temper
from medtransfer.core.errors import UserError
from medtransfer.core.files import sha256_of, write_json
from medtransfer.core.layout import CARD, FACTS, NETWORK, PREPARED, TRAINING
from medtransfer.core.params import Params
from medtransfer.core.predictions import read_predictions
from medtransfer.core.prepared import read_samples
from medtransfer.core.run_record import note_of, read_record, recipe_of
from medtransfer.data.custom import dataset_of
from medtransfer.data.images import MAX_PIXELS, load_pixels, load_rgb
from medtransfer.layers.gradcam import LAST, grad_cam, overlay, why_unclear
from medtransfer.metrics.scores import MACRO, score
from medtransfer.models.vgg16 import load_network
from medtransfer.report.card import model_card
from medtransfer.serving import likeness

NOTE = "For research only, not a medical device: not for diagnosis or treatment."
BATCH = 32


@dataclass(frozen=True)
class Classifier:
    """A network and the content of classifier.json.

    facts : dict
        dataset, title, synthetic, note (on its data, or empty), scope (for which images it is), classes (in the order
        of the probabilities), meanings, calibrated (whether the validation images determine a temperature),
        temperature (1 if not calibrated), image_size, resize_filter, white_level (None if the data set has no files
        with 16 bits), network_sha256, training_sha256, likeness (from `describe_training`), flips (axes, for a mean of
        predictions), model, seed, fit, validation_macro_f1
    training : Reference
        The training images in feature space.
    """

    network: keras.Model
    facts: dict[str, Any]
    training: likeness.Reference

    @cached_property
    def with_features(self) -> keras.Model:
        """The network, with its features before its probabilities."""
        return likeness.with_features(self.network)


@dataclass(frozen=True)
class Answer:
    """The answer for one image.

    probabilities : (classes,), float64
    distance : from the training images
    unlike_training : whether that is beyond the threshold
    calibrated : whether the probabilities are calibrated for an image like this
    """

    probabilities: np.ndarray
    distance: float
    unlike_training: bool
    calibrated: bool


def write_classifier(params: Params, fit: Path, description: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the classifier of a finished fit into a folder and return its facts; `description` is dataset.json."""
    record = read_record(fit)
    validation = read_predictions(fit / "predictions.csv", "validation")
    network = load_network(fit / NETWORK)
    shutil.copyfile(fit / NETWORK, folder / NETWORK)
    images = np.load(PREPARED / record["dataset"] / "images.npy", mmap_mode="r")
    splits = read_samples(record["dataset"]).split.to_numpy()
    training, like = likeness.describe_training(network, images, splits)
    likeness.save(training, folder / TRAINING)
    temperature = fit_temperature(validation)
    calibrated, about = believable(temperature), dataset_of(record["dataset"], params)
    facts = {
        **{key: record[key] for key in ("dataset", "model", "seed", "fit", "synthetic")},
        **{key: description[key] for key in ("classes", "image_size", "resize_filter")},
        "title": about.title,
        "meanings": {label: about.classes.get(label, label) for label in description["classes"]},
        "scope": about.scope,
        "note": note_of(record),
        "white_level": description.get("white_level"),
        "calibrated": calibrated,
        "temperature": temperature if calibrated else 1.0,
        "flips": recipe_of(record).flip_axes,
        "validation_macro_f1": score(validation)[MACRO],
        "likeness": like,
        "network_sha256": sha256_of(folder / NETWORK),
        "training_sha256": sha256_of(folder / TRAINING),
    }
    write_json(folder / FACTS, facts)
    (folder / CARD).write_text(model_card(params, fit, description, facts), encoding="utf-8")
    return facts


def load_classifier(folder: Path, registered: dict[str, str] | None = None) -> Classifier:
    """Read a classifier's folder; its files are opened only after their digests were compared.

    `registered` has the files' SHA-256 in MLflow's registry, which reveal changes in the folder.
    """
    try:
        facts = json.loads((folder / FACTS).read_text())
        expected = {NETWORK: facts["network_sha256"], **(registered or {}), TRAINING: facts["training_sha256"]}
        found = {file: sha256_of(folder / file) for file in expected}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: no classifier ({error}); run `medtransfer register DATASET`") from None
    for file, digest in expected.items():
        if found[file] != digest:
            raise UserError(
                f"{folder / file}: SHA-256 {found[file]}, expected {digest}; run `medtransfer register DATASET` again"
            )
    keras.config.disable_interactive_logging()
    return Classifier(load_network(folder / NETWORK), facts, likeness.load(folder / TRAINING))


def read_image(classifier: Classifier, content: bytes, name: str = "", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the pixels (size, size, 3), uint8, of an image file of any size, prepared as for training."""
    facts = classifier.facts
    return load_pixels(content, facts["image_size"], facts["resize_filter"], name, max_pixels, facts["white_level"])


def predict_probabilities(
    network: keras.Model, pixels: np.ndarray, flips: Iterable[Sequence[int]] = ((),)
) -> np.ndarray:
    """Return probabilities (n, classes), float64, of images (n, size, size, 3), uint8: the mean over `flips`.

    They add up to 1: a mean of 16-bit numbers, or of rows that do not, would be wrong.
    """
    batches = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
    return np.concatenate([
        _mean([network.predict_on_batch(np.flip(batch, tuple(axes))) for axes in flips]) for batch in batches
    ])  # fmt: skip


def _mean(outputs: Sequence[Any]) -> np.ndarray:
    probabilities = np.array([np.asarray(output, np.float64) for output in outputs])
    return (probabilities / probabilities.sum(axis=-1, keepdims=True)).mean(axis=0)


def ask(classifier: Classifier, pixels: np.ndarray) -> list[Answer]:
    """Return the answer for each of the images (n, size, size, 3), uint8: the same alone and in any batch."""
    facts, both = classifier.facts, classifier.with_features
    answers = []
    for image in pixels[:, None]:
        maps, outputs = zip(
            *(both.predict_on_batch(np.flip(image, tuple(axes))) for axes in facts["flips"]), strict=True
        )
        distance = float(likeness.distances(classifier.training, likeness.pool(maps[0]))[0])
        unlike = distance > facts["likeness"]["threshold"]
        (probabilities,) = temper(_mean(outputs), facts["temperature"])
        answers.append(Answer(probabilities, distance, unlike, facts["calibrated"] and not unlike))
    return answers


def describe(classifier: Classifier, answer: Answer) -> dict[str, Any]:
    """Return an image's answer as JSON values."""
    classes = classifier.facts["classes"]
    best = classes[int(answer.probabilities.argmax())]
    return {
        "predicted": best,
        "meaning": classifier.facts["meanings"][best],
        # Not rounded: among extreme probabilities, that would change the AUC.
        "probabilities": dict(zip(classes, answer.probabilities.tolist(), strict=True)),
        "unlike_training": answer.unlike_training,
        "distance": answer.distance,
        "calibrated": answer.calibrated,
    }


def note_of_answers(classifier: Classifier) -> str:
    """Return what must be said with every answer: NOTE, and on which data the network was trained, if that matters."""
    return " ".join(filter(None, [NOTE, classifier.facts["note"]]))


def why_no_overlay(classifier: Classifier) -> str:
    """Return why the network's Grad-CAM does not show where it looked; empty if it does."""
    why = why_unclear(*classifier.network.get_layer(LAST).output.shape[1:3])
    return f"no Grad-CAM picture at {classifier.facts['image_size']} px: {why}" if why else ""


def show_where(
    classifier: Classifier, contents: Sequence[bytes], pixels: np.ndarray, answers: Sequence[Answer]
) -> Iterator[Image.Image]:
    """Yield each image, in its original size, overlaid with where the network looked (Grad-CAM)."""
    heat = grad_cam(classifier.network, pixels, np.array([answer.probabilities.argmax() for answer in answers]))
    for content, heat_map in zip(contents, heat, strict=True):
        yield overlay(load_rgb(content, white_level=classifier.facts["white_level"]).image, heat_map)
