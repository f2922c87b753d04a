"""The front of the page: each question, the comparison of two models that answers it, and its verdict."""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from medtransfer.analysis.agreement import agree
from medtransfer.analysis.claims import CLAIMS, FAILS, HOLDS, MARGIN, NOT_SHOWN, SMALL, TOO_FEW_SEEDS
from medtransfer.analysis.differences import Comparison, find_pair
from medtransfer.analysis.families import changed_recipe
from medtransfer.analysis.uncertainty import BOTH, LEVEL
from medtransfer.core.errors import counted
from medtransfer.core.params import BLOCKS
from medtransfer.report.study import Study, exact_values
from medtransfer.report.tables import crossed, difference, interval_text, mistuned, one_line
from medtransfer.report.words import words_for

HIGHER, LOWER, LITTLE, UNCLEAR = "higher", "lower", "little effect", "no clear effect"
FEW_RUNS = "estimate only"  # the interval leaves out the variation between training runs
FROM_IMAGENET = "imagenet_all"
# The verdicts of claims with too few seeds, and how many they need.
WAITING = {TOO_FEW_SEEDS.format(claim.seeds): claim.seeds for claim in CLAIMS}
COLUMNS = ["question", "change", "data set", "verdict", "so far", "macro F1", "seeds", "place"]
# What the front of the page calls a verdict.
IN_FRONT = {NOT_SHOWN: UNCLEAR, SMALL: LITTLE}
CLAIM = ["dataset", "first", "second"]  # the columns that name a claim


class Change(NamedTuple):
    """A change, and the two models whose difference in macro F1, first minus second, shows its effect."""

    question: str
    name: str
    first: str
    second: str


TRANSFER, LAYERS, FREEZING = "Does transfer help?", "Which layers matter?", "What should be frozen?"
MODERN = "And with a modern recipe?"
WITH_IT = "modern recipe: "
IMPORTANT = "most important block in the layer analyses"
CHANGES = (
    Change(TRANSFER, "ImageNet instead of random weights", FROM_IMAGENET, "cnn_random"),
    Change(TRANSFER, "add HAM10000 to ImageNet", "ham10000_all", FROM_IMAGENET),
    Change(LAYERS, "train the last block instead of the first", "imagenet_last_block", "imagenet_first_block"),
    Change(FREEZING, "freeze blocks 1 to 4", "imagenet_last_block", FROM_IMAGENET),
    Change(FREEZING, "freeze blocks 2 to 4", "imagenet_first_last", FROM_IMAGENET),
    Change(FREEZING, "freeze all blocks", "imagenet_head", FROM_IMAGENET),
)


def answers(study: Study, others: Sequence[Study] = ()) -> pd.DataFrame:
    """Return one row per change and data set that the studies can compare: COLUMNS, indexed by change.

    The difference in macro F1 has its 95% interval. `so far` is what the interval says without a test. Claims with too
    few seeds in the first study are those of `interim`, and the changes among networks with the modern recipe come from
    the first study that has some; `place` is then the image size there.
    """
    claims = settled(study, others)
    rows = []
    for question, name, first, second in CHANGES:
        for dataset in study.tables.results.dataset.drop_duplicates():
            pair = find_pair(study.tables.pairs, dataset, first, second)
            if pair:
                found = judged(claims, pair)
                warned = mistuned(study.tables.results, dataset)
                for model in warned.keys() & {first, second}:
                    found["verdict"] = f"{model}: {warned[model]}"
                rows.append({"question": question, "change": name, "data set": words_for(dataset).title, **found})
    rows += _with_the_modern_recipe([study, *others])
    table = pd.DataFrame(rows, columns=COLUMNS).drop_duplicates(["change", "data set"])
    return table.set_index("change")


def _with_the_modern_recipe(studies: Sequence[Study]) -> Iterator[dict[str, Any]]:
    for study in studies:
        for dataset in study.tables.results.dataset.drop_duplicates():
            about = {"question": MODERN, "data set": words_for(dataset).title}
            for change, pair in _modern_pairs(study, dataset):
                yield {**about, "change": change, **_untested(pair, _place(study, dataset, studies[0]))}


