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

from figures.style import (
    DIVERGING,
    FONTS,
    LINES,
    SEQUENTIAL,
    add_legend,
    fitted,
    save,
    wrapped,
)

SHARE = "share of attention, per patch"  # a quantity that is written in percent


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
        (x_scale, 0, -left * x_scale, 0, y_scale, -top * y_scale),
        Image.Resampling.BILINEAR)  # bicubic would draw a dark ring around each peak
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    seen = ((y >= top) & (y <= bottom))[:, None] & ((x >= left) & (x <= right))[None]
    return np.where(seen, values, np.nan)


def overlay(photo: Image.Image, heat: np.ndarray, top: float | None = None) -> np.ndarray:
    """Blend a photo with its map (``map_onto_photo``) -> (H, W, 3) uint8.

    Pixels that the model did not see are grey. The colours are more transparent where the map is
    high, so that the photo stays visible at the places that the map marks, and a line runs where
    the map reaches half of ``top``, the value with the brightest colour; by default that is the
    map's own ``scale_top``.
    """
    strength = np.clip(np.nan_to_num(heat) / (top or scale_top(heat)), 0, 1)
    colours = matplotlib.colormaps[SEQUENTIAL]
    mixed = _blended(photo, heat, colours(strength)[..., :3], 0.6 - 0.35 * strength)
    marked = strength >= 0.5
    mixed[_grown(marked) & ~marked] = 0.1  # a dark rim: the line is seen on a bright photo as well
    mixed[marked & _grown(_grown(~marked))] = colours(1.0)[:3]
    return (mixed * 255 + 0.5).astype(np.uint8)


def difference_overlay(photo: Image.Image, heat: np.ndarray, top: float) -> np.ndarray:
    """Blend a photo with a map of differences -> (H, W, 3) uint8: red where they are above 0, blue
    where they are below, in full colour from ``top`` and -``top`` on; grey as in ``overlay``."""
    strength = np.clip(np.nan_to_num(heat) / top, -1, 1)
    colours = matplotlib.colormaps[DIVERGING](0.5 + 0.5 * strength)[..., :3]
    mixed = _blended(photo, heat, colours, 0.2 + 0.4 * abs(strength))
    return (mixed * 255 + 0.5).astype(np.uint8)


def _blended(
    photo: Image.Image, heat: np.ndarray, colours: np.ndarray, alpha: np.ndarray
) -> np.ndarray:
    """(H, W, 3) from 0 to 1: ``colours`` over the photo, and the greyed photo where ``heat`` is
    nan."""
    pixels = np.asarray(photo, dtype=np.float64) / 255
    grey = 0.55 + 0.25 * pixels.mean(-1, keepdims=True)
    mixed = (1 - alpha[..., None]) * pixels + alpha[..., None] * colours
    return np.where(np.isnan(heat)[..., None], grey, mixed)


def _grown(mask: np.ndarray) -> np.ndarray:
    """``mask`` (H, W) with the pixels beside it."""
    padded = np.pad(mask, 1)
    return (mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:])


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
    title: Sequence[str], quantity: str, path: str | Path, names: Sequence[str] = (),
    differences: bool = False,
) -> np.ndarray:
    """Original, map and overlay side by side; several maps (heads, classes) as a sheet of overlays
    with one colour scale, each with its name.

    ``maps`` (1 or more, rows, cols); ``title``: a headline, then notes. With ``differences``, the
    first map minus each of the others is drawn as well. Returns the first overlay, for a sheet of
    many photos.
    """
    photo, box = for_display(photo, box)
    heats = [map_onto_photo(grid, box, *photo.size) for grid in maps]
    if len(maps) > 1:
        top = scale_top(maps)
        overlays = [overlay(photo, heat, top) for heat in heats]
        panels = [("photo", photo), *zip(names, overlays, strict=True)]
        legend = _legend(heats[0])
        if differences:
            panels += [(f"{names[0]} - {name}", difference_overlay(photo, heats[0] - heat, top))
                       for name, heat in zip(names[1:], heats[1:], strict=True)]
            legend += "\nred: the first class has more; blue: the other has more"
        panel_sheet([panels], title, path, top, legend, quantity)
        return overlays[0]
    drawn = overlay(photo, heats[0])
    lines = [line for text in title for line in wrapped(one_line(printable(text)), 10, 9.6)]
    tall = np.clip(2.9 * photo.height / photo.width, 1.6, 3.4)  # inches; a panel is 2.9 wide
    figure, axes = plt.subplots(1, 3, figsize=(10, tall + 0.4 + 0.18 * len(lines)))
    axes[0].imshow(photo)
    axes[1].set_facecolor("0.7")
    shown = axes[1].imshow(heats[0], cmap=SEQUENTIAL, vmin=0, vmax=scale_top(heats[0]))
    axes[2].imshow(drawn)
    figure.colorbar(shown, ax=axes, label=quantity, shrink=0.8, extend="max")
    names = ("photo", "map", f"overlay ({_legend(heats[0])})")
    for cell, name in zip(axes, names, strict=True):
        cell.set(xticks=[], yticks=[])
        cell.set_frame_on(False)
        cell.set_title(name, fontsize=9 if len(name) < 40 else 7)
    figure.suptitle("\n".join(lines), fontsize=10, fontfamily=FONTS, parse_math=False)
    save(figure, path)
    return drawn


