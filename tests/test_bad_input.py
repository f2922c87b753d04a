"""Bad input: one clear line that names what is wrong, and nothing half-written."""

import io
import os
import pickle
import re
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageCms

from conftest import PROJECT
from medtransfer.core.errors import UserError
from medtransfer.core.files import files_under
from medtransfer.core.params import Params, Split
from medtransfer.core.recipe import TrainParams
from medtransfer.data.catalogue import CHEST_XRAY, HAM10000
from medtransfer.data.images import load_pixels, load_rgb
from medtransfer.data.importing import import_dataset
from medtransfer.data.preparation import assign_splits, prepare_dataset
from medtransfer.models import vgg16
from medtransfer.models.weights import read_weights


def one_line(error: UserError) -> bool:
    return "\n" not in str(error) and 20 < len(str(error)) < 500


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
JPEG, PNG = encoded(PICTURE, "JPEG"), encoded(PICTURE, "PNG")


def png_of(width: int, height: int, depth: int = 8, colour: int = 2, rows: bytes = b"", more: bytes = b"") -> bytes:
    """A PNG with any header and rows; by default one that claims a size but contains no pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + more + body


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_16_bits(values: np.ndarray, more: bytes = b"") -> bytes:
    """A PNG of (height, width, channels) values of 16 bits, which Pillow cannot write in colour."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png_of(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows, more)


def frames(kind: str) -> bytes:
    return encoded(PICTURE, kind, save_all=True, append_images=[PICTURE.rotate(90)])


transparent = PICTURE.convert("RGBA")
transparent.putpixel((3, 3), (0, 0, 0, 10))
palette = PICTURE.convert("P")

# Values of every kind: for many, the high byte is not enough.
WIDE = np.random.default_rng(1).integers(0, 65536, (40, 48, 4))
WIDE_OPAQUE = np.where(np.arange(4) == 3, 65535, WIDE)

