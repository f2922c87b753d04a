"""The comparison with the talk as Markdown and as a terminal table."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.table import Table

from medtransfer.analysis.agreement import WAYS, Agreement
from medtransfer.analysis.claims import judge, settled
from medtransfer.analysis.comparison import Run
from medtransfer.analysis.families import LATTICE, TALK, WEIGHTS
from medtransfer.analysis.published import is_the_talks
from medtransfer.analysis.questions import chain, data_sizes, find_pair, recipe_changes

SYNTHETIC_NOTE = (
    "SYNTHETIC demonstration data: drawn pictures. These values say nothing about medicine or about the talk."
)
ZERO_NOTE = "Where F1 is .00 the model got no image of the class right, and no interval can be given"
CELL_NOTE = f"{ZERO_NOTE}; one that only ever answers the largest class has it in all others."
UNITS = {"ham10000": "lesions", "chest_xray": "patients"}
SHOWN = 0.005  # less is printed as 0.00
FINE = 0.05  # where an interval lies this near to 0, two decimals do not show it


CLAIMS_NOTE = (
    "What the talk claims, tested as: the first model's macro F1 is higher than the second's; p corrected for the "
    "number of claims (Holm). In the tables below the same two models have another p, corrected for the number of all "
    "pairs there. A claim is settled where p < .05 and the difference has one sign with every seed. An interval is of "
    "its own pair alone, so it may leave out 0 where p is above .05 after correction."
)


def units(dataset: str) -> str:
    """Return what intervals are drawn over."""
    return UNITS.get(dataset, "groups")


def _cell_note(dataset: str) -> str:
    brackets = ", and the talk's F1 in round brackets" if is_the_talks(dataset) else ""
    return f"Each cell: our F1, its 95% interval (bootstrap over {units(dataset)}){brackets}. {CELL_NOTE}"


def claims(decided: pd.DataFrame) -> pd.DataFrame:
    """Return the talk's claims and what became of each: one row per claim, from `judge`."""
    rows = [
        {
            "claim": row["sentence"],
            "data set": row["dataset"],
            "first": row["better"],
            "second": row["worse"],
            "difference": difference(row),
            "seeds": str(int(row["seeds"])),
            "p": p_value(row["p"]),
            "p, corrected": p_value(row["p_corrected"]),
            "verdict": f"**{row['verdict']}{', one fit' if row['seeds'] == 1 and settled(row) else ''}**",
        }
        for row in decided.to_dict("records")
    ]
    return pd.DataFrame(rows).set_index("claim")


