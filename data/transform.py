"""The geometry of a model's preprocessing. Needs no torch to import."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils import UserError

import numpy as np
from PIL import Image

from data.compute import to_device
from data.photos import load_image


@dataclass(frozen=True)
class Transform:
    """A model's preprocessing: photo -> (height, width, 3) uint8 -> normalized float batch.

    ``resize="crop"`` scales the photo to cover ``size / crop_pct`` and takes the centre, as timm's
    evaluation transform does; ``"squash"`` scales the whole photo to ``size``, whatever its shape;
    ``"squash-crop"`` scales it so to ``size / crop_pct`` and takes the centre; ``"longest"`` scales
    its longer side to that of ``size`` and keeps its shape, so that a batch is padded (``batch``).
    Where the centre does not fall on a whole pixel, torchvision's rounding decides, or, with
    ``floor_crop``, transformers', which takes the pixel above and to the left.
    """

    size: tuple[int, int]  # height, width
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = "crop"
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    floor_crop: bool = False

    def __post_init__(self) -> None:
        """ValueError for what no photo can be prepared by."""
        numbers = (*self.mean, *self.std, self.crop_pct)
        if not (len(self.size) == 2 and all(type(side) is int and side > 0 for side in self.size)):
            raise ValueError(f"a size of {self.size}")
        if not (len(self.mean) == len(self.std) == 3 and all(map(math.isfinite, numbers))
                and min(self.std) > 0 and 0.001 < self.crop_pct <= 1):
            raise ValueError(f"mean {self.mean}, std {self.std}, crop_pct {self.crop_pct}")
        if (self.resize not in ("crop", "squash", "squash-crop", "longest")
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
        if self.resize in ("squash", "longest"):
            return (0.0, 0.0, float(width), float(height))
        rows, cols = self.size
        # The arithmetic and rounding of torchvision's Resize and CenterCrop, so that the result is
        # the same pixel for pixel; but resampling only this box, a 1 × 5000 photo stays small.
        target = math.floor(rows / self.crop_pct), math.floor(cols / self.crop_pct)
        if self.resize == "squash-crop":
            new_width, new_height = target[1], target[0]
        elif target[0] * width <= target[1] * height:  # the width decides
            new_width, new_height = target[1], int(target[1] * height / width)
        else:
            new_width, new_height = int(target[0] * width / height), target[0]
        new_width, new_height = max(new_width, cols), max(new_height, rows)
        whole = math.floor if self.floor_crop else round
        left, top = whole((new_width - cols) / 2.0), whole((new_height - rows) / 2.0)
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
        pixels = batch.permute(0, 3, 1, 2).to(torch.float32)
        return pixels.div_(255.0).sub_(mean).div_(std)  # in place: new memory costs more than this

    def tensor(self, images: Sequence[np.ndarray], device: str):
        """Photos as ``__call__`` leaves them -> what the model takes: (B, channels, height, width)
        float32 on ``device``."""
        import torch

        return self.normalize(to_device(torch.from_numpy(self.batch(images)), device))

    def load(self, path: str | Path) -> np.ndarray:
        """The file's pixels as the model takes them. Raises ValueError as ``load_image`` does."""
        rows, cols = self.size
        needed = math.ceil(max(rows, cols) / self.crop_pct)
        return self(load_image(path, (needed, needed)))


@dataclass(frozen=True)
class Transforms:
    """The preprocessing of several models that see the same photos; each is done once."""

    each: tuple[Transform, ...]

    def load(self, path: str | Path) -> dict[Transform, np.ndarray]:
        return {transform: transform.load(path) for transform in dict.fromkeys(self.each)}

    def tensor(self, images: Sequence[dict[Transform, np.ndarray]], device: str) -> list:
        """For each model, what it takes."""
        made = {transform: transform.tensor([image[transform] for image in images], device)
                for transform in images[0]}
        return [made[transform] for transform in self.each]


@dataclass(frozen=True)
class Annotated:
    """A transform that keeps ``note(path)`` of each photo, taken before its pixels are read."""

    transform: Transform | Transforms
    note: Callable[[Path], object]

    def load(self, path: Path) -> tuple[object, object]:
        return self.note(path), self.transform.load(path)

    def tensor(self, images: Sequence[tuple[object, object]], device: str) -> tuple[tuple, object]:
        """(the notes, what the transform makes of the photos)."""
        notes, pixels = zip(*images, strict=True)
        return notes, self.transform.tensor(pixels, device)
