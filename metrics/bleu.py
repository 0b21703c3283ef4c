"""BLEU-1 … BLEU-4 (Papineni et al. 2002) as the COCO caption toolkit computes it: the closest
reference length, and its two tiny constants that keep empty captions finite."""

from __future__ import annotations

import numpy as np

from metrics.ngrams import Corpus, lookup

ORDERS = 4
SMALL, TINY = 1e-9, 1e-15  # the toolkit's own


def bleu_statistics(corpus: Corpus) -> np.ndarray:
    """(N, 10): for each image 4 numbers of matching n-grams, 4 of n-grams, its length, and the
    closest reference length (the shorter of two equally close)."""
    count, image = len(corpus.hypotheses), corpus.image
    statistics = np.zeros((count, 2 * ORDERS + 2))
    lengths = np.array([len(hypothesis) for hypothesis in corpus.hypotheses])
    for n, order in enumerate(corpus.counts):
        of_reference = order.caption >= count
        keys = image[order.caption] * order.size + order.ngram
        # The most that any one reference of the image has of each n-gram.
        found, place = np.unique(keys[of_reference], return_inverse=True)
        most = np.zeros(len(found), dtype=np.int64)
        np.maximum.at(most, place.reshape(-1), order.count[of_reference])
        matches = np.minimum(order.count[~of_reference], lookup(found, most, keys[~of_reference]))
        statistics[:, n] = np.bincount(order.caption[~of_reference], matches, minlength=count)
        statistics[:, ORDERS + n] = np.maximum(lengths - n, 0)
    statistics[:, -2] = lengths
    statistics[:, -1] = [
        min((abs(len(ref) - length), len(ref)) for ref in refs)[1]
        for length, refs in zip(lengths.tolist(), corpus.references, strict=True)]
    return statistics


def bleu(statistics: np.ndarray) -> np.ndarray:
    """(…, 10) statistics, of an image or summed over a corpus -> (…, 4) BLEU-1 … BLEU-4."""
    precision = (statistics[..., :ORDERS] + TINY) / (statistics[..., ORDERS:-2] + SMALL)
    score = np.cumprod(precision, axis=-1) ** (1 / np.arange(1, ORDERS + 1))
    ratio = (statistics[..., -2:-1] + TINY) / (statistics[..., -1:] + SMALL)
    with np.errstate(over="ignore", divide="ignore"):
        return score * np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
