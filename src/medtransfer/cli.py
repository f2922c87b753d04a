"""The `medtransfer` command: parses, calls, and turns a user's mistake into one line and exit code 2.

What a command needs is imported when it runs: the help appears at once, and Keras's backend is
settled before Keras is imported.
"""

import errno
import gc
import io
import json
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import click

from medtransfer.core.errors import UserError, check_known, counted
from medtransfer.core.layout import DATA, PARAMS, TUNING, check_name
from medtransfer.core.params import TREES, Params, TrainParams, read_params

EXIT_USER_ERROR = 2
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
COUNT, SOME = click.IntRange(0), click.IntRange(1)
RATE = click.FloatRange(0, min_open=True)
SEED = click.IntRange(0, 2**31 - 1)
OPTIMIZERS = get_args(TrainParams.model_fields["optimizer"].annotation)
# What the machine refuses and the user can mend: a full or read-only disk, a missing right.
MACHINE_ERRORS = {
    errno.ENOSPC: "make room or use another disk",
    errno.EDQUOT: "make room or use another disk",
    errno.EROFS: "make room or use another disk",
    errno.EACCES: "fix the permissions",
    errno.EPERM: "fix the permissions",
    errno.ENOTDIR: "name another path",  # a file of the user's where a folder has to be
}


def main() -> None:
    """Run the command line."""
    # Imports make objects by the million that stay; to look through them again and again takes a sixth of a stage.
    gc.set_threshold(100_000)
    signal.signal(signal.SIGTERM, _stop_like_ctrl_c)
    # A script's shell starts `medtransfer study &` with Ctrl-C ignored, and so would all that it starts: nothing could
    # stop DVC and the stages as they are to be stopped.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a log file shows each epoch when it ends
    try:
        # Click's own way to end prints the usage and a hint before what is wrong.
        sys.exit(cli(prog_name="medtransfer", standalone_mode=False))
    except UserError as error:
        click.echo(f"medtransfer: {error}", err=True)
        sys.exit(EXIT_USER_ERROR)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(EXIT_USER_ERROR)
    except click.UsageError as error:
        asked = error.ctx.command_path if error.ctx else "medtransfer"
        told = " ".join(error.format_message().split()).rstrip(".")
        click.echo(f"{asked}: {told}. See `{asked} --help`.", err=True)
        sys.exit(EXIT_USER_ERROR)
    except click.Abort:
        click.echo("Aborted!", err=True)
        sys.exit(1)
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        mend = MACHINE_ERRORS[error.errno]
        click.echo(f"medtransfer: {error.filename or Path.cwd()}: {error.strerror}; {mend}, then run again", err=True)
        sys.exit(EXIT_USER_ERROR)


def _stop_like_ctrl_c(signum: int, frame: Any) -> None:
    # `timeout` and service managers send it to a study and its stages at once, and the study passes it on as Ctrl-C:
    # a second one would interrupt a run while it ends.
    for repeated in (signal.SIGTERM, signal.SIGINT):
        signal.signal(repeated, signal.SIG_IGN)
    raise KeyboardInterrupt(signum)


@click.group()
@click.version_option(package_name="medtransfer")
def cli() -> None:
    """Transfer learning on medical images: which layers of VGG16 matter?"""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("medtransfer").setLevel(logging.INFO)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # The stages run `medtransfer` and DVC runs the stages: both come from this environment.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Hold back what TensorFlow prints while it is imported, which no setting silences; show it if that fails."""
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _params() -> Params:
    return read_params(PARAMS)


def _dvc(*arguments: str) -> None:
    """Run DVC; its own message says what went wrong, so only its exit code is passed on."""
    from medtransfer.study.run import run_dvc

    code = run_dvc(*arguments)
    if code:
        sys.exit(code)


def _check() -> Params:
    """Read params.yaml and check what a study needs beside it."""
    from medtransfer.core.dvc import check_dvc_files, check_pipeline

    params = _params()
    check_dvc_files()
    check_pipeline(params)
    return params


