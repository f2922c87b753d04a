"""The nine claims of the talk, tested as in docs/analysis-plan.md."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.analysis.differences import Comparison, compare
from medtransfer.analysis.families import TALK, family
from medtransfer.analysis.power import detectable, seeds_needed
from medtransfer.analysis.runs import Run, by_model
from medtransfer.analysis.uncertainty import FEWEST_FITS, GROUPS, LEVEL, TOO_FEW_FITS

BATCHES = 6, 10  # seeds per model of the first verdict, and of the last
FIRST_UNSEEN = 3  # the plan was committed after the seeds before this one
MARGIN = 0.02
PLANNED = (0.02, 0.05, 0.10)  # differences for which the seeds needed are given
HOLDS, FAILS, NOT_SHOWN, SMALL = "holds", "does not hold", "not shown", "difference below .02"
TOO_FEW_SEEDS = "fewer than {} seeds"
COLUMNS = [
    "claim", "dataset", "first", "second", "first_seeds", "second_seeds", "difference", "low", "high", "interval",
    "simultaneous_low", "simultaneous_high", "p", "p_corrected", "verdict", "unseen_difference", "unseen_low",
    "unseen_high", "detectable", *(f"seeds_for_{difference:.2f}" for difference in PLANNED),
]  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """A sentence of the talk, and two models: it claims that the first has the higher macro F1.

    seeds : the seeds per model that a verdict needs
    """

    text: str
    dataset: str
    first: str
    second: str
    seeds: int = BATCHES[0]


CLAIMS = (
    Claim("A target task can benefit from an unrelated source task", "ham10000", "imagenet_all", "cnn_random", 10),
    Claim("A target task can benefit from an unrelated source task", "chest_xray", "imagenet_all", "cnn_random"),
    Claim("Later layers matter more than beginning layers", "ham10000", "imagenet_last_block", "imagenet_first_block"),
    Claim("Best accuracy using ImageNet weights with all layers", "ham10000", "imagenet_all", "imagenet_first_last"),
    Claim("Best accuracy using ImageNet weights with all layers", "ham10000", "imagenet_all", "imagenet_last_block"),
    Claim("CNN with random weights is the best of the baselines", "ham10000", "cnn_random", "random_forest", 10),
    Claim("CNN models outperform decision tree and random forest", "chest_xray", "cnn_random", "random_forest"),
    Claim("HAM10000 weights outperform random weights", "chest_xray", "ham10000_all", "cnn_random"),
    Claim("ImageNet weights got the best accuracy", "chest_xray", "imagenet_all", "ham10000_all"),
)


@dataclass(frozen=True)
class Evidence:
    """A claim with the comparison that judges it.

    pair : of the seeds that the plan names
    unseen : of the seeds that were fitted after the plan only, or None
    """

    claim: Claim
    pair: Comparison
    unseen: Comparison | None = None


def compare_claims(runs: Iterable[Run]) -> list[Evidence]:
    """Compare the two models of each claim, using only fits with the study's own recipe.

    The first batch of seeds counts until both models have all seeds.
    """
    models = {
        (dataset, model): sorted(fits, key=lambda fit: fit.seed)
        for dataset, model, fits in by_model(runs)
        if family(fits[0].record) == TALK
    }
    found = []
    for claim in CLAIMS:
        sides = [models.get((claim.dataset, name), []) for name in (claim.first, claim.second)]
        if all(sides):
            batch = max((size for size in BATCHES if min(map(len, sides)) >= size), default=BATCHES[0])
            first, second = (side[:batch] for side in sides)
            newer = [[fit for fit in side if fit.seed >= FIRST_UNSEEN] for side in (first, second)]
            unseen = compare(newer[0], newer[1], TALK) if min(map(len, newer)) >= FEWEST_FITS else None
            found.append(Evidence(claim, compare(first, second, TALK), unseen))
    return found


def judge(evidence: Sequence[Evidence], outside: Mapping[str, str]) -> pd.DataFrame:
    """Return the verdict on every claim; `outside` has the data sets on which the plan tests nothing, and why.

    Returns
    -------
    DataFrame
        COLUMNS: the difference with its 95% interval, and with one that covers all claims at once (simultaneous); p and
        p_corrected (Holm) only where the claim can be judged; verdict; the difference of the unseen seeds; detectable
        (the smallest difference that would be found with a power of 80%); and the seeds per model needed to find each
        of PLANNED.
    """
    untested = [_untested(one, outside) for one in evidence]
    p_values = np.array([np.nan if reason else one.pair.p for one, reason in zip(evidence, untested, strict=True)])
    corrected = correct(p_values, len(CLAIMS))
    judged = zip(evidence, untested, p_values, corrected, strict=True)
    rows = [
        {**_row(one), "p": p, "p_corrected": p_corrected, "verdict": reason or verdict(one.pair, p_corrected)}
        for one, reason, p, p_corrected in judged
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(evidence: Evidence) -> dict[str, Any]:
    pair, unseen, level = evidence.pair, evidence.unseen, LEVEL / len(CLAIMS)
    row = {"claim": evidence.claim.text, **{name: getattr(pair, name) for name in COLUMNS[1:7]}}
    if pair.interval == GROUPS:  # a claim is about recipes, not about these fits
        row["interval"] = TOO_FEW_FITS
    else:
        row["interval"] = pair.interval
        row |= zip(("low", "high"), pair.ends, strict=True)
        row |= zip(("simultaneous_low", "simultaneous_high"), pair.ends_at(level), strict=True)
    if unseen:
        ends = unseen.ends
        row |= {"unseen_difference": unseen.difference, "unseen_low": ends[0], "unseen_high": ends[1]}
    needed = {f"seeds_for_{size:.2f}": seeds_needed(pair, size, level, evidence.claim.seeds) for size in PLANNED}
    return {**row, "detectable": detectable(pair, level), **needed}


def correct(p_values: np.ndarray, count: int) -> np.ndarray:
    """Return p-values corrected for `count` tests (Holm, Scand. J. Stat. 6, 65-70, 1979); NaN stays NaN.

    A missing test, or NaN, counts as a test with a larger p-value.
    """
    corrected = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: np.isfinite(p_values).sum()]
    corrected[order] = np.maximum.accumulate(p_values[order] * np.arange(count, count - len(order), -1))
    return np.minimum(corrected, 1)


def verdict(pair: Comparison, p_corrected: float) -> str:
    """Return HOLDS, FAILS, SMALL (the simultaneous interval lies within ±MARGIN) or NOT_SHOWN."""
    if p_corrected < LEVEL:
        return HOLDS if pair.difference > 0 else FAILS
    return SMALL if max(map(abs, pair.ends_at(LEVEL / len(CLAIMS)))) < MARGIN else NOT_SHOWN


def _untested(evidence: Evidence, outside: Mapping[str, str]) -> str | None:
    if reason := outside.get(evidence.pair.dataset):
        return f"not tested: {reason}"
    if evidence.pair.fewest_seeds < evidence.claim.seeds:
        return TOO_FEW_SEEDS.format(evidence.claim.seeds)
    return evidence.pair.few or None
