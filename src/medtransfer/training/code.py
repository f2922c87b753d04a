"""The one list of the code that decides how a network's fit ends.

DVC refits a network when one of these files changes (tests/test_pipeline.py compares dvc.yaml with this list), and an
unfinished fit resumes only if none of them has changed.
"""

import hashlib
from pathlib import Path

from medtransfer.files import sha256_of

DECIDES_FIT = (
    "evaluation/metrics.py",
    "evaluation/predictions.py",
    "files.py",
    "hardware.py",
    "models/convolution.py",
    "models/settings.py",
    "models/vgg16.py",
    "models/weights.py",
    "params.py",
    "stages/inputs.py",
    "stages/integrity.py",
    "stages/layout.py",
    "stages/results.py",
    "stages/train.py",
    "stages/unfinished.py",
    "training/batches.py",
    "training/code.py",
    "training/device.py",
    "training/features.py",
    "training/fit.py",
    "training/gradients.py",
    "training/prefix.py",
    "training/snapshots.py",
    "versions.py",
)


def code_digest() -> str:
    """Return the SHA-256 of all files in `DECIDES_FIT`, in hexadecimal."""
    package = Path(__file__).parent.parent
    return hashlib.sha256("".join(sha256_of(package / name) for name in DECIDES_FIT).encode()).hexdigest()
