"""The report's sentences: which words they use, the numbers decide."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from medtransfer.analysis.agreement import Agreement, agree
from medtransfer.analysis.claims import LEVEL, settled
from medtransfer.analysis.comparison import Run, by_model
from medtransfer.analysis.families import TALK, family
from medtransfer.analysis.leakage import OTHERS, SHARED
from medtransfer.analysis.questions import block_gains, chain, data_sizes, find_pair, recipe_changes
from medtransfer.core.predictions import classes_of, only_answer
from medtransfer.metrics.scores import AUC, MACRO, MICRO
from medtransfer.report.study import Layers, Study, costs, leaves_out_features
from medtransfer.report.tables import spanned, units

FROM_RANDOM, FROM_IMAGENET = "cnn_random", "imagenet_all"
FIRST_BLOCK, LAST_BLOCK = "imagenet_first_block", "imagenet_last_block"
FEWER = {
    "imagenet_head": "the head alone",
    FIRST_BLOCK: "the first block",
    LAST_BLOCK: "the last block",
    "imagenet_first_last": "the first and last blocks",
}
RECIPES = {
    "scaling: caffe": "the pixel scaling that the ImageNet weights were trained with",
    "balance: class_weights": "class weights",
    "balance: sampling": "balanced sampling",
}
TITLES = {"ham10000": "skin lesions", "chest_xray": "chest X-rays"}
FAVOURED = (
    "outputs and linear classifiers, two of these ways, see what all blocks before have changed as well, which favours "
    "the last ones"
)
SPLITS = {
    "group": "with no lesion or patient in two splits",
    "image": "with the images divided as in the talk",
}
AT_THE_GUESS = 0.0005  # a macro F1 no farther from that of the largest class alone has not learnt the others


def answer(study: Study) -> list[str]:
    """Return the answer to the talk's two questions, and what to freeze."""
    gains = _found(study, FROM_IMAGENET, FROM_RANDOM)
    layers = _found(study, LAST_BLOCK, FIRST_BLOCK)
    found = []
    told = [_effect(pair, title(dataset), _auc(study, dataset)) for dataset, pair in gains.items()]
    if gains:
        found.append(
            f"Can knowledge be moved? {_verdicts(gains, 'yes', 'no, it harms')}: starting from a network that knows "
            f"everyday photographs (ImageNet weights) instead of random weights changes macro F1 by "
            f"{' and by '.join(told)}."
        )
    effects = " and by ".join(_effect(pair, title(dataset)) for dataset, pair in layers.items())
    told = []
    if layers:
        told = [
            f"{_verdicts(layers, 'the last block', 'the first block')}: training the last block instead of the first "
            f"changes macro F1 by {effects}."
        ]
    told += [_whole_network(study)] if any(found.record["model"] == FROM_IMAGENET for found in study.layers) else []
    if told:
        found.append(f"Which layers matter? {' '.join(told)}")
    return found + _asked(study, {"What to freeze?": _cheapest})


def more(study: Study) -> list[str]:
    """Return what stands behind the answer: training a part, when transfer pays, what else helps."""
    found = [text] if (text := _parts(study)) else []
    return found + _asked(study, {"When does transfer pay?": _fewer_images, "What else helps?": _helps})


def reproduced(studies: list[Study]) -> list[str]:
    """Say how near the talk's scores one comes by dividing the images as it did, and what became of its claims."""
    real = [study for study in studies if not study.runs[0].record["synthetic"]]
    judged = [text for study in real for by in SPLITS if (text := _claims(study, by))]
    if not judged:
        return []
    near = [text for study in real if (text := _nearness(study))]
    claims = f"Of the comparisons that decide its claims, {'; '.join(judged)}."
    return [" ".join(["Is it what the talk found?", *near, *_both_ways(real), claims])]


