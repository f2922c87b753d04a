#!/usr/bin/env bash
# Keras 3.15.1 on TensorFlow 2.21.0: keras.random.beta with small parameters, as in MixUp, returns exactly one half.
# Expected, from Beta(x, x) with x = 0.01: nearly every draw is close to 0 or 1, and 4% lie between .01 and .99, as with
# NumPy and with Keras on JAX.
# Seen, with 20,000 draws in float32: 18% are exactly .5 on TensorFlow, 0% on JAX; with x = 0.001, 85% and 0%. Each share
# is computed from two gamma draws, and both underflow in float32. From x = 0.1 on, the backends agree. So a setting that
# should almost switch MixUp off gives half-and-half images.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 tensorflow==2.21.0 jax==0.10.2 jaxlib==0.10.2 numpy
cat > "$folder/beta.py" <<'PYTHON'
import keras
import numpy as np

backend = keras.backend.backend()
halves = {}
for x in (0.1, 0.01, 0.001):
    share = np.asarray(keras.random.beta((20_000,), x, x, dtype="float32", seed=1))
    halves[x] = (share == 0.5).mean()
    between = ((share > 0.01) & (share < 0.99)).mean()
    true = np.random.default_rng(1).beta(x, x, 20_000)
    print(f"{backend}, x = {x}: exactly .5 {halves[x]:.3f}, from .01 to .99 {between:.3f}", end=", ")
    print(f"NumPy {((true > 0.01) & (true < 0.99)).mean():.3f}")
assert halves[0.1] == 0
if backend == "jax":
    assert not any(halves.values())
else:
    assert halves[0.01] > 0.15 and halves[0.001] > 0.8, "small parameters no longer give one half"
PYTHON
for backend in jax tensorflow; do
    KERAS_BACKEND=$backend TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" "$folder/beta.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
done
