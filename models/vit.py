"""Vision transformers (Dosovitskiy et al. 2021), all of them timm's ``VisionTransformer``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from utils import UserError, one_line, warn

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer

from data.transform import Transform
from models.checkpoint import check_kind, load_strict, read_tensors, rebuild, save_checkpoint
from models.foreign import (
    ARGUMENTS,
    fine_tuned,
    for_model,
    for_timm,
    foreign_vit,
    imagenet_or_numbers,
    nearest_names,
    timm_resize,
)
from models.hub import go_offline_without_network, local_file

HEADS = ("head.", "head_dist.")
MOST_LAYERS = 200  # a wrong description could ask for a billion


class Encoder(NamedTuple):
    """A ViT without a head, how photos are prepared for it, and what rebuilds it."""

    model: VisionTransformer
    preprocessing: dict  # the fields of data.transform.Transform
    architecture: dict  # {"name", "args"}: what timm.create_model is called with, and "norm_eps"


@dataclass
class Classifier:
    """A ViT with what is needed to use it: preprocessing, label of each output, readable names."""

    model: VisionTransformer
    preprocessing: dict  # the fields of data.transform.Transform
    classes: list[str]  # label of each logit, in order
    names: dict[str, str]  # label -> readable name, where known
    architecture: dict  # as of an Encoder
    metadata: dict  # of the checkpoint; {} for a model of another library
    source: str = "the model"  # the file or name that it was opened by, for error messages

    @property
    def transform(self) -> Transform:
        """How a photo is prepared for this model."""
        return Transform.from_fields(self.preprocessing)

    def index_of(self, label: str) -> int:
        """The logit of a label or of a readable name; UserError where there is none."""
        for index, known in enumerate(self.classes):
            if label in (known, self.name_of(known)):
                return index
        raise UserError(f"the model has no class {label}; it has for example "
                        f"{', '.join(self.name_of(known) for known in self.classes[:4])}")

    def with_model(self, model: VisionTransformer) -> Classifier:
        """The same classifier with other weights, such as a moving average."""
        return replace(self, model=model)

    def name_of(self, label: str) -> str:
        """The readable name of a label; the label itself where there is none."""
        return self.names.get(label, label)


def build_classifier(
    name: str, classes: list[str], names: dict[str, str] | None = None, *,
    image_size: int | None = None, num_heads: int | None = None, drop_path: float = 0.0,
    resize: str = "crop", crop_pct: float | None = None, pretrained: bool | None = None,
    weights: str | Path | None = None,
) -> Classifier:
    """A ViT with a fresh head over ``classes``; ``name`` is timm's name, a file or
    ``hf:owner/name``.

    Weights are random, timm's for that name (``pretrained``: from the network or its cache), or
    those of the file ``weights``. Where ``name`` is a file, its weights are taken unless
    ``pretrained`` is False. A position embedding of another grid is resampled (Dosovitskiy et al.
    2021, Sec. 3.2). A head is kept only from a checkpoint of this project over the same classes.
    Raises UserError that names the option which does not fit.
    """
    args = {key: value for key, value in
            {"img_size": image_size, "num_heads": num_heads, "drop_path_rate": drop_path}.items()
            if value}
    timm_name, described, prepared, file = _resolve(name)
    _check_arguments(name, _probe(timm_name, **described), image_size, num_heads)
    name, args = timm_name, described | args
    model = _create(name, bool(pretrained) and not file, num_classes=len(classes), **args)
    config = resolve_model_data_config(model) | prepared
    weights = weights or (None if pretrained is False else file)
    preprocessing = _preprocessing(model, config, resize=resize,
                                   crop_pct=crop_pct or config["crop_pct"])
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


def load_classifier(path: str | Path, averaged: bool = False) -> Classifier:
    """The classifier that ``save_classifier`` wrote, or that of another library's file, in float32
    and eval mode. ``averaged`` takes the moving average of the weights (EMA) that is in such a
    file. Raises UserError for a file that holds none."""
    tensors, metadata = read_tensors(path, averaged)
    if not metadata:
        return _load_foreign(tensors, Path(path))
    check_kind(metadata, path, "classifier")
    architecture, classes, preprocessing = (
        metadata.get(key) for key in ("model", "classes", "preprocessing"))
    names = metadata.get("names", {})
    if not (isinstance(classes, list) and isinstance(names, dict)
            and all(isinstance(text, str) for text in (*classes, *names.values()))
            and len(set(classes)) == len(classes)):
        raise UserError(f"{path} describes its labels wrongly: they must be different strings; "
                        "fetch or train it again")
    model = rebuild(lambda: described_vit(architecture, preprocessing, len(classes)), tensors, path)
    return Classifier(model, preprocessing, classes, names, architecture, metadata)


def described_vit(architecture: dict, preprocessing: dict, classes: int = 0) -> VisionTransformer:
    """The ViT that a checkpoint describes, with random weights.

    May raise any exception on a wrong description. Only the arguments of timm's ViT reach timm,
    since others would make it read or download files.
    """
    args = {key: tuple(value) if isinstance(value, list) else value
            for key, value in architecture["args"].items()}
    if not set(args) <= ARGUMENTS or not 0 < args.get("depth", 1) <= MOST_LAYERS:
        raise ValueError(f"a ViT does not take the arguments {one_line(str(args))[:200]}")
    model = _create(architecture["name"], False, num_classes=classes, **args)
    if tuple(preprocessing["size"]) != model.patch_embed.img_size:
        raise ValueError(f"photos of {preprocessing['size']} pixels for a ViT that takes "
                         f"{model.patch_embed.img_size}")
    return model


def _load_foreign(tensors: dict[str, torch.Tensor], path: Path) -> Classifier:
    """The classifier in another library's file."""
    found = foreign_vit(tensors, path)
    model = _create(found.architecture["name"], False, num_classes=len(found.classes),
                    **found.architecture["args"])
    load_strict(model, found.tensors, path)
    return Classifier(model.eval(), _preprocessing(model, found.preprocessing), found.classes,
                      found.names, found.architecture, {})