def _nearness(study: Study) -> str:
    told, sizes, seeds = [], [], 1
    for dataset in study.table.dataset.drop_duplicates():
        own = _same_way(study, dataset)
        if own.empty:
            continue
        within = _holds_the_talks(own)
        others = [
            f"{row['model']}, {row['f1']:.2f} instead of {row['published']:.2f}"
            for row in own[~within].to_dict("records")
        ]
        but = f" (not for {'; '.join(others)})" if others else ""
        told.append(f"{within.sum()} of {len(own)} models on {title(dataset)}{but}")
        sizes.append(f"{_record(study, dataset)['image_size']} px")
        seeds = max(seeds, own.seeds.max())
    if not told:
        return ""
    return (
        f"With the images divided as in the talk ({' and '.join(dict.fromkeys(sizes))}, the talk's 224; "
        f"{_fits_of_each(seeds)}), its macro F1 lies within our 95% interval for {' and '.join(told)}."
    )


def _both_ways(studies: list[Study]) -> list[str]:
    """Compare the network that trains as a whole in both ways to divide the images, at the same size."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for study in studies:
        own = study.table[(study.table.model == FROM_IMAGENET) & (study.table["class"] == MACRO)]
        for dataset, f1 in zip(own.dataset, own.f1, strict=True):
            record = _record(study, dataset)
            found.setdefault((dataset, record["image_size"]), {}).setdefault(record["split_by"], f1)
    told = [
        f"{f1['image']:.2f} and {f1['group']:.2f} on {title(dataset)} at {size} px"
        for (dataset, size), f1 in found.items()
        if {"image", "group"} <= f1.keys()
    ]
    where = f"{FROM_IMAGENET} divided so and, on other test images, {SPLITS['group']}"
    return [f"Macro F1 of {where}: {'; '.join(told)}."] if told else []


def _fits_of_each(seeds: int) -> str:
    return "one fit of each" if seeds == 1 else f"up to {seeds} fits of each"


def _claims(study: Study, by: str) -> str:
    """Count what became of the talk's claims about the data sets that are divided in this way."""
    divided = {dataset: _record(study, dataset)["split_by"] for dataset in study.table.dataset.drop_duplicates()}
    claims = study.claims[study.claims.dataset.map(divided) == by]
    if claims.empty:
        return ""
    counts = claims.verdict.value_counts()
    hold, fail, left = (counts.get(verdict, 0) for verdict in ("holds", "does not hold", "not settled"))
    fits = _fits_of_each(claims.seeds.max())
    return f"{hold} hold, {fail} do not and {left} are not settled {SPLITS[by]} ({fits})"


def _record(study: Study, dataset: str) -> dict[str, Any]:
    return next(run.record for run in study.runs if run.dataset == dataset)


def _asked(study: Study, questions: dict[str, Callable[[Study, str], str | None]]) -> list[str]:
    datasets = study.table.dataset.drop_duplicates()
    told = {
        question: [text for dataset in datasets if (text := ask(study, dataset))] for question, ask in questions.items()
    }
    return [f"{question} {' '.join(texts)}" for question, texts in told.items() if texts]


def _parts(study: Study) -> str:
    """Say which parts are worth training alone: against random weights, and against all blocks from ImageNet's."""
    told = [
        f"{text} {'; '.join(found)}."
        for text, other, rise in (
            ("Better than the whole network from random weights, in macro F1:", FROM_RANDOM, True),
            ("Worse than training all blocks from ImageNet weights:", FROM_IMAGENET, False),
        )
        if (found := _settled_parts(study, other, rise=rise))
    ]
    return f"Is it enough to train a part from ImageNet weights? {' '.join(told)}" if told else ""


def _settled_parts(study: Study, other: str, *, rise: bool) -> list[str]:
    """Return for each data set the parts that are better, or worse, than another network, where it is settled."""
    found = []
    for dataset in study.table.dataset.drop_duplicates():
        pairs = {model: pair for model in FEWER if (pair := _planned(study, dataset, model, other))}
        told = [
            f"{FEWER[model]} by {_difference(pair)} ({_p(pair)}{_fits(pair)})"
            for model, pair in pairs.items()
            if settled(pair) and (pair["difference"] > 0) == rise
        ]
        if pairs:
            found.append(f"on {title(dataset)} {' and '.join(told) or 'none'}")
    return found


def _found(study: Study, first: str, second: str) -> dict[str, dict[Any, Any]]:
    """Return the comparison of two models on every data set that has it."""
    found = {dataset: _planned(study, dataset, first, second) for dataset in study.table.dataset.drop_duplicates()}
    return {dataset: pair for dataset, pair in found.items() if pair}


