"""The report: one HTML page with everything in it, made only from files; one chapter per question."""

import io
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from medtransfer.analysis.agreement import agree
from medtransfer.analysis.clinical import best_network, validated
from medtransfer.analysis.leakage import ALL
from medtransfer.analysis.published import is_the_talks
from medtransfer.analysis.uncertainty import FEWEST_FITS
from medtransfer.core.params import BLOCKS
from medtransfer.core.run_record import SplitRule, recipe_of
from medtransfer.data.catalogue import CATALOGUE
from medtransfer.report import tables
from medtransfer.report.answers import FEW_RUNS, FREEZING, FROM_IMAGENET, LAYERS, TRANSFER, answers, front, settled
from medtransfer.report.drawings import FIGURES, overview
from medtransfer.report.render import png_uri, render
from medtransfer.report.study import Study, exact_values
from medtransfer.report.words import words_for

# The tables and figures of the best network, which may be in another study than the first.
OF_BEST_NETWORK = ("classes", "subgroups", "roc", "confusions")
OF_EVERY_STUDY = {"values"}  # estimates from some subsets of the blocks are beside the exact values of another study
# What each way to split means; {} stands for the data set's groups.
SPLITS = {
    SplitRule("group", "keep"): "no {} shared between training, validation and test",
    SplitRule("given", "keep"): "the official test images; images of one patient may be in several parts",
    SplitRule("given", "remove"): "the official test images; other images of their patients are left out of training",
    SplitRule("given", "match"): "the official test images; as many other images are left out at random",
    SplitRule("image", "keep"): "as in the talk: images of one lesion or patient in several parts",
    SplitRule("image", "remove"): "lesions and patients of the test images are left out of training and validation",
    SplitRule("image", "match"): "images of one lesion or patient in several parts; as many images are left out at "
    "random as where the leakage is removed",
}


@dataclass(frozen=True, eq=False)
class Item:
    """A table, or a figure as a data URI, about one data set.

    study : the folder that it comes from; unless it is OF_EVERY_STUDY, the first of the studies that has it
    place : the size and split of the images there
    note : what is said about it alone, such as its network
    """

    dataset: str
    name: str
    study: str
    place: str
    note: str
    content: pd.DataFrame | str

    @property
    def is_table(self) -> bool:
        """Whether it is a table."""
        return isinstance(self.content, pd.DataFrame)


@dataclass(frozen=True)
class Chapter:
    """A question, and the names of the tables and figures that answer it; `folded` ones open on a click."""

    name: str
    question: str
    tables: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()

    def divide(self, items: list[Item]) -> tuple[list[list[Item]], list[list[Item]]]:
        """Return the items that are shown and those that are folded, in groups that share a caption: tables first."""
        tables = [item for item in items if item.is_table]
        figures = [item for item in items if not item.is_table]
        return (
            _by_name(tables, self.tables) + _by_name(figures, self.figures),
            _by_name(tables, self.figures + self.folded) + _by_name(figures, self.tables + self.folded),
        )


def _by_name(items: list[Item], names: Iterable[str]) -> list[list[Item]]:
    groups = ([item for item in items if item.name == name] for name in names)
    return [group for group in groups if group]


CHAPTERS = (
    Chapter(
        "transfer",
        TRANSFER,
        ("f1",),
        ("sizes",),
        ("scores", "folders", "differences", "weights", "chains"),
    ),
    Chapter("layers", LAYERS, ("agreement",), ("layers",), ("values", "gradcam", "activations")),
    Chapter("freezing", FREEZING, (), ("blocks", "cost"), ("beyond",)),
    Chapter(
        "clinic",
        "What can a clinician expect?",
        ("classes",),
        ("roc", "confusions"),
        ("subgroups", "measures", "calibration", "reliability"),
    ),
    Chapter("published", "Do the scores hold on the official test images?", ("published",)),
    Chapter("leakage", "How much does leakage inflate the scores?", (), ("leakage",)),
    Chapter("recipe", "Does the recipe matter?", ("recipes",), ("rates",), ("losses",)),
)


