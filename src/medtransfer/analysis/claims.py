"""The nine claims of the talk, tested as in docs/analysis-plan.md."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medtransfer.analysis.differences import Comparison, find_pair
from medtransfer.analysis.power import detectable, seeds_needed
from medtransfer.analysis.uncertainty import LEVEL

FEWEST_SEEDS = 6
PLANNED = (0.02, 0.05, 0.10)  # differences for which the seeds needed are given
HOLDS, FAILS, NOT_SHOWN = "holds", "does not hold", "not shown"
TOO_FEW_SEEDS, BY_IMAGE = "fewer than six seeds", "not tested: split by image"
COLUMNS = [
    "claim", "dataset", "first", "second", "first_seeds", "second_seeds", "difference", "low", "high", "interval", "p",
    "p_corrected", "verdict", "detectable", *(f"seeds_for_{difference:.2f}" for difference in PLANNED),
]  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """A sentence of the talk, and two models: it claims that the first has the higher macro F1."""

    text: str
    dataset: str
    first: str
    second: str


CLAIMS = (
    Claim("A target task can benefit from an unrelated source task", "ham10000", "imagenet_all", "cnn_random"),
    Claim("A target task can benefit from an unrelated source task", "chest_xray", "imagenet_all", "cnn_random"),
    Claim("Later layers matter more than beginning layers", "ham10000", "imagenet_last_block", "imagenet_first_block"),
    Claim("Best accuracy using ImageNet weights with all layers", "ham10000", "imagenet_all", "imagenet_first_last"),
    Claim("Best accuracy using ImageNet weights with all layers", "ham10000", "imagenet_all", "imagenet_last_block"),
    Claim("CNN with random weights is the best of the baselines", "ham10000", "cnn_random", "random_forest"),
    Claim("CNN models outperform decision tree and random forest", "chest_xray", "cnn_random", "random_forest"),
    Claim("HAM10000 weights outperform random weights", "chest_xray", "ham10000_all", "cnn_random"),
    Claim("ImageNet weights got the best accuracy", "chest_xray", "imagenet_all", "ham10000_all"),
)


def judge(pairs: Iterable[Comparison], by_image: Iterable[str] = ()) -> pd.DataFrame:
    """Return every claim whose two models were compared.

    Parameters
    ----------
    pairs : iterable of Comparison
        From `compare_models`.
    by_image : iterable of str
        Data sets that are split by image, on which the plan tests nothing.

    Returns
    -------
    DataFrame
        COLUMNS: p and p_corrected (Holm) only where the claim can be judged, verdict, detectable (the smallest
        difference that would be found with a power of 80%), and the seeds per model needed to find each of PLANNED.
    """
    pairs = list(pairs)
    found = [(claim, find_pair(pairs, claim.dataset, claim.first, claim.second)) for claim in CLAIMS]
    compared = [(claim, pair) for claim, pair in found if pair]
    untested = {claim: _untested(pair, set(by_image)) for claim, pair in compared}
    p_values = np.array([np.nan if untested[claim] else pair.p for claim, pair in compared])
    corrected = correct(p_values, len(CLAIMS))
    rows = [
        {
            "claim": claim.text,
            **{name: getattr(pair, name) for name in COLUMNS[1:7]},
            "low": pair.ends[0],
            "high": pair.ends[1],
            "interval": pair.interval,
            "p": p,
            "p_corrected": p_corrected,
            "verdict": untested[claim] or verdict(pair.difference, p_corrected),
            "detectable": detectable(pair, LEVEL / len(CLAIMS)),
            **{
                f"seeds_for_{difference:.2f}": seeds_needed(pair, difference, LEVEL / len(CLAIMS))
                for difference in PLANNED
            },
        }
        for (claim, pair), p, p_corrected in zip(compared, p_values, corrected, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def correct(p_values: np.ndarray, count: int) -> np.ndarray:
    """Return p-values corrected for `count` tests (Holm, Scand. J. Stat. 6, 65-70, 1979); NaN stays NaN.

    What is not there yet, or NaN, counts as a test with a larger p.
    """
    corrected = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: np.isfinite(p_values).sum()]
    corrected[order] = np.maximum.accumulate(p_values[order] * np.arange(count, count - len(order), -1))
    return np.minimum(corrected, 1)


def verdict(difference: float, p_corrected: float) -> str:
    """Return HOLDS, FAILS or NOT_SHOWN."""
    if p_corrected >= LEVEL:
        return NOT_SHOWN
    return HOLDS if difference > 0 else FAILS


def _untested(pair: Comparison, by_image: set[str]) -> str | None:
    if pair.dataset in by_image:
        return BY_IMAGE
    if pair.fewest_seeds < FEWEST_SEEDS:
        return TOO_FEW_SEEDS
    return pair.few or None
