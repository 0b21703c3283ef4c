"""Caption metrics against formulas written down once more, and against the toolkit itself."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from metrics.bleu import bleu, bleu_statistics
from metrics.captions import NAMES, score_captions
from metrics.cider import cider
from metrics.ngrams import Corpus
from metrics.rouge import longest_common, rouge_l

WORDS = "a man dog red the on in grass of ball two play run with's x . and".split()


def corpus(seed, images=30, words=WORDS):
    """Random hypotheses and references; empty, repetitive and long captions among them."""
    random = np.random.default_rng(seed)

    def caption(longest):
        return [str(word) for word in random.choice(words, size=random.integers(0, longest))]

    hypotheses = [caption(15) for _ in range(images)]
    references = [[caption(20) for _ in range(random.integers(1, 6))] for _ in range(images)]
    hypotheses[0], references[1][0], hypotheses[2] = [], [], ["a"] * 12
    hypotheses[3], references[4][0] = caption(140) + ["a"] * 70, caption(120) + ["dog"] * 70
    references[5][0] = list(hypotheses[5])
    return hypotheses, references


def ngrams(tokens, n):
    return Counter(tuple(tokens[i:i + n]) for i in range(len(tokens) - n + 1))


def slow_cider(hypotheses, references):
    """Vedantam et al. 2015, Eq. 1-4, as the toolkit has them."""
    count = len(hypotheses)
    frequency = Counter(
        gram for refs in references
        for gram in {g for ref in refs for n in range(1, 5) for g in ngrams(ref, n)})
    scores = []
    for hypothesis, refs in zip(hypotheses, references, strict=True):
        total = 0.0
        for ref in refs:
            for n in range(1, 5):
                vectors = [{g: c * (math.log(count) - math.log(max(1, frequency[g])))
                            for g, c in ngrams(tokens, n).items()} for tokens in (hypothesis, ref)]
                product = sum(min(value, vectors[1].get(g, 0)) * vectors[1].get(g, 0)
                              for g, value in vectors[0].items())
                norms = math.prod(math.sqrt(sum(v * v for v in vector.values()))
                                  for vector in vectors)
                delta = sum(ngrams(hypothesis, 2).values()) - sum(ngrams(ref, 2).values())
                total += (product / norms if norms else product) * math.exp(-delta**2 / 72) / 4
        scores.append(10 * total / len(refs))
    return scores


def slow_longest(first, second):
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, j in itertools.product(range(len(first)), range(len(second))):
        table[i + 1][j + 1] = (table[i][j] + 1 if first[i] == second[j]
                               else max(table[i][j + 1], table[i + 1][j]))
    return table[-1][-1]


@pytest.mark.parametrize("seed", range(4))
def test_cider_equals_the_formula(seed):
    hypotheses, references = corpus(seed)
    np.testing.assert_allclose(cider(Corpus(hypotheses, references)),
                               slow_cider(hypotheses, references), atol=1e-10)


def test_cider_on_two_images_and_on_one():  # PEERS: 0.0 on one image, 10.0 on two
    same = [["a", "red", "ball", "here"], ["two", "dogs", "play", "now"]]
    np.testing.assert_allclose(cider(Corpus(same, [[caption] for caption in same])), [10, 10])
    with pytest.raises(ValueError, match="two images"):
        cider(Corpus(same[:1], [[same[0]]]))


def test_longest_common_subsequences_of_every_length():
    random = np.random.default_rng(0)
    pairs = [([str(w) for w in random.integers(0, 4, size=a)],
              [str(w) for w in random.integers(0, 4, size=b)])
             for a in (1, 2, 7, 63, 64, 65, 130) for b in (1, 5, 64, 100)]
    corpus = Corpus([first for first, _ in pairs], [[second] for _, second in pairs])
    ours = longest_common(corpus.padded(slice(len(pairs))), corpus.padded(slice(len(pairs), None)),
                          np.arange(len(pairs)))
    assert ours.tolist() == [slow_longest(*pair) for pair in pairs]


def test_bleu_by_hand():
    """Papineni et al. 2002, Sec. 2.1: seven times `the` matches twice."""
    statistics = bleu_statistics(Corpus([["the"] * 7], [["the cat is on the mat".split(),
                                                         "there is a cat on the mat".split()]]))
    assert statistics[0, 0] == 2 and statistics[0, 4] == 7 and statistics[0, -1] == 7
    assert bleu(statistics)[0, 0] == pytest.approx(2 / 7)
    short = bleu(bleu_statistics(Corpus([["a", "b"]], [["a b c".split()]])))
    assert short[0, 0] == pytest.approx(math.exp(1 - 3 / 2))


def test_the_closest_reference_length_is_the_shorter_of_two():
    statistics = bleu_statistics(Corpus([["x"] * 5], [[["x"] * 7, ["x"] * 3]]))
    assert statistics[0, -1] == 3


@pytest.mark.parametrize("seed", range(3))
def test_everything_equals_the_toolkit_image_by_image(seed):
    """pycocoevalcap's scorers themselves need no Java; only its tokenizer does."""
    bleu_scorer = pytest.importorskip("pycocoevalcap.bleu.bleu_scorer")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    hypotheses, references = corpus(10 + seed)
    gts = {k: [" ".join(ref) for ref in refs] for k, refs in enumerate(references)}
    res = {k: [" ".join(hypothesis)] for k, hypothesis in enumerate(hypotheses)}
    overall, each = Cider().compute_score(gts, res)
    np.testing.assert_allclose(cider(Corpus(hypotheses, references)), each, atol=1e-9)
    assert cider(Corpus(hypotheses, references)).mean() == pytest.approx(overall, abs=1e-9)
    overall, each = Rouge().compute_score(gts, res)
    np.testing.assert_allclose(rouge_l(Corpus(hypotheses, references)), each, atol=1e-9)
    scorer = bleu_scorer.BleuScorer(n=4)
    for key in gts:
        scorer += (res[key][0], gts[key])
    overall, each = scorer.compute_score(option="closest", verbose=0)
    statistics = bleu_statistics(Corpus(hypotheses, references))
    np.testing.assert_allclose(bleu(statistics), np.transpose(each), atol=1e-9)
    np.testing.assert_allclose(bleu(statistics.sum(0)), overall, atol=1e-9)


