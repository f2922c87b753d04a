"""Measure how the cost of preparing a data set grows with its number of images, as JSON.

The images are JPEG files in two classes: smooth random textures, which do not resemble each other.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import psutil
from PIL import Image

from medtransfer.training.device import device_name

PREPARE = """
import sys
from pathlib import Path
from medtransfer.core.params import CatalogueEntry, DatasetParams
from medtransfer.data.custom import custom_dataset
from medtransfer.data.preparation import prepare_dataset
if __name__ == "__main__":
    about = dict(title="Textures", classes=["a", "b"], group="patient", licence="none", citation="none")
    split = dict(by="image", validation=0.2, test=0.2, seed=0)
    params = DatasetParams.model_validate(dict(image_size=64, resize_filter="lanczos", split=split))
    prepare_dataset(custom_dataset("textures", CatalogueEntry(**about)), Path("raw"), params, Path("prepared"))
"""


@click.command()
@click.option("--images", multiple=True, type=int, default=[10_000, 40_000, 160_000], show_default=True)
def main(images: tuple[int, ...]) -> None:
    """Prepare data sets of several sizes, each in a separate process."""
    rows = []
    for number in images:
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder) / "raw", number)
            rows.append({"images": number, **prepare(Path(folder))})
        click.echo(json.dumps(rows[-1]), err=True)
    click.echo(json.dumps({"device": device_name(), "cores": os.cpu_count(), "image_size": 64, "rows": rows}, indent=2))


def draw(raw: Path, number: int) -> None:
    """Write a custom data set of textures, 200 × 150 px, in the format of `medtransfer data add`."""
    (raw / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (raw / "labels.csv").open("w") as table:
        table.write("id,label,group,path\n")
        for index in range(number):
            small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
            small.resize((200, 150), Image.Resampling.BILINEAR).save(raw / f"images/{index}.jpg", quality=85)
            table.write(f"{index},{'ab'[index % 2]},p{index},images/{index}.jpg\n")


def prepare(folder: Path) -> dict[str, float]:
    """Return the elapsed seconds, the processor seconds of all processes, and the main one's peak anonymous memory."""
    (folder / "prepared").mkdir()
    (folder / "prepare.py").write_text(PREPARE)
    begin, memory, seconds = time.perf_counter(), 0, {}
    with subprocess.Popen([sys.executable, "prepare.py"], cwd=folder) as process:
        while process.poll() is None:
            for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                times = one.cpu_times()
                seconds[one.pid] = times.user + times.system
            used = psutil.Process(process.pid).memory_info()
            memory = max(memory, used.rss - used.shared)
            time.sleep(0.2)
        wall = time.perf_counter() - begin
    if process.returncode:
        raise SystemExit(process.returncode)
    return {"seconds": round(wall, 1), "cpu_seconds": round(sum(seconds.values()), 1), "anonymous_mb": memory // 10**6}


if __name__ == "__main__":
    main()
