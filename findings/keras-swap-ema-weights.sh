#!/usr/bin/env bash
# Keras 3.15.1 on TensorFlow 2.21.0: scoring the validation images with SwapEMAWeights changes the weights in training.
# Expected: the callback puts the moving average into the network, scores it, and puts the trained weights back.
# Seen: it swaps by adding and subtracting, so about half of the float32 weights come back off by their last bit. A fit that
# validates every epoch differs from one that does not. On JAX 0.10.2, all weights come back exactly.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 tensorflow-cpu==2.21.0 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/swap.py" <<'PYTHON'
import keras
import numpy as np

keras.utils.set_random_seed(0)
network = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64), keras.layers.Dense(3)])
network.compile(optimizer=keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9), loss="mse")
inputs = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
weights = {}


class Keep(keras.callbacks.Callback):
    """Listed before the swap, it sees the trained weights; after it, those that came back."""

    def __init__(self, name, hook):
        super().__init__()
        setattr(self, hook, lambda *_, **__: weights.__setitem__(name, network.get_weights()))


callbacks = [Keep("trained", "on_test_begin"), keras.callbacks.SwapEMAWeights(), Keep("back", "on_test_end")]
targets = np.zeros((64, 3), np.float32)
network.fit(inputs, targets, validation_data=(inputs, targets), epochs=1, verbose=0, callbacks=callbacks)
share = np.mean(np.concatenate([(a != b).ravel() for a, b in zip(weights["trained"], weights["back"])]))
print(keras.__version__, keras.backend.backend(), f"share of weights that changed: {share:.3f}")
assert share == 0 if keras.backend.backend() == "jax" else 0.2 < share < 0.8
PYTHON
for backend in tensorflow jax; do
    KERAS_BACKEND=$backend TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" "$folder/swap.py"
done
