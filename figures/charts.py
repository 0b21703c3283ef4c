"""Charts: training curves, confusion matrices, galleries, and bars of the likeliest classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from utils import printable

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from figures.maps import for_display
from figures.style import (
    FONTS,
    LINES,
    OTHER_CLASS,
    SEQUENTIAL,
    TRUE_CLASS,
    add_legend,
    fitted,
    fitted_lines,
    save,
)


def training_curves(histories: dict[str, list[dict]], path: str | Path) -> None:
    """Loss and accuracy by epoch for each named history (rows of ``training.loop.fit``);
    training dashed, validation solid."""
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
        axes.set(xlabel="epoch", title=f"{quantity.capitalize()} (dashed: training)")
        _count_epochs(axes, histories)
    right.yaxis.set_major_formatter(PercentFormatter(1.0))  # as many decimals as the steps need
    _legend(figure, right, histories)
    save(figure, path)


def _count_epochs(axes: plt.Axes, histories: dict[str, list[dict]]) -> None:
    """Whole epochs as ticks, a single one in the middle, and a grid."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if all(len(history) == 1 for history in histories.values()):
        axes.set(xlim=(0, 2), xticks=[1])
    axes.grid(alpha=0.3)


def _legend(figure: plt.Figure, axes: plt.Axes, histories: dict[str, list[dict]]) -> None:
    """The names of the curves of ``axes``, beside the figure where many would hide them."""
    if len(histories) > 4:
        add_legend(figure, axes, 8, loc="outside right upper")
    else:
        add_legend(axes, axes, 8)


def caption_curves(histories: dict[str, list[dict]], path: str | Path) -> None:
    """Training loss, and CIDEr on photos held out, by epoch for each named history (rows of
    ``training.loop.fit``); a ring marks the epoch of the highest CIDEr."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    for number, (name, history) in enumerate(histories.items()):
        style = {"color": LINES[number % len(LINES)]}
        for cell, quantity in zip(axes, ("train_loss", "val_CIDEr"), strict=True):
            cell.plot([row["epoch"] for row in history], [row[quantity] for row in history],
                      "os^Dv"[number % 5] + "-", markersize=3, label=name, **style)
        best = max(history, key=lambda row: row["val_CIDEr"])
        axes[1].plot(best["epoch"], best["val_CIDEr"], "o", markersize=9, fillstyle="none", **style)
    for cell, title in zip(axes, ("Training loss", "CIDEr on photos held out (ring: the best)"),
                           strict=True):
        cell.set(xlabel="epoch", title=title)
        _count_epochs(cell, histories)
    _legend(figure, axes[1], histories)
    save(figure, path)


def confusion(
    matrix: np.ndarray, names: Sequence[str], heading: str, path: str | Path
) -> None:
    """Counts (classes, classes), row the true class, under the lines of ``heading``. The diagonal,
    the right answers, is green, the darker the larger its share of the row; the errors have a
    colour scale of their own, so that they can be seen beside it."""
    classes = len(names)
    side = max(4.0, 0.24 * classes + 2)
    figure, axes = plt.subplots(figsize=(side, side))
    errors = matrix.astype(float)
    np.fill_diagonal(errors, 0)
    image = axes.imshow(errors, cmap="viridis", vmin=0, vmax=max(errors.max(), 1))
    recall = np.where(np.eye(classes, dtype=bool), matrix / np.maximum(matrix.sum(1), 1), np.nan)
    axes.imshow(recall, cmap="Greens", vmin=-0.4, vmax=1.4)  # neither white nor black: text is read
    for row, column in zip(*np.nonzero(matrix), strict=True):
        dark = row != column and errors[row, column] < 0.6 * errors.max()
        axes.text(column, row, matrix[row, column], ha="center", va="center", fontsize=6.5,
                  color="white" if dark else "black")
    ticks = np.arange(classes)
    style = {"fontsize": 7, "fontfamily": FONTS, "parse_math": False}
    names = [fitted(printable(name), 7, 1.9)[0] for name in names]
    axes.set_xticks(ticks, names, rotation=90, **style)
    axes.set_yticks(ticks, names, **style)
    axes.set(xlabel="predicted", ylabel="true")
    first, *others = printable(heading).split("\n")
    text, size = fitted_lines("\n".join([f"{first}; right answers are green", *others]), 10.8,
                              0.8 * side)
    axes.set_title(text, fontsize=size, fontfamily=FONTS, parse_math=False)
    figure.colorbar(image, ax=axes, label="photos (errors)", shrink=0.6,
                    ticks=MaxNLocator(integer=True, nbins=6))
    save(figure, path)


GALLERY = (1.9, 1.75)  # inches: the height of each picture, and the widest by that height


def gallery(
    images: Sequence, titles: Sequence[str], heading: str, path: str | Path, scale: str = "",
    columns: int = 4,
) -> None:
    """Photos (PIL or arrays), each with its title, in rows of at most ``columns``, all of one
    height; a row has as many as the others or one fewer. ``scale`` names a colour bar for all of
    them, whose end is each map's own ``scale_top``."""
    high, widest = GALLERY
    rows = max(math.ceil(len(images) / columns), 1)
    images = [np.asarray(image) for image in images]
    across = [min(max(image.shape[1] / image.shape[0], 0.6), widest) * high for image in images]
    lines = [[fitted(line, 8, width + 0.05) for line in printable(title).split("\n")]
             for title, width in zip(titles, across, strict=True)]
    texts = ["\n".join(text for text, _ in parts) for parts in lines]
    parts = np.array_split(np.arange(len(images)), rows)
    width = max([4.5, *(sum(across[i] + 0.15 for i in part) + 0.3 for part in parts)])
    first, *others = printable(heading).split("\n")
    heading, points = fitted_lines("\n".join([first + ": none" * (not images), *others]), 10,
                                   width - 0.2)
    head = 0.35 + 0.2 * heading.count("\n")
    row = high + 0.2 + 0.15 * max((text.count("\n") + 1 for text in texts), default=1)
    height = head + rows * row + (0.6 if scale else 0.1)
    figure = plt.figure(figsize=(width, height), layout="none")
    for line, part in enumerate(parts):
        x = (width - sum(across[i] + 0.15 for i in part) + 0.15) / 2
        for i in part:
            bottom = height - head - (line + 1) * row + 0.05
            axes = figure.add_axes((x / width, bottom / height, across[i] / width, high / height))
            axes.imshow(images[i])
            axes.axis("off")
            axes.set_title(texts[i], fontsize=min(size for _, size in lines[i]), pad=3,
                           fontfamily=FONTS, parse_math=False)
            x += across[i] + 0.15
    figure.text(0.5, 1 - 0.08 / height, heading, fontsize=points, ha="center", va="top",
                fontfamily=FONTS, parse_math=False)
    if scale:
        bar = figure.add_axes((0.5 - 1.3 / width, 0.42 / height, 2.6 / width, 0.09 / height))
        figure.colorbar(plt.cm.ScalarMappable(cmap=SEQUENTIAL), bar, orientation="horizontal",
                        extend="max", format=PercentFormatter(1, decimals=0), ticks=[0, 0.5, 1])
        bar.tick_params(labelsize=7, length=2)
        bar.set_xlabel(scale, size=7.5, labelpad=1)
    save(figure, path)


