"""Decoding one image file to the pixels that the networks and the trees see."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from medtransfer.errors import UserError

# Other modes need a choice of window or palette that must not be made silently:
# Pillow's convert("RGB") saturates 16-bit pixels.
DIRECT_MODES = ("RGB", "L", "1", "P", "CMYK", "YCbCr")


def load_rgb(path: Path, size: int | None = None) -> Image.Image:
    """Decode an 8-bit image file to RGB, turned as its EXIF orientation says.

    Parameters
    ----------
    size : int, optional
        The side in pixels to which the image will be reduced. A JPEG is then decoded at 1/2, 1/4 or
        1/8 of its scale where both sides stay at least three times that: less work, and enough pixels for the
        filter that reduces the rest.

    Raises
    ------
    UserError
        The file does not decode, has several frames, transparency or more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            if frames != 1:
                raise UserError(f"{path}: has {frames} frames; expected one image")
            if image.mode not in DIRECT_MODES or "transparency" in image.info:
                raise UserError(f"{path}: pixels of mode {image.mode}; expected 8-bit grey or colour without alpha")
            if size:
                image.draft(None, (3 * size, 3 * size))
            image.load()
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be decoded as an image: {' '.join(str(error).split())}") from None


def load_pixels(path: Path, size: int, resize_filter: str) -> np.ndarray:
    """Decode an image file and resize it to a square, not keeping its aspect ratio (as in the talk).

    Returns
    -------
    ndarray of shape (size, size, 3), uint8
    """
    resampling = Image.Resampling[resize_filter.upper()]
    return np.asarray(load_rgb(path, size).resize((size, size), resampling), dtype=np.uint8)
