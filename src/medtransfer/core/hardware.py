"""The machine's GPUs and processor, found without loading Keras or its backends."""

import ctypes.util
import importlib.metadata
import os
from contextlib import suppress
from pathlib import Path

import pynvml

CPUINFO = Path("/proc/cpuinfo")
INTEL = "GenuineIntel"
GPU_CAPABILITY = (8, 0)  # NVIDIA's Ampere
VISIBLE, HIDDEN = "CUDA_VISIBLE_DEVICES", ("", "-1")
REQUIRE_GPU = "MEDTRANSFER_REQUIRE_GPU"
# For fits that share a GPU: allocate memory as needed, instead of most of it at the start.
SHARED_GPU = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def gpu_memory() -> int:
    """Return the memory in bytes of the smallest GPU that NVIDIA's driver reports."""
    pynvml.nvmlInit()
    handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
    return min(pynvml.nvmlDeviceGetMemoryInfo(handle).total for handle in handles)


def gpu_capabilities() -> list[tuple[int, int]]:
    """Return the CUDA compute capability of each NVIDIA GPU; empty if the backend can use none."""
    gpus = [] if os.environ.get(VISIBLE) in HIDDEN else installed_gpus()
    return gpus if gpus and backend_has_cuda() else []  # the search for CUDA takes 0.2 s


def installed_gpus() -> list[tuple[int, int]]:
    """Return the CUDA compute capability of each GPU that NVIDIA's driver shows, without those that it has lost."""
    found = []
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            with suppress(pynvml.NVMLError):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                found.append(tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)))
        pynvml.nvmlShutdown()
    return found


def backend_has_cuda() -> bool:
    """Return whether the backend finds NVIDIA's libraries, installed by pip or, in NVIDIA's images, with the system."""
    needed = "jax-cuda" if os.environ.get("KERAS_BACKEND") == "jax" else "nvidia-cudnn"
    packages = (found.metadata["Name"] or "" for found in importlib.metadata.distributions())
    return any(name.lower().startswith(needed) for name in packages) or ctypes.util.find_library("cudnn") is not None


def native_precision() -> str:
    """Return `mixed_bfloat16` if the GPUs, or else the processor, are fast in bfloat16; otherwise `float32`."""
    gpus = gpu_capabilities()
    native = min(gpus) >= GPU_CAPABILITY if gpus else _processor_has_fast_bfloat16()
    return "mixed_bfloat16" if native else "float32"


def processor_has_slow_bfloat16() -> bool:
    """Return whether there is no GPU and the processor is faster in float32."""
    return not gpu_capabilities() and not _processor_has_fast_bfloat16()


def _processor_has_fast_bfloat16() -> bool:
    """Return whether the processor multiplies in bfloat16 faster than in float32.

    Most processors emulate it, and JAX is never faster. With avx512_bf16 but without AMX, as in some virtual machines,
    Intel's are slower than in float32; AMD's take half the time (benchmarks/README.md).
    """
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        return False
    facts = processor_facts()
    flags = facts.get("flags", "").split()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and facts.get("vendor_id") != INTEL)


def processor_facts() -> dict[str, str]:
    """Return what Linux says about the processor, by name; empty on another system."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
