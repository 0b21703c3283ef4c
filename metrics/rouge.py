"""ROUGE-L (Lin 2004, Sec. 3) as the COCO caption toolkit computes it: beta 1.2, and the best
precision and the best recall over the references, which may come from different ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from metrics.ngrams import Corpus


def rouge_l(corpus: Corpus, beta: float = 1.2) -> np.ndarray:
    """(N,) scores of N hypotheses; the corpus score is their mean."""
    hypotheses, references = corpus.hypotheses, list(chain.from_iterable(corpus.references))
    owner = corpus.image[len(hypotheses):]
    common = longest_common(hypotheses, references, owner)
    # The toolkit splits at single spaces, so an empty caption counts one (empty) token.
    own_length, length = (np.maximum(np.fromiter(map(len, captions), int, len(captions)), 1)
                          for captions in (hypotheses, references))
    best = np.zeros((2, len(hypotheses)))
    np.maximum.at(best[0], owner, common / own_length[owner])  # precision
    np.maximum.at(best[1], owner, common / length)  # recall
    both = (1 + beta**2) * best[0] * best[1]
    return np.divide(both, best[1] + beta**2 * best[0], out=np.zeros_like(both), where=both > 0)


def longest_common(
    firsts: Sequence[Sequence[str]], seconds: Sequence[Sequence[str]], owner: np.ndarray
) -> np.ndarray:
    """(len(seconds),) lengths of the longest common subsequence of each token list in ``seconds``
    and ``firsts[owner]``.

    Bit-parallel (Hyyrö 2004): one machine word holds a column of the dynamic programme, a bit for
    each token of the first list; all pairs advance together by one token of the second. Two empty
    lists share their one empty token, as in the toolkit.
    """
    numbers: dict[str, int] = {}
    width = np.array([len(first) for first in firsts])
    long = np.flatnonzero(width[owner] > 64)
    own = _padded([first if len(first) <= 64 else () for first in firsts], numbers, -1)
    other = _padded(seconds, numbers, -2)
    bits = np.uint64(1) << np.arange(own.shape[1], dtype=np.uint64)
    column = np.full(len(seconds), ~np.uint64(0))
    own = own[owner]
    for step in range(other.shape[1]):
        matches = np.where(own == other[:, step:step + 1], bits, np.uint64(0)).sum(1)
        kept = column & matches
        column = (column + kept) | (column - kept)
    result = np.unpackbits((~column).view(np.uint8).reshape(-1, 8), axis=1).sum(1, dtype=np.int64)
    for k in long:
        result[k] = _longest_common_python(firsts[owner[k]], seconds[k])
    return result


def _padded(rows: Sequence[Sequence[str]], numbers: dict[str, int], filler: int) -> np.ndarray:
    """Token lists as numbers, filled up to one length; an empty list holds one empty token."""
    rows = [row or ("",) for row in rows]
    lengths = np.fromiter(map(len, rows), int, len(rows))
    padded = np.full((len(rows), lengths.max(initial=1)), filler, dtype=np.int32)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = [
        numbers.setdefault(token, len(numbers)) for token in chain.from_iterable(rows)]
    return padded


def _longest_common_python(first: Sequence[str], second: Sequence[str]) -> int:
    """The same with Python's integers, which have no width, for captions of over 64 tokens."""
    positions: dict[str, int] = {}
    for place, token in enumerate(first):
        positions[token] = positions.get(token, 0) | (1 << place)
    full = (1 << len(first)) - 1
    column = full
    for token in second:
        kept = column & positions.get(token, 0)
        column = ((column + kept) | (column - kept)) & full
    return len(first) - bin(column).count("1")
