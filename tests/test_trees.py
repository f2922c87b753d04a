"""The baselines: features, probabilities, and files that run no code."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import skops.io

from medtransfer.core.errors import UserError
from medtransfer.core.params import TREES, Params
from medtransfer.trees.classifiers import build_tree, flatten_pixels, load_tree, predict_probabilities


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
    skops.io.dump(tree, tmp_path / "tree.skops")
    assert (predict_probabilities(load_tree(str(tmp_path / "tree.skops")), images, 3) == probabilities).all()


def test_a_file_with_other_types_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "other.skops")
    skops.io.dump({"path": Path()}, path)
    with pytest.raises(UserError, match=r"other\.skops: not a tree saved by this project \(.*PosixPath"):
        load_tree(path)
    skops.io.dump({"a": 1}, path)
    with pytest.raises(UserError, match="it contains a dict"):
        load_tree(path)
    Path(path).write_bytes(b"no archive")
    with pytest.raises(UserError, match="not a tree saved by this project"):
        load_tree(path)


@pytest.mark.parametrize("function", ["numpy.testing._private.utils.runstring", "builtins.exec"])
def test_code_in_a_tree_is_never_run(tmp_path: Path, function: str) -> None:
    """A file whose schema demands a call, also of a function in a package that every tree needs."""
    path, canary = tmp_path / "evil.skops", tmp_path / "canary"
    skops.io.dump([f"open({str(canary)!r}, 'w')", {}], path)
    with zipfile.ZipFile(path) as archive:
        schema = json.loads(archive.read("schema.json"))
    module, _, name = function.rpartition(".")
    arguments = {key: schema.pop(key) for key in ("__class__", "__module__", "__loader__", "content", "__id__")}
    arguments.update({"__class__": "tuple", "__loader__": "TupleNode"})
    call = {"__class__": name, "__module__": module, "__loader__": "ConstructorFromReduceNode", "content": arguments}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schema.json", json.dumps({**schema, **call}))
    with pytest.raises(UserError, match=rf"evil\.skops: not a tree .*{function}"):
        load_tree(str(path))
    assert not canary.exists()
    skops.io.load(path, trusted=[function])  # the file is a working attack
    assert canary.exists()
