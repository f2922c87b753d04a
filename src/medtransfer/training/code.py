"""The list of the code that decides the result of a network's fit.

DVC refits a network when it changes (tests/test_pipeline.py compares dvc.yaml with this list), and an interrupted
fit resumes only if none of it has changed.
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
    "pipeline/fit_id.py",
)
MESSAGES = "core/errors.py"  # also in .dvcignore: messages change no result


def code_digest() -> str:
    """Return the SHA-256 of the files in `DECIDES_FIT`, in hexadecimal."""
    package = Path(__file__).parent.parent
    paths = [package / name for name in DECIDES_FIT]
    files = [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    digests = [sha256_of(file) for file in files if file != package / MESSAGES]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
