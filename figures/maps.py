"""Maps over photos: attention, words, and tiles of position embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from utils import one_line, printable

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

from figures.style import FONTS, LINES, SEQUENTIAL, fitted, save, wrapped


def scale_top(heat: np.ndarray) -> float:
    """The value shown in the brightest colour: the map's 97th percentile.

    Up to that colours run from 0. A few patches that serve a ViT as registers (Darcet et al. 2024),
    often the corners, draw many times what the others do; a scale up to them would show them alone.
    """
    return float(np.nanpercentile(heat, 97)) or float(np.nanmax(heat)) or 1.0


def map_onto_photo(
    grid: np.ndarray, box: tuple[float, float, float, float], width: int, height: int
) -> np.ndarray:
    """Resample a map (rows, cols) smoothly onto the photo that it belongs to -> (height, width).

    ``box`` (left, top, right, bottom) is the part of the photo that the model saw, in the photo's
    pixels; it may reach beyond the photo where that was padded. Pixels outside of it are nan.
    """
    rows, cols = grid.shape
    left, top, right, bottom = box
    x_scale, y_scale = cols / (right - left), rows / (bottom - top)
    values = Image.fromarray(np.ascontiguousarray(grid, dtype=np.float32)).transform(
        (width, height), Image.Transform.AFFINE,
        (x_scale, 0, -left * x_scale, 0, y_scale, -top * y_scale), Image.Resampling.BICUBIC)
    values = np.clip(np.asarray(values), grid.min(), grid.max())  # bicubic overshoots
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    seen = ((y >= top) & (y <= bottom))[:, None] & ((x >= left) & (x <= right))[None]
    return np.where(seen, values, np.nan)


def overlay(photo: Image.Image, heat: np.ndarray, top: float | None = None) -> np.ndarray:
    """Blend a photo with its map (``map_onto_photo``) -> (H, W, 3) uint8.

    Pixels that the model did not see are grey. The colours are less transparent where the map is
    high, so that the photo stays visible elsewhere. ``top`` is the value with the brightest colour,
    by default the map's own ``scale_top``.
    """
    pixels = np.asarray(photo, dtype=np.float64) / 255
    unseen = np.isnan(heat)
    strength = np.clip(np.nan_to_num(heat) / (top or scale_top(heat)), 0, 1)
    alpha = (0.35 + 0.4 * strength)[..., None]
    mixed = (1 - alpha) * pixels + alpha * matplotlib.colormaps[SEQUENTIAL](strength)[..., :3]
    grey = 0.55 + 0.25 * pixels.mean(-1, keepdims=True)
    return (np.where(unseen[..., None], grey, mixed) * 255 + 0.5).astype(np.uint8)


def for_display(
    photo: Image.Image, box: tuple[float, float, float, float], side: int = 480
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Photo and box scaled so that the longer side is ``side``: a thin or huge photo stays legible
    and cheap."""
    scale = side / max(photo.size)
    width, height = (max(round(length * scale), 1) for length in photo.size)
    x, y = width / photo.width, height / photo.height
    return photo.resize((width, height)), (box[0] * x, box[1] * y, box[2] * x, box[3] * y)


def attention_panel(
    photo: Image.Image, maps: np.ndarray, box: tuple[float, float, float, float],
    title: str, quantity: str, path: str | Path,
) -> np.ndarray:
    """Original, map and overlay side by side; several maps (heads) as a sheet of overlays.

    ``maps`` (heads or 1, rows, cols). Returns the (first) overlay for a sheet of many photos.
    """
    photo, box = for_display(photo, box)
    heats = [map_onto_photo(grid, box, *photo.size) for grid in maps]
    overlays = [overlay(photo, heat) for heat in heats]
    if len(maps) > 1:
        names = [f"head {head}" for head in range(len(maps))]
        panel_sheet([[("photo", photo), *zip(names, overlays, strict=True)]], title.split("\n"),
                    path)
        return overlays[0]
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.9))
    axes[0].imshow(photo)
    axes[1].set_facecolor("0.7")
    shown = axes[1].imshow(heats[0], cmap=SEQUENTIAL, vmin=0, vmax=scale_top(heats[0]))
    axes[2].imshow(overlays[0])
    figure.colorbar(shown, ax=axes, label=quantity, shrink=0.8, extend="max")
    names = ("photo", "map", "overlay (grey: not seen by the model)"
             if np.isnan(heats[0]).any() else "overlay")
    for cell, name in zip(axes, names, strict=True):
        cell.set(xticks=[], yticks=[])
        cell.set_frame_on(False)
        cell.set_title(name, fontsize=9)
    lines = [line for part in title.split("\n") for line in wrapped(printable(part), 10, 9.6)]
    figure.suptitle("\n".join(lines), fontsize=10, fontfamily=FONTS, parse_math=False)
    save(figure, path)
    return overlays[0]


