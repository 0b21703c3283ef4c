"""Augmentations of training photos. Needs no torch and no Pillow to import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

    from data.transform import Transform

AUGMENTATIONS = ("none", "flip", "jitter", "crop", "auto", "rand")


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
    from PIL import Image

    return Image.fromarray(transform(image))


def _padded(transform: Transform, image: Image.Image) -> np.ndarray:
    return transform.batch([np.asarray(image)], transform.size)[0]
