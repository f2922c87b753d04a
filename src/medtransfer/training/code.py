"""The one list of the code that decides how a network's fit ends.

DVC refits a network when it changes (tests/test_pipeline.py compares dvc.yaml with this list), and an unfinished fit
resumes only if none of it has changed.
"""

import hashlib
from pathlib import Path

from medtransfer.core.files import sha256_of

# Files, or whole folders, below src/medtransfer.
DECIDES_FIT = (
    "core",
    "metrics",
    "models",
    "training",
    "pipeline/outputs.py",
    "pipeline/train.py",
    "pipeline/unfinished.py",
)
MESSAGES = "core/errors.py"  # in .dvcignore too: they decide no result


def code_digest() -> str:
    """Return the SHA-256 of the files in `DECIDES_FIT`, in hexadecimal."""
    package = Path(__file__).parent.parent
    found = [package / name for name in DECIDES_FIT]
    files = [file for path in found for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    decide = [sha256_of(file) for file in files if file != package / MESSAGES]
    return hashlib.sha256("".join(decide).encode()).hexdigest()
