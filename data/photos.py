"""Folders of photos, and reading one photo. Needs no torch to import."""

from __future__ import annotations

import functools
import os
import re
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from utils import UserError, one_line, progress, warn

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from data.files import identities
from data.folders import PhotoList, is_list, names_of, read_list, scan, spread, stem_of
from data.formats import kind_of, kinds_read, readable_extensions
from data.jpeg import decode_cut

LARGE = 50_000_000  # pixels; a photo of more is made smaller at once, one at a time
MOST = 2**28  # pixels that are decoded, 16,384 × 16,384
LARGE_KEPT = (2048, 2048)  # what a large photo keeps at least, where the caller does not say
Image.MAX_IMAGE_PIXELS = 65_500**2  # the largest JPEG: its decoder can skip detail
PngImagePlugin.MAX_TEXT_CHUNK = 2**26  # bytes of text or colour profile; nothing here reads them
PngImagePlugin.MAX_TEXT_MEMORY = 2**27

# Pillow warns about large photos and odd metadata, which it reads all the same.
warnings.filterwarnings("ignore", module="PIL")


# --- folders ------------------------------------------------------------------------------------


def list_images(source: str | Path, limit: int | None = None) -> PhotoList:
    """The image files directly in the folder ``source``, sorted by name, hidden files skipped; or
    the photos that a list names (``data.folders.is_list``), in its order.

    Links that lead nowhere are among them, since they are files that cannot be read. Images of
    kinds that are not read are counted in one line on stderr, subfolders with images in another.
    ``limit`` keeps that many, spread evenly, since labelled folders are sorted by class.

    Raises UserError where there is no such folder or no image in it.
    """
    photos = read_list(source) if is_list(source) else _images_in(Path(source))
    return photos if limit is None else photos.subset(spread(range(len(photos)), limit))


def _images_in(folder: Path) -> PhotoList:
    if not folder.is_dir():
        problem = ("is a file, not a folder, and a list of photos must end in .txt"
                   if folder.exists() else "does not exist")
        raise UserError(f"image folder {folder} {problem}")
    names, left_out, no_files = scan(folder)
    about = (f"{len(left_out)} images of other kinds are left out ({', '.join(left_out[:3])}"
             f"{', …' * (len(left_out) > 3)}); convert them")
    outside = (f"subfolders, pipes and devices are left out ({', '.join(no_files[:3])}"
               f"{', …' * (len(no_files) > 3)}): give a folder that holds the photos themselves")
    if not names:
        raise UserError(f"no image in {folder} (looked for {kinds_read()}, not in subfolders)"
                        + f"; {about}" * bool(left_out) + f"; {outside}" * bool(no_files))
    if no_files:
        warn(f"{folder}: {outside}")
    if left_out:
        warn(f"{folder}: {about} to one of the kinds that are read: {kinds_read()}")
    return PhotoList(folder, names)


def image_paths(words: Sequence[str | Path], limit: int | None = None) -> list[Path]:
    """``--images FILE… | DIR | LIST``: the files as given, or the images of the one folder or
    list."""
    paths = [Path(word) for word in words]
    if len(paths) == 1 and (is_list(words[0]) or not paths[0].is_file()):
        return list(list_images(words[0], limit))
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is no file; --images takes image files, or one folder")
    return spread(paths, limit)


def refuse_equal_stems(paths: Sequence[Path]) -> None:
    """UserError where two images would be written under one name."""
    seen: set[str] = set()
    for name in names_of(paths):
        stem = stem_of(name)
        if stem in seen:
            other = next(other for other in names_of(paths) if stem_of(other) == stem)
            raise UserError(f"{other} and {name} would both be {stem}; rename one")
        seen.add(stem)


def refuse_to_replace(paths: Sequence[Path], outputs: Sequence[Path]) -> None:
    """UserError where a figure in ``outputs`` would overwrite one of the photos ``paths``."""
    photos = {identity for path in paths for identity in identities(path)}
    for output in outputs:
        if not photos.isdisjoint(identities(output)):
            raise UserError(f"the figure {output} would replace a photo; give another --output")


def is_png(output: str | Path) -> bool:
    """Whether ``--output`` names a single figure, and not a folder."""
    return Path(output).suffix.lower() == ".png" and not Path(output).is_dir()


def figure_file(output: str | Path, name: str) -> Path:
    """The file of the one figure that ``--output`` asks for: itself where it ends in .png or is a
    file, else ``<name>.png`` in that folder."""
    alone = is_png(output) or Path(output).is_file()
    return Path(output) if alone else Path(output) / f"{name}.png"


def figure_files(output: str | Path, paths: Sequence[Path], ending: str = "") -> dict[Path, Path]:
    """{photo: its figure}: ``<stem><ending>.png`` in the folder ``output``; of one photo, where
    ``output`` ends in .png, that file. UserError for two photos whose figures would have one name.
    """
    if is_png(output) and len(paths) > 1:
        raise UserError(f"--output {output} is one figure, and {len(paths)} photos have one each; "
                        "give a folder")
    refuse_equal_stems(paths)
    return {path: Path(output) if is_png(output) else Path(output) / f"{path.stem}{ending}.png"
            for path in paths}


def free_stem(stem: str, paths: Sequence[Path]) -> str:
    """The name, without extension, of a figure that is written beside one for each photo, under the
    photo's own: ``stem``, with underscores before it where a photo is called so, or ``<stem>_2``.
    Case does not count, since some file systems know none."""
    photos = [path.stem.casefold() for path in paths]
    while any(re.fullmatch(rf"{re.escape(stem.casefold())}(_\d+)?", photo) for photo in photos):
        stem = f"_{stem}"
    return stem


