"""What every figure shares: colours, fonts, text that fits, and writing a PNG whole."""

from __future__ import annotations

import logging
import textwrap
import warnings
from pathlib import Path

from utils import whole_file  # noqa: E402

import matplotlib
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.font_manager import FontProperties  # noqa: E402
from matplotlib.textpath import text_to_path  # noqa: E402

matplotlib.use("Agg")  # no window is ever opened
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
TRUE_CLASS, OTHER_CLASS = LINES[1], "#9FB4C7"
# A name in Chinese, Japanese or Korean is drawn where one of these is installed, else as boxes.
FONTS = ["DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "SimHei",
         "Microsoft YaHei", "Hiragino Sans", "Yu Gothic"]
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="Glyph .* missing from font")
plt.rcParams.update({"figure.constrained_layout.use": True, "savefig.dpi": 150, "font.size": 9})


def save(figure: plt.Figure, path: str | Path) -> None:
    """Write ``figure`` as PNG, whole or not at all, and free it."""
    try:
        with whole_file(path) as temporary:
            # zlib's usual level takes twice as long to save 2 %
            figure.savefig(temporary, format="png", pil_kwargs={"compress_level": 4})
    finally:
        plt.close(figure)


# --- maps over photos ---------------------------------------------------------------------------

SEQUENTIAL = "viridis"


def _inches(text: str, size: float) -> float:
    font = FontProperties(family=FONTS, size=size)
    return text_to_path.get_text_width_height_descent(text, font, False)[0] / 72


def _wrapped(text: str, size: float, width: float) -> list[str]:
    """``text`` in lines of at most ``width`` inches."""
    lines, letters = [text], len(text)
    while letters > 1 and any(_inches(line, size) > width for line in lines):
        letters = int(min(letters - 1, len(text) * width / _inches(text, size)))
        lines = textwrap.wrap(text, max(letters, 1))
    return lines


def _fitted(text: str, size: float, width: float) -> tuple[str, float]:
    """(text, size): smaller until it is at most ``width`` inches long; where that is not enough,
    in two lines, and what they cannot hold is cut."""
    small = 6.5
    size = max(min(size, size * width / max(_inches(text, size), width)), small)
    if size > small:
        return text, size
    lines = _wrapped(text, small, width)
    return "\n".join(lines[:2])[:None if len(lines) < 3 else -1] + "…" * (len(lines) > 2), small
