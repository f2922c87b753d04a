"""The sentence that answers each chapter's question: its words are fixed, its numbers come from the tables."""

from collections.abc import Iterator, Sequence

import pandas as pd

from medtransfer.analysis.agreement import agree
from medtransfer.analysis.claims import NOT_SHOWN, SMALL
from medtransfer.analysis.clinical import SENSITIVITY
from medtransfer.analysis.differences import find_pair
from medtransfer.analysis.families import changed_recipe
from medtransfer.analysis.lattice import SUBSETS
from medtransfer.analysis.leakage import ALL
from medtransfer.core.params import BLOCKS
from medtransfer.metrics.scores import MACRO
from medtransfer.report.answers import FROM_IMAGENET, HIGHER, LOWER, NOT_TESTED, QUESTIONS, TOO_FEW
from medtransfer.report.study import Study, values_of
from medtransfer.report.tables import difference, one_line, share, signed
from medtransfer.report.words import words_for

# The class that a clinician must not miss, and its name in a sentence.
CRUCIAL = {"ham10000": ("mel", "melanoma"), "chest_xray": ("PNEUMONIA", "pneumonia")}
# What a sentence calls a change of QUESTIONS.
EFFECTS = {
    "ImageNet weights instead of random weights": "using ImageNet weights",
    "train the last block instead of the first": "training the last block instead of the first",
    "train the last block instead of all": "freezing blocks 1 to 4",
    "train the first and last blocks instead of all": "freezing blocks 2 to 4",
    "train only the head instead of all": "freezing all blocks",
}
# What a verdict of `answers` says of an effect.
SAID = {
    TOO_FEW: "there are too few training runs for a verdict on {}; the estimate is {}",
    HIGHER: "{} gives a higher macro F1",
    LOWER: "{} gives a lower macro F1",
    NOT_SHOWN: "no clear effect of {} was found",
    SMALL: "{} changes macro F1 by less than 0.02",
    NOT_TESTED: "the estimated effect of {} is {}",
}


def sentences(studies: Sequence[Study], answered: pd.DataFrame) -> dict[str, str]:
    """Return the sentences of the chapters that have an answer; `answered` holds `answers` of the first study."""
    transfer, layers, _, freezing, _ = (_effects(answered, change) for change, *_ in QUESTIONS)
    found = {
        "transfer": transfer,
        "layers": _most_important(studies) + layers,
        "freezing": freezing + _possible_loss(studies[0]),
        "clinic": _sensitivities(studies),
        "leakage": _leakage(studies),
        "recipe": _modern(studies),
    }
    return {chapter: text.strip() for chapter, text in found.items() if text}


def _effects(answered: pd.DataFrame, change: str) -> str:
    texts = []
    for row in answered[answered.index == change].to_dict("records"):
        verdict, *size = row["verdict"].strip("*").split(", at ")
        said = SAID[TOO_FEW] if TOO_FEW in verdict else SAID.get(verdict, verdict)
        effect = said.format(EFFECTS[change], one_line(row["macro F1"]))
        texts.append(f"On {' at '.join([row['data set'], *size])}, {effect}. ")
    return "".join(texts)


def _possible_loss(study: Study) -> str:
    losses = []
    for dataset in study.tables.results.dataset.drop_duplicates():
        pair = find_pair(study.tables.pairs, dataset, "imagenet_last_block", FROM_IMAGENET)
        if pair and pair.ends[0] < 0 < pair.ends[1]:
            losses.append(f"{-pair.ends[0]:.2f} on {words_for(dataset).title}")
    if not losses:
        return ""
    loss, size = " and ".join(losses), study.runs[0].record["image_size"]
    return f"Freezing them may cost nothing, but at {size} px, the intervals include losses of up to {loss}."


def _most_important(studies: Sequence[Study]) -> str:
    """Return the most important block of networks from ImageNet weights, and how many methods say so."""
    texts = []
    for dataset in dict.fromkeys(run.dataset for study in studies for run in study.runs):
        found = [*_by_layers(studies, dataset), *_by_shapley(studies, dataset)]
        if found:
            counts = pd.Series([block for block, _ in found]).value_counts()
            total, most = len(found), counts[counts == counts.max()]
            named = " and ".join(
                f"{count} of {total} methods rank {_named(str(block))} first" for block, count in most.items()
            )
            sizes = " and ".join(dict.fromkeys(f"{size} px" for _, size in found))
            texts.append(f"On {words_for(dataset).title} at {sizes}, {named}. ")
    return "".join(texts) + "These rankings have no intervals. " if texts else ""


