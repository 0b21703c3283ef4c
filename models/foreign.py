"""Vision transformers around other libraries' weights (``models.convert``).

Sizes come from the tensors' shapes. What shapes do not tell is read beside the file, where
``save_pretrained`` and the hub put it (``config.json``, ``preprocessor_config.json``), else it is
what all published models of the layout have in common.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from utils import UserError, one_line, warn

import timm
from timm.data import ImageNetInfo
from timm.layers import LayerNorm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models.checkpoint import without_prefix
from models.convert import TRANSFORMERS, Layout, Tensors, bare_vit, to_timm, vit_layout
from models.hub import beside
from models.processor import WRONG, described_processor, processor_fields, sized

SIZES = {"ti": "tiny", "t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge"}
BASE = "vit_base_patch16_224"  # timm's builder that takes any size


# --- vision transformers ------------------------------------------------------------------------


# What timm's builder may be told of a ViT: arguments of its own, which fetch and read no file.
ARGUMENTS = ({*inspect.signature(VisionTransformer).parameters} - {"num_classes"}) | {"norm_eps"}


@dataclass
class ForeignViT:
    """What a classifier is made of."""

    tensors: Tensors  # under timm's keys
    architecture: dict  # {"name", "args"} as models.classifier takes them
    preprocessing: dict  # fields of data.Transform, without the size of a ViT
    classes: list[str]  # label of each logit
    names: dict[str, str]  # label -> readable name


def foreign_vit(tensors: Tensors, path: Path) -> ForeignViT:
    """A ViT in a layout that ``models.convert`` knows, or any of timm's classifiers with timm's
    config.json beside it. Raises UserError for anything else."""
    first = ", ".join(list(tensors)[:3])
    tensors = bare_vit(tensors, path)
    layout, config = vit_layout(tensors), beside(path, "config.json")
    if (layout is None and "patch_embed.proj.weight" not in tensors
            and "architecture" not in config):
        raise UserError(f"{path} is not a checkpoint of this project, nor a ViT in a layout known "
                        f"here (its first keys: {first}); another model of timm's needs timm's "
                        "config.json beside it")
    try:
        if layout is None:
            return _from_timm(tensors, config, path)
        tensors = to_timm(tensors, path)
        args = _sizes(tensors, layout, config, path)
        classes, names = imagenet_or_numbers(len(tensors.get("head.weight", ())))
        told = {key: str(name) for key, name in config.get("id2label", {}).items()
                if name != f"LABEL_{key}"}
        return ForeignViT(tensors, {"name": BASE, "args": args},
                          _preprocessing(layout, args["img_size"], path), classes, told or names)
    except WRONG as error:
        raise UserError(f"{path}, or the JSON beside it, describes no ViT: {one_line(error)}"
                        ) from None


def _sizes(tensors: Tensors, layout: Layout, config: dict, path: Path) -> dict:
    """What timm's builder needs, from shapes; UserError where the config is of another model, or
    is needed and not there."""
    width, _, *patch = tensors["patch_embed.proj.weight"].shape
    depth = sum(key.endswith(".norm1.weight") for key in tensors)
    seen = {"model_type": "vit", "hidden_size": width, "num_hidden_layers": depth,
            "hidden_act": "gelu"}
    told = {key: config.get(key, value) for key, value in seen.items()}
    if told != seen:
        raise UserError(f"{path} and the config.json beside it do not belong together: {seen} "
                        f"against {told}")
    patches = tensors["pos_embed"].shape[1] - 1
    size = config.get("image_size", math.isqrt(patches) * patch[0])
    size = tuple(size) if isinstance(size, list) else (size, size)
    if min(size) < 1 or patches != (size[0] // patch[0]) * (size[1] // patch[1]):
        raise UserError(f"{path} has {patches} positions, which do not make a {size[0]} × {size[1]}"
                        " image: its config.json must be beside it")
    # Heads are 64 wide in all published models but the largest (Zhai et al. 2022, Table 2).
    heads = config.get("num_attention_heads",
                       {1280: 16, 1408: 16, 1664: 16}.get(width, width / 64))
    if heads < 1 or width % heads:
        raise UserError(f"{path} does not say how many heads its width of {width} is made of: "
                        'put {"num_attention_heads": N} into a config.json beside it')
    hidden = len(tensors["blocks.0.mlp.fc1.weight"])
    ratio = hidden / width
    while int(width * ratio) < hidden:  # off by a rounding error
        ratio = math.nextafter(ratio, math.inf)
    return {"img_size": size, "patch_size": tuple(patch), "embed_dim": width, "depth": depth,
            "num_heads": int(heads), "mlp_ratio": ratio,
            "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
            "norm_eps": float(config.get("layer_norm_eps", layout.norm_eps))}


def _preprocessing(layout: Layout, size: tuple[int, int], path: Path) -> dict:
    """As the image processor beside the file says; without one as both libraries do: the whole
    photo made square, bilinear, mean and deviation 0.5."""
    processor = described_processor(path)
    if not processor and layout.title == TRANSFORMERS.title:
        warn(f"{path} has no preprocessor_config.json beside it: photos are made square, mean and "
             "deviation 0.5")
    fields = processor_fields(processor or {"size": list(size)}, "ViT", path)
    return {"crop_pct": 1.0} | sized(fields, size, path)


def _from_timm(tensors: Tensors, config: dict, path: Path) -> ForeignViT:
    if "architecture" not in config:
        raise UserError(f"{path} holds a ViT of timm's, but not its name: give --model NAME "
                        "--weights FILE, or put timm's config.json beside it")
    described = config["pretrained_cfg"]
    args = {"img_size": described["input_size"][1:]} | {
        key: config[key] for key in ("global_pool",) if config.get(key)}
    args |= config.get("model_args", {})
    args = {key: value for key, value in args.items() if key in ARGUMENTS}
    fields = {key: described[key] for key in ("mean", "std", "crop_pct", "interpolation")}
    classes, names = imagenet_or_numbers(config["num_classes"])
    labels, told = config.get("label_names") or (), config.get("label_descriptions") or {}
    labels = list(labels.values() if isinstance(labels, dict) else labels)
    if len(labels) == len(classes):
        names = {str(index): str(told.get(label, label)) for index, label in enumerate(labels)}
    fields |= {"resize": timm_resize(described), "size": tuple(described["input_size"][1:])}
    return ForeignViT(tensors, {"name": config["architecture"], "args": args}, fields, classes,
                      names)


def timm_resize(config: dict) -> str:
    """``resize`` of ``data.Transform``, as timm's configuration says it. UserError for photos that
    are padded ("border"), as those of no published ViT are."""
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise UserError(f"timm's crop mode {mode} is not known here; known are center and squash")
    whole = config.get("crop_pct", 1.0) == 1.0
    return "crop" if mode == "center" else "squash" if whole else "squash-crop"


def imagenet_or_numbers(count: int) -> tuple[list[str], dict[str, str]]:
    """Labels of ``count`` logits that nobody named, and ImageNet's names where they are 1,000."""
    labels = [str(index) for index in range(count)]
    if count != 1000:
        return labels, {}
    imagenet = ImageNetInfo()
    return labels, {label: imagenet.index_to_description(int(label)) for label in labels}