def top_classes(panels: Sequence[tuple], quantity: str, path: str | Path) -> None:
    """Each photo beside bars of its likeliest classes, the true one in another colour.

    A panel is (photo, title, names, shares from 0 to 1, whether each is the true class), the
    likeliest first; ``quantity`` says what the bars show.
    """
    columns = 1 if len(panels) <= 4 else 2
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, 2 * columns, squeeze=False, width_ratios=[1, 1.6] * columns,
                                figsize=(6.2 * columns, 1.9 * rows + 0.4))
    cells = grid.reshape(-1, 2)  # row by row: a photo and its bars
    for picture, bars in cells[len(panels):]:
        picture.axis("off")
        bars.axis("off")
    for (picture, bars), (photo, title, names, shares, true) in zip(cells, panels, strict=False):
        picture.imshow(for_display(photo, (0, 0, *photo.size))[0])
        picture.axis("off")
        text, size = fitted_lines(printable(title), 7.5, 1.6)
        picture.set_title(text, fontsize=size, fontfamily=FONTS, parse_math=False)
        places, percents = np.arange(len(names)), 100 * np.asarray(shares)
        bars.barh(places, percents, color=[TRUE_CLASS if right else OTHER_CLASS for right in true])
        for place, percent in zip(places, percents, strict=True):
            text = f"{percent:.0f}" if percent >= 1 else f"{percent:.1f}"
            bars.text(percent + 1, place, "<0.1" if percent < 0.05 else text, va="center",
                      fontsize=7)
        texts, sizes = zip(*(fitted(printable(name), 8, 1.6) for name in names), strict=True)
        bars.set_yticks(places, texts, fontsize=min(sizes), fontfamily=FONTS, parse_math=False)
        bars.set(xlim=(0, 110), ylim=(len(names) - 0.5, -0.5), xticks=range(0, 101, 25))
        bars.spines[["top", "right"]].set_visible(False)
        bars.tick_params(axis="x", labelsize=7)
    marks = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (TRUE_CLASS, OTHER_CLASS)]
    if any(any(true) for *_, true in panels):
        figure.legend(marks, ["true class", "other"], loc="outside upper right", ncols=2,
                      fontsize=8, frameon=False)
    figure.supxlabel(quantity, fontsize=8.5, fontfamily=FONTS, parse_math=False)
    save(figure, path)
