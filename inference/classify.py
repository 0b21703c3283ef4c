"""Classifiers over a folder of photos: one of them, or the mean of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils import UserError

import numpy as np
import torch

from data.batches import Unreadable, all_rows, photo_rows
from data.compute import Compute
from data.photos import report_unreadable
from data.transform import Transforms
from models.checkpoint import check_output
from models.classifier import Classifier, open_classifier
from models.forward import Forward


def load_classifiers(
    sources: Sequence[str | Path], weights: Sequence[str | Path] | None = None,
    averaged: bool = False, names: str | Path | None = None,
) -> list[Classifier]:
    """The classifiers of ``sources``: files, ``hf:owner/name``, or timm's names with its weights,
    or with ``weights``, a file for each of them, or several for one.

    ``averaged`` takes the averaged weights (EMA) in the files; ``names`` is a file that says what
    the classes are called. Raises UserError where the first has no labels, or where not all have
    the same labels in the same order.
    """
    if weights and len(sources) == 1:
        sources = [*sources] * len(weights)
    if weights and len(weights) != len(sources):
        raise UserError(f"{len(weights)} --weights for {len(sources)} models; give a file for each")
    files = weights or [None] * len(sources)
    classifiers = [replace(open_classifier(source, not file, file, averaged),
                           source=str(file or source)).named(names, file)
                   for source, file in zip(sources, files, strict=True)]
    first = classifiers[0]
    if not first.classes:
        raise UserError(f"{first.source} has no classes; train --model {sources[0]}"
                        f"{f' --weights {files[0]}' * bool(files[0])} gives it yours")
    for classifier in classifiers:
        if classifier.classes != first.classes:
            raise UserError(f"{classifier.source} and {first.source} have different labels; an "
                            "ensemble needs the same labels in the same order")
    return classifiers


def classify(
    classifier: Classifier, paths: Sequence[Path], compute: Compute, title: str = "classify"
) -> tuple[list[Path], np.ndarray, Unreadable]:
    """(readable paths, their (N, classes) float32 probabilities, the other paths with reasons)."""
    work = Probabilities([classifier], compute)
    blocks = photo_rows(work.transform, paths, compute, work, title)
    readable, probabilities, unreadable = all_rows(blocks, paths, compute)
    if not readable:
        probabilities = np.zeros((0, 1, len(classifier.classes)), np.float32)
    return readable, probabilities[:, 0], unreadable


def classify_with_each(
    work: Probabilities, paths: Sequence[Path], compute: Compute
) -> tuple[list[Path], np.ndarray, Unreadable]:
    """As ``classify``, with the probabilities of each classifier, (classifiers, N, classes); their
    mean over the first axis is the ensemble's.

    Unreadable files are named on stderr. Raises UserError where no file is readable.
    """
    blocks = photo_rows(work.transform, paths, compute, work, "classify")
    readable, probabilities, unreadable = all_rows(blocks, paths, compute)
    report_unreadable(readable, unreadable)
    return readable, probabilities.swapaxes(0, 1), unreadable


class Probabilities:
    """What ``data.batches.photo_rows`` is given: a transform, and as a function what makes of a
    batch the probabilities of each classifier, (B, classifiers, classes) float32."""

    def __init__(self, classifiers: Sequence[Classifier], compute: Compute) -> None:
        self.transform = Transforms(tuple(classifier.transform for classifier in classifiers))
        self._sources = [classifier.source for classifier in classifiers]
        self._forwards = [Forward(classifier.model, compute) for classifier in classifiers]

    def __call__(self, images: Sequence[torch.Tensor]) -> np.ndarray:
        probabilities = []
        for source, forward, batch in zip(self._sources, self._forwards, images, strict=True):
            logits = forward(batch)
            check_output(logits, source)
            probabilities.append(logits.softmax(1).cpu().numpy())
        return np.stack(probabilities, axis=1)

    @property
    def compile_seconds(self) -> float:
        """What ``--compile`` took so far, the first batch included."""
        return sum(forward.compile_seconds for forward in self._forwards)
