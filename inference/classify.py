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
