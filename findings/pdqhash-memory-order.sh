#!/usr/bin/env bash
# pdqhash 0.2.8: the perceptual hash of a turned image depends on how NumPy keeps it in memory.
# Expected: np.rot90(image) and a copy of it are the same picture and have the same hash.
# Seen: of 256 bits, 118 differ, as many as between two unrelated pictures; a pair counts as duplicates up to about 31. The same
# holds for a transposed image and for np.asfortranarray(image), which is equal to image in every pixel. Crops, mirrored views
# and channels in reverse are hashed rightly. No warning, and the quality is 100. np.ascontiguousarray before each hash helps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pdqhash==0.2.8 numpy==2.4.6 pillow==13.0.0
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import numpy as np
import pdqhash
from PIL import Image

noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
image = np.asarray(Image.fromarray(noise).resize((256, 256)))
views = {
    "turned": np.rot90(image),
    "transposed": image.transpose(1, 0, 2),
    "column order": np.asfortranarray(image),
    "mirrored": image[:, ::-1],
    "cropped": image[10:200, 20:210],
    "reversed channels": image[..., ::-1],
}
differ = {}
for name, view in views.items():
    (one, quality), (two, _) = pdqhash.compute(view), pdqhash.compute(np.ascontiguousarray(view))
    differ[name] = int((one != two).sum())
    assert quality == 100
print(version("pdqhash"), "bits of 256 that differ between a view and its copy:", differ)
assert differ["mirrored"] == differ["cropped"] == differ["reversed channels"] == 0
assert min(differ["turned"], differ["transposed"], differ["column order"]) > 60, "pdqhash now heeds the order in memory"
PYTHON
