#!/usr/bin/env bash
# nibabel 5.4.2: a label map that is read with get_fdata, saved again with its own header and cut to whole numbers loses classes.
# Expected: labels 0 to 7 in an int16 file come back as 0 to 7, since every value is a whole number that int16 holds.
# Seen: the float array is stretched over all of int16 with a scale factor, and comes back as 0.99998, 1.99997, 2.99995, 4.00005
# and so on. After astype(int), classes 1, 2, 3 and 7 are lower by one, which leaves classes 3 and 7 empty. No warning.
# np.asarray(image.dataobj) instead of get_fdata keeps whole numbers, which are saved as they are.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nibabel==5.4.2 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import nibabel
import numpy as np

folder = sys.argv[1]
labels = np.repeat(np.arange(8, dtype=np.int16), 8).reshape(4, 4, 4)
nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), f"{folder}/labels.nii.gz")


def save_again(read):
    image = nibabel.load(f"{folder}/labels.nii.gz")
    nibabel.save(nibabel.Nifti1Image(read(image), image.affine, image.header), f"{folder}/again.nii.gz")
    found = nibabel.load(f"{folder}/again.nii.gz")
    print(nibabel.__version__, found.get_data_dtype(), np.unique(found.get_fdata()).round(5).tolist())
    return np.bincount(found.get_fdata().astype(int).ravel(), minlength=8).tolist()


floats, whole = save_again(lambda image: image.get_fdata()), save_again(lambda image: np.asarray(image.dataobj))
print("voxels per class after astype(int):", floats, "without floats:", whole)
assert whole == [8] * 8
assert 0 in floats, "whole numbers now come back as whole numbers"
PYTHON
