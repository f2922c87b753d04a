#!/usr/bin/env bash
# Keras 3.15.1: RandomFlip("horizontal_and_vertical") draws one number per image and uses it for both flips.
# Expected: four orientations, each for a quarter of the images, as with two independent flips.
# Seen, with 1,000 images: unchanged 508, turned by 180 degrees 492, flipped one way only 0. Two layers, one per
# direction, give all four. An augmentation for skin lesions or histology is thus half of what its name says.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 numpy
KERAS_BACKEND=jax "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np

image = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
orientations = {
    "unchanged": image,
    "horizontal": image[:, :, ::-1],
    "vertical": image[:, ::-1],
    "both": image[:, ::-1, ::-1],
}


def count(*modes):
    found = np.repeat(image, 1000, axis=0)
    for seed, mode in enumerate(modes):
        found = np.asarray(keras.layers.RandomFlip(mode, seed=seed)(found, training=True))
    return {name: int((found == one).all(axis=(1, 2, 3)).sum()) for name, one in orientations.items()}


one, two = count("horizontal_and_vertical"), count("horizontal", "vertical")
print(keras.__version__, one, two)
assert one["horizontal"] == one["vertical"] == 0, "RandomFlip now flips each way by itself"
assert min(one["unchanged"], one["both"]) > 400
assert min(two.values()) > 200
PYTHON
