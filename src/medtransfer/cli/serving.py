"""The registered network: register it, ask it about files, serve it."""

import json
import re
import socket
import sys
from pathlib import Path
from typing import Any

import click

from medtransfer.cli.app import EXIT_USER_ERROR, cli
from medtransfer.cli.shared import FILE, FOLDER, as_dataset, print_table, quiet_start
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

    The best has the highest macro F1 on the validation images; `predict` and `mlflow models serve` then find it as
    models:/DATASET@best.
    """
    params = read_params(PARAMS)
    with quiet_start():
        from medtransfer.serving.register import register

    facts, version = register(params, dataset)
    click.echo(
        f"{dataset} version {version}, models:/{dataset}@best: {facts['model']} of seed {facts['seed']}, "
        f"macro F1 {facts['validation_macro_f1']:.3f} on the validation images"
    )


@cli.command()
@as_dataset
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@with_model
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--output", type=FILE, help="Write a CSV file.")
@click.option("--overlays", type=FOLDER, help="A folder for pictures of where it looked.")
def predict(
    dataset: str, paths: tuple[Path, ...], model: str | None, as_json: bool, output: Path | None, overlays: Path | None
) -> None:
    """Ask the best network of DATASET about image files, or about all images in folders.

    Research, no medical device: not for diagnosis or treatment. The probabilities are calibrated on the validation
    images where those decide a temperature (`calibrated` in JSON and CSV). Exit code 2 where a file is no image; the
    others are answered all the same.
    """
    with quiet_start():
        from medtransfer.core.files import atomic_file
        from medtransfer.serving import predict as serving

    images = serving.find_images(paths)
    classifier = serving.open_classifier(dataset, model)
    answers = list(serving.answer(classifier, images, overlays))
    table = serving.as_table(answers, classifier.facts)
    if output:
        with atomic_file(output) as partial:
            table.to_csv(partial, index=False)
        click.echo(f"{counted(len(table), 'image')}: {output}", err=True)
    problems = [found.problem for found in answers if found.problem]
    if as_json:
        click.echo(json.dumps(serving.as_json(answers, classifier), indent=2))
    elif not output and len(problems) < len(answers):
        _print_answers(table, classifier.facts)
    for problem in problems:
        click.echo(f"medtransfer: {problem}", err=True)
    if problems:
        sys.exit(EXIT_USER_ERROR)


def _print_answers(table: Any, facts: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from medtransfer.report.tables import SYNTHETIC_NOTE
    from medtransfer.serving.classifier import NOTE

    view = Table("image", "predicted", title=f"{facts['title']}: {facts['model']}, seed {facts['seed']}")
    view.title_justify = "left"
    for name in facts["classes"]:
        view.add_column(name, justify="right")
    for row in table[table.problem == ""].to_dict("records"):
        view.add_row(escape(row["image"]), row["predicted"], *(f"{row[f'p_{name}']:.3f}" for name in facts["classes"]))
    print_table(view)
    click.echo(NOTE + (f" {SYNTHETIC_NOTE}" if facts["synthetic"] else ""))


def _check_names(context: click.Context, option: click.Parameter, hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        if not re.fullmatch(r"(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", host):
            raise click.BadParameter(f"{host!r}: expected a name such as scans.example.org or *.example.org")
    return hosts


@cli.command()
@as_dataset
@with_model
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    callback=_check_names,
    help="Another name under which it may be asked, without a port; *.NAME for all below NAME.",
)
def serve(dataset: str, model: str | None, host: str, port: int, hosts: tuple[str, ...]) -> None:
    """Show a page on which to drop an image, and answer programs: POST /predict with the file as the body.

    Research, no medical device: not for diagnosis or treatment.
    """
    with quiet_start():
        import uvicorn

        from medtransfer.serving.app import LOOPBACK, build_app
        from medtransfer.serving.predict import open_classifier

    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise UserError(f"{host}:{port}: {error.strerror}; choose another with --port or --host") from None
    app = build_app(open_classifier(dataset, model), (*LOOPBACK, *hosts))
    click.echo(f"http://{host}:{port} answers for {dataset}; stop it with Ctrl-C")
    uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False)
