"""gradcam: a finished network → Grad-CAM for a correct and a wrong prediction per class, in artifacts/gradcam/."""

from pathlib import Path

import numpy as np
import pandas as pd

from medtransfer.core.files import atomic_folder, write_json
from medtransfer.core.layout import GRADCAM, run_name
from medtransfer.core.params import Params
from medtransfer.core.predictions import predicted_labels, probabilities_of, read_predictions
from medtransfer.core.prepared import check_data_of, finished_network, read_dataset
from medtransfer.core.run_record import note_of, read_record
from medtransfer.layers.gradcam import grad_cam, why_unclear
from medtransfer.models import vgg16
from medtransfer.report import figures
from medtransfer.training.device import prepare_backend


def explain_predictions(params: Params, dataset: str, name: str, seed: int) -> Path:
    """Write gradcam.png, images.csv and gradcam.json for one finished fit, and return their folder.

    They show the most confident correct and the most confident wrong prediction of each class on the test images, each
    with the map of the predicted class.
    """
    fitted = finished_network(params, dataset, name, seed)
    prepare_backend()
    images, samples, description = read_dataset(params, dataset)
    check_data_of(fitted, description, samples)
    predictions = read_predictions(fitted / "predictions.csv")
    chosen = choose(predictions[predictions.split == "test"].reset_index(drop=True), description["classes"])
    pixels = np.asarray(images[pd.Index(samples.id).get_indexer(chosen.id)])
    predicted = chosen.predicted.map(description["classes"].index).to_numpy()
    heat = grad_cam(vgg16.load_network(fitted / "model.keras"), pixels, predicted)
    record = read_record(fitted)
    with atomic_folder(GRADCAM / dataset / run_name(name, seed)) as folder:
        chosen.round(6).to_csv(folder / "images.csv", index=False)
        _, height, width = heat.shape
        seen = why_unclear(height, width) or f"where it looked, {height} × {width} positions"
        title = figures.mark(f"{dataset}, {name}, seed {seed}: Grad-CAM, {seen}", note_of(record))
        figures.gradcam(chosen, pixels, heat, description["classes"], title).savefig(folder / "gradcam.png")
        write_json(folder / "gradcam.json", {"dataset": dataset, "model": name, "seed": seed, "fit": record["fit"]})
    return GRADCAM / dataset / run_name(name, seed)


def choose(predictions: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Return the most confident correct and wrong prediction of each true class, in the order of the classes.

    Columns: id, label, predicted, probability (of the predicted class), right.
    """
    table = predictions[["id", "label"]].assign(
        predicted=predicted_labels(predictions), probability=probabilities_of(predictions).max(axis=1)
    )
    table["right"] = table.label == table.predicted
    best = table.sort_values("probability", ascending=False, kind="stable").drop_duplicates(["label", "right"])
    order = best.label.map(classes.index)
    return best.assign(order=order).sort_values(["order", "right"], ascending=[True, False]).drop(columns="order")
