"""Register the best network, classify images with it, and serve it."""

import json
import re
import socket
import sys
from pathlib import Path

import click

from medtransfer.cli.app import EXIT_USER_ERROR, cli
from medtransfer.cli.shared import FILE, FOLDER, as_dataset, quiet_start
from medtransfer.core.errors import UserError, counted
from medtransfer.core.layout import PARAMS
from medtransfer.core.params import read_params

with_model = click.option(
    "--model", help="Another registered model, such as models:/ham10000/2.", show_default="models:/DATASET@best"
)


@cli.command()
@as_dataset
def register(dataset: str) -> None:
    """Register the best network of a data set in MLflow, as a model that takes image files.

    The best has the highest macro F1 on the validation images. `predict` and `mlflow models serve` find it as
    models:/DATASET@best.
    """
    params = read_params(PARAMS)
    with quiet_start():
        from medtransfer.serving.register import register

    facts, version = register(params, dataset)
    click.echo(
        f"{dataset} version {version}, models:/{dataset}@best: {facts['model']}, seed {facts['seed']}, "
        f"macro F1 {facts['validation_macro_f1']:.3f} on the validation images"
    )


@cli.command()
@as_dataset
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@with_model
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--output", type=FILE, help="Write a CSV file.")
@click.option("--overlays", type=FOLDER, help="Write Grad-CAM pictures to this folder.")
def predict(
    dataset: str, paths: tuple[Path, ...], model: str | None, as_json: bool, output: Path | None, overlays: Path | None
) -> None:
    """Classify image files, or all images in folders, with the best network of DATASET.

    For research only, not a medical device: not for diagnosis or treatment. Probabilities are calibrated if the
    validation images determine a temperature (`calibrated` in JSON and CSV). If a file is not an image, the others are
    still classified, and the exit code is 2.
    """
    with quiet_start():
        from medtransfer.core.files import atomic_file
        from medtransfer.core.predictions import probability_columns
        from medtransfer.report.tables import SYNTHETIC_NOTE
        from medtransfer.serving import predict as serving
        from medtransfer.serving.classifier import NOTE

    images = serving.find_images(paths)
    classifier = serving.open_classifier(dataset, model)
    answers = list(serving.answer(classifier, images, overlays))
    table = serving.as_table(answers, classifier.facts)
    if output:
        with atomic_file(output) as partial:
            table.to_csv(partial, index=False)
        click.echo(f"{counted(len(table), 'image')}: {output}", err=True)
    problems = [found["problem"] for found in answers if "problem" in found]
    if as_json:
        click.echo(json.dumps(serving.as_json(answers, classifier), indent=2))
    elif not output and len(problems) < len(answers):
        facts = classifier.facts
        shown = table[table.problem == ""][["image", "predicted", *probability_columns(facts["classes"])]]
        click.echo(f"{facts['title']}: {facts['model']}, seed {facts['seed']}")
        click.echo(shown.to_string(index=False, float_format="{:.3f}".format))
        click.echo(NOTE + (f" {SYNTHETIC_NOTE}" if facts["synthetic"] else ""))
    for problem in problems:
        click.echo(f"medtransfer: {problem}", err=True)
    if problems:
        sys.exit(EXIT_USER_ERROR)


def _check_names(context: click.Context, option: click.Parameter, hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        if not re.fullmatch(r"(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", host):
            raise click.BadParameter(f"{host!r}: expected a name such as scans.example.org or *.example.org")
    return hosts


@cli.command()
@as_dataset
@with_model
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    callback=_check_names,
    help="Another host name to accept, without a port; *.NAME accepts all names below NAME.",
)
def serve(dataset: str, model: str | None, host: str, port: int, hosts: tuple[str, ...]) -> None:
    """Serve the best network of DATASET: a page to drop images on, and POST /predict for programs.

    The body of the request is the image file. For research only, not a medical device: not for diagnosis or treatment.
    """
    with quiet_start():
        import uvicorn

        from medtransfer.serving.app import LOOPBACK, build_app
        from medtransfer.serving.predict import open_classifier

    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise UserError(f"{host}:{port}: {error.strerror}; choose another with --port or --host") from None
    app = build_app(open_classifier(dataset, model), (*LOOPBACK, *hosts))
    click.echo(f"serving {dataset} on http://{host}:{port}; press Ctrl-C to stop")
    uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False)
