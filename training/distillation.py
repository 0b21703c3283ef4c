"""Learning from teachers: knowledge distillation (Hinton et al. 2015) with consistent views.

Each teacher sees the very crop that the student is trained on, with the same colours and the same
mixing of photos (Beyer et al. 2022, Sec. 3.1), resized to its own input and normalized its own way.
The target is the mean of the teachers' probabilities. Photos without labels are learned from it
alone, as in noisy student training (Xie et al. 2020, Sec. 2). Targets belong to a crop, so they are
computed anew in each epoch; a cache of them would fix the crops too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils import UserError

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from data.compute import Compute, autocast
from data.transform import Transform
from models.checkpoint import digest
from models.classifier import Classifier, load_classifier
from models.hub import local_file

UNLABELLED = -1  # class index of a photo without a label


@dataclass(frozen=True)
class Teacher:
    """A classifier, and its share of the mean prediction."""

    file: str
    classifier: Classifier
    share: float
    digest: str  # of its tensors

    def describe(self) -> dict:
        """What the student's checkpoint keeps of it."""
        return {"file": Path(self.file).name, "digest": self.digest, "share": self.share}

    def fingerprint(self) -> str:
        """What a resumed training must find unchanged."""
        rows, cols = self.classifier.transform.size
        return f"{self.digest[:12]} (share {self.share:.3g}, {rows} × {cols} pixels)"


# --- teachers and their targets -------------------------------------------------------------------


def open_teachers(words: Sequence[str], classes: Sequence[str]) -> list[Teacher]:
    """The teachers that ``FILE`` or ``FILE=WEIGHT`` name; UserError where one has not the labels
    ``classes`` in their order."""
    files, weights = zip(*map(split_weight, words), strict=True)
    teachers = []
    for file, weight in zip(files, weights, strict=True):
        classifier = load_classifier(local_file(file) or file)
        if classifier.classes != list(classes):
            raise UserError(f"the teacher {file} has {len(classifier.classes)} labels, the training"
                            f" photos have {len(classes)}; they must be the same labels in the "
                            "same order")
        teachers.append(Teacher(file, classifier, weight / sum(weights),
                                digest(classifier.model.state_dict())))
    return teachers


def split_weight(word: str) -> tuple[str, float]:
    """``FILE=WEIGHT`` -> (FILE, WEIGHT); a file alone has the weight 1."""
    file, _, number = word.rpartition("=")
    try:
        weight = float(number)
    except ValueError:  # no weight: the = belongs to the file's name
        return word, 1.0
    if not file or Path(word).is_file():
        return word, 1.0
    if not 0 < weight < math.inf:
        raise UserError(f"--teacher {word}: the weight must be a number above 0")
    return file, weight


def view_of(images: Tensor, student: Transform, teacher: Transform) -> Tensor:
    """Images (B, 3, H, W) as the student takes them -> the same crops as the teacher takes them."""
    def channels(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=images.device).view(-1, 1, 1)

    pixels = images * channels(student.std) + channels(student.mean)  # from 0 to 1
    pixels = v2.functional.resize(pixels, list(teacher.size), v2.InterpolationMode.BICUBIC,
                                  antialias=True)
    return (pixels.clamp(0, 1) - channels(teacher.mean)) / channels(teacher.std)


def soft_targets(
    teachers: Sequence[Teacher], images: Tensor, student: Transform, temperature: float,
    compute: Compute,
) -> Tensor:
    """(B, classes): the mean of the teachers' probabilities at ``temperature``, of images
    (B, 3, H, W) as the student takes them."""
    mean = 0
    for teacher in teachers:
        view = view_of(images, student, teacher.classifier.transform)
        with torch.inference_mode(), autocast(compute.device, compute.precision):
            logits = teacher.classifier.model.to(images.device)(view)
        mean = mean + teacher.share * (logits.float() / temperature).softmax(1)
    return mean


# --- what the student learns ----------------------------------------------------------------------


def prepare_with_teachers(
    student: Classifier, teachers: Sequence[Teacher], mixup: float, temperature: float,
    compute: Compute,
) -> Callable[[list[Tensor]], tuple]:
    """A function of (pixels, class indices) as ``LabelledImages`` gives them, where UNLABELLED
    stands for no class: normalized images (B, 3, H, W), labels (B, classes) and the teachers'
    targets (B, classes).

    A label is a row of shares, which sum to 0 for a photo without a label. ``mixup`` (Zhang et al.
    2018) mixes images and labels in pairs, so that the sum is the share of labelled photos in a
    mixed image.
    """
    transform, count = student.transform, len(student.classes)
    mix = v2.MixUp(alpha=mixup, num_classes=count) if mixup else None

    def prepare(batch: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        images = transform.normalize(batch[0])
        labels = F.one_hot(batch[1] - UNLABELLED, 1 + count)[:, 1:].float()
        if mix:
            images, labels = mix(images, labels)
        return images, labels, soft_targets(teachers, images, transform, temperature, compute)

    return prepare


def label_losses(
    logits: Tensor, labels: Tensor, log_prior: Tensor | None, label_smoothing: float
) -> Tensor:
    """(B,): the cross-entropy of logits (B, classes) with labels (B, classes), whose rows sum to
    the labelled share of an image; ``log_prior`` (classes,) is added to the logits, as
    ``training.classify.make_loss`` explains."""
    if log_prior is not None:
        logits = logits + log_prior.to(logits.device)
    spread = labels.sum(1, keepdim=True) / labels.shape[1]
    smooth = (1 - label_smoothing) * labels + label_smoothing * spread
    return -(smooth * logits.log_softmax(1)).sum(1)


def distillation_losses(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """(B,): the Kullback-Leibler divergence of the student's probabilities at ``temperature`` from
    ``targets``, both (B, classes), times the temperature squared, which keeps the size of the
    gradient (Hinton et al. 2015, Sec. 2)."""
    divergence = F.kl_div((logits / temperature).log_softmax(1), targets, reduction="none").sum(1)
    return temperature ** 2 * divergence


def loss_with_teachers(
    log_prior: Tensor | None, label_smoothing: float, temperature: float, weight: float
) -> Callable[[nn.Module, tuple], tuple[Tensor, dict]]:
    """A function of (model, what ``prepare_with_teachers`` returns): the loss, the accuracy on
    images that are labelled for the larger part, the distillation loss, and how often model and
    teachers name the same class.

    The loss of a labelled photo is ``1 - weight`` of its label loss and ``weight`` of its
    distillation loss, that of an unlabelled photo its distillation loss; of a mixed image, the mean
    of the two by shares.
    """
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict]:
        images, labels, targets = batch
        logits = model(images).float()
        distilled = distillation_losses(logits, targets, temperature)
        of_labels = (1 - weight) * labels.sum(1)  # (B,)
        value = ((1 - weight) * label_losses(logits, labels, log_prior, label_smoothing)
                 + (1 - of_labels) * distilled).mean()
        predicted = logits.argmax(1)
        labelled = labels.sum(1) > 0.5
        correct = (predicted == labels.argmax(1)) & labelled
        count = labelled.sum().item()
        return value, {"accuracy": (correct.sum().item() / max(count, 1), count),
                       "distill_loss": distilled.mean().item(),
                       "agreement": (predicted == targets.argmax(1)).float().mean().item()}

    return loss
