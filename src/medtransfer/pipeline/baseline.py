"""baseline: artifacts/prepared/<dataset> → a tree or forest in artifacts/runs/<dataset>/<model>-seed<k>."""

import time
from typing import Any

import skops.io

from medtransfer.core.dvc import check_params_unchanged
from medtransfer.core.files import atomic_folder, sha256_of
from medtransfer.core.layout import PREPARED, checkpoints_folder, run_folder, run_name
from medtransfer.core.params import Params
from medtransfer.core.prepared import encode_labels, read_dataset
from medtransfer.core.run_record import write_record
from medtransfer.metrics.scores import MACRO, MICRO
from medtransfer.pipeline.fit_id import claim_fit, remove_recorded_checkpoints
from medtransfer.pipeline.outputs import describe_fit, log_to_mlflow, mlflow_params, write_scores
from medtransfer.tracking import mlflow_models, mlflow_runs
from medtransfer.trees.classifiers import TRUSTED_TYPES, build_tree, flatten_pixels, predict_probabilities


def baseline(params: Params, dataset: str, model: str, seed: int) -> None:
    """Fit one baseline on the training and validation images and score it on the test images."""
    remove_recorded_checkpoints()
    images, samples, description = read_dataset(params, dataset)
    classes = description["classes"]
    labels = encode_labels(samples, classes)
    fitted_on, tested = samples.split.isin(("train", "validation")), samples.split == "test"
    settings = getattr(params.trees, model)
    record: dict[str, Any] = {
        **describe_fit(description, model, seed),
        "kind": "baseline",
        "backend": "scikit-learn",
        "precision": "float32",
        "device": "CPU",
    }
    hyperparameters = {model: settings.model_dump(), "seed": seed, "image_size": description["image_size"]}
    logged = mlflow_params(record, hyperparameters)
    made_from = {"hyperparameters": hyperparameters, "samples": sha256_of(PREPARED / dataset / "samples.csv")}
    outputs = run_folder(dataset, model, seed)
    with (
        claim_fit(checkpoints_folder(dataset, model, seed), outputs, made_from) as fit,
        atomic_folder(outputs) as folder,
        # Fitting a small tree takes less than a second.
        mlflow_runs.run(dataset, run_name(model, seed), fit, logged, record, sample_seconds=0.2) as run,
    ):
        run.log_data(PREPARED / dataset / "samples.csv", record)
        begin = time.perf_counter()
        tree = build_tree(settings, seed).fit(flatten_pixels(images[fitted_on]), labels[fitted_on])
        seconds = time.perf_counter() - begin
        probabilities = predict_probabilities(tree, images[tested], len(classes))
        metrics = write_scores(folder, samples[tested], probabilities, classes)
        check_params_unchanged(params, f"trees.{model}")
        skops.io.dump(tree, folder / "model.skops")  # loads without running code
        write_record(folder, {**record, "fit": fit, "seconds": seconds}, hyperparameters)
        log_to_mlflow(run, folder)
        example = flatten_pixels(images[tested][:1])
        run.log_model(lambda: mlflow_models.log_sklearn_model(tree, example, TRUSTED_TYPES))
    scores = f"micro F1 {metrics[MICRO]:.3f}, macro F1 {metrics[MACRO]:.3f}"
    print(f"{dataset} {model} on {record['device']}: {scores}, {seconds:.1f} s")