def word_panels(
    photo: Image.Image, maps: np.ndarray, box: tuple[float, float, float, float],
    words: Sequence[str], title: Sequence[str], path: str | Path,
) -> None:
    """The photo titled <start>, then an overlay for each word; a row of panels for each head.

    ``maps`` (heads or 1, words, rows, cols). One colour scale for all of them: a map that is
    spread out looks so beside a pointed one.
    """
    photo, box = for_display(photo, box, side=320)
    top = scale_top(maps)
    strips = [[("<start>", photo),
               *((word, overlay(photo, map_onto_photo(grid, box, *photo.size), top))
                 for word, grid in zip(words, head, strict=True))] for head in maps]
    unseen = box[0] > 1 or box[1] > 1 or box[2] < photo.width - 1 or box[3] < photo.height - 1
    panel_sheet(strips, title, path, top, "grey: not seen by the model" if unseen else "")


# --- panels in rows -----------------------------------------------------------------------------

SHEET_WIDTH, PANEL, MARGIN = 9.7, 1.8, 0.12  # inches; a panel's longer side
TITLE, NOTE, NAME = 12, 8.5, 10  # points


def panel_sheet(
    strips: Sequence[Sequence[tuple[str, Image.Image | np.ndarray]]], title: Sequence[str],
    path: str | Path, top: float | None = None, legend: str = "",
) -> None:
    """Strips of (name, picture), broken into rows that fit a page; several strips (heads), which
    share their names, stand one below the other in each row.

    All pictures have one shape, the first is a photo. ``title``: a headline, then notes. ``top``
    is the end of a colour scale of shares, ``legend`` what is said beside it.
    """
    photo_width, photo_height = strips[0][0][1].size
    scale = (PANEL if len(strips) <= 4 else 1.1) / max(photo_width, photo_height)
    across, down = max(photo_width * scale, 0.06), max(photo_height * scale, 0.06)  # 1 × 5000
    cell = max(across, 0.9) + MARGIN
    rows = math.ceil(len(strips[0]) * cell / SHEET_WIDTH)
    columns = math.ceil(len(strips[0]) / rows)
    rows = math.ceil(len(strips[0]) / columns)

    left = MARGIN + 0.2 * (len(strips) > 1)
    width = max(left + columns * cell + MARGIN, 4.6)
    lines = [(line, size) for size, text in zip([TITLE] + [NOTE] * len(title), title, strict=False)
             for line in wrapped(one_line(printable(text)), size, width - 4 * MARGIN)]
    head = MARGIN + sum(size for _, size in lines) * 1.35 / 72
    strip_height = max(down + 0.05, 0.45) if len(strips) > 1 else down + 0.05
    row = 0.3 + len(strips) * strip_height  # names, and a picture of each strip
    height = head + rows * row + (0.62 if top else MARGIN)
    left += (width - left - MARGIN - columns * cell) / 2

    figure = plt.figure(figsize=(width, height), layout="none")
    sheet = figure.add_axes((0, 0, 1, 1))
    style = {"fontfamily": FONTS, "parse_math": False, "ha": "center"}
    y = MARGIN
    for line, size in lines:
        y += size * 1.35 / 72
        sheet.text(width / 2, y - 0.3 * size / 72, line, size=size,
                   color="black" if size == TITLE else "0.35", **style)
    for number, strip in enumerate(strips):
        for place, (name, picture) in enumerate(strip):
            x = left + place % columns * cell + cell / 2
            y = head + place // columns * row + 0.27 + number * strip_height
            sheet.imshow(picture, extent=(x - across / 2, x + across / 2, y + down, y),
                         aspect="auto")
            if number == 0:
                name, size = fitted(printable(name), NAME, cell - 0.06)
                sheet.text(x, y - 0.05, name, size=size, linespacing=0.95, **style)
            if len(strips) > 1 and place % columns == 0:
                sheet.text(left - 0.1, y + down / 2, f"head {number}", size=NOTE, rotation=90,
                           va="center", **style)
    sheet.set(xlim=(0, width), ylim=(height, 0))
    sheet.axis("off")
    if top:
        _share_scale(figure, top, legend)
    save(figure, path)