@cli.command()
@click.option("--jobs", type=SOME, help="Stages to run at once. [default: 1 with a GPU, else 2]")
def study(jobs: int | None) -> None:
    """Run the whole study and print the comparison.

    Gets the data that data.dvc names and runs every stage that is out of date, some side by side.
    """
    from medtransfer.study.run import default_jobs, run_study

    params = _check()
    server = os.environ.get("MLFLOW_TRACKING_URI")  # the user's: MLflow puts its own there later
    try:
        click.echo("The data that data.dvc names:")
        _dvc("pull", "data.dvc")
        code = run_study(jobs or default_jobs())
    except KeyboardInterrupt:
        click.echo("\nStopped. What is finished is kept: run it again and it goes on.", err=True)
        raise
    if code:
        sys.exit(code)
    _log_what_is_missing()
    _print_results()
    from medtransfer.tracking.mlflow_store import redact

    where = redact(server) if server else "`make ui`, then open http://127.0.0.1:5000"
    click.echo(f"\nCompare the runs: {where} (experiments {' and '.join(params.study)})")


def _log_what_is_missing() -> None:
    """Log the fits that MLflow does not know: it was away when they ended, or they came from DVC's cache."""
    with _quiet_start():
        from medtransfer.audit.audit import repair
    try:
        for line in repair(read_models=False):
            click.echo(line)
    except UserError as error:
        click.echo(f"{error}; `medtransfer audit --repair` logs later what it lacks", err=True)


@cli.command()
def check() -> None:
    """Check params.yaml, dvc.yaml and that the study's data are there, and say what the study has."""
    from medtransfer.study.check import describe_study

    lines = list(describe_study(_check()))
    click.echo("\n".join([f"{PARAMS}: no mistake found", *lines]))


@cli.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--output", type=FILE, default=Path("reports/index.html"), show_default=True)
def report(folders: tuple[Path, ...], output: Path) -> None:
    """Write the report, one page with everything in it, of FOLDERS under results/ or of the study here.

    The first folder answers the question, the others stand beside it.
    """
    from medtransfer.study.report import report as write

    write(list(folders) or [Path()], output)
    click.echo(f"the report: {output}")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
def tables(folder: Path) -> None:
    """Compute the tables of FOLDER, which `collect` made, from the predictions in it."""
    from medtransfer.study.report import write_result_tables

    write_result_tables(folder)
    click.echo(f"tables: {folder / 'results.md'}")


