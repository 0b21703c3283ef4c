"""Paired statistics, against formulas that are written in another way."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from metrics.paired import difference, mcnemar


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (3, 3), (2, 7), (9, 1), (0, 12)])
def test_mcnemar_equals_the_count_of_all_outcomes(counts):
    total, gap = sum(counts), abs(counts[0] - counts[1])
    outcomes = [sum(signs) for signs in product((-1, 1), repeat=total)]
    assert mcnemar(*counts) == pytest.approx(
        sum(abs(outcome) >= gap for outcome in outcomes) / len(outcomes))


def test_mcnemar_of_many_images_equals_the_binomial_sum():
    tail = sum(math.comb(1100, k) for k in range(501)) / 2**1100
    assert mcnemar(600, 500) == mcnemar(500, 600) == pytest.approx(2 * tail)


def test_the_interval_of_a_difference_is_paired():
    random = np.random.default_rng(1)
    shared = random.normal(0, 10, 400)  # as much as the images differ, both systems share it
    first, second = shared + 1, shared + random.normal(0, 1, 400)
    mean, (low, high) = difference(first, second, 2000)
    gaps = first - second
    half = 1.96 * gaps.std(ddof=1) / math.sqrt(400)
    assert mean == pytest.approx(gaps.mean())
    assert (low, high) == pytest.approx((gaps.mean() - half, gaps.mean() + half), abs=0.02)
