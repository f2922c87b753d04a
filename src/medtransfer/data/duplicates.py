"""Near-duplicates: images that are resized, recompressed or flipped copies of each other.

Perceptual hashes find candidates and the correlation of pixels decides. HAM10000's lesion_id misses some duplicates
(Abhishek et al., Investigating the Quality of DermaMNIST and Fitzpatrick17k Dermatological Image Datasets, 2024).
"""

from collections.abc import Iterator

import faiss
import numpy as np
import pandas as pd
import scipy.fft

from medtransfer.data.decoding import SIDE

HASH_SIDE = 16  # a hash has 16² bits
MAX_BITS = 48  # a candidate differs in at most so many: changed copies differ in up to 40, other images in 90 or more
MIN_CORRELATION = 0.94  # changed copies have at least 0.95, other images less
FLIPS = {"": (1, 1), "left-right": (1, -1), "top-bottom": (-1, 1), "both": (-1, -1)}  # the steps along each axis
# Copies of each split's images are searched in these splits, so that each pair is found once.
SEARCHED = {"test": ("train", "validation"), "validation": ("train",)}
BLOCK = 4096  # images at a time


def find_near_duplicates(thumbnails: np.ndarray, samples: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs of near-duplicates in two different splits.

    The thumbnails are (n, SIDE, SIDE), uint8; the samples have the columns id, label, group, split and sha256.

    Returns
    -------
    DataFrame
        One row per pair: id, label and split of a test or validation image; other_id, other_label and other_split;
        flip; exact (the files are equal); same_group.
    """
    hashes = np.concatenate([hash_thumbnails(thumbnails[block]) for block in _blocks(np.arange(len(thumbnails)))])
    found = [pd.DataFrame(columns=["row", "other", "flip"])]
    for split, others in SEARCHED.items():
        among = np.flatnonzero(samples.split.isin(others))
        index = faiss.IndexBinaryFlat(HASH_SIDE**2)
        index.add(hashes[among])
        for rows in _blocks(np.flatnonzero(samples.split == split)):
            pairs = [_compare(thumbnails, rows, flip, index, among) for flip in FLIPS]
            found.append(pd.concat(pairs).sort_values("row", kind="stable"))
    return _describe(pd.concat(found), samples)


def hash_thumbnails(thumbnails: np.ndarray) -> np.ndarray:
    """Return the perceptual hashes (n, HASH_SIDE² / 8), uint8, of thumbnails (n, SIDE, SIDE), uint8.

    A bit says whether one of the lowest frequencies of the cosine transform is above their median (Zauner,
    Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, section 3.2.1).
    """
    frequencies = scipy.fft.dctn(thumbnails.astype(float), axes=(1, 2))[:, :HASH_SIDE, :HASH_SIDE]
    lowest = frequencies.reshape(len(thumbnails), HASH_SIDE**2)
    return np.packbits(lowest > np.median(lowest, axis=1, keepdims=True), axis=1)


def _compare(
    thumbnails: np.ndarray, rows: np.ndarray, flip: str, index: faiss.IndexBinaryFlat, among: np.ndarray
) -> pd.DataFrame:
    """Return the pairs (row, other, flip) between the flipped images `rows` and the indexed images `among`."""
    down, right = FLIPS[flip]
    flipped = thumbnails[rows][:, ::down, ::right]
    limits, _, near = index.range_search(hash_thumbnails(flipped), MAX_BITS + 1)  # finds distances below the limit
    queries, others = np.repeat(np.arange(len(rows)), np.diff(limits.astype(int))), among[near]
    correlation = [
        np.vecdot(_normalise(flipped[queries[block]]), _normalise(thumbnails[others[block]]))
        for block in _blocks(np.arange(len(others)))
    ]
    pairs = pd.DataFrame({"row": rows[queries], "other": others, "flip": flip}).sort_values(["row", "other"])
    return pairs[np.concatenate([*correlation, []])[pairs.index] >= MIN_CORRELATION]


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


def _normalise(pixels: np.ndarray) -> np.ndarray:
    """Return pixels (n, SIDE²) with mean 0 and length 1, so that a product of two is their correlation."""
    values = pixels.reshape(len(pixels), SIDE**2).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def _describe(found: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    pairs = found.drop_duplicates(["row", "other"])
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
