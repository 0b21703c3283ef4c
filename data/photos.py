"""Image folders, batches, and the geometry of a transform. Needs no torch to import.

Images are decoded by threads: Pillow releases the interpreter's lock while it decodes and
resamples, so threads keep every core busy without starting processes that each import torch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from utils import UserError, one_line, progress, warn

import numpy as np
from PIL import Image, ImageOps

IMAGE_EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}

# Large but readable photos and odd metadata are no news to the user; unreadable files are errors.
warnings.filterwarnings("ignore", module="PIL")


# --- folders ------------------------------------------------------------------------------------


def list_images(folder: str | Path, limit: int | None = None) -> list[Path]:
    """The image files directly in ``folder``, sorted by name; hidden files are skipped.

    ``limit`` keeps that many, spread evenly, since labelled folders are sorted by class.

    Raises UserError where there is no such folder or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"image folder {folder} {problem}")
    paths = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_EXTENSIONS
        and not path.name.startswith(".") and path.is_file())
    if not paths:
        kinds = " ".join(sorted(extension[1:] for extension in IMAGE_EXTENSIONS))
        raise UserError(f"no image in {folder} (looked for {kinds}, not in subfolders)")
    return spread(paths, limit)


def spread(items: Sequence, count: int | None) -> list:
    """``count`` of ``items`` in their order, spread evenly over them; all of them where ``count``
    is None or too large."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def image_paths(words: Sequence[str | Path], limit: int | None = None) -> list[Path]:
    """``--images FILE… | DIR``: the files as given, or the images of the one folder."""
    paths = [Path(word) for word in words]
    if len(paths) == 1 and not paths[0].is_file():
        return list_images(paths[0], limit)
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is no file; --images takes image files, or one folder")
    return paths[:limit]


def refuse_equal_stems(paths: Sequence[Path]) -> None:
    """UserError where two images would be written under one name."""
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem, path)
        if other is not path:
            raise UserError(f"{other.name} and {path.name} would both be {path.stem}; rename one")


def refuse_to_replace(paths: Sequence[Path], outputs: Sequence[Path]) -> None:
    """UserError where one of the ``outputs`` would be written over one of the photos ``paths``."""
    photos = {path.resolve() for path in paths}
    for output in outputs:
        if output.resolve() in photos:
            raise UserError(f"the figure {output} would replace a photo; give another --output")


def check_images(paths: Sequence[Path]) -> None:
    """Decode every image once, before hours of training; UserError that names an unreadable one."""
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress(len(paths), "check", "img") as bar:
        for path, problem in zip(paths, pool.map(_problem, paths), strict=True):
            refuse_unreadable([(path, problem)] if problem else [])
            bar.update()


def _problem(path: Path) -> str | None:
    try:
        load_image(path, (1, 1))
    except ValueError as error:
        return str(error)
    return None


# --- one image ----------------------------------------------------------------------------------


def load_image(path: str | Path, at_least: tuple[int, int] | None = None) -> Image.Image:
    """The photo as a person sees it, in RGB: EXIF orientation applied, transparency over white,
    16 bits rescaled to 8, first frame of an animation.

    ``at_least`` (width, height) lets the JPEG decoder skip detail beyond that size, which is where
    most of the time goes on photos of many megapixels.
    Raises ValueError with a short reason where the file is not a readable image.
    """
    try:
        with Image.open(path) as image:
            if at_least is not None:
                image.draft(None, at_least)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise ValueError("has too many pixels to be a photo") from None
    except Image.UnidentifiedImageError:
        raise ValueError("empty file" if os.path.getsize(path) == 0 else "not an image") from None
    except Exception as error:  # Pillow's decoders raise anything from SyntaxError to IndexError
        raise ValueError(one_line(error) or type(error).__name__) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or float, to 8 bits by scale; Pillow's own conversion clips."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))
    peak = max(float(values.max(initial=0)), 1e-12)
    if image.mode == "F":
        full = 1.0 if peak <= 1 else 255.0 if peak <= 255 else peak
    else:
        full = 65535.0 if image.mode.startswith("I;16") or 255 < peak <= 65535 else max(peak, 255.0)
    return Image.fromarray((values.clip(0, full) * (255 / full) + 0.5).astype(np.uint8))


def report_unreadable(readable: Sequence, unreadable: list[tuple[Path, str]]) -> None:
    """Name each unreadable file and its reason on stderr; UserError where nothing was readable."""
    if not len(readable):  # an array has no truth value
        raise UserError("none of {} images could be read (the first, {}: {}); nothing was written"
                        .format(len(unreadable), *unreadable[0]))
    for path, reason in unreadable:
        warn(f"unreadable: {path}: {reason}")


def refuse_unreadable(unreadable: Sequence[tuple[Path, str]]) -> None:
    """UserError that names the first unreadable file, if there is one; for work that needs all."""
    if unreadable:
        path, reason = unreadable[0]
        raise UserError(f"{path} cannot be read: {reason}; repair or remove it, then start again")
