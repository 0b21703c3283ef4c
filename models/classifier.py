"""Image classifiers: any of timm's, with labels and preprocessing, and their checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from utils import UserError, warn

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from data.labels import as_known, class_indices, read_class_names
from data.transform import Transform
from models.checkpoint import check_kind, load_strict, read_tensors, rebuild, save_checkpoint
from models.convert import bare_vit, to_timm
from models.foreign import for_model, foreign_vit, imagenet_or_numbers, pooling_of
from models.hub import local_file
from models.timm_models import (
    accepted_arguments,
    check_image_size,
    check_options,
    create,
    described_model,
    fine_tuned_by_name,
    head_names,
    preprocessing_of,
    probe,
)


@dataclass
class Classifier:
    """A model with what is needed to use it: preprocessing, label of each output, readable names.
    """

    model: nn.Module  # images (B, 3, H, W) -> logits (B, classes)
    preprocessing: dict  # the fields of data.transform.Transform
    classes: list[str]  # label of each logit, in order
    names: dict[str, str]  # label -> readable name, where known
    architecture: dict  # {"name", "args"}: what timm.create_model is called with, and "norm_eps"
    metadata: dict  # of the checkpoint; {} for a model of another library
    source: str = "the model"  # the file or name that it was opened by, for error messages

    @property
    def transform(self) -> Transform:
        """How a photo is prepared for this model."""
        return Transform.from_fields(self.preprocessing)

    @property
    def head(self) -> list[nn.Parameter]:
        """The parameters that map features to classes: what a linear probe trains."""
        names = head_names(self.architecture, len(self.classes))
        return [parameter for name, parameter in self.model.named_parameters() if name in names]

    def index_of(self, label: str, option: str) -> int:
        """The logit of a label or of a readable name, which ``option`` gives; UserError where there
        is none."""
        if not self.classes:
            raise UserError(f"{option} {label}: the model has no classification head; leave it out")
        known = {label: self.names.get(label, "") for label in self.classes}
        return int(class_indices(as_known([label], known), known, option, remedy="give one")[0])

    def named(self, names: str | Path | None, weights: str | Path | None) -> Classifier:
        """The same classifier with its classes called as the file ``names`` says, else as an
        id2label.json beside ``weights`` does, where that fits."""
        if names is not None:
            return replace(self, names=read_class_names(names, self.classes))
        found = Path(weights).parent / "id2label.json" if weights else None
        if self.names or found is None or not found.is_file():
            return self
        try:
            named = replace(self, names=read_class_names(found, self.classes))
        except UserError as error:
            warn(f"{error}; it is not used")
            return self
        warn(f"the names of the classes are from {found}")
        return named

    def with_model(self, model: nn.Module) -> Classifier:
        """The same classifier with other weights, such as a moving average."""
        return replace(self, model=model)

    def name_of(self, label: str) -> str:
        """The readable name of a label; the label itself where there is none."""
        return self.names.get(label, label)


# --- building -------------------------------------------------------------------------------------


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
    pretrained: bool | None = None,
    weights: str | Path | None = None,
    averaged: bool = False,
) -> Classifier:
    """A model with a fresh head over ``classes``; ``name`` is timm's name, a file or
    ``hf:owner/name``.

    Weights are random, timm's for that name (``pretrained``: from the network or its cache), or
    those of the file ``weights``. Where ``name`` is a file, its weights are taken unless
    ``pretrained`` is False. What depends on the image size, such as the position embedding of a
    ViT (Dosovitskiy et al. 2021, Sec. 3.2), is resampled. A head is kept only from a checkpoint of
    this project over the same classes. ``averaged`` takes the moving average (EMA) in the file.
    Raises UserError that names the option which does not fit.
    """
    source, described, prepared, file = resolve(name, averaged)
    weights = weights or (None if pretrained is False else file)
    if averaged and weights is None:
        raise UserError("--ema-weights takes averaged weights from a file; give --weights FILE")
    tensors, metadata = (None, {}) if weights is None else read_tensors(weights, averaged)
    if tensors is not None and not metadata:
        tensors = to_timm(bare_vit(tensors, weights), weights)
        described |= pooling_of(tensors)
    shapes = probe(source, **described)
    check_options(name, shapes, image_size, num_heads, drop_path)
    accepted = accepted_arguments(shapes)
    given = {"img_size": image_size, "num_heads": num_heads, "drop_path_rate": drop_path}
    args = described | {key: value for key, value in given.items() if value and key in accepted}
    shapes = probe(source, **args)
    size = {"size": (image_size, image_size)} if image_size else {}
    config = resolve_model_data_config(shapes) | prepared | size
    preprocessing = preprocessing_of(shapes, config) | {"resize": resize}
    preprocessing["crop_pct"] = crop_pct or preprocessing["crop_pct"]
    check_image_size(source, preprocessing["size"], **args)  # before its weights are fetched
    if "img_size" in accepted:
        args["img_size"] = preprocessing["size"]
    model = create(source, bool(pretrained) and not file, num_classes=len(classes), **args)
    classifier = Classifier(model, preprocessing, classes, names or {},
                            {"name": source, "args": args}, {})
    if tensors is not None:
        _load_body(classifier, tensors, metadata, weights)
    return classifier


def _load_body(
    classifier: Classifier, tensors: dict[str, Tensor], metadata: dict, path: str | Path
) -> None:
    """Load everything but the head; the head too where the file's is over the same classes."""
    tensors = for_model(classifier.model, tensors, path)
    if metadata.get("classes") != classifier.classes:
        fresh = classifier.model.state_dict()
        tensors |= {name: fresh[name] for name in head_names(
            classifier.architecture, len(classifier.classes))}
    load_strict(classifier.model, tensors, path)


