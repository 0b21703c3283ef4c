"""Pages to explore: one HTML file that opens from disk, with its data, script and style inside.

A page is the markup ``pages/<kind>.html`` with ``common.css``, ``common.js`` and ``<kind>.js`` put
into it, and one block of JSON for each photo. The page's Content-Security-Policy allows exactly
this script and this style, and images that are inside the file; nothing is requested from a
network. File names and captions stand in the JSON alone, and the scripts write them as text.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from utils import UserError, warn, whole_file

import matplotlib
import numpy as np
from PIL import Image

from figures.maps import for_display, scale_top
from figures.style import SEQUENTIAL

FOLDER = Path(__file__).resolve().parent / "pages"
MOST_PHOTOS = 100  # on a page with maps; more than that, and a browser takes long to open it
PAGE_BYTES = 14_500_000  # which the photos of a page with maps share
PHOTO_BYTES = 1_450_000  # the most that one of them takes, so that a page of few photos is smaller;
FEW_BYTES = 5_000_000  # but one or two share as much as this
SIDE, THUMBNAIL = 640, 96  # pixels, the longer side of a photo and of a small one
STEPS = 128  # from 0 to the value that has the brightest colour


@contextlib.contextmanager
def html_page(
    path: str | Path, kind: str, about: dict
) -> Iterator[Callable[[dict, dict], None]]:
    """Yield ``add(entry, record)``, which writes a photo's data at once, so that the photos need
    not be in memory together.

    ``kind`` names the files in ``pages/``. All that the page lists at once stands in ``about`` and
    the ``entry`` of each photo; its ``record`` is read by the browser when the photo is shown.
    The file appears when the block ends without an error, and its path is printed on stderr.
    """
    style = (FOLDER / "common.css").read_text(encoding="utf-8")
    script = "".join((FOLDER / f"{name}.js").read_text(encoding="utf-8")
                     for name in ("common", kind))
    markup = (FOLDER / f"{kind}.html").read_text(encoding="utf-8")
    policy = (f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; "
              "img-src data:; base-uri 'none'; form-action 'none'")
    entries = []
    with whole_file(path) as temporary:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
                       f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
                       '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
                       '<link rel="icon" href="data:,">\n'
                       f"<style>{style}</style>\n{markup}")

            def add(entry: dict, record: dict) -> None:
                file.write(_data_block(f"record-{len(entries)}", record))
                entries.append(entry)

            yield add
            about = about | {"colours": _base64(_colours()), "steps": STEPS, "entries": entries}
            file.write(_data_block("page", about))
            file.write(f"<script>{script}</script>\n</body>\n</html>\n")
    warn(f"wrote {path}")


def _data_block(name: str, data: dict) -> str:
    """JSON in a script element that is not run. Without "<" nothing in it can end the element."""
    return f'<script type="application/json" id="{name}">{_compact(data)}</script>\n'


def _compact(data: dict) -> str:
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _digest(text: str) -> str:
    """How a Content-Security-Policy names an inline script or style."""
    return f"'sha256-{_base64(hashlib.sha256(text.encode()).digest())}'"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _colours() -> bytes:
    """The 256 colours of the figures' scale, red, green and blue of each."""
    return (matplotlib.colormaps[SEQUENTIAL](np.arange(256))[:, :3] * 255 + 0.5).astype(
        np.uint8).tobytes()


# --- photos -------------------------------------------------------------------------------------


def check_count(count: int, option: str = "--html") -> None:
    """UserError for more photos than a page with maps can hold."""
    if count > MOST_PHOTOS:
        raise UserError(f"{option}: {count} photos are too many for one page, which holds "
                        f"{MOST_PHOTOS}; --limit N takes some of them")


def picture(photo: Image.Image, side: int) -> str:
    """The photo as a data URI, a JPEG whose longer side is ``side`` pixels."""
    small, _ = for_display(photo, (0, 0, *photo.size), side)
    return _jpeg(small)


def small_picture(photo: Image.Image, photos: int) -> str:
    """As ``picture``, for a table of ``photos``: smaller the more there are, and never enlarged."""
    side = 192 if photos <= 500 else THUMBNAIL
    return picture(photo, min(side, max(photo.size)))


def _jpeg(photo: Image.Image) -> str:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + _base64(file.getvalue())


def photo_record(photo: Image.Image, box: tuple[float, float, float, float]) -> dict:
    """What a page needs to draw maps over a photo.

    ``box`` (left, top, right, bottom) is the part that the model saw, in the photo's pixels; the
    record has it as shares of the photo's width and height.
    """
    width, height = photo.size
    return {"photo": picture(photo, SIDE),
            "box": [box[0] / width, box[1] / height, box[2] / width, box[3] / height]}


# --- maps ---------------------------------------------------------------------------------------


def packed_maps(maps: np.ndarray, top: float | None = None) -> dict:
    """Maps (N, rows, cols) of 0 and more, in a byte for each cell, deflated (RFC 1950).

    A byte counts the steps of 1/128 of the value in the brightest colour: ``top`` for all of the
    maps, by default each map's own ``figures.maps.scale_top``. Rounding loses at most half a step,
    1/256 of the scale. What lies above the scale is drawn in its brightest colour and is stored so;
    the peak's place (its cell, counted row by row) and value are kept beside it.
    """
    cells = np.ascontiguousarray(maps, np.float64).reshape(len(maps), -1)
    tops = np.array([top or scale_top(grid) for grid in cells])
    levels = np.clip(np.rint(cells / tops[:, None] * STEPS), 0, STEPS).astype(np.uint8)
    return {"deflated": _base64(zlib.compress(levels.tobytes(), 9)), "tops": _short(tops),
            "peaks": cells.argmax(1).tolist(), "highest": _short(cells.max(1))}


def _short(values: np.ndarray) -> list[float]:
    """Numbers with four digits, which take less room."""
    return [float(f"{value:.4g}") for value in values]


def entropy_bits(maps: np.ndarray) -> list[float]:
    """The entropy of each of the maps (N, rows, cols), scaled to sum to 1, in bits."""
    cells = maps.reshape(len(maps), -1).astype(np.float64)
    shares = cells / np.maximum(cells.sum(1, keepdims=True), 1e-12)
    return _short(-(shares * np.log2(np.maximum(shares, 1e-12))).sum(1))


class Room:
    """How much of a photo's share of the page, in bytes, its ``record`` leaves for more maps."""

    def __init__(self, photos: int, record: dict) -> None:
        share = min(PAGE_BYTES / photos, max(PHOTO_BYTES, FEW_BYTES / photos))
        self.left = share - len(_compact(record))

    def takes(self, part: dict | list) -> bool:
        """Whether ``part`` fits; if so, there is less room after it."""
        size = len(_compact(part)) + 20  # with the key that it stands under
        if size > self.left:
            return False
        self.left -= size
        return True


def farthest_first(count: int) -> list[int]:
    """The numbers 0 to ``count`` - 1, the last one first, then always the one that is farthest from
    those before it: 5, 0, 2, 1, 3, 4."""
    order: list[int] = []
    while len(order) < count:
        order.append(max(set(range(count)) - set(order), key=lambda number: min(
            (abs(number - other) for other in order), default=number)))
    return order