def nearest_names(name: str) -> list[str]:
    """timm's names that are nearest to ``name``, which may be another library's name of a ViT
    (``ViT-B/16``, ``vit_b_16``, ``B_16_imagenet1k``); of the same family where it can be told."""
    known = [known for module in ("vision_transformer", "vision_transformer_hybrid", "deit")
             for known in timm.list_models(module=module)]
    plain = re.sub(r"[^a-z0-9.]+", "_", name.lower())
    size = re.match(r"(?:vit_)?(ti|[tsblh])_?(\d+)(?![a-z0-9])", plain)
    family = plain.partition("_")[0]
    if not size and family not in ("vit", "deit"):
        known = [other for other in timm.list_models() if other.startswith(family)] or known
    full = size and f"vit_{SIZES[size[1]]}_patch{size[2]}_224"
    return [*[full] * (full in known), *(
        near for near in difflib.get_close_matches(plain, known, 4, 0) if near != full)][:4]


def for_timm(args: dict) -> dict:
    """An architecture's arguments as timm takes them; a checkpoint describes them in JSON."""
    args = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
    if "norm_eps" in args:
        args["norm_layer"] = partial(LayerNorm, eps=args.pop("norm_eps"))
    return args


def for_model(model: nn.Module, tensors: Tensors, source: object) -> Tensors:
    """Tensors in any layout known, for a model whose position embedding may have another grid."""
    tensors = to_timm(bare_vit(tensors, source), source)
    if isinstance(model, VisionTransformer):
        theirs, ours = (getattr(weights, "shape", ())[2:] for weights in (
            tensors.get("patch_embed.proj.weight"), model.patch_embed.proj.weight))
        if theirs and theirs != ours:  # timm would resample them
            raise UserError(f"{source} does not fit the model: its patches have {theirs[0]} × "
                            f"{theirs[1]} pixels, the model's {ours[0]} × {ours[1]}")
    else:
        tensors = inner_tensors(model, tensors, source)
    # Most families of timm have one, which also knows older layouts of their own.
    adapt = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what its resampling of tables does is deprecated
            return adapt(tensors, model) if adapt else tensors
    except Exception as error:  # tensors of another model fail in many ways there
        raise UserError(f"{source} does not fit the model: {one_line(error)}") from None


