"""CIDEr-D (Vedantam et al. 2015, Sec. 5) as the COCO caption toolkit computes it, without Java.

n = 1 … 4, sigma 6, document frequencies from the references, times 10. As in the toolkit, the
length that the Gaussian penalty compares counts bigrams, not words.
"""

from __future__ import annotations

import numpy as np

from metrics.ngrams import Corpus, lookup


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
    for order in orders:
        owner_image = image[order.caption]
        of_reference = order.caption >= count
        seen = np.unique(owner_image[of_reference] * order.size + order.ngram[of_reference])
        frequency = np.bincount(seen % order.size, minlength=order.size) if len(seen) else \
            np.zeros(order.size)
        idf = np.log(count) - np.log(np.maximum(frequency, 1))
        weight = order.count * idf[order.ngram]
        norm = np.sqrt(np.bincount(order.caption, weight**2, minlength=len(image)))
        keys = order.caption * order.size + order.ngram
        mine = lookup(keys[~of_reference], weight[~of_reference],
                      owner_image[of_reference] * order.size + order.ngram[of_reference])
        theirs = weight[of_reference]
        product = np.bincount(order.caption[of_reference], np.minimum(mine, theirs) * theirs,
                              minlength=len(image))
        norms = norm * norm[image]
        similarity += np.divide(product, norms, out=product, where=norms != 0)
    bigrams = np.bincount(orders[1].caption, orders[1].count, minlength=len(image))
    similarity *= np.exp(-((bigrams[image] - bigrams) ** 2) / (2 * sigma**2))
    total = np.bincount(image[count:], similarity[count:], minlength=count)
    return 10 * total / len(orders) / np.array([len(refs) for refs in corpus.references])
