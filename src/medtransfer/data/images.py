"""Decoding an image file to pixels, in the same way for training, evaluation and serving."""

import struct
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from medtransfer.core.errors import UserError, shortened

FORMATS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",)}
# Colour and grey need no conversion; every other mode is converted and counted.
DIRECT_MODES = ("RGB", "L")
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# Pillow decodes only the high bytes of a PNG with 16-bit colour. With these layouts it decodes the low bytes instead,
# into these channels: grey with alpha arrives as the four bytes of a pixel.
LOW_BYTES = {
    "RGB;16B": ("RGB;16L", [0, 1, 2]),
    "RGBA;16B": ("RGBA;16L", [0, 1, 2, 3]),
    "LA;16B": ("RGBA", [1, 1, 1, 3]),
}
MAX_PIXELS = 100_000_000


class Decoded(NamedTuple):
    """An RGB image with 8 bits per channel, and the conversions that it needed; '' for none."""

    image: Image.Image
    converted: str


def load_rgb(source: Path | bytes, size: int | None = None, name: str = "", max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode a JPEG or PNG to 8-bit RGB, rotated according to its EXIF orientation.

    Sixteen bits are scaled to eight and rounded, since Pillow's own conversion saturates grey and truncates colour.
    Palettes, CMYK and opaque alpha are converted. It is a UserError if the content is not a complete JPEG or PNG, does
    not match the suffix, or has several frames, transparent pixels or more than `max_pixels` pixels.

    Parameters
    ----------
    source : Path or bytes
        A file or its content.
    size : int, optional
        The side in pixels to which the image will be reduced. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its scale
        if both sides stay at least three times as long, which saves work and leaves the filter enough pixels.
    name : str, optional
        The image's name in messages; the path by default.
    """
    name = name or str(source if isinstance(source, Path) else "image")
    try:
        with _open(source) as image:
            _check(image, name, max_pixels)
            if size:
                image.draft(None, (3 * size, 3 * size))
            layout = image.tile[0].args if image.tile else None
            image.load()
            low = _low_bytes(source, *LOW_BYTES[layout]) if layout in LOW_BYTES else None
            return _to_rgb(image, low, name)
    except PermissionError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{name}: cannot be decoded: neither a JPEG nor a PNG; convert it to one of them") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: cannot be decoded as an image ({shortened(error)}); reduce it") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise UserError(f"{name}: cannot be decoded as an image ({shortened(error)}); copy it again") from None


def _open(source: Path | bytes) -> ImageFile.ImageFile:
    return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=list(FORMATS))


def _low_bytes(source: Path | bytes, layout: str, channels: list[int]) -> np.ndarray:
    with _open(source) as image:
        image.tile = [tile._replace(args=layout) for tile in image.tile]
        return np.asarray(ImageOps.exif_transpose(image))[..., channels]


def _check(image: Image.Image, name: str, max_pixels: int) -> None:
    suffix = Path(name).suffix.lower()
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    if suffix and suffix not in FORMATS[kind]:
        raise UserError(f"{name}: its content is {kind}; expected the format that {suffix} names, so rename it")
    frames = getattr(image, "n_frames", 1)
    if frames != 1:
        raise UserError(f"{name}: has {frames} frames; expected one image")
    if image.width * image.height > max_pixels:
        raise UserError(f"{name}: {image.width} × {image.height} pixels; expected at most {max_pixels:,}, so reduce it")


def _to_rgb(image: Image.Image, low: np.ndarray | None, name: str) -> Decoded:
    upright = ImageOps.exif_transpose(image)
    mode = image.mode
    converted = [] if mode in DIRECT_MODES else [{"P": "palette", "1": "1 bit"}.get(mode, mode)]
    transparent = False
    if mode in SIXTEEN_BIT or low is not None:
        converted = ["16 bit"]
        values = np.asarray(upright).astype(np.uint32)
        values = values if low is None else 256 * values + low
        # A transparent colour has 16 bits: after scaling, others may equal it.
        colour = image.info.get("transparency")
        transparent = colour is not None and bool(np.equal(np.atleast_3d(values), colour).all(axis=-1).any())
        upright = Image.fromarray(((values + 128) // 257).clip(0, 255).astype(np.uint8))
    if image.getexif().get(0x0112, 1) != 1:
        converted.append("EXIF orientation")
    if "A" in upright.getbands() or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        transparent = transparent or np.asarray(upright)[..., 3].min() < 255
    if transparent:
        raise UserError(f"{name}: has transparent pixels; expected an opaque image, so put it on a background")
    return Decoded(upright.convert("RGB"), ", ".join(converted))


def load_pixels(
    source: Path | bytes, size: int, resize_filter: str, name: str = "", max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode an image to (size, size, 3), uint8, not keeping its aspect ratio (as in the talk)."""
    return resize(load_rgb(source, size, name, max_pixels).image, size, resize_filter)


def resize(image: Image.Image, size: int, resize_filter: str) -> np.ndarray:
    """Return an RGB image as (size, size, 3), uint8."""
    return np.asarray(image.resize((size, size), Image.Resampling[resize_filter.upper()]), dtype=np.uint8)