def inner_tensors(model: nn.Module, tensors: Tensors, source: object) -> Tensors:
    """``tensors`` without the prefix under which a larger module held ``model`` (``backbone.``)."""
    names = list(model.state_dict())
    prefixes = {key[:-len(names[0])] for key in tensors if f".{key}".endswith(f".{names[0]}")}
    found = {prefix: sum(prefix + name in tensors for name in names) for prefix in prefixes}
    prefix = max(found, key=found.get, default="")
    return without_prefix(tensors, rf"({re.escape(prefix)})?", source)


def fine_tuned(
    model: VisionTransformer, tensors: Tensors, source: object
) -> tuple[Tensors, dict]:
    """A file's tensors under timm's keys, and what timm's builder must be told for them beside the
    name that ``model`` was built by: classes, image size, and whether the norm follows the pooling
    (``global_pool``, as in MAE, He et al. 2022). Lines say what is not as the name has it."""
    tensors = to_timm(bare_vit(tensors, source), source)
    head = getattr(tensors.get("head.weight"), "shape", ())
    args = {"num_classes": head[0] if len(head) == 2 else 0}
    if not args["num_classes"]:
        warn(f"{source} has no classification head")
    args |= pooling_of(tensors)
    positions = getattr(tensors.get("pos_embed"), "shape", ())
    if len(positions) == 3 and model.pos_embed is not None:
        patches = model.patch_embed.num_patches
        count = positions[1] - (model.pos_embed.shape[1] - patches)  # without prefix tokens
        side = math.isqrt(max(count, 0))
        if 0 < side * side == count != patches:
            rows, cols = model.patch_embed.feat_ratio(as_scalar=False)
            args["img_size"] = (side * rows, side * cols)
            warn(f"{source} was trained on photos of {side * rows} × {side * cols} pixels, which "
                 "are used")
    return tensors, args


def pooling_of(tensors: Tensors) -> dict:
    """What timm's builder must be told of a ViT whose last norm is behind the pooling, else {}."""
    behind = "fc_norm.weight" in tensors and "norm.weight" not in tensors
    return {"global_pool": "avg"} if behind else {}
