"""The tables of a study as text, for results.md, the page and the terminal."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from medtransfer.analysis.agreement import WAYS, Agreement
from medtransfer.analysis.claims import PLANNED
from medtransfer.analysis.differences import Comparison, find_pair
from medtransfer.analysis.families import LATTICE, TALK, WEIGHTS
from medtransfer.analysis.lattice import SUBSETS
from medtransfer.analysis.published import is_the_talks
from medtransfer.analysis.questions import chain, data_sizes, recipe_changes
from medtransfer.analysis.runs import Run
from medtransfer.analysis.tables import compute_tables, write_tables
from medtransfer.analysis.uncertainty import BOTH, EXACT, FEWEST_FITS, GROUPS
from medtransfer.core.files import atomic_file
from medtransfer.core.params import TREES
from medtransfer.core.run_record import note_of, recipe_of, split_of
from medtransfer.metrics.scores import MACRO, MICRO
from medtransfer.report.render import render
from medtransfer.report.study import Layers, Study, values_of
from medtransfer.report.words import MISTUNED, words_for

# The name of a table's caption in templates/captions.html.j2, and the table.
Section = tuple[str, pd.DataFrame]
SHOWN = 0.005  # smaller values are printed as 0.00
# How a change of the recipe is worded; any other is shown as it is in params.yaml.
RECIPE_CHANGES = {
    "recipe: modern": "the modern recipe",
    "head: dense; dropout: 0.5": "with the talk's head",
    "balance: none": "without drawing rare classes more often",
    "balance: sampling": "rare classes drawn more often",
    "balance: class_weights": "rare classes weighted more in the loss",
    "augment: off": "without augmentation",
    "optimizer: adam; warmup: off; schedule: none; weight_decay: off": "with Adam at a constant learning rate",
    "label_smoothing: off": "without label smoothing",
    "average: off": "without the moving average",
    "head: pooled; dropout: 0.4": "with the head of the modern recipe",
    "balance: sampling; sampling_power: 0.5": "rare classes drawn more often",
    "augment: flips auto, crop 0.75, brightness 0.2, contrast 0.2, saturation 0.2": "with augmentation",
    "epochs: 16; patience: 16; optimizer: adamw; warmup: 2; schedule: cosine; weight_decay: 0.001": (
        "with AdamW and a schedule"
    ),
    "label_smoothing: 0.1": "with label smoothing",
    "average: 0.997": "with a moving average of the weights",
}
BASES = {"random": "random", "imagenet": "ImageNet"}  # the weights that a chain is compared with
FINE = 0.05  # an interval within this distance of 0 needs a third decimal


def claims(judged: pd.DataFrame) -> pd.DataFrame:
    """Return the talk's claims, one row each, from `judge`."""
    table = _models_of_claims(judged)
    table["verdict"] = [f"**{verdict}**" for verdict in judged.verdict]
    table["difference"] = list(map(interval_text, judged.difference, judged.low, judged.high))
    table["seeds"] = list(map("{} and {}".format, judged.first_seeds, judged.second_seeds))
    table["p, corrected"] = list(map(p_value, judged.p_corrected))
    return table


def power(judged: pd.DataFrame) -> pd.DataFrame:
    """Return what each of the talk's claims could have shown, one row each, from `judge`; unknown ones are left out."""
    table = _models_of_claims(judged)
    table["simultaneous"] = list(map(_range, judged.simultaneous_low, judged.simultaneous_high))
    table["unseen seeds"] = list(map(interval_text, judged.unseen_difference, judged.unseen_low, judged.unseen_high))
    table["detectable"] = [_known(value, ".3f") for value in judged.detectable]
    for planned in PLANNED:
        table[f"seeds for {planned:.2f}"] = list(map(_seeds, judged[f"seeds_for_{planned:.2f}"]))
    return table[judged[["detectable", "unseen_difference"]].notna().any(axis=1).to_numpy()]


def _models_of_claims(judged: pd.DataFrame) -> pd.DataFrame:
    titles = [words_for(dataset).title for dataset in judged.dataset]
    return judged.assign(**{"data set": titles}).set_index("claim")[["data set", "first", "second"]]


