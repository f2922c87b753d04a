"""Do our metrics agree with those of other libraries? Compared on the predictions of every committed fit.

    python -m venv .peers
    .peers/bin/pip install torch torchmetrics netcal statsmodels .
    .peers/bin/python benchmarks/peers.py

Prints the largest difference to each library and writes benchmarks/results/peers.json. The libraries are not among the
project's own dependencies: PyTorch is large.
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import statsmodels.api as sm
import torch
from netcal.metrics import ECE
from scipy.special import logit
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, f1_score, roc_auc_score
from torchmetrics.functional.classification import multiclass_auroc, multiclass_calibration_error, multiclass_f1_score

from medtransfer.analysis.calibration import CLIPPED, recalibration
from medtransfer.core.predictions import read_predictions
from medtransfer.metrics.scores import AUC, BALANCED, BINS, BRIER, CALIBRATION, MACRO, encode, score

PEERS = ("scikit-learn", "torchmetrics", "netcal", "statsmodels", "torch")
OUTPUT = Path("benchmarks/results/peers.json")


def compare(predictions: pd.DataFrame) -> dict[str, float]:
    """Return the size of each difference between a metric of ours and of another library."""
    ours = score(predictions)
    _, codes, probabilities, _ = encode(predictions)
    classes = probabilities.shape[1]
    labels, predicted = range(classes), probabilities.argmax(axis=1)
    tensor, target = torch.tensor(probabilities), torch.tensor(codes)
    area = probabilities[:, 1] if classes == 2 else probabilities
    theirs = {
        ("scikit-learn", MACRO): f1_score(codes, predicted, labels=labels, average="macro", zero_division=0.0),
        ("scikit-learn", BALANCED): balanced_accuracy_score(codes, predicted),
        ("scikit-learn", AUC): roc_auc_score(codes, area, multi_class="ovr"),
        ("scikit-learn", BRIER): brier_score_loss(codes, probabilities, labels=labels),
        ("torchmetrics", MACRO): float(multiclass_f1_score(tensor, target, classes, average="macro")),
        ("torchmetrics", AUC): float(multiclass_auroc(tensor, target, classes, average="macro")),
        ("torchmetrics", CALIBRATION): float(multiclass_calibration_error(tensor, target, classes, BINS, "l1")),
        ("netcal", CALIBRATION): float(ECE(BINS).measure(area, codes)),
    }
    found = {f"{name}, {library}": abs(ours[name] - value) for (library, name), value in theirs.items()}
    for number in labels:
        ours_slope, _ = recalibration(codes == number, probabilities[:, number], with_slope=True)
        if np.isfinite(ours_slope):
            x = logit(probabilities[:, number].clip(CLIPPED, 1 - CLIPPED))
            fit = sm.GLM(codes == number, sm.add_constant(x), family=sm.families.Binomial()).fit(tol=1e-12)
            key = "calibration slope, statsmodels"
            found[key] = max(found.get(key, 0.0), abs(ours_slope - float(fit.params[1])))
    return found


def main() -> None:
    """Compare every committed fit and write the largest differences."""
    fits = sorted(Path("results").glob("*/runs/*/*/predictions.csv"))
    tables = (read_predictions(path) for path in fits)
    rows = pd.DataFrame([compare(table[table.split == "test"]) for table in tables], index=list(map(str, fits)))
    found = {
        "command": "python benchmarks/peers.py",
        "fits": len(fits),
        "versions": {
            name: version(name) for name in ("scikit-learn", "torchmetrics", "netcal", "statsmodels", "torch")
        },
        "largest_difference": rows.max().to_dict(),
        "fits_above_1e-6": (rows > 1e-6).sum().to_dict(),
    }
    OUTPUT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
