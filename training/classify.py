"""Training of classifiers: ``p1_vit_classify.py train``, and each setting of its ``sweep``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from utils import warn

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torchvision.transforms import v2

from data.augmentation import augmentation
from data.batches import LabelledImages
from data.compute import Compute
from data.labels import class_indices, find_names, labelled_folders, sort_labels
from data.photos import check_images, list_images, refuse_unreadable
from figures import charts
from inference.classify import classify
from models.classifier import Classifier, build_classifier, save_classifier
from models.hub import local_file
from training.distillation import (
    UNLABELLED,
    Teacher,
    loss_with_teachers,
    open_teachers,
    prepare_with_teachers,
)
from training.loop import Task, check_out, fit_recipe
from training.recipe import Recipe, check_files, describe_training, photos_digest


def train_classifier(args: argparse.Namespace) -> list[dict]:
    """Train by the options of ``training.options.add_classifier_training``; returns the history,
    one row an epoch.

    Writes ``curves.png`` beside the files of ``training.loop.fit``. Raises UserError for what
    cannot be trained, Diverged where the loss stops being finite.
    """
    check_files(args)
    check_out(args.out, args.resume)
    photos, teachers, recipe, classifier = open_training(args)
    check_images([*photos.train.paths, *photos.val.paths, *photos.unlabelled])
    task = classifier_task(classifier, photos, teachers, recipe, args)
    if starts_at_random(args) and not args.resume:
        warn("the weights start at random; --pretrained or --weights FILE starts from others")
    task.what = (f"{len(photos.train.paths):,} photos of {len(photos.classes)} classes, "
                 f"{len(photos.val.paths):,} to validate on")
    history = fit_recipe(classifier.model, task, recipe, args)
    warn(f"wrote {curves_file(args.out)}")
    return history


def open_training(
    args: argparse.Namespace
) -> tuple[Photos, list[Teacher], Recipe, Classifier]:
    """What a training starts from. UserError for files that are not there, options that do not fit
    the model, and weights that do not; ``sweep`` calls it for each setting before any training."""
    photos = read_photos(args)
    names = find_names(args.train, args.names)
    teachers = open_teachers(args.teacher, photos.classes) if args.teacher else []
    recipe = Recipe.from_args(args)
    return photos, teachers, recipe, starting_classifier(args, photos.classes, names)


# --- data -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelledPhotos:
    """Image files, and the index of each one's class."""

    paths: list[Path]
    targets: np.ndarray  # (N,)


@dataclass(frozen=True)
class Photos:
    """What is learned, and what chooses the best epoch (may be empty)."""

    classes: list[str]  # label of each class index
    train: LabelledPhotos
    val: LabelledPhotos
    unlabelled: list[Path]  # learned from teachers alone


def read_photos(args: argparse.Namespace) -> Photos:
    """The photos that the options name. Their classes are the labels of the training photos;
    UserError for another label among those to validate on."""
    (paths, labels), (val_paths, val_labels) = labelled_folders(
        args.train, args.val, args.hold_out, args.labels, args.limit)
    classes = sort_labels(labels)
    return Photos(classes,
                  LabelledPhotos(paths, class_indices(labels, classes, args.train)),
                  LabelledPhotos(val_paths, class_indices(val_labels, classes, args.val)),
                  [path for folder in args.unlabelled or ()
                   for path in list_images(folder, args.limit)])


def digest_of(photos: LabelledPhotos) -> str:
    """What a resumed training must find unchanged: the photos' number, names and classes."""
    return photos_digest(photos.paths, photos.targets.tolist())


# --- model ----------------------------------------------------------------------------------------


def starts_at_random(args: argparse.Namespace) -> bool:
    """Whether no option gives the model weights to start from."""
    given = args.pretrained or args.weights or local_file(args.model)
    return args.pretrained is False or not given


def starting_classifier(
    args: argparse.Namespace, classes: list[str], names: dict[str, str]
) -> Classifier:
    """The classifier before the first step. With ``--freeze`` only its head will be trained."""
    torch.manual_seed(args.seed)  # the new head
    classifier = build_classifier(
        args.model, classes, names, image_size=args.image_size, num_heads=args.num_heads,
        drop_path=args.drop_path, resize=args.resize, crop_pct=args.crop_pct,
        # --no-pretrained starts from random weights even where --weights is given, so that a
        # sweep can compare both.
        pretrained=False if args.weights else args.pretrained,
        weights=None if args.pretrained is False else args.weights,
        averaged=args.ema_weights and args.pretrained is not False)
    if args.freeze:
        classifier.model.requires_grad_(False)
        for parameter in classifier.head:
            parameter.requires_grad_(True)
    return classifier


# --- task -----------------------------------------------------------------------------------------


