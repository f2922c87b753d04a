"""The whole study on the embedded data at two commits of this repository, alternating: seconds and their ratio."""

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
MADE = ("artifacts", "reports", "mlruns", "dvc.lock", ".dvc/cache", ".dvc/tmp")


@click.command()
@click.argument("before")
@click.argument("after", default="HEAD")
@click.option("--rounds", default=2, show_default=True, help="Studies a side.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the clones here, and use those that lie here.")
def main(before: str, after: str, rounds: int, folder: Path | None) -> None:
    """Clone and install both commits, then run `make study` in each by turns, each with an empty home."""
    with tempfile.TemporaryDirectory() as temporary:
        place = (folder or Path(temporary)).resolve()
        sides = {"before": before, "after": after}
        commits = {side: install(place / side, commit) for side, commit in sides.items()}
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side in sides:
                seconds[side].append(study(place / side))
                click.echo(f"{side}: {seconds[side][-1]:.0f} s", err=True)
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    result = {
        "commits": commits,
        "cores": os.cpu_count(),
        "seconds": seconds,
        "before_over_after": round(medians["before"] / medians["after"], 2),
    }
    click.echo(json.dumps(result, indent=2))


def install(clone: Path, commit: str) -> str:
    """Return the full name of the commit that is checked out and installed in `clone`."""
    if not clone.exists():
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        subprocess.run(["git", "checkout", "--quiet", commit], cwd=clone, check=True)
    subprocess.run(["make", "--silent", "install"], cwd=clone, check=True, stdout=2)
    return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=clone, text=True).strip()


def study(clone: Path) -> float:
    """Return the seconds of `make study` on a clone that holds nothing of an earlier one."""
    for name in MADE:
        path = clone / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    subprocess.run(["git", "checkout", "--quiet", "--", "."], cwd=clone, check=True)
    with tempfile.TemporaryDirectory() as home, (clone.parent / f"{clone.name}.log").open("w") as log:
        begin = time.perf_counter()
        subprocess.run(
            ["make", "study"],
            cwd=clone,
            check=True,
            env={**os.environ, "HOME": home, "XDG_CACHE_HOME": f"{home}/.cache"},
            stdout=log,
            stderr=log,
        )
        return time.perf_counter() - begin


if __name__ == "__main__":
    main()
