"""The talk's baselines: a decision tree and a random forest on pixel values."""

from typing import TypeAlias

import numpy as np
import skops.io
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier

from medtransfer.params import DecisionTreeParams

Tree: TypeAlias = DecisionTreeClassifier | RandomForestClassifier


def build_tree(settings: DecisionTreeParams, seed: int) -> Tree:
    """Return an unfitted forest or tree, by the type of its settings; the forest uses every core."""
    values = settings.model_dump()
    if "n_estimators" in values:
        return RandomForestClassifier(**values, random_state=seed, n_jobs=-1)
    return DecisionTreeClassifier(**values, random_state=seed)


def flatten_pixels(images: np.ndarray) -> np.ndarray:
    """Turn images (n, size, size, 3) into the trees' features (n, size · size · 3), both uint8."""
    return np.ascontiguousarray(images).reshape(len(images), -1)


def predict_probabilities(tree: Tree, images: np.ndarray, classes: int) -> np.ndarray:
    """Return probabilities (n, classes) for images (n, size, size, 3); 0 for a class never seen in training."""
    probabilities = np.zeros((len(images), classes))
    probabilities[:, tree.classes_] = tree.predict_proba(flatten_pixels(images))
    return probabilities


def save_tree(tree: Tree, path: str) -> None:
    """Write a fitted tree in skops's format, which loads without running code from the file."""
    skops.io.dump(tree, path)


def load_tree(path: str) -> Tree:
    """Read a tree that `save_tree` wrote; a file with other types in it is refused."""
    return skops.io.load(path, trusted=skops_types(path))


def skops_types(path: str) -> list[str]:
    """Return the types of a saved tree beyond skops's own list, all of them scikit-learn's or NumPy's.

    Raises
    ------
    ValueError
        The file holds a type from elsewhere.
    """
    types = skops.io.get_untrusted_types(file=path)
    foreign = [name for name in types if name.split(".")[0] not in ("sklearn", "numpy")]
    if foreign:
        raise ValueError(f"{path} holds types that no tree has: {', '.join(foreign)}")
    return types
