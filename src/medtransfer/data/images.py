"""Decoding an image file to pixels, in the same way for training, evaluation and serving."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from medtransfer.core.errors import UserError, shortened
from medtransfer.core.files import files_under
from medtransfer.data import dicom

# Pillow's other formats are rare in medicine, and each is code that a hostile file can attack.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",), "TIFF": (".tif", ".tiff"), "WEBP": (".webp",),
    "BMP": (".bmp",), "GIF": (".gif",), "PPM": (".pgm", ".ppm", ".pbm", ".pnm"),
}  # fmt: skip
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# macOS's resource forks, thumbnails of a Synology server, Windows' deleted files.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")
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
MAX_BYTES = 500_000_000  # of one file, unpacked
WHITE = 65_535  # the largest value of 16 bits
Image.MAX_IMAGE_PIXELS = None  # Pillow would warn at fewer pixels than ours, which are checked before decoding


def visible_files(folder: Path) -> list[Path]:
    """Return the files under a folder, but not hidden ones and those in hidden folders or SYSTEM_FOLDERS."""
    return [
        path
        for path in files_under(folder)
        if not any(part.startswith(".") or part in SYSTEM_FOLDERS for part in path.relative_to(folder).parts)
    ]


def is_image(path: Path) -> bool:
    """Return whether a file is an image by its suffix or, for DICOM, by its content."""
    return path.suffix.lower() in SUFFIXES or dicom.is_dicom(path)


class Decoded(NamedTuple):
    """An RGB image with 8 bits per channel, and the conversions that it needed; '' for none."""

    image: Image.Image
    converted: str


def load_rgb(
    source: Path | bytes,
    size: int | None = None,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
    white_level: int | None = WHITE,
) -> Decoded:
    """Decode an image file or its content, in one of FORMATS or DICOM, to upright 8-bit RGB without metadata.

    Sixteen bits are scaled to eight, so that `white_level` becomes 255, and rounded; Pillow would saturate grey and
    truncate colour. Without a white level, such files are refused. Palettes, CMYK and opaque alpha are converted, and
    colours with an ICC profile become sRGB. A phone's JPEG may contain a second picture, which is ignored. It is a
    UserError if the content is not a complete image, does not match the suffix, or has several frames, transparent
    pixels, more than `max_pixels` pixels or values above `white_level`.

    `size` is the side in pixels to which the image will be reduced: a JPEG is then decoded at 1/2, 1/4 or 1/8 of its
    scale if both sides stay at least three times as long, which saves work and leaves the filter enough pixels. `name`
    is the image's name in messages, by default the path.
    """
    name = name or str(source if isinstance(source, Path) else "image")
    if dicom.is_dicom(source):
        return Decoded(dicom.read_picture(source, name, max_pixels).convert("RGB"), "DICOM")
    with _opened(source, name) as image:
        _check(image, name, max_pixels)
        if size:
            image.draft(None, (3 * size, 3 * size))
        # Decoding turns a TIFF, and then its orientation is gone.
        turned = image.format == "TIFF" and image.getexif().get(0x0112, 1) != 1
        return _to_rgb(image, _sixteen_bits(image, source, name), name, white_level, turned)


def largest_value(path: Path) -> int:
    """Return the largest value, without alpha, of an image with 16 bits; 0 for other files."""
    with _opened(path, str(path)) as image:
        _check(image, str(path), MAX_PIXELS)
        values = _sixteen_bits(image, path, str(path))
        return 0 if values is None else int(np.atleast_3d(values)[..., :3].max())


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[ImageFile.ImageFile]:
    try:
        with _open(source) as image:
            yield image
    except PermissionError:
        raise
    except UnidentifiedImageError:
        raise UserError(
            f"{name}: cannot be decoded: not {', '.join(FORMATS)} or DICOM; copy it again, or convert it"
        ) from None
    except (OSError, SyntaxError, TypeError, ValueError, EOFError, struct.error) as error:
        raise UserError(
            f"{name}: cannot be decoded as an image ({shortened(error)}); copy it again, or convert it"
        ) from None


@contextmanager
def _open(source: Path | bytes) -> Iterator[ImageFile.ImageFile]:
    # Given a path, Pillow 13.0 maps an uncompressed TIFF into memory, and garbles it if its tag turns it by 90 degrees.
    with (
        BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file,
        Image.open(file, formats=list(FORMATS)) as image,
    ):
        yield image


def _sixteen_bits(image: ImageFile.ImageFile, source: Path | bytes, name: str) -> np.ndarray | None:
    """Return the upright values of an image with 16 bits, uint32, or None for other images."""
    layout = image.tile[0].args if image.tile else None
    if image.mode == "F" or (image.format == "TIFF" and ";16" in str(layout) and image.mode not in SIXTEEN_BIT):
        raise UserError(
            f"{name}: has {'floating-point values' if image.mode == 'F' else '16 bits per channel'}; convert it to 8 "
            "bits"
        )
    if image.mode not in SIXTEEN_BIT and layout not in LOW_BYTES:
        return None
    image.load()
    values = np.asarray(ImageOps.exif_transpose(image))
    if values.min() < 0 or values.max() > WHITE:
        raise UserError(f"{name}: has values from {values.min():,} to {values.max():,}; expected 0 to {WHITE:,}")
    values = values.astype(np.uint32)
    return 256 * values + _low_bytes(source, *LOW_BYTES[layout]) if layout in LOW_BYTES else values


def _low_bytes(source: Path | bytes, layout: str, channels: list[int]) -> np.ndarray:
    with _open(source) as image:
        image.tile = [tile._replace(args=layout) for tile in image.tile]
        return np.asarray(ImageOps.exif_transpose(image))[..., channels]


def _check(image: Image.Image, name: str, max_pixels: int) -> None:
    suffix = Path(name).suffix.lower()
    phone = image.format == "MPO"  # a JPEG with further pictures behind it
    kind = "JPEG" if phone else str(image.format)
    if suffix and suffix not in FORMATS[kind]:
        raise UserError(f"{name}: is a {kind} file, but its name ends in {suffix}; rename it")
    if getattr(image, "is_animated", False) and not phone:  # counting the frames reads the whole file
        raise UserError(f"{name}: has several frames; expected one image")
    # Pillow reads signed values of 8 bits as unsigned ones.
    if image.format == "TIFF" and image.mode == "L" and 2 in image.tag_v2.get(339, ()):  # type: ignore[attr-defined]
        raise UserError(f"{name}: has signed values of 8 bits; convert them to values from 0 to 255")
    if image.width * image.height > max_pixels:
        raise UserError(f"{name}: {image.width} × {image.height} pixels; expected at most {max_pixels:,}; resize it")


def _to_rgb(
    image: ImageFile.ImageFile, values: np.ndarray | None, name: str, white_level: int | None, turned: bool
) -> Decoded:
    upright, mode, converted = ImageOps.exif_transpose(image), image.mode, list[str]()
    if values is not None:
        upright = _reduced(image, np.atleast_3d(values), name, white_level)
        converted.append("16 bit")
    elif mode not in DIRECT_MODES:
        converted.append({"P": "palette", "1": "1 bit"}.get(mode, mode))
    if turned or image.getexif().get(0x0112, 1) != 1:
        converted.append("EXIF orientation")
    if image.format == "MPO":
        converted.append("first of several pictures")
    if "A" in upright.getbands() or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        _refuse_transparent(name, np.asarray(upright)[..., 3].min() < 255)
    rgb = upright.convert("RGB")
    rgb.info.clear()  # Pillow writes comments and profiles into what is saved
    profile = image.info.get("icc_profile")
    if profile and ("R" in image.getbands() or mode == "P"):
        try:
            if to_srgb := _to_srgb(profile):
                ImageCms.applyTransform(rgb, to_srgb, inPlace=True)
                converted.append("ICC profile")
        except (OSError, ImageCms.PyCMSError):
            converted.append("unreadable ICC profile")
    return Decoded(rgb, ", ".join(converted))


def _reduced(image: ImageFile.ImageFile, values: np.ndarray, name: str, white_level: int | None) -> Image.Image:
    """Return an image's upright values with 16 bits, (height, width, channels), as a picture with 8 bits."""
    eight = _to_eight_bits(values, name, white_level)
    # A transparent colour has 16 bits: after scaling, others may equal it.
    colour = image.info.get("transparency")
    _refuse_transparent(name, colour is not None and bool(np.equal(values, colour).all(axis=-1).any()))
    # Pillow inverts a TIFF whose 0 is white only if it has 8 bits.
    white_is_zero = image.format == "TIFF" and image.tag_v2.get(262) == 0  # type: ignore[attr-defined]
    return Image.fromarray(255 - eight if white_is_zero else eight)


