"""MLflow: a run ends as it really ended, and a logged model answers raw pixels as the network did."""

from pathlib import Path

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest

from medtransfer import tracking
from medtransfer.models import vgg16
from medtransfer.models.trees import build_tree, flatten_pixels, save_tree, skops_types
from medtransfer.params import Params, TrainParams


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking.connect()
    return mlflow.MlflowClient()


@pytest.mark.parametrize(
    ("ending", "status"),
    [(None, "FINISHED"), (RuntimeError, "FAILED"), (SystemExit, "FAILED"), (KeyboardInterrupt, "KILLED")],
)
def test_the_status_is_the_truth(store: mlflow.MlflowClient, ending: type[BaseException] | None, status: str) -> None:
    seen = []

    def work() -> None:
        with tracking.run("ham10000", "x-seed0", {"a": {"b": 1}}, {"seed": 0}) as run_id:
            seen.append(run_id)
            tracking.log_epoch(1, {"epoch": 1, "loss": 0.5})
            tracking.log_epoch(2, {"epoch": 2, "loss": 0.25})
            if ending:
                raise ending

    if ending:
        with pytest.raises(ending):
            work()
    else:
        work()
    run = store.get_run(seen[0])
    assert run.info.status == status
    assert run.info.run_name == "x-seed0"
    assert run.data.params == {"a.b": "1"}
    assert [(point.step, point.value) for point in store.get_metric_history(seen[0], "loss")] == [(1, 0.5), (2, 0.25)]
    assert mlflow.active_run() is None


def test_a_network_answers_raw_pixels_as_before(store: mlflow.MlflowClient, tiny: TrainParams) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    model = vgg16.build_vgg16(32, 3, tiny, seed=0)
    expected = model.predict(images, verbose=0)
    with tracking.run("ham10000", "x", {}, {}) as run_id:
        tracking.log_keras_model(model, images[:1], expected[:1], keras.backend.backend())
    loaded = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    assert (loaded.predict(images) == expected).all()
    assert loaded.metadata.signature.inputs.inputs[0].type == np.uint8
    assert np.asarray(loaded.input_example).shape == (1, 32, 32, 3)


def test_a_tree_answers_raw_pixels_as_before(store: mlflow.MlflowClient, params: Params, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = flatten_pixels(rng.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8))
    tree = build_tree(params.trees.random_forest, 0).fit(features, np.arange(30) % 3)
    save_tree(tree, str(tmp_path / "t.skops"))
    expected = tree.predict_proba(features)
    with tracking.run("ham10000", "t", {}, {}) as run_id:
        tracking.log_sklearn_model(tree, features[:1], expected[:1], skops_types(str(tmp_path / "t.skops")))
    loaded = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    assert (loaded.predict(features) == expected).all()
    pickles = [path for path in (tmp_path / "mlruns").rglob("*") if path.suffix in (".pkl", ".pickle", ".joblib")]
    assert pickles == []


def test_the_data_are_the_runs_input(store: mlflow.MlflowClient) -> None:
    samples = pd.DataFrame({"id": ["a"], "label": ["nv"], "split": ["test"], "sha256": ["00"]})
    with tracking.run("ham10000", "x", {}, {}) as run_id:
        tracking.log_data(samples, "ham10000", {"data_source": "here", "data_version": "1"})
    (entry,) = store.get_run(run_id).inputs.dataset_inputs
    assert entry.dataset.name == "ham10000"
    assert '"data_version": "1"' in entry.dataset.source


def test_files_are_added_to_a_known_run_and_an_unknown_one_is_said(store: mlflow.MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "f.txt").touch()
    with tracking.run("ham10000", "x", {}, {}) as run_id:
        pass
    assert tracking.attach(run_id, [tmp_path / "f.txt"]) is True
    assert [artifact.path for artifact in store.list_artifacts(run_id)] == ["f.txt"]
    assert tracking.attach("0" * 32, [tmp_path / "f.txt"]) is False


def test_the_data_version_is_dvcs(tmp_path: Path) -> None:
    (tmp_path / "data.dvc").write_text("outs:\n- md5: abc.dir\n  path: data\n")
    assert tracking.data_version(tmp_path / "data.dvc") == "abc.dir"
    assert tracking.data_version(tmp_path / "none.dvc") == "unknown"
