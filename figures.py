"""Figures: curves, grids, matrices. Takes arrays and image boxes, never a model; writes PNG whole.

Colours: viridis for magnitudes and Okabe & Ito's palette for lines, both readable by colour-blind
readers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window is ever opened

from utils import whole_file  # noqa: E402

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.ticker import MaxNLocator, PercentFormatter  # noqa: E402

LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
plt.rcParams.update({"figure.constrained_layout.use": True, "savefig.dpi": 150, "font.size": 9})


def save(figure: plt.Figure, path: str | Path) -> None:
    """Write ``figure`` as PNG, whole or not at all, and free it."""
    try:
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="png")
    finally:
        plt.close(figure)


def training_curves(histories: dict[str, list[dict]], path: str | Path) -> None:
    """Loss and accuracy by epoch for each named history (rows of ``training.fit``); training
    dashed, validation solid."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    for number, (name, history) in enumerate(histories.items()):
        colour = LINES[number % len(LINES)]
        marker = "os^Dv"[number // len(LINES) % 5]
        epochs = [row["epoch"] for row in history]
        for axes, quantity in ((left, "loss"), (right, "accuracy")):
            for part, style in (("val", "-"), ("train", "--")):
                if f"{part}_{quantity}" not in history[0]:
                    continue
                label = f"{name} ({part})" if name and len(histories) == 1 else name or part
                axes.plot(epochs, [row[f"{part}_{quantity}"] for row in history], style,
                          marker=marker, markersize=3, color=colour,
                          label=label if part == "val" or not name else None,
                          alpha=0.5 if part == "train" else 1)
    for axes, quantity in ((left, "loss"), (right, "accuracy")):
        axes.set(xlabel="epoch", title=quantity.capitalize())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.legend(fontsize=8)
    save(figure, path)


def confusion(matrix: np.ndarray, names: Sequence[str], path: str | Path) -> None:
    """Counts (classes, classes), row the true class; the diagonal is left out of the colour scale
    so that the confusions can be seen."""
    classes = len(names)
    side = max(4.0, 0.24 * classes + 2)
    figure, axes = plt.subplots(figsize=(side, side))
    shown = matrix.astype(float)
    errors = shown.copy()
    np.fill_diagonal(errors, 0)
    image = axes.imshow(errors, cmap="viridis", vmin=0, vmax=max(errors.max(), 1))
    for row, column in zip(*np.nonzero(matrix), strict=True):
        light = row == column or errors[row, column] < 0.6 * errors.max()
        axes.text(column, row, matrix[row, column], ha="center", va="center", fontsize=6.5,
                  color="white" if light else "black")
    ticks = np.arange(classes)
    axes.set_xticks(ticks, [name.replace("_", " ") for name in names], rotation=90, fontsize=7)
    axes.set_yticks(ticks, [name.replace("_", " ") for name in names], fontsize=7)
    axes.set(xlabel="predicted", ylabel="true",
             title=f"Confusion: {int(np.trace(matrix))} of {int(matrix.sum())} right")
    figure.colorbar(image, ax=axes, label="photos (errors only)", shrink=0.6,
                    ticks=MaxNLocator(integer=True, nbins=6))
    save(figure, path)


def gallery(images: Sequence, titles: Sequence[str], heading: str, path: str | Path) -> None:
    """Photos (PIL or arrays) in rows of four, each with its title."""
    columns = min(4, max(len(images), 1))
    rows = max(math.ceil(len(images) / columns), 1)
    figure, grid = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.9 * rows), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        axes.imshow(image)
        axes.set_title(title, fontsize=7.5)
    figure.suptitle(heading if len(images) else f"{heading}: none", fontsize=11)
    save(figure, path)
