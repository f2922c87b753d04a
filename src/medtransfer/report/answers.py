"""The front of the page: each question, the comparison of two models that answers it, and the verdict."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from medtransfer.analysis.claims import settled
from medtransfer.analysis.questions import find_pair
from medtransfer.report.study import Study
from medtransfer.report.tables import difference, p_value, spanned

FROM_IMAGENET = "imagenet_all"
TITLES = {"ham10000": "skin lesions", "chest_xray": "chest X-rays"}


@dataclass(frozen=True)
class Question:
    """A change, and the two models whose difference in macro F1, first less second, shows what it does."""

    change: str
    first: str
    second: str


QUESTIONS = (
    Question("ImageNet weights instead of random weights", FROM_IMAGENET, "cnn_random"),
    Question("train the last block instead of the first", "imagenet_last_block", "imagenet_first_block"),
    Question("train the first and last blocks instead of all", "imagenet_first_last", FROM_IMAGENET),
    Question("train the last block instead of all", "imagenet_last_block", FROM_IMAGENET),
    Question("train the head alone instead of all", "imagenet_head", FROM_IMAGENET),
)


def answers(study: Study) -> pd.DataFrame:
    """Return one row per question and data set that the study can answer.

    Returns
    -------
    DataFrame
        Indexed by change: data set, verdict, difference in macro F1 with its 95% interval, seeds, lowest and highest
        difference of a seed, corrected p.
    """
    rows = [
        {
            "change": question.change,
            "data set": title(dataset),
            "verdict": f"**{verdict(pair)}**",
            "macro F1": difference(pair),
            "seeds": f"{pair['seeds']:.0f}",
            "by seed": " to ".join(spanned(pair, "least", "most")),
            "p, corrected": p_value(pair["p_corrected"]),
        }
        for question in QUESTIONS
        for dataset in study.table.dataset.drop_duplicates()
        if (pair := planned(study, dataset, question.first, question.second))
    ]
    columns = ["change", "data set", "verdict", "macro F1", "seeds", "by seed", "p, corrected"]
    return pd.DataFrame(rows, columns=columns).set_index("change")


def verdict(pair: dict[Any, Any]) -> str:
    """Return `higher` or `lower` if the difference is significant, has one sign in all seeds and more than one seed."""
    if not settled(pair) or pair["seeds"] == 1:
        return "not shown"
    return "higher" if pair["difference"] > 0 else "lower"


def planned(study: Study, dataset: str, first: str, second: str) -> dict[Any, Any] | None:
    """Return the comparison of two models, first less second, with the p-value of the talk's claim about them, if any.

    Where the talk claims nothing, p is corrected for all pairs that answer the same question.
    """
    pair, claims = find_pair(study.pairs, dataset, first, second), study.claims
    both = {first, second}
    about = claims[(claims.dataset == dataset) & claims.better.isin(both) & claims.worse.isin(both)]
    return {**pair, "p_corrected": about.p_corrected.iloc[0]} if pair and len(about) else pair


def title(dataset: str) -> str:
    """Return a data set's name in plain words."""
    return TITLES.get(dataset, dataset)