def _named(block: str) -> str:
    return f"{block} (the last)" if block == BLOCKS[-1] else block


def _by_layers(studies: Sequence[Study], dataset: str) -> Iterator[tuple[str, int]]:
    found = [(layers, study) for study in studies for layers in study.layers_of(dataset)]
    for layers, study in [one for one in found if one[0].record["model"] == FROM_IMAGENET][:1]:
        for block in agree(layers.rewinding, layers.similarity, layers.probes).blocks.idxmax():
            yield str(block), study.of(dataset)[0].record["image_size"]


def _by_shapley(studies: Sequence[Study], dataset: str) -> Iterator[tuple[str, int]]:
    found = [(values, study) for study in studies if len(values := values_of(study, dataset))]
    # From fewer subsets, the order of the blocks is not known.
    for values, study in [one for one in found if one[0].subsets.iloc[0] == SUBSETS][:1]:
        single = values[values.blocks.isin(BLOCKS) & (values.metric == MACRO)]
        yield str(single.set_index("blocks").value.idxmax()), study.of(dataset)[0].record["image_size"]


def _sensitivities(studies: Sequence[Study]) -> str:
    text = ""
    for dataset, (name, disease) in CRUCIAL.items():
        for study in studies:
            table = study.tables.classes
            rows = table[(table.dataset == dataset) & (table["class"] == name) & (table.measure == SENSITIVITY)]
            if len(rows):
                row = rows.to_dict("records")[0]
                text += f"The sensitivity of {row['model']} to {disease} is {one_line(share(row))}. "
                break
    return text


def _leakage(studies: Sequence[Study]) -> str:
    table = pd.concat([study.leakage for study in studies])
    if table.empty:
        return ""
    macro = table[(table["class"] == MACRO) & (table.images == ALL)]
    ranges = [
        f"{signed(part.difference.min(), 2)} to {signed(part.difference.max(), 2)} on {words_for(str(dataset)).title}"
        for dataset, part in macro.groupby("dataset", sort=False)
    ]
    if not ranges:
        return ""
    single = " With one training run per model, these differences have no interval." if macro.low.isna().all() else ""
    return f"Leakage changed macro F1 by {' and '.join(ranges)}, depending on the model.{single}"


def _modern(studies: Sequence[Study]) -> str:
    """Return what the modern recipe changes, and what else the networks trained with it show."""
    texts = [_modern_on(study, dataset) for study in studies for dataset in study.tables.results.dataset.unique()]
    trained = any(run.history is not None for study in studies for run in study.runs)
    return "".join(texts) or ("Not measured yet: no network here was trained with it." if trained else "")


def _modern_on(study: Study, dataset: str) -> str:
    networks = {run.model: run.record for run in study.of(dataset) if run.history is not None}
    # The networks with the modern recipe, by those that differ from them only in having the talk's.
    modern = {
        base: name
        for name, record in networks.items()
        for base, other in networks.items()
        if changed_recipe(record, other) == "recipe: modern"
    }
    pairs, size = study.tables.pairs, study.of(dataset)[0].record["image_size"]
    recipe = find_pair(pairs, dataset, modern.get(FROM_IMAGENET, ""), FROM_IMAGENET)
    if not recipe:
        return ""
    asked = [(change, modern.get(first, ""), modern.get(second, "")) for change, first, second in QUESTIONS]
    effects = [
        f"{EFFECTS[change]} changes macro F1 by {one_line(difference(pair))}"
        for change, first, second in asked
        if (pair := find_pair(pairs, dataset, first, second))
    ]
    return (
        f"On {words_for(dataset).title} at {size} px, the modern recipe changes the macro F1 of {FROM_IMAGENET} by "
        f"{one_line(difference(recipe))}. "
        + (f"With this recipe, {'; '.join(effects)}. " if effects else "")
        + ("" if len(effects) == len(QUESTIONS) else "The other effects above have not been measured with it yet. ")
    )
