"""DICOM files → pictures of 8 bits without any tag, all by one rule.

Stored values go through the modality transform and then the first VOI transform of the file, a table or else a window.
Black and white are the ends of that transform's range; without one, the values that the stored bits can have. They are
never the smallest and largest value of a picture, so that pictures stay comparable. MONOCHROME1 and the presentation
shape INVERSE are inverted.
"""

import hashlib
import mmap
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from medtransfer.core.errors import UserError, shortened

DEFLATED = b"1.2.840.10008.1.2.1.99"  # a transfer syntax
VOI = ("WindowCenter", "WindowWidth", "VOILUTSequence")
RANGE = ("BitsStored", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")
SUFFIXES = (".dcm", ".dicom", ".ima")  # names need none: the content decides


class Header(NamedTuple):
    """A file's UID, patient id (hash it before use), series, and what decides which values are black and white."""

    uid: str
    patient: str
    series: str
    scale: str


def is_dicom(source: Path | bytes) -> bool:
    """Return whether a file, or its content, is DICOM and not the index of a folder of such files."""
    return _head(source, 132)[128:] == b"DICM" and not (isinstance(source, Path) and source.name == "DICOMDIR")


def _head(source: Path | bytes, size: int) -> bytes:
    if isinstance(source, bytes):
        return source[:size]
    with source.open("rb") as file:
        return file.read(size)


def read_header(path: Path) -> Header:
    """Return a file's header. A UID must be read here: decompressing a file gives it another."""
    names = ("SOPInstanceUID", "PatientID", "SeriesInstanceUID")
    data = _read(path, str(path), stop_before_pixels=True, specific_tags=[*names, *VOI, "VOILUTFunction", *RANGE])
    try:
        uid, patient, series = (str(data.get(tag, "")).strip("\0 ") for tag in names)
        voi = [str(data.get(tag) or "") for tag in VOI]
        if any(voi):
            scale = " ".join([*voi, data.get("VOILUTFunction") or "LINEAR"])
        else:
            scale = str(sorted(_range(data))) if data.get("BitsStored") else ""
    except Exception as error:  # pydicom decodes a tag when it is asked for
        raise _unreadable(str(path), error) from None
    return Header(uid, patient, series, scale)


def hide(patient: str) -> str:
    """Return a patient id as 16 digits of its SHA-256; an empty one stays empty."""
    return patient and hashlib.sha256(patient.encode(errors="replace")).hexdigest()[:16]


def _read(source: Path | bytes, name: str, **options: Any) -> Any:
    from pydicom import config, dcmread  # takes 0.3 s

    config.settings.reading_validation_mode = config.IGNORE  # a warning would print the value of a tag
    # For example, of excess bytes, which do not affect the image.
    warnings.filterwarnings("ignore", module=r"pydicom\.")
    if _contains(source, DEFLATED):
        raise UserError(
            f"{name}: uses the deflated transfer syntax, which could exhaust the memory; decompress it first"
        )
    try:
        return dcmread(BytesIO(source) if isinstance(source, bytes) else source, **options)
    except PermissionError:
        raise
    except Exception as error:
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: Exception) -> UserError:
    return UserError(f"{name}: cannot be read as DICOM ({type(error).__name__}); copy it again")


def _contains(source: Path | bytes, text: bytes) -> bool:
    if isinstance(source, bytes):
        return text in source
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


def read_picture(source: Path | bytes, name: str, max_pixels: int) -> Image.Image:
    """Return the picture of a file or its content, grey or RGB; a UserError if it has several frames or is damaged."""
    data = _read(source, name)
    try:
        frames, pixels = int(data.get("NumberOfFrames") or 1), int(data.Rows) * int(data.Columns)
        kind, colours, bits = str(data.PhotometricInterpretation), data.SamplesPerPixel, data.get("BitsStored")
    except Exception as error:
        raise UserError(f"{name}: has no picture that can be read ({type(error).__name__}); remove it") from None
    if frames != 1:
        raise UserError(f"{name}: has {frames} frames; expected one image")
    if pixels > max_pixels:
        raise UserError(f"{name}: {pixels:,} pixels; expected at most {max_pixels:,}; resize it")
    if not kind.startswith("MONOCHROME") and (colours, bits) != (3, 8):
        raise UserError(f"{name}: its colours are {kind} with {bits} bits; expected grey values, or RGB with 8 bits")
    remedy = "export it again"
    try:
        from pydicom.pixels import pixel_array

        _check_frame(data)
        if data.file_meta.TransferSyntaxUID.is_compressed:
            remedy = "decompress it first"
        values = pixel_array(data)
        return Image.fromarray(_to_eight_bits(values, data) if colours == 1 else values)
    except Exception as error:  # a damaged file, or a compression that no installed package decodes
        raise UserError(f"{name}: cannot be decoded as DICOM ({shortened(error)}); {remedy}") from None


def _check_frame(data: Any) -> None:
    """Check that a compressed image has the size that the tags say: decoding a larger one could fill the memory."""
    from pydicom.encaps import get_frame
    from pydicom.uid import RLELossless

    syntax = data.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax != RLELossless:
        with Image.open(BytesIO(get_frame(data.PixelData, 0, number_of_frames=1))) as image:
            if image.size != (data.Columns, data.Rows):
                size, expected = f"{image.width} × {image.height}", f"{data.Columns} × {data.Rows}"
                raise ValueError(f"its image is {size} pixels, but its tags say {expected}")


def _range(data: Any) -> tuple[float, float]:
    """Return the modality transform of the smallest and the largest value that the stored bits can have."""
    if data.get("ModalityLUTSequence"):
        return 0, 2 ** data.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    half = 2 ** (data.BitsStored - 1)
    low, high = (-half, half - 1) if data.PixelRepresentation else (0, 2 * half - 1)
    if "RescaleSlope" in data and "RescaleIntercept" in data:
        low, high = (value * float(data.RescaleSlope) + float(data.RescaleIntercept) for value in (low, high))
    return low, high


def _to_eight_bits(stored: np.ndarray, data: Any) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    if data.HighBit != data.BitsStored - 1:
        raise ValueError(f"HighBit is {data.HighBit}, but {data.BitsStored} bits are stored")
    if data.get("RescaleSlope") == 0:
        raise ValueError("RescaleSlope is 0")
    low, high = _range(data)
    if data.get("VOILUTSequence"):
        low, high = 0, 2 ** data.VOILUTSequence[0].LUTDescriptor[2] - 1
        data.VOILUTSequence[0].LUTDescriptor[2] = 16  # with 8, pydicom 3.0.2 counts entries modulo 256
    rescaled = apply_modality_lut(stored, data)
    shown = apply_voi_lut(rescaled, data)
    if shown is rescaled:  # without a window, whose range may be descending
        low, high = sorted((low, high))
    grey = np.rint(np.clip((shown.astype(np.float64) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    inverted = data.PhotometricInterpretation == "MONOCHROME1" or data.get("PresentationLUTShape") == "INVERSE"
    return 255 - grey if inverted else grey