def _refuse_transparent(name: str, transparent: bool) -> None:
    if transparent:
        raise UserError(f"{name}: has transparent pixels; expected an opaque image; flatten it onto a background")


@lru_cache(maxsize=8)
def _to_srgb(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion of an ICC profile's colours to sRGB; None if it changes none by more than rounding."""
    given = ImageCms.ImageCmsProfile(BytesIO(profile))
    to_srgb = ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    colours = np.mgrid[0:256:51, 0:256:51, 0:256:51].reshape(1, 3, -1).swapaxes(1, 2).astype(np.uint8)
    changed = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), to_srgb))
    return to_srgb if np.abs(changed.astype(int) - colours).max() > 2 else None


def _to_eight_bits(values: np.ndarray, name: str, white_level: int | None) -> np.ndarray:
    """Scale values (height, width, channels) with 16 bits so that the white level becomes 255; alpha has all 16."""
    if white_level is None:
        raise UserError(
            f"{name}: has more than 8 bits, and its data set's images have 8, so its white level is unknown; "
            "convert it to 8 bits, or set the data set's `bits` in params.yaml and train again"
        )
    if (largest := values[..., :3].max()) > white_level:
        raise UserError(
            f"{name}: has the value {largest:,}; expected at most {white_level:,}, the white level of its data set; "
            "rescale it, or change the data set's `bits` in params.yaml and train again"
        )
    whites = np.where(np.arange(values.shape[-1]) < 3, white_level, WHITE).astype(np.uint32)
    return ((255 * values + whites // 2) // whites).astype(np.uint8).squeeze(-1 if values.shape[-1] == 1 else ())


def load_pixels(
    source: Path | bytes,
    size: int,
    resize_filter: str,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
    white_level: int | None = WHITE,
) -> np.ndarray:
    """Decode an image to (size, size, 3), uint8, not keeping its aspect ratio (as in the talk)."""
    return resize(load_rgb(source, size, name, max_pixels, white_level).image, size, resize_filter)


def resize(image: Image.Image, size: int, resize_filter: str) -> np.ndarray:
    """Return an RGB image as (size, size, 3), uint8."""
    return np.asarray(image.resize((size, size), Image.Resampling[resize_filter.upper()]), dtype=np.uint8)
