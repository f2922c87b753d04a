"""What a fit runs on, and the settings that make it repeat to the bit."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np

# The share of a GPU's free memory that images or features may take; the rest is for the network.
DEVICE_SHARE = 0.5


# glibc's names for what `mallopt` sets, and bytes: larger than what a step on a CPU asks for at once.
MALLOC = {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 2**28), "M_MMAP_THRESHOLD": (-3, 2**30)}


def keep_freed_memory() -> None:
    """Let the process keep what a step frees for the next one (benchmarks/README.md).

    glibc gives large blocks back to the system at once, which fills each with zeros again when it is next asked.
    With another C library nothing is changed.
    """
    if platform.libc_ver()[0] == "glibc":
        for parameter, size in MALLOC.values():
            ctypes.CDLL(None).mallopt(parameter, size)


def make_deterministic() -> None:
    """Ask the backend for operations that give the same bits every time (JAX's on a CPU always do)."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


class Replicas(keras.distribution.DataParallel):
    """The same network on every device, each with its part of a batch.

    A batch reaches every device whole and is divided by the first layer: the input of a step must divide evenly, which
    the last batch of an epoch rarely does, what a layer gives need not.
    """

    def get_data_layout(self, data_shape: tuple[int, ...]) -> Any:
        """Return that a batch lies on every device whole."""
        return keras.distribution.TensorLayout([None] * len(data_shape), self.device_mesh)

    def get_tensor_layout(self, path: str) -> Any:
        """Return that the images of what a layer gives are divided among the devices."""
        return keras.distribution.TensorLayout([self.batch_dim_name], self.device_mesh)


@contextmanager
def every_device() -> Iterator[int]:
    """Divide the batches of what is built and trained inside among all devices of JAX that this process sees.

    Yields how many there are. TensorFlow uses its first GPU alone: under its MirroredStrategy a batch with fewer images
    than devices ends the fit (docs/decisions/choices.md).
    """
    count = 1
    if keras.backend.backend() == "jax":
        import jax

        count = len(jax.devices())
    with Replicas().scope() if count > 1 else nullcontext():
        yield count


def accelerators() -> list[str]:
    """Return the names of the GPUs that the backend uses; empty on a CPU."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        return [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    if keras.backend.backend() == "jax":
        import jax

        return [device.device_kind for device in jax.devices() if device.platform != "cpu"]
    return []


def device_name() -> str:
    """Return the GPU's or the processor's name."""
    names = accelerators()
    if names:
        return ", ".join(names)
    cpuinfo = Path("/proc/cpuinfo")
    models = [
        line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
    ]
    return f"CPU {models[0]}" if models else f"CPU {platform.machine()}"


def place_on_device(inputs: np.ndarray) -> Any:
    """Return the array in the GPU's memory where there is one GPU with room, else as it is.

    On JAX only: Keras feeds TensorFlow from NumPy arrays, so that a copy to the device and back
    would come first.
    """
    if keras.backend.backend() != "jax" or len(accelerators()) != 1:
        return inputs
    import jax

    stats = jax.devices()[0].memory_stats()
    free = stats["bytes_limit"] - stats["bytes_in_use"]
    return jax.device_put(inputs) if inputs.nbytes <= DEVICE_SHARE * free else inputs
