"""Figures as PNG files."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SYNTHETIC_MARK = " - SYNTHETIC demonstration data"
DPI = 130


def mark(title: str, synthetic: bool) -> str:
    """Return a title that says so where the data are synthetic."""
    return title + SYNTHETIC_MARK if synthetic else title


def class_distribution(counts: pd.Series, title: str, path: Path) -> None:
    """Draw the number of images a class (index: classes)."""
    figure = Figure(figsize=(1.8 + 0.8 * len(counts), 3.6), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(list(counts.index), counts.to_numpy(), color="#4477aa")
    axes.bar_label(bars, padding=2)
    axes.margins(y=0.1)
    axes.set(title=title, ylabel="images")
    axes.title.set_wrap(True)
    axes.title.set_fontsize(10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=DPI)


def confusion(matrix: np.ndarray, classes: list[str], title: str, path: Path) -> None:
    """Draw counts (classes, classes), shaded by the share of each true class."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.4 + 0.5 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        color = "white" if share[row, column] > 0.6 else "black"
        axes.text(column, row, str(int(count)), ha="center", va="center", color=color, fontsize=9)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=45, ha="right")
    axes.set_yticks(ticks, classes)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=9, wrap=True)
    figure.savefig(path, dpi=DPI)


def curves(history: pd.DataFrame, title: str, path: Path) -> None:
    """Draw loss and accuracy an epoch, for training and validation."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(history.epoch, history[name], marker=".", label="training")
        axes.plot(history.epoch, history[f"val_{name}"], marker=".", label="validation")
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=DPI)


def training_accuracy(histories: dict[str, pd.DataFrame], title: str, path: Path) -> None:
    """Draw the training accuracy of several networks over the epochs, as in the talk."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for label, history in histories.items():
        axes.plot(history.epoch, history.accuracy, marker=".", label=label)
    axes.set(xlabel="epoch", ylabel="training accuracy")
    axes.set_title(title, fontsize=10, wrap=True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=DPI)


def activations(image: np.ndarray, layers: dict[str, np.ndarray], title: str, path: Path) -> None:
    """Draw an image (size, size, 3) and, for each entry, all filters of a layer's output (size, size, n)."""
    figure = Figure(figsize=(3 + 4.6 * len(layers), 5), layout="constrained")
    widths = [0.6] + [1.0] * len(layers)
    panels = list(np.asarray(figure.subfigures(1, len(widths), width_ratios=widths), dtype=object))
    axes = panels[0].subplots()
    axes.imshow(image)
    axes.set_axis_off()
    panels[0].suptitle("input", fontsize=10)
    for panel, (label, output) in zip(panels[1:], layers.items(), strict=True):
        side = int(np.ceil(np.sqrt(output.shape[-1])))
        for number, axes in enumerate(panel.subplots(side, side).flat):
            axes.set_axis_off()
            if number < output.shape[-1]:
                axes.imshow(output[..., number], cmap="viridis")
        panel.suptitle(label, fontsize=10)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=DPI)
