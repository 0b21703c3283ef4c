"""Zero-shot classification: class names in templates, and which lies nearest to a photo."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from inference.clip import text_features
from models.clip import Clip


def class_features(clip: Clip, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """(templates, classes, D): each name in each template's place for it."""
    texts = [fill(template, name) for template in templates for name in names]
    return text_features(clip, texts).reshape(len(templates), len(names), -1)


def fill(template: str, name: str) -> str:
    """``name`` where ``template`` says {object} or {}."""
    return template.replace("{object}", name).replace("{}", name)


@functools.cache
def _imagenet_names() -> frozenset[str]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return frozenset(lemma.strip().casefold() for index in range(info.num_classes())
                     for lemma in info.index_to_description(index).split(","))


def inside_imagenet(name: str) -> bool:
    """Whether ``name`` is a word that ImageNet-1k (Russakovsky et al. 2015) has for one of its
    classes, by WordNet's lemmas: "tabby" and "tabby cat" are, "cat" is not."""
    return name.replace("_", " ").strip().casefold() in _imagenet_names()