def folders(results: Mapping[str, pd.DataFrame], dataset: str) -> pd.DataFrame:
    """Return the macro F1 of every model, one row each, and one column for each study; `results` by study.

    A star marks an interval that leaves out the variation between training runs.
    """
    cells: dict[str, dict[str, str]] = {}
    for title, table in results.items():
        part, warned = table[(table.dataset == dataset) & (table["class"] == MACRO)], mistuned(table, dataset)
        cells[title] = {
            row["model"]: f"{_starred(row)}\n{_in_lines(warned.get(row['model'], ''))}".rstrip()
            for row in part.to_dict("records")
        }
    models = list(dict.fromkeys(model for part in cells.values() for model in part))
    return pd.DataFrame(cells, index=pd.Index(models, name="model")).fillna("-")


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
    frame = crossed(part, "class", "model", _cell)
    seeds, covered = _seeds_and_intervals(part)
    frame.loc["seeds"], frame.loc["intervals"] = seeds, [text.replace(" and ", "\nand ") for text in covered]
    warned = mistuned(part, dataset)
    if warned:
        frame.loc["warning"] = [_in_lines(warned.get(str(model), "")) for model in frame]
    return frame


def _in_lines(warning: str) -> str:
    return warning.replace("; ", ";\n").replace(": ", ":\n")


def mistuned(results: pd.DataFrame, dataset: str) -> dict[str, str]:
    """Return a warning for each network that is right about only one class, by model; `results` from `f1_table`."""
    classes = results[
        (results.dataset == dataset) & ~results["class"].isin([MACRO, MICRO]) & ~results.model.isin(TREES)
    ]
    found = classes[classes.f1 > 0].groupby("model")["class"].agg(list)
    return {str(model): MISTUNED.format(names[0]) for model, names in found.items() if len(names) == 1}


def crossed(part: pd.DataFrame, rows: str, columns: str, cell: Callable[[Mapping[Any, Any]], str]) -> pd.DataFrame:
    """Return the text of each row of `part` in a table of two of its columns, whose order is kept."""
    texts = list(map(cell, part.to_dict("records")))
    frame = part.assign(text=texts).pivot(index=rows, columns=columns, values="text")
    return frame.loc[part[rows].drop_duplicates(), part[columns].drop_duplicates()].fillna("-")


