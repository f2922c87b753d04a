#!/usr/bin/env bash
# JAX 0.10.2 on a machine without an NVIDIA GPU: JAX_PLATFORMS=cuda ends in an AssertionError without a message.
# Expected: the RuntimeError that JAX_PLATFORMS=rocm raises, 'Unable to initialize backend', with its advice.
# Seen: xla_bridge.backends() skips `cuda` where it finds no NVIDIA device file, whether the CUDA plugin is installed or not, and
# then asserts that some backend is the default one. Code that catches RuntimeError to fall back to the CPU does not catch it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
ask() {
    JAX_PLATFORMS=$1 "$folder/venv/bin/python" - <<'PYTHON'
import os

import jax

try:
    jax.devices()
except Exception as error:
    print(jax.__version__, os.environ["JAX_PLATFORMS"], type(error).__name__, repr(str(error))[:60])
PYTHON
}
ask rocm | tee "$folder/rocm"
ask cuda | tee "$folder/cuda"
grep -q "rocm RuntimeError .Unable to initialize backend 'rocm'" "$folder/rocm"
grep -q "cuda AssertionError ''" "$folder/cuda"