def _auc(study: Study, dataset: str) -> str:
    """Say what ImageNet weights do to AUC, which does not depend on where a network decides, on the seeds of both."""
    fits = {model: own for name, model, own in by_model(study.runs) if name == dataset}
    both = _same_seeds({model: fits[model] for model in (FROM_IMAGENET, FROM_RANDOM)})
    imagenet, random = (np.mean([run.scores[AUC] for run in own]) for own in both.values())
    return f"; AUC {imagenet:.3f} instead of {random:.3f}"


def _verdicts(found: dict[str, dict[Any, Any]], rise: str, fall: str) -> str:
    """Answer with `rise` or `fall`, by data set where they differ; one fit of each model settles neither."""
    told: dict[str, list[str]] = {}
    for dataset, pair in found.items():
        word = "not settled"
        if settled(pair):
            way = rise if pair["difference"] > 0 else fall
            word = way if pair["seeds"] > 1 else f"perhaps {way}"
        told.setdefault(word, []).append(title(dataset))
    text = "; ".join(f"{word} on {' and '.join(titles)}" for word, titles in told.items())
    return text[0].upper() + text[1:]


def _whole_network(study: Study) -> str:
    """Say which block matters most by the ways of asking a network that trained as a whole."""
    told: dict[str, list[str]] = {}
    for dataset in study.table.dataset.drop_duplicates():
        asked, gains = _asked_of(study, dataset)
        if asked:
            told.setdefault(_most_clearly(asked, gains), []).append(title(dataset))
    text = "; ".join(f"on {' and '.join(titles)} {most}" for most, titles in told.items())
    return f"Within the network that trained as a whole ({FROM_IMAGENET}), {text}; {FAVOURED}."


def _planned(study: Study, dataset: str, first: str, second: str) -> dict[Any, Any] | None:
    """Return the comparison of two models, first less second, as all sentences take it.

    Its p is that of the talk's claim about the two, or, where the talk claims nothing, that of one of all pairs.
    """
    pair, claims = find_pair(study.pairs, dataset, first, second), study.claims
    about = claims[
        (claims.dataset == dataset) & claims.better.isin([first, second]) & claims.worse.isin([first, second])
    ]
    return {**pair, "p_corrected": about.p_corrected.iloc[0]} if pair and len(about) else pair


def _effect(pair: dict[Any, Any], where: str, also: str = "") -> str:
    way = "rise" if pair["difference"] > 0 else "fall"
    verdict = "not settled"
    if settled(pair):
        verdict = f"a clear {way}" if pair["seeds"] > 1 else f"a {way}"
    elif pair["p_corrected"] < LEVEL:
        verdict = f"a {way}, but not with every seed"
    return f"{_difference(pair)} on {where} ({verdict}, {_p(pair)}{_fits(pair)}{also})"


def _fits(pair: dict[Any, Any]) -> str:
    """Say how many fits a comparison rests on, and what each says: p and interval do not know how training varies."""
    if pair["seeds"] == 1:
        return ", one fit of each"
    least, most = spanned(pair, "least", "most")
    return f", {pair['seeds']:.0f} seeds: {least} to {most}"


def _difference(pair: dict[Any, Any]) -> str:
    difference, low, high = spanned(pair, "difference", "low", "high")
    return f"{difference} [{low}, {high}]"


def _p(pair: dict[Any, Any]) -> str:
    return f"corrected p = {pair['p_corrected']:.3f}" if pair["p_corrected"] >= 0.001 else "corrected p < .001"


