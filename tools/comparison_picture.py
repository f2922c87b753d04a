"""Log three networks to a tracking server of our own, open MLflow's page that compares them, and take its picture.

PYTHONPATH=tools:benchmarks/reliability python tools/comparison_picture.py docs/mlflow-compare.png

Needs PostgreSQL and Chromium (Debian: postgresql, chromium).
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import click
import mlflow
from ruamel.yaml import YAML

from clones import clone, environment, run
from tracking_server import free_port, serve

DATASET = "ham10000"
CONFIGURATIONS = ["cnn_random", "imagenet_last_block", "imagenet_all"]
SECONDS_TO_SHOW = 60
WIDTH, HEIGHT = 1244, 1702
LEFT, RIGHT = 198, 490  # MLflow's menu and its assistant, which the picture leaves out
NO_USERS = "/ajax-api/2.0/mlflow/users/current"  # MLflow's page asks for the user; a server without passwords has none


@click.command()
@click.argument("picture", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--epochs", default=8, show_default=True)
def main(picture: Path, epochs: int) -> None:
    """Train on the demonstration data and write the page as a PNG; a line in the browser's console is an error."""
    chromium = shutil.which("chromium")
    if not chromium:
        raise click.ClickException("Chromium is not installed (Debian: apt install chromium)")
    with tempfile.TemporaryDirectory(prefix="medtransfer-picture-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # PostgreSQL runs as another user
        with serve(folder / "server", free_port()) as address:
            log_runs(folder / "project", address, epochs)
            client = mlflow.MlflowClient(address)
            experiment = client.get_experiment_by_name(DATASET)
            assert experiment is not None
            runs = {found.info.run_name: found.info.run_id for found in client.search_runs([experiment.experiment_id])}
            names = [f"{name}-seed0" for name in CONFIGURATIONS]
            asked = f'runs={json.dumps([runs[name] for name in names])}&experiments=["{experiment.experiment_id}"]'
            shown = photograph(chromium, f"{address}/#/compare-runs?{asked}", names, picture)
    click.echo(f"{picture}: {', '.join(names)}; {shown} lines in the browser's console")


def log_runs(project: Path, address: str, epochs: int) -> None:
    """Run the stages of a study of three networks and a tree, which draws the figures too."""
    clone(project, {"train": {"epochs": epochs}, "baselines": ["decision_tree"]})
    yaml = YAML()
    params = yaml.load((project / "params.yaml").read_text())
    params["study"] = {DATASET: {"train": CONFIGURATIONS}}
    with (project / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    run(project, "dvc", "pull", "--quiet", "data.dvc")
    env = {**environment(project), "MLFLOW_TRACKING_URI": address}
    stages = [
        ["prepare", DATASET],
        ["baseline", DATASET, "decision_tree", "--seed", "0"],
        *(["train", DATASET, name, "--seed", "0"] for name in CONFIGURATIONS),
        ["explain", DATASET],
        ["evaluate"],
    ]
    for stage in stages:
        subprocess.run(["medtransfer", "stage", *stage], cwd=project, env=env, check=True, stdout=subprocess.DEVNULL)


def photograph(chromium: str, url: str, names: list[str], picture: Path) -> int:
    """Open the page, check that it shows the runs and their figures, and write its picture."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": LEFT + WIDTH + RIGHT, "height": HEIGHT})
        said: list[str] = []
        page.on("console", lambda message: said.append(f"{message.type}: {message.text} {message.location['url']}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.goto(url)
        page.get_by_text(f"Comparing {len(names)} Runs").wait_for(timeout=SECONDS_TO_SHOW * 1000)
        for name in names:
            page.get_by_text(name, exact=True).first.wait_for(timeout=SECONDS_TO_SHOW * 1000)
        arrange(page)
        page.screenshot(path=picture, clip={"x": LEFT, "y": 0, "width": WIDTH, "height": HEIGHT})
        browser.close()
    errors = [line for line in said if line.startswith("error") and not line.endswith(NO_USERS)]
    assert errors == [], errors
    return len(said)


def arrange(page: Any) -> None:
    """Close the plots, show differences alone, and put the confusion matrices side by side."""
    page.get_by_text("Visualizations").first.dispatch_event("click")
    for switch in page.get_by_role("switch").all():
        if switch.get_attribute("aria-checked") != "true":
            switch.dispatch_event("click")
    page.get_by_text("confusion", exact=False).first.dispatch_event("click")
    page.wait_for_timeout(3000)


if __name__ == "__main__":
    main()
