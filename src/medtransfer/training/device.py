"""The device of a fit, and the settings that make its results reproducible bit for bit."""

import ctypes
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
import numpy as np

from medtransfer.core.errors import UserError
from medtransfer.core.files import user_cache
from medtransfer.core.hardware import HIDDEN, REQUIRE_GPU, VISIBLE, backend_has_cuda, installed_gpus, processor_facts

log = logging.getLogger(__name__)

# The share of a GPU's free memory that images or features may take; the rest is for the network.
DEVICE_SHARE = 0.5
# Parameters of glibc's `mallopt` and bytes, larger than any block that a step on a CPU allocates.
MALLOC = {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 2**28), "M_MMAP_THRESHOLD": (-3, 2**30)}


def prepare_backend() -> None:
    """Make Keras quiet and deterministic, and check that it uses the GPU if there is one."""
    keras.config.disable_interactive_logging()
    make_deterministic()
    keep_freed_memory()
    keep_compiled_programs()
    check_gpu()


def check_gpu() -> None:
    """Warn if there is a GPU, but the backend computes on the CPU; `precision: auto` then becomes that of the CPU.

    If MEDTRANSFER_REQUIRE_GPU is set, computing on the CPU is a UserError.
    """
    visible, installed, required = os.environ.get(VISIBLE), installed_gpus(), os.environ.get(REQUIRE_GPU)
    hidden = visible in HIDDEN
    if accelerators() or not (required or (not hidden and (visible or installed))):
        return
    if hidden:
        cause = f"{VISIBLE} is {visible!r}"
    elif not installed:
        cause = "NVIDIA's driver shows none (see `nvidia-smi`)"
    elif not backend_has_cuda():
        extra = "jax-gpu" if keras.backend.backend() == "jax" else "gpu"
        cause = f"its CUDA libraries are not installed (`pip install --editable '.[{extra}]'`)"
    else:
        cause = f"it cannot use {VISIBLE}={visible or 'all'}; run again with TF_CPP_MIN_LOG_LEVEL=0 to see why"
    problem = f"{keras.backend.backend()} computes on the CPU instead of a GPU: {cause}"
    if required:
        raise UserError(f"{problem}; to compute on the CPU, leave out --require-gpu and unset {REQUIRE_GPU}")
    log.warning("%s", problem)
    os.environ[VISIBLE] = HIDDEN[-1]


def keep_compiled_programs() -> None:
    """Let JAX keep compiled programs in the user's cache, by version and device, for the next process."""
    if keras.backend.backend() == "jax":
        import jax

        if not jax.config.jax_compilation_cache_dir:
            jax.config.update("jax_compilation_cache_dir", str(user_cache() / "jax"))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # a step has many small programs


def keep_freed_memory() -> None:
    """Keep the memory that a step frees for the next step (benchmarks/README.md).

    glibc returns large blocks to the system at once, which must then zero them again. With another C library nothing
    changes.
    """
    if platform.libc_ver()[0] == "glibc":
        for parameter, size in MALLOC.values():
            ctypes.CDLL(None).mallopt(parameter, size)


def make_deterministic() -> None:
    """Make TensorFlow's operations deterministic (JAX's on a CPU always are)."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


class Replicas(keras.distribution.DataParallel):
    """The same network on every device, each with its part of a batch.

    Every device receives the whole batch, and the first layer divides it: the input of a step would have to divide
    evenly, which the last batch of an epoch rarely does, but a layer's output need not.
    """

    def get_data_layout(self, data_shape: tuple[int, ...]) -> Any:
        """Return the layout of a batch: whole on every device."""
        return keras.distribution.TensorLayout([None] * len(data_shape), self.device_mesh)

    def get_tensor_layout(self, path: str) -> Any:
        """Return the layout of a layer's output: its images are divided among the devices."""
        return keras.distribution.TensorLayout([self.batch_dim_name], self.device_mesh)


@contextmanager
def every_device() -> Iterator[int]:
    """Train on all devices that JAX sees, and yield their number.

    TensorFlow uses only its first GPU: under its MirroredStrategy a batch with fewer images than devices ends the fit
    (docs/decisions/choices.md).
    """
    count = 1
    if keras.backend.backend() == "jax":
        import jax

        count = len(jax.devices())
    with Replicas().scope() if count > 1 else nullcontext():
        yield count


def accelerators() -> list[str]:
    """Return the names of the backend's GPUs; empty on a CPU."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        return [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    import jax

    try:
        found = jax.devices()
    except (RuntimeError, AssertionError):  # the second is JAX 0.10's for `cuda` without a GPU
        if not (platforms := os.environ.get("JAX_PLATFORMS")):
            raise
        raise UserError(
            f"JAX_PLATFORMS: found {platforms!r}, which JAX cannot use here; unset it to use the devices that are there"
        ) from None
    return [device.device_kind for device in found if device.platform != "cpu"]


def device_name() -> str:
    """Return the GPU's or the processor's name."""
    names = accelerators()
    return ", ".join(names) or f"CPU {processor_facts().get('model name', platform.machine())}"


def place_on_device(inputs: np.ndarray) -> Any:
    """Return the array in the GPU's memory if it fits, else unchanged.

    Only with JAX: Keras feeds TensorFlow from NumPy arrays, so it would copy the array back first.
    """
    if not fits_on_device(inputs.nbytes):
        return inputs
    import jax

    return jax.device_put(inputs)


def fits_on_device(size: int) -> bool:
    """Return whether the backend is JAX with exactly one GPU, which has room for `size` bytes."""
    if keras.backend.backend() != "jax" or len(accelerators()) != 1:
        return False
    import jax

    stats = jax.devices()[0].memory_stats()
    return bool(size <= DEVICE_SHARE * (stats["bytes_limit"] - stats["bytes_in_use"]))