def resolve(name: str, averaged: bool = False) -> tuple[str, dict, dict, Path | None]:
    """timm's name, a file or ``hf:owner/name`` -> (timm's name, timm's arguments, preprocessing,
    file with weights); the last three are empty where timm's name was given."""
    file = local_file(name)
    if file is None:
        return name, {}, {}, None
    found = load_classifier(file, averaged)
    return found.architecture["name"], found.architecture["args"], found.preprocessing, file


def open_classifier(
    source: str | Path, pretrained: bool = False, weights: str | Path | None = None,
    averaged: bool = False,
) -> Classifier:
    """A classifier with its own head; ``source`` is a file, ``hf:owner/name``, or timm's name.

    A model of timm's name gets timm's weights (``pretrained``), those of the file ``weights``, or
    random ones, with a warning. The file may come from any training, in any of the usual wrappers:
    its tensors tell the number of classes, and a ViT's image size. ``averaged`` takes the moving
    average of the weights (EMA) that the training kept beside them.
    """
    file, name, args = local_file(source), str(source), {}
    if file is not None and weights is not None:
        raise UserError(f"{source} brings its own weights; --weights goes with a model's name")
    if file is not None:
        return load_classifier(file, averaged)
    if averaged and weights is None:
        raise UserError(f"--ema-weights takes averaged weights from a file, and {source} is a "
                        "name; give --weights FILE")
    tensors, metadata = (None, {}) if weights is None else read_tensors(weights, averaged)
    if metadata:
        warn(f"{weights} describes its model itself: it is opened as that, not as a {name}")
        return load_classifier(weights)
    if tensors is not None:
        tensors, args = fine_tuned_by_name(name, tensors, weights)
    model = create(name, pretrained and tensors is None, **args)
    if tensors is not None:
        load_strict(model, for_model(model, tensors, weights), weights)
    elif not pretrained:
        warn(f"{source} has random weights: give --pretrained or --weights FILE")
    preprocessing = preprocessing_of(model, resolve_model_data_config(model))
    classes, names = imagenet_or_numbers(model.num_classes)
    args = {key: value for key, value in args.items() if key != "num_classes"}
    return Classifier(model.eval(), preprocessing, classes, names, {"name": name, "args": args},
                      {})


# --- checkpoints ----------------------------------------------------------------------------------


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
    model = rebuild(lambda: described_model(architecture, preprocessing, len(classes)), tensors,
                    path)
    return Classifier(model, preprocessing, classes, names, architecture, metadata)


def _load_foreign(tensors: dict[str, Tensor], path: Path) -> Classifier:
    """The classifier in another library's file."""
    found = foreign_vit(tensors, path)
    name, args = found.architecture["name"], found.architecture["args"]
    accepted = accepted_arguments(probe(name))
    args = {key: value for key, value in args.items() if key in accepted}
    model = create(name, False, num_classes=len(found.classes), **args)
    load_strict(model, for_model(model, found.tensors, path), path)
    return Classifier(model.eval(), preprocessing_of(model, found.preprocessing), found.classes,
                      found.names, {"name": name, "args": args}, {})


def average_classifiers(paths: Sequence[str | Path]) -> Classifier:
    """One classifier with the mean of all checkpoints' weights: a soup (Wortsman et al. 2022).

    It runs as fast as one model and is often as accurate as the ensemble, where all were fine-tuned
    from the same weights. Running statistics of BatchNorm are averaged too, which only approximates
    those of the mean weights (Izmailov et al. 2018, Sec. 3.2). Raises UserError where the files
    differ in more than weights.
    """
    classifiers = [load_classifier(path) for path in paths]
    first = classifiers[0]
    for path, other in zip(paths, classifiers, strict=True):
        for field in ("architecture", "classes", "preprocessing"):
            if getattr(other, field) != getattr(first, field):
                raise UserError(f"{path} and {paths[0]} differ in {field}; give checkpoints of one "
                                "architecture over the same classes")
    states = [classifier.model.state_dict() for classifier in classifiers]
    first.model.load_state_dict({key: _mean([state[key] for state in states])
                                 for key in states[0]})
    first.metadata = {key: first.metadata.get(key) for key in ("trained_on", "about")} | {
        "averaged": [classifier.metadata.get("recipe") for classifier in classifiers]}
    return first


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    """The mean; of integers, such as BatchNorm's count of batches, the largest."""
    if tensors[0].is_floating_point():
        return sum(tensors) / len(tensors)
    return torch.stack(list(tensors)).amax(0)
