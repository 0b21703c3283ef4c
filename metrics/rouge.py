"""ROUGE-L (Lin 2004, Sec. 3) as the COCO caption toolkit computes it: beta 1.2, and the best
precision and the best recall over the references, which may come from different ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metrics.ngrams import Corpus

WORD = 64  # bits


def rouge_l(corpus: Corpus, beta: float = 1.2) -> np.ndarray:
    """(N,) scores of N hypotheses; the corpus score is their mean."""
    count = len(corpus.hypotheses)
    owner, own_length, length = corpus.image[count:], corpus.lengths[:count], corpus.lengths[count:]
    common = longest_common(corpus.padded(slice(count)), corpus.padded(slice(count, None)), owner)
    # The toolkit splits at single spaces, so an empty caption is one empty token.
    common[(own_length[owner] == 0) & (length == 0)] = 1
    best = np.zeros((2, count))
    np.maximum.at(best[0], owner, common / np.maximum(own_length, 1)[owner])  # precision
    np.maximum.at(best[1], owner, common / np.maximum(length, 1))  # recall
    both = (1 + beta**2) * best[0] * best[1]
    return np.divide(both, best[1] + beta**2 * best[0], out=np.zeros_like(both), where=both > 0)


def longest_common(first: np.ndarray, second: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """(P,) lengths of the longest common subsequence of each row of ``second`` (P, length) and row
    ``owner`` (P,) of ``first`` (M, length). Rows hold numbers of tokens, 0 or more, then -1.

    Bit-parallel (Hyyrö 2004): one machine word holds a column of the dynamic programme, a bit for
    each token of the first row; all pairs advance together by one token of the second. A pair whose
    second row has ended stays as it is.
    """
    lengths = np.count_nonzero(second >= 0, axis=1)
    order = np.argsort(-lengths, kind="stable")  # so that the pairs that advance come first
    own = np.full((len(first), WORD), -1, dtype=first.dtype)
    own[:, :first.shape[1]] = first[:, :WORD]
    own, tokens = own[owner[order]], second[order]
    running = np.searchsorted(-lengths[order], -np.arange(second.shape[1]))  # pairs at each step
    column = np.full(len(second), ~np.uint64(0))
    for step, count in enumerate(running.tolist()):
        same = own[:count] == tokens[:count, step:step + 1]  # (count, WORD)
        matches = np.packbits(same, axis=1, bitorder="little").view("<u8")[:, 0]
        kept = column[:count] & matches
        column[:count] = (column[:count] + kept) | (column[:count] - kept)
    result = np.empty(len(second), dtype=np.int64)
    result[order] = np.unpackbits((~column).view(np.uint8).reshape(-1, 8), axis=1).sum(1)
    for pair in np.flatnonzero(np.count_nonzero(first >= 0, axis=1)[owner] > WORD):
        result[pair] = _longest_common_python(*(
            row[row >= 0].tolist() for row in (first[owner[pair]], second[pair])))
    return result


def _longest_common_python(first: Sequence[int], second: Sequence[int]) -> int:
    """The same with Python's integers, which have no width, for captions of over 64 tokens."""
    positions: dict[int, int] = {}
    for place, token in enumerate(first):
        positions[token] = positions.get(token, 0) | (1 << place)
    full = (1 << len(first)) - 1
    column = full
    for token in second:
        kept = column & positions.get(token, 0)
        column = ((column + kept) | (column - kept)) & full
    return len(first) - bin(column).count("1")
