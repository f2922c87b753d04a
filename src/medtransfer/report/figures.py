"""Figures, as Matplotlib's or as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

SYNTHETIC_MARK = " - SYNTHETIC demonstration data"
DPI = 130
# Colours that people with any colour vision tell apart (Paul Tol, Colour Schemes, SRON/EPS/TN/09-002, 2021, "bright"),
# with a marker each, so that colour is never the only sign.
PALETTE = ("#4477aa", "#ee6677", "#228833", "#aa3377", "#66ccee", "#ccbb44", "#777777")
MARKERS = "osD^vP*Xh"
GRID = "#dddddd"


def mark(title: str, synthetic: bool) -> str:
    """Return a title that says whether the data are synthetic."""
    return title + SYNTHETIC_MARK if synthetic else title


def class_distribution(counts: pd.Series, title: str, path: Path) -> None:
    """Draw the number of images per class (index: classes)."""
    figure, (axes,) = _panels(1, 1.8 + 0.8 * len(counts), 3.6, title)
    axes.bar_label(axes.bar(list(counts.index), counts.to_numpy(), color=PALETTE[0]), padding=2)
    axes.margins(y=0.1)
    axes.set(ylabel="images")
    figure.savefig(path, dpi=DPI)


def confusion(matrix: np.ndarray, classes: list[str], title: str, path: Path) -> None:
    """Draw counts (classes, classes), shaded by the share of each true class."""
    side = 2.4 + 0.5 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    _draw_counts(axes, matrix, classes, fontsize=9)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=9, wrap=True)
    figure.savefig(path, dpi=DPI)


def _draw_counts(axes: Axes, matrix: np.ndarray, classes: list[str], fontsize: int) -> None:
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        color = "white" if share[row, column] > 0.6 else "black"
        axes.text(column, row, str(int(count)), ha="center", va="center", color=color, fontsize=fontsize)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=45, ha="right")
    axes.set_yticks(ticks, classes)


def curves(history: pd.DataFrame, title: str, path: Path) -> None:
    """Draw loss and accuracy per epoch, for training and validation."""
    figure, panels = _panels(2, 4, 3.2, title)
    for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
        axes.plot(history.epoch, history[name], marker=".", label="training")
        axes.plot(history.epoch, history[f"val_{name}"], marker=".", label="validation")
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
    figure.savefig(path, dpi=DPI)


def training_accuracy(histories: dict[str, pd.DataFrame], title: str, path: Path) -> None:
    """Draw the training accuracy of several networks over the epochs, as in the talk."""
    figure, (axes,) = _panels(1, 6, 3.6, title)
    for label, history in histories.items():
        axes.plot(history.epoch, history.accuracy, marker=".", label=label)
    axes.set(xlabel="epoch", ylabel="training accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=DPI)


def activations(image: np.ndarray, layers: dict[str, np.ndarray], title: str, path: Path) -> None:
    """Draw an image (size, size, 3) and, for each entry, all filters of a layer's output (size, size, n)."""
    figure = Figure(figsize=(3 + 4.6 * len(layers), 5), layout="constrained")
    panels = figure.subplots(1, 1 + len(layers), width_ratios=[0.6] + [1.0] * len(layers))
    panels[0].imshow(image)
    panels[0].set_title("input", fontsize=10)
    for axes, (label, output) in zip(panels[1:], layers.items(), strict=True):
        axes.imshow(_mosaic(output), cmap="viridis", interpolation="none")
        axes.set_title(label, fontsize=10)
    for axes in panels:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=DPI)


