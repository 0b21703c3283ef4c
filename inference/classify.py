"""Classifiers over a folder of photos: one of them, or the mean of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils import UserError

import numpy as np
import torch

from data.batches import normalized_batches
from data.compute import Compute, autocast
from data.photos import report_unreadable
from models.checkpoint import check_output
from models.classifier import Classifier, open_classifier

Unreadable = list[tuple[Path, str]]  # files that could not be read, and why


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
    model = classifier.model.to(compute.device).eval()
    readable, rows, unreadable = [], [], []
    for names, images in normalized_batches(
            classifier.transform, paths, compute, unreadable, title):
        with torch.inference_mode(), autocast(compute.device, compute.precision):
            logits = model(images)
        check_output(logits, classifier.source)
        rows.append(logits.float().softmax(1).cpu().numpy())
        readable += names
    none = np.zeros((0, len(classifier.classes)), np.float32)
    return readable, np.concatenate([none, *rows]), unreadable


def classify_with_each(
    classifiers: Sequence[Classifier], paths: Sequence[Path], compute: Compute
) -> tuple[list[Path], np.ndarray, Unreadable]:
    """As ``classify``, with the probabilities of each classifier, (classifiers, N, classes); their
    mean over the first axis is the ensemble's.

    Unreadable files are named on stderr. Raises UserError where no file is readable.
    """
    results = [classify(classifier, paths, compute) for classifier in classifiers]
    readable, _, unreadable = results[0]
    report_unreadable(readable, unreadable)
    return readable, np.stack([probabilities for _, probabilities, _ in results]), unreadable
