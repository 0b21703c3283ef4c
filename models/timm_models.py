"""Any of timm's image classifiers by its name: what it takes, and building it.

A name and its arguments may come from a file that is damaged or malicious. So only arguments listed
here reach timm, since others would make it read or download files, and sizes are bounded. What must
be known of a model before it is built is asked of one on the meta device, which has shapes but
takes no memory.
"""

from __future__ import annotations

import inspect

from utils import UserError, one_line, warn

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models.convert import Tensors
from models.foreign import (
    ARGUMENTS,
    fine_tuned,
    for_model,
    for_timm,
    nearest_names,
    timm_resize,
)
from models.hub import go_offline_without_network

SHARED_ARGUMENTS = {"img_size", "drop_path_rate"}  # of families other than VisionTransformer
MOST_LAYERS = 200  # a wrong description could ask for a billion
REFUSALS = (TypeError, ValueError, AssertionError)  # how timm answers arguments that do not fit
LARGEST_SIDE = 4096  # pixels; a convolutional network's weights fit photos of any size


def probe(name: str, **args) -> nn.Module:
    """The model on the meta device. UserError for an unknown name, arguments out of bounds, or a
    model that is no image classifier."""
    _check_known(name, args)
    try:
        with torch.device("meta"):
            model = timm.create_model(name, **for_timm(args))
    except RuntimeError as error:  # name.tag with a tag that timm does not know
        raise UserError(f"{name}: {one_line(error)}") from None
    except REFUSALS as error:
        raise UserError(f"{name} does not take these arguments, {one_line(str(args))[:200]}: "
                        f"{one_line(error)}") from None
    if not hasattr(model, "get_classifier"):
        raise UserError(f"{name} is a {type(model).__name__}, which classifies no images; give "
                        "another of timm's models")
    return model


def create(name: str, pretrained: bool, **args) -> nn.Module:
    """timm's model of that name; UserError for what timm, the network or the hub refuses."""
    _check_known(name, args)
    if pretrained:
        probe(name)  # what is wrong with the name is no fault of the network
        go_offline_without_network()
    try:
        return timm.create_model(name, pretrained=pretrained, **for_timm(args))
    except (OSError, RuntimeError) as error:
        if pretrained:  # raised by the network and the hub
            raise UserError(f"could not fetch the pretrained weights of {name} (no network?): "
                            f"{one_line(error)[:200]}; give a file with --weights") from None
        raise UserError(f"{name} cannot be built: {one_line(error)[:200]}") from None
    except REFUSALS as error:
        raise UserError(f"{name} does not take these arguments, {one_line(str(args))[:200]}: "
                        f"{one_line(error)}") from None


def described_model(architecture: dict, preprocessing: dict, classes: int = 0) -> nn.Module:
    """The model that a checkpoint describes, with random weights and ``classes`` outputs.

    UserError for arguments that must not reach timm; may raise any other exception on a wrong
    description.
    """
    name, size = architecture["name"], tuple(preprocessing["size"])
    args = {key: tuple(value) if isinstance(value, list) else value
            for key, value in architecture["args"].items()}
    if not set(args) <= accepted_arguments(probe(name)):
        raise UserError(f"{name} does not take the arguments {one_line(str(args))[:200]}")
    model = create(name, False, num_classes=classes, **args)
    if not isinstance(model, VisionTransformer):
        check_image_size(name, size, **args)
    elif size != model.patch_embed.img_size:
        raise UserError(f"photos of {preprocessing['size']} pixels for a ViT that takes "
                        f"{model.patch_embed.img_size}")
    return model


# --- what a model takes -------------------------------------------------------------------------


def accepted_arguments(model: nn.Module) -> set[str]:
    """The arguments of timm's builder that this project may give for ``model``."""
    if isinstance(model, VisionTransformer):
        return ARGUMENTS
    parents = [parent for parent in type(model).__mro__ if issubclass(parent, nn.Module)]
    return SHARED_ARGUMENTS & {argument for parent in parents
                               for argument in inspect.signature(parent).parameters}


