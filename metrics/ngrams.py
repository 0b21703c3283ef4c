"""N-grams of many captions at once, as integers: what CIDEr and BLEU both count (numpy)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np


@dataclass
class NgramCounts:
    """How often each n-gram of one order occurs in each caption.

    Entry k says that caption ``caption[k]`` holds n-gram ``ngram[k]`` ``count[k]`` times; entries
    are sorted by caption, then by n-gram. ``size`` is the number of distinct n-grams.
    """

    caption: np.ndarray
    ngram: np.ndarray
    count: np.ndarray
    size: int


def count_ngrams(captions: Sequence[Sequence[str]], orders: int = 4) -> list[NgramCounts]:
    """Counts for n = 1 … ``orders`` over tokenized captions, which are numbered in order."""
    lengths = np.fromiter(map(len, captions), dtype=np.int64, count=len(captions))
    vocabulary: dict[str, int] = {}
    tokens = np.fromiter(
        (vocabulary.setdefault(token, len(vocabulary)) for token in chain.from_iterable(captions)),
        dtype=np.int64, count=int(lengths.sum()))
    owner = np.repeat(np.arange(len(captions)), lengths)
    starts = np.arange(len(tokens))  # where each n-gram begins
    ids = tokens
    counts = []
    for order in range(1, orders + 1):
        if order > 1:  # the (n-1)-gram that begins here, and the token after it in this caption
            longer = starts + order - 1 < len(tokens)
            longer[longer] = owner[starts[longer] + order - 1] == owner[starts[longer]]
            starts, ids = starts[longer], ids[longer]
            pairs = ids * max(len(vocabulary), 1) + tokens[starts + order - 1]
            ids = np.unique(pairs, return_inverse=True)[1].reshape(-1)
        size = int(ids.max(initial=-1)) + 1
        keys, occurrences = np.unique(owner[starts] * max(size, 1) + ids, return_counts=True)
        caption, ngram = np.divmod(keys, max(size, 1))
        counts.append(NgramCounts(caption, ngram, occurrences, size))
    return counts


@dataclass
class Corpus:
    """N tokenized hypotheses and their references, with what CIDEr and BLEU count in them.

    Captions are numbered: the hypotheses first, then all references, image by image. ``image`` is
    the image of each.
    """

    hypotheses: Sequence[Sequence[str]]
    references: Sequence[Sequence[Sequence[str]]]

    def __post_init__(self) -> None:
        images = np.arange(len(self.hypotheses))
        captions = [*self.hypotheses, *chain.from_iterable(self.references)]
        self.image = np.concatenate([images, np.repeat(images, list(map(len, self.references)))])
        self.counts = count_ngrams(captions)


def lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """``values`` at the places of ``wanted`` in the sorted ``keys``; 0 where it is not there."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=values.dtype)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
