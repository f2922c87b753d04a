"""Do the intervals cover, and do the tests hold their level? Simulated on the committed predictions.

    python benchmarks/uncertainty.py           # all, or
    python benchmarks/uncertainty.py halves    # only this part

Three tables, printed and written to benchmarks/results/uncertainty.json:

coverage : a fit's test lesions or patients stand for the population and are drawn again with replacement; how often
    the 95% interval of each metric, and of the difference to another network, contains the population's value. The
    thresholds for a specificity and the temperature are those of the fit's validation images.
false positives : two recipes that are equally good. Their lesions are drawn again as above, and each of K fits per
    recipe gets the noise of a seed, whose standard deviation is `ratio` times the standard error over lesions.
    `noise` says how it is divided: see NOISES.
halves : six seeds of one recipe, three against the other three, in all ten ways. The splits of one network depend on
    each other, so their number is compared with what simulated normal seeds give.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from medtransfer.analysis.calibration import calibration_table
from medtransfer.analysis.clinical import class_table
from medtransfer.analysis.differences import compare_scores
from medtransfer.analysis.runs import Run, by_model, read_run
from medtransfer.analysis.scores import estimate_of, scaled
from medtransfer.analysis.uncertainty import freedom, group_sums, groups_variance
from medtransfer.core.predictions import classes_of
from medtransfer.metrics.scores import BY_NAME, CALIBRATION, MACRO, metrics_of, score

RUNS = Path("results/real-64px-by-group/runs")
DATASETS = ("ham10000", "chest_xray")
OUTPUT = Path("benchmarks/results/uncertainty.json")
SEED, DRAWS = 0, 1000
LESIONS, REPEATS = 20_000, 5  # sets of lesions, and sets of seeds for each of them
SEEDS, RATIOS, LEVELS = (3, 5, 6, 10), (1, 2, 4, 8), (0.05, 0.05 / 9)
# The first recipe's share of the variance between seeds, and the share of its fits that collapse: all score the same
# lower value. Without collapses, the noise is normal.
NOISES = {
    "equal": (1 / 2, 0.0),
    "9 to 1": (9 / 10, 0.0),
    "90 to 1": (90 / 91, 0.0),
    "a twentieth collapse": (90 / 91, 1 / 20),
    "a tenth collapse": (90 / 91, 1 / 10),
    "a fifth collapse": (90 / 91, 1 / 5),
    "a third collapse": (90 / 91, 1 / 3),
    "half collapse": (90 / 91, 1 / 2),
}


def coverage(dataset: str) -> dict[str, float]:
    """Return how often each interval contains the truth."""
    rng = np.random.default_rng(SEED)
    fit, other = (read_run(RUNS / dataset / f"{model}-seed0") for model in ("imagenet_all", "cnn_random"))
    metrics = metrics_of(classes_of(fit.predictions))
    truth = score(fit.predictions)
    truth["difference"] = fit.scores[MACRO] - other.scores[MACRO]
    parts = list(fit.predictions.groupby("group").indices.values())
    error, per_class = BY_NAME[CALIBRATION], _per_class(fit)
    true_error = score(scaled([fit])[0].predictions)[CALIBRATION]
    covered: dict[str, list[bool]] = {}
    for _ in range(DRAWS):
        chosen = [parts[number] for number in rng.integers(len(parts), size=len(parts))]
        drawn, rival = (_draw(run, chosen) for run in (fit, other))
        for metric in metrics:
            found = estimate_of([drawn], metric)
            if np.isfinite(found.low):
                covered.setdefault(metric.name, []).append(found.low <= truth[metric.name] <= found.high)
        found = estimate_of(scaled([drawn]), error)
        covered.setdefault(f"{CALIBRATION}, scaled", []).append(found.low <= true_error <= found.high)
        for name, (_, low, high) in _per_class(drawn).items():
            if np.isfinite([low, per_class[name][0]]).all():
                covered.setdefault(name, []).append(low <= per_class[name][0] <= high)
        pair = compare_scores([drawn.jackknife], [rival.jackknife], BY_NAME[MACRO])
        width = stats.t.ppf(0.975, len(parts) - 1) * pair["groups_sd"]
        covered.setdefault("difference", []).append(abs(pair["difference"] - truth["difference"]) <= width)
    return {name: float(np.mean(hits)) for name, hits in covered.items()}


def _per_class(run: Run) -> dict[str, tuple[float, float, float]]:
    """Return sensitivity and the like of each class, and its calibration: value, low and high of each."""
    clinical = class_table([run])
    found = {f"{row['class']}: {row.measure}": (row.value, row.low, row.high) for _, row in clinical.iterrows()}
    for _, row in calibration_table([run]).iterrows():
        for measure in ("intercept", "slope"):
            ends = (row[measure], row[f"{measure}_low"], row[f"{measure}_high"])
            found[f"{row['class']}: calibration {measure}"] = ends
    return found


def _draw(run: Run, chosen: list[np.ndarray]) -> Run:
    groups = np.repeat(np.arange(len(chosen)), list(map(len, chosen)))
    rows = run.predictions.iloc[np.concatenate(chosen)]
    drawn = rows.assign(group=groups.astype(str)).reset_index(drop=True)
    return Run(run.record, drawn, run.history, run.validation)


def false_positives(dataset: str) -> list[dict[str, Any]]:
    """Return the share of significant differences between recipes that are equally good."""
    rng = np.random.default_rng(SEED)
    metric = BY_NAME[MACRO]
    sides = [
        group_sums(read_run(RUNS / dataset / f"{model}-seed0").encoded, metric)
        for model in ("imagenet_all", "imagenet_first_last")
    ]
    count = len(sides[0])
    truth = metric.value(sides[0].sum(axis=0)) - metric.value(sides[1].sum(axis=0))
    shifts, variances = np.empty(LESIONS), np.empty(LESIONS)
    for place in range(LESIONS):
        chosen = rng.integers(count, size=count)
        totals = [side[chosen].sum(axis=0) for side in sides]
        left = [metric.value(total - side[chosen]) for total, side in zip(totals, sides, strict=True)]
        shifts[place] = metric.value(totals[0]) - metric.value(totals[1]) - truth
        variances[place] = groups_variance((left[0] - left[1]) - (left[0] - left[1]).mean())
    tau = shifts.std()
    rows = []
    for seeds, ratio, name in itertools.product(SEEDS, RATIOS, NOISES):
        share, collapsing = NOISES[name]
        size = (LESIONS, REPEATS, seeds)
        drawn = _collapses(rng, collapsing, size) if collapsing else rng.normal(size=size)
        noise = [
            ratio * tau * np.sqrt(2 * part) * fits
            for part, fits in ((share, drawn), (1 - share, rng.normal(size=size)))
        ]
        parts = [(side.var(axis=2, ddof=1) / seeds, seeds) for side in noise]
        difference = shifts[:, None] + noise[0].mean(axis=2) - noise[1].mean(axis=2)
        total = variances[:, None] + parts[0][0] + parts[1][0]
        degrees = freedom(np.broadcast_to(variances[:, None], total.shape), count, parts)
        p_values = 2 * stats.t.sf(np.abs(difference) / np.sqrt(total), degrees)
        rates = {f"{level:.4f}": float((p_values < level).mean()) for level in LEVELS}
        rows.append({"dataset": dataset, "seeds": seeds, "ratio": ratio, "noise": name, **rates})
    return rows


def _collapses(rng: np.random.Generator, share: float, size: tuple[int, ...]) -> np.ndarray:
    """Return scores of fits, some of which collapse, with mean 0 and standard deviation 1."""
    return (share - (rng.random(size) < share)) / np.sqrt(share * (1 - share))


def halves(runs: list[Run]) -> list[dict[str, Any]]:
    """Return how many of the ten splits of six seeds of each network are significant, and how many to expect."""
    rng = np.random.default_rng(SEED)
    rows = []
    for dataset, model, fits in by_model(runs):
        if len(fits) < 6 or fits[0].record["kind"] != "network":
            continue
        six = [fit.jackknife for fit in fits[:6]]
        values = np.array([fit.of(MACRO)[0] for fit in six])
        tau = float(
            np.mean([compare_scores(first, second, BY_NAME[MACRO])["groups_sd"] for first, second in _splits(six)])
        )
        drawn = [_significant(rng.normal(0, values.std(ddof=1), 6), tau, six[0].groups) for _ in range(1000)]
        found = _significant(values, tau, six[0].groups)
        names = {"dataset": dataset, "model": model}
        rows.append({**names, "significant": found, "expected": float(np.mean(drawn))})
    return rows


def _splits(six: Sequence[Any]) -> Iterator[tuple[list[Any], list[Any]]]:
    """Yield the ten ways to split six things into two halves."""
    for chosen in itertools.combinations(range(1, 6), 2):
        first = {0, *chosen}
        yield [six[k] for k in first], [six[k] for k in range(6) if k not in first]


def _significant(values: np.ndarray, tau: float, count: int) -> int:
    """Return the number of splits with p < .05."""
    found = 0
    for first, second in _splits(list(values)):
        parts = [(float(np.var(side, ddof=1)) / 3, 3) for side in (first, second)]
        error = np.sqrt(tau**2 + sum(part for part, _ in parts))
        found += bool(
            2 * stats.t.sf(abs(np.mean(first) - np.mean(second)) / error, freedom(tau**2, count, parts)) < 0.05
        )
    return found


def main() -> None:
    """Compute the parts that the command line names, or all, and write them as JSON."""
    runs = [read_run(path.parent) for path in sorted(RUNS.glob("*/*/run.json"))]
    parts: dict[str, Callable[[], Any]] = {
        "coverage": lambda: {name: coverage(name) for name in DATASETS},
        "false_positives": lambda: [row for name in DATASETS for row in false_positives(name)],
        "halves": lambda: halves(runs),
    }
    found = json.loads(OUTPUT.read_text())
    for part in sys.argv[1:] or parts:
        found[part] = parts[part]()
        print(part, pd.DataFrame(found[part]).round(4).to_string(), sep="\n")
    OUTPUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
