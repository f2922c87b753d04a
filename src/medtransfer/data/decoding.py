"""Decoding and resizing all images of a data set, in processes on all cores."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from medtransfer.core.files import sha256_of, write_array_header
from medtransfer.core.processes import end_after
from medtransfer.data.images import load_rgb, resize

CHUNK = 32  # images that a process decodes at a time
WORTH_A_PROCESS = 200  # images; starting a process takes as long as decoding a few hundred small ones
IMAGES, THUMBNAILS = "images.npy", "thumbnails.npy"
SIDE = 32  # of a thumbnail


@dataclass(frozen=True)
class Decoder:
    """How to decode each image, and the .npy files of images and thumbnails with the lengths of their headers."""

    size: int
    resize_filter: str
    white_level: int | None
    images: tuple[Path, int]
    thumbnails: tuple[Path, int]

    def decode(self, start: int, paths: list[Path]) -> list[tuple[str, str]]:
        """Write images from row `start` on; return each file's SHA-256 and its conversion, if any."""
        found = []
        with self.images[0].open("r+b") as images, self.thumbnails[0].open("r+b") as thumbnails:
            images.seek(self.images[1] + start * 3 * self.size**2)
            thumbnails.seek(self.thumbnails[1] + start * SIDE**2)
            for path in paths:
                image, converted = load_rgb(path, self.size, white_level=self.white_level)
                images.write(resize(image, self.size, self.resize_filter).tobytes())
                thumbnails.write(thumbnail(image).tobytes())
                found.append((sha256_of(path), converted))
        return found


def thumbnail(image: Image.Image) -> np.ndarray:
    """Return the grey pixels (SIDE, SIDE), uint8, by which images are compared."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


@contextmanager
def start_decoding(
    paths: list[Path], size: int, resize_filter: str, white_level: int | None, folder: Path
) -> Iterator[Iterator[tuple[str, str]]]:
    """Start to write IMAGES (n, size, size, 3) and THUMBNAILS (n, SIDE, SIDE), uint8, in the order of `paths`.

    Yield an iterator over the SHA-256 of each file and its conversion, if any; both arrays are complete once it is
    exhausted. It raises a UserError at the first image that cannot be decoded. If the block ends early, decoding stops.
    """
    files = [folder / IMAGES, folder / THUMBNAILS]
    shapes = [(len(paths), size, size, 3), (len(paths), SIDE, SIDE)]
    headers = [_begin(path, shape) for path, shape in zip(files, shapes, strict=True)]
    decoder = Decoder(size, resize_filter, white_level, *zip(files, headers, strict=True))
    starts = range(0, len(paths), CHUNK)
    chunks = [paths[start : start + CHUNK] for start in starts]
    processes = min(os.cpu_count() or 1, len(paths) // WORTH_A_PROCESS)
    if processes < 2:
        yield chain.from_iterable(map(decoder.decode, starts, chunks))
        return
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(processes, context, _start)
    try:
        yield chain.from_iterable(pool.map(decoder.decode, starts, chunks))
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(path: Path, shape: tuple[int, ...]) -> int:
    with path.open("wb") as file:
        write_array_header(file, np.dtype(np.uint8), shape)
        return file.tell()


def _start() -> None:
    """Leave Ctrl-C to the parent, which waits for the chunks in progress, and end when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parent := multiprocessing.parent_process():
        end_after(parent.join)
