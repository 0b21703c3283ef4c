"""Accuracy of a classifier, with its interval, by class, and as a confusion matrix (numpy)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


def wilson_interval(correct: float, total: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927), as fractions.

    Unlike the normal approximation it stays inside [0, 1] and is right for few images.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"{correct} of {total} is no proportion")
    share = correct / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def confusions(targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """(pairs, 3): the true class, the predicted one, and how often that occurs, for each pair that
    does. A matrix of all pairs would grow with the square of the classes."""
    pairs, counts = np.unique(np.stack([targets, predictions], 1), axis=0, return_counts=True)
    return np.column_stack([pairs, counts])


def classes_to_show(confused: np.ndarray, most: int) -> np.ndarray:
    """The classes that occur in ``confusions``; where these are more than ``most``, only those that
    are taken for another or another for them, the ``most`` frequent of these. In ascending order.
    """
    occurring = np.unique(confused[:, :2])
    if len(occurring) <= most:
        return occurring
    wrong = confused[confused[:, 0] != confused[:, 1]]
    errors = sum(np.bincount(wrong[:, side], wrong[:, 2], occurring.max() + 1) for side in (0, 1))
    shown = occurring[np.argsort(-errors[occurring], kind="stable")][:most]
    return np.sort(shown[errors[shown] > 0] if len(wrong) else shown)


def confusion_matrix(confused: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(len(classes), len(classes)) counts among ``classes``, which are in ascending order: row the
    true class, column the predicted one."""
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    inside = confused[np.isin(confused[:, :2], classes).all(1)]
    rows, columns = np.searchsorted(classes, inside[:, :2]).T
    matrix[rows, columns] = inside[:, 2]
    return matrix


def summarize(probabilities: np.ndarray, targets: np.ndarray) -> dict:
    """Loss (mean negative log-likelihood, nats), correct, total, accuracy and its interval, and
    the balanced accuracy: the mean over the classes that occur of each one's accuracy.

    ``probabilities`` (N, classes), rows sum to 1; ``targets`` (N,) class indices.
    """
    chosen = probabilities[np.arange(len(targets)), targets]
    right = probabilities.argmax(1) == targets
    correct, total = int(right.sum()), len(targets)
    low, high = wilson_interval(correct, total)
    return {
        "loss": float(-np.log(np.maximum(chosen, 1e-12)).mean()),
        "correct": correct,
        "total": total,
        "accuracy": correct / total,
        "accuracy_95": [low, high],
        "balanced_accuracy": float(np.mean([right[targets == c].mean()
                                            for c in np.unique(targets)])),
    }


def confident_errors(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Indices of the wrong predictions, the most probable first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != targets)
    return wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")]


class Compared(NamedTuple):
    """A model among others on the same images."""

    share: float
    interval: tuple[float, float]  # of 95 % (Wilson)
    behind: float  # its share minus the best one, 0 or less
    worse: bool  # whether its interval lies below that of the best one


def compare(results: list[tuple[float, int] | None]) -> list[Compared | None]:
    """(correct, total) of several models, or None. ``correct`` may be a mean over seeds."""
    known = [result for result in results if result]
    best = max(known, key=lambda result: result[0] / result[1], default=None)
    rows = []
    for result in results:
        if result is None:
            rows.append(None)
            continue
        share, interval = result[0] / result[1], wilson_interval(*result)
        rows.append(Compared(share, interval, share - best[0] / best[1],
                             wilson_interval(*best)[0] > interval[1]))
    return rows
