"""Which layers matter: three comparisons of a fine-tuned network with its initial weights.

A fourth, training with other blocks frozen, is the study itself.
"""

from collections.abc import Callable

import keras
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medtransfer.core.params import BLOCKS
from medtransfer.models.freezing import block_of
from medtransfer.models.vgg16 import base_layers

BATCH = 32


def rewind_blocks(
    tuned: keras.Model, start: keras.Model, score: Callable[[keras.Model], dict[str, float]]
) -> pd.DataFrame:
    """Reset one block at a time to its initial weights; return one row per block, with the network's scores.

    The loss in score shows how much the network depends on what that block learned (module criticality without
    noise: Neyshabur et al., What is being transferred in transfer learning?, NeurIPS 2020, section 4; Chatterji et al.,
    The intriguing role of module criticality, ICLR 2020). The first row, `none`, has the scores of `tuned`, which is
    restored at the end.
    """
    rows = [{"block": "none", **score(tuned)}]
    for block in BLOCKS:
        layers = [layer for layer in base_layers(tuned) if block_of(layer.name) == block]
        kept = [layer.get_weights() for layer in layers]
        for layer in layers:
            layer.set_weights(start.get_layer(layer.name).get_weights())
        rows.append({"block": block, **score(tuned)})
        for layer, weights in zip(layers, kept, strict=True):
            layer.set_weights(weights)
    return pd.DataFrame(rows)


def compare_layers(tuned: keras.Model, start: keras.Model, images: np.ndarray) -> pd.DataFrame:
    """Return one row per convolution layer: how much its outputs and its weights changed.

    Two copies of the largest layer's outputs for all images (n, size, size, 3), uint8, must fit into memory.

    The columns are layer, block, cka (`linear_cka` of its outputs before and after) and distance (the Frobenius norm
    of the change in its kernel and bias, divided by their norm before).
    """
    rows = []
    for layer in base_layers(tuned):
        cka = linear_cka(*(_outputs(model, layer.name, images) for model in (start, tuned)))
        weights = [model.get_layer(layer.name).get_weights() for model in (start, tuned)]
        old, new = (np.concatenate([np.ravel(part) for part in parts]) for parts in weights)
        distance = float(np.linalg.norm(new - old) / np.linalg.norm(old))
        rows.append({"layer": layer.name, "block": block_of(layer.name), "cka": cka, "distance": distance})
    return pd.DataFrame(rows)


def linear_cka(first: np.ndarray, second: np.ndarray) -> float:
    """Return the linear centred kernel alignment of two representations (n, features) of the same n images.

    It is 1 if one is a rotation and scaling of the other (Kornblith et al., Similarity of neural network
    representations revisited, ICML 2019, equations 2 and 4, by Gram matrices, since there are fewer images than
    features).
    """
    grams = []
    for outputs in (first, second):
        gram = outputs @ outputs.T
        grams.append(gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean())
    product = np.vdot(grams[0], grams[1])
    return float(product / (np.linalg.norm(grams[0]) * np.linalg.norm(grams[1])))


def probe_blocks(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    rows: dict[str, np.ndarray],
    score: Callable[[np.ndarray], dict[str, float]],
) -> pd.DataFrame:
    """Fit a linear classifier on each block's output; return one row per block with its test scores.

    Alain and Bengio: Understanding intermediate layers using linear classifier probes, 2016. A block's output is first
    averaged over its pixels, so that every probe has at most 512 features. Images are (n, size, size, 3), uint8, and
    labels (n,), int; `rows` has those of `train` and `test`; `score` takes probabilities (test images, classes).
    """
    pooled = [keras.layers.GlobalAveragePooling2D()(model.get_layer(f"{block}_pool").output) for block in BLOCKS]
    extract = keras.Model(model.inputs, pooled)
    used = np.concatenate([rows["train"], rows["test"]])
    features = [np.concatenate(parts) for parts in zip(*_batched(extract, images, used), strict=True)]
    found = []
    for block, table in zip(BLOCKS, features, strict=True):
        training, tested = np.split(table.astype(np.float64), [len(rows["train"])])
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        classifier.fit(training, labels[rows["train"]])
        probabilities = np.zeros((len(tested), int(labels.max()) + 1))
        probabilities[:, classifier.classes_] = classifier.predict_proba(tested)
        found.append({"block": block, **score(probabilities)})
    return pd.DataFrame(found)


def _batched(model: keras.Model, images: np.ndarray, rows: np.ndarray) -> list[list[np.ndarray]]:
    batches = (rows[begin : begin + BATCH] for begin in range(0, len(rows), BATCH))
    return [[np.asarray(part, np.float32) for part in model.predict_on_batch(images[batch])] for batch in batches]


def _outputs(model: keras.Model, layer: str, images: np.ndarray) -> np.ndarray:
    """Return a layer's outputs (n, features), float32."""
    part = keras.Model(model.inputs, [model.get_layer(layer).output])
    outputs = np.concatenate([batch[0] for batch in _batched(part, images, np.arange(len(images)))])
    return outputs.reshape(len(outputs), -1)
