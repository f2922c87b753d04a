"""Register a network, classify images with it, serve it, and score networks on images from another source."""

import json
import re
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medtransfer.cli.app import EXIT_USER_ERROR, cli
from medtransfer.cli.shared import EXISTING_FOLDER, FILE, FOLDER, SEED, as_dataset, many, quiet_start, with_labels
from medtransfer.core.errors import UserError, counted, first_three
from medtransfer.core.layout import PARAMS, check_name
from medtransfer.core.params import read_params

if TYPE_CHECKING:
    import pandas as pd

    from medtransfer.serving.classifier import Classifier
    from medtransfer.serving.outside import Labels
STOP_SECONDS = 5  # how long requests may take to end after Ctrl-C

with_model = click.option(
    "--model",
    help="Another network: a registered model, such as models:/ham10000/2, or that of a fit's run, runs:/RUN/model.",
    show_default="models:/DATASET@best",
)


@cli.command()
@as_dataset
@click.argument("configuration", required=False)
@click.option("--seed", type=SEED, show_default="the first in params.yaml")
def register(dataset: str, configuration: str | None, seed: int | None) -> None:
    """Register the best network, or a named one, in MLflow.

    The registered model takes image files. The best network has the highest macro F1 on the validation images.
    `predict` and `mlflow models serve` find it as models:/DATASET@best, and a named network as
    models:/DATASET@CONFIGURATION-seedSEED.
    """
    if seed is not None and not configuration:
        raise UserError("--seed: given without a configuration; give both, or neither to register the best network")
    params = read_params(PARAMS)
    with quiet_start():
        from medtransfer.core.prepared import finished_network
        from medtransfer.serving.register import register

    seed = params.seeds[0] if seed is None else seed
    fit = finished_network(params, dataset, configuration, seed) if configuration else None
    facts, version, alias = register(params, dataset, fit)
    click.echo(
        f"{dataset} version {version}, models:/{dataset}@{alias}: {facts['model']}, seed {facts['seed']}, "
        f"macro F1 {facts['validation_macro_f1']:.3f} on the validation images"
    )


@cli.command()
@as_dataset
@click.option("--images", required=True, type=EXISTING_FOLDER, help="The folder with the images.")
@with_labels(required=True)
@many("--configuration", "configurations", help="Score only this configuration; repeat for more.")
@many("--seed", "seeds", type=SEED, show_default="from params.yaml")
@click.option("--name", help="A name for the source of the images.", show_default="the name of the folder")
def score(
    dataset: str, images: Path, labels: "Labels", configurations: list[str], seeds: list[int], name: str | None
) -> None:
    """Score finished networks on images from another source.

    This is external validation; the images need labels. Writes the scores, their difference from the internal test,
    calibration, confusion matrices and predictions to artifacts/external/DATASET/NAME, and one MLflow run per network.
    These images never choose a network or a setting.
    """
    params = read_params(PARAMS)
    title = name or images.resolve().name
    check_name(title, "a source (--name)")  # by default, the folder's name
    from medtransfer.data.custom import dataset_of
    from medtransfer.serving.outside import find_labelled, find_networks

    samples = find_labelled(images, labels, list(dataset_of(dataset, params).classes))
    fits = find_networks(params, dataset, configurations, seeds)
    with quiet_start():
        from medtransfer.report.tables import external
        from medtransfer.study.external import score_outside

    source = {"name": title, "folder": images.resolve().name, "labels": labels.path.name, "map": labels.names}
    folder, compared = score_outside(params, dataset, fits, samples, source)
    click.echo(external(compared).replace("\n", "  ", regex=True).to_string())
    click.echo(f"external score, then its difference from the internal test; all results: {folder}")


