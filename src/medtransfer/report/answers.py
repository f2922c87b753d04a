"""The front of the page: each question, the comparison of two models that answers it, and its verdict."""

from collections.abc import Iterator, Sequence

import pandas as pd

from medtransfer.analysis.claims import CLAIMS, FAILS, HOLDS, NOT_SHOWN, SMALL
from medtransfer.analysis.differences import Comparison, find_pair
from medtransfer.analysis.uncertainty import GROUPS, LEVEL
from medtransfer.report.study import Study
from medtransfer.report.tables import difference, interval_text, mistuned, p_value
from medtransfer.report.words import words_for

HIGHER, LOWER, NOT_TESTED = "higher", "lower", "estimate only"
FROM_IMAGENET = "imagenet_all"
TOO_FEW = "fewer than"
COLUMNS = ["change", "data set", "verdict", "macro F1", "seeds", "p, corrected"]


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
    models, if there is one. A claim with too few seeds here gets its verdict from the first of the `others` that can
    judge it, as docs/analysis-plan.md says.
    """
    rows = []
    for change, first, second in QUESTIONS:
        for dataset in study.tables.results.dataset.drop_duplicates():
            pair = find_pair(study.tables.pairs, dataset, first, second)
            if pair:
                found = judged(study.tables.claims, pair)
                if TOO_FEW in found["verdict"]:
                    found = next(_verdicts_elsewhere(others, dataset, first, second), found)
                warned = mistuned(study.tables.results, dataset)
                for model in warned.keys() & {first, second}:
                    found["verdict"] = f"**{model}: {warned[model]}**"
                rows.append({"change": change, "data set": words_for(dataset).title, **found})
    return pd.DataFrame(rows, columns=COLUMNS).set_index("change")


def _verdicts_elsewhere(others: Sequence[Study], dataset: str, first: str, second: str) -> Iterator[dict[str, str]]:
    for other in others:
        pair = find_pair(other.tables.pairs, dataset, first, second)
        found = judged(each_by_itself(other.tables.claims), pair) if pair else {}
        verdict = found.get("verdict", "").strip("*")
        if verdict in (HIGHER, LOWER, NOT_SHOWN, SMALL):
            size = other.of(dataset)[0].record["image_size"]
            yield {**found, "verdict": f"**{verdict}, at {size} px**"}


def each_by_itself(claims: pd.DataFrame) -> pd.DataFrame:
    """Return claims with verdicts that need no common family (Bonferroni), as the plan requires of mixed sizes."""
    undecided = claims.verdict.isin((HOLDS, FAILS)) & ~(claims.p < LEVEL / len(CLAIMS))
    return claims.assign(verdict=claims.verdict.mask(undecided, NOT_SHOWN))


def interim(studies: Sequence[Study]) -> tuple[str, pd.DataFrame] | None:
    """Return the claims that the first study cannot judge yet and another can, from `judge`, and the other's name."""
    key = ["dataset", "first", "second"]
    claims = studies[0].tables.claims
    decided = set(claims[claims.p.notna()][key].itertuples(index=False, name=None))
    for study in studies[1:]:
        found = each_by_itself(study.tables.claims[study.tables.claims.p.notna()])
        found = found[[row not in decided for row in found[key].itertuples(index=False, name=None)]]
        if len(found):
            return study.name, found
    return None


def judged(claims: pd.DataFrame, pair: Comparison) -> dict[str, str]:
    """Return verdict, difference, seeds and corrected p of a comparison.

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
    return {
        "verdict": f"**{verdict}**",
        "macro F1": interval_text(value, low, high) + star,
        "seeds": "{} and {}".format(*seeds),
        "p, corrected": p_value(claim.p_corrected),
    }
