"""Take the README's picture of MLflow's charts, of a study that has run here.

make ui                                                  # in another terminal
python tools/comparison_picture.py docs/mlflow-compare.png

Needs Chromium (Debian: chromium).
"""

import shutil
from pathlib import Path

import click
import mlflow

from charts import PAGE

WIDTH, HEIGHT = 1500, 1000
CLIP = (198, 0, 912, 695)  # without MLflow's menu and its assistant


@click.command()
@click.argument("picture", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--port", default=5000, show_default=True)
@click.option("--experiment", default="ham10000", show_default=True)
@click.option("--seconds", default=60, show_default=True, help="How long to wait for the charts.")
def main(picture: Path, port: int, experiment: str, seconds: int) -> None:
    """Open the address that `make ui` prints, wait for the charts of macro F1, and write the page as a PNG."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if not chromium:
        raise click.ClickException("Chromium is not installed (Debian: apt install chromium)")
    known = mlflow.MlflowClient(f"http://127.0.0.1:{port}").get_experiment_by_name(experiment)
    if known is None:
        raise click.ClickException(f"{experiment}: no such experiment; run `make study` first")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(seconds * 1000)
        page.goto(PAGE.format(port, known.experiment_id))
        page.get_by_placeholder("Search metric charts").fill("macro_f1")
        page.get_by_text("test/macro_f1").first.wait_for(state="attached")
        page.wait_for_timeout(10_000)  # the bars are drawn after their titles
        x, y, width, height = CLIP
        page.screenshot(path=picture, clip={"x": x, "y": y, "width": width, "height": height}, timeout=seconds * 1000)
        browser.close()
    click.echo(f"{picture}: {experiment}")


if __name__ == "__main__":
    main()