def _cheapest(study: Study, dataset: str) -> str | None:
    """Say which of the talk's networks takes the least time of those that may be as good as the best one.

    The best one is that of the validation images, on the seeds that all have, so that no test image chooses it. Another
    may be as good where the 95% interval of the difference holds 0; correcting for more pairs would only let worse ones
    through.
    """
    fits, table = _networks(study, dataset), _macro(study, dataset).set_index("model")
    if len(fits) < 2:
        return None
    validated = _validated(fits)
    best = max(fits, key=lambda model: validated[model])
    compared = {model: pair for model in fits if (pair := find_pair(study.pairs, dataset, model, best))}
    equal = [best, *(model for model, pair in compared.items() if pair["high"] >= 0)]
    seconds = costs(fits, study.runs)
    cheap = min(equal, key=lambda model: seconds[model])
    chosen = f"{_named(best, fits[best])} is best on the validation images by macro F1"
    if cheap == best:
        cheaper = [model for model in fits if seconds[model] < seconds[best]]
        rest = "none is cheaper"
        if cheaper:
            rest = "no cheaper one was compared with it"
        if set(cheaper) & set(compared):
            rest = "every cheaper one that was compared is worse (the 95% interval of the difference lies below 0)"
        dearer = f"; {' and '.join(equal[1:])} may be as good but cost more" if equal[1:] else ""
        return f"On {title(dataset)}, {chosen} (test macro F1 {table.f1[best]:.2f}), and {rest}{dearer}."
    without = (
        ", not counting the frozen blocks' features, which were stored" if leaves_out_features(fits[cheap]) else ""
    )
    return (
        f"On {title(dataset)}, {chosen} (test macro F1 {table.f1[best]:.2f} after {seconds[best]:.0f} s of training); "
        f"{_named(cheap, fits[cheap])} is the cheapest that may be as good, {table.f1[cheap]:.2f} after "
        f"{seconds[cheap]:.0f} s of training{without} (difference {_difference(compared[cheap])}"
        f"{_fits(compared[cheap])})."
    )


def _networks(study: Study, dataset: str) -> dict[str, list[Run]]:
    """Return the fits of each of the talk's networks."""
    return {
        model: fits
        for name, model, fits in by_model(study.runs)
        if name == dataset and fits[0].history is not None and family(fits[0].record) == TALK
    }


def _macro(study: Study, dataset: str) -> pd.DataFrame:
    return study.table[(study.table.dataset == dataset) & (study.table["class"] == MACRO)]


def _validated(networks: dict[str, list[Run]]) -> dict[str, float]:
    """Return each network's macro F1 on the validation images, mean over the seeds that all of them have."""
    return {
        model: float(np.mean([run.validation_scores[MACRO] for run in fits if run.validation_scores]))
        for model, fits in _same_seeds(networks).items()
    }


