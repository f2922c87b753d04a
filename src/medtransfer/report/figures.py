"""The figures of a study, as Matplotlib's."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

from medtransfer.analysis.uncertainty import FEWEST_FITS
from medtransfer.core.params import BLOCKS
from medtransfer.metrics.scores import MACRO

matplotlib.rcdefaults()  # the user's matplotlibrc changes no figure
DPI = 130
MAX_COUNTED = 30  # classes whose counts a confusion matrix has room for
NOTE_WIDTH = 60  # in characters
# Colours that people with any colour vision can tell apart (Paul Tol, Colour Schemes, SRON/EPS/TN/09-002, 2021,
# "bright"). Each has its own marker, so that colour is never the only difference.
PALETTE = ("#4477aa", "#ee6677", "#228833", "#aa3377", "#66ccee", "#ccbb44", "#777777")
MARKERS = "osD^vP*Xh"
GRID = "#dddddd"
REFERENCE: dict[str, Any] = {"color": "#333333", "linestyle": "--", "linewidth": 1}


def mark(title: str, note: str) -> str:
    """Return a title with the note on its data below it."""
    return "\n".join([title, *textwrap.wrap(note, NOTE_WIDTH)])


def class_distribution(counts: Mapping[str, int], title: str) -> Figure:
    """Return a figure of the number of images per class."""
    figure, axes = _panel(1.8 + 0.8 * len(counts), 3.6, title)
    axes.bar_label(axes.bar(list(counts), list(counts.values()), color=PALETTE[0]), padding=2)
    axes.margins(y=0.1)
    axes.set(ylabel="images")
    return figure


def confusion(matrix: np.ndarray, classes: list[str], title: str) -> Figure:
    """Return a figure of counts (classes, classes), shaded by the share of each true class.

    With more than MAX_COUNTED classes, the counts are not written, and the figure grows no further.
    """
    side = 2.4 + 0.5 * min(len(classes), MAX_COUNTED)
    figure = _figure(side, side)
    axes = figure.subplots()
    _draw_counts(axes, matrix, classes, fontsize=9)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=9, wrap=True)
    return figure


def confusions(matrices: dict[str, np.ndarray], classes: list[str], title: str) -> Figure:
    """Return a figure of confusion matrices, one panel per model, with the share of each true class as text."""
    side = max(2.1, 0.9 + 0.16 * min(len(classes), MAX_COUNTED))
    figure, panels = _panels(list(matrices), side, side, f"{title}: rows true, columns predicted")
    for axes, matrix in zip(panels, matrices.values(), strict=True):
        _draw_counts(axes, matrix, classes, fontsize=6.5, shares=True)
        axes.tick_params(labelsize=7)
    return figure


def _draw_counts(axes: Axes, matrix: np.ndarray, classes: list[str], fontsize: float, *, shares: bool = False) -> None:
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix) if len(classes) <= MAX_COUNTED else ():
        color = "white" if share[row, column] > 0.6 else "black"
        text = f"{share[row, column]:.2f}".removeprefix("0") if shares else str(int(count))
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=fontsize)
    step = -(-len(classes) // MAX_COUNTED)  # every name, or every second, third ... of many
    ticks = range(0, len(classes), step)
    axes.set_xticks(ticks, classes[::step], rotation=45, ha="right")
    axes.set_yticks(ticks, classes[::step])


def curves(history: pd.DataFrame, title: str) -> Figure:
    """Return a figure of loss and accuracy per epoch, for training and validation."""
    figure, panels = _panels(["", ""], 4, 3.2, title)
    for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
        axes.plot(history.epoch, history[name], marker=".", label="training")
        axes.plot(history.epoch, history[f"val_{name}"], marker=".", label="validation")
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
    return figure


def training_accuracy(histories: dict[str, pd.DataFrame], title: str) -> Figure:
    """Return a figure of the training accuracy of several networks over the epochs, as in the talk."""
    figure, axes = _panel(6, 3.6, title)
    for label, history in histories.items():
        axes.plot(history.epoch, history.accuracy, marker=".", label=label)
    axes.set(xlabel="epoch", ylabel="training accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def losses(histories: dict[str, list[pd.DataFrame]], title: str) -> Figure:
    """Return a figure of the validation loss over the epochs, one panel per network, one line per seed."""
    figure, panels = _panels(list(histories), 2.1, 1.9, title, sharey=True)
    for axes, fits in zip(panels, histories.values(), strict=True):
        for history in fits:
            axes.plot(history.epoch, history.val_loss, marker=".", markersize=3, linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.supxlabel("epoch", fontsize=9)
    return figure


def activations(image: np.ndarray, layers: dict[str, np.ndarray], title: str) -> Figure:
    """Return a figure of an image (size, size, 3) and, for each entry, all filters of an output (size, size, n)."""
    figure = _figure(3 + 4.6 * len(layers), 5)
    panels = figure.subplots(1, 1 + len(layers), width_ratios=[0.6] + [1.0] * len(layers))
    panels[0].imshow(image)
    for axes, output in zip(panels[1:], layers.values(), strict=True):
        axes.imshow(_mosaic(output), cmap="viridis", interpolation="none")
    for axes, label in zip(panels, ("input", *layers), strict=True):
        axes.set_title(label, fontsize=10)
        axes.set_axis_off()
    figure.suptitle(title, fontsize=10, parse_math=False)  # the name of an image may have dollar signs
    return figure


def _mosaic(output: np.ndarray) -> np.ndarray:
    """Return all filters of (size, size, n) in one square picture, each scaled to 0..1, with gaps between them."""
    low, high = output.min((0, 1)), output.max((0, 1))
    scaled = (output - low) / np.where(high > low, high - low, 1)
    side, gap = int(np.ceil(np.sqrt(output.shape[-1]))), max(1, output.shape[0] // 12)
    filters = np.full((side * side, output.shape[0] + gap, output.shape[1] + gap), np.nan)
    filters[: output.shape[-1], gap:, gap:] = np.moveaxis(scaled, -1, 0)
    rows = filters.reshape(side, side, *filters.shape[1:]).swapaxes(1, 2)
    return rows.reshape(side * filters.shape[1], side * filters.shape[2])


def scores(table: pd.DataFrame, title: str) -> Figure:
    """Return a figure of each model's F1 with its interval and the talk's value, one line per model.

    The column `fits` has F1 of each seed; it is drawn for models with several seeds. Those that are `starred` have an
    interval of these fits only.
    """
    figure, axes = _panel(6, 1.4 + 0.3 * len(table), title)
    _draw_scores(axes, table)
    axes.legend(frameon=False, fontsize=8)
    return figure


def overview(tables: dict[str, pd.DataFrame]) -> Figure:
    """Return a figure like `scores` of several data sets, one panel each; the keys are the titles."""
    heights = [len(table) for table in tables.values()]
    figure = _figure(5.6, 1.2 * len(tables) + 0.36 * sum(heights))
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    handles: dict[str, Artist] = {}
    for axes, (title, table) in zip(panels, tables.items(), strict=True):
        _draw_scores(axes, table)
        _plain(axes)
        axes.set_title(title, fontsize=10, loc="left")
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=2, frameon=False)
    return figure


def external(table: pd.DataFrame, title: str) -> Figure:
    """Return a figure of each model's macro F1 on its own test images and on those of another source.

    `table` has the rows of one measure from `compare_sources`.
    """
    figure, axes = _panel(7, 1.6 + 0.45 * len(table), title)
    rows = np.arange(len(table))[::-1]
    for number, (side, label) in enumerate((("internal", "internal test"), ("external", "another source"))):
        part = table[[side, f"{side}_low", f"{side}_high"]].set_axis(["f1", "low", "high"], axis=1)
        style = {"linestyle": "", "capsize": 3, "label": f"{label}, 95% interval", **_style(number)}
        axes.errorbar(part.f1, rows - 0.2 * number, xerr=_spans(part), **style)
    axes.set_yticks(rows - 0.1, list(table.model))
    axes.set(xlabel="macro F1", ylim=(-0.7, len(table) - 0.3))
    axes.grid(axis="x", color=GRID)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _draw_scores(axes: Axes, table: pd.DataFrame) -> None:
    rows = np.arange(len(table))[::-1]
    label = "mean and 95% interval" + (" (* these runs only)" if table.starred.any() else "")
    axes.errorbar(table.f1, rows, xerr=_spans(table), fmt="o", color=PALETTE[0], capsize=3, label=label)
    dots = [(f1, row - 0.25) for f1s, row in zip(table.fits, rows, strict=True) if len(f1s) > 1 for f1 in f1s]
    if dots:
        axes.plot(*zip(*dots, strict=True), ".", color=PALETTE[-1], markersize=5, label="each training run")
    known = table.published.notna()
    if known.any():
        axes.plot(table.published[known], rows[known], "D", color=PALETTE[1], fillstyle="none", label="the talk")
    if "warning" in table:
        warned = table.warning.notna()
        _warn(axes, table[warned], table.f1[warned], rows[warned])
    axes.set_yticks(rows, list(table.model + np.where(table.starred, " *", "")))
    axes.set(xlabel="macro F1")
    axes.grid(axis="x", color=GRID)


def _warn(axes: Axes, table: pd.DataFrame, x: Iterable[float], y: Iterable[float]) -> None:
    """Write the warning of each row of `table` beside its point."""
    style: dict[str, Any] = {"xytext": (8, -3), "textcoords": "offset points", "fontsize": 8, "color": "#8a4b00"}
    for text, left, bottom in zip(table.warning, x, y, strict=True):
        axes.annotate(text, (left, bottom), **style)


def _spans(table: pd.DataFrame, value: str = "f1") -> np.ndarray:
    """Return the distances of `low` and `high` from a value, (2, rows)."""
    spans: np.ndarray = np.stack([table[value] - table.low, table.high - table[value]]).clip(0)
    return spans


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _panel(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Return a figure with one panel, with its size in inches."""
    figure = _figure(width, height)
    axes = figure.subplots()
    _plain(axes)
    axes.set_title(title, fontsize=10, wrap=True)
    return figure, axes


