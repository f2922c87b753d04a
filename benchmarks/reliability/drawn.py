"""A small synthetic version of both data sets, for tests and benchmarks.

The images are drawn and mean nothing medically. Layout and metadata are those of the real data sets, which also have
several images per lesion or patient and imbalanced classes. Shape, colour and texture of the classes overlap.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from medtransfer.core.files import atomic_folder, write_json
from medtransfer.data.catalogue import SOURCE_FILE

LESION_SIZE = (100, 75)  # width and height in pixels, the 4:3 of the real images
CHEST_SIZE = 96
JPEG_QUALITY = 85

# Images per class: imbalanced in the order of the real data sets, with enough lesions of each class to split.
LESIONS = {"akiec": 20, "bcc": 26, "bkl": 46, "df": 14, "mel": 46, "nv": 174, "vasc": 14}
CHESTS = {"NORMAL": 64, "PNEUMONIA": 156}

# Mean colour (red, green, blue), irregularity of the outline, darkness, grain of the texture in pixels and its
# strength. Each lesion varies around them.
LOOKS: dict[str, tuple[tuple[int, int, int], float, float, float, float]] = {
    "akiec": ((196, 120, 105), 0.22, 0.45, 3.0, 0.50),
    "bcc": ((205, 140, 140), 0.12, 0.40, 7.0, 0.35),
    "bkl": ((160, 115, 80), 0.10, 0.60, 2.0, 0.60),
    "df": ((175, 110, 90), 0.06, 0.45, 10.0, 0.25),
    "mel": ((75, 50, 48), 0.30, 0.85, 5.0, 0.60),
    "nv": ((125, 80, 58), 0.07, 0.70, 5.0, 0.25),
    "vasc": ((165, 40, 60), 0.14, 0.75, 6.0, 0.35),
}
SITES = ("back", "lower extremity", "trunk", "upper extremity", "abdomen", "face")


def draw_data(data: Path, seed: int) -> None:
    """Draw both data sets into `data`; the same seed gives the same files, byte for byte."""
    for name, draw in (("ham10000", _draw_ham10000), ("chest_xray", _draw_chest_xray)):
        with atomic_folder(data / name) as folder:
            draw(folder, np.random.default_rng([seed, len(name)]))
            write_json(folder / SOURCE_FILE, {"synthetic": True, "source": f"drawn with seed {seed}"})


def _draw_ham10000(folder: Path, rng: np.random.Generator) -> None:
    rows: list[dict[str, object]] = []
    for part in (1, 2):
        (folder / f"HAM10000_images_part_{part}").mkdir(parents=True)
    for label, count in LESIONS.items():
        for lesion, repeats in enumerate(_repeats(count, rng)):
            lesion_rng = np.random.default_rng(rng.integers(2**63))
            person = {"age": float(rng.integers(4, 17) * 5), "sex": rng.choice(["male", "female"])}
            site = rng.choice(SITES)
            draw = _lesion(label, lesion_rng)
            for _ in range(repeats):
                image_id = f"ISIC_{9000000 + len(rows):07d}"
                rows.append(
                    {
                        "lesion_id": f"HAM_9{list(LESIONS).index(label)}{lesion:05d}",
                        "image_id": image_id,
                        "dx": label,
                        "dx_type": "consensus" if label != "mel" else "histo",
                        **person,
                        "localization": site,
                    }
                )
                part = 1 + len(rows) % 2
                _save(draw(rng), folder / f"HAM10000_images_part_{part}" / f"{image_id}.jpg")
    pd.DataFrame(rows).to_csv(folder / "HAM10000_metadata.csv", index=False)


def _draw_chest_xray(folder: Path, rng: np.random.Generator) -> None:
    for label, count in CHESTS.items():
        for patient, repeats in enumerate(_repeats(count, rng), start=1):
            draw = _chest(label, np.random.default_rng(rng.integers(2**63)))
            part = rng.choice(["train", "val", "test"], p=[0.85, 0.03, 0.12])
            cause = rng.choice(["bacteria", "virus"], p=[0.65, 0.35])
            for shot in range(1, repeats + 1):
                name = (
                    f"IM-{patient:04d}-{shot:04d}"
                    if label == "NORMAL"
                    else f"person{patient}_{cause}_{patient * 10 + shot}"
                )
                path = folder / "chest_xray" / str(part) / label / f"{name}.jpeg"
                path.parent.mkdir(parents=True, exist_ok=True)
                _save(draw(rng), path)


def _repeats(count: int, rng: np.random.Generator) -> list[int]:
    """Divide `count` images among lesions or patients of one to three images."""
    repeats: list[int] = []
    while (left := count - sum(repeats)) > 0:
        repeats.append(min(left, int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))))
    return repeats


def _lesion(label: str, rng: np.random.Generator) -> Callable[[np.random.Generator], np.ndarray]:
    """Return a function that draws one lesion from a new angle and in new light."""
    colour, irregularity, darkness, grain, strength = LOOKS[label]
    tint = np.array(colour) + rng.normal(0, 12) + rng.normal(0, 9, 3)
    skin = np.array((218, 176, 156)) + rng.normal(0, 14) + rng.normal(0, 5, 3)
    irregularity = max(0.02, irregularity + rng.normal(0, 0.05))
    darkness = float(np.clip(darkness + rng.normal(0, 0.10), 0.25, 1))
    grain, strength = grain * rng.uniform(0.7, 1.4), strength * rng.uniform(0.5, 1.4)
    radius, aspect = rng.uniform(0.22, 0.40), rng.uniform(0.75, 1.3)
    waves = [(k, irregularity * rng.normal() / k**0.5, rng.uniform(0, 2 * np.pi)) for k in range(2, 8)]
    spots = rng.normal(0, 0.45, (9, 2))

    def picture(shot: np.random.Generator) -> np.ndarray:
        width, height = LESION_SIZE
        y, x = np.mgrid[0:height, 0:width] / height - 0.5
        x = x - (width / height - 1) / 2 - shot.normal(0, 0.05)
        y = y - shot.normal(0, 0.05)
        angle = np.arctan2(y, x) + shot.uniform(0, 2 * np.pi)
        distance = np.hypot(x, y * aspect)
        edge = radius * (1 + sum(a * np.cos(k * angle + phase) for k, a, phase in waves)) * shot.uniform(0.9, 1.1)
        inside = 1 / (1 + np.exp((distance - edge) / 0.018))
        texture = 1 + strength * _noise((height, width), grain, shot)
        if label in ("bcc", "vasc"):  # round lobes
            for u, v in spots * radius:
                texture = texture - 0.25 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 0.003)
        if label == "df":  # a pale centre
            texture = texture + 0.8 * np.exp(-((distance / (0.45 * radius)) ** 2))
        lesion = tint * np.clip(texture, 0.2, 1.8)[..., None]
        mix = (darkness * inside)[..., None]
        background = skin * (1 + 0.05 * _noise((height, width), 8.0, shot))[..., None]
        light = shot.uniform(0.85, 1.12) * (1 + shot.normal(0, 0.15) * x + shot.normal(0, 0.15) * y)
        image = (background * (1 - mix) + lesion * mix) * light[..., None]
        return image + shot.normal(0, 5, image.shape)

    return picture


def _chest(label: str, rng: np.random.Generator) -> Callable[[np.random.Generator], np.ndarray]:
    """Return a function that draws an X-ray of one patient; pneumonia adds blurred opacities."""
    wide, tall, spacing = rng.uniform(0.15, 0.19), rng.uniform(0.28, 0.36), rng.uniform(0.075, 0.095)
    sick = label == "PNEUMONIA"
    opacities = [
        (
            rng.choice([-1, 1]) * rng.uniform(0.12, 0.26),
            rng.uniform(-0.2, 0.25),
            rng.uniform(0.05, 0.13),
            rng.uniform(0.3, 0.9),
        )
        for _ in range(rng.integers(1, 5) if sick else rng.integers(0, 2))
    ]
    dose = 1.0 if sick else 0.45

    def picture(shot: np.random.Generator) -> np.ndarray:
        y, x = np.mgrid[0:CHEST_SIZE, 0:CHEST_SIZE] / CHEST_SIZE - 0.5
        x, y = x - shot.normal(0, 0.02), y - shot.normal(0, 0.02)
        body = 1 / (1 + np.exp((np.hypot(x / 0.46, y / 0.62) - 1) / 0.03))
        lungs = sum(1 / (1 + np.exp((np.hypot((x - side * 0.2) / wide, y / tall) - 1) / 0.05)) for side in (-1, 1))
        ribs = 0.10 * np.cos((y + 0.9 * x**2) * 2 * np.pi / spacing) * lungs
        spine = 0.20 * np.exp(-((x / 0.05) ** 2))
        haze = (
            sum(a * np.exp(-(((x - u) ** 2 + (y - v) ** 2) / r**2)) for u, v, r, a in opacities) if opacities else 0.0
        )
        clouds = 1 + 0.6 * _noise(x.shape, 5.0, shot)
        image = body * (0.62 - 0.42 * lungs + spine) + ribs + dose * 0.45 * haze * lungs * clouds
        return 235 * np.clip(image * shot.uniform(0.85, 1.15) + 0.05, 0, 1) + shot.normal(0, 7, x.shape)

    return picture


def _noise(shape: tuple[int, ...], grain: float, rng: np.random.Generator) -> np.ndarray:
    """Draw smooth noise of unit variance whose blobs are about `grain` pixels wide."""
    frequencies = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :])
    spectrum = np.fft.rfft2(rng.normal(size=shape)) * np.exp(-((frequencies * grain) ** 2) * 4)
    noise = np.fft.irfft2(spectrum, s=shape)
    return noise / noise.std()


def _save(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=JPEG_QUALITY)
