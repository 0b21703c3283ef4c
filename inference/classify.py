"""Classifiers over a folder of photos: one of them, or the mean of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from utils import UserError

import numpy as np
import torch

from data.batches import Unreadable, all_rows, photo_rows
from data.compute import Compute, autocast
from data.photos import report_unreadable
from data.transform import Transforms
from models.checkpoint import check_output
from models.classifier import Classifier, open_classifier


def load_classifiers(sources: Sequence[str | Path]) -> list[Classifier]:
    """The classifiers of ``sources``: files, ``hf:owner/name``, or timm's names with its weights.

    Raises UserError where the first has no labels, or where not all have the same labels in the
    same order.
    """
    classifiers = [replace(open_classifier(source, pretrained=True), source=str(source))
                   for source in sources]
    first = classifiers[0]
    if not first.classes:
        raise UserError(f"{sources[0]} has no classes; train --model {sources[0]} gives it yours")
    for source, classifier in zip(sources, classifiers, strict=True):
        if classifier.classes != first.classes:
            raise UserError(f"{source} and {sources[0]} have different labels; an ensemble needs "
                            "the same labels in the same order")
    return classifiers


def classify(
    classifier: Classifier, paths: Sequence[Path], compute: Compute, title: str = "classify"
) -> tuple[list[Path], np.ndarray, Unreadable]:
    """(readable paths, their (N, classes) float32 probabilities, the other paths with reasons)."""
    transform, work = probability_work([classifier], compute)
    blocks = photo_rows(transform, paths, compute, work, title)
    readable, probabilities, unreadable = all_rows(blocks, paths, compute)
    if not readable:
        probabilities = np.zeros((0, len(classifier.classes)), np.float32)
    return readable, probabilities, unreadable


def classify_with_all(
    classifiers: Sequence[Classifier], paths: Sequence[Path], compute: Compute
) -> tuple[list[Path], np.ndarray, Unreadable]:
    """As ``classify``, with the mean of the classifiers' probabilities.

    Unreadable files are named on stderr. Raises UserError where no file is readable.
    """
    transform, work = probability_work(classifiers, compute)
    blocks = photo_rows(transform, paths, compute, work, "classify")
    readable, probabilities, unreadable = all_rows(blocks, paths, compute)
    report_unreadable(readable, unreadable)
    return readable, probabilities, unreadable


def probability_work(classifiers: Sequence[Classifier], compute: Compute) -> tuple[
        Transforms, Callable[[Sequence[torch.Tensor]], np.ndarray]]:
    """What ``data.batches.photo_rows`` is given: a transform, and a function that makes of a batch
    the mean of the classifiers' probabilities (B, classes) float32."""
    models = [classifier.model.to(compute.device).eval() for classifier in classifiers]

    def work(images: Sequence[torch.Tensor]) -> np.ndarray:
        probabilities = []
        for classifier, model, batch in zip(classifiers, models, images, strict=True):
            with torch.inference_mode(), autocast(compute.device, compute.precision):
                logits = model(batch)
            check_output(logits, classifier.source)
            probabilities.append(logits.float().softmax(1).cpu().numpy())
        return np.mean(probabilities, axis=0)

    return Transforms(tuple(classifier.transform for classifier in classifiers)), work
