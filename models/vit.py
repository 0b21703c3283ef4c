"""Vision transformers (Dosovitskiy et al. 2021), all of them timm's ``VisionTransformer``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path

from utils import UserError, one_line

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from models.checkpoint import load_checkpoint, load_strict, read_tensors, save_checkpoint


@dataclass
class Classifier:
    """A ViT with what is needed to use it: preprocessing, label of each output, readable names."""

    model: VisionTransformer
    preprocessing: dict  # the fields of data.Transform
    classes: list[str]  # label of each logit, in order
    names: dict[str, str]  # label -> readable name, where known
    architecture: dict  # {"name", "args"}: what timm.create_model is called with
    metadata: dict

    def with_model(self, model: VisionTransformer) -> Classifier:
        """The same classifier around other weights, such as an average's."""
        return replace(self, model=model)

    def name_of(self, label: str) -> str:
        return self.names.get(label, label)


def build_classifier(
    name: str,
    classes: list[str],
    names: dict[str, str] | None = None,
    *,
    image_size: int | None = None,
    num_heads: int | None = None,
    drop_path: float = 0.0,
    resize: str = "crop",
    crop_pct: float | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
) -> Classifier:
    """A ViT named as timm names it, with a fresh head over ``classes``.

    Weights are random, timm's for that name (``pretrained``: from the network or its cache), or a
    file's (``weights``). A position embedding of another grid is resampled (Dosovitskiy et al.
    2021, Sec. 3.2); a head is kept only from a checkpoint of ours over the same classes.
    Raises UserError for what does not fit, naming the option.
    """
    args = {key: value for key, value in
            {"img_size": image_size, "num_heads": num_heads, "drop_path_rate": drop_path}.items()
            if value}
    _check_arguments(name, image_size, num_heads)
    model = _create(name, pretrained, num_classes=len(classes), **args)
    config = resolve_model_data_config(model)
    preprocessing = {
        "size": model.patch_embed.img_size, "mean": config["mean"], "std": config["std"],
        "resize": resize, "crop_pct": crop_pct or config["crop_pct"],
        "interpolation": config["interpolation"],
    }
    if weights is not None:
        _load_body(model, weights, classes)
    architecture = {"name": name, "args": {**args, "img_size": preprocessing["size"]}}
    return Classifier(model, preprocessing, classes, names or {}, architecture, {})


def save_classifier(path: str | Path, classifier: Classifier, **metadata) -> None:
    """Write a checkpoint in float16; ``metadata`` adds recipe, metrics and licence."""
    described = {
        "kind": "classifier",
        "model": classifier.architecture,
        "classes": classifier.classes,
        "names": classifier.names,
        "preprocessing": classifier.preprocessing,
        **metadata,
    }
    save_checkpoint(path, classifier.model.state_dict(), described)


def load_classifier(path: str | Path) -> Classifier:
    """The classifier that ``save_classifier`` wrote, in float32 and eval mode."""
    tensors, metadata = load_checkpoint(path, "classifier")
    try:
        architecture, classes = metadata["model"], list(metadata["classes"])
        preprocessing = dict(metadata["preprocessing"])
        model = _create(architecture["name"], False, num_classes=len(classes),
                        **{key: tuple(value) if isinstance(value, list) else value
                           for key, value in architecture["args"].items()})
        names = dict(metadata.get("names", {}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} describes its model wrongly: {one_line(error)}") from None
    load_strict(model, tensors, path)
    return Classifier(model.eval(), preprocessing, classes, names, architecture, metadata)


def _check_arguments(name: str, image_size: int | None, num_heads: int | None) -> None:
    """Refuse what timm would answer with an assertion, or not at all."""
    with torch.device("meta"):  # shapes without memory
        model = _create(name, False)
    width, patch = model.embed_dim, model.patch_embed.patch_size
    if num_heads and width % num_heads:
        divisors = [n for n in range(1, width + 1) if width % n == 0 and width // n >= 8]
        raise UserError(f"--num-heads {num_heads} does not divide {name}'s width of {width}; "
                        f"these do: {' '.join(map(str, divisors))}")
    if image_size and any(image_size % side for side in patch):
        raise UserError(f"--image-size {image_size} is no multiple of {name}'s {patch[0]}-pixel "
                        f"patches; try {max(round(image_size / patch[0]), 1) * patch[0]}")


def _create(name: str, pretrained: bool, **args) -> VisionTransformer:
    if not timm.is_model(name):
        known = timm.list_models(module="vision_transformer")
        close = difflib.get_close_matches(name, known, 4, 0) or known[:4]
        raise UserError(f"timm knows no vision transformer {name}; the nearest names are "
                        f"{', '.join(close)}")
    try:
        model = timm.create_model(name, pretrained=pretrained, **args)
    except (OSError, RuntimeError) as error:  # hub and network errors are OSErrors, bad tags not
        if not pretrained:
            raise
        raise UserError(f"could not fetch the pretrained weights of {name} (no network?): "
                        f"{one_line(error)[:200]}; give a file with --weights") from None
    except TypeError as error:
        raise UserError(f"{name} does not take these arguments: {one_line(error)}") from None
    if not isinstance(model, VisionTransformer):
        raise UserError(f"{name} is a {type(model).__name__}, not a vision transformer of timm's "
                        "VisionTransformer family")
    return model


def _load_body(model: VisionTransformer, path: str | Path, classes: list[str]) -> None:
    """Load everything but the head, and the head too where the file has it for ``classes``."""
    tensors, metadata = read_tensors(path)
    tensors = checkpoint_filter_fn(tensors, model)  # resamples the position embedding
    if metadata.get("classes") != classes:
        heads = ("head.", "head_dist.")
        tensors = {key: value for key, value in tensors.items() if not key.startswith(heads)}
        fresh = {key: value for key, value in model.state_dict().items() if key.startswith(heads)}
        tensors.update(fresh)
    load_strict(model, tensors, path)