def _mosaic(output: np.ndarray) -> np.ndarray:
    """Return all filters of (size, size, n) in one square picture, each from 0 to 1, with empty lines between them."""
    low, high = output.min((0, 1)), output.max((0, 1))
    scaled = (output - low) / np.where(high > low, high - low, 1)
    side, gap = int(np.ceil(np.sqrt(output.shape[-1]))), max(1, output.shape[0] // 12)
    filters = np.full((side * side, output.shape[0] + gap, output.shape[1] + gap), np.nan)
    filters[: output.shape[-1], gap:, gap:] = np.moveaxis(scaled, -1, 0)
    rows = filters.reshape(side, side, *filters.shape[1:]).swapaxes(1, 2)
    return rows.reshape(side * filters.shape[1], side * filters.shape[2])


def scores(table: pd.DataFrame, title: str, seeds: Mapping[str, Sequence[float]]) -> Figure:
    """Return a figure of each model's F1 with its interval and the talk's value, one line per model.

    Parameters
    ----------
    seeds : mapping
        F1 of each seed of a model by its name; drawn where there are several.
    """
    figure, (axes,) = _panels(1, 7, 1.4 + 0.38 * len(table), title)
    _draw_scores(axes, table)
    several = {model: values for model, values in seeds.items() if len(values) > 1 and model in set(table.model)}
    if several:
        rows = dict(zip(table.model, np.arange(len(table))[::-1], strict=True))
        dots = [(value, rows[model] - 0.25) for model, values in several.items() for value in values]
        axes.plot(*zip(*dots, strict=True), ".", color=PALETTE[-1], markersize=5, label="each seed of ours")
    axes.legend(frameon=False, fontsize=8)
    return figure


def overview(tables: dict[str, pd.DataFrame]) -> Figure:
    """Return a figure like `scores` of several data sets, one panel each; the keys are the titles."""
    heights = [len(table) for table in tables.values()]
    figure = Figure(figsize=(8, 1.2 * len(tables) + 0.3 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, table) in zip(panels, tables.items(), strict=True):
        _draw_scores(axes, table)
        _plain(axes)
        axes.set_title(title, fontsize=10, loc="left")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _draw_scores(axes: Axes, table: pd.DataFrame) -> None:
    rows = np.arange(len(table))[::-1]
    axes.errorbar(table.f1, rows, xerr=_spans(table), fmt="o", color=PALETTE[0], capsize=3, label="ours, 95% interval")
    published = table.published.notna()
    if published.any():
        axes.plot(
            table.published[published], rows[published], "D", color=PALETTE[1], fillstyle="none", label="the talk"
        )
    axes.set_yticks(rows, list(table.model))
    axes.set(xlabel="macro F1")
    axes.grid(axis="x", color=GRID)


def _spans(table: pd.DataFrame, value: str = "f1") -> np.ndarray:
    """Return how far `low` and `high` lie from a value, (2, rows)."""
    spans: np.ndarray = np.stack([table[value] - table.low, table.high - table[value]]).clip(0)
    return spans


def _panels(
    count: int, width: float, height: float, title: str, most: int = 3, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels, at most `most` in a row, each so many inches wide and high; `options` of subplots."""
    columns = min(most, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes in panels[:count]:
        _plain(axes)
    if count == 1:
        panels[0].set_title(title, fontsize=10, wrap=True)
    else:
        figure.suptitle(title, fontsize=10)
    return figure, panels[:count]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def block_counts(table: pd.DataFrame, title: str) -> Figure:
    """Return a figure of macro F1 against the number of blocks that train; `table` from `questions.block_counts`."""
    labels = {"last": "from the last block on", "first": "from the first block on"}
    # A line between points that are not neighbours would show values that nobody measured.
    asked = pd.MultiIndex.from_product([list(labels), range(table.blocks.max() + 1)], names=["start", "blocks"])
    table = table.merge(asked.to_frame(index=False), how="outer")
    return _lines(table, "start", labels, "blocks", "blocks that train beside the head", title, shift=0.06)


def data_sizes(table: pd.DataFrame, title: str) -> Figure:
    """Return a figure of macro F1 against the training images; `table` from `questions.data_sizes`."""
    labels = {"imagenet": "ImageNet weights", "random": "random weights"}
    figure = _lines(table, "weights", labels, "images", "training images (log)", title)
    axes = figure.axes[0]
    axes.set_xscale("log")
    axes.set_xticks(sorted(set(table.images)))
    _plain_numbers(axes)
    return figure


def _plain_numbers(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _lines(
    table: pd.DataFrame, key: str, labels: dict[str, str], x: str, text: str, title: str, shift: float = 0
) -> Figure:
    """Return a figure of F1 with its interval against a column, one line for each value of `key` that has a label.

    Each line is drawn `shift` to the right of the one before, so that no interval hides another.
    """
    figure, (axes,) = _panels(1, 7, 3.8, title)
    for number, (value, label) in enumerate(labels.items()):
        part = table[table[key] == value].sort_values(x)
        style: dict[str, Any] = {"color": PALETTE[number], "marker": MARKERS[number], "capsize": 3, "label": label}
        axes.errorbar(part[x] + shift * number, part.f1, yerr=_spans(part), **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=GRID)
    axes.legend(frameon=False, fontsize=8)
    axes.set(xlabel=text, ylabel="macro F1")
    return figure


def rates(tuning: pd.DataFrame, guess: float, title: str) -> Figure:
    """Return a figure of what `medtransfer tune` tried, one line per configuration.

    Trials that differ in optimizer, part of the training images or number of epochs have panels of their own.

    Parameters
    ----------
    tuning : DataFrame
        From `study.trials`.
    guess : float
        The macro F1 of a model that predicts only the largest class.
    """
    names = list(tuning.configuration.drop_duplicates())
    groups = list(tuning.groupby(["optimizer", "fraction", "epochs"], sort=False))
    figure, panels = _panels(len(groups), 4, 3.4, title, sharex=True, sharey=True)
    labelled = {}
    for place, (axes, ((optimizer, fraction, epochs), tried)) in enumerate(zip(panels, groups, strict=True)):
        labelled["only the largest class"] = axes.axhline(guess, color="#333333", linestyle="--", linewidth=1)
        for number, name in enumerate(names):
            part = tried[tried.configuration == name].sort_values("learning_rate")
            if len(part):
                style: dict[str, Any] = {
                    "color": PALETTE[number % len(PALETTE)],
                    "marker": MARKERS[number % len(MARKERS)],
                }
                (labelled[name],) = axes.plot(part.learning_rate, part.val_macro_f1, **style)
        used = tried[tried.used]
        axes.plot(used.learning_rate, used.val_macro_f1, "o", color="#333333", markersize=13, fillstyle="none")
        axes.set_xscale("log")
        axes.set_title(f"{optimizer}, {fraction:.0%} of the images, {epochs:.0f} epochs", fontsize=9)
        axes.set(ylabel="macro F1, validation images")
        axes.label_outer()
        if place + 3 >= len(groups):  # nothing stands below
            axes.tick_params(labelbottom=True)
            axes.set(xlabel="learning rate")
        axes.grid(color=GRID)
    figure.legend(labelled.values(), labelled, loc="outside right upper", frameon=False, fontsize=8)
    return figure


def cost(table: pd.DataFrame, seconds: dict[str, float], title: str) -> Figure:
    """Return a figure of the seconds that a fit takes against its F1, one point per model."""
    figure, (axes,) = _panels(1, 7, 3.8, title)
    for number, row in enumerate(table.to_dict("records")):
        color, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        axes.plot(seconds[row["model"]], row["f1"], marker, color=color, markersize=8, label=row["model"])
    axes.set_xscale("log")
    _plain_numbers(axes)
    axes.grid(color=GRID)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set(xlabel="seconds of fitting (log)", ylabel="macro F1")
    return figure


def losses(histories: dict[str, list[pd.DataFrame]], title: str) -> Figure:
    """Return a figure of the validation loss over the epochs, one panel per network, one line per seed."""
    figure, panels = _panels(len(histories), 3, 2.4, title, sharey=True)
    for axes, (model, fits) in zip(panels, histories.items(), strict=True):
        for history in fits:
            axes.plot(history.epoch, history.val_loss, marker=".", markersize=3, linewidth=1)
        axes.set_title(model, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.supxlabel("epoch", fontsize=9)
    return figure


def confusions(matrices: dict[str, np.ndarray], classes: list[str], title: str) -> Figure:
    """Return a figure of confusion matrices, counts (classes, classes), one panel per model, shaded by rows."""
    figure, panels = _panels(len(matrices), 3.4, 3.4, f"{title}: rows true, columns predicted")
    for axes, (model, matrix) in zip(panels, matrices.items(), strict=True):
        _draw_counts(axes, matrix, classes, fontsize=7)
        axes.set_title(model, fontsize=9)
        axes.tick_params(labelsize=7)
    return figure


def layers(rewinding: pd.DataFrame, similarity: pd.DataFrame, probes: pd.DataFrame, title: str) -> Figure:
    """Return a figure of what `medtransfer layers` found, one panel per question; the tables are as in their files."""
    figure, (rewound, probed, alike, moved) = _panels(4, 4.5, 3.2, title, most=2)
    blocks = rewinding[rewinding.block != "none"]
    rewound.bar(blocks.block, blocks.macro_f1, yerr=_spans(blocks, "macro_f1"), color=PALETTE[0], capsize=3)
    rewound.axhline(rewinding.macro_f1[rewinding.block == "none"].iloc[0], color="#333333", linestyle="--", linewidth=1)
    rewound.set_title("one block put back to its start\n(dashed: none put back)", fontsize=9)
    for number, (network, part) in enumerate(probes.groupby("network", sort=False)):
        style: dict[str, Any] = {
            "color": PALETTE[number],
            "marker": MARKERS[number],
            "capsize": 3,
            "yerr": _spans(part, "macro_f1"),
        }
        probed.errorbar(np.arange(len(part)) + 0.1 * number, part.macro_f1, label=f"{network} weights", **style)
        probed.set_xticks(range(len(part)), list(part.block))
    probed.set_title("linear classifier on each block's output", fontsize=9)
    probed.legend(frameon=False, fontsize=8)
    places = np.arange(len(similarity))
    names = [name.replace("block", "").replace("_conv", ".") for name in similarity.layer]
    for axes, key, text in (
        (alike, "cka", "outputs before and after training: similarity (linear CKA)"),
        (moved, "distance", "distance moved in weights, over their norm"),
    ):
        # Not clipped: where all values are nearly 1, the axis ends in the middle of the markers.
        axes.plot(places, similarity[key], marker="o", color=PALETTE[0], clip_on=False)
        axes.set_xticks(places, names, fontsize=8)
        axes.set_title(text, fontsize=9)
        axes.set(xlabel="block.layer")
    for axes in (rewound, probed, alike, moved):
        axes.set(ylim=(0, None), ylabel="macro F1" if axes in (rewound, probed) else "")
        axes.grid(axis="y", color=GRID)
    return figure


def gradcam(
    chosen: pd.DataFrame, images: np.ndarray, heat: np.ndarray, classes: list[str], title: str, path: Path
) -> None:
    """Draw images (n, size, size, 3) and, beside each, its heat map (n, h, w) over it: one row per class.

    Parameters
    ----------
    chosen : DataFrame of n rows: label, predicted, probability, right
    """
    figure = Figure(figsize=(7.4, 1.75 * len(classes) + 0.5), layout="constrained")
    panels = figure.subplots(len(classes), 4, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for row, name in enumerate(classes):
        for column, right in ((0, True), (2, False)):
            at = np.flatnonzero((chosen.label == name) & (chosen.right == right))
            plain, marked = panels[row, column : column + 2]
            if not len(at):
                plain.text(0, 0.5, f"{name}: never {'right' if right else 'wrong'}", fontsize=8)
                continue
            found, size = chosen.iloc[at[0]], images.shape[1]
            text = f"{'right' if right else 'wrong'}: {name} as {found.predicted}, {found.probability:.2f}"
            plain.set_title(text, fontsize=8, loc="left")
            plain.imshow(images[at[0]])
            marked.imshow(images[at[0]].mean(axis=-1), cmap="gray")
            extent = (-0.5, size - 0.5, size - 0.5, -0.5)
            marked.imshow(
                heat[at[0]], cmap="inferno", alpha=0.5, extent=extent, interpolation="bilinear", vmin=0, vmax=1
            )
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=DPI)


def leakage(table: pd.DataFrame, title: str) -> Figure:
    """Return a figure of how much leakage adds to each class's F1, one panel per model.

    `table` is from `measure_leakage`, with a column `name` that tells the rows of a model apart.
    """
    models = list(table.model.drop_duplicates())
    height = 1.4 + 0.3 * table.name.nunique()
    figure, panels = _panels(len(models), 3.4, height, title, most=len(models), sharey=True, sharex=True)
    for axes, model in zip(panels, models, strict=True):
        part = table[table.model == model]
        rows = np.arange(len(part))[::-1]
        axes.errorbar(part.difference, rows, xerr=_spans(part, "difference"), fmt="o", color=PALETTE[0], capsize=3)
        axes.axvline(0, color="#333333", linewidth=1)
        axes.set_yticks(rows, list(part.name))
        axes.set_title(model, fontsize=9)
        axes.grid(axis="x", color=GRID)
    figure.supxlabel("F1 with leakage less F1 without", fontsize=9)
    return figure


def reliability(bands: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Return reliability diagrams, one panel per model; each table is from `calibration.reliability`."""
    figure, panels = _panels(len(bands), 3, 2.9, title, sharex=True, sharey=True)
    for axes, (model, band) in zip(panels, bands.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="#333333", linestyle="--", linewidth=1)
        axes.fill_between(band.confidence, band.low, band.high, color=PALETTE[0], alpha=0.25)
        axes.plot(band.confidence, band.accuracy, marker="o", markersize=4, color=PALETTE[0])
        axes.set_title(model, fontsize=9)
        axes.set(xlim=(0, 1), ylim=(0, 1))
    figure.supxlabel("confidence", fontsize=9)
    figure.supylabel("share of correct predictions", fontsize=9)
    return figure