# Image width as text, and a turned camera: Pillow writes the data anew and trips over the first.
ODD_EXIF = b"Exif\0\0II*\0" + struct.pack("<IHHHI4sHHIHHI", 8, 2, 0x100, 2, 3, b"ab\0\0", 0x112, 3, 1, 6, 0, 0)
BAD_IMAGES = {
    "a zero-byte file": ("a.jpg", b"", "cannot be decoded: not JPEG, PNG, TIFF"),
    "text": ("a.jpg", b"no picture at all", "cannot be decoded: not JPEG, PNG, TIFF"),
    "a JPEG cut in the middle": ("a.jpg", JPEG[: len(JPEG) // 2], "truncated"),
    "a JPEG without its last bytes": ("a.jpg", JPEG[:-30], "truncated"),
    "a JPEG's first bytes": ("a.jpg", JPEG[:40], "cannot be decoded"),
    "a PNG cut in the middle": ("a.png", PNG[: len(PNG) // 2], "cannot be decoded"),
    "a PNG's header": ("a.png", PNG[:20], "cannot be decoded"),
    "a PNG with a wrong checksum": ("a.png", PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], "cannot be decoded"),
    "a PNG called .jpg": ("a.jpg", PNG, "is a PNG file, but its name ends in .jpg; rename it"),
    "a JPEG called .png": ("a.png", JPEG, "is a JPEG file, but its name ends in .png; rename it"),
    "an animated GIF": ("a.gif", frames("GIF"), "several frames; expected one image"),
    "a GIF called .jpg": ("a.jpg", encoded(PICTURE, "GIF"), "is a GIF file, but its name ends in .jpg; rename it"),
    "a TIFF of several pages": ("a.tif", frames("TIFF"), "several frames; expected one image"),
    "a TIFF of fractions": ("a.tif", encoded(PICTURE.convert("F"), "TIFF"), "has floating-point values; convert it"),
    "a TIFF with negative values": (
        "a.tif", encoded(Image.fromarray(np.full((4, 4), -1, np.int32)), "TIFF"), "has values from -1 to -1"),
    "a TIFF of signed bytes": (
        "a.tif", encoded(PICTURE.convert("L"), "TIFF", tiffinfo={339: 2}), "has signed values of 8 bits; convert them"),
    "an icon": ("a.ico", encoded(PICTURE, "ICO"), "cannot be decoded: not JPEG, PNG, TIFF"),
    "an animated PNG": ("a.png", frames("PNG"), "several frames; expected one image"),
    "transparency": ("a.png", encoded(transparent, "PNG"), "transparent pixels"),
    "grey with transparency": ("a.png", encoded(transparent.convert("LA"), "PNG"), "transparent pixels"),
    "a transparent palette": ("a.png", encoded(palette, "PNG", transparency=palette.getpixel((0, 0))), "transparent"),
    "16-bit transparency": ("a.png", png_of_16_bits(WIDE), "transparent pixels"),
    "grey with 16-bit transparency": ("a.png", png_of_16_bits(WIDE[..., 2:]), "transparent pixels"),
    "a transparent 16-bit colour": (
        "a.png", png_of_16_bits(WIDE[..., :3], png_chunk(b"tRNS", WIDE[5, 5, :3].astype(">u2").tobytes())),
        "transparent pixels"),
    "a bomb": ("a.png", png_of(30_000, 30_000), "at most 100,000,000"),
    "a small bomb": ("a.png", png_of(12_000, 10_000), "at most 100,000,000"),
    "an orientation beside a width in letters": ("a.jpg", encoded(PICTURE, "JPEG", exif=ODD_EXIF), "cannot be decoded"),
    "EXIF data that end at once": ("a.png", encoded(PICTURE, "PNG", exif=b"II*\0"), "cannot be decoded"),
    "a picture without rows": ("a.png", png_of(10, 0), "cannot be decoded"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_IMAGES)
@pytest.mark.filterwarnings("error")
def test_a_bad_image_is_one_clear_line(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_IMAGES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_rgb(tmp_path / name, 32)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert message in str(caught.value)
    assert one_line(caught.value)
    with pytest.raises(UserError, match=r"upload: ") as from_bytes:
        load_rgb(content, 32, name=f"upload: {name}")
    assert str(from_bytes.value).split(": ", 2)[2] == str(caught.value).split(": ", 1)[1]


def exif_of(orientation: int) -> bytes:
    """The EXIF data of a picture with only this entry."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"MM\0*" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 0)


def sixteen_bit() -> Image.Image:
    return Image.fromarray(np.asarray(PICTURE.convert("L")).astype(np.uint16) * 257)


CONVERTED = {
    "CMYK": ("a.jpg", encoded(PICTURE.convert("CMYK"), "JPEG"), "CMYK"),
    "a palette": ("a.png", encoded(palette, "PNG"), "palette"),
    "one bit": ("a.png", encoded(PICTURE.convert("1"), "PNG"), "1 bit"),
    "opaque alpha": ("a.png", encoded(PICTURE.convert("RGBA"), "PNG"), "RGBA"),
    "sixteen bits": ("a.png", encoded(sixteen_bit(), "PNG"), "16 bit"),
    "sixteen bits of colour": ("a.png", png_of_16_bits(WIDE[..., :3]), "16 bit"),
    "sixteen bits of colour with alpha": ("a.png", png_of_16_bits(WIDE_OPAQUE), "16 bit"),
    "sixteen bits of grey with alpha": ("a.png", png_of_16_bits(WIDE_OPAQUE[..., 2:]), "16 bit"),
    "a phone's JPEG of several pictures": ("a.jpg", frames("MPO"), "first of several pictures"),
    "a palette in a GIF": ("a.gif", encoded(palette, "GIF"), "palette"),
    "sixteen bits in a TIFF": ("a.tif", encoded(sixteen_bit(), "TIFF"), "16 bit"),
    "a turned TIFF": ("a.tiff", encoded(PICTURE, "TIFF", tiffinfo={274: 6}), "EXIF orientation"),
    "a turned camera": ("a.jpg", encoded(PICTURE, "JPEG", exif=b"Exif\0\0" + exif_of(6)), "EXIF orientation"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONVERTED)
def test_what_needs_converting_is_converted_and_named(tmp_path: Path, case: str) -> None:
    name, content, kind = CONVERTED[case]
    (tmp_path / name).write_bytes(content)
    image, converted = load_rgb(tmp_path / name)
    assert converted == kind
    assert image.mode == "RGB"
    assert image.size == ((40, 48) if kind == "EXIF orientation" else (48, 40))


# How the rows and columns that a camera wrote become the picture, as EXIF defines it.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_orientation_gives_the_pixels_that_exif_defines(orientation: int) -> None:
    exif = exif_of(orientation)
    sixteen = WIDE[..., :3]
    for plain, turned in (
        (JPEG, encoded(PICTURE, "JPEG", exif=b"Exif\0\0" + exif)),
        (PNG, encoded(PICTURE, "PNG", exif=exif)),
        (png_of_16_bits(sixteen), png_of_16_bits(sixteen, png_chunk(b"eXIf", exif))),
    ):
        found = load_rgb(turned)
        assert (np.asarray(found.image) == UPRIGHT[orientation](np.asarray(load_rgb(plain).image))).all()
        assert ("EXIF orientation" in found.converted) == (orientation != 1)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_turned_tiff_is_the_same_from_its_path_and_from_its_bytes(
    tmp_path: Path, mode: str, orientation: int
) -> None:
    image = Image.fromarray(WIDE[..., 0].astype(np.uint16)) if mode == "I;16" else PICTURE.convert(mode)
    turned = encoded(image, "TIFF", tiffinfo={274: orientation})
    (tmp_path / "a.tif").write_bytes(turned)
    expected = UPRIGHT[orientation](np.asarray(load_rgb(encoded(image, "TIFF")).image))
    for source in (tmp_path / "a.tif", turned):
        assert np.array_equal(np.asarray(load_rgb(source).image), expected)


def test_cmyk_and_palettes_become_their_colours() -> None:
    found = np.asarray(load_rgb(encoded(palette, "PNG")).image)
    assert (found == np.reshape(palette.getpalette() or [], (-1, 3))[np.asarray(palette)]).all()
    ramp = np.linspace(0, 255, 48, dtype=np.uint8) + np.zeros((40, 1), np.uint8)
    ink = np.stack([ramp, ramp[:, ::-1], ramp[::-1] // 2, ramp // 3], axis=-1)
    written = encoded(Image.fromarray(ink, "CMYK"), "JPEG", quality=100, subsampling=0)
    expected = (255 - ink[..., :3].astype(float)) * (255 - ink[..., 3:].astype(float)) / 255
    assert np.abs(np.asarray(load_rgb(written).image) - expected).max() <= 4


def test_a_palette_bmp_becomes_its_colours() -> None:
    found = np.asarray(load_rgb(encoded(palette, "BMP")).image)
    assert (found == np.asarray(palette.convert("RGB"))).all()


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".tif", ".webp", ".bmp", ".gif", ".pgm"])
def test_what_pillow_reads_is_read(tmp_path: Path, suffix: str) -> None:
    grey = PICTURE.convert("L")
    grey.save(tmp_path / f"a{suffix}", **({"lossless": True} if suffix == ".webp" else {}))  # type: ignore[arg-type]
    pixels = np.asarray(load_rgb(tmp_path / f"a{suffix}").image).astype(int)
    assert np.abs(pixels - np.asarray(grey)[..., None]).max() <= (60 if suffix in (".jfif", ".jpe") else 0)


def tiff_of(values: np.ndarray, white_is_zero: bool) -> bytes:
    """An uncompressed grey TIFF of 8 or 16 bits."""
    height, width = values.shape
    entries = {256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: int(not white_is_zero), 273: 122}
    entries |= {277: 1, 278: height, 279: values.nbytes}
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + tags + b"\0" * 4 + values.tobytes()


def test_a_tiff_whose_0_is_white_is_inverted_in_both_depths() -> None:
    grey = np.asarray(PICTURE.convert("L"))
    for values in (grey, grey.astype(np.uint16) * 257):
        top = np.iinfo(values.dtype).max
        for content in (tiff_of(values, white_is_zero=False), tiff_of(top - values, white_is_zero=True)):
            assert (np.asarray(load_rgb(content).image) == grey[..., None]).all()


def with_primaries(profile: bytes, **primaries: tuple[float, float, float]) -> bytes:
    """An ICC profile with other XYZ of red, green and blue."""
    for name, xyz in primaries.items():
        entry = profile.index(name.encode())
        start = struct.unpack_from(">I", profile, entry + 4)[0] + 8
        profile = profile[:start] + struct.pack(">3i", *(round(65536 * one) for one in xyz)) + profile[start + 12 :]
    return profile


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
DISPLAY_P3 = with_primaries(
    SRGB, rXYZ=(0.5151, 0.2412, -0.0011), gXYZ=(0.2919, 0.6922, 0.0419), bXYZ=(0.1572, 0.0666, 0.7841)
)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_colours_of_a_wide_profile_become_srgb(kind: str) -> None:
    skin = Image.new("RGB", (64, 48), (200, 140, 120))
    found = load_rgb(encoded(skin, kind, icc_profile=DISPLAY_P3), 16)
    assert found.converted == "ICC profile"
    by_the_matrices = [211, 137, 116]
    assert np.abs(np.asarray(found.image)[5, 5].astype(int) - by_the_matrices).max() <= 2


def test_other_profiles_keep_every_pixel() -> None:
    for image, profile, converted in (
        (PICTURE, SRGB, ""), (PICTURE.convert("L"), DISPLAY_P3, ""), (PICTURE, SRGB[:99], "unreadable ICC profile"),
    ):  # fmt: skip
        found = load_rgb(encoded(image, "PNG", icc_profile=profile))
        assert found.converted == converted
        assert (np.asarray(found.image) == np.asarray(image.convert("RGB"))).all()


def test_nothing_is_converted_silently() -> None:
    assert load_rgb(JPEG).converted == load_rgb(PNG).converted == ""
    assert load_rgb(encoded(PICTURE.convert("L"), "JPEG")).converted == ""


def test_sixteen_bits_are_scaled_not_saturated() -> None:
    grey = np.asarray(PICTURE.convert("L"))
    image = load_rgb(encoded(sixteen_bit(), "PNG")).image
    assert (np.asarray(image) == grey[..., None]).all()
    assert (load_pixels(encoded(sixteen_bit(), "PNG"), 32, "nearest") < 255).any()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_are_rounded_alike_in_grey_and_colour(tmp_path: Path, channels: int) -> None:
    values = WIDE_OPAQUE[..., {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]].copy()
    values[0, 0, 0] = 255
    (tmp_path / "a.png").write_bytes(png_of_16_bits(values))
    expected = np.round(values[..., [0, 0, 0] if channels < 3 else [0, 1, 2]] / 257)
    for source in (tmp_path / "a.png", png_of_16_bits(values)):
        pixels = np.asarray(load_rgb(source).image)
        assert pixels[0, 0, 0] == 1
        assert (pixels == expected).all()


# --- metadata and layout


def edit(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = folder / "HAM10000_metadata.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)


def metadata(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "HAM10000_metadata.csv").write_bytes(content)


def first_image(folder: Path) -> Path:
    return next(iter(sorted(folder.rglob("*.jpg"))))


def drop_column(name: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda table: table.drop(columns=name))


def set_first(column: str, value: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda table: table.assign(**{column: [value, *table[column][1:]]}))


def one_lesion_for(label: str) -> Callable[[Path], None]:
    return lambda folder: edit(
        folder, lambda table: table.assign(lesion_id=table.lesion_id.mask(table.dx == label, "HAM_1"))
    )


def keep_of(label: str, count: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        table = pd.read_csv(folder / "HAM10000_metadata.csv")
        gone = table[table.dx == label].iloc[count:]
        for image in gone.image_id:
            next(folder.rglob(f"{image}.jpg")).unlink()
        edit(folder, lambda table: table.drop(gone.index))

    return change


def image_becomes_folder(folder: Path) -> None:
    image = first_image(folder)
    image.unlink()
    image.with_suffix("").mkdir()


BAD_METADATA: dict[str, tuple[Callable[[Path], object], str]] = {
    "no metadata": (lambda folder: (folder / "HAM10000_metadata.csv").unlink(), "not found, nor .*; import the"),
    "empty metadata": (metadata(b""), "cannot be read as CSV"),
    "metadata in another encoding": (metadata("lesion_id;imäge".encode("utf-16")), "not a text file in UTF-8"),
    "metadata with a quote left open": (metadata(b'lesion_id,image_id\n"a,b\n'), "cannot be read as CSV|no column"),
    "metadata that is binary": (metadata(bytes(range(256)) * 9), "not a text file in UTF-8|no column"),
    "metadata with a header alone": (
        metadata(b"lesion_id,image_id,dx,dx_type,age,sex,localization\n"), "no row below the header"),
    "no lesion_id": (drop_column("lesion_id"), "no column 'lesion_id'"),
    "no image_id": (drop_column("image_id"), "no column 'image_id'"),
    "no dx": (drop_column("dx"), "no column 'dx'"),
    "an unknown label": (set_first("dx", "wart"), "has the label 'wart', but the classes are akiec"),
    "a label in capitals": (set_first("dx", "NV"), "has the label 'NV', but the classes are akiec"),
    "an empty label": (set_first("dx", None), "has no dx"),
    "an empty lesion": (set_first("lesion_id", None), "has no lesion_id"),
    "an empty image": (set_first("image_id", None), "has no image_id"),
    "a row without image": (lambda folder: first_image(folder).unlink(), "has no image file"),
    "a path as image": (set_first("image_id", "../../etc/passwd"), "has no image file"),
    "an image without row": (lambda folder: edit(folder, lambda table: table.iloc[1:]), "no row in"),
    "two rows": (lambda folder: edit(folder, lambda table: pd.concat([table, table[:1]])), "has more than one row"),
    "an empty class": (keep_of("vasc", 0), "no image of vasc; ham10000 has the classes"),
    "a class with one image": (keep_of("vasc", 1), "class vasc has 1 group; a split by group needs at least 5"),
    "a broken image": (lambda folder: first_image(folder).write_bytes(b"x"), "cannot be decoded: not JPEG, PNG, TIFF"),
    "an image that is a folder": (image_becomes_folder, "has no image file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_METADATA)
def test_bad_metadata_is_one_clear_line(demo: Path, params: Params, tmp_path: Path, case: str) -> None:
    damage, message = BAD_METADATA[case]
    raw, target = Path(shutil.copytree(demo / "ham10000", tmp_path / "raw")), tmp_path / "target"
    target.mkdir()
    damage(raw)
    with pytest.raises(UserError, match=message) as caught:
        prepare_dataset(HAM10000, raw, params.datasets["ham10000"], target)
    assert one_line(caught.value)
    assert not (target / "samples.csv").exists()


def test_another_order_of_columns_changes_nothing(demo: Path, tmp_path: Path) -> None:
    raw = Path(shutil.copytree(demo / "ham10000", tmp_path / "raw"))
    edit(raw, lambda table: table[table.columns[::-1]])
    assert HAM10000.read(raw).samples.equals(HAM10000.read(demo / "ham10000").samples)


def test_a_class_in_a_single_group_cannot_be_divided(demo: Path, tmp_path: Path) -> None:
    raw = Path(shutil.copytree(demo / "ham10000", tmp_path / "raw"))
    one_lesion_for("df")(raw)
    split = Split.model_validate({"by": "group", "validation": 0.2, "test": 0.2, "seed": 0})
    with pytest.raises(UserError, match="class df has 1 group; a split by group needs at least 5"):
        assign_splits(HAM10000.read(raw).samples, split, "ham10000")


BAD_CHEST_FILES = {
    "a name without patient": ("train/NORMAL/picture.jpeg", "no patient in the name"),
    "a text file": ("train/NORMAL/readme.txt", "not an image; expected .jpeg"),
    "an unknown class": (
        "train/COVID/person2_virus_1.jpeg",
        "has the label 'COVID', but the classes are NORMAL",
    ),
    "one name twice": ("test/NORMAL/person1_virus_1.jpeg", "another image has this name"),
}


@pytest.mark.parametrize("case", BAD_CHEST_FILES)
def test_bad_chest_files_are_named(tmp_path: Path, case: str) -> None:
    name, message = BAD_CHEST_FILES[case]
    for path in ("train/NORMAL/person1_virus_1.jpeg", name):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(JPEG)
    assert [message in line for line in CHEST_XRAY.read(tmp_path).problems] == [True]


# --- archives


def archive_of(entries: dict[str, bytes], path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


IMAGE = "HAM10000_images_part_1/ISIC_1.jpg"


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


def tar_of(path: Path, kind: bytes) -> None:
    """A tar whose member, called an image, is a link or a device."""
    with tarfile.open(path, "w") as archive:
        for name, linked in ((IMAGE, kind), ("HAM10000_metadata.csv", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = linked, "/etc/passwd" if linked != tarfile.REGTYPE else ""
            archive.addfile(member)


def zip_of_kind(path: Path, kind: int) -> None:
    """A zip whose member, called an image, is a link, a device or a pipe."""
    with zipfile.ZipFile(path, "w") as archive:
        member = zipfile.ZipInfo(IMAGE)
        member.external_attr = (kind | 0o644) << 16
        archive.writestr(member, "/etc/passwd")


def encrypt(path: Path) -> None:
    archive_of({IMAGE: JPEG}, path)
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag of encryption, in the entry and in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def compress_as_windows(path: Path) -> None:
    archive_of({IMAGE: JPEG}, path)
    content = bytearray(path.read_bytes())
    content[8] = content[content.index(b"PK\x01\x02") + 10] = 9  # Deflate64, which Windows uses from 2 GB
    path.write_bytes(content)


BAD_ARCHIVES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a parent folder": (lambda path: archive_of({f"../{IMAGE}": JPEG}, path), "would leave the target folder"),
    "a hidden parent folder": (lambda path: archive_of({f"x/../../{IMAGE}": JPEG}, path), "would leave the target"),
    "an absolute path": (lambda path: archive_of({f"/{IMAGE}": JPEG}, path), "would leave the target folder"),
    "a backslash path": (lambda path: archive_of({f"..\\{IMAGE}": JPEG}, path), "would leave the target folder"),
    "a drive": (lambda path: archive_of({"C:\\HAM10000_images_part_1\\a.jpg": JPEG}, path), "would leave the target"),
    "no zip": (lambda path: path.write_bytes(b"x" * 100), "neither a folder nor a complete zip"),
    "an empty file": (lambda path: path.write_bytes(b""), "neither a folder nor a complete zip"),
    "an empty zip": (lambda path: archive_of({}, path), "no files of HAM10000"),
    "another data set": (lambda path: archive_of({"train/cat.jpg": JPEG}, path), "no files of HAM10000"),
    "a symbolic link": (lambda path: zip_of_kind(path, stat.S_IFLNK), "is a link or a device"),
    "a character device": (lambda path: zip_of_kind(path, stat.S_IFCHR), "is a link or a device"),
    "a block device": (lambda path: zip_of_kind(path, stat.S_IFBLK), "is a link or a device"),
    "a named pipe": (lambda path: zip_of_kind(path, stat.S_IFIFO), "is a link or a device"),
    "a tar with a symbolic link": (lambda path: tar_of(path, tarfile.SYMTYPE), "a complete zip file; .* unpack it"),
    "a tar with a hard link": (lambda path: tar_of(path, tarfile.LNKTYPE), "neither a folder nor a complete zip"),
    "a tar with a device": (lambda path: tar_of(path, tarfile.CHRTYPE), "neither a folder nor a complete zip"),
    "an encrypted zip": (encrypt, "cannot be unpacked here .*password required.*; unpack the zip file yourself"),
    "a compression of Windows": (compress_as_windows, "cannot be unpacked here .*compression method is not supported"),
    "two different files of one name": (
        lambda path: archive_of({f"a/{IMAGE}": JPEG, f"b/{IMAGE}": PNG}, path), "differ but would become one file"),
    "images without metadata": (lambda path: archive_of({IMAGE: JPEG}, path), "HAM10000_metadata.csv: not found"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_bad_archive_is_one_clear_line_and_changes_nothing(tmp_path: Path, case: str) -> None:
    make, message = BAD_ARCHIVES[case]
    make(tmp_path / "a.zip")
    (tmp_path / "data" / "ham10000").mkdir(parents=True)
    (tmp_path / "data" / "ham10000" / "old.txt").write_text("old")
    for name in ("a.zip", "a.tar"):
        (tmp_path / "a.zip").rename(tmp_path / name)
        with pytest.raises(UserError, match=message) as caught:
            import_dataset(HAM10000, tmp_path / name, tmp_path / "data")
        (tmp_path / name).rename(tmp_path / "a.zip")
        assert one_line(caught.value)
        assert (tmp_path / "data" / "ham10000" / "old.txt").read_text() == "old"
        assert files_under(tmp_path) == [tmp_path / "a.zip", tmp_path / "data" / "ham10000" / "old.txt"]


@pytest.mark.parametrize("target", ["/etc/hostname", "../../outside.jpg", "../.."])
def test_a_folder_with_a_link_out_of_it_is_refused(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "source" / "HAM10000_images_part_1"
    folder.mkdir(parents=True)
    (tmp_path / "outside.jpg").write_bytes(JPEG)
    (tmp_path / "source" / "HAM10000_metadata.csv").write_text("x")
    (folder / "ISIC_1.jpg").symlink_to(target)
    message = "a link to a file outside" if target != "../.." else "a link to a folder"
    with pytest.raises(UserError, match=message) as caught:
        import_dataset(HAM10000, tmp_path / "source", tmp_path / "data")
    assert one_line(caught.value)
    assert not (tmp_path / "data" / "ham10000").exists()


def test_a_zip_cut_anywhere_is_refused(demo: Path, tmp_path: Path) -> None:
    archive_of({IMAGE: JPEG, "HAM10000_metadata.csv": b"x"}, tmp_path / "a.zip")
    content = (tmp_path / "a.zip").read_bytes()
    old = tmp_path / "data" / "ham10000" / "old.txt"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    for end in range(0, len(content) - 1, 97):
        (tmp_path / "a.zip").write_bytes(content[:end])
        with pytest.raises(UserError, match=r"neither a folder nor a complete zip|damaged"):
            import_dataset(HAM10000, tmp_path / "a.zip", tmp_path / "data")
        assert sorted((tmp_path / "data").rglob("*")) == [old.parent, old]
        assert old.read_text() == "old"


def zip_of_empty_entries(path: Path, count: int) -> None:
    """Only a zip's directory, which is read when the file is opened, in the format for many entries."""
    fields = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0)
    directory = b"".join(fields + b"%08d" % number for number in range(count))
    size = len(directory)
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, 0)
    end += struct.pack("<4sLQL", b"PK\6\7", 0, size, 1)
    end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0)
    path.write_bytes(directory + end)


def peak_of_refusing(source: Path, data: Path, message: str) -> int:
    """Return Python's peak memory in bytes while an import was refused with this message."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message):
            import_dataset(HAM10000, source, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        assert not data.exists()


def test_a_million_entries_are_refused_before_they_are_in_memory(tmp_path: Path) -> None:
    zip_of_empty_entries(tmp_path / "a.zip", 100)
    assert len(zipfile.ZipFile(tmp_path / "a.zip").infolist()) == 100
    zip_of_empty_entries(tmp_path / "a.zip", 1_000_000)
    assert peak_of_refusing(tmp_path / "a.zip", tmp_path / "data", "more than 200,000 entries") < 10_000_000


def test_a_folder_with_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medtransfer.data.importing.MAX_ENTRIES", 50)
    (tmp_path / "source").mkdir()
    for number in range(60):
        (tmp_path / "source" / f"{number}.txt").touch()
    with pytest.raises(UserError, match="more than 50 entries"):
        import_dataset(HAM10000, tmp_path / "source", tmp_path / "data")


def test_an_archive_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open(IMAGE, "w") as entry:
        for _ in range(501):
            entry.write(bytes(1_000_000))
    assert (tmp_path / "a.zip").stat().st_size < 500_000
    assert peak_of_refusing(tmp_path / "a.zip", tmp_path / "data", "unpacks to 501,000,000 bytes") < 10_000_000


# --- weights, paths and disks


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "unpickled")


def test_a_pickle_called_weights_is_never_loaded(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    evil = pickle.dumps(Canary(canary))
    array = np.array([Canary(canary)], dtype=object)
    pickle.loads(evil)  # the canary does write
    canary.unlink()
    files: dict[str, Callable[[Path], object]] = {
        "a.npz": lambda path: np.savez(path, block1_conv1_kernel=array),
        "b.npz": lambda path: path.write_bytes(evil),
        "a.h5": lambda path: path.write_bytes(evil),
        "a.weights.h5": lambda path: path.write_bytes(evil),
    }
    for name, write in files.items():
        write(tmp_path / name)
        with pytest.raises(UserError) as caught:
            read_weights(tmp_path / name)
        assert one_line(caught.value)
    assert not canary.exists()


def test_a_network_with_code_in_it_is_never_run(tmp_path: Path, tiny: TrainParams) -> None:
    canary = tmp_path / "canary"
    inputs = keras.Input((2,))
    outputs = keras.layers.Lambda(eval(f"lambda x: (open({str(canary)!r}, 'w').close(), x)[1]"))(inputs)
    canary.unlink()  # building it ran the layer once
    keras.Model(inputs, outputs).save(tmp_path / "lambda.keras")
    (tmp_path / "pickle.keras").write_bytes(f"cos\nsystem\n(S'touch {canary}'\ntR.".encode())
    keras.Model(inputs, keras.layers.Dense(1)(inputs)).save(tmp_path / "other.keras")
    for name in ("lambda", "pickle", "other", "none"):
        with pytest.raises(UserError, match=rf"{name}.keras: not a network saved by this project") as caught:
            vgg16.load_network(tmp_path / f"{name}.keras")
        assert one_line(caught.value)
    assert not canary.exists()
    network = vgg16.build_vgg16(32, 3, tiny, seed=0)
    network.save(tmp_path / "ours.keras")
    assert vgg16.load_network(tmp_path / "ours.keras").name == "vgg16"


def test_a_network_of_a_newer_keras_is_named_with_the_version_that_reads_it(tmp_path: Path) -> None:
    inputs = keras.Input((2,))
    keras.Model(inputs, keras.layers.Dense(1)(inputs)).save(tmp_path / "here.keras")
    with zipfile.ZipFile(tmp_path / "here.keras") as here, zipfile.ZipFile(tmp_path / "newer.keras", "w") as newer:
        for name in here.namelist():
            newer.writestr(name, here.read(name).replace(keras.__version__.encode(), b"3.99.0"))
    with pytest.raises(UserError, match=rf"Keras 3\.99\.0 wrote it.*Keras {keras.__version__}") as caught:
        vgg16.load_network(tmp_path / "newer.keras")
    assert one_line(caught.value)
    assert "pip install keras==3.99.0" in str(caught.value)


def command(folder: Path, *arguments: str, prefix: list[str]) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
    return subprocess.run(
        [*prefix, sys.executable, "-m", "medtransfer", *arguments], cwd=folder, env=env, capture_output=True, text=True
    )


# Root may read and write everything; without these capabilities it has only the rights of an ordinary user.
AS_A_USER = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
FORBIDDEN: dict[str, tuple[str, list[str]]] = {
    "an image": ("data/ham10000/HAM10000_images_part_1/ISIC_9000001.jpg", ["stage", "prepare", "ham10000"]),
    "a folder of images": ("data/ham10000/HAM10000_images_part_1", ["stage", "prepare", "ham10000"]),
    "the raw data's folder": ("data", ["stage", "prepare", "ham10000"]),
    "params.yaml": ("params.yaml", ["stage", "prepare", "ham10000"]),
    "the outputs' folder": ("artifacts", ["stage", "prepare", "ham10000"]),
    "a zip": ("a.zip", ["data", "import", "ham10000", "a.zip"]),
}


@pytest.mark.skipif(AS_A_USER != [] and shutil.which("setpriv") is None, reason="as root this needs setpriv")
@pytest.mark.parametrize("case", FORBIDDEN)
def test_a_missing_permission_is_one_line_that_names_the_file(demo: Path, tmp_path: Path, case: str) -> None:
    name, arguments = FORBIDDEN[case]
    shutil.copytree(demo, tmp_path / "data")
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    archive_of({IMAGE: JPEG}, tmp_path / "a.zip")
    (tmp_path / "artifacts").mkdir()
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    rights = (tmp_path / name).stat().st_mode
    (tmp_path / name).chmod(0o500 if name == "artifacts" else 0)
    try:
        result = command(tmp_path, *arguments, prefix=AS_A_USER)
    finally:
        (tmp_path / name).chmod(rights)
    assert result.returncode == 2, result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert re.search(rf"{name}.*(Permission denied; fix the permissions|is not readable)", line), line
    assert "Traceback" not in result.stderr
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


@pytest.mark.skipif(AS_A_USER != [] and shutil.which("setpriv") is None, reason="as root this needs setpriv")
def test_a_zip_without_read_permission_is_not_called_damaged(tmp_path: Path) -> None:
    """The command line checks the permission first, but a download from Kaggle does not."""
    archive_of({IMAGE: JPEG}, tmp_path / "a.zip")
    (tmp_path / "a.zip").chmod(0)
    code = (
        "from pathlib import Path; from medtransfer.data.catalogue import HAM10000; "
        "from medtransfer.data.importing import import_dataset; "
        "import_dataset(HAM10000, Path('a.zip'), Path('data'))"
    )
    env = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
    result = subprocess.run(
        [*AS_A_USER, sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert result.stderr.splitlines()[-1] == "PermissionError: [Errno 13] Permission denied: 'a.zip'"
    assert not (tmp_path / "data").exists()


def test_a_path_with_spaces_and_umlauts_works(demo: Path, params: Params, tmp_path: Path) -> None:
    raw = Path(shutil.copytree(demo / "chest_xray", tmp_path / "Lungenärzte und Co" / "räw data"))
    target = tmp_path / "für später"
    target.mkdir()
    prepare_dataset(CHEST_XRAY, raw, params.datasets["chest_xray"], target)
    assert (target / "samples.csv").exists()


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs root and unshare for a tmpfs")
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_full_or_read_only_disk_is_one_clear_line(demo: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(demo, tmp_path / "data")
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    (tmp_path / "artifacts").mkdir()
    options = "size=200k" if kind == "full" else "ro"
    script = (
        f"mount -t tmpfs -o {options} none artifacts && {sys.executable} -m medtransfer stage prepare ham10000; "
        "code=$?; find artifacts -type f; exit $code"
    )
    env = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("mount namespaces are not allowed here")
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("medtransfer: artifacts")
    assert {"full": "No space left on device", "read-only": "Read-only file system"}[kind] in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.split() == []
