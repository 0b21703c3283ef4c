"""Image folders, batches, and the geometry of a transform. Needs no torch to import.

Images are decoded by threads: Pillow releases the interpreter's lock while it decodes and
resamples, so threads keep every core busy without starting processes that each import torch.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from utils import IMAGE_EXTENSIONS, UserError, one_line, progress

import numpy as np
from PIL import Image, ImageOps

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
    if limit is None or limit >= len(paths):
        return paths
    return [paths[i * len(paths) // limit] for i in range(limit)]


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
            if problem:
                raise UserError(f"{path}: {problem}; mend or remove it, then train")
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


@dataclass(frozen=True)
class Transform:
    """A model's preprocessing: photo -> (height, width, 3) uint8 -> normalized float batch.

    ``resize="crop"`` scales the photo to cover ``size / crop_pct`` and takes the centre, as timm's
    evaluation transform does; ``"squash"`` scales the whole photo to ``size``, whatever its shape;
    ``"longest"`` scales its longer side to that of ``size`` and keeps its shape, so that a batch is
    padded (``batch``).
    """

    size: tuple[int, int]  # height, width
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = "crop"
    crop_pct: float = 1.0
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        """ValueError for what no photo can be prepared by."""
        numbers = (*self.mean, *self.std, self.crop_pct)
        if not (len(self.size) == 2 and all(type(side) is int and side > 0 for side in self.size)):
            raise ValueError(f"a size of {self.size}")
        if not (len(self.mean) == len(self.std) == 3 and all(map(math.isfinite, numbers))
                and min(self.std) > 0 and 0.001 < self.crop_pct <= 1):
            raise ValueError(f"mean {self.mean}, std {self.std}, crop_pct {self.crop_pct}")
        if (self.resize not in ("crop", "squash", "longest")
                or self.interpolation.upper() not in Image.Resampling.__members__):
            raise ValueError(f"resize {self.resize}, interpolation {self.interpolation}")

    @classmethod
    def from_fields(cls, fields: dict) -> Transform:
        """From what a model's builder or a checkpoint says; UserError where that is not whole."""
        try:
            lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
            return cls(**{**fields, **lists})
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the model's preprocessing is described wrongly: {error}") from None

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom): the part of a width × height photo that the model sees."""
        if self.resize != "crop":
            return (0.0, 0.0, float(width), float(height))
        rows, cols = self.size
        # The arithmetic and rounding of torchvision's Resize and CenterCrop, so that the result is
        # the same pixel for pixel; but resampling only this box, a 1 × 5000 photo stays small.
        target = math.floor(rows / self.crop_pct), math.floor(cols / self.crop_pct)
        if target[0] * width <= target[1] * height:  # the width decides
            new_width, new_height = target[1], int(target[1] * height / width)
        else:
            new_width, new_height = int(target[0] * width / height), target[0]
        new_width, new_height = max(new_width, cols), max(new_height, rows)
        left = int(round((new_width - cols) / 2.0))
        top = int(round((new_height - rows) / 2.0))
        scale_x, scale_y = width / new_width, height / new_height
        return (left * scale_x, top * scale_y, (left + cols) * scale_x, (top + rows) * scale_y)

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """(rows, cols) of what a width × height photo becomes."""
        if self.resize != "longest":
            return self.size
        scale = max(self.size) / max(width, height)  # CATR's arithmetic and rounding
        return max(int(height * scale), 1), max(int(width * scale), 1)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """RGB photo -> (height, width, 3) uint8."""
        rows, cols = self.shape(*image.size)
        resample = Image.Resampling[self.interpolation.upper()]
        return np.asarray(image.resize((cols, rows), resample, box=self.box(*image.size)))

    def batch(self, images: Sequence[np.ndarray], size: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Photos as ``__call__`` leaves them -> (B, height, width, 3) uint8. Where they have sizes
        of their own, they are padded below and to the right to the largest, ``size`` at least, and
        a fourth channel is 255 where there is a photo."""
        if self.resize != "longest":
            return np.stack(images)
        rows, cols = np.max([size, *(image.shape[:2] for image in images)], axis=0)
        padded = np.zeros((len(images), rows, cols, 4), np.uint8)
        for place, image in zip(padded, images, strict=True):
            place[:image.shape[0], :image.shape[1], :3] = image
            place[:image.shape[0], :image.shape[1], 3] = 255
        return padded

    def normalize(self, batch):
        """(B, height, width, channels) uint8 tensor -> (B, channels, height, width) float32, on its
        device; a fourth channel becomes 0 and 1."""
        import torch

        mean, std = (torch.tensor(values[:batch.shape[-1]], device=batch.device).view(-1, 1, 1)
                     for values in ((*self.mean, 0.0), (*self.std, 1.0)))
        return (batch.permute(0, 3, 1, 2) / 255.0 - mean) / std

    def load(self, path: str | Path) -> np.ndarray:
        """The file's pixels as the model takes them. Raises ValueError as ``load_image`` does."""
        rows, cols = self.size
        needed = math.ceil(max(rows, cols) / self.crop_pct)
        return self(load_image(path, (needed, needed)))