def classifier_task(
    classifier: Classifier, photos: Photos, teachers: list[Teacher], recipe: Recipe,
    args: argparse.Namespace,
) -> Task:
    """What ``training.loop.fit`` needs to train ``classifier``, from labels and from teachers where
    there are any."""
    about = describe_training(args, recipe, {
        "folder": Path(args.train).resolve().name, "images": len(photos.train.paths)})
    log_prior = log_frequencies(photos) if args.balance else None
    if teachers:
        about["teachers"] = [teacher.describe() for teacher in teachers]
        about["trained_on"]["unlabelled"] = len(photos.unlabelled)
        prepare = prepare_with_teachers(
            classifier, teachers, args.mixup, args.distill_temperature, recipe.compute)
        loss = loss_with_teachers(
            log_prior, args.label_smoothing, args.distill_temperature, args.distill_weight)
    else:
        prepare = make_prepare(classifier, args.mixup)
        loss = make_loss(log_prior, args.label_smoothing)

    def save(path: Path, model: nn.Module, row: dict) -> None:
        save_classifier(path, classifier.with_model(model), **about, metrics=row)

    model = classifier.model
    fingerprints = [teacher.fingerprint() for teacher in teachers]
    no_decay = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    return Task(
        dataset=LabelledImages(
            [*photos.train.paths, *photos.unlabelled],
            [*photos.train.targets.tolist(), *[UNLABELLED] * len(photos.unlabelled)],
            augmentation(args.augment, classifier.transform), recipe.seed),
        groups=param_groups_layer_decay(model, recipe.weight_decay, no_decay,
                                        layer_decay=args.layer_decay),
        prepare=prepare,
        loss=loss,
        evaluate=partial(validate, classifier, photos.val, recipe.compute),
        save=save,
        select="val_accuracy" if photos.val.paths else None,
        settings={"classes in order": photos.classes, "training photos": digest_of(photos.train),
                  "validation photos": digest_of(photos.val),
                  "unlabelled photos": photos_digest(photos.unlabelled),
                  "teacher checkpoints": fingerprints or "none"},
        after_epoch=lambda history: charts.training_curves({"": history}, curves_file(args.out)))


def curves_file(out: str | Path) -> Path:
    return Path(out) / "curves.png"


def make_prepare(classifier: Classifier, mixup: float) -> Callable[[list[Tensor]], tuple]:
    """A function of (pixels, labels) as ``LabelledImages`` gives them: normalized images
    (B, 3, H, W) and labels (B,); with ``mixup`` (Zhang et al. 2018) mixed in pairs, and the labels
    (B, classes) shares of both."""
    transform = classifier.transform
    mix = v2.MixUp(alpha=mixup, num_classes=len(classifier.classes)) if mixup else None

    def prepare(batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = transform.normalize(batch[0]), batch[1]
        return mix(images, labels) if mix else (images, labels)

    return prepare


def make_loss(
    log_prior: Tensor | None, label_smoothing: float
) -> Callable[[nn.Module, tuple], tuple[Tensor, dict]]:
    """A function of (model, (images, labels)): the cross-entropy, and the accuracy of the batch.

    With ``log_prior`` (classes,) the loss is logit-adjusted (Menon et al. 2021, Eq. 10): it sees
    the logits with the labels' log-frequencies added, so that the model itself learns to classify
    as if all labels were equally frequent.
    """
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        images, labels = batch
        logits = model(images).float()
        adjusted = logits if log_prior is None else logits + log_prior.to(logits.device)
        value = F.cross_entropy(adjusted, labels, label_smoothing=label_smoothing)
        hard = labels if labels.ndim == 1 else labels.argmax(1)  # of two mixed, the larger share
        return value, {"accuracy": (logits.argmax(1) == hard).float().mean().item()}

    return loss


def log_frequencies(photos: Photos) -> Tensor:
    """(classes,) float32: the logarithm of each class's share of the training photos."""
    counts = np.bincount(photos.train.targets, minlength=len(photos.classes))
    return torch.tensor(np.log(counts / counts.sum()), dtype=torch.float32)


def validate(
    classifier: Classifier, photos: LabelledPhotos, compute: Compute, model: nn.Module,
    accelerator: Accelerator,
) -> dict:
    """Loss (nats) and accuracy of ``model`` in the place of the classifier's own; {} without
    photos. Each process classifies its share of them."""
    if not photos.paths:
        return {}
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    targets = photos.targets[share]
    _, probabilities, unreadable = classify(
        classifier.with_model(model), photos.paths[share], compute, "validate")
    refuse_unreadable(unreadable)
    losses = -np.log(np.maximum(probabilities[np.arange(len(targets)), targets], 1e-12))
    correct = probabilities.argmax(1) == targets
    sums = torch.tensor([losses.sum(), correct.sum(), len(targets)], dtype=torch.float32)
    loss, correct, images = accelerator.reduce(sums.to(accelerator.device), "sum").tolist()
    return {"val_loss": loss / images, "val_accuracy": correct / images,
            "val_correct": int(correct), "val_images": int(images)}
