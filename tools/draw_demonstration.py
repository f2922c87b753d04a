"""Draw the demonstration data from both whole data sets: about 100 images per class, whole lesions or patients.

python tools/draw_demonstration.py ../shared/datasets data

The archives, the size and the seed decide the files, byte for byte, with the locked Pillow. Afterwards run
`dvc add data && cp data.dvc .dvc/embedded && dvc push --remote embedded data.dvc`.
"""

import tempfile
from pathlib import Path

import click
import numpy as np
import pandas as pd
from PIL import Image

from medtransfer.core.files import atomic_folder, write_json
from medtransfer.data.catalogue import CATALOGUE, SOURCE_FILE, Dataset
from medtransfer.data.importing import import_dataset

PER_CLASS, SIZE, QUALITY, SEED = 100, 64, 90, 0
METADATA = "HAM10000_metadata.csv"


@click.command()
@click.argument("archives", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("data", type=click.Path(path_type=Path, file_okay=False))
def main(archives: Path, data: Path) -> None:
    """Draw from the zip files in ARCHIVES and replace both data sets in DATA."""
    for dataset in CATALOGUE.values():
        with tempfile.TemporaryDirectory() as temporary:
            import_dataset(dataset, archives / f"{dataset.name}.zip", Path(temporary))
            with atomic_folder(data / dataset.name) as folder:
                images = draw(dataset, Path(temporary) / dataset.name, folder)
        size = sum(path.stat().st_size for path in (data / dataset.name).rglob("*"))
        click.echo(f"{dataset.name}: {images} images, {size:,} bytes")


def draw(dataset: Dataset, whole: Path, folder: Path) -> int:
    """Write the drawn images, their metadata and their source into a folder; return the number of images."""
    samples = dataset.read(whole).samples
    chosen = choose(samples, np.random.default_rng(SEED))
    for path in chosen.path:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(whole / path) as image:
            scale = SIZE / min(image.size)
            small = image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)
        small.save(folder / path, quality=QUALITY)
    if (whole / METADATA).exists():
        table = pd.read_csv(whole / METADATA, dtype=str, keep_default_na=False)
        table[table.image_id.isin(chosen.id)].to_csv(folder / METADATA, index=False)
    note = (
        f"Demonstration data: {len(chosen):,} of {len(samples):,} images of {dataset.title.partition(' (')[0]}, "
        f"{dataset.licence}, {dataset.citation.partition(':')[0]}"
    )
    how = (
        f"drawn by tools/draw_demonstration.py: about {PER_CLASS} images per class, whole {dataset.group}s, "
        f"seed {SEED}; resized to {SIZE} px, JPEG {QUALITY}"
    )
    credit = {"licence": dataset.licence, "citation": dataset.citation}
    write_json(folder / SOURCE_FILE, {"synthetic": False, "source": how, "note": note, **credit})
    return len(chosen)


def choose(samples: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Return the images of randomly ordered groups of each class, until the class has PER_CLASS images."""
    drawn = []
    for _, rows in samples.groupby("label"):
        order = rng.permutation(rows.group.unique())
        before = rows.groupby("group").size()[order].cumsum().shift(fill_value=0)
        drawn.append(rows[rows.group.isin(before.index[before < PER_CLASS])])
    return pd.concat(drawn).sort_values("id")


if __name__ == "__main__":
    main()