def _legend(heat: np.ndarray) -> str:
    """What a map's overlay needs explained."""
    return "line: half of the scale" + "; grey: not seen by the model" * bool(np.isnan(heat).any())


def word_panels(
    photo: Image.Image, maps: np.ndarray, box: tuple[float, float, float, float],
    words: Sequence[str], title: Sequence[str], path: str | Path, given: bool = False,
) -> None:
    """The photo titled <start>, then an overlay for each word; a row of panels for each head.

    ``maps`` (heads or 1, words, rows, cols). One colour scale for all of them: a map that is
    spread out looks so beside a pointed one. ``given``: the caption is not the model's own, and its
    headline looks different.
    """
    photo, box = for_display(photo, box, side=320)
    top = scale_top(maps)
    heats = [[map_onto_photo(grid, box, *photo.size) for grid in head] for head in maps]
    strips = [[("<start>", photo), *((word, overlay(photo, heat, top))
                                     for word, heat in zip(words, head, strict=True))]
              for head in heats]
    panel_sheet(strips, title, path, top, _legend(heats[0][0]), italic=given)


# --- panels in rows -----------------------------------------------------------------------------

SHEET_WIDTH, PANEL, MARGIN = 9.7, 1.8, 0.12  # inches; a panel's longer side
TITLE, NOTE, NAME = 12, 8.5, 10  # points


def panel_sheet(
    strips: Sequence[Sequence[tuple[str, Image.Image | np.ndarray]]], title: Sequence[str],
    path: str | Path, top: float | None = None, legend: str = "", quantity: str = SHARE,
    italic: bool = False,
) -> None:
    """Strips of (name, picture), broken into rows that fit a page; several strips (heads), which
    share their names, stand one below the other in each row.

    All pictures have one shape, the first is a photo. ``title``: a headline, blue and ``italic`` on
    request, then notes. ``top`` is the end of a colour scale of ``quantity``, ``legend`` what is
    said beside it.
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
        headline = {"color": LINES[0], "style": "italic"} if italic else {"color": "black"}
        sheet.text(width / 2, y - 0.3 * size / 72, line, size=size,
                   **(headline if size == TITLE else {"color": "0.35"}), **style)
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
        _colour_bar(figure, top, legend, quantity)
    save(figure, path)


def _colour_bar(figure: plt.Figure, top: float, legend: str, quantity: str) -> None:
    """A colour bar of ``quantity`` at the foot of ``figure``, what ``legend`` says at its right."""
    width, height = figure.get_size_inches()
    bar = figure.add_axes((0.3 / width, 0.4 / height, 2.2 / width, 0.09 / height))
    colours = plt.cm.ScalarMappable(plt.Normalize(0, top), SEQUENTIAL)
    shown = "{:g} %" if quantity == SHARE else "{:g}"
    figure.colorbar(colours, bar, orientation="horizontal", extend="max", ticks=MaxNLocator(3),
                    format=lambda value, _: shown.format(value * (100 if quantity == SHARE else 1)))
    bar.tick_params(labelsize=7, length=2)
    bar.set_xlabel(quantity, size=7.5, labelpad=1)
    lines = [line for text in legend.split("\n") for line in wrapped(text, 7.5, width - 2.85)]
    figure.text(2.75 / width, 0.54 / height, "\n".join(lines), size=7.5, color="0.35", va="top")


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
        add_legend(axes[-1], axes[-1], 7)
    save(figure, path)