@cli.command()
@as_dataset
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@with_model
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--output", type=FILE, help="Write a CSV file.")
@click.option("--overlays", type=FOLDER, help="Write Grad-CAM pictures to this new folder.")
@with_labels()
def predict(
    dataset: str,
    paths: tuple[Path, ...],
    model: str | None,
    as_json: bool,
    output: Path | None,
    overlays: Path | None,
    labels: "Labels | None",
) -> None:
    """Classify images with the best network of DATASET.

    PATHS are image files, or folders of them. For research only, not a medical device: not for diagnosis or treatment.
    An image that is far from the training images is marked (`unlike_training` in JSON and CSV). Probabilities are
    calibrated (`calibrated`) if temperature scaling could be fitted on the validation images and the image resembles
    the training images. If a file is not an image, the others are still classified, and the exit code is 2. With
    --labels, the answers are also scored.
    """
    with quiet_start():
        from medtransfer.core.files import atomic_file
        from medtransfer.serving import outside
        from medtransfer.serving import predict as serving
        from medtransfer.serving.classifier import why_no_overlay

    images = outside.find_images(paths, labels.path if labels else None)
    read = [*images, PARAMS, *([labels.path] if labels else [])]
    if output and output.resolve() in {path.resolve() for path in read}:
        raise UserError(f"--output: {output}: is also an input file; expected another name")
    classifier = serving.open_classifier(dataset, model)
    scores = []
    if labels:
        known = outside.read_labels(labels, classifier.facts["classes"])
        samples = outside.match_labels({path.as_posix(): path for path in images}, known, labels.path)
    if overlays and (why := why_no_overlay(classifier)):
        click.echo(f"medtransfer: {why}", err=True)
        overlays = None
    if overlays and overlays.exists() and any(overlays.iterdir()):  # its pictures may be others' or the user's own
        raise UserError(f"--overlays: {overlays}: is not empty; name a new folder")
    answers = list(serving.answer(classifier, images, overlays))
    if labels:
        label_of = dict(zip(map(str, samples.file), samples.label, strict=True))
        answers = [{**found, "label": label_of.get(found["image"], "")} for found in answers]
        scores = serving.score_answers(answers, samples, classifier.facts)
    table = serving.as_table(answers, classifier.facts)
    if output:
        with atomic_file(output) as partial:
            table.to_csv(partial, index=False)
        click.echo(f"{counted(len(table), 'image')}: {output}", err=True)
    problems = [found["problem"] for found in answers if "problem" in found]
    if as_json:
        click.echo(json.dumps(serving.as_json(answers, classifier), indent=2))
    elif not output and len(problems) < len(answers):
        _print_answers(table, classifier)
    for line in scores:
        click.echo(line, err=as_json)
    for problem in problems:
        click.echo(f"medtransfer: {problem}", err=True)
    if problems:
        sys.exit(EXIT_USER_ERROR)


def _print_answers(table: "pd.DataFrame", classifier: "Classifier") -> None:
    from medtransfer.core.predictions import probability_columns
    from medtransfer.serving.classifier import note_of_answers

    facts = classifier.facts
    shown = table[table.problem == ""][["image", "predicted", *probability_columns(facts["classes"])]]
    click.echo(f"{facts['title']}: {facts['model']}, seed {facts['seed']}")
    click.echo(shown.to_string(index=False, float_format="{:.3f}".format))
    if unlike := list(table.image[table.unlike_training.eq(True)]):
        click.echo(f"unlike the training images, so do not rely on the answer: {first_three(unlike)}")
    if not facts["calibrated"]:
        click.echo("The probabilities are not calibrated: no temperature could be fitted on the validation images.")
    scope = f"For {facts['scope']}. " if facts["scope"] else ""
    click.echo(scope + note_of_answers(classifier))


def _check_names(context: click.Context, option: click.Parameter, hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        if not re.fullmatch(r"(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", host):
            raise click.BadParameter(f"{host!r}: expected a name such as scans.example.org or *.example.org")
    # Browsers send lower case; a proxy may send the name as it was given.
    return tuple(dict.fromkeys([*hosts, *(host.lower() for host in hosts)]))


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
    """Serve the best network of DATASET as a web page.

    Images can be dropped on the page. Programs use POST /predict: the body of the request is the image file. For
    research only, not a medical device: not for diagnosis or treatment.
    """
    with quiet_start():
        import uvicorn

        from medtransfer.serving.app import LOOPBACK, build_app
        from medtransfer.serving.predict import open_classifier

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen()  # before the network is loaded, so that a second server notices
        except socket.gaierror:
            raise UserError(f"--host: {host}: expected an IPv4 address, or a host name of this machine") from None
        except OSError as error:
            raise UserError(f"{host}:{port}: {error.strerror}; choose another with --port or --host") from None
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            # Uvicorn ends well after SIGTERM, but does not know the signal of a terminal that has ended.
            signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
        app = build_app(open_classifier(dataset, model), (*LOOPBACK, *hosts))
        click.echo(f"serving {dataset} on http://{host}:{port}; press Ctrl-C to stop")
        click.echo(f"accepts requests for {', '.join([*LOOPBACK, *hosts])}; --allow-host NAME adds a name or address")
        config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=STOP_SECONDS)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run([listening])
