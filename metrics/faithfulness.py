"""Does a map point at what the model uses? Deletion and insertion curves (Petsiuk et al. 2018,
Sec. 4.2), patch by patch (numpy)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def most_important_first(maps: np.ndarray) -> np.ndarray:
    """Maps (N, rows, cols) -> (N, patches) patch indices, the highest value first."""
    return np.argsort(-maps.reshape(len(maps), -1), axis=1, kind="stable")


def random_order(images: int, patches: int, seed: int, first: int = 0) -> np.ndarray:
    """(N, patches): the order that a map must beat, of N images from number ``first``; the order of
    an image is the same in every batch."""
    return np.stack([np.random.default_rng([seed, first + image]).permutation(patches)
                     for image in range(images)])


def curve(
    score: Callable[[np.ndarray], np.ndarray], before: np.ndarray, after: np.ndarray,
    order: np.ndarray, grid: tuple[int, int], steps: int = 16,
) -> np.ndarray:
    """(N, steps + 1) scores while patches of ``before`` are replaced by those of ``after``.

    Deletion goes from the photo to grey, insertion from the blurred photo to the photo.
    ``score`` takes images (N, 3, H, W) and gives each one's probability of its class; ``order``
    (N, patches) is as ``most_important_first`` gives it; H and W are multiples of ``grid``.
    """
    count, patches = order.shape
    height, width = before.shape[-2] // grid[0], before.shape[-1] // grid[1]
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(patches), order.shape), axis=1)
    scores = []
    for step in range(steps + 1):
        replaced = (rank < round(step * patches / steps)).reshape(count, 1, *grid)
        pixels = replaced.repeat(height, axis=2).repeat(width, axis=3)
        scores.append(score(np.where(pixels, after, before)))
    return np.stack(scores, axis=1)


def area_under(curves: np.ndarray) -> np.ndarray:
    """(N, steps + 1) -> (N,): the area under each curve over [0, 1], by the trapezoid rule."""
    return (curves[:, :-1] + curves[:, 1:]).mean(axis=1) / 2


def mean_with_interval(values: np.ndarray) -> dict:
    """The mean and its 95 % interval (normal approximation) over images; None for one image."""
    half = float(1.96 * values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(values.mean()), "plus_minus": half}
