"""What every figure shares: colours, fonts, text that fits, and writing a PNG whole."""

from __future__ import annotations

import logging
import textwrap
import warnings
from pathlib import Path

from utils import whole_file

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

matplotlib.use("Agg")  # no window is ever opened
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="Glyph .* missing from font")
plt.rcParams.update({"figure.constrained_layout.use": True, "savefig.dpi": 150, "font.size": 9})

# Okabe & Ito's palette for lines and viridis for magnitudes: colour-blind readers can read both.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
TRUE_CLASS, OTHER_CLASS = LINES[2], "#9FB4C7"  # the course draws the true class green
# A name in Chinese, Japanese or Korean is drawn where one of these is installed, else as boxes.
FONTS = ["DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "SimHei",
         "Microsoft YaHei", "Hiragino Sans", "Yu Gothic"]
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"


def layer_name(layer: int, count: int) -> str:
    """What a figure calls a layer that an option counts from 0, or, below 0, from the end."""
    layer %= count
    return "last layer" if layer == count - 1 else f"layer {layer + 1} of {count}"


def save(figure: plt.Figure, path: str | Path) -> None:
    """Write ``figure`` as PNG, whole or not at all, and free it."""
    try:
        with whole_file(path) as temporary:
            # zlib's usual level takes twice as long to save 2 %
            figure.savefig(temporary, format="png", pil_kwargs={"compress_level": 4})
    finally:
        plt.close(figure)


def inches(text: str, size: float) -> float:
    """The width of ``text`` set at ``size`` points."""
    font = FontProperties(family=FONTS, size=size)
    return text_to_path.get_text_width_height_descent(text, font, False)[0] / 72


def add_legend(place: plt.Figure | plt.Axes, axes: plt.Axes, size: float, **style) -> None:
    """A legend of the lines of ``axes`` in ``place``, whose names may be those of files."""
    marks, names = axes.get_legend_handles_labels()
    for text in place.legend(marks, names, fontsize=size, **style).get_texts():
        text.set(fontfamily=FONTS, parse_math=False)


def wrapped(text: str, size: float, width: float) -> list[str]:
    """``text`` set at ``size`` points, in lines of at most ``width`` inches."""
    lines, letters = [text], len(text)
    while letters > 1 and any(inches(line, size) > width for line in lines):
        letters = int(min(letters - 1, len(text) * width / inches(text, size)))
        lines = textwrap.wrap(text, max(letters, 1))
    return lines


def fitted(text: str, size: float, width: float) -> tuple[str, float]:
    """(text, size in points) so that it is at most ``width`` inches wide: set smaller, then broken
    into two lines, then cut with "…"."""
    small = 6.5
    size = max(min(size, size * width / max(inches(text, size), width)), small)
    if size > small:
        return text, size
    lines = wrapped(text, small, width)
    return "\n".join(lines[:2])[:None if len(lines) < 3 else -1] + "…" * (len(lines) > 2), small


def fitted_lines(text: str, size: float, width: float) -> tuple[str, float]:
    """As ``fitted`` for each line of ``text``; all are set in the size of the smallest."""
    lines = [fitted(line, size, width) for line in text.split("\n")]
    return "\n".join(line for line, _ in lines), min(points for _, points in lines)
