"""The tables of a study as text: for results.md, the page and the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.table import Table

from medtransfer.analysis.agreement import WAYS, Agreement
from medtransfer.analysis.claims import PLANNED
from medtransfer.analysis.differences import Comparison, find_pair
from medtransfer.analysis.families import LATTICE, TALK, WEIGHTS
from medtransfer.analysis.published import is_the_talks
from medtransfer.analysis.questions import chain, data_sizes, recipe_changes
from medtransfer.analysis.runs import Run
from medtransfer.analysis.tables import Tables
from medtransfer.analysis.uncertainty import BOTH, EXACT, FEWEST_FITS, GROUPS
from medtransfer.core.run_record import split_of
from medtransfer.report.words import words_for

SYNTHETIC_NOTE = (
    "SYNTHETIC demonstration data: drawn pictures. These values say nothing about medicine or about the talk."
)
CLAIMS_NOTE = (
    "The talk's claims, tested as docs/analysis-plan.md says: the first model's macro F1 is higher than the second's. "
    "The 95% interval and p include the variance between training runs, for this one training set and test set; p is "
    "corrected for nine claims (Holm). The simultaneous interval covers all nine at once. Unseen seeds: those fitted "
    "after the plan only. "
    "Detectable: the smallest difference that these seeds and test images find with a power of 80%. "
    "Seeds for .02, .05, .10: how many seeds per model would find such a difference; never: too few test images for it."
)
CELL_NOTE = (
    "Each cell: F1 and its 95% interval. Of a class without a hit: its number of {groups} in the test set, and the "
    "highest F1 that is compatible with it; macro F1 counts it as 0. The last row says what the intervals cover."
)
MEASURES_NOTE = (
    "Averages, ranking and probabilities: ± is the standard deviation between seeds, and the last column says what the "
    "95% intervals cover. Scaled: with a temperature fitted on the validation images. The bias of the calibration "
    "error is corrected."
)
CALIBRATION_NOTE = (
    "Calibration of the networks per class, one class against the rest: intercept (0 is right, above 0 the class is "
    "predicted too rarely) and slope (1 is right, below 1 the probabilities are too extreme)."
)
DIFFERENCES_NOTE = (
    "Differences in macro F1, the row's model less the column's, with 95% intervals. A star marks an interval that "
    "does not include the variance between training runs, because one of the two models has fewer than three seeds."
)
SHOWN = 0.005  # less is printed as 0.00
FINE = 0.05  # where an interval lies this near to 0, two decimals do not show it


def claims(judged: pd.DataFrame) -> pd.DataFrame:
    """Return the talk's claims, one row each, from `judge`."""
    rows = [
        {
            "claim": row["claim"],
            "data set": row["dataset"],
            "first": row["first"],
            "second": row["second"],
            "verdict": f"**{row['verdict']}**",
            "difference": interval_text(row["difference"], row["low"], row["high"]),
            "simultaneous": _range(row["simultaneous_low"], row["simultaneous_high"]),
            "seeds": f"{row['first_seeds']} and {row['second_seeds']}",
            "p, corrected": p_value(row["p_corrected"]),
            "unseen seeds": _unseen(row),
            "detectable": _known(row["detectable"], ".3f"),
            **{f"seeds for {planned:.2f}": _seeds(row[f"seeds_for_{planned:.2f}"]) for planned in PLANNED},
        }
        for row in judged.to_dict("records")
    ]
    return pd.DataFrame(rows).set_index("claim")


def _unseen(row: dict[Any, Any]) -> str:
    if pd.isna(row["unseen_difference"]):
        return "-"
    return interval_text(row["unseen_difference"], row["unseen_low"], row["unseen_high"])


def _known(value: float, style: str) -> str:
    return "-" if pd.isna(value) else f"{value:{style}}"


def _seeds(value: float) -> str:
    if value == float("inf"):
        return "never"
    return "over 100" if value > 100 else _known(value, ".0f")


