"""What this machine computes with, asked without loading Keras or its backends."""

import os
from pathlib import Path

import pynvml

CPUINFO = Path("/proc/cpuinfo")
# Processors that multiply in bfloat16; all others emulate it, slower than float32.
CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
GPU_CAPABILITY = (8, 0)  # NVIDIA's Ampere


def gpu_capabilities() -> list[tuple[int, int]]:
    """Return the CUDA compute capability of each NVIDIA GPU; empty where there is none."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)) for handle in handles]
    finally:
        pynvml.nvmlShutdown()


def native_precision() -> str:
    """Return `mixed_bfloat16` where the GPUs, or else the processor, compute in bfloat16, and `float32` elsewhere.

    JAX has no fast bfloat16 on a processor.
    """
    gpus = gpu_capabilities()
    if gpus:
        native = min(gpus) >= GPU_CAPABILITY
    else:
        native = os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow" and not CPU_FLAGS.isdisjoint(
            _cpu_flags()
        )
    return "mixed_bfloat16" if native else "float32"


def _cpu_flags() -> set[str]:
    """Return what the first processor can do."""
    text = CPUINFO.read_text() if CPUINFO.exists() else ""
    return {flag for line in text.splitlines() if line.startswith("flags") for flag in line.partition(":")[2].split()}
