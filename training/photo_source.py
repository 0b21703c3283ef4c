"""Where a captioner's training takes its photos from: files, or stored features of them.

A source is a dataset of (photo, index) for the training loop. Beside that, ``prepare`` turns a
batch into what the loss takes, ``inputs`` turns the photos of that into what the captioner takes,
and ``captions`` writes captions of the validation photos at some places.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.augmentation import augmentation
from data.batches import LabelledImages
from data.photos import refuse_unreadable
from inference.caption import caption_features, caption_images, patch_features
from models.captioner import Captioner, Memory
from models.decoding import Search
from training.recipe import CaptionOptions, Recipe


class Photos(LabelledImages):
    """Photos that are read, augmented and encoded in every step."""

    def __init__(
        self, captioner: Captioner, paths: Sequence[Path], val_paths: Sequence[Path],
        recipe: Recipe, augment: Sequence[str],
    ) -> None:
        self.transform = captioner.transform
        super().__init__(paths, range(len(paths)), augmentation(augment, self.transform),
                         recipe.seed)
        self.val_paths, self.compute = val_paths, recipe.compute

    def prepare(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        pixels, indices = batch
        return self.transform.normalize(pixels), indices

    def inputs(self, captioner: Captioner, images: Tensor) -> Tensor:
        return images

    def captions(self, captioner: Captioner, places: Sequence[int], search: Search) -> list[str]:
        _, texts, unreadable = caption_images(
            captioner, [self.val_paths[place] for place in places], search, self.compute,
            "validate")
        refuse_unreadable(unreadable)
        return texts


class StoredFeatures:
    """Photos as patch features (patches, width) that a frozen encoder computed once."""

    def __init__(
        self, captioner: Captioner, paths: Sequence[Path], val_paths: Sequence[Path],
        recipe: Recipe, folder: str | Path,
    ) -> None:
        self.compute = recipe.compute
        self.features, self.val_features = (
            patch_features(captioner, part, self.compute, folder) for part in (paths, val_paths))

    def set_epoch(self, epoch: int) -> None:
        """Nothing here is random."""

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.features[index].astype(np.float32)), index

    def prepare(self, batch: Sequence[Tensor]) -> Sequence[Tensor]:
        return batch

    def inputs(self, captioner: Captioner, features: Tensor) -> Memory:
        return captioner.memory_of(features)

    def captions(self, captioner: Captioner, places: Sequence[int], search: Search) -> list[str]:
        return caption_features(captioner, self.val_features[places], search, self.compute)


def photo_source(
    captioner: Captioner, paths: Sequence[Path], val_paths: Sequence[Path], recipe: Recipe,
    options: CaptionOptions,
) -> Photos | StoredFeatures:
    """Stored features where they are the same in every epoch: the encoder is frozen, and photos are
    of one size and not augmented."""
    is_frozen = not any(parameter.requires_grad for parameter in captioner.encoder.parameters())
    is_one_size = captioner.transform.resize != "longest"
    if is_frozen and is_one_size and list(options.augment) == ["none"]:
        return StoredFeatures(captioner, paths, val_paths, recipe, options.features)
    return Photos(captioner, paths, val_paths, recipe, options.augment)
