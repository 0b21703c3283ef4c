"""Two systems on the same images: is their difference more than chance?"""

from __future__ import annotations

import numpy as np

from metrics.clipscore import mean_interval


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p-value of McNemar's exact test (McNemar 1947).

    ``only_first`` and ``only_second`` count the images that only one of two classifiers gets right.
    If both were equally good, each of these would be one or the other with probability 1/2; p is
    the probability of counts at least as far apart.
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    ways = term = 1  # binomial coefficients "count choose k", exact integers
    for k in range(fewer):
        term = term * (count - k) // (k + 1)
        ways += term
    return min(2 * ways / 2**count, 1.0)


def accuracy_gap(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """(accuracy of ``first`` - that of ``second``, McNemar's p) of two classifiers' right answers
    (N,) bool to the same N images."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return (only_first - only_second) / len(first), mcnemar(only_first, only_second)


def difference(
    first: np.ndarray, second: np.ndarray, resamples: int, seed: int = 0
) -> tuple[float, list[float]]:
    """(mean of ``first`` - ``second``, its 95 % interval) of two systems' values (N,) for the same
    N images: the paired bootstrap (Efron and Tibshirani 1993), which resamples images."""
    values = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    return float(values.mean()), mean_interval(values, resamples, seed)