def build_page(studies: list[Study]) -> str:
    """Return the page; what the first study cannot answer comes from the first of the others that can."""
    names = list(dict.fromkeys(run.dataset for study in studies for run in study.runs))
    custom = {name: entry for study in reversed(studies) for name, entry in study.custom.items() if name in names}
    answered, first = answers(studies[0], studies[1:]), studies[0]
    titles = {study.name: _title(study) for study in studies}
    judged = settled(first, studies[1:])
    claims, elsewhere = tables.claims(judged), judged.study.notna().any()
    if elsewhere:
        sizes = {run.dataset: run.record["image_size"] for run in first.runs}
        claims["image size"] = [f"{size:.0f} px" for size in judged["size"].fillna(judged.dataset.map(sizes))]
    items = _items(studies, names)
    parts = [(chapter, *chapter.divide(items)) for chapter in CHAPTERS]
    return render(
        "medtransfer.report",
        "page.html.j2",
        names=names,
        subjects=[words_for(name, custom).subject for name in names],
        words={name: words_for(name, custom) for name in names},
        custom=custom,
        talks=[name for name in names if is_the_talks(name)],
        units=" or ".join(dict.fromkeys(words_for(name, custom).groups for name in names)),
        notes=tables.notes(run for study in studies for run in study.runs),
        few_runs=FEW_RUNS,
        answer=front(studies, answered) if len(answered) else None,
        beside_the_talk=any(map(is_the_talks, first.tables.results.dataset.unique())),
        claims=claims,
        claims_alone=tables.claims(first.tables.claims) if elsewhere else None,
        power=tables.power(first.tables.claims),
        overview=png_uri(_png(overview(first))),
        chapters=[part for part in parts if part[1] or part[2]],
        studies=[_about(study) for study in studies],
        titles=titles,
    )


def _title(study: Study) -> str:
    """Return the size and split of a study's images, for each data set if they differ."""
    places = {name: _place(study, name) for name in study.tables.results.dataset.drop_duplicates()}
    if len({*places.values()}) == 1:
        return next(iter(places.values()))
    return "; ".join(f"{words_for(name, study.custom).title}: {place}" for name, place in places.items())


def _place(study: Study, dataset: str) -> str:
    size, split = study.place_of(dataset)
    return f"{size} px, split by {split}"


def _items(studies: list[Study], datasets: list[str]) -> list[Item]:
    """Return all tables and figures; the figures take nearly all of the time, so each data set has its own process."""
    having = {name: [study for study in studies if name in set(study.tables.results.dataset)] for name in datasets}
    with ProcessPoolExecutor(initializer=_leave_signals_to_parent) as pool:
        found = pool.map(_items_of, having.values(), having)
        return [item for items in found for item in items]


def _leave_signals_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _items_of(studies: list[Study], dataset: str) -> list[Item]:
    found: list[Item] = []
    best = _with_best_network(studies, dataset)
    for study in studies:
        item = partial(Item, dataset, study=study.name, place=_place(study, dataset))
        left_out = set(OF_BEST_NETWORK) if study is not best else set()
        # Another study's seconds would appear beside the macro F1 of other fits.
        left_out |= {"cost"} if study is not studies[0] else set()
        shown = [item for item in found if item.name not in OF_EVERY_STUDY]
        tables_left_out = left_out | {item.name for item in shown if item.is_table}
        figures_left_out = left_out | {item.name for item in shown if not item.is_table}
        found += [
            item(name=name, note=note, content=table)
            for name, note, table in _tables(study, dataset)
            if name not in tables_left_out
        ]
        found += [
            item(name=name, note=note, content=png_uri(_png(figure)))
            for name, draw in FIGURES.items()
            if name not in figures_left_out
            for note, figure in draw(study, dataset)
        ]
        found += [
            item(name=picture.name, note=picture.model, content=png_uri(picture.png))
            for picture in study.pictures
            if picture.dataset == dataset and picture.name not in figures_left_out
        ]
    item = partial(Item, dataset, study=studies[0].name, place=_place(studies[0], dataset), note="")
    if len(studies) > 1:
        found.append(item(name="folders", content=_folders(studies, dataset)))
    if compared := _beside_published_tests(studies, dataset):
        table = _folders(compared, dataset, talk=False)
        both = table[(table != "-").sum(axis=1) > 1]
        found.append(item(name="published", study=compared[-1].name, place=_place(compared[-1], dataset), content=both))
    return found


