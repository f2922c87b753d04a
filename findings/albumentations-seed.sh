#!/usr/bin/env bash
# albumentations 2.0.8: in a seeded pipeline, transforms with the same probability happen to the same images.
# Expected: Compose(..., seed=1) makes the pipeline repeatable and leaves its steps independent: a flip, a gray image and an
# inverted image, each with a probability of one half, give eight kinds of image, an eighth each.
# Seen, with 800 images: all three steps or none, about 400 each, and nothing between. Each transform gets a generator with the
# seed itself, so that all draw the same number. Without a seed, all eight kinds appear.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet albumentations==2.0.8 albucore==0.0.24 numpy==2.4.6 scipy==1.17.1 \
    opencv-python-headless==5.0.0.93 pydantic==2.14.4
NO_ALBUMENTATIONS_UPDATE=1 "$folder/venv/bin/python" - <<'PYTHON'
from collections import Counter

import albumentations as A
import numpy as np

image = np.random.default_rng(0).integers(0, 100, (8, 8, 3), dtype=np.uint8)
image[:, :4, 0] += 50  # the left half is redder, which shows a flip


def count(seed):
    pipeline = A.Compose([A.HorizontalFlip(p=0.5), A.ToGray(p=0.5), A.InvertImg(p=0.5)], seed=seed)
    kinds = Counter()
    for _ in range(800):
        found = pipeline(image=image)["image"].astype(int)
        gray, inverted = np.ptp(found, axis=2).max() == 0, found.mean() > 127
        red = (255 - found if inverted else found)[..., 0]
        kinds["flipped" * bool(red[:, 4:].mean() > red[:, :4].mean()), "gray" * bool(gray), "inverted" * bool(inverted)] += 1
    return kinds


seeded, unseeded = count(1), count(None)
print(A.__version__, "seeded:", dict(seeded), "unseeded:", dict(unseeded))
assert len(unseeded) == 8 and min(unseeded.values()) > 50
assert set(seeded) == {("flipped", "gray", "inverted"), ("", "", "")}, "a seeded pipeline now draws for each step"
PYTHON
