"""How many images per second `medtransfer serve` answers, and how long a client waits, with 1, 8 and 64 clients.

The commit and the versions are those of the folder and the Python that this runs in: start the server there too.
"""

import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import threading
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import requests

from medtransfer.core.provenance import git_commit

TIMEOUT = 60
PACKAGES = ("keras", "tensorflow", "numpy", "pillow", "fastapi", "uvicorn")


@click.command()
@click.argument("url")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--clients", multiple=True, type=int, default=(1, 8, 64), show_default=True)
@click.option("--seconds", default=20.0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path))
def main(url: str, images: tuple[Path, ...], clients: tuple[int, ...], seconds: float, output: Path | None) -> None:
    """Send IMAGES in turn to the server at URL, such as http://127.0.0.1:8000."""
    contents = [path.read_bytes() for path in images]
    health = requests.get(f"{url}/health", timeout=TIMEOUT).json()
    measure(url, contents, 1, 2.0)  # the first answers take longer
    found = {
        "date": datetime.date.today().isoformat(),
        "commit": git_commit(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "network_sha256": health["network_sha256"],
        "images": len(contents),
        "mean_bytes": round(float(np.mean([len(content) for content in contents]))),
        "seconds": seconds,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "load_before": round(os.getloadavg()[0], 2),
        "clients": {str(count): measure(url, contents, count, seconds) for count in clients},
    }
    print(json.dumps(found, indent=2))
    if output:
        output.write_text(json.dumps(found, indent=2) + "\n")


def measure(url: str, contents: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Return images a second and latencies in milliseconds of what was answered, and how many requests were not."""
    latencies: list[list[float]] = [[] for _ in range(clients)]
    errors = [0] * clients
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        with requests.Session() as session:
            for content in itertools.islice(itertools.cycle(contents), number, None):
                begin = time.perf_counter()
                if begin >= end:
                    return
                try:
                    session.post(f"{url}/predict", data=content, timeout=TIMEOUT).raise_for_status()
                except requests.RequestException:
                    errors[number] += 1
                    continue
                latencies[number].append(time.perf_counter() - begin)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = time.perf_counter() - begin
    if not any(latencies):
        raise SystemExit(f"{url}: answered none of {sum(errors)} requests")
    milliseconds = 1000 * np.concatenate([np.array(own) for own in latencies])
    return {
        "requests": len(milliseconds),
        "errors": sum(errors),
        "images_per_second": round(len(milliseconds) / total, 1),
        **{f"latency_ms_p{share}": round(float(np.percentile(milliseconds, share)), 1) for share in (50, 95, 99)},
    }


if __name__ == "__main__":
    main()
