"""Recall@K: how often the right item is among the K nearest (numpy)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROUNDING = 1e-6  # by which products of equal vectors may differ


def recall(
    images: np.ndarray, texts: np.ndarray, owner: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, dict[str, float]]:
    """{"image_to_text": {"1": share, …}, "text_to_image": …}, as for Flickr30k and COCO (Karpathy
    and Fei-Fei 2015, Sec. 4.2): an image counts where any of its texts is among the K nearest.

    ``images`` (N, D) and ``texts`` (T, D) have rows of length 1; ``owner`` (T,) holds the image
    index of each text. Items as near as the right one are counted as nearer.
    """
    # How many wrong items are as near as the right one, or nearer: 0 is the best rank.
    image_ranks = np.full(len(images), len(texts))
    text_ranks = np.empty(len(texts), dtype=int)
    for text in range(len(texts)):
        cosines = images @ texts[text]
        near = cosines >= cosines[owner[text]] - ROUNDING
        text_ranks[text] = near.sum() - 1
    for image in range(len(images)):
        own = owner == image
        if own.any():
            cosines = texts @ images[image]
            near = cosines >= cosines[own].max() - ROUNDING
            image_ranks[image] = near[~own].sum()
    return {name: {str(k): float((ranks < k).mean()) for k in ks}
            for name, ranks in (("image_to_text", image_ranks), ("text_to_image", text_ranks))}
