"""Recall@K: how often the right item is among the K nearest (numpy)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def recall(
    images: np.ndarray, texts: np.ndarray, owner: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, dict[str, float]]:
    """{"image_to_text": {"1": share, …}, "text_to_image": …}, as for Flickr30k and COCO (Karpathy
    and Fei-Fei 2015, Sec. 4.2): an image counts where any of its texts is among the K nearest.

    ``images`` (N, D) and ``texts`` (T, D) have rows of length 1; ``owner`` (T,) says whose image
    each text is. What ties with the right item counts as nearer.
    """
    best, backward = np.full(len(images), len(texts)), np.empty(len(texts), dtype=int)
    own = (images[owner] * texts).sum(1)  # (T,)
    for text in range(len(texts)):
        others = np.arange(len(images)) != owner[text]
        backward[text] = (images[others] @ texts[text] >= own[text]).sum()
    for image in range(len(images)):
        mine = owner == image
        if mine.any():
            best[image] = (texts[~mine] @ images[image] >= own[mine].max()).sum()
    return {name: {str(k): float((ranks < k).mean()) for k in ks}
            for name, ranks in (("image_to_text", best), ("text_to_image", backward))}
