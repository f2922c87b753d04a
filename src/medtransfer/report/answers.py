"""The front of the page: each question, the comparison of two models that answers it, and its verdict."""

from collections.abc import Hashable, Sequence
from typing import Any

import pandas as pd

from medtransfer.analysis.claims import CLAIMS, FAILS, HOLDS, NOT_SHOWN
from medtransfer.analysis.differences import Comparison, find_pair
from medtransfer.analysis.uncertainty import GROUPS, LEVEL
from medtransfer.report.study import Study
from medtransfer.report.tables import difference, interval_text, mistuned, p_value
from medtransfer.report.words import words_for

HIGHER, LOWER, NOT_TESTED = "higher", "lower", "estimate only"
FROM_IMAGENET = "imagenet_all"
TOO_FEW = "fewer than"
COLUMNS = ["change", "data set", "verdict", "macro F1", "seeds", "p, corrected"]
CLAIM = ["dataset", "first", "second"]  # the columns that name a claim


# Changes, and the two models whose difference in macro F1, first minus second, shows the effect of each.
QUESTIONS = (
    ("ImageNet weights instead of random weights", FROM_IMAGENET, "cnn_random"),
    ("train the last block instead of the first", "imagenet_last_block", "imagenet_first_block"),
    ("train the first and last blocks instead of all", "imagenet_first_last", FROM_IMAGENET),
    ("train the last block instead of all", "imagenet_last_block", FROM_IMAGENET),
    ("train only the head instead of all", "imagenet_head", FROM_IMAGENET),
)


def answers(study: Study, others: Sequence[Study] = ()) -> pd.DataFrame:
    """Return one row per question and data set that the study can answer: COLUMNS, indexed by change.

    The difference in macro F1 has its 95% interval, and the corrected p is that of the talk's claim about the two
    models, if there is one. Claims with too few seeds here are those of `interim`.
    """
    claims = pd.concat([interim(study, others), study.tables.claims]).drop_duplicates(CLAIM)
    rows = []
    for change, first, second in QUESTIONS:
        for dataset in study.tables.results.dataset.drop_duplicates():
            pair = find_pair(study.tables.pairs, dataset, first, second)
            if pair:
                found = judged(claims, pair)
                warned = mistuned(study.tables.results, dataset)
                for model in warned.keys() & {first, second}:
                    found["verdict"] = f"**{model}: {warned[model]}**"
                rows.append({"change": change, "data set": words_for(dataset).title, **found})
    return pd.DataFrame(rows, columns=COLUMNS).set_index("change")


def each_by_itself(claims: pd.DataFrame) -> pd.DataFrame:
    """Return claims with verdicts that need no common family (Bonferroni), as the plan requires of mixed sizes."""
    undecided = claims.verdict.isin((HOLDS, FAILS)) & ~(claims.p < LEVEL / len(CLAIMS))
    return claims.assign(verdict=claims.verdict.mask(undecided, NOT_SHOWN))


def interim(study: Study, others: Sequence[Study]) -> pd.DataFrame:
    """Return the claims with too few seeds in a study, each from the first of the others that can judge it.

    The columns are those of `judge`, then the other study's name and image size (docs/analysis-plan.md, 'Runs').
    """
    waiting = study.tables.claims[study.tables.claims.verdict.str.startswith(TOO_FEW)]
    found: dict[tuple[str, ...], dict[Hashable, Any]] = {}
    for other in others:
        for claim in each_by_itself(other.tables.claims.dropna(subset="p")).to_dict("records"):
            size = other.of(claim["dataset"])[0].record["image_size"]
            found.setdefault(tuple(claim[key] for key in CLAIM), {**claim, "study": other.name, "size": size})
    keys = waiting[CLAIM].itertuples(index=False, name=None)
    return pd.DataFrame([found[key] for key in keys if key in found], columns=[*waiting, "study", "size"])


def judged(claims: pd.DataFrame, pair: Comparison) -> dict[str, str]:
    """Return verdict, difference, seeds and corrected p of a comparison; `claims` has the column `size` of `interim`.

    They are those of the talk's claim about the two models, with the seeds that the plan names for it. The verdict is
    HIGHER or LOWER (the first model's macro F1), NOT_TESTED if the talk claims nothing, or the claim's own verdict if
    it is not shown or cannot be judged.
    """
    models = {pair.first, pair.second}
    about = claims[(claims.dataset == pair.dataset) & claims["first"].isin(models) & claims["second"].isin(models)]
    if about.empty:
        row = {"verdict": f"**{NOT_TESTED}**", "macro F1": difference(pair), "p, corrected": "-"}
        return {**row, "seeds": f"{pair.first_seeds} and {pair.second_seeds}"}
    claim = about.iloc[0]
    value, low, high, seeds = claim.difference, claim.low, claim.high, (claim.first_seeds, claim.second_seeds)
    if claim["first"] != pair.first:
        value, low, high, seeds = -value, -high, -low, seeds[::-1]
    verdict = (HIGHER if value > 0 else LOWER) if claim.verdict in (HOLDS, FAILS) else claim.verdict
    star = " *" if claim.interval == GROUPS else ""
    elsewhere = f", at {claim['size']:.0f} px" if pd.notna(claim["size"]) else ""
    return {
        "verdict": f"**{verdict}{elsewhere}**",
        "macro F1": interval_text(value, low, high) + star,
        "seeds": "{} and {}".format(*seeds),
        "p, corrected": p_value(claim.p_corrected),
    }