def _folders(studies: list[Study], dataset: str, *, talk: bool = True) -> pd.DataFrame:
    """Return the macro F1 of every model, with or without the talk's, one column per study."""
    places = [_place(study, dataset) for study in studies]
    titles = [
        place if places.count(place) == 1 else f"{place} ({study.name})"
        for place, study in zip(places, studies, strict=True)
    ]
    left_out = [] if talk else ["published"]
    results = [study.tables.results.drop(columns=left_out) for study in studies]
    return tables.folders(dict(zip(titles, results, strict=True)), dataset)


def _beside_published_tests(studies: list[Study], dataset: str) -> list[Study]:
    """Return the studies on the official test images, after those split by group with images of the same size."""
    places = {study: study.place_of(dataset) for study in studies}
    published = [study for study, (_, split) in places.items() if split.by == "given"]
    by_group = [(places[study][0], SplitRule("group", "keep")) for study in published]
    ours = [study for study in studies if places[study] in by_group]
    return [*ours, *published] if ours else []


def _with_best_network(studies: list[Study], dataset: str) -> Study:
    """Return the study with the network that is best on the validation images, of those split like the first study."""
    networks = {study.name: best_network(study.runs, dataset) for study in studies}
    _, split = studies[0].place_of(dataset)
    alike = [study for study in studies if study.place_of(dataset)[1] == split and networks[study.name]]
    # As in best_network, more seeds come first, since the best of many single fits may be best only by chance.
    return max(
        alike,
        key=lambda study: (min(len(networks[study.name]), FEWEST_FITS), validated(networks[study.name])),
        default=studies[0],
    )


def _tables(study: Study, dataset: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield the name of every table, what is said about it alone, and the table."""
    for name, table in tables.sections(study, dataset):
        yield name, "; ".join(_meanings(study, dataset)) if name == "f1" else "", table
    leaked = study.leakage[(study.leakage.dataset == dataset) & (study.leakage.images == ALL)]
    if len(leaked):
        yield "leakage", "", tables.leakage(leaked)
    for layers in study.layers_of(dataset):
        # The values are those of networks from ImageNet weights.
        values = exact_values(study, dataset)
        known = len(values) and layers.record["model"] == FROM_IMAGENET
        agreement = agree(layers.rewinding, layers.similarity, layers.probes, values if known else None)
        network = layers.rewinding.set_index("block").macro_f1["none"]
        probe = layers.probes.set_index(["block", "network"]).macro_f1[BLOCKS[-1], "tuned"]
        about = f"{layers.name}: macro F1 {network:.2f}, or {probe:.2f} with a linear classifier on its last block; "
        about += f"Kendall's W {agreement.concordance:.2f}"
        yield "agreement", about, tables.blocks(agreement)


def _about(study: Study) -> dict[str, Any]:
    """Return what the page says about how the runs of a study were made."""
    return {
        "name": study.name,
        "title": _title(study),
        "notes": study.notes,
        "datasets": [_about_dataset(study, dataset) for dataset in study.tables.results.dataset.drop_duplicates()],
    }


def _about_dataset(study: Study, dataset: str) -> dict[str, Any]:
    runs, (_, split) = study.of(dataset), study.place_of(dataset)
    recipes = [(recipe_of(run.record), run.record["epochs"]) for run in runs if run.is_network]
    talks = [(recipe, epochs) for recipe, epochs in recipes if recipe.recipe == "talk"]
    longest = max((recipe.epochs for recipe, _ in talks), default=0)
    return {
        "name": dataset,
        "title": words_for(dataset).title,
        "first": runs[0],
        "split": split,
        "split_means": SPLITS[split].format(words_for(dataset).groups) if is_the_talks(dataset) else None,
        "recipes": [recipe for recipe, _ in talks],
        "modern": len(recipes) - len(talks),
        "longest": longest,
        "at_limit": sum(epochs >= longest for _, epochs in talks),
        "units": words_for(dataset, study.custom).groups,
        "provenance": tables.provenance(runs, study.layers_of(dataset)),
    }


def _meanings(study: Study, dataset: str) -> list[str]:
    """Return the meanings of the classes whose names do not explain themselves."""
    known = CATALOGUE[dataset].classes if dataset in CATALOGUE else study.custom.get(dataset, {}).get("meanings", {})
    return [f"{name}: {meaning}" for name, meaning in known.items() if meaning != name]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