def in_front(table: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return one data set's rows of the talk's models, or, where it has none of them, of all."""
    own = table[table.dataset == dataset]
    talks = own[own.family == TALK]
    return talks if len(talks) else own


def pivot(table: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return one data set's comparison with the talk: rows are classes, columns are models `in_front`, then seeds."""
    part = in_front(table, dataset)
    text = part.apply(_cell, axis=1)
    frame = part.assign(text=text).pivot(index="class", columns="model", values="text")
    frame = frame.loc[part["class"].drop_duplicates(), part.model.drop_duplicates()]
    frame.loc["seeds"] = part.drop_duplicates("model").seeds.map(str).to_list()
    return frame


def measures(summary: pd.DataFrame, dataset: str, *, talk: bool = True) -> pd.DataFrame:
    """Return the measures of the models `in_front`, or of those that are none of the talk's, then the seeds.

    One row per model, one column per measure.
    """
    part = in_front(summary, dataset) if talk else summary[(summary.dataset == dataset) & (summary.family != TALK)]
    text = [_measure(row) for row in part.to_dict("records")]
    frame = part.assign(text=text).pivot(index="model", columns="measure", values="text").fillna("-")
    frame = frame.loc[part.model.drop_duplicates(), part.measure.drop_duplicates()]
    frame["seeds"] = part.drop_duplicates("model").seeds.map(str).to_list()
    return frame


def _measure(row: dict[Any, Any]) -> str:
    deviation = f" ± {_short(row['sd'])}" if row["seeds"] > 1 else ""
    return f"{_short(row['value'])}{deviation}\n[{_short(row['low'])}, {_short(row['high'])}]"


def differences(pairs: pd.DataFrame, dataset: str, family: str = TALK) -> pd.DataFrame:
    """Return the differences in macro F1 for one question: one row and one column per model, bold where `settled`.

    An empty cell: the pair answers another question or has no seed in common.
    """
    part = pairs[(pairs.dataset == dataset) & (pairs.family == family)]
    names = list(dict.fromkeys([*part["first"], *part["second"]]))
    frame = pd.DataFrame("", index=pd.Index(names, name="model"), columns=names)
    for row in part.to_dict("records"):
        change, span = difference(row).split("\n")
        text = f"**{change}**" if settled(row) else change
        frame.loc[row["first"], row["second"]] = f"{text}\n{span}"
    return frame.iloc[:-1, 1:]


def _cell(row: pd.Series) -> str:
    published = f" ({_short(row.published)})" if pd.notna(row.published) else ""
    # Drawn again, what was never right is never right.
    span = f"[{_short(row.low)}, {_short(row.high)}]" if row.high > 0 else "-"
    return f"{_short(row.f1)}{published}\n{span}"


def _short(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if value < 1 else f"{value:.2f}"


def markdown(table: pd.DataFrame, summary: pd.DataFrame, pairs: pd.DataFrame, runs: list[Run]) -> str:
    """Return results.md: the tables of every data set and how each run was made.

    Parameters
    ----------
    table, summary, pairs : DataFrames
        From `compare`, `summarise` and `compare_models`.
    """
    lines = ["# Results", ""]
    decided = judge(pairs)
    if len(decided):
        if any(run.record["synthetic"] for run in runs):
            lines += [f"**{SYNTHETIC_NOTE}**", ""]
        lines += [CLAIMS_NOTE, "", *_markdown_table(claims(decided)), ""]
    for dataset in table.dataset.drop_duplicates():
        own = [run for run in runs if run.dataset == dataset]
        record = own[0].record
        lines += [f"## {dataset}", ""]
        if record["synthetic"]:
            lines += [f"**{SYNTHETIC_NOTE}**", ""]
        lines += [
            f"{record['image_size']} px, split by {record['split_by']}, {len(own[0].predictions)} test images, "
            f"data version `{record['data_version']}`.",
            _cell_note(dataset),
            "",
            *_markdown_table(pivot(table, dataset)),
            "",
            "Averages, ranking and probabilities, with their 95% intervals (± standard deviation over seeds). "
            "Scaled: with a temperature fitted on the validation images. The bootstrap inflates a small calibration "
            "error, so its interval may lie above the value.",
            "",
            *_markdown_table(measures(summary, dataset)),
            "",
        ]
        compared = differences(pairs, dataset)
        if len(compared):
            text = (
                "Differences in macro F1 on the same test images, the row's model less the column's; "
                f"bold where p < .05 (permutation test over {units(dataset)}, corrected for the number of pairs) and "
                "no seed says the opposite; 95% interval below."
            )
            lines += [text, "", *_markdown_table(compared), ""]
        for text, frame in beyond_the_talk(table, summary, pairs, runs, dataset):
            lines += [text, "", *_markdown_table(frame), ""]
        lines += [*_markdown_table(provenance(own)), ""]
    return "\n".join(lines)


def beyond_the_talk(
    table: pd.DataFrame, summary: pd.DataFrame, pairs: pd.DataFrame, runs: list[Run], dataset: str
) -> list[tuple[str, pd.DataFrame]]:
    """Return the tables of one data set that the talk has not, each with what it shows.

    Parameters
    ----------
    runs : list of Run
        Of all data sets: a chain's source is a run of another one.
    """
    families = set(summary.family[summary.dataset == dataset])
    mixed = TALK in families and len(families) > 1
    found = [("Models beyond the talk's: the same measures.", measures(summary, dataset, talk=False))] if mixed else []
    links = chain(runs, table)
    links = links[links.dataset == dataset]
    if len(links):
        found.append((_chain_note(links), chains(links, pairs)))
    own = [run for run in runs if run.dataset == dataset]
    changes = recipe_changes(own, pairs)
    if len(changes):
        text = (
            "Another scaling of the pixels, balance of the classes or optimizer: the change of macro F1, its p "
            "corrected for the number of these changes, and of micro F1."
        )
        found.append((text, recipes(changes)))
    sizes = data_sizes(own, table)
    if sizes.fraction.nunique() > 1:
        text = (
            "Fewer training images: macro F1 from either weights, and what ImageNet's add; p corrected for the number "
        )
        found.append((text + "of fractions below 1, and for the talk's pairs at 1.", fewer_images(sizes, pairs)))
    for family, name in ((LATTICE, "Other blocks"), (WEIGHTS, "Other weights to begin from")):
        if ((pairs.dataset == dataset) & (pairs.family == family)).any():
            text = (
                f"{name}: differences in macro F1, the row's model less the column's; bold where p < .05 after "
                "correction for the number of these pairs and no seed says the opposite; 95% interval below."
            )
            found.append((text, differences(pairs, dataset, family)))
    return found


def _chain_note(links: pd.DataFrame) -> str:
    text = (
        "Chains of transfers: macro F1 of the whole network by the weights that it begins from, and its difference to "
        "the network from random and to that from ImageNet weights, on the seeds that both have; p corrected for the "
        "number of pairs of the talk's models, and where one of the two is none of the talk's, for that of such pairs."
    )
    alone = links.model[links.seeds == 1]
    return text + (f" One seed alone: {', '.join(alone)}." if len(alone) else "")


def chains(links: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
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
                cells[f"p, {start}"] = p_value(pair["p_corrected"]) if pair else "-"
        rows.append(cells)
    return pd.DataFrame(rows).set_index("chain")


def recipes(changes: pd.DataFrame) -> pd.DataFrame:
    """Return what a change of the recipe does to F1: one row per change, from `recipe_changes`."""
    rows = [
        {
            "model": row["model"],
            "instead of": row["base"],
            "change": row["change"],
            "difference": difference(row),
            "p": p_value(row["p_corrected"]),
            "micro F1": f"{row['micro']:+.2f}",
        }
        for row in changes.to_dict("records")
    ]
    return pd.DataFrame(rows, columns=["model", "instead of", "change", "difference", "p", "micro F1"]).set_index(
        "model"
    )


def fewer_images(sizes: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return macro F1 from either weights by number of training images, one row per fraction, from `data_sizes`."""
    rows = []
    for fraction, part in sizes.sort_values("fraction").groupby("fraction"):
        cells = {row["weights"]: _score(row) for row in part.to_dict("records")}
        models = dict(zip(part.weights, part.model, strict=True))
        pair = (
            find_pair(pairs, part.dataset.iloc[0], models["imagenet"], models["random"]) if len(models) == 2 else None
        )
        rows.append(
            {
                "images": f"{part.images.iloc[0]} ({fraction:.0%})",
                "random": cells.get("random", "-"),
                "imagenet": cells.get("imagenet", "-"),
                "difference": difference(pair) if pair else "-",
                "p": p_value(pair["p_corrected"]) if pair else "-",
            }
        )
    return pd.DataFrame(rows).set_index("images")


def _score(row: Mapping[Any, Any]) -> str:
    return f"{_short(row['f1'])}\n[{_short(row['low'])}, {_short(row['high'])}]"


def difference(row: Mapping[Any, Any]) -> str:
    """Return a difference and, in a second line, its 95% interval."""
    change, low, high = spanned(row, "difference", "low", "high")
    return f"{change}\n[{low}, {high}]"


def spanned(pair: Mapping[Any, Any], *names: str) -> list[str]:
    """Return values of a comparison as they are printed: with three decimals where its interval lies near 0."""
    digits = 3 if max(abs(pair["low"]), abs(pair["high"])) < FINE else 2
    return [f"{pair[name]:+.{digits}f}" for name in names]


def leak(found: pd.DataFrame) -> pd.DataFrame:
    """Return how much a leak changes F1: one row per class, one column per model, from `measure_leak`."""
    text = [difference(row) for row in found.to_dict("records")]
    frame = found.assign(text=text).pivot(index="class", columns="model", values="text")
    return frame.loc[found["class"].drop_duplicates(), found.model.drop_duplicates()]


def blocks(found: Agreement) -> pd.DataFrame:
    """Return how much each block matters: one row per block, one column per method, its largest bold unless it is 0."""
    text = {
        meaning: [f"**{value:.2f}**" if value == own.max() >= SHOWN else f"{value:.2f}" for value in own]
        for way, meaning in WAYS.items()
        if way in found.blocks
        for own in [found.blocks[way]]
    }
    return pd.DataFrame(text, index=found.blocks.index)


def p_value(value: float) -> str:
    """Return a p-value as it is printed."""
    return f"{value:.3f}" if value >= 0.001 else "< .001"


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


def terminal(table: pd.DataFrame, dataset: str) -> Table:
    """Return one data set's comparison for the terminal."""
    part = table[table.dataset == dataset]
    ours = "our F1 (the talk's)" if is_the_talks(dataset) else "F1"
    title = f"{dataset}: {ours}, 95% interval; {part.test_images.iloc[0]} test images"
    if part.synthetic.any():
        title += f"\n{SYNTHETIC_NOTE}"
    frame = pivot(table, dataset)
    view = Table(title=title, title_justify="left", show_lines=False)
    view.add_column("F1")
    for model in frame.columns:
        view.add_column(str(model).replace("imagenet_", "imagenet\n"), justify="right", no_wrap=True)
    for name, row in zip(frame.index, frame.to_numpy(), strict=True):
        view.add_row(str(name), *map(str, row))
    return view