def in_front(table: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return one data set's rows of the talk's models, or of all models if it has none of the talk's."""
    part = table[table.dataset == dataset]
    talks = part[part.family == TALK]
    return talks if len(talks) else part


def pivot(results: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return one data set's F1 beside the talk's: rows are classes, columns are the models `in_front`."""
    part = in_front(results, dataset)
    frame = part.assign(text=part.apply(_cell, axis=1)).pivot(index="class", columns="model", values="text")
    frame = frame.loc[part["class"].drop_duplicates(), part.model.drop_duplicates()]
    seeds = part.drop_duplicates("model").seeds
    frame.loc["seeds"] = seeds.map(str).to_list()
    frame.loc["intervals"] = [_covers(dataset, BOTH if count >= FEWEST_FITS else GROUPS) for count in seeds]
    return frame


def _cell(row: pd.Series) -> str:
    published = f" ({short(row.published)})" if pd.notna(row.published) else ""
    return f"{short(row.f1)}{published}\n{_interval(row)}"


def _interval(row: Mapping[Any, Any] | pd.Series) -> str:
    if row["interval"] == EXACT and row["high"] < 1:
        return f"0 of {row['groups']}, at most {short(row['high'])}"
    if pd.isna(row["low"]):
        return str(row["interval"]).removeprefix("none: ")
    return f"[{short(row['low'])}, {short(row['high'])}]"


def _covers(dataset: str, interval: str) -> str:
    groups = words_for(dataset).groups
    return {BOTH: f"{groups} and seeds", GROUPS: groups}.get(interval, interval)


def measures(summary: pd.DataFrame, dataset: str, *, talk: bool = True) -> pd.DataFrame:
    """Return the measures of the models `in_front`, or of those beyond the talk: one row per model."""
    part = in_front(summary, dataset) if talk else summary[(summary.dataset == dataset) & (summary.family != TALK)]
    text = [_measure(row) for row in part.to_dict("records")]
    frame = part.assign(text=text).pivot(index="model", columns="measure", values="text").fillna("-")
    frame = frame.loc[part.model.drop_duplicates(), part.measure.drop_duplicates()]
    seeds = part.drop_duplicates("model").seeds
    frame["seeds"] = seeds.map(str).to_list()
    frame["intervals"] = [_covers(dataset, BOTH if count >= FEWEST_FITS else GROUPS) for count in seeds]
    return frame


def _measure(row: dict[Any, Any]) -> str:
    deviation = f" ± {_known(row['sd'], '.3f').removeprefix('0')}" if row["seeds"] > 1 else ""
    return f"{short(row['value'])}{deviation}\n{_interval(row)}"


def calibration(table: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return intercept and slope of the models `in_front`: one row per model, one column per class."""
    part = in_front(table, dataset)
    text = [
        "\n".join(
            f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
            if pd.notna(row[f"{name}_low"])
            else _known(row[name], ".2f")
            for name in ("intercept", "slope")
        )
        for row in part.to_dict("records")
    ]
    frame = part.assign(text=text).pivot(index="model", columns="class", values="text")
    return frame.loc[part.model.drop_duplicates(), part["class"].drop_duplicates()]


def differences(pairs: Sequence[Comparison], dataset: str, family: str = TALK) -> pd.DataFrame:
    """Return the differences in macro F1 for one question: one row and one column per model."""
    part = [pair for pair in pairs if (pair.dataset, pair.family) == (dataset, family)]
    names = list(dict.fromkeys([*(pair.first for pair in part), *(pair.second for pair in part)]))
    frame = pd.DataFrame("", index=pd.Index(names, name="model"), columns=names)
    for pair in part:
        frame.loc[pair.first, pair.second] = difference(pair)
    return frame.iloc[:-1, 1:]


def difference(pair: Comparison) -> str:
    """Return a difference and, in a second line, its 95% interval, with a star if that leaves out training."""
    return interval_text(pair.difference, *pair.ends) + (" *" if pair.interval == GROUPS else "")


def interval_text(value: float, low: float, high: float) -> str:
    """Return a difference and, in a second line, its interval."""
    digits = 3 if max(abs(low), abs(high)) < FINE else 2
    return f"{value:+.{digits}f}\n{_range(low, high)}"


def _range(low: float, high: float) -> str:
    digits = 3 if max(abs(low), abs(high)) < FINE else 2
    return "-" if pd.isna(low) else f"[{low:+.{digits}f}, {high:+.{digits}f}]"


def short(value: float) -> str:
    """Return a score with two decimals and without the zero before them."""
    return f"{value:.2f}".removeprefix("0") if value < 1 else f"{value:.2f}"


def p_value(value: float) -> str:
    """Return a p-value as it is printed."""
    return "-" if pd.isna(value) else f"{value:.3f}" if value >= 0.001 else "< .001"


def markdown(tables: Tables, runs: list[Run]) -> str:
    """Return results.md: the tables of every data set and how each run was made."""
    lines = ["# Results", ""]
    if len(tables.claims):
        if any(run.record["synthetic"] for run in runs):
            lines += [f"**{SYNTHETIC_NOTE}**", ""]
        lines += [CLAIMS_NOTE, "", *_markdown_table(claims(tables.claims)), ""]
    for dataset in tables.results.dataset.drop_duplicates():
        fits = [run for run in runs if run.dataset == dataset]
        record = fits[0].record
        lines += [f"## {dataset}", ""]
        if record["synthetic"]:
            lines += [f"**{SYNTHETIC_NOTE}**", ""]
        lines += [
            f"{record['image_size']} px, split by {split_of(record)}, {len(fits[0].predictions)} test images, "
            f"data version `{record['data_version']}`.",
            "",
        ]
        for text, frame in (*sections(tables, runs, dataset), ("How each run was made.", provenance(fits))):
            lines += [text, "", *_markdown_table(frame), ""]
    return "\n".join(lines)


def sections(tables: Tables, runs: list[Run], dataset: str) -> list[tuple[str, pd.DataFrame]]:
    """Return every table of one data set with its caption.

    Parameters
    ----------
    runs : list of Run
        Of all data sets: a chain's source is a run of another one.
    """
    talks = " The talk's F1 stands in round brackets." if is_the_talks(dataset) else ""
    found = [
        (CELL_NOTE.format(groups=words_for(dataset).groups) + talks, pivot(tables.results, dataset)),
        (MEASURES_NOTE, measures(tables.summary, dataset)),
        (CALIBRATION_NOTE, calibration(tables.calibration, dataset)),
        (DIFFERENCES_NOTE, differences(tables.pairs, dataset)),
    ]
    return [*found, *beyond_the_talk(tables, runs, dataset)] if len(found[-1][1]) else found[:-1]


def beyond_the_talk(tables: Tables, runs: list[Run], dataset: str) -> list[tuple[str, pd.DataFrame]]:
    """Return the tables of one data set that the talk has not, each with its caption; `runs` as for `sections`."""
    families = set(tables.summary.family[tables.summary.dataset == dataset])
    found = []
    if TALK in families and len(families) > 1:
        found.append(("Models beyond the talk's: the same measures.", measures(tables.summary, dataset, talk=False)))
    links = chain(runs, tables.results)
    links = links[links.dataset == dataset]
    if len(links):
        text = "Chains of transfers: macro F1 by the weights that training begins from, all blocks trained."
        found.append((text, chains(links, tables.pairs)))
    own = [run for run in runs if run.dataset == dataset]
    changes = recipe_changes(own, tables.pairs)
    if len(changes):
        text = "Another scaling of the pixels, balance of the classes or optimizer: what it changes."
        found.append((text, recipes(changes)))
    sizes = data_sizes(own, tables.results)
    if sizes.fraction.nunique() > 1:
        text = "Fewer training images: macro F1 from random and from ImageNet weights, and the difference."
        found.append((text, fewer_images(sizes, tables.pairs)))
    for family, name in ((LATTICE, "Other blocks"), (WEIGHTS, "Other weights to begin from")):
        if any((pair.dataset, pair.family) == (dataset, family) for pair in tables.pairs):
            text = f"{name}: differences in macro F1, the row's model less the column's."
            found.append((text, differences(tables.pairs, dataset, family)))
    return found


def chains(links: pd.DataFrame, pairs: Sequence[Comparison]) -> pd.DataFrame:
    """Return one data set's macro F1 by the chain of weights, beside random and ImageNet weights; from `chain`."""
    rows = []
    for row in links.to_dict("records"):
        cells = {
            "chain": f"{row['start']} → {row['dataset']}",
            "model": row["model"],
            "seeds": row["seeds"],
            "macro F1": _score(row),
        }
        for start, model in zip(links.start, links.model, strict=True):
            if start in ("random", "imagenet"):
                pair = find_pair(pairs, row["dataset"], row["model"], model)
                cells[f"less {start}"] = difference(pair) if pair else "-"
        rows.append(cells)
    return pd.DataFrame(rows).set_index("chain")


def recipes(changes: pd.DataFrame) -> pd.DataFrame:
    """Return what a change of the recipe does to F1: one row per change, from `recipe_changes`."""
    rows = [
        {
            "model": row["model"],
            "instead of": row["base"],
            "change": row["change"],
            "macro F1": interval_text(row["difference"], row["low"], row["high"]),
            "interval": _covers(row["dataset"], row["interval"]),
            "micro F1": f"{row['micro']:+.2f}",
        }
        for row in changes.to_dict("records")
    ]
    return pd.DataFrame(rows).set_index("model")


def fewer_images(sizes: pd.DataFrame, pairs: Sequence[Comparison]) -> pd.DataFrame:
    """Return macro F1 from either weights by number of training images, one row per fraction, from `data_sizes`."""
    rows = []
    for fraction, part in sizes.sort_values("fraction").groupby("fraction"):
        scores = {row["weights"]: _score(row) for row in part.to_dict("records")}
        models = dict(zip(part.weights, part.model, strict=True))
        pair = find_pair(pairs, part.dataset.iloc[0], models.get("imagenet", ""), models.get("random", ""))
        rows.append(
            {
                "images": f"{part.images.iloc[0]} ({fraction:.0%})",
                "random": scores.get("random", "-"),
                "imagenet": scores.get("imagenet", "-"),
                "difference": difference(pair) if pair else "-",
            }
        )
    return pd.DataFrame(rows).set_index("images")


def _score(row: Mapping[Any, Any]) -> str:
    return f"{short(row['f1'])}\n{_interval(row)}"


def leakage(found: pd.DataFrame) -> pd.DataFrame:
    """Return how much leakage changes F1: one row per class, one column per model, from `measure_leakage`."""
    text = [interval_text(row["difference"], row["low"], row["high"]) for row in found.to_dict("records")]
    frame = found.assign(text=text).pivot(index="class", columns="model", values="text")
    frame = frame.loc[found["class"].drop_duplicates(), found.model.drop_duplicates()]
    interval = found[found.interval.isin([BOTH, GROUPS])].drop_duplicates("model").set_index("model").interval
    frame.loc["intervals"] = [interval.get(model, "-") for model in frame.columns]
    return frame


def blocks(found: Agreement) -> pd.DataFrame:
    """Return how much each block matters: one row per block, one column per method, its largest bold unless it is 0."""
    text = {
        meaning: [f"**{value:.2f}**" if value == column.max() >= SHOWN else f"{value:.2f}" for value in column]
        for way, meaning in WAYS.items()
        if way in found.blocks
        for column in [found.blocks[way]]
    }
    return pd.DataFrame(text, index=found.blocks.index)


def _markdown_table(frame: pd.DataFrame) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("\n", "<br>") for cell in cells) + " |"

    header = [str(frame.index.name), *map(str, frame.columns)]
    rows = [line([str(name), *map(str, row)]) for name, row in zip(frame.index, frame.to_numpy(), strict=True)]
    return [line(header), line(["---"] * len(header)), *rows]


def provenance(runs: list[Run]) -> pd.DataFrame:
    """Return how each run was made: epochs, learning rate, precision, backend, device, seconds and commit."""
    rows = [
        {
            "run": f"{run.model}, seed {run.seed}",
            "epochs (best)": f"{run.record['epochs']} ({run.record['best_epoch']})" if run.history is not None else "-",
            "learning rate": _rate(run.record),
            "precision": run.record["precision"],
            "backend": run.record["backend"],
            "device": run.record["device"],
            "seconds": f"{run.record['seconds']:.1f}",
            "commit": run.record["git_commit"][:10] + ("*" if run.record["git_commit"].endswith("-modified") else ""),
        }
        for run in runs
    ]
    return pd.DataFrame(rows).set_index("run")


def _rate(record: dict[str, Any]) -> str:
    if record["kind"] != "network":
        return "-"
    return f"{record['hyperparameters']['train']['learning_rate']:g}"


def terminal(results: pd.DataFrame, dataset: str) -> Table:
    """Return one data set's F1 for the terminal."""
    part = results[results.dataset == dataset]
    ours = "our F1 (the talk's)" if is_the_talks(dataset) else "F1"
    title = f"{dataset}: {ours}, 95% interval; {part.test_images.iloc[0]} test images"
    if part.synthetic.any():
        title += f"\n{SYNTHETIC_NOTE}"
    frame = pivot(results, dataset)
    view = Table(title=title, title_justify="left", show_lines=False)
    view.add_column("F1")
    for model in frame.columns:
        view.add_column(str(model).replace("imagenet_", "imagenet\n"), justify="right", no_wrap=True)
    for name, row in zip(frame.index, frame.to_numpy(), strict=True):
        view.add_row(str(name), *map(str, row))
    return view
