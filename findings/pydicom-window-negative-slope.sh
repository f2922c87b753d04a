#!/usr/bin/env bash
# pydicom 3.0.2: where the rescale slope is negative, as in some CR X-rays, a window inverts the picture.
# Expected: the lowest value inside the window becomes the lowest output and the highest one the highest, as in PS3.3
# C.11.2.1.2.1, where y_min is the minimum output value. So a window as wide as the range changes nothing but the scale.
# Seen: apply_voi_lut computes y_min and y_max as (stored limit x slope + intercept) without ordering them. With slope -1 and
# intercept 4095, y_min is 4095 and y_max 0: rescaled values of 0, 1024, 3071, 4095 become 4095, 3071, 1024, 0. Without a window,
# the values stay as they are, so files of one series with and without a window have opposite gray scales. No warning.
# With a positive slope the order is kept, although the intercept makes all values negative.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pydicom==3.0.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

stored = np.array([[0, 1024, 3071, 4095]], np.uint16)


def show(slope: float, intercept: float, **window: float) -> tuple[list[float], list[float]]:
    data = Dataset()
    data.PhotometricInterpretation, data.BitsStored, data.PixelRepresentation = "MONOCHROME2", 12, 0
    data.RescaleSlope, data.RescaleIntercept = slope, intercept
    for name, value in window.items():
        setattr(data, name, value)
    rescaled = apply_modality_lut(stored, data)
    return rescaled.ravel().tolist(), apply_voi_lut(rescaled, data).round().ravel().tolist()


full = {"WindowCenter": 2048, "WindowWidth": 4096}
rescaled, shown = show(-1, 4095, **full)
print(pydicom.__version__, "slope -1:", rescaled, "->", shown)
assert rescaled == [4095, 3071, 1024, 0]
assert shown == [0, 1024, 3071, 4095], "a window no longer inverts the picture"
assert show(-1, 4095)[1] == rescaled, "without a window, nothing changes"
rescaled, shown = show(1, -5000, WindowCenter=-2952, WindowWidth=4096)
print("slope 1:", rescaled, "->", shown)
assert shown == rescaled
PYTHON