def _panels(
    titles: Sequence[str], width: float, height: float, title: str, in_row: int = 3, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels, with the size of one in inches; `options` are those of `Figure.subplots`."""
    columns = min(in_row, len(titles))
    rows = -(-len(titles) // columns)
    figure = _figure(width * columns, height * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axes in panels[len(titles) :]:
        axes.set_axis_off()
    for axes, text in zip(panels, titles, strict=False):
        _plain(axes)
        axes.set_title(text, fontsize=8)
        axes.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=10)
    return figure, panels[: len(titles)]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def _style(number: int) -> dict[str, Any]:
    return {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number % len(MARKERS)]}


def _log_scale(axes: Axes) -> None:
    """Make the x-axis logarithmic, with plain numbers instead of powers of ten."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())


def block_counts(table: pd.DataFrame, title: str) -> Figure:
    """Return a figure of macro F1 against the number of blocks that train; `table` from `questions.block_counts`."""
    labels = {"last": "the last blocks", "first": "the first blocks"}
    # Empty rows break the line where a number of blocks is missing: a line would suggest values in between.
    counts = pd.MultiIndex.from_product([list(labels), range(table.blocks.max() + 1)], names=["start", "blocks"])
    table = table.merge(counts.to_frame(index=False), how="outer")
    figure = _lines(table, "start", labels, "blocks", "blocks trained in addition to the head", title, shift=0.06)
    warned = table.dropna(subset="warning").drop_duplicates("model")
    _warn(figure.axes[0], warned, warned.blocks, warned.f1)
    return figure


def block_values(table: pd.DataFrame, title: str) -> Figure:
    """Return a figure of what each block adds, one panel per metric; `table` from `lattice.block_values`."""
    blocks = table[table.blocks.isin(BLOCKS)]
    metrics = list(blocks.metric.drop_duplicates())
    titles = ["macro F1" if metric == MACRO else metric for metric in metrics]
    figure, panels = _panels(titles, 3.1, 2.4, title)
    for axes, metric in zip(panels, metrics, strict=True):
        _differences(axes, blocks[blocks.metric == metric], "value", "blocks")
        axes.xaxis.set_major_locator(MaxNLocator(4))  # or the labels of small values overlap
    return figure


def _differences(axes: Axes, table: pd.DataFrame, value: str, labels: str) -> None:
    """Draw differences with their intervals beside 0, one row each."""
    rows = np.arange(len(table))[::-1]
    axes.errorbar(table[value], rows, xerr=_spans(table, value), fmt="o", color=PALETTE[0], capsize=3)
    axes.axvline(0, color="#333333", linewidth=1)
    axes.set_yticks(rows, list(table[labels]))
    axes.grid(axis="x", color=GRID)


def data_sizes(table: pd.DataFrame, title: str) -> Figure:
    """Return a figure of macro F1 against the training images; `table` from `questions.data_sizes`."""
    labels = {"imagenet": "ImageNet weights", "random": "random weights"}
    figure = _lines(table, "weights", labels, "images", "training images (log)", title)
    _log_scale(figure.axes[0])
    figure.axes[0].set_xticks(sorted(set(table.images)))
    return figure


def _lines(
    table: pd.DataFrame, key: str, labels: dict[str, str], x: str, text: str, title: str, shift: float = 0
) -> Figure:
    """Return a figure of F1 with its interval against the column `x`, one line for each value of `key` with a label.

    Each line is `shift` further to the right than the one before, so that no interval hides another. The markers of
    fewer than three fits are hollow.
    """
    figure, axes = _panel(6, 3.4, title)
    for number, (value, label) in enumerate(labels.items()):
        part = table[table[key] == value].sort_values(x)
        part[x] += shift * number
        axes.errorbar(part[x], part.f1, yerr=_spans(part), capsize=3, label=label, **_style(number))
        few = part[part.seeds < FEWEST_FITS]
        axes.plot(few[x], few.f1, linestyle="", markerfacecolor="white", zorder=3, **_style(number))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=GRID)
    axes.legend(frameon=False, fontsize=8)
    axes.set(xlabel=text, ylabel="macro F1")
    return figure


