"""Models around other libraries' weights (``models.convert``).

Sizes come from the tensors' shapes. What shapes do not tell is read beside the file, where
``save_pretrained`` and the hub put it (``config.json``, ``preprocessor_config.json``, a tokenizer),
else it is what all published models of the layout have in common.
"""

from __future__ import annotations

import inspect
import math
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from utils import UserError, one_line, read_json, warn

import torch
from PIL import Image
from timm.data import ImageNetInfo
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from timm.layers import LayerNorm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models.checkpoint import read_tensors
from models.convert import TRANSFORMERS, Layout, Tensors, from_openai_clip, to_timm, vit_layout

BASE = "vit_base_patch16_224"  # timm's builder that takes any size
WRONG = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError)


def _beside(path: Path, name: str) -> dict:
    """The JSON object ``name`` in the file's folder; {} where there is none."""
    file = path.parent / name
    content = read_json(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a JSON object")
    return content


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
    layout, config = vit_layout(tensors), _beside(path, "config.json")
    if (layout is None and "patch_embed.proj.weight" not in tensors
            and "architecture" not in config):
        raise UserError(f"{path} is not a checkpoint of this project, nor a ViT in a layout known "
                        f"here (its first keys: {', '.join(list(tensors)[:3])}); another model of "
                        "timm's needs timm's config.json beside it")
    try:
        if layout is None:
            return _from_timm(tensors, config, path)
        tensors = to_timm(tensors, path)
        architecture = {"name": BASE, "args": _sizes(tensors, layout, config, path)}
        classes, names = imagenet_or_numbers(len(tensors.get("head.weight", ())))
        told = {key: str(name) for key, name in config.get("id2label", {}).items()
                if name != f"LABEL_{key}"}
        return ForeignViT(tensors, architecture, _preprocessing(layout, path), classes,
                          told or names)
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


def _preprocessing(layout: Layout, path: Path) -> dict:
    """As the processor beside the file has it; where it is silent, as both libraries do: the whole
    photo made square, bilinear, mean and deviation 0.5."""
    processor = _beside(path, "preprocessor_config.json")
    if not processor and layout.title == TRANSFORMERS.title:
        warn(f"{path} has no preprocessor_config.json beside it: photos are made square, mean and "
             "deviation 0.5")
    normalized = processor.get("do_normalize", True)
    fields = {"resize": "squash", "crop_pct": 1.0,
              "mean": tuple(processor.get("image_mean", (0.5,) * 3)) if normalized else (0.0,) * 3,
              "std": tuple(processor.get("image_std", (0.5,) * 3)) if normalized else (1.0,) * 3,
              "interpolation": Image.Resampling(processor.get("resample", 2)).name.lower()}
    size, crop = processor.get("size"), processor.get("crop_size")
    scale = processor.get("rescale_factor", 1 / 255)
    if processor.get("do_center_crop"):
        edge = size.get("shortest_edge", 0) if isinstance(size, dict) else size
        crop = crop["height"] if isinstance(crop, dict) else crop
        fields |= {"resize": "crop", "crop_pct": crop / edge}
    if fields["crop_pct"] > 1 or not math.isclose(scale, 1 / 255):
        raise UserError(f"{path} wants photos prepared in a way that is not known here: resized to "
                        f"{size}, cropped to {crop}, times {scale}")
    return fields


def _from_timm(tensors: Tensors, config: dict, path: Path) -> ForeignViT:
    if "architecture" not in config:
        raise UserError(f"{path} holds a ViT of timm's, but not its name: give --model NAME "
                        "--weights FILE, or put timm's config.json beside it")
    described = config["pretrained_cfg"]
    args = {"img_size": described["input_size"][1:]} | config.get("model_args", {})
    args = {key: value for key, value in args.items() if key in ARGUMENTS}
    fields = {key: described[key] for key in ("mean", "std", "crop_pct", "interpolation")}
    fields["size"] = tuple(described["input_size"][1:])
    return ForeignViT(tensors, {"name": config["architecture"], "args": args}, fields,
                      *imagenet_or_numbers(config["num_classes"]))


def imagenet_or_numbers(count: int) -> tuple[list[str], dict[str, str]]:
    """Labels of ``count`` logits that nobody named, and ImageNet's names where they are 1,000."""
    labels = [str(index) for index in range(count)]
    if count != 1000:
        return labels, {}
    imagenet = ImageNetInfo()
    return labels, {label: imagenet.index_to_description(int(label)) for label in labels}


def for_timm(args: dict) -> dict:
    """An architecture's arguments as timm takes them; a checkpoint describes them in JSON."""
    args = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
    if "norm_eps" in args:
        args["norm_layer"] = partial(LayerNorm, eps=args.pop("norm_eps"))
    return args


def for_model(model: nn.Module, tensors: Tensors, source: object) -> Tensors:
    """Tensors in any layout known, for a model whose position embedding may have another grid."""
    tensors = to_timm(tensors, source)
    # Most families of timm have one, which also knows older layouts of their own.
    adapt = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what its resampling of tables does is deprecated
            return adapt(tensors, model) if adapt else tensors
    except Exception as error:  # tensors of another model fail in many ways there
        raise UserError(f"{source} does not fit the model: {one_line(error)}") from None


# --- CLIP ---------------------------------------------------------------------------------------

OPENAI = ("openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14")  # one vocabulary


def openai_clip(path: Path) -> tuple[torch.nn.Module, object, dict] | None:
    """(transformers' CLIPModel, its tokenizer, preprocessing) of OpenAI's state dict; None where
    the file is another.

    The activation is the quick GELU: models that others trained in this layout with the exact one
    look the same, and come out slightly wrong. OpenAI's file brings no vocabulary; that is taken
    from the file's folder, else from the hub's cache. Raises UserError for what does not fit.
    """
    tensors, metadata = read_tensors(path)
    if metadata or "visual.conv1.weight" not in tensors:
        return None
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    silence_transformers()
    try:
        tensors = from_openai_clip(tensors, path)
        patches = tensors["vision_model.embeddings.patch_embedding.weight"]
        places = tensors["vision_model.embeddings.position_embedding.weight"]
        contexts = tensors["text_model.embeddings.position_embedding.weight"]
        vocabulary = len(tensors["text_model.embeddings.token_embedding.weight"])
        tokenizer = CLIPTokenizer.from_pretrained(_clip_tokenizer(path))
        if len(tokenizer) != vocabulary:
            raise UserError(f"the tokenizer for {path} has {len(tokenizer)} tokens, the model "
                            f"{vocabulary}; they do not belong together")
        side = patches.shape[-1] * math.isqrt(len(places) - 1)
        config = CLIPConfig(
            text_config=_tower(tensors, "text") | {
                "vocab_size": vocabulary, "max_position_embeddings": len(contexts),
                "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id},
            vision_config=_tower(tensors, "vision") | {
                "patch_size": patches.shape[-1], "image_size": side},
            projection_dim=len(tensors["text_projection.weight"]))
        model = CLIPModel.from_pretrained(None, config=config, state_dict=tensors,
                                          dtype=torch.float32)
    except (*WRONG, RuntimeError, OSError) as error:
        raise UserError(f"{path} is no CLIP of OpenAI's: {one_line(error)[:200]}") from None
    return model.eval(), tokenizer, {
        "size": (side, side), "resize": "crop", "crop_pct": 1.0, "interpolation": "bicubic",
        "mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD}


def _tower(tensors: Tensors, tower: str) -> dict:
    layers = [key for key in tensors if key.startswith(tower) and key.endswith("mlp.fc1.weight")]
    hidden, width = tensors[layers[0]].shape
    return {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": len(layers),
            "num_attention_heads": width // 64, "hidden_act": "quick_gelu"}


def _clip_tokenizer(path: Path) -> Path:
    """The folder with the vocabulary for OpenAI's CLIP."""
    from huggingface_hub import try_to_load_from_cache

    kinds = "tokenizer.json", "merges.txt"
    cached = [try_to_load_from_cache(name, kind) for name in OPENAI for kind in kinds]
    for folder in (path.parent, *(Path(file).parent for file in cached if isinstance(file, str))):
        if any((folder / kind).is_file() for kind in kinds):
            return folder
    raise UserError(f"the vocabulary of {path} is missing: put tokenizer.json (or vocab.json and "
                    f"merges.txt) of {OPENAI[0]} beside it")


def silence_transformers() -> None:
    """No remarks and no bars of its own: what is wrong becomes one line of ours."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
