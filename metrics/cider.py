"""CIDEr-D (Vedantam et al. 2015, Sec. 5) as the COCO caption toolkit computes it, without Java.

n = 1 … 4, sigma 6, document frequencies from the references, times 10. As in the toolkit, the
length that the Gaussian penalty compares counts bigrams, not words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from metrics.ngrams import Corpus

ORDERS = 4


def cider(corpus: Corpus, sigma: float = 6.0) -> np.ndarray:
    """(N,) scores of N hypotheses, each against its image's references; the corpus score is their
    mean.

    Raises ValueError for fewer than two images: an n-gram that every image has weighs nothing, so
    one image alone always scores 0.
    """
    count, image, orders = len(corpus.hypotheses), corpus.image, corpus.counts
    if count < 2:
        raise ValueError("CIDEr needs two images or more: its weights are relative frequencies "
                         "over images, and on one image all of them are 0")
    similarity = np.zeros(len(image))  # of each reference with its image's hypothesis
    for order, (mine, theirs) in zip(orders, corpus.shared, strict=True):
        references = slice(corpus.first_of_references(order), None)
        seen = np.sort(image[order.caption[references]] * order.size + order.ngram[references])
        first = np.diff(seen, prepend=-1) > 0  # an n-gram counts once an image
        frequency = np.bincount(seen[first] % max(order.size, 1), minlength=order.size)
        idf = np.log(count) - np.log(np.maximum(frequency, 1))
        weight = order.count * idf[order.ngram]
        norm = np.sqrt(np.bincount(order.caption, weight**2, minlength=len(image)))
        product = np.bincount(
            order.caption[theirs], np.minimum(weight[mine], weight[theirs]) * weight[theirs],
            minlength=len(image)).astype(float)  # of nothing, integers
        norms = norm * norm[image]
        similarity += np.divide(product, norms, out=product, where=norms != 0)
    bigrams = np.bincount(orders[1].caption, orders[1].count, minlength=len(image))
    similarity *= np.exp(-((bigrams[image] - bigrams) ** 2) / (2 * sigma**2))
    total = np.bincount(image[count:], similarity[count:], minlength=count)
    return 10 * total / len(orders) / np.array([len(refs) for refs in corpus.references])


class CiderReward:
    """CIDEr of one caption at a time against references that are known beforehand, to train on.

    Document frequencies are those of ``references``, all the images'. ``end`` closes every caption,
    as one word more: without it, a caption broken off after "on a" pays nothing for what is
    missing, and training on CIDEr teaches to break off.
    """

    def __init__(
        self, references: Sequence[Sequence[Sequence[str]]], end: str | None = "<end>",
        sigma: float = 6.0,
    ) -> None:
        self.references, self.sigma = references, sigma
        self.end = [end] if end else []
        frequency = Counter()
        for captions in references:
            frequency.update({ngram for caption in captions for ngram in self._ngrams(caption)})
        self.rarest = math.log(max(len(references), 1))
        self.idf = {ngram: self.rarest - math.log(n) for ngram, n in frequency.items()}

    def __call__(self, image: int, captions: Sequence[Sequence[str]]) -> list[float]:
        """The score of each of an image's tokenized ``captions``."""
        references = [self._weigh(caption) for caption in self.references[image]]
        return [self._score(self._weigh(caption), references) for caption in captions]

    def _score(self, mine, references) -> float:
        total = 0.0
        for theirs in references:
            similarity = 0.0
            for a, b, norm_a, norm_b in zip(mine[0], theirs[0], mine[1], theirs[1], strict=True):
                if norm_a and norm_b:
                    similarity += sum(min(weight, b[ngram]) * b[ngram]
                                      for ngram, weight in a.items() if ngram in b
                                      ) / (norm_a * norm_b)
            total += similarity * math.exp(-((mine[2] - theirs[2]) ** 2) / (2 * self.sigma**2))
        return 10 * total / ORDERS / len(references)

    def _weigh(self, caption: Sequence[str]) -> tuple[list[dict], list[float], int]:
        """Each order's n-gram weights, their norms, and how many bigrams there are."""
        vectors: list[dict] = [{} for _ in range(ORDERS)]
        for ngram, count in self._ngrams(caption).items():
            vectors[len(ngram) - 1][ngram] = count * self.idf.get(ngram, self.rarest)
        norms = [math.sqrt(sum(weight * weight for weight in vector.values()))
                 for vector in vectors]
        return vectors, norms, max(len(caption) + len(self.end) - 1, 0)

    def _ngrams(self, caption: Sequence[str]) -> Counter:
        words = [*caption, *self.end]
        return Counter(tuple(words[i:i + n]) for n in range(1, ORDERS + 1)
                       for i in range(len(words) - n + 1))
