"""N-grams of many captions at once, as integers: what CIDEr and BLEU both count (numpy)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count

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


def count_ngrams(tokens: np.ndarray, lengths: np.ndarray, orders: int = 4) -> list[NgramCounts]:
    """Counts for n = 1 … ``orders`` over captions, which are numbered in order.

    ``tokens`` has the numbers (0 or more) of all captions' tokens, ``lengths`` how many tokens
    each caption has.
    """
    vocabulary = int(tokens.max(initial=-1)) + 1
    owner = np.repeat(np.arange(len(lengths)), lengths)
    left = np.repeat(lengths.cumsum(), lengths) - np.arange(len(tokens))  # tokens from here on
    ids, size = tokens.copy(), vocabulary  # of the n-gram that begins at each token
    counts = []
    for order in range(1, orders + 1):
        starts = np.flatnonzero(left >= order)
        if order > 1:  # the (n-1)-gram that begins there, and the token after it
            pairs = ids[starts] * vocabulary + tokens[starts + order - 1]
            ids[starts] = np.unique(pairs, return_inverse=True)[1].reshape(-1)
            size = int(ids[starts].max(initial=-1)) + 1
        keys, occurrences = np.unique(owner[starts] * size + ids[starts], return_counts=True)
        caption, ngram = np.divmod(keys, max(size, 1))
        counts.append(NgramCounts(caption, ngram, occurrences, size))
    return counts


@dataclass
class Corpus:
    """N tokenized hypotheses and their references, as numbers, with what CIDEr and BLEU count.

    Captions are numbered: the hypotheses first, then all references, image by image. ``image`` is
    the image of each, ``lengths`` its number of tokens; ``tokens`` are the numbers of the tokens of
    all captions. ``shared`` has, for each order of ``counts``, two arrays of entries: pairs of one
    n-gram in an image's hypothesis and in one of its references.
    """

    hypotheses: Sequence[Sequence[str]]
    references: Sequence[Sequence[Sequence[str]]]

    def __post_init__(self) -> None:
        images = np.arange(len(self.hypotheses))
        captions = [*self.hypotheses, *chain.from_iterable(self.references)]
        self.image = np.concatenate([images, np.repeat(images, list(map(len, self.references)))])
        self.lengths = np.fromiter(map(len, captions), np.int64, len(captions))
        numbers = defaultdict(count().__next__)  # a new word gets the next one
        self.tokens = np.fromiter(map(numbers.__getitem__, chain.from_iterable(captions)), np.int64,
                                  self.lengths.sum())
        self.counts = count_ngrams(self.tokens, self.lengths)
        self.shared = [self._shared(order) for order in self.counts]

    def first_of_references(self, order: NgramCounts) -> int:
        """The number of the first entry that is of a reference."""
        return np.searchsorted(order.caption, len(self.hypotheses))

    def _shared(self, order: NgramCounts) -> tuple[np.ndarray, np.ndarray]:
        first = self.first_of_references(order)
        keys = self.image[order.caption] * order.size + order.ngram
        if not first:
            return np.zeros(0, int), np.zeros(0, int)
        place = np.minimum(np.searchsorted(keys[:first], keys[first:]), first - 1)
        both = np.flatnonzero(keys[place] == keys[first:])
        return place[both], first + both

    def padded(self, captions: slice) -> np.ndarray:
        """The tokens of ``captions``, (captions, longest), each row filled up with -1."""
        start, stop, _ = captions.indices(len(self.lengths))
        lengths, before = self.lengths[start:stop], self.lengths[:start].sum()
        rows = np.full((len(lengths), lengths.max(initial=0)), -1, dtype=np.int32)
        rows[np.arange(rows.shape[1]) < lengths[:, None]] = \
            self.tokens[before:before + lengths.sum()]
        return rows
