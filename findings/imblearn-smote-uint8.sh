#!/usr/bin/env bash
# imbalanced-learn 0.14.2: SMOTE on 8-bit pixels makes pictures that lie far outside their class.
# Expected: a new image lies between two images of its class, rounded down to whole gray values, as it does for int16.
# Seen: the difference of two images is taken in uint8, where 10 - 20 is 246. In a class whose pixels are all between 100 and
# 119, new images have pixels from 0 to 255, and 44% of their pixels leave the range of the class. No warning; the
# same values as float32 or int16 stay in the range.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet imbalanced-learn==0.14.2 scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import imblearn
import numpy as np
from imblearn.over_sampling import SMOTE

random = np.random.default_rng(0)
common = random.integers(0, 256, (100, 64))
rare = random.integers(100, 120, (10, 64))
pixels, labels = np.concatenate([common, rare]), np.repeat([0, 1], [100, 10])


def outside(kind):
    images, _ = SMOTE(random_state=0, k_neighbors=5).fit_resample(pixels.astype(kind), labels)
    new = images[len(pixels) :]
    print(imblearn.__version__, images.dtype, len(new), "new images, pixels from", new.min(), "to", new.max())
    return np.mean((new < 100) | (new > 119))


share = outside(np.uint8)
print(f"share of new uint8 pixels outside the class: {share:.2f}")
assert outside(np.float32) == outside(np.int16) == 0
assert share > 0.25, "SMOTE now takes the difference of 8-bit pixels with a sign"
PYTHON
