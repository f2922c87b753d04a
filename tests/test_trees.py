"""The baselines: features, probabilities, and files that run no code."""

from pathlib import Path

import numpy as np
import pytest
import skops.io

from medtransfer.models.trees import build_tree, flatten_pixels, load_tree, predict_probabilities, save_tree
from medtransfer.params import TREES, Params


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2], 20)  # class 1 has no training image
    return (rng.integers(0, 100, (40, 8, 8, 3)) + 60 * labels[:, None, None, None]).astype(np.uint8), labels


@pytest.mark.parametrize("name", TREES)
def test_settings_reach_scikit_learn_and_the_seed_decides(
    params: Params, data: tuple[np.ndarray, np.ndarray], name: str, tmp_path: Path
) -> None:
    images, labels = data
    settings = getattr(params.trees, name)
    tree = build_tree(settings, seed=3).fit(flatten_pixels(images), labels)
    assert {key: tree.get_params()[key] for key in settings.model_dump()} == settings.model_dump()
    same = build_tree(settings, seed=3).fit(flatten_pixels(images), labels)
    probabilities = predict_probabilities(tree, images, 3)
    assert probabilities.shape == (40, 3)
    assert (probabilities[:, 1] == 0).all()
    assert (probabilities == predict_probabilities(same, images, 3)).all()
    save_tree(tree, str(tmp_path / "tree.skops"))
    assert (predict_probabilities(load_tree(str(tmp_path / "tree.skops")), images, 3) == probabilities).all()


def test_a_file_with_foreign_types_is_refused(tmp_path: Path) -> None:
    skops.io.dump({"path": Path()}, tmp_path / "other.skops")
    with pytest.raises(ValueError, match="types that no tree has"):
        load_tree(str(tmp_path / "other.skops"))
