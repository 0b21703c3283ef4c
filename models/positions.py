"""Position embeddings of vision transformers, learned and fixed."""

from __future__ import annotations

from pathlib import Path

from utils import UserError

import numpy as np
import timm

from models.vit import open_vit


def position_embedding(
    source: str | Path, pretrained: bool = False, weights: str | Path | None = None,
    averaged: bool = False,
) -> tuple[np.ndarray, tuple[int, int]]:
    """((patches, C), (rows, cols)): the position embedding of the patches of ``source``, without
    that of prefix tokens.

    Raises UserError for a model without one, such as a model with rotary positions alone.
    """
    model = open_vit(source, pretrained, weights, averaged).model
    embedding, grid = model.pos_embed, tuple(model.patch_embed.grid_size)
    if embedding is None:
        raise UserError(f"{source} has no position embedding to draw; give another model")
    count = grid[0] * grid[1]
    flat = embedding.detach().float().reshape(-1, embedding.shape[-1])
    if not 0 <= len(flat) - count <= 16:
        raise UserError(f"{source} has {len(flat)} position embeddings for {count} patches")
    return flat[len(flat) - count:].numpy(), grid  # class, distillation and register tokens lead


def sincos2d(width: int, grid: tuple[int, int]) -> np.ndarray:
    """(patches, C): the fixed two-dimensional sine-cosine embedding on ``grid`` (rows, cols), where
    C is ``width`` rounded up to a multiple of 4."""
    embedding = timm.layers.build_sincos2d_pos_embed(list(grid), dim=-(-width // 4) * 4)
    return embedding.float().numpy()
