"""Images that are the same picture: resized, compressed again, or flipped.

Perceptual hashes find the candidates, the pixels decide. lesion_id is known to miss some duplicate
pairs of HAM10000 (Abhishek et al., Investigating the Quality of DermaMNIST and Fitzpatrick17k
Dermatological Image Datasets, 2024).
"""

from collections.abc import Callable

import imagehash
import numpy as np
import pandas as pd
from PIL import Image

HASH_SIDE = 16  # a hash has its square in bits
MAX_BITS = 48  # of 256 that may differ in a candidate: changed copies differ in up to 40, other pictures in 90 and more
SIDE = 32  # pixels that decide
MIN_CORRELATION = 0.94  # changed copies reach 0.95, other pictures stay below
FLIPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda pixels: pixels,
    "left-right": lambda pixels: pixels[:, ::-1],
    "top-bottom": lambda pixels: pixels[::-1],
    "both": lambda pixels: pixels[::-1, ::-1],
}


def thumbnail(image: Image.Image) -> np.ndarray:
    """Return what pictures are compared by: grey pixels (SIDE, SIDE), uint8."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


def find_near_duplicates(thumbnails: np.ndarray, samples: pd.DataFrame) -> pd.DataFrame:
    """Return each test image that is the same picture as an image of training or validation.

    Parameters
    ----------
    thumbnails : ndarray of shape (n, SIDE, SIDE), uint8
    samples : DataFrame
        With the columns id, label, group, split and sha256, a row a thumbnail.

    Returns
    -------
    DataFrame
        A row a pair: id and label of the test image, the other image's id, label, split and group,
        `flip`, whether the files are equal (`exact`), whether the groups are (`same_group`).
    """
    tested, others = (
        np.flatnonzero(mask) for mask in (samples.split == "test", samples.split.isin(("train", "validation")))
    )
    hashes = np.stack([_hash(thumbnails[row]) for row in others])
    normal = np.stack([_normalise(thumbnails[row]) for row in others])
    found = []
    for row in tested:
        for flip, turn in FLIPS.items():
            turned = turn(thumbnails[row])
            near = np.flatnonzero(np.bitwise_count(hashes ^ _hash(turned)).sum(axis=1) <= MAX_BITS)
            same = near[normal[near] @ _normalise(turned) >= MIN_CORRELATION]
            found += [(int(row), int(others[position]), flip) for position in same]
    return _describe(found, samples)


def _hash(pixels: np.ndarray) -> np.ndarray:
    """Return the perceptual hash as HASH_SIDE² bits in (4,), uint64."""
    bits = imagehash.phash(Image.fromarray(pixels), hash_size=HASH_SIDE, highfreq_factor=SIDE // HASH_SIDE).hash
    return np.packbits(np.asarray(bits)).view(np.uint64)


def _normalise(pixels: np.ndarray) -> np.ndarray:
    """Return pixels with mean 0 and length 1, so that a product of two is their correlation."""
    values = pixels.astype(np.float32).ravel()
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-6)


def _describe(found: list[tuple[int, int, str]], samples: pd.DataFrame) -> pd.DataFrame:
    pairs = pd.DataFrame(found, columns=["test", "other", "flip"]).drop_duplicates(["test", "other"])
    test, other = (samples.iloc[pairs[column].to_numpy(int)].reset_index(drop=True) for column in ("test", "other"))
    return pd.DataFrame(
        {
            "id": test.id,
            "label": test.label,
            "other_id": other.id,
            "other_label": other.label,
            "other_split": other.split,
            "flip": pairs.flip.to_numpy(),
            "exact": (test.sha256 == other.sha256).to_numpy(),
            "same_group": (test.group == other.group).to_numpy(),
        }
    )