def _seeds_and_intervals(part: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return each model's number of seeds, and what its intervals cover."""
    seeds, covered = [], []
    for _, rows in part.groupby("model", sort=False):
        fits = rows.seeds.iloc[0]
        both = fits >= FEWEST_FITS and not (rows.interval == GROUPS).any()
        seeds.append(str(fits))
        covered.append(_covers(rows.dataset.iloc[0], BOTH if both else GROUPS))
    return seeds, covered


def _cell(row: Mapping[Any, Any]) -> str:
    published = f" ({short(row['published'])})" if pd.notna(row.get("published")) else ""
    return f"{short(row['f1'])}{published}\n{_interval(row)}"


def _starred(row: Mapping[Any, Any]) -> str:
    return _cell(row) + _star(row["interval"])


def _interval(row: Mapping[Any, Any]) -> str:
    if row["interval"] == EXACT and row["high"] < 1:
        return f"0 of {row['groups']}, ≤ {short(row['high'])}"
    if pd.isna(row["low"]):
        return str(row["interval"]).removeprefix("none: ")
    return _between(row)


def _between(row: Mapping[Any, Any]) -> str:
    return f"[{short(row['low'])}, {short(row['high'])}]"


def _covers(dataset: str, interval: str) -> str:
    groups = words_for(dataset).groups
    return {BOTH: f"{groups} and seeds", GROUPS: groups}.get(interval, interval)


def measures(summary: pd.DataFrame, dataset: str, *, talk: bool = True) -> pd.DataFrame:
    """Return the measures of the models `in_front`, or of those beyond the talk: one row per model."""
    part = in_front(summary, dataset) if talk else summary[(summary.dataset == dataset) & (summary.family != TALK)]
    frame = crossed(part, "model", "measure", _measure)
    frame["seeds"], frame["intervals"] = _seeds_and_intervals(part)
    return frame


def _measure(row: Mapping[Any, Any]) -> str:
    deviation = f" ± {_known(row['sd'], '.3f')}" if row["seeds"] > 1 else ""
    return f"{short(row['value'])}{deviation}\n{_interval(row)}"


def calibration(table: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return intercept and slope of the models `in_front`: one row per model, one column per class."""
    part = in_front(table, dataset)
    return crossed(part, "model", "class", _intercept_and_slope)


def _intercept_and_slope(row: Mapping[Any, Any]) -> str:
    lines = []
    for name in ("intercept", "slope"):
        value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
        shown = f"{short(value)} [{short(low)}, {short(high)}]{_star(row['interval'])}"
        lines.append(_known(value, "z.2f") if pd.isna(low) else shown)
    return "\n".join(lines)


def classes(table: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return sensitivity, specificity and AUC of each class, one row each; `table` from `class_table`."""
    part = table[table.dataset == dataset]
    return _of_network(part, "class", crossed(part, "class", "measure", share))


def subgroups(table: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return accuracy and sensitivities of each kind of image, one row each; `table` from `subgroup_table`."""
    part = table[table.dataset == dataset]
    part = part.assign(kind=part["by"] + ": " + part.subgroup)
    frame = crossed(part, "kind", "measure", share)
    frame = frame.rename(columns={MICRO: "accuracy"})
    counts = part.drop_duplicates("kind").set_index("kind")
    frame.insert(0, "images", counts.images.astype(str))
    frame.insert(1, words_for(dataset).groups, counts.groups.astype(str))
    return _of_network(part, "subgroup", frame)


def _of_network(part: pd.DataFrame, rows: str, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.rename_axis(index=f"{rows} ({part.model.iloc[0]})" if len(part) else None)


def share(row: Mapping[Any, Any]) -> str:
    """Return a share and, on a second line, its interval."""
    return f"{short(row['value'])}\n{'-' if pd.isna(row['low']) else _between(row) + _star(row['interval'])}"


def differences(pairs: Sequence[Comparison], dataset: str, family: str = TALK) -> pd.DataFrame:
    """Return the differences in macro F1 for one question: one row and one column per model."""
    part = [pair for pair in pairs if (pair.dataset, pair.family) == (dataset, family)]
    names = list(dict.fromkeys([*(pair.first for pair in part), *(pair.second for pair in part)]))
    frame = pd.DataFrame("", index=pd.Index(names, name="model"), columns=names)
    for pair in part:
        frame.loc[pair.first, pair.second] = difference(pair)
    return frame.iloc[:-1, 1:]


def difference(pair: Comparison) -> str:
    """Return a difference and, on a second line, its 95% interval, with a star if that leaves out training."""
    return interval_text(pair.difference, *pair.ends) + _star(pair.interval)


def _star(interval: str) -> str:
    """Return the mark of an interval of these fits only."""
    return " *" if interval == GROUPS else ""


def _difference(row: Mapping[Any, Any]) -> str:
    return interval_text(row["difference"], row["low"], row["high"])


def interval_text(value: float, low: float, high: float) -> str:
    """Return a difference and, on a second line, its interval; `-` without a difference."""
    return "-" if pd.isna(value) else f"{signed(value, _digits(low, high))}\n{_range(low, high)}"


def _range(low: float, high: float) -> str:
    digits = _digits(low, high)
    # An end of -0.000 keeps its sign: the interval includes 0.
    ends = [f"{end:+.{digits}f}" for end in (low, high)]
    return "-" if pd.isna(low) else f"[{', '.join(end.lstrip('+') if float(end) == 0 else end for end in ends)}]"


def _digits(low: float, high: float) -> int:
    return 3 if max(abs(low), abs(high)) < FINE or min(abs(low), abs(high)) < SHOWN else 2


def signed(value: float, digits: int) -> str:
    """Return a number with its sign, or 0 without one."""
    text = f"{value:+.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def short(value: float) -> str:
    """Return a score with two decimals."""
    return f"{value:z.2f}"


def one_line(text: str) -> str:
    """Return a value and its interval, which are two lines in a cell, on one line."""
    return text.replace("\n-", " (no interval)").replace("\n", " ")


def p_value(value: float) -> str:
    """Return a p-value as it is printed."""
    shown = f"{value:.3f}" if value >= 0.001 else "< 0.001"
    return "-" if pd.isna(value) else shown


def write_results(name: str, runs: list[Run], attributes: Mapping[str, pd.DataFrame], folder: Path) -> Study:
    """Compute the tables of a study, write them and results.md into a folder, and return the study.

    `attributes` are those of `subgroup_table`.
    """
    study = Study(name, runs, compute_tables(runs, attributes))
    write_tables(study.tables, folder)
    with atomic_file(folder / "results.md") as path:
        path.write_text(markdown(study))
    return study


def markdown(study: Study) -> str:
    """Return results.md: the tables of every data set, and how each run was made."""
    datasets = []
    for dataset in study.tables.results.dataset.drop_duplicates():
        fits = study.of(dataset)
        shown = [*sections(study, dataset), ("provenance", provenance(fits))]
        words = {"name": dataset, "talk": is_the_talks(dataset), "units": words_for(dataset).groups}
        made = {"first": fits[0], "split": split_of(fits[0].record), "note": note_of(fits[0].record)}
        datasets.append({**words, **made, "tables": shown})
    return render(
        "medtransfer.report",
        "results.md.j2",
        claims=claims(study.tables.claims),
        power=power(study.tables.claims),
        notes=notes(study.runs),
        units=" or ".join(dict.fromkeys(data["units"] for data in datasets)),
        datasets=datasets,
    )


def notes(runs: Iterable[Run]) -> list[str]:
    """Return the notes on the data of these runs, each once."""
    return list(filter(None, dict.fromkeys(note_of(run.record) for run in runs)))


def noted(results: pd.DataFrame) -> list[str]:
    """Return the notes on the data in a table from `f1_table`, each once."""
    return list(results["note"].dropna().unique()) if "note" in results else []


def sections(study: Study, dataset: str) -> list[Section]:
    """Return every table of one data set."""
    tables = study.tables
    found = [
        ("f1", pivot(tables.results, dataset)),
        ("measures", measures(tables.summary, dataset)),
        ("calibration", calibration(tables.calibration, dataset)),
        ("classes", classes(tables.classes, dataset)),
        ("subgroups", subgroups(tables.subgroups, dataset)),
        ("differences", differences(tables.pairs, dataset)),
        *beyond_the_talk(study, dataset),
    ]
    return [(name, table) for name, table in found if len(table)]


def beyond_the_talk(study: Study, dataset: str) -> list[Section]:
    """Return the tables of one data set that go beyond the talk."""
    tables, fits = study.tables, study.of(dataset)
    families = set(tables.summary.family[tables.summary.dataset == dataset])
    found = []
    if TALK in families and len(families) > 1:
        found.append(("beyond", measures(tables.summary, dataset, talk=False)))
    links = chain(study.runs, tables.results)
    links = links[links.dataset == dataset]
    if len(links):
        found.append(("chains", chains(links, tables.pairs)))
    changes = recipe_changes(fits, tables.pairs)
    if len(changes):
        found.append(("recipes", recipes(changes)))
    values = values_of(study, dataset)
    if len(values):
        found.append(("values", lattice(values)))
    sizes = data_sizes(fits, tables.results)
    if sizes.fraction.nunique() > 1:
        found.append(("sizes", fewer_images(sizes, tables.pairs)))
    # With every subset of the blocks, the values replace a table of hundreds of pairs.
    for family in (WEIGHTS,) if (values.subsets == SUBSETS).any() else (LATTICE, WEIGHTS):
        if any((pair.dataset, pair.family) == (dataset, family) for pair in tables.pairs):
            found.append((family, differences(tables.pairs, dataset, family)))
    return found


def chains(links: pd.DataFrame, pairs: Sequence[Comparison]) -> pd.DataFrame:
    """Return one data set's macro F1 by the chain of weights, beside random and ImageNet weights; from `chain`."""
    dataset = links.dataset.iloc[0]
    table = links.assign(chain=links.start + " → " + dataset).set_index("chain")[["model", "seeds"]]
    table["macro F1"] = [_starred(row) for row in links.to_dict("records")]
    for start, base in zip(links.start, links.model, strict=True):
        if start in BASES:
            compared = [find_pair(pairs, dataset, model, base) for model in links.model]
            table[f"minus {BASES[start]} weights"] = [difference(pair) if pair else "-" for pair in compared]
    return table


def recipes(changes: pd.DataFrame) -> pd.DataFrame:
    """Return what a change of the recipe does to F1: one row per change, from `recipe_changes`."""
    changes = changes.sort_values("change", key=lambda change: change != "recipe: modern", kind="stable")
    table = changes.rename(columns={"base": "instead of"}).set_index("model")[["instead of", "change"]]
    table["change"] = table.change.replace(RECIPE_CHANGES)
    table["change in macro F1"] = [_difference(row) + _star(row["interval"]) for row in changes.to_dict("records")]
    table["change in micro F1"] = [signed(value, 2) for value in changes.micro]
    return table


def lattice(values: pd.DataFrame) -> pd.DataFrame:
    """Return what each block adds, from `block_values`: one row per block or pair, one column per metric."""
    frame = crossed(values, "blocks", "metric", lambda row: interval_text(row["value"], row["low"], row["high"]))
    return frame.assign(subsets=f"{values.subsets.iloc[0]} of {SUBSETS}")


def fewer_images(sizes: pd.DataFrame, pairs: Sequence[Comparison]) -> pd.DataFrame:
    """Return macro F1 from either weights by number of training images, one row per fraction, from `data_sizes`."""
    rows = []
    for fraction, part in sizes.groupby("fraction"):
        scores = {row["weights"]: _starred(row) for row in part.to_dict("records")}
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


def leakage(found: pd.DataFrame) -> pd.DataFrame:
    """Return how much leakage changes F1: one row per class, one column per model, from `measure_leakage`."""
    frame = crossed(found, "class", "model", _difference)
    interval = found[found.interval.isin([BOTH, GROUPS])].drop_duplicates("model").set_index("model").interval
    frame.loc["intervals"] = [interval.get(model, "-") for model in frame.columns]
    return frame


def blocks(found: Agreement) -> pd.DataFrame:
    """Return how much each block matters: one row per block, one column per method, with its largest value bold."""
    largest = found.blocks.eq(found.blocks.max()) & (found.blocks >= SHOWN)
    text = found.blocks.map(short)
    return text.mask(largest, "**" + text + "**").rename(columns=WAYS)


def provenance(runs: list[Run], analyses: Iterable[Layers] = ()) -> pd.DataFrame:
    """Return how each run was made: epochs, learning rate, precision, backend, device, seconds and commit.

    Below the runs come the layer analyses, of which only the last four are known.
    """
    rows = [
        {
            "run": f"{run.model}, seed {run.seed}",
            "epochs (best)": f"{run.record['epochs']} ({run.record['best_epoch']})" if run.is_network else "-",
            "learning rate": f"{recipe_of(run.record).learning_rate:g}" if run.is_network else "-",
            "precision": run.record["precision"],
            **_made(run.record),
        }
        for run in runs
    ]
    rows += [{"run": f"layer analysis of {layers.name}", **_made(layers.record)} for layers in analyses]
    return pd.DataFrame(rows).set_index("run").fillna("-")


def _made(record: dict[str, Any]) -> dict[str, str]:
    commit = record["git_commit"]
    return {
        "backend": record["backend"],
        "device": record["device"],
        "seconds": f"{record['seconds']:.1f}",
        "commit": commit[:10] + ("†" if commit.endswith("-modified") else ""),
    }


def terminal(results: pd.DataFrame, dataset: str) -> Table:
    """Return one data set's F1 for the terminal."""
    part = results[results.dataset == dataset]
    ours = "our F1 (the talk's)" if is_the_talks(dataset) else "F1"
    title = f"{dataset}: {ours}, 95% interval; {part.test_images.iloc[0]} test images"
    title = "\n".join([title, *noted(part)])
    frame = pivot(results, dataset)
    view = Table(title=title, title_justify="left", show_lines=False)
    view.add_column("F1")
    for model in frame.columns:
        view.add_column(str(model).replace("imagenet_", "imagenet_\n"), justify="right", no_wrap=True)
    for name, row in zip(frame.index, frame.to_numpy(), strict=True):
        view.add_row(str(name), *map(str, row))
    return view


def external(compared: pd.DataFrame) -> pd.DataFrame:
    """Return the external scores and their distance from the internal ones: one row per measure, a column per model."""
    frame = crossed(compared, "measure", "model", _external)
    frame.loc["seeds"] = compared.drop_duplicates("model").seeds.astype(str).to_numpy()
    return frame


def _external(row: Mapping[Any, Any]) -> str:
    if pd.isna(row["external"]):
        return str(row["interval"])
    score = f"{short(row['external'])} {_interval({**row, 'low': row['external_low'], 'high': row['external_high']})}"
    return f"{score}\n{_difference(row)}{_star(row['difference_interval'])}"