def _same_seeds(networks: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """Return the fits with the seeds that all networks have, or, where they share none, all fits."""
    common = set.intersection(*({run.seed for run in fits} for fits in networks.values()))
    return {model: [run for run in fits if run.seed in common] or fits for model, fits in networks.items()}


def _named(model: str, fits: list[Run]) -> str:
    """Return a model's name with what of it trains, where that is known, and its answer where it has but one."""
    trained = {**FEWER, FROM_IMAGENET: "all blocks"}
    said = [f"trains {trained[model]}"] if model in trained else []
    answers = {only_answer(run.predictions) for run in fits}
    if None not in answers:
        said.append(f"answers {' or '.join(sorted(map(str, answers)))} alone")
    return f"{model} ({', '.join(said)})" if said else model


def which_layers(study: Study, dataset: str) -> list[str]:
    """Return what the ways of asking which layers matter say, where they agree, and what freezing costs."""
    asked, gains = _asked_of(study, dataset)
    return [*([_ways(asked, gains)] if asked else []), *_freezing(study, dataset)]


def _asked_of(study: Study, dataset: str) -> tuple[list[Layers], pd.Series]:
    """Return what was asked of the fits of the network that trains as a whole, and what training each block adds."""
    asked = [
        found for found in study.layers if (found.record["dataset"], found.record["model"]) == (dataset, FROM_IMAGENET)
    ]
    return asked, block_gains([run for run in study.runs if run.dataset == dataset], study.pairs)


def _agree(asked: list[Layers], gains: pd.Series) -> tuple[pd.DataFrame, pd.DataFrame, Agreement]:
    """Return the mean over seeds of rewinding and probes, and how all ways of asking agree."""
    rewinding, similarity, probes = (
        pd.concat([getattr(found, name) for found in asked]).groupby(keys, sort=False, as_index=False).mean()
        for name, keys in (
            ("rewinding", ["block"]),
            ("similarity", ["layer", "block"]),
            ("probes", ["block", "network"]),
        )
    )
    return rewinding, probes, agree(rewinding, similarity, probes, gains)


def _ways(asked: list[Layers], gains: pd.Series) -> str:
    """Say what each way of asking found of one network, mean over its seeds, and whether they agree."""
    rewinding, probes, seen = _agree(asked, gains)
    top = seen.blocks.idxmax()
    most = seen.blocks.max()
    rewound = rewinding.set_index("block")
    told = [
        f"resetting {top['rewinding']} to its starting weights costs most ({most['rewinding']:.2f} of a macro F1 of "
        f"{rewound.macro_f1['none']:.2f}{_by_seed(asked, str(top['rewinding']))}"
        f"{'' if _clearly(asked, str(top['rewinding'])) else '; not clearly more than the next'})",
        f"the outputs of {top['outputs']} changed most",
        f"the weights of {top['weights']} moved farthest for their size",
        f"a linear classifier gains most from the training of {top['probes']} and what comes before it "
        f"({most['probes']:+.2f})",
    ]
    if "trained" in top:
        adds = f"{most['trained']:+.2f}, mean over networks that differ in it alone"
        told.insert(0, f"training {top['trained']} adds most ({adds})")
    first, *others = told
    seeds = ", ".join(str(found.record["seed"]) for found in asked)
    which = f"seed {seeds}" if len(asked) == 1 else f"mean over seeds {seeds}"
    return (
        f"Which layers of {asked[0].record['model']} matter ({which})? {first[0].upper()}{first[1:]}; "
        f"{'; '.join(others)}. {_agreement(seen)} {FAVOURED[0].upper()}{FAVOURED[1:]}."
        f"{_read_out(rewound.macro_f1['none'], probes)}{_not_asked(gains)}"
    )


def _read_out(own: float, probes: pd.DataFrame) -> str:
    """Say what a linear classifier reads where the network's own head answers: the head limits a network as well."""
    read = probes.set_index(["network", "block"]).macro_f1
    tuned, start = read["tuned"], read["start"]
    return (
        f" The network itself has a macro F1 of {own:.2f}; a linear classifier on the output of its {tuned.idxmax()} "
        f"has {tuned.max():.2f}, one on the output of {start.idxmax()} before training {start.max():.2f}."
    )


def _costs_most(rewound: pd.DataFrame, block: str) -> bool:
    """Return whether putting back any other block leaves more than the upper end of what this one leaves."""
    return bool(rewound.high[block] < rewound.macro_f1.drop(["none", block]).min())


def _clearly(asked: list[Layers], block: str) -> bool:
    return all(_costs_most(found.rewinding.set_index("block"), block) for found in asked)


def _by_seed(asked: list[Layers], block: str) -> str:
    if len(asked) == 1:
        return ""
    scores = [found.rewinding.set_index("block").macro_f1 for found in asked]
    losses = [f"{one['none'] - one[block]:.2f}" for one in scores]
    return f"; by seed {', '.join(losses)}"


def _most(seen: Agreement) -> str:
    ways, named = len(seen.blocks.columns), seen.blocks.idxmax().value_counts()
    leaders = [str(block) for block in named.index[named == named.max()]]
    if named.max() == 1:
        return f"each of {ways} ways of asking says that another block matters most"
    return f"{named.max()} of {ways} ways of asking say that {' and as many that '.join(leaders)} matters most"


def _most_clearly(asked: list[Layers], gains: pd.Series) -> str:
    """Return `_most`, and whether resetting is one of these ways though its block is not clearly ahead."""
    seen = _agree(asked, gains)[-1]
    first = seen.blocks.idxmax()
    reset = str(first["rewinding"])
    leads = (first == reset).sum() == first.value_counts().max() > 1
    return _most(seen) + (", one of them (resetting) not clearly" if leads and not _clearly(asked, reset) else "")


def _agreement(seen: Agreement) -> str:
    first = _most(seen)
    return (
        f"{first[0].upper()}{first[1:]}; over all blocks Kendall's W of their orders is {seen.concordance:.2f} (1: the "
        "same; 0: nothing in common)."
    )


def _not_asked(gains: pd.Series) -> str:
    """Say of which blocks nobody knows what training them adds, which leaves this way out."""
    missing = list(gains.index[gains.isna()])
    if not missing:
        return ""
    known = ", ".join(f"{block} adds {gain:+.2f}" for block, gain in gains.dropna().items())
    return (
        f" What training a block adds is not among these ways: no two networks here differ in {' or '.join(missing)} "
        f"alone{f' ({known})' if known else ''}."
    )


def _freezing(study: Study, dataset: str) -> list[str]:
    found = {model: _planned(study, dataset, model, FROM_IMAGENET) for model in FEWER}
    known = {model: pair for model, pair in found.items() if pair}
    if not known:
        return []
    text = "; ".join(f"{_difference(pair)} with {FEWER[model]}" for model, pair in known.items())
    clear = [f"{FEWER[model]}{_fits(pair)}" for model, pair in known.items() if pair["p_corrected"] < LEVEL]
    which = f"p < .05 after correction for {'; for '.join(clear)}" if clear else "none has p < .05 after correction"
    practice = _cheapest(study, dataset)
    return [
        f"And which have to be trained? Against training all blocks, macro F1 changes by {text}; {which}."
        + (f" In practice: {practice[0].lower()}{practice[1:]}" if practice else "")
    ]


def guess(study: Study, dataset: str) -> float:
    """Return the macro F1 of a network that only ever answers the largest class of the data set's validation images."""
    validation = next(run.validation for run in study.runs if run.dataset == dataset and run.validation is not None)
    share = validation.label.value_counts(normalize=True).max()
    return float(2 * share / (1 + share) / len(classes_of(validation)))


def tries(study: Study, dataset: str) -> pd.DataFrame | None:
    """Return the tries of `tune` on the largest part of the training images, of each configuration and optimizer.

    The column `used` says whether the study's fits have this optimizer and rate. None where there are no tries, or no
    network of the study tells what the validation images are.
    """
    networks = [run for run in study.runs if run.dataset == dataset and run.validation is not None]
    if study.tuning is None or not networks or dataset not in set(study.tuning.dataset):
        return None
    own = study.tuning[study.tuning.dataset == dataset]
    most = own.groupby(["configuration", "optimizer"]).fraction.transform("max")
    recipes = [(run.model, run.record["hyperparameters"]["train"]) for run in networks]
    used = {(model, train["optimizer"], train["learning_rate"]) for model, train in recipes}
    named = zip(own.configuration, own.optimizer, own.learning_rate, strict=True)
    return own.assign(used=[name in used for name in named])[own.fraction == most]


def collapses(study: Study, dataset: str) -> str | None:
    """Say which of the rates and optimizers that were tried learnt the largest class alone, and what that is due to."""
    own = tries(study, dataset)
    if own is None:
        return None
    level = guess(study, dataset)
    start = f"Where does training collapse? Answering the largest class alone gives a macro F1 of {level:.2f}. "
    flat = (own.val_macro_f1 - level).abs() < AT_THE_GUESS
    if not flat.any():
        return start + f"None of the {len(own)} rates and optimizers that were tried ended there."
    ended = own[flat].sort_values(["configuration", "optimizer", "learning_rate"])
    named = [
        f"{model} with {optimizer} at {', '.join(f'{rate:g}' for rate in dict.fromkeys(part.learning_rate))}"
        for (model, optimizer), part in ended.groupby(["configuration", "optimizer"], sort=False)
    ]
    text = (
        f"Of the {len(own)} tries on the largest part of the training images that each network was tried on, "
        f"{int(flat.sum())} ended there: {'; '.join(named)}."
    )
    return f"{start}{text} {_first_block(own, flat)}".strip()


def _first_block(tried: pd.DataFrame, flat: pd.Series) -> str:
    """Say whether the first block alone collapses, as the talk's did, for what it is or for how it is trained."""
    first, whole = (tried.configuration == model for model in (FIRST_BLOCK, FROM_IMAGENET))
    if not (flat & first).any():
        return ""
    count = (
        f"{int((flat & first).sum())} of {int(first.sum())} tries of {FIRST_BLOCK}, the one that collapsed in the talk"
    )
    if not (~flat & first).any():
        return f"That is all {count}: no rate or optimizer that was tried lets it learn."
    how = ["optimizer", "learning_rate", "fraction", "epochs"]
    told = tried.assign(flat=flat)[[*how, "flat"]]
    alike = told[first].merge(told[whole], on=how)
    both, alone, other = (
        int(found.sum())
        for found in (alike.flat_x & alike.flat_y, alike.flat_x & ~alike.flat_y, ~alike.flat_x & alike.flat_y)
    )
    text = (
        f"That is {count}; with other rates and optimizers it learns, so the configuration alone does not make the "
        "collapse."
    )
    text += (
        f" They are tries of at most {tried[first].epochs.max():.0f} epochs on {tried[first].fraction.max():.0%} of "
        "the training images: what made the talk's own fit collapse they cannot tell."
    )
    if alike.empty:
        return text
    return (
        f"{text} Of {len(alike)} pairs of rate and optimizer that were tried of it and of the whole network, {both} "
        f"collapse both, {alone} the first block alone and {other} the whole network alone."
    )


def beyond(study: Study, dataset: str) -> list[str]:
    """Return what else a study can answer: how near the talk it is, another measure, when transfer pays, and so on."""
    ways = (_published, _measures, _data_size, _chain, _recipes, _leak)
    return [told for way in ways if (told := way(study, dataset))]


def _published(study: Study, dataset: str) -> str | None:
    """Say how near the talk's scores those of a study are that divides the images as the talk did."""
    own = _same_way(study, dataset)
    if own.empty:
        return None
    told = [f"{row['f1']:.2f} ({row['published']:.2f}) for {row['model']}" for row in own.to_dict("records")]
    within = own.model[_holds_the_talks(own)]
    size = _record(study, dataset)["image_size"]
    return (
        f"How near is it to the talk, which divided the images in the same way? At {size} px (the talk's: 224), "
        f"{_fits_of_each(own.seeds.max())}, macro F1, the talk's in brackets, is {'; '.join(told)}. The talk's lies "
        f"within our 95% interval for {' and '.join(within) or 'none of them'}."
    )


def _holds_the_talks(own: pd.DataFrame) -> pd.Series:
    """Return for each row of `_same_way` whether our interval holds the talk's macro F1."""
    return (own.low <= own.published) & (own.published <= own.high)


def _same_way(study: Study, dataset: str) -> pd.DataFrame:
    """Return the macro F1 of the models that the talk has, where the images are divided as it did; empty elsewhere."""
    own = _macro(study, dataset).dropna(subset="published")
    return own if _record(study, dataset)["split_by"] == "image" else own.iloc[:0]


def _measures(study: Study, dataset: str) -> str | None:
    """Say whether the order of the talk's networks by macro F1 is that by AUC, which does not depend on a decision."""
    networks = _networks(study, dataset)
    if len(networks) < 3:
        return None
    scores = {model: pd.DataFrame([run.scores for run in fits]).mean() for model, fits in _same_seeds(networks).items()}
    values = pd.DataFrame(scores).T
    first, second = values[MACRO].idxmax(), values[AUC].idxmax()
    also = "and the" if first == second else f"{second} the"
    agreement = scipy.stats.kendalltau(values[MACRO], values[AUC]).statistic
    return (
        f"Does the order depend on the measure? {first} has the highest macro F1 ({values[MACRO].max():.2f}), {also} "
        f"highest AUC ({values[AUC].max():.2f}); over {len(values)} networks the two orders have a "
        f"Kendall's tau of {agreement:.2f} (1: the same)."
    )


def _data_size(study: Study, dataset: str) -> str | None:
    found = [
        _effect(pair, f"{images} training images ({fraction:.0%})") for fraction, images, pair in _sizes(study, dataset)
    ]
    if len(found) < 2:
        return None
    return f"When does transfer pay? ImageNet weights instead of random ones change macro F1 by {'; by '.join(found)}."


def _fewer_images(study: Study, dataset: str) -> str | None:
    """Say what ImageNet weights change with a part of the training images; what with all of them is said before."""
    found = [
        _effect(pair, f"{images} images ({fraction:.0%})")
        for fraction, images, pair in _sizes(study, dataset)
        if fraction < 1
    ]
    if not found:
        return None
    return f"With fewer training images, ImageNet weights change macro F1 on {title(dataset)} by {'; by '.join(found)}."


def _sizes(study: Study, dataset: str) -> list[tuple[float, int, dict[Any, Any]]]:
    """Return, for each part of the training images that both networks had, how many and what the weights change."""
    sizes = data_sizes([run for run in study.runs if run.dataset == dataset], study.table)
    found = []
    for _, part in sizes.sort_values("fraction").groupby("fraction"):
        models = dict(zip(part.weights, part.model, strict=True))
        pair = _planned(study, dataset, models["imagenet"], models["random"]) if len(models) == 2 else None
        if pair:
            found.append((float(part.fraction.iloc[0]), int(part.images.iloc[0]), pair))
    return found


def _chain(study: Study, dataset: str) -> str | None:
    links = chain(study.runs, study.table)
    links = links[links.dataset == dataset]
    if links.empty:
        return None
    found = []
    for row in links.to_dict("records"):
        text = f"{row['f1']:.2f} [{row['low']:.2f}, {row['high']:.2f}] from {row['start']}"
        pair = _planned(study, dataset, row["model"], FROM_RANDOM)
        if pair:
            other = "other" if settled(pair) else "not clearly other"
            text += f" ({other} than from random, {_p(pair)}{_fits(pair)})"
        found.append(text)
    return f"What does a chain of transfers add? Macro F1 on {title(dataset)} is {'; '.join(found)}."


def _recipes(study: Study, dataset: str) -> str | None:
    changes = _changes(study, dataset)
    if changes.empty:
        return None
    found = []
    for change, own in changes.groupby("change", sort=False):
        effects = [_recipe_effect(row) for row in own.to_dict("records")]
        found.append(f"with {change} by {' and by '.join(effects)}")
    return f"What does the rest of the recipe change? Macro F1 on {title(dataset)} changes {'; '.join(found)}."


def _helps(study: Study, dataset: str) -> str | None:
    """Say which changes of the recipe raise macro F1, those that rest on most fits first.

    All of them: the largest alone would be one that the test images chose.
    """
    changes = _changes(study, dataset).to_dict("records")
    rises = [row for row in changes if row["difference"] > 0 and settled(row)]
    if not rises:
        return None
    rises.sort(key=lambda row: row["seeds"], reverse=True)
    found = [f"{row['change']}, by {_recipe_effect(row)}" for row in rises]
    return f"On {title(dataset)}, macro F1 is raised by {'; '.join(found)}."


def _changes(study: Study, dataset: str) -> pd.DataFrame:
    """Return a data set's `recipe_changes`, each in words."""
    found = recipe_changes([run for run in study.runs if run.dataset == dataset], study.pairs)
    return found.assign(change=found.change.replace(RECIPES))


def _recipe_effect(change: dict[Any, Any]) -> str:
    return _effect(change, change["base"], f"; micro F1 {change['micro']:+.2f}")


def _leak(study: Study, dataset: str) -> str | None:
    if study.leak is None:
        return None
    own = study.leak[(study.leak.dataset == dataset) & (study.leak["class"] == MICRO)]
    told = {(row["model"], row["images"]): row for row in own.to_dict("records")}
    found = [
        f"{_difference(told[model, SHARED])} for {model} (on the other test images {_difference(told[model, OTHERS])})"
        for model in own.model.drop_duplicates()
        if {(model, SHARED), (model, OTHERS)} <= set(told)
    ]
    if not found:
        return None
    macro = study.leak[(study.leak.dataset == dataset) & (study.leak["class"] == MACRO)].to_dict("records")
    whole = "; ".join(f"{_difference(row)} for {row['model']}" for row in macro)
    falls = [row["model"] for row in macro if row["high"] < 0]
    alone = own.seeds.min() == 1
    return (
        f"How much does the leak flatter? With images of the test images' {units(dataset)} in training, the share of "
        f"right answers on the test images concerned changes by {'; '.join(found)}. Macro F1 over all test images "
        f"changes by {whole}."
        + (
            f" A leak is no reason for a fall, so that of {' and '.join(falls)} is likely to be the variation of "
            "training, and no smaller effect of the leak can be told from it."
            if falls
            else ""
        )
        + (
            " With one seed, the variation of training is in these numbers, but not in their intervals."
            if alone
            else ""
        )
    )


def title(dataset: str) -> str:
    """Return a data set's name in plain words."""
    return TITLES.get(dataset, dataset)
