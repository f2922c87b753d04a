"""The comparison with the talk as Markdown and as a terminal table."""

from typing import Any

import pandas as pd
from rich.table import Table

from medtransfer.evaluation.agreement import WAYS, Agreement
from medtransfer.evaluation.comparison import Run
from medtransfer.params import Configuration, TrainParams

SYNTHETIC_NOTE = (
    "SYNTHETIC demonstration data: drawn pictures. These values say nothing about medicine or about the talk."
)
CELL_NOTE = (
    "Each cell: our F1, its 95% interval (bootstrap over lesions or patients), and the talk's F1 in round brackets. "
    "An F1 of .00: the model never gets that class right; one that only ever answers the largest class has it "
    "in all others."
)


def pivot(table: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return one data set's comparison: a row a class, a column a model, cells as text in two lines."""
    part = table[table.dataset == dataset]
    text = part.apply(_cell, axis=1)
    frame = part.assign(text=text).pivot(index="class", columns="model", values="text")
    return frame.loc[part["class"].drop_duplicates(), part.model.drop_duplicates()]


def measures(summary: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return one data set's measures: a row a model, a column a measure, cells as text in two lines."""
    part = summary[summary.dataset == dataset]
    text = [_measure(row) for row in part.to_dict("records")]
    frame = part.assign(text=text).pivot(index="model", columns="measure", values="text").fillna("-")
    return frame.loc[part.model.drop_duplicates(), part.measure.drop_duplicates()]


def _measure(row: dict[Any, Any]) -> str:
    deviation = f" ± {_short(row['sd'])}" if row["seeds"] > 1 else ""
    return f"{_short(row['value'])}{deviation}\n[{_short(row['low'])}, {_short(row['high'])}]"


def differences(pairs: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return one data set's differences in macro F1: a row and a column a model, bold where p < .05."""
    part = pairs[pairs.dataset == dataset]
    names = list(dict.fromkeys([*part["first"], *part["second"]]))
    frame = pd.DataFrame("", index=pd.Index(names, name="model"), columns=names)
    for row in part.to_dict("records"):
        text = f"{row['difference']:+.2f}".replace("0.", ".")
        frame.loc[row["first"], row["second"]] = f"**{text}**" if row["p_corrected"] < 0.05 else text
    return frame.iloc[:-1, 1:]


def _cell(row: pd.Series) -> str:
    published = f" ({_short(row.published)})" if pd.notna(row.published) else ""
    return f"{_short(row.f1)}{published}\n[{_short(row.low)}, {_short(row.high)}]"


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
    for dataset in table.dataset.drop_duplicates():
        own = [run for run in runs if run.dataset == dataset]
        record = own[0].record
        lines += [f"## {dataset}", ""]
        if record["synthetic"]:
            lines += [f"**{SYNTHETIC_NOTE}**", ""]
        lines += [
            f"{record['image_size']} px, split by {record['split_by']}, {len(own[0].predictions)} test images, "
            f"data version `{record['data_version']}`.",
            CELL_NOTE,
            "",
            *_markdown_table(pivot(table, dataset)),
            "",
            "Averages, ranking and probabilities, with their 95% intervals (± standard deviation over seeds). "
            "Scaled: with a temperature fitted on the validation images.",
            "",
            *_markdown_table(measures(summary, dataset)),
            "",
            "Differences in macro F1 on the same test images, the row's model less the column's; "
            "bold where p < .05 (permutation test over lesions or patients, corrected for the number of pairs).",
            "",
            *_markdown_table(differences(pairs, dataset)),
            "",
            *_markdown_table(provenance(own)),
            "",
        ]
    return "\n".join(lines)


def recipes(changes: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return what a change of scaling or balance does to macro F1: a row a change, from `recipe_changes`."""
    own = changes[changes.dataset == dataset]
    rows = [
        {
            "model": row["model"],
            "instead of": row["base"],
            "change": row["change"],
            "difference": f"{row['difference']:+.2f}\n[{row['low']:+.2f}, {row['high']:+.2f}]",
            "p": p_value(row["p_corrected"]),
        }
        for row in own.to_dict("records")
    ]
    return pd.DataFrame(rows, columns=["model", "instead of", "change", "difference", "p"]).set_index("model")


def blocks(found: Agreement) -> pd.DataFrame:
    """Return how much each block matters, asked in four ways: a row a block, the largest of each way bold."""
    text = {
        meaning: [f"**{value:.2f}**" if value == own.max() else f"{value:.2f}" for value in own]
        for way, meaning in WAYS.items()
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
    train = TrainParams.model_validate(record["hyperparameters"]["train"])
    configuration = Configuration.model_validate(record["hyperparameters"]["configuration"])
    return f"{configuration.recipe(train, record['dataset']).learning_rate:g}"


def terminal(table: pd.DataFrame, dataset: str) -> Table:
    """Return one data set's comparison for the terminal."""
    part = table[table.dataset == dataset]
    title = f"{dataset}: our F1 (the talk's), 95% interval; {part.test_images.iloc[0]} test images"
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