# --- batches for inference ----------------------------------------------------------------------


def read_batches(
    paths: Sequence[Path],
    transform: Transform,
    batch_size: int,
    unreadable: Callable[[Path, str], None],
    threads: int | None = None,
) -> Iterator[tuple[list[Path], np.ndarray]]:
    """Batches of (paths, ``transform.batch`` of their photos) in the order of ``paths``.

    Threads read at most two batches ahead, so memory does not grow with the number of images.
    A file that cannot be read is left out and handed to ``unreadable(path, reason)``.
    """
    threads = threads or os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        queue = iter(paths)
        pending = deque((path, pool.submit(transform.load, path))
                        for path in islice(queue, 2 * batch_size))
        names, images = [], []
        while pending:
            path, future = pending.popleft()
            try:
                images.append(future.result())
                names.append(path)
            except ValueError as error:
                unreadable(path, str(error))
            pending.extend((path, pool.submit(transform.load, path)) for path in islice(queue, 1))
            if len(images) == batch_size or (images and not pending):
                yield names, transform.batch(images)
                names, images = [], []
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


# --- training samples ---------------------------------------------------------------------------

AUGMENTATIONS = ("none", "flip", "jitter", "crop", "auto", "rand")


def normalized_batches(
    preprocessing: dict, paths: Sequence[Path], args, unreadable: list, title: str
) -> Iterator[tuple[list[Path], object]]:
    """Yield (paths, normalized images on ``args.device``) with a progress bar; (path, reason) of
    files that cannot be read go to ``unreadable``."""
    import torch

    transform = Transform.from_fields(preprocessing)
    with progress(len(paths), title, "img") as bar:
        for names, pixels in read_batches(paths, transform, args.batch_size,
                                          lambda path, why: unreadable.append((path, why))):
            yield names, transform.normalize(torch.from_numpy(pixels).to(args.device))
            bar.update(len(names))


def augmentation(
    names: Sequence[str], transform: Transform
) -> Callable[[Image.Image], Image.Image]:
    """Photo -> photo of the transform's size: the named augmentations, one after the other; where
    the transform keeps shapes, then padded to that size (``Transform.batch``).

    ``crop`` (Szegedy et al. 2015, Sec. 6, area from 35 %) takes the place of the transform's own
    geometry; ``auto`` and ``rand`` are AutoAugment (Cubuk et al. 2019) and RandAugment (Cubuk et
    al. 2020; two operations of magnitude 9). Draws from torch's global generator.
    """
    from torchvision.transforms import InterpolationMode, v2

    resample = InterpolationMode(transform.interpolation)
    if "crop" in names:
        geometry = v2.RandomResizedCrop(transform.size, scale=(0.35, 1.0), interpolation=resample)
    else:
        geometry = v2.Lambda(partial(_resized, transform))
    steps = {
        "flip": v2.RandomHorizontalFlip(),
        "jitter": v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3),
        "auto": v2.AutoAugment(interpolation=InterpolationMode.BILINEAR),
        "rand": v2.RandAugment(2, 9, interpolation=InterpolationMode.BILINEAR),
    }
    chosen = [geometry, *(steps[name] for name in names if name in steps)]
    if transform.resize == "longest":
        chosen.append(v2.Lambda(partial(_padded, transform)))
    return v2.Compose(chosen)


def _resized(transform: Transform, image: Image.Image) -> Image.Image:
    return Image.fromarray(transform(image))


def _padded(transform: Transform, image: Image.Image) -> np.ndarray:
    return transform.batch([np.asarray(image)], transform.size)[0]


class LabelledImages:
    """A map-style dataset of (pixels (height, width, channels) uint8, class index).

    The random state of a sample comes from (seed, epoch, index) alone, whatever the number of
    workers and whichever of them reads it. Call ``set_epoch`` before each epoch.
    """

    def __init__(
        self, paths: Sequence[Path], targets: Sequence[int],
        augment: Callable[[Image.Image], Image.Image], seed: int,
    ) -> None:
        self.paths, self.targets = list(paths), list(targets)
        self.augment, self.seed, self.epoch = augment, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        import torch

        image = load_image(self.paths[index])
        with torch.random.fork_rng(devices=[]):
            seeds = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)
            torch.manual_seed(int(seeds[0]))
            pixels = np.array(self.augment(image))
        return torch.from_numpy(pixels), self.targets[index]