def test_score_captions_tokenizes_and_averages():
    # PEERS: one capital letter or a full stop moves CIDEr if tokenization differs
    predictions = ["A man's dog runs.", "two red balls", "grass"]
    references = [["a man's dog runs", "the dog"], ["Two red balls!"], ["some grass here"]]
    overall, intervals, per_image = score_captions(predictions, references)
    tidy = score_captions(["a man 's dog runs", "two red balls", "grass"],
                          [["a man 's dog runs", "the dog"], ["two red balls"],
                           ["some grass here"]])
    assert overall == tidy[0] and intervals == {}
    assert per_image.shape == (3, len(NAMES)) and list(overall) == list(NAMES)
    assert overall["CIDEr"] == pytest.approx(per_image[:, 0].mean())
    assert overall["ROUGE-L"] == pytest.approx(per_image[:, -1].mean())


def test_the_bootstrap_is_seeded_and_covers_the_score():
    hypotheses, references = corpus(3, images=80)
    predictions = [" ".join(tokens) for tokens in hypotheses]
    texts = [[" ".join(ref) for ref in refs] for refs in references]
    overall, intervals, per_image = score_captions(predictions, texts, bootstrap=400, seed=1)
    assert intervals == score_captions(predictions, texts, bootstrap=400, seed=1)[1]
    assert intervals != score_captions(predictions, texts, bootstrap=400, seed=2)[1]
    for name in NAMES:
        assert intervals[name][0] < overall[name] < intervals[name][1]
    half = (intervals["CIDEr"][1] - intervals["CIDEr"][0]) / 2
    assert half == pytest.approx(1.96 * per_image[:, 0].std() / math.sqrt(80), rel=0.2)