def _share_scale(figure: plt.Figure, top: float, legend: str) -> None:
    """A colour bar of shares at the foot of ``figure``, what ``legend`` says at its right."""
    width, height = figure.get_size_inches()
    bar = figure.add_axes((0.3 / width, 0.4 / height, 2.2 / width, 0.09 / height))
    colours = plt.cm.ScalarMappable(plt.Normalize(0, top), SEQUENTIAL)
    figure.colorbar(colours, bar, orientation="horizontal", extend="max",
                    ticks=MaxNLocator(3), format=lambda share, _: f"{100 * share:g} %")
    bar.tick_params(labelsize=7, length=2)
    bar.set_xlabel("share of attention, per patch", size=7.5, labelpad=1)
    figure.text(2.75 / width, 0.4 / height, legend, size=7.5, color="0.35")


# --- position embeddings ------------------------------------------------------------------------


def position_tiles(
    similarities: dict[str, tuple[np.ndarray, tuple[int, int]]],
    by_distance: dict[str, dict[int, float]], path: str | Path,
) -> None:
    """For each named model a tile for each patch, at the patch's place in the grid, and at the
    right the mean similarity by distance.

    ``similarities``: name -> ((patches, patches) from -1 to 1, (rows, cols)).
    """
    count = len(similarities)
    figure, axes = plt.subplots(1, count + 1, figsize=(5.6 * count + 3.4, 5.6),
                                width_ratios=[5.6] * count + [3.0])
    for cell, (name, (similarity, grid)) in zip(axes, similarities.items(), strict=False):
        rows, cols = grid
        tiles = np.full((rows * (rows + 1) - 1, cols * (cols + 1) - 1), np.nan)
        for patch, tile in enumerate(similarity.reshape(-1, rows, cols)):
            top, left = (rows + 1) * (patch // cols), (cols + 1) * (patch % cols)
            tiles[top:top + rows, left:left + cols] = tile
        shown = cell.imshow(tiles, cmap=SEQUENTIAL, vmin=-1, vmax=1, interpolation="nearest")
        for axis, length in ((cell.xaxis, cols), (cell.yaxis, rows)):
            step = -(-length // 14)
            places = np.arange(0, length, step)
            axis.set_ticks(places * (length + 1) + (length - 1) / 2, [str(p + 1) for p in places],
                           fontsize=7)
        cell.set(xlabel="input patch column", ylabel="input patch row")
        text, size = fitted(printable(name), 10, 4.8)
        cell.set_title(text, fontsize=size, fontfamily=FONTS, parse_math=False)
        cell.tick_params(length=0)
        cell.set_frame_on(False)
    figure.colorbar(shown, ax=axes[:-1], label="cosine similarity", shrink=0.7, pad=0.01)
    for number, (name, values) in enumerate(by_distance.items()):
        axes[-1].plot(list(values), list(values.values()), "os^Dv"[number % 5] + "-", markersize=3,
                      color=LINES[number % len(LINES)], label=fitted(printable(name), 7, 2)[0])
    axes[-1].set(xlabel="distance (patches)", ylabel="mean cosine similarity", ylim=(-1, 1))
    axes[-1].set_title("by distance", fontsize=10)
    axes[-1].grid(alpha=0.3)
    if count > 1:
        axes[-1].legend(fontsize=7)
    save(figure, path)
