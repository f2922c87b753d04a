"""What the talk claims, put to the test: each claim is that one model's macro F1 is higher than another's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from medtransfer.analysis.intervals import correct
from medtransfer.analysis.questions import PAIR, find_pair

LEVEL = 0.05
COLUMNS = ["sentence", "dataset", "better", "worse", *PAIR, "verdict"]


@dataclass(frozen=True)
class Claim:
    """A sentence of the talk and the comparison that decides it."""

    sentence: str
    dataset: str
    better: str
    worse: str


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


def judge(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return every claim that `pairs`, from `compare_models`, can decide.

    The claims were there before any number: their p-values are corrected for their own number, not for that of all
    pairs of models.

    Returns
    -------
    DataFrame
        sentence, dataset, better, worse, PAIR, verdict: `holds` or `does not hold` where it is `settled`, else
        `not settled`.
    """
    rows = []
    for claim in CLAIMS:
        found = find_pair(pairs, claim.dataset, claim.better, claim.worse)
        if found is not None:
            rows.append({**vars(claim), **found})
    table = pd.DataFrame(rows, columns=COLUMNS)
    if rows:
        table["p_corrected"] = correct(table.p.to_numpy())
        table["verdict"] = [_verdict(row) for row in table.to_dict("records")]
    return table


def _verdict(found: dict[Any, Any]) -> str:
    if not settled(found):
        return "not settled"
    return "holds" if found["difference"] > 0 else "does not hold"


def settled(pair: Mapping[Any, Any]) -> bool:
    """Return whether p < LEVEL after correction and the difference has the same sign with every seed.

    p is of the test groups alone: of the variation of training it knows nothing.
    """
    return bool(pair["p_corrected"] < LEVEL and pair["least"] * pair["most"] > 0)