@cli.command()
@click.argument("leaky", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.argument("clean", type=click.Path(path_type=Path, file_okay=False, exists=True))
def leak(leaky: Path, clean: Path) -> None:
    """Compare collected results with and without the leak on the same test images.

    LEAKY was made with split.leak: match, CLEAN with split.leak: remove.
    """
    from medtransfer.study.report import write_leakage

    click.echo(f"leak: {write_leakage(leaky, clean)}")


@cli.command()
@click.argument("name")
@click.option("--add", is_flag=True, help="Keep what results/NAME holds and add to it, as another seed.")
@click.option("--replace", is_flag=True, help="Remove what results/NAME holds.")
def collect(name: str, add: bool, replace: bool) -> None:
    """Copy what is small of all finished fits to results/NAME, to be committed."""
    from medtransfer.study.collect import collect as copy

    click.echo(f"collected: {copy(name, add=add, replace=replace)}")


@cli.command()
def results() -> None:
    """Print the comparison with the talk that `evaluate` wrote."""
    _print_results()


def _print_results() -> None:
    import pandas as pd
    from rich.console import Console

    from medtransfer.analysis.families import TALK
    from medtransfer.metrics.scores import MACRO
    from medtransfer.report.tables import terminal

    path = Path("reports/results.csv")
    if not path.exists():
        raise UserError(f"{path}: not found; run `medtransfer study`")
    table = pd.read_csv(path)
    # A pipe has no width: wide enough for every column then.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    for dataset in table.dataset.drop_duplicates():
        console.print(terminal(table, dataset))
        others = table[(table.dataset == dataset) & (table["class"] == MACRO) & (table.family != TALK)]
        if len(others):
            told = ", ".join(f"{row.model} {row.f1:.2f}" for row in others.itertuples())
            click.echo(f"Beyond the talk's models, macro F1: {told}")
    click.echo("Tables, figures and how each run was made: reports/results.md, reports/figures/")


@cli.group()
def stage() -> None:
    """Run one stage of dvc.yaml (`dvc repro` calls these)."""


@stage.command("prepare")
@click.argument("dataset")
def stage_prepare(dataset: str) -> None:
    """Verify, split, decode and resize a data set."""
    from medtransfer.pipeline.prepare import prepare

    prepare(_params(), dataset)


@stage.command("baseline")
@click.argument("dataset")
@click.argument("model", type=click.Choice(TREES))
@click.option("--seed", type=SEED, required=True)
def stage_baseline(dataset: str, model: str, seed: int) -> None:
    """Fit a decision tree or a random forest on pixel values."""
    params = _params()
    from medtransfer.pipeline.baseline import baseline

    baseline(params, dataset, model, seed)


@stage.command("train")
@click.argument("dataset")
@click.argument("configuration")
@click.option("--seed", type=SEED, required=True)
def stage_train(dataset: str, configuration: str, seed: int) -> None:
    """Fit one freezing configuration of VGG16."""
    params = _params()
    with _quiet_start():
        from medtransfer.pipeline.train import train

    train(params, dataset, configuration, seed)


@stage.command("explain")
@click.argument("dataset")
def stage_explain(dataset: str) -> None:
    """Write the first layer's activations with ImageNet and with random weights."""
    params = _params()
    with _quiet_start():
        from medtransfer.pipeline.explain import explain

    explain(params, dataset)


@stage.command("evaluate")
def stage_evaluate() -> None:
    """Score every fit and compare with the talk."""
    params = _params()
    from medtransfer.pipeline.evaluate import evaluate

    evaluate(params)


@cli.group()
def data() -> None:
    """Get, check and describe the raw data sets in data/."""


@data.command("demo")
@click.option("--seed", type=SEED, default=0, show_default=True)
def data_demo(seed: int) -> None:
    """Draw the synthetic stand-in for both data sets and put it under DVC."""
    from medtransfer.data.demo import draw_demo

    _get_what_is_named()
    draw_demo(DATA, seed)
    _dvc("add", "data")
    click.echo("SYNTHETIC stand-ins for ham10000 and chest_xray are in data/: drawn pictures, nothing medical in them")


@data.command("fetch")
@click.argument("name")
def data_fetch(name: str) -> None:
    """Download a data set from Kaggle and put it in data/, under DVC."""
    from medtransfer.data.catalogue import get_dataset
    from medtransfer.data.importing import fetch_dataset

    _get_what_is_named()
    _announce(name, fetch_dataset(get_dataset(name), DATA))


@data.command("import")
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
def data_import(name: str, path: Path) -> None:
    """Put a zip or folder in the Kaggle layout in data/, under DVC."""
    from medtransfer.data.catalogue import get_dataset
    from medtransfer.data.importing import import_dataset

    _get_what_is_named()
    _announce(name, import_dataset(get_dataset(name), path, DATA))


def _get_what_is_named() -> None:
    """Get the data that data.dvc names before others lie beside them: `dvc add` leaves out what is not there."""
    from medtransfer.core.dvc import POINTER
    from medtransfer.study.run import run_dvc

    if POINTER.exists() and not DATA.is_dir() and (code := run_dvc("pull", str(POINTER))):
        click.echo(f"{POINTER}: names data that DVC cannot get; remove this file to begin without them", err=True)
        sys.exit(code)


def _announce(name: str, files: int) -> None:
    _dvc("add", "data")
    click.echo(f"{name}: {files} files are in data/{name}; data.dvc names this version: commit it to keep it")


@data.command("add")
@click.argument("name")
@click.option("--images", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--labels", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A CSV file, one row per image."
)
@click.option("--image-column", default="image", show_default=True)
@click.option("--label-column", default="label", show_default=True)
@click.option("--group", help="The column with what no two splits may share, such as the patient.")
@click.option("--title", help="[default: NAME, or as params.yaml has it]")
@click.option("--licence", help="[default: unknown, or as params.yaml has it]")
@click.option("--citation", help="[default: none, or as params.yaml has it]")
@click.option("--only", is_flag=True, help="Take the other data sets out of the study.")
def data_add(
    name: str,
    images: Path,
    labels: Path | None,
    image_column: str,
    label_column: str,
    group: str | None,
    title: str | None,
    licence: str | None,
    citation: str | None,
    only: bool,
) -> None:
    """Put a data set of your own in data/, under DVC, and into the study.

    Without --labels, each class is a folder of its own in --images. Then `dvc repro` studies it.
    """
    from medtransfer.data.custom import Columns
    from medtransfer.study.custom_data import About, add_own

    if group and not labels:
        raise UserError("--group: names a column of --labels, which is missing; give both or neither")
    if not only:
        _get_what_is_named()
    columns, about = Columns(image_column, label_column, group), About(title, licence, citation)
    params = _check()
    files = add_own(params, name, images, labels, columns, about, only)
    _announce(name, files)
    others = [other for other in params.study if other != name]
    if only and others:
        click.echo(f"out of the study: {', '.join(others)}; this version of the data has of them what lies in data/")
    click.echo("params.yaml and dvc.yaml have it now: look at them, then `dvc repro`")


@data.command("validate")
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
def data_validate(names: tuple[str, ...], as_json: bool) -> None:
    """Check images, labels, metadata and duplicates; exit with 2 where something is wrong."""
    from medtransfer.data.checks import validate

    reports = [validate(dataset, DATA / dataset.name) for dataset in _datasets(names)]
    if as_json:
        click.echo(json.dumps(reports, indent=2))
    else:
        for report in reports:
            _print_validation(report)
    wrong = sum(len(report["problems"]) for report in reports)
    if wrong:
        raise UserError(f"{counted(wrong, 'problem')} in the raw data; mend or import it again")


def _datasets(names: tuple[str, ...]) -> list[Any]:
    """Return the catalogue's entries, by default of the study's data sets and of what else is there."""
    from medtransfer.data.catalogue import CATALOGUE, get_dataset
    from medtransfer.data.custom import dataset_of

    if not PARAMS.exists():
        return [get_dataset(name) for name in names or CATALOGUE]
    params = _params()
    there = [name for name in params.datasets if name in params.study or (DATA / name).is_dir()]
    return [dataset_of(name, params) for name in names or there]


def _print_validation(report: dict[str, Any]) -> None:
    mark = "SYNTHETIC " if report["synthetic"] else ""
    crossing = sum(entry["crosses_labels"] for entry in report["duplicates"])
    click.echo(f"{mark}{report['name']}: {report['images']} images of {report['groups']} {report['group']}s")
    click.echo("  " + ", ".join(f"{label} {entry['images']}" for label, entry in report["classes"].items()))
    click.echo(f"  {len(report['duplicates'])} sets of byte-equal images, {crossing} of them with different labels")
    click.echo(f"  {counted(len(report['problems']), 'problem')}")
    for problem in report["problems"][:20]:
        click.echo(f"    {problem}")
    if len(report["problems"]) > 20:
        click.echo("    … (--json lists them all)")


@data.command("describe")
@click.argument("names", nargs=-1)
@click.option("--plots", type=FOLDER, default=Path("artifacts/class_distribution"), show_default=True)
def data_describe(names: tuple[str, ...], plots: Path) -> None:
    """Print classes, counts, groups, licence and citation; plot the class distribution."""
    from medtransfer.data.checks import class_counts, describe
    from medtransfer.report.figures import class_distribution, mark

    for dataset in _datasets(names):
        name = dataset.name
        entry = describe(dataset, DATA / name)
        _print_description(entry)
        plots.mkdir(parents=True, exist_ok=True)
        class_distribution(
            class_counts(entry), mark(f"{name}: images a class", entry["synthetic"]), plots / f"{name}.png"
        )
        click.echo(f"  plot: {plots / f'{name}.png'}\n")


def _print_description(entry: dict[str, Any]) -> None:
    click.echo(f"{'SYNTHETIC stand-in for ' if entry['synthetic'] else ''}{entry['title']}")
    click.echo(f"  {entry['images']} images of {entry['groups']} {entry['group']}s; from {entry['source']}")
    for label, counts in entry["classes"].items():
        click.echo(
            f"  {label:<10} {counts['images']:>6} images {counts['groups']:>6} {entry['group']}s  {counts['meaning']}"
        )
    click.echo(f"  licence of the real data set: {entry['licence']}")
    click.echo(f"  cite: {entry['citation']}")


@cli.group()
def weights() -> None:
    """VGG16's ImageNet weights."""


@weights.command("fetch")
def weights_fetch() -> None:
    """Download the weights, unless the user's cache has them, verify them and keep them there."""
    with _quiet_start():
        from medtransfer.models.weights import cache_path, fetch_weights, is_cached

    if is_cached():
        click.echo(f"ImageNet weights: they are in {cache_path()}, all 26 tensors")
    else:
        fetch_weights()


@weights.command("verify")
@click.argument("path", type=click.Path(path_type=Path))
def weights_verify(path: Path) -> None:
    """Check that a file holds VGG16's ImageNet weights."""
    with _quiet_start():
        from medtransfer.models.weights import read_weights

    read_weights(path)
    click.echo(f"{path}: VGG16's ImageNet weights, all 26 tensors")


@cli.command()
@click.option("--repair", is_flag=True, help="End stale runs and log again from the outputs what MLflow lacks.")
@click.option("--host", help="With --repair: another machine, on which nothing runs any more; its runs are ended too.")
def audit(repair: bool, host: str | None) -> None:
    """Check that DVC's outputs, MLflow's runs, parameters and data agree; exit with 1 where they differ."""
    if host and not repair:
        raise UserError("--host: given without --repair, which ends the runs of that machine; give both")
    with _quiet_start():
        from medtransfer.audit import audit as store

    if not store.is_there_anything():
        click.echo("nothing to audit yet: no stage has run here; `medtransfer study` runs them")
        return
    if repair:
        for line in store.repair(host):
            click.echo(line)
    differences = store.audit()
    for line in [*store.others(), *differences]:
        click.echo(line)
    fits = len(store.fit_folders())
    click.echo(f"{counted(fits, 'fit')}, {counted(len(differences), 'difference')}")
    if differences:
        sys.exit(1)


@cli.command()
@click.argument("name")
@click.option("--dataset", "datasets", multiple=True, help="[default: all of params.yaml]")
@click.option("--configuration", "names", multiple=True, help="[default: study.<data set>.train in params.yaml]")
@click.option("--seed", "seeds", type=SEED, multiple=True, help="[default: those of params.yaml]")
@click.option("--rate", "rates", type=RATE, multiple=True, help="Learning rate.  [default: those of params.yaml]")
@click.option("--cpus", type=SOME, default=1, show_default=True, help="What one fit takes of a node.")
@click.option("--gpus", type=click.FloatRange(0), default=0.0, show_default=True, help="May be a part of one, as 0.25.")
@click.option("--memory-gb", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True)
@click.option("--retries", type=COUNT, default=3, show_default=True, help="After a worker or node died.")
@click.option("--local", is_flag=True, help="Start Ray on this machine; else the cluster of RAY_ADDRESS is used.")
def sweep(
    name: str,
    datasets: tuple[str, ...],
    names: tuple[str, ...],
    seeds: tuple[int, ...],
    rates: tuple[float, ...],
    local: bool,
    **needs: Any,
) -> None:
    """Run a grid of fits (data sets x configurations x seeds x rates) at the same time, on Ray.

    Options for the grid may be given several times. Fits and their table go to artifacts/sweeps/NAME, their MLflow runs
    under one parent into the experiment `sweep NAME`. Goes on where it stopped.
    """
    params = _params()
    check_name(name, "a sweep")
    try:
        import ray  # noqa: F401
    except ImportError:
        raise UserError("Ray is not installed; pip install --editable '.[cluster]'") from None
    from medtransfer.study.sweep import Needs
    from medtransfer.study.sweep import sweep as run

    grid = (
        list(dict.fromkeys(datasets or params.study)),
        list(dict.fromkeys(names)),
        list(dict.fromkeys(seeds or params.seeds)),
        list(dict.fromkeys(rates)),
    )
    try:
        table = run(params, name, *grid, Needs(**needs), local)
    except KeyboardInterrupt:
        click.echo("\nStopped. What is finished is kept: run it again and it goes on.", err=True)
        raise
    failed = table[table.problem != ""]
    click.echo(f"{len(table) - len(failed)} of {len(table)} fits finished: artifacts/sweeps/{name}/sweep.csv")
    if len(failed):
        click.echo(f"{len(failed)} failed; their logs: artifacts/sweeps/{name}/*/logs/", err=True)
        sys.exit(1)


@cli.group()
def track() -> None:
    """The MLflow store of this project and a server."""


@track.command("push")
def track_push() -> None:
    """Copy the runs of mlruns/ to the server that MLFLOW_TRACKING_URI names, each once.

    Parameters, curves, system metrics, data, figures and models come along, with their times and statuses.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError("MLFLOW_TRACKING_URI: not set; set it to the server's address, such as http://127.0.0.1:5000")
    from medtransfer.audit.push import push

    counts = push()
    text = f"{counts['copied']} runs copied, {counts['already']} were there already"
    click.echo(text + (f", {counts['running']} still run and were left out" if counts["running"] else ""))


@cli.command()
@click.argument("dataset")
def register(dataset: str) -> None:
    """Register the best network of a data set in MLflow, as a model that takes image files.

    The best has the highest macro F1 on the validation images; `predict` and `mlflow models serve` then find it as
    models:/DATASET@best.
    """
    params = _params()
    with _quiet_start():
        from medtransfer.serving.register import register as run

    facts, version = run(params, dataset)
    click.echo(
        f"{dataset} version {version}, models:/{dataset}@best: {facts['model']} of seed {facts['seed']}, "
        f"macro F1 {facts['validation_macro_f1']:.3f} on the validation images"
    )


@cli.command()
@click.argument("dataset")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--model", help="Another registered model, such as models:/ham10000/2.  [default: models:/DATASET@best]")
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
    with _quiet_start():
        from medtransfer.serving import predict as stage

    images = stage.find_images(paths)
    classifier = stage.open_classifier(dataset, model)
    answers = list(stage.answer(classifier, images, overlays))
    table = stage.as_table(answers, classifier.facts)
    if output:
        from medtransfer.core.files import atomic_file

        with atomic_file(output) as partial:
            table.to_csv(partial, index=False)
        click.echo(f"{counted(len(table), 'image')}: {output}", err=True)
    problems = [found.problem for found in answers if found.problem]
    if as_json:
        click.echo(json.dumps(stage.as_json(answers, classifier), indent=2))
    elif not output and len(problems) < len(answers):
        _print_answers(table, classifier.facts)
    for problem in problems:
        click.echo(f"medtransfer: {problem}", err=True)
    if problems:
        sys.exit(EXIT_USER_ERROR)


def _host_names(context: click.Context, option: click.Parameter, hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        if not re.fullmatch(r"(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", host):
            raise click.BadParameter(f"{host!r}: expected a name such as scans.example.org or *.example.org")
    return hosts


@cli.command()
@click.argument("dataset")
@click.option("--model", help="Another registered model, such as models:/ham10000/2.  [default: models:/DATASET@best]")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    callback=_host_names,
    help="Another name under which it may be asked, without a port; *.NAME for all below NAME.",
)
def serve(dataset: str, model: str | None, host: str, port: int, hosts: tuple[str, ...]) -> None:
    """Show a page on which to drop an image, and answer programs: POST /predict with the file as the body.

    Research, no medical device: not for diagnosis or treatment.
    """
    with _quiet_start():
        import uvicorn

        from medtransfer.serving.app import LOOPBACK, build_app
        from medtransfer.serving.predict import open_classifier

    _refuse_busy_port(host, port)
    app = build_app(open_classifier(dataset, model), (*LOOPBACK, *hosts))
    click.echo(f"http://{host}:{port} answers for {dataset}; stop it with Ctrl-C")
    uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False)


def _refuse_busy_port(host: str, port: int) -> None:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"{host}:{port}: {error.strerror}; choose another with --port or --host") from None


def _print_answers(table: Any, facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from medtransfer.report.tables import SYNTHETIC_NOTE
    from medtransfer.serving.classifier import NOTE

    view = Table(title=f"{facts['title']}: {facts['model']}, seed {facts['seed']}", title_justify="left")
    for name in ("image", "predicted", *facts["classes"]):
        view.add_column(name, justify="left" if name in ("image", "predicted") else "right")
    for row in table[table.problem == ""].to_dict("records"):
        view.add_row(escape(row["image"]), row["predicted"], *(f"{row[f'p_{name}']:.3f}" for name in facts["classes"]))
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(view)
    click.echo(NOTE + (f" {SYNTHETIC_NOTE}" if facts["synthetic"] else ""))


@cli.command()
@click.argument("dataset")
@click.option("--configuration", "names", multiple=True, help="Only this one; may be given several times.")
@click.option("--rate", "rates", type=RATE, multiple=True, default=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3), show_default=True)
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), help="[default: what params.yaml says]")
@click.option("--fraction", type=click.FloatRange(0, 1, min_open=True), help="[default: what params.yaml says]")
@click.option("--epochs", type=SOME, default=10, show_default=True)
@click.option("--output", type=FILE, default=TUNING, show_default=True)
def tune(
    dataset: str,
    names: tuple[str, ...],
    rates: tuple[float, ...],
    optimizer: str | None,
    fraction: float | None,
    epochs: int,
    output: Path,
) -> None:
    """Compare learning rates for each freezing configuration on the validation images.

    Put the best into the configuration in params.yaml, as in learning_rate: {ham10000: 1e-4}. Goes on where it stopped.
    """
    params = _params()
    check_known("params.yaml: study", dataset, params.study)
    with _quiet_start():
        from medtransfer.study.tune import tune as run

    study = params.study[dataset]
    chosen = list(dict.fromkeys(names)) or [*study.train, *study.transfer]
    table = run(params, dataset, chosen, list(rates), fraction, epochs, output, optimizer)
    best = table.loc[table.groupby("configuration", sort=False).val_loss.idxmin()]
    for row in best.itertuples():
        rate = f"learning_rate: {{{dataset}: {row.learning_rate:g}}}"
        click.echo(f"{row.configuration}: {rate}  # {row.optimizer}, validation loss {row.val_loss:.4f}")


@cli.command()
@click.argument("dataset")
@click.argument("configuration")
@click.option("--seed", type=SEED, help="[default: the first in params.yaml]")
def layers(dataset: str, configuration: str, seed: int | None) -> None:
    """Ask a finished network which of its layers matter.

    Puts one block after the other back to its start weights, compares each layer with what it was before
    training, and fits a linear classifier on what each block gives.
    """
    params = _params()
    with _quiet_start():
        from medtransfer.study.layers import analyse_layers

    folder = analyse_layers(params, dataset, configuration, params.seeds[0] if seed is None else seed)
    click.echo(f"layers: {folder}")


@cli.command()
@click.argument("dataset")
@click.argument("configuration")
@click.option("--seed", type=SEED, help="[default: the first in params.yaml]")
def gradcam(dataset: str, configuration: str, seed: int | None) -> None:
    """Show where a finished network looked: for each class, its surest right and wrong answers."""
    params = _params()
    with _quiet_start():
        from medtransfer.study.gradcam import explain_predictions

    folder = explain_predictions(params, dataset, configuration, params.seeds[0] if seed is None else seed)
    click.echo(f"gradcam: {folder}")


@cli.group()
def cache() -> None:
    """Features of frozen prefixes, kept in the user's cache."""


@cache.command("show")
def cache_show() -> None:
    """List the stored features, the least recently used first."""
    from datetime import datetime

    from medtransfer.training.feature_cache import GB, entries, store

    found = entries()
    for entry in found:
        made_from = entry["made_from"]
        if not made_from:
            click.echo(f"{entry['path'].name}  {entry['bytes'] / GB:8.3f} GB  unfinished")
            continue
        used = datetime.fromtimestamp(entry["last_used"]).strftime("%Y-%m-%d %H:%M")
        click.echo(
            f"{entry['path'].name}  {entry['bytes'] / GB:8.3f} GB  last used {used}  {made_from['prefix']}, "
            f"{made_from['image_size']} px, {made_from['precision']}, {made_from['backend']} on {made_from['device']}"
        )
    total = sum(entry["bytes"] for entry in found)
    click.echo(f"{len(found)} entries, {total / GB:.3f} of {_params().cache.max_gb:g} GB (cache.max_gb), in {store()}")


@cache.command("clear")
def cache_clear() -> None:
    """Remove all stored features; they are computed again when they are needed."""
    from medtransfer.training.feature_cache import GB, clear

    click.echo(f"removed {clear() / GB:.3f} GB")
