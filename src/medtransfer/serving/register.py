"""register: a finished network, by default the best → MLflow's registry, as a model that takes image files."""

import logging
import tempfile
from pathlib import Path
from typing import Any

from medtransfer.analysis.runs import finished_networks, studied, studied_models
from medtransfer.core.dvc import check_unchanged
from medtransfer.core.errors import UserError, check_known
from medtransfer.core.files import digest_of_folder, hold
from medtransfer.core.layout import RUNS
from medtransfer.core.params import Params
from medtransfer.core.predictions import only_prediction, read_predictions
from medtransfer.core.prepared import check_raw_data, data_of
from medtransfer.core.run_record import read_record, warn_of_leftovers
from medtransfer.metrics.scores import MACRO, score
from medtransfer.serving.classifier import write_classifier
from medtransfer.tracking import mlflow_models, mlflow_runs, mlflow_store
from medtransfer.training.device import make_deterministic

log = logging.getLogger(__name__)


@mlflow_store.answering()
def register(params: Params, dataset: str, fit: Path | None = None) -> tuple[dict[str, Any], str, str]:
    """Register a finished fit; by default, the network with the highest macro F1 on the validation images as the best.

    Returns the content of classifier.json, the model's version in MLflow and its alias there: the fit's name, or BEST.
    """
    check_known("params.yaml: study", dataset, params.study)
    alias = fit.name if fit else mlflow_models.BEST
    fit = fit or best_fit(params, dataset)
    only = only_prediction(read_predictions(fit / "predictions.csv", "validation"))
    if only:
        better = ", and no network does better" if alias == mlflow_models.BEST else ""
        log.warning("%s: predicts only %s on the validation images%s", fit, only, better)
    description = data_of(fit)
    check_raw_data(dataset)
    client = mlflow_store.reach()
    run_id = mlflow_runs.find(client, dataset, read_record(fit)["fit"])
    if run_id is None:
        raise UserError(f"{fit}: MLflow has no run of this fit; run `medtransfer audit --repair`")
    if client.get_run(run_id).data.tags.get(mlflow_runs.OUTPUTS) not in (None, digest_of_folder(fit)):
        raise UserError(f"{fit}: MLflow's run {run_id} was logged from different files; `medtransfer audit` says more")
    make_deterministic()
    # Two at once would each make a version.
    busy, lock = "another process is registering a network", RUNS.with_name("register.lock")
    with hold(lock, busy), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, mlflow_models.CLASSIFIER)
        folder.mkdir()
        facts = write_classifier(params, fit, description, folder)
        return facts, mlflow_models.register_classifier(run_id, folder, facts, alias), alias


def best_fit(params: Params, dataset: str) -> Path:
    """Return the folder of the study's finished network with the highest macro F1 on the validation images."""
    warn_of_leftovers(RUNS, studied_models(params), "are not candidates for the best")
    # Check every fit first: a damaged or missing one could be the best.
    for path in studied(params):
        if path.parent == RUNS / dataset:
            check_unchanged(path)
    return max(
        finished_networks(params, dataset),
        key=lambda fit: score(read_predictions(fit / "predictions.csv", "validation"))[MACRO],
    )
