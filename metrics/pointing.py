"""Does a map point at the thing that it is about? The pointing game of Zhang et al. (2018,
"Top-down neural attention by excitation backprop", Sec. 4.1): a hit is a map whose peak lies inside
a box of the thing's kind (numpy)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metrics.accuracy import wilson_interval

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the photo's sides


def cell_centres(grid: tuple[int, int], seen: Box) -> np.ndarray:
    """(rows, cols, 2): where in the photo the centre of each cell of a map lies, as shares (x, y)
    of the photo's width and height.

    ``seen`` is the part of the photo that the model saw: smaller than (0, 0, 1, 1) where the photo
    was cropped to the model's square, equal to it where the photo was squashed into the square,
    and larger where the photo was padded.
    """
    left, top, right, bottom = seen
    rows, cols = grid
    x = left + (np.arange(cols) + 0.5) / cols * (right - left)
    y = top + (np.arange(rows) + 0.5) / rows * (bottom - top)
    return np.stack(np.meshgrid(x, y), axis=-1)


def cells_inside(grid: tuple[int, int], seen: Box, boxes: Sequence[Box]) -> np.ndarray:
    """(rows, cols): whether the centre of each cell of a map lies inside one of ``boxes``, edges
    included."""
    x, y = np.moveaxis(cell_centres(grid, seen), -1, 0)
    inside = np.zeros(grid, dtype=bool)
    for left, top, right, bottom in boxes:
        inside |= (left <= x) & (x <= right) & (top <= y) & (y <= bottom)
    return inside


def point(heat: np.ndarray, seen: Box, boxes: Sequence[Box]) -> tuple[bool, float]:
    """(whether the peak of a map (rows, cols) lies inside one of ``boxes``, the share of the map's
    cells that do: how often a random map would have its peak there). Of equal peaks the first one,
    row by row, counts."""
    inside = cells_inside(heat.shape, seen, boxes)
    return bool(inside.flat[heat.argmax()]), float(inside.mean())


def summarize(points: Sequence[tuple[bool, float]]) -> dict:
    """Hits of many maps (``point``), their share with its 95 % interval (Wilson), and the share
    that chance would have."""
    hits, total = sum(hit for hit, _ in points), len(points)
    return {"hits": hits, "maps": total, "share": hits / total,
            "share_95": list(wilson_interval(hits, total)),
            "chance": float(np.mean([chance for _, chance in points]))}
