"""Near-duplicates: images that are resized, recompressed or flipped copies of each other.

Perceptual hashes find candidates and the correlation of pixels decides. HAM10000's lesion_id misses some duplicates
(Abhishek et al., Investigating the Quality of DermaMNIST and Fitzpatrick17k Dermatological Image Datasets, 2024).
"""

import imagehash
import numpy as np
import pandas as pd
from PIL import Image

HASH_SIDE = 16  # a hash has 16² bits
MAX_BITS = 48  # a candidate differs in at most so many: changed copies differ in up to 40, other images in 90 or more
SIDE = 32  # of a thumbnail
MIN_CORRELATION = 0.94  # changed copies have at least 0.95, other images less
FLIPS = {"": (1, 1), "left-right": (1, -1), "top-bottom": (-1, 1), "both": (-1, -1)}  # the steps along each axis
# Copies of each split's images are searched in these splits, so that each pair is found once.
SEARCHED = {"test": ("train", "validation"), "validation": ("train",)}


def thumbnail(image: Image.Image) -> np.ndarray:
    """Return the grey pixels (SIDE, SIDE), uint8, by which images are compared."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


def find_near_duplicates(thumbnails: np.ndarray, samples: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs of near-duplicates in two different splits.

    Parameters
    ----------
    thumbnails : ndarray of shape (n, SIDE, SIDE), uint8
    samples : DataFrame
        Columns id, label, group, split and sha256; one row per thumbnail.

    Returns
    -------
    DataFrame
        One row per pair: id, label and split of a test or validation image; other_id, other_label and other_split;
        flip; exact (the files are equal); same_group.
    """
    hashes = np.stack([_hash(pixels) for pixels in thumbnails])
    normal = np.stack([_normalise(pixels) for pixels in thumbnails])
    found = []
    for split, others in SEARCHED.items():
        among = np.flatnonzero(samples.split.isin(others))
        hashed = hashes[among]
        for row in np.flatnonzero(samples.split == split):
            for flip, (down, right) in FLIPS.items():
                turned = thumbnails[row, ::down, ::right]
                near = among[np.bitwise_count(hashed ^ _hash(turned)).sum(axis=1) <= MAX_BITS]
                same = near[normal[near] @ _normalise(turned) >= MIN_CORRELATION]
                found += [(int(row), int(other), flip) for other in same]
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
    pairs = pd.DataFrame(found, columns=["row", "other", "flip"]).drop_duplicates(["row", "other"])
    image, other = (samples.iloc[pairs[column].to_numpy(int)].reset_index(drop=True) for column in ("row", "other"))
    return pd.DataFrame(
        {
            **{column: image[column] for column in ("id", "label", "split")},
            **{f"other_{column}": other[column] for column in ("id", "label", "split")},
            "flip": pairs.flip.to_numpy(),
            "exact": (image.sha256 == other.sha256).to_numpy(),
            "same_group": (image.group == other.group).to_numpy(),
        }
    )
