"""CLIPScore (Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image
Captioning", Sec. 3): how well a caption fits its photo, by CLIP's own judgement."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

WEIGHT = 2.5  # brings ViT-B/32's cosines, about 0 to 0.4, to about 0 to 1
PREFIX = "A photo depicts "  # what the paper puts before each caption


def clipscore(
    images: np.ndarray, captions: Sequence[str], encode_text: Callable[[list[str]], np.ndarray],
    prefix: str = PREFIX, weight: float = WEIGHT, batch_size: int = 256,
) -> np.ndarray:
    """(N,): ``weight`` · max(cos, 0) of each photo's feature and its caption's.

    ``images`` (N, D) and what ``encode_text`` makes of n captions, (n, D), need no unit length.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images and {len(captions)} captions")
    scores = [np.zeros(0)]
    for start in range(0, len(captions), batch_size):
        part = slice(start, start + batch_size)
        texts = encode_text([prefix + caption for caption in captions[part]])
        cosines = (_unit(images[part]) * _unit(texts)).sum(1)
        scores.append(weight * np.maximum(cosines, 0))
    return np.concatenate(scores)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def mean_interval(values: np.ndarray, bootstrap: int, seed: int = 0) -> list[float]:
    """The 95 % interval of the mean of ``values`` (N,): percentiles over resamples."""
    count = len(values)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), bootstrap)
    return np.percentile(weights @ values / count, [2.5, 97.5]).tolist()