def check_images(paths: Sequence[Path]) -> None:
    """Decode every image once, before hours of training; UserError that names an unreadable one."""
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress(len(paths), "check", "img") as bar:
        for path, problem in zip(paths, pool.map(_problem, paths), strict=True):
            refuse_unreadable([(path, problem)] if problem else [])
            bar.update()


def _problem(path: Path) -> str | None:
    """Why the image cannot be read; None where it can."""
    try:
        load_image(path, (1, 1))
    except ValueError as error:
        return str(error)
    return None


def report_unreadable(readable: Sequence, unreadable: Sequence[tuple[Path, str]]) -> None:
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


# --- one image ----------------------------------------------------------------------------------


def load_image(path: str | Path, at_least: tuple[int, int] | None = None) -> Image.Image:
    """The photo as viewers show it, in RGB: EXIF orientation applied, transparency over white,
    16 bits rescaled to 8, first frame of an animation.

    ``at_least`` (width, height) lets the JPEG decoder skip detail beyond that size, which is where
    most of the time goes on photos of many megapixels. One of more than 50 comes smaller in any
    case, so that memory is bounded. A JPEG without its last bytes is accepted, with a warning,
    where less than 1 % of its rows are lost.
    Raises ValueError with a short reason where the file is not a readable image.
    """
    path = Path(path)
    readable_extensions()  # Pillow learns of HEIF
    try:
        with Image.open(path) as image:
            if image.width * image.height > LARGE:
                at_least = at_least or LARGE_KEPT
            stored = image.width * image.height
            if at_least is not None:
                image.draft(None, at_least)
            # A progressive JPEG is in memory as a whole before any detail can be skipped.
            pixels = stored if "progressive" in image.info else image.width * image.height
            if pixels > MOST:
                raise ValueError("has too many pixels to be a photo")
            if pixels <= LARGE:
                return _decoded(image, path, at_least)
            with _one_large_photo:
                return _decoded(image, path, at_least)
    except Image.DecompressionBombError:
        raise ValueError("has too many pixels to be a photo") from None
    except Image.UnidentifiedImageError:
        raise ValueError(_not_an_image(path)) from None
    except OSError as error:
        if path.is_symlink() and not path.exists():
            raise ValueError(f"a link to {os.readlink(path)}, which is not there") from None
        raise ValueError(one_line(error.strerror or error)) from None
    except Exception as error:  # Pillow's decoders raise anything from SyntaxError to IndexError
        raise ValueError(one_line(error) or type(error).__name__) from None


_one_large_photo = threading.Lock()


def _not_an_image(path: Path) -> str:
    if os.path.getsize(path) == 0:
        return "empty file"
    kind = kind_of(path)
    hint = ", which pip install pillow-heif lets Pillow read" * (kind == "HEIF")
    return f"a {kind} file that Pillow cannot read{hint}" if kind else "not an image"


def _decoded(
    image: Image.Image, path: Path, at_least: tuple[int, int] | None
) -> Image.Image:
    """The pixels of an opened file as ``load_image`` returns them."""
    try:
        image.load()
    except OSError:
        if image.format not in ("JPEG", "MPO"):
            raise
        image, lost = decode_cut(path.read_bytes(), at_least)
        _warn_once(f"{path}: the end of the file is missing, and with it {lost:.1%} of the rows")
    if image.width * image.height > LARGE:
        image = _reduced(image, at_least)
    return _to_rgb(ImageOps.exif_transpose(image))


@functools.cache
def _warn_once(message: str) -> None:
    """A photo may be read in every epoch."""
    warn(message)


def _reduced(image: Image.Image, at_least: tuple[int, int]) -> Image.Image:
    """A large photo in RGB, smaller by a whole factor but at least twice ``at_least``; strip by
    strip, since each step of a conversion would need as much memory again."""
    factor = min(image.width // (2 * at_least[0]), image.height // (2 * at_least[1]), 16) or 1
    reduced = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    reduced.getexif().update(image.getexif())  # the orientation
    image = _to_8_bit(image)
    for top in range(0, image.height, 64 * factor):
        strip = image.crop((0, top, image.width, min(top + 64 * factor, image.height)))
        reduced.paste(_to_rgb(strip).reduce(factor), (0, top // factor))
    return reduced


def _to_rgb(image: Image.Image) -> Image.Image:
    image = _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or float, to 8 bits by scale, since Pillow's own conversion clips;
    every other image as it is."""
    if not (image.mode.startswith("I;16") or image.mode in ("I", "F")):
        return image
    values = np.asarray(image)
    bands = [slice(top, top + 1024) for top in range(0, len(values), 1024)]  # bounds the memory

    def as_float(band):
        return np.nan_to_num(values[band].astype(np.float32))

    peak = max([float(as_float(band).max()) for band in bands] + [1e-12])
    if image.mode == "F":
        full = 1.0 if peak <= 1 else 255.0 if peak <= 255 else peak
    else:
        full = 65535.0 if image.mode.startswith("I;16") or 255 < peak <= 65535 else max(peak, 255.0)
    grey = np.empty(values.shape, np.uint8)
    for band in bands:
        grey[band] = as_float(band).clip(0, full) * (255 / full) + 0.5
    return Image.fromarray(grey)