def check_options(
    name: str, model: nn.Module, image_size: int | None, num_heads: int | None, drop_path: float
) -> None:
    """UserError that names the option of a command line which does not fit ``model``, for what
    timm would refuse with a bare assertion, or silently ignore."""
    family, accepted = type(model).__name__, accepted_arguments(model)
    if drop_path and "drop_path_rate" not in accepted:
        raise UserError(f"--drop-path: {name} is a {family}, which has no stochastic depth")
    if image_size and image_size > LARGEST_SIDE:
        raise UserError(f"--image-size {image_size} is too large; {LARGEST_SIDE} is the most")
    if not isinstance(model, VisionTransformer):
        if num_heads:
            raise UserError(f"--num-heads: {name} is a {family}; only the heads of timm's "
                            "VisionTransformer family can be changed")
        return
    width, patch = model.embed_dim, model.patch_embed.patch_size
    if num_heads and width % num_heads:
        divisors = [n for n in range(1, width + 1) if width % n == 0 and width // n >= 8]
        raise UserError(f"--num-heads {num_heads} does not divide {name}'s width of {width}; "
                        f"these do: {' '.join(map(str, divisors))}")
    if image_size and any(image_size % side for side in patch):
        raise UserError(f"--image-size {image_size} is not a multiple of {name}'s {patch[0]}-pixel "
                        f"patches; try {max(round(image_size / patch[0]), 1) * patch[0]}")


def check_image_size(name: str, size: tuple[int, int], **args) -> None:
    """UserError where the model cannot run on photos of ``size`` (height, width): seen by running
    it on the meta device, which computes shapes alone."""
    if not all(0 < side <= LARGEST_SIDE for side in size):
        raise UserError(f"{name} cannot take photos of {size} pixels")
    try:
        with torch.device("meta"), torch.inference_mode():
            logits = probe(name, **args).eval()(torch.empty(1, 3, *size))
        problem = "" if logits.ndim == 2 else f"the output has the shape {tuple(logits.shape)}"
    except Exception as error:  # each family has its own way to fail
        problem = one_line(error)[:200] or type(error).__name__
    if problem:
        raise UserError(f"{name} cannot take photos of {size[0]} × {size[1]} pixels: {problem}")


def head_names(architecture: dict, classes: int) -> set[str]:
    """The names of the tensors that map features to classes: those whose shape depends on the
    number of classes."""
    shapes, others = (
        {key: tensor.shape for key, tensor in probe(
            architecture["name"], **architecture["args"], num_classes=count).state_dict().items()}
        for count in (classes, classes + 1))
    return {key for key, shape in shapes.items() if shape != others[key]}


def fine_tuned_by_name(name: str, tensors: Tensors, source: object) -> tuple[Tensors, dict]:
    """A file's tensors, and what timm's builder must be told for them beside ``name``; for a model
    other than a ViT, the number of classes."""
    model = probe(name)
    if isinstance(model, VisionTransformer):
        return fine_tuned(model, tensors, source)
    known = for_model(model, tensors, source)
    head = head_names({"name": name, "args": {}}, model.num_classes or 1)
    sizes = {len(known[key]) for key in head if key in known and known[key].ndim}
    if not sizes:
        warn(f"{source} has no classification head")
    return tensors, {"num_classes": max(sizes, default=0)}


def preprocessing_of(model: nn.Module, config: dict) -> dict:
    """The fields of data.transform.Transform for ``model``, from the ``config`` of timm or of a
    file."""
    fixed = isinstance(model, VisionTransformer)
    size = model.patch_embed.img_size if fixed else config.get("size") or config["input_size"][1:]
    fields = {"size": tuple(size), "resize": timm_resize(config)} | {
        key: config[key] for key in ("mean", "std", "resize", "crop_pct", "interpolation",
                                     "floor_crop") if key in config}
    return fields


def _check_known(name: str, args: dict) -> None:
    """UserError for a name that timm does not know, or a model too large for any machine."""
    if not timm.is_model(name):
        raise UserError(f"{name} is no file, and timm knows no model of this name; the nearest "
                        f"names are {', '.join(nearest_names(name))}")
    size = args.get("img_size") or 1
    sides = size if isinstance(size, (tuple, list)) else [size]
    if not (0 < args.get("depth", 1) <= MOST_LAYERS
            and all(0 < side <= LARGEST_SIDE for side in sides)):
        raise UserError(f"{name} cannot be built with {one_line(str(args))[:200]}")
