#!/usr/bin/env bash
# MONAI 1.6.1: RandShiftIntensity on an 8-bit image turns its brightest pixels nearly black.
# Expected: floats, as RandScaleIntensity and RandStdShiftIntensity return for the same image, or values that stop at 255.
# Seen: the sum is cast back to 8 bits, where 250 + 20 is 14 and 10 - 20 is 246. An offset below 1 does nothing. No warning.
# Images from LoadImage are floats; those that are cast to uint8 to save memory, or come from another reader, are not.
# The installation takes about 7 GB for a while, most of it PyTorch with its libraries for GPUs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-cache-dir monai==1.6.1 torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import monai
import torch
from monai import transforms

image = torch.tensor([[[0, 10, 128, 250, 255]]], dtype=torch.uint8)
steps = {
    "shift by 20": transforms.RandShiftIntensity((20, 20), prob=1.0),
    "shift by -20": transforms.RandShiftIntensity((-20, -20), prob=1.0),
    "shift by 0.9": transforms.RandShiftIntensity((0.9, 0.9), prob=1.0),
    "times 1.5": transforms.RandScaleIntensity((0.5, 0.5), prob=1.0),
}
found = {name: step(image).as_tensor().reshape(-1) for name, step in steps.items()}
print(monai.__version__, {name: (str(values.dtype), values.tolist()) for name, values in found.items()})
assert found["times 1.5"].dtype == torch.float32 and found["times 1.5"].tolist() == [0, 15, 192, 375, 382.5]
assert found["shift by 20"].tolist() == [20, 30, 148, 14, 19], "a shift no longer wraps around"
assert found["shift by -20"].tolist() == [236, 246, 108, 230, 235]
assert found["shift by 0.9"].tolist() == image.reshape(-1).tolist()
PYTHON
