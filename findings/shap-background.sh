#!/usr/bin/env bash
# shap 0.51.0: of a background of more than 100 rows, explainers use 100 random ones.
# Expected: LinearExplainer(model, rows) and TreeExplainer(model, rows) explain against all rows that they are given, so that the
# base value is the model's mean over these rows.
# Seen: of 2,000 rows, 100 are kept. The base value is .016 where the mean is .079, and the part of a prediction that a rare
# finding gets is off, too. No warning. A masker with max_samples=len(rows) uses them all.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet shap==0.51.0 numba==0.68.1 scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import shap
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

random = np.random.default_rng(0)
rows = random.normal(size=(2000, 3))
rows[:, 2] = np.arange(2000) < 40
labels = random.random(2000) < 1 / (1 + np.exp(-rows[:, 0] - 5 * rows[:, 2]))
linear = LogisticRegression(C=1000).fit(rows, labels)
forest = RandomForestClassifier(20, max_depth=5, random_state=0).fit(rows, labels)

mean = linear.decision_function(rows).mean()
some = shap.LinearExplainer(linear, rows)
every = shap.LinearExplainer(linear, shap.maskers.Independent(rows, max_samples=len(rows)))
rare = float(some(rows[:1]).values[0, 2]), float(every(rows[:1]).values[0, 2])
trees = shap.TreeExplainer(forest, rows)
print(shap.__version__, f"mean {mean:.3f}, base value {some.expected_value:.3f}, with max_samples {every.expected_value:.3f};")
print(f"the rare finding gets {rare[0]:.3f}, with max_samples {rare[1]:.3f}; rows kept for trees: {len(trees.data)}")
assert abs(every.expected_value - mean) < 1e-6
assert abs(some.expected_value - mean) > 0.05 and len(trees.data) == 100, "the whole background is now used"
PYTHON
