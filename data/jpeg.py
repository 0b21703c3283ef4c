"""JPEG files whose last bytes are missing, as a transfer that broke off leaves them.

Needs no torch to import.
"""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image

MOST_LOST = 0.01  # share of the rows
END = b"\xff\xd9"
MEASURED = (1000, 1000)  # what is lost is measured at this size or more, whatever size is wanted


def decode_cut(content: bytes, at_least: tuple[int, int] | None) -> tuple[Image.Image, float]:
    """(photo, share of its rows that are lost) of a JPEG without its end; lost pixels are grey.

    Raises ValueError where 1 % of the rows or more are lost.
    """
    content = content.rstrip(b"\xff")  # half of a marker
    try:
        lost = _lost(content) if _all_scans_begun(content) else 1.0
    except OSError:  # what is left does not even have a whole header
        lost = 1.0
    if lost >= MOST_LOST:
        raise ValueError(f"the file is cut off: {lost:.0%} of the rows are missing")
    return _decode(content + END, at_least), lost


def _lost(content: bytes) -> float:
    """The share of the rows, at the bottom, whose pixels are not all in the file."""
    # Random bytes in the place of what is missing change no pixel that is there, and all others.
    noise = np.random.default_rng(0).integers(0, 255, 1 << 16, np.uint8).tobytes()
    photo, noisy = (np.asarray(_decode(content + ending, MEASURED))
                    for ending in (END, noise + END))
    changed = (photo != noisy).reshape(len(photo), -1).any(1)
    return 1 - changed.argmax() / len(photo) if changed.any() else 0.0


def _decode(content: bytes, at_least: tuple[int, int] | None) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    if at_least is not None:
        image.draft(None, at_least)
    image.load()
    return image


def _all_scans_begun(content: bytes) -> bool:
    """Whether the last scan of every coefficient has at least begun (ITU T.81, Annex G): a
    progressive photo comes in scans, each of which adds detail to all rows."""
    final: dict[int, set[int]] = {}  # component: coefficients that are, or become, exact
    position = 2
    while match := re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]").search(content, position):
        kind, start = content[match.end() - 1], match.end()
        end = start + int.from_bytes(content[start:start + 2], "big")
        segment = content[start + 2:end]
        if end > len(content):
            return False
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # start of frame
            final |= {segment[6 + 3 * i]: set() for i in range(segment[5])}
        elif kind == 0xDA:  # start of scan
            first, last, precision = segment[-3:]
            for i in range(segment[0] if precision % 16 == 0 else 0):
                final[segment[1 + 2 * i]] |= set(range(first, last + 1))
        position = end
    return all(len(exact) == 64 for exact in final.values())
