"""BLEU-1 … BLEU-4 (Papineni et al. 2002) as the COCO caption toolkit computes it: the closest
reference length, and its two tiny constants that keep empty captions finite."""

from __future__ import annotations

import numpy as np

from metrics.ngrams import Corpus

ORDERS = 4
SMALL, TINY = 1e-9, 1e-15  # the toolkit's own


def bleu_statistics(corpus: Corpus) -> np.ndarray:
    """(N, 10): for each image 4 numbers of matching n-grams, 4 of n-grams, its length, and the
    closest reference length (the shorter of two equally close)."""
    count = len(corpus.hypotheses)
    statistics = np.zeros((count, 2 * ORDERS + 2))
    lengths = corpus.lengths[:count]
    for n, (order, (mine, theirs)) in enumerate(zip(corpus.counts, corpus.shared, strict=True)):
        # The most that any one reference of the image has of each n-gram of the hypothesis.
        most = np.zeros(corpus.first_of_references(order), dtype=np.int64)
        np.maximum.at(most, mine, order.count[theirs])
        matches = np.minimum(order.count[:len(most)], most)
        statistics[:, n] = np.bincount(order.caption[:len(most)], matches, minlength=count)
        statistics[:, ORDERS + n] = np.maximum(lengths - n, 0)
    statistics[:, -2] = lengths
    owner, length = corpus.image[count:], corpus.lengths[count:]
    base = length.max(initial=0) + 1  # distance and length of a reference as one number
    closest = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(closest, owner, np.abs(length - lengths[owner]) * base + length)
    statistics[:, -1] = closest % base
    return statistics


def bleu(statistics: np.ndarray) -> np.ndarray:
    """(…, 10) statistics, of an image or summed over a corpus -> (…, 4) BLEU-1 … BLEU-4."""
    precision = (statistics[..., :ORDERS] + TINY) / (statistics[..., ORDERS:-2] + SMALL)
    score = np.cumprod(precision, axis=-1) ** (1 / np.arange(1, ORDERS + 1))
    ratio = (statistics[..., -2:-1] + TINY) / (statistics[..., -1:] + SMALL)
    with np.errstate(over="ignore", divide="ignore"):
        return score * np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
