"""The talk's baselines: a decision tree and a random forest on pixel values."""

from typing import TypeAlias
from zipfile import BadZipFile

import numpy as np
import skops.io
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier

from medtransfer.core.errors import UserError, shortened
from medtransfer.core.params import DecisionTreeParams

Tree: TypeAlias = DecisionTreeClassifier | RandomForestClassifier
# The types in a fitted tree or forest that skops's own list lacks. Not whole packages: NumPy has functions that run
# any code.
TRUSTED_TYPES = ("sklearn.tree._tree.Tree",)


def build_tree(settings: DecisionTreeParams, seed: int) -> Tree:
    """Return an unfitted forest if `settings` are those of a forest, else a tree; the forest uses every core."""
    values = settings.model_dump()
    if "n_estimators" in values:
        return RandomForestClassifier(**values, random_state=seed, n_jobs=-1)
    return DecisionTreeClassifier(**values, random_state=seed)


def flatten_pixels(images: np.ndarray) -> np.ndarray:
    """Turn images (n, size, size, 3) into the trees' features (n, size · size · 3), both uint8."""
    return np.ascontiguousarray(images).reshape(len(images), -1)


def predict_probabilities(tree: Tree, images: np.ndarray, classes: int) -> np.ndarray:
    """Return probabilities (n, classes), float64, for images (n, size, size, 3), uint8; 0 for a class never seen."""
    probabilities = np.zeros((len(images), classes))
    probabilities[:, tree.classes_] = tree.predict_proba(flatten_pixels(images))
    return probabilities


def load_tree(path: str) -> Tree:
    """Read a tree that skops wrote; a UserError, before anything is built, if the file contains other types."""
    try:
        tree = skops.io.load(path, trusted=list(TRUSTED_TYPES))
        if not isinstance(tree, DecisionTreeClassifier | RandomForestClassifier):
            raise TypeError(f"it contains a {type(tree).__name__}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, BadZipFile) as error:
        raise UserError(f"{path}: not a tree saved by this project ({shortened(error)}); run `dvc repro`") from None
    return tree