def rates(tuning: pd.DataFrame, guess: float, title: str) -> Figure:
    """Return a figure of the learning rates that `medtransfer tune` tried, one line per configuration.

    There is one panel for each combination of optimizer, part of the training images and number of epochs. `tuning` is
    from `study.trials`; `guess` is the macro F1 of a model that predicts only the largest class.
    """
    styles = {name: _style(number) for number, name in enumerate(tuning.configuration.drop_duplicates())}
    groups = list(tuning.groupby(["optimizer", "fraction", "epochs"], sort=False))
    titles = [
        f"{optimizer}, {fraction:.0%} of the images, {epochs:.0f} epochs" for (optimizer, fraction, epochs), _ in groups
    ]
    figure, panels = _panels(titles, 3.2, 2.8, title, in_row=2, sharex=True, sharey=True)
    labelled = {}
    for place, (axes, (_, tried)) in enumerate(zip(panels, groups, strict=True)):
        labelled["only the largest class"] = axes.axhline(guess, **REFERENCE)
        for name, style in styles.items():
            part = tried[tried.configuration == name].sort_values("learning_rate")
            if len(part):
                (labelled[name],) = axes.plot(part.learning_rate, part.val_macro_f1, **style)
        used = tried[tried.used]
        axes.plot(used.learning_rate, used.val_macro_f1, "o", color="#333333", markersize=13, fillstyle="none")
        axes.set_xscale("log")
        axes.set(ylabel="macro F1")
        axes.label_outer()
        if place + 2 >= len(groups):  # there is no panel below
            axes.tick_params(labelbottom=True)
            axes.set(xlabel="learning rate")
        axes.grid(color=GRID)
    figure.legend(labelled.values(), labelled, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def cost(table: pd.DataFrame, seconds: dict[str, float], title: str) -> Figure:
    """Return a figure of the seconds that a fit takes against its F1, one point per model."""
    figure, axes = _panel(7, 3.8, title)
    for number, (model, f1) in enumerate(zip(table.model, table.f1, strict=True)):
        axes.plot(seconds[model], f1, linestyle="", markersize=8, label=model, **_style(number))
    _log_scale(axes)
    axes.grid(color=GRID)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set(xlabel="seconds of fitting (log)", ylabel="macro F1")
    return figure


def layers(rewinding: pd.DataFrame, similarity: pd.DataFrame, probes: pd.DataFrame, title: str) -> Figure:
    """Return a figure of the three tables of `medtransfer layers`, one panel per question."""
    titles = [
        "one block reset to its initial weights\n(dashed: none reset)",
        "linear classifier on each block's output",
        "similarity of outputs before and after training (linear CKA)",
        "relative change in weights",
    ]
    figure, panels = _panels(titles, 3.2, 2.6, title, in_row=2)
    rewound, probed, alike, moved = panels
    blocks = rewinding[rewinding.block != "none"]
    rewound.bar(blocks.block, blocks.macro_f1, yerr=_spans(blocks, "macro_f1"), color=PALETTE[0], capsize=3)
    rewound.axhline(rewinding.macro_f1[rewinding.block == "none"].iloc[0], **REFERENCE)
    for number, (network, label) in enumerate({"start": "initial weights", "tuned": "trained weights"}.items()):
        part = probes[probes.network == network]
        places = np.arange(len(part)) + 0.1 * number
        spans = _spans(part, "macro_f1")
        probed.errorbar(places, part.macro_f1, spans, capsize=3, label=label, **_style(number))
        probed.set_xticks(range(len(part)), list(part.block))
    probed.legend(frameon=False, fontsize=8)
    names = [name.replace("block", "").replace("_conv", ".") for name in similarity.layer]
    for axes, key in ((alike, "cka"), (moved, "distance")):
        # Not clipped: where all values are nearly 1, the axis ends in the middle of the markers.
        axes.plot(range(len(names)), similarity[key], marker="o", color=PALETTE[0], clip_on=False)
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set(xlabel="block.layer")
    for axes in panels:
        axes.set(ylim=(0, None), ylabel="macro F1" if axes in (rewound, probed) else "")
        axes.grid(axis="y", color=GRID)
    return figure


def gradcam(chosen: pd.DataFrame, images: np.ndarray, heat: np.ndarray, classes: list[str], title: str) -> Figure:
    """Return a figure of images (n, size, size, 3), each beside a copy with its heat map (n, h, w): one row per class.

    `chosen` has n rows: label, predicted, probability, right.
    """
    figure = _figure(6.4, 1.5 * len(classes) + 0.5)
    panels = figure.subplots(len(classes), 4, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    end = images.shape[1] - 0.5
    for row, name in enumerate(classes):
        for column, right, word in ((0, True, "right"), (2, False, "wrong")):
            at = np.flatnonzero((chosen.label == name) & (chosen.right == right))
            plain, marked = panels[row, column : column + 2]
            if not len(at):
                plain.text(0, 0.5, f"{name}: never {word}", fontsize=8)
                continue
            found, image = chosen.iloc[at[0]], images[at[0]]
            plain.set_title(f"{word}: {name} as {found.predicted}, {found.probability:.2f}", fontsize=8, loc="left")
            plain.imshow(image)
            marked.imshow(image.mean(axis=-1), cmap="gray")
            over: dict[str, Any] = {"alpha": 0.5, "extent": (-0.5, end, end, -0.5), "interpolation": "bilinear"}
            marked.imshow(heat[at[0]], cmap="inferno", vmin=0, vmax=1, **over)
    figure.suptitle(title, fontsize=10)
    return figure


def leakage(table: pd.DataFrame, title: str) -> Figure:
    """Return a figure of how much leakage adds to each class's F1, one panel per model.

    `table` is from `measure_leakage`, with a column `name` for the labels of the rows.
    """
    models = list(table.model.drop_duplicates())
    height = 0.8 + 0.22 * table.name.nunique()
    figure, panels = _panels(models, 3.2, height, title, in_row=2, sharey=True, sharex=True)
    for axes, model in zip(panels, models, strict=True):
        _differences(axes, table[table.model == model], "difference", "name")
    figure.supxlabel("F1 with leakage minus F1 without", fontsize=9)
    return figure


def roc(curves: Mapping[str, list[tuple[np.ndarray, np.ndarray]]], title: str) -> Figure:
    """Return ROC curves, one panel per class, one line per fit: false and true positive rates, (n,) each."""
    figure, panels = _panels(list(curves), 2.1, 2, title, sharex=True, sharey=True)
    for axes, fits in zip(panels, curves.values(), strict=True):
        axes.plot([0, 1], [0, 1], **REFERENCE)
        for number, (false, true) in enumerate(fits):
            axes.plot(false, true, color=PALETTE[number % len(PALETTE)], linewidth=1)
    figure.supxlabel("1 - specificity", fontsize=9)
    figure.supylabel("sensitivity", fontsize=9)
    return figure


def reliability(bands: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Return reliability diagrams, one panel per model; each table is from `calibration.reliability`."""
    figure, panels = _panels(list(bands), 2.1, 2, title, sharex=True, sharey=True)
    for axes, band in zip(panels, bands.values(), strict=True):
        axes.plot([0, 1], [0, 1], **REFERENCE)
        axes.fill_between(band.confidence, band.low, band.high, color=PALETTE[0], alpha=0.25)
        axes.plot(band.confidence, band.accuracy, marker="o", markersize=4, color=PALETTE[0])
        axes.set(xlim=(0, 1), ylim=(0, 1))
    figure.supxlabel("confidence", fontsize=9)
    figure.supylabel("share of correct predictions", fontsize=9)
    return figure
