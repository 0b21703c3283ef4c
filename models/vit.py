"""Vision transformers (Dosovitskiy et al. 2021), all of them timm's ``VisionTransformer``: what
attention figures, captioners and CLIP are built on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from utils import UserError

from timm.data import resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models.checkpoint import load_strict, read_tensors
from models.classifier import Classifier, open_classifier, resolve
from models.foreign import for_model
from models.hub import local_file
from models.timm_models import create, described_model, preprocessing_of, probe

HEADS = ("head.", "head_dist.")


class Encoder(NamedTuple):
    """A ViT without a head, how photos are prepared for it, and what rebuilds it."""

    model: VisionTransformer
    preprocessing: dict  # the fields of data.transform.Transform
    architecture: dict  # as of a Classifier


def build_vit(
    name: str, pretrained: bool = False, weights: str | Path | None = None, **args
) -> Encoder:
    """A ViT without a head; ``name`` is timm's name, a file or ``hf:owner/name``.

    Weights are random, timm's for that name (``pretrained``), or those of the file ``weights``,
    whose head is left out. Where ``name`` is a file, its weights are taken. ``args`` go to timm.
    Raises UserError for a model of another family.
    """
    source, described, prepared, file = resolve(name)
    check_vit(probe(source), name)
    weights = weights or file
    args = described | args
    model = create(source, pretrained and weights is None, num_classes=0, **args)
    if weights is not None:
        tensors = for_model(model, read_tensors(weights)[0], weights)
        load_strict(model, {key: tensor for key, tensor in tensors.items()
                            if not key.startswith(HEADS)}, weights)
    preprocessing = preprocessing_of(model, resolve_model_data_config(model) | prepared)
    return Encoder(model, preprocessing, {"name": source, "args": args})


def described_vit(architecture: dict, preprocessing: dict, classes: int = 0) -> VisionTransformer:
    """As ``timm_models.described_model``; UserError for a model of another family."""
    check_vit(probe(architecture["name"]), architecture["name"])
    return described_model(architecture, preprocessing, classes)


def open_vit(
    source: str | Path, pretrained: bool = False, weights: str | Path | None = None,
    averaged: bool = False,
) -> Classifier:
    """As ``classifier.open_classifier``; UserError for a model of another family."""
    if local_file(source) is None:
        check_vit(probe(str(source)), source)  # before its weights are fetched
    classifier = open_classifier(source, pretrained, weights, averaged)
    check_vit(classifier.model, source)
    return classifier


def check_vit(model: nn.Module, source: object) -> None:
    """UserError where ``model`` has not the attention and the positions of a standard ViT."""
    if not isinstance(model, VisionTransformer):
        rotary = getattr(model, "pos_embed", None) is None and hasattr(model, "rope")
        raise UserError(f"{source} is of the class {type(model).__name__}"
                        f"{' with rotary positions' * rotary}, not of timm's VisionTransformer "
                        "family, whose attention and position embedding are needed here; "
                        "give a ViT")
