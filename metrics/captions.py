"""All caption metrics of a set of predictions, tokenized once, each with a bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from metrics.bleu import ORDERS, bleu, bleu_statistics
from metrics.cider import cider
from metrics.ngrams import Corpus
from metrics.ptb import tokenize_all
from metrics.rouge import rouge_l

NAMES = ("CIDEr", *(f"BLEU-{n + 1}" for n in range(ORDERS)), "ROUGE-L")
OPEN_ENDS = {("a",), ("an",), ("of",), ("in",), ("on",), ("the",), ("with",), ("and",), ("to",), ()}


def score_captions(
    predictions: Sequence[str], references: Sequence[Sequence[str]], bootstrap: int = 0,
    seed: int = 0,
) -> tuple[dict[str, float], dict[str, list[float]], np.ndarray]:
    """(overall, 95 % intervals, per image (N, 6)) of N raw captions; columns are ``NAMES``.

    Intervals are percentiles over ``bootstrap`` resamples of the images ({} for 0); BLEU is
    computed again from each resample's counts, CIDEr keeps the document frequencies of the whole.
    Raises ValueError for fewer than two images (see ``cider``).
    """
    everything = tokenize_all([*predictions, *(ref for refs in references for ref in refs)])
    count = len(predictions)
    ends = count + np.cumsum([len(refs) for refs in references])
    starts = [count, *ends[:-1]]
    corpus = Corpus(everything[:count],
                    [everything[a:b] for a, b in zip(starts, ends, strict=True)])
    statistics, each_cider, each_rouge = bleu_statistics(corpus), cider(corpus), rouge_l(corpus)
    per_image = np.column_stack([each_cider, bleu(statistics), each_rouge])

    def overall(weights: np.ndarray) -> np.ndarray:  # (…, N) how often each image counts -> (…, 6)
        mean = weights / weights.sum(-1, keepdims=True)
        return np.concatenate([(mean @ each_cider)[..., None], bleu(weights @ statistics),
                               (mean @ each_rouge)[..., None]], axis=-1)

    scores = dict(zip(NAMES, overall(np.ones(count)).tolist(), strict=True))
    scores["CIDEr"], scores["ROUGE-L"] = float(each_cider.mean()), float(each_rouge.mean())
    if not bootstrap:
        return scores, {}, per_image
    random = np.random.default_rng(seed)
    resampled = overall(random.multinomial(count, np.full(count, 1 / count), size=bootstrap))
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    intervals = {name: [a, b] for name, a, b in
                 zip(NAMES, low.tolist(), high.tolist(), strict=True)}
    return scores, intervals, per_image


def describe(texts: Sequence[str], training: Sequence[str] | None = None) -> dict[str, float]:
    """What captions read like: words, how many are distinct, how many break off after a word that
    ends no sentence, and how many stand among the ``training`` captions word for word."""
    words = [tuple(tokens) for tokens in tokenize_all(texts)]
    count = max(len(words), 1)
    about = {"mean_words": sum(map(len, words)) / count,
             "distinct_captions": len(set(words)),
             "distinct_words": len(set(chain.from_iterable(words))),
             "broken_off": sum(tokens[-1:] in OPEN_ENDS for tokens in words) / count}
    if training is not None:
        known = {tuple(tokens) for tokens in tokenize_all(training)}
        about["copied_from_training"] = sum(tokens in known for tokens in words) / count
    return about
