#!/usr/bin/env bash
# skl2onnx 1.20.0 with scikit-learn 1.9.1: a forest that was trained with missing values predicts differently as ONNX.
# Expected: ONNX Runtime gives the forest's probabilities to rounding, or the conversion is refused, as it is for boosting.
# Seen: rows without a missing value agree. Of the rows with one, such as patients of unknown age, 40% get another class, and
# probabilities are off by up to .78: the side to which each split sends missing values is lost. A pipeline of
# SimpleImputer(add_indicator=True) and logistic regression is wrong in rows without missing values, too. No error or warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet skl2onnx==1.20.0 onnx==1.23.2 onnxruntime==1.32.0 scikit-learn==1.9.1 scipy==1.17.1 \
    numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import numpy as np
import onnxruntime
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from skl2onnx import to_onnx

random = np.random.default_rng(0)
inputs = random.normal(size=(4000, 5)).astype(np.float32)
labels = (inputs[:, 0] + random.normal(size=4000) > 0).astype(int)
inputs[random.random(4000) < 0.2, 0] = np.nan
test, missing = inputs[2000:], np.isnan(inputs[2000:, 0])


def differ(model):
    model.fit(inputs[:2000], labels[:2000])
    converted = to_onnx(model, inputs[:1], options={"zipmap": False}).SerializeToString()
    session = onnxruntime.InferenceSession(converted, providers=["CPUExecutionProvider"])
    classes, probabilities = session.run(None, {"X": test})
    other = classes != model.predict(test)
    shares = other[missing].mean(), other[~missing].mean()
    off = abs(probabilities - model.predict_proba(test)).max()
    print(version("skl2onnx"), type(model).__name__, "rows with another class: {:.2f} missing, {:.2f} complete".format(*shares))
    print(f"the largest difference of a probability: {off:.2f}")
    return shares


with_missing, without = differ(RandomForestClassifier(50, random_state=0))
assert without == 0
assert with_missing > 0.2, "a converted forest now knows where missing values go"
assert differ(make_pipeline(SimpleImputer(), LogisticRegression())) == (0, 0)
assert min(differ(make_pipeline(SimpleImputer(add_indicator=True), LogisticRegression()))) > 0.05
PYTHON
