#!/usr/bin/env bash
# SimpleITK 2.5.7: an 8-bit image times 0.5 is black, and times 1.9 is unchanged.
# Expected: half of each gray value, as whole numbers or as floats, since `image / 2` gives floats.
# Seen: the factor becomes a whole number of the image's own type first: 0.5 is 0, 1.9 is 1. So [10, 100, 200] * 0.5 is
# [0, 0, 0], and + 0.9 adds nothing, while / 2 gives [5.0, 50.0, 100.0]. 16-bit images, as of X-rays and CT, are treated alike.
# No warning. An augmentation that varies the brightness by 10% either changes nothing or makes the image black.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet SimpleITK==2.5.7 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import SimpleITK as sitk

values = [10, 100, 200]
for kind in (np.uint8, np.uint16, np.int16):
    image = sitk.GetImageFromArray(np.array([values], kind))
    found = {
        "* 0.5": image * 0.5,
        "* 1.9": image * 1.9,
        "+ 0.9": image + 0.9,
        "/ 2": image / 2,
        "float * 0.5": sitk.Cast(image, sitk.sitkFloat32) * 0.5,
    }
    found = {name: sitk.GetArrayFromImage(result)[0].tolist() for name, result in found.items()}
    print(sitk.Version.VersionString(), kind.__name__, found)
    assert found["* 0.5"] == [0, 0, 0], "a factor below one is no longer cut to 0"
    assert found["* 1.9"] == found["+ 0.9"] == values
    assert found["/ 2"] == found["float * 0.5"] == [5, 50, 100]
PYTHON