def _modern_pairs(study: Study, dataset: str) -> Iterator[tuple[str, Comparison]]:
    """Yield what the modern recipe changes, then each of CHANGES among the networks that have it."""
    modern = _modern_networks(study, dataset)
    changes = [("modern recipe instead of the talk's", modern.get(FROM_IMAGENET, ""), FROM_IMAGENET)]
    changes += [(f"{WITH_IT}{name}", modern.get(one, ""), modern.get(other, "")) for _, name, one, other in CHANGES]
    for change, first, second in changes:
        if pair := find_pair(study.tables.pairs, dataset, first, second):
            yield change, pair


def _modern_networks(study: Study, dataset: str) -> dict[str, str]:
    """Return, for each network with the talk's recipe, the one that differs from it only in having the modern one."""
    networks = {run.model: run.record for run in study.of(dataset) if run.is_network}
    return {
        base: name
        for name, record in networks.items()
        for base, other in networks.items()
        if changed_recipe(record, other) == {"recipe": "modern"}
    }


def _place(study: Study, dataset: str, first: Study) -> str:
    """Return where a row comes from, if that is not the first study."""
    return "" if study is first else f", {study.of(dataset)[0].record['image_size']} px"


def front(studies: Sequence[Study], answered: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `answers` as texts, one row per change and one column per data set.

    Above the rows of each question is a row of empty cells with the question.
    """
    rows = answered.assign(text=[_cell(row) for row in answered.to_dict("records")])
    rows = rows[["question", "data set", "text"]].reset_index()
    important = [(IMPORTANT, LAYERS, title, text) for title, text in _most_important(studies)]
    rows = pd.concat([rows, pd.DataFrame(important, columns=rows.columns)])
    table = crossed(rows, "change", "data set", lambda row: row["text"]).replace("-", "not measured")
    parts = []
    for question in (TRANSFER, LAYERS, FREEZING, MODERN):
        changes = rows.change[rows.question == question].drop_duplicates()
        if len(changes):
            parts += [pd.DataFrame("", index=[question], columns=table.columns), table.loc[changes]]
    return pd.concat(parts).rename(lambda change: change.removeprefix(WITH_IT)).rename_axis("change")


def _cell(row: Mapping[Any, Any]) -> str:
    """Return a verdict, and on a second line the difference and the number of runs, the smaller of two."""
    runs, verdict = counted(min(row["seeds"]), "run"), IN_FRONT.get(row["verdict"], row["verdict"])
    if verdict in WAITING:
        runs, verdict = f"{min(row['seeds'])} of {WAITING[verdict]} runs", row["so far"]
    return f"**{verdict}**\n{one_line(row['macro F1'])}, {runs}{row['place']}"


def _most_important(studies: Sequence[Study]) -> Iterator[tuple[str, str]]:
    """Yield a data set's title, and the block that most methods rank first, for networks from ImageNet weights."""
    for dataset in dict.fromkeys(run.dataset for study in studies for run in study.runs):
        one_network, many = _by_layers(studies, dataset), _by_shapley(studies, dataset)
        found = [*one_network, *many]
        if found:
            counts = Counter(block for block, _ in found)
            most = [block for block, count in counts.items() if count == max(counts.values())]
            named = " and ".join(f"{block} (the last)" if block == BLOCKS[-1] else block for block in most)
            sizes = sorted({study.of(dataset)[0].record["image_size"] for _, study in found})
            elsewhere = any(study is not studies[0] for _, study in found)
            size = f", {' and '.join(map(str, sizes))} px" if elsewhere else ""
            count = f"{counts[most[0]]} of {len(found)} methods" + (" each" if len(most) > 1 else "")
            count += "" if many else ", one network"
            yield words_for(dataset).title, f"**{named}**\n{count}{size}"


def _by_layers(studies: Sequence[Study], dataset: str) -> list[tuple[str, Study]]:
    for study in studies:
        for layers in study.layers_of(dataset):
            if layers.record["model"] == FROM_IMAGENET:
                ways = agree(layers.rewinding, layers.similarity, layers.probes).blocks
                return [(str(block), study) for block in ways.idxmax()]
    return []


def _by_shapley(studies: Sequence[Study], dataset: str) -> list[tuple[str, Study]]:
    for study in studies:
        values = exact_values(study, dataset)
        if len(values):
            return [(str(values.idxmax()), study)]
    return []


def each_by_itself(claims: pd.DataFrame) -> pd.DataFrame:
    """Return claims corrected by Bonferroni, which does not need one family."""
    corrected = (claims.p * len(CLAIMS)).clip(upper=1)
    undecided = claims.verdict.isin((HOLDS, FAILS)) & ~(corrected < LEVEL)
    return claims.assign(p_corrected=corrected, verdict=claims.verdict.mask(undecided, NOT_SHOWN))


def interim(study: Study, others: Sequence[Study]) -> pd.DataFrame:
    """Return the claims with too few seeds in a study, each from the first of the others that can judge it.

    The columns are those of `judge`, then the other study's name and image size.
    """
    waiting = study.tables.claims[study.tables.claims.verdict.isin(WAITING)]
    found: dict[tuple[str, ...], dict[Hashable, Any]] = {}
    for other in others:
        for claim in other.tables.claims.dropna(subset="p").to_dict("records"):
            size = other.of(claim["dataset"])[0].record["image_size"]
            found.setdefault(tuple(claim[key] for key in CLAIM), {**claim, "study": other.name, "size": size})
    keys = waiting[CLAIM].itertuples(index=False, name=None)
    return pd.DataFrame([found[key] for key in keys if key in found], columns=[*waiting, "study", "size"])


def settled(study: Study, others: Sequence[Study]) -> pd.DataFrame:
    """Return a study's claims in the columns of `interim`, which replaces those with too few seeds if it can.

    Claims that are judged in different studies are not one family (docs/analysis-plan.md, 'Runs').
    """
    found = pd.concat([interim(study, others), study.tables.claims]).drop_duplicates(CLAIM)
    claims = study.tables.claims[CLAIM].merge(found)
    mixed = claims.study[claims.p.notna()].nunique(dropna=False) > 1
    return each_by_itself(claims) if mixed else claims


def claimed(claims: pd.DataFrame, pair: Comparison) -> tuple[pd.Series, float, float, float] | None:
    """Return the claim about the two models of a comparison, if there is one, and its difference and interval.

    The difference is that of the comparison, first less second, whichever of them the claim names first.
    """
    models = {pair.first, pair.second}
    about = claims[(claims.dataset == pair.dataset) & claims["first"].isin(models) & claims["second"].isin(models)]
    if about.empty:
        return None
    claim = about.iloc[0]
    if claim["first"] == pair.first:
        return claim, claim.difference, claim.low, claim.high
    return claim, -claim.difference, -claim.high, -claim.low


def judged(claims: pd.DataFrame, pair: Comparison) -> dict[str, Any]:
    """Return the columns of `answers` about a comparison; `claims` is from `settled`.

    They are those of the talk's claim about the two models, with the seeds that the plan names for it. The verdict is
    HIGHER or LOWER (the first model's macro F1), or the claim's own if it is not shown or cannot be judged. If the talk
    claims nothing, it is `so far`.
    """
    found = claimed(claims, pair)
    if not found:
        return _untested(pair)
    claim, value, low, high = found
    verdict = (HIGHER if value > 0 else LOWER) if claim.verdict in (HOLDS, FAILS) else claim.verdict
    return {
        "verdict": verdict,
        "so far": _so_far(low, high, claim.interval),
        "macro F1": interval_text(value, low, high),
        "seeds": (claim.first_seeds, claim.second_seeds),
        "place": f", {claim['size']:.0f} px" if pd.notna(claim["size"]) else "",
    }


def _untested(pair: Comparison, place: str = "") -> dict[str, Any]:
    verdict, seeds = _so_far(*pair.ends, pair.interval), (pair.first_seeds, pair.second_seeds)
    return {"verdict": verdict, "so far": verdict, "macro F1": difference(pair), "seeds": seeds, "place": place}


def _so_far(low: float, high: float, interval: str) -> str:
    """Return what an untested difference shows, by its interval and what that covers."""
    if interval != BOTH:
        return FEW_RUNS
    if low > 0 or high < 0:
        return f"probably {HIGHER if low > 0 else LOWER}"
    return f"probably {LITTLE}" if max(-low, high) < MARGIN else UNCLEAR