def average_classifiers(paths: Sequence[str | Path]) -> Classifier:
    """One classifier with the mean of all checkpoints' weights: a soup (Wortsman et al. 2022).

    It runs as fast as one model and is often as accurate as the ensemble, where all were fine-tuned
    from the same weights. Raises UserError where the files differ in more than weights.
    """
    classifiers = [load_classifier(path) for path in paths]
    first = classifiers[0]
    for path, other in zip(paths, classifiers, strict=True):
        for field in ("architecture", "classes", "preprocessing"):
            if getattr(other, field) != getattr(first, field):
                raise UserError(f"{path} and {paths[0]} differ in {field}; give checkpoints of one "
                                "architecture over the same classes")
    states = [classifier.model.state_dict() for classifier in classifiers]
    first.model.load_state_dict({key: sum(state[key] for state in states) / len(states)
                                 for key in states[0]})
    first.metadata = {key: first.metadata.get(key) for key in ("trained_on", "about")} | {
        "averaged": [classifier.metadata.get("recipe") for classifier in classifiers]}
    return first


def build_vit(
    name: str, pretrained: bool = False, weights: str | Path | None = None, **args
) -> Encoder:
    """A ViT without a head; ``name`` is timm's name, a file or ``hf:owner/name``.

    Weights are random, timm's for that name (``pretrained``), or those of the file ``weights``,
    whose head is left out. Where ``name`` is a file, its weights are taken. ``args`` go to timm.
    """
    name, described, prepared, file = _resolve(name)
    weights = weights or file
    args = described | args
    model = _create(name, pretrained and weights is None, num_classes=0, **args)
    if weights is not None:
        tensors = for_model(model, read_tensors(weights)[0], weights)
        load_strict(model, {key: tensor for key, tensor in tensors.items()
                            if not key.startswith(HEADS)}, weights)
    preprocessing = _preprocessing(model, resolve_model_data_config(model) | prepared)
    return Encoder(model, preprocessing, {"name": name, "args": args})


def open_vit(
    source: str | Path, pretrained: bool = False, weights: str | Path | None = None,
    averaged: bool = False,
) -> Classifier:
    """A ViT with its own head; ``source`` is a file, ``hf:owner/name``, or timm's name.

    A model of timm's name gets timm's weights (``pretrained``), those of the file ``weights``, or
    random ones, with a warning. The file may come from any training, in any of the usual wrappers:
    its tensors tell the number of classes and the image size. ``averaged`` takes the moving average
    of the weights (EMA) that the training kept beside them.
    """
    file, name, args = local_file(source), str(source), {}
    if file is not None and weights is not None:
        raise UserError(f"{source} brings its own weights; --weights goes with a model's name")
    if file is not None:
        return load_classifier(file, averaged)
    tensors, metadata = (None, {}) if weights is None else read_tensors(weights, averaged)
    if metadata:
        warn(f"{weights} describes its model itself: it is opened as that, not as a {name}")
        return load_classifier(weights)
    if tensors is not None:
        tensors, args = fine_tuned(_probe(name), tensors, weights)
    model = _create(name, pretrained and tensors is None, **args)
    if tensors is not None:
        load_strict(model, for_model(model, tensors, weights), weights)
    elif not pretrained:
        warn(f"{source} has random weights: give --pretrained or --weights FILE")
    classes, names = imagenet_or_numbers(model.num_classes)
    args = {key: value for key, value in args.items() if key != "num_classes"}
    return Classifier(model.eval(), _preprocessing(model, resolve_model_data_config(model)),
                      classes, names, {"name": name, "args": args}, {})


def _resolve(name: str) -> tuple[str, dict, dict, Path | None]:
    """timm's name, a file or ``hf:owner/name`` -> (timm's name, timm's arguments, preprocessing,
    file with weights); the last three are empty where timm's name was given."""
    file = local_file(name)
    if file is None:
        return name, {}, {}, None
    found = load_classifier(file)
    return found.architecture["name"], found.architecture["args"], found.preprocessing, file


def _preprocessing(model: VisionTransformer, config: dict, **changes) -> dict:
    """The fields of Transform for ``model``, from timm's or a file's ``config``."""
    fields = {"size": model.patch_embed.img_size, "resize": timm_resize(config)} | {
        key: config[key] for key in ("mean", "std", "resize", "crop_pct", "interpolation",
                                     "floor_crop") if key in config}
    return fields | changes


def _probe(name: str, **args) -> VisionTransformer:
    """The model on the meta device, which has shapes but takes no memory. UserError for an unknown
    name or a model of another family."""
    if not timm.is_model(name):
        raise UserError(f"timm knows no vision transformer {name}; the nearest names are "
                        f"{', '.join(nearest_names(name))}")
    try:
        with torch.device("meta"):
            model = timm.create_model(name, **for_timm(args))
    except RuntimeError as error:  # name.tag with a tag that timm does not know
        raise UserError(f"{name}: {one_line(error)}") from None
    if not isinstance(model, VisionTransformer):
        rotary = getattr(model, "pos_embed", None) is None and hasattr(model, "rope")
        raise UserError(f"{name} is a {type(model).__name__}{' with rotary positions' * rotary}, "
                        "not of timm's VisionTransformer family")
    return model


def _check_arguments(
    name: str, model: VisionTransformer, image_size: int | None, num_heads: int | None
) -> None:
    """UserError for what timm would refuse with a bare assertion, or silently ignore."""
    width, patch = model.embed_dim, model.patch_embed.patch_size
    if num_heads and width % num_heads:
        divisors = [n for n in range(1, width + 1) if width % n == 0 and width // n >= 8]
        raise UserError(f"--num-heads {num_heads} does not divide {name}'s width of {width}; "
                        f"these do: {' '.join(map(str, divisors))}")
    if image_size and any(image_size % side for side in patch):
        raise UserError(f"--image-size {image_size} is not a multiple of {name}'s {patch[0]}-pixel "
                        f"patches; try {max(round(image_size / patch[0]), 1) * patch[0]}")


def _create(name: str, pretrained: bool, **args) -> VisionTransformer:
    """timm's model of that name; UserError for what timm, the network or the hub refuses."""
    _probe(name)
    if pretrained:
        go_offline_without_network()
    try:
        return timm.create_model(name, pretrained=pretrained, **for_timm(args))
    except (OSError, RuntimeError) as error:  # raised by the network and the hub
        if not pretrained:
            raise
        raise UserError(f"could not fetch the pretrained weights of {name} (no network?): "
                        f"{one_line(error)[:200]}; give a file with --weights") from None
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{name} does not take these arguments: {one_line(error)}") from None


def _load_body(model: VisionTransformer, path: str | Path, classes: list[str]) -> None:
    """Load everything but the head; the head too where the file's is over the same ``classes``."""
    tensors, metadata = read_tensors(path)
    tensors = for_model(model, tensors, path)
    if metadata.get("classes") != classes:
        tensors = {key: value for key, value in tensors.items() if not key.startswith(HEADS)}
        fresh = {key: value for key, value in model.state_dict().items() if key.startswith(HEADS)}
        tensors.update(fresh)
    load_strict(model, tensors, path)
