"""Other libraries' key names, recognised and turned into those that we work on.

- A ViT of transformers (``ViTModel``, ``ViTForImageClassification``; since version 5 its keys in
  memory differ from those in its files) or of pytorch_pretrained_vit -> timm's.
- OpenAI's CLIP with a ViT -> transformers' ``CLIPModel``.

GPT-2's are in ``models.gpt2``. A file that is not wholly of one layout is refused by a UserError
that names the first keys that do not fit.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from utils import UserError, warn

import torch
from torch import Tensor

from models.checkpoint import refuse_misfits, without_prefix

Tensors = dict[str, Tensor]


class Source:
    """A file's tensors, taken out one by one: what was missing and what is left do not fit."""

    def __init__(self, tensors: Tensors, unused: Collection[str]) -> None:
        self.left = {key: tensor for key, tensor in tensors.items() if key not in unused}
        self.missing = []

    def take(self, key: str) -> Tensor:
        if key not in self.left:
            self.missing.append(key)
        return self.left.pop(key, torch.zeros(0, 0))

    def take_modules(self, modules: dict[str, str]) -> Tensors:
        """{our name: theirs} of modules -> weights and biases under our names."""
        return {f"{ours}.{kind}": self.take(f"{theirs}.{kind}")
                for ours, theirs in modules.items() for kind in ("weight", "bias")}

    def blocks(self, prefix: str) -> range:
        """The blocks under ``prefix``; they are counted, so that a stray number is left over."""
        found = (re.match(rf"{re.escape(prefix)}(\d+)\.", key) for key in self.left)
        return range(len({match[1] for match in found if match}))

    def check(self, source: object, what: str) -> None:
        refuse_misfits({"missing": self.missing, "left over": list(self.left)}, source, what)


# --- vision transformers ------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How a library names the parts of a ViT; the keys of ``inner`` and ``outer`` are timm's."""

    title: str
    blocks: str  # what stands before a block's number
    qkv: tuple[str, str, str]  # in a block
    inner: dict[str, str]  # the other parts of a block
    outer: dict[str, str]
    norm_eps: float  # where no config.json says it
    unused: tuple[str, ...] = ()  # neither logits nor patch tokens depend on it


TRANSFORMERS = Layout(
    title="transformers' ViT",
    blocks="encoder.layer.",
    qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    inner={"norm1": "layernorm_before", "attn.proj": "attention.output.dense",
           "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"},
    outer={"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
           "patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm",
           "head": "classifier"},
    norm_eps=1e-12,
    unused=("pooler.dense.weight", "pooler.dense.bias"),
)
LAYOUTS = (
    TRANSFORMERS,
    replace(TRANSFORMERS, blocks="layers.",
            qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
            inner=TRANSFORMERS.inner | {"attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1",
                                        "mlp.fc2": "mlp.fc2"}),
    Layout(
        title="pytorch_pretrained_vit's ViT",
        blocks="transformer.blocks.",
        qkv=("attn.proj_q", "attn.proj_k", "attn.proj_v"),
        inner={"norm1": "norm1", "attn.proj": "proj", "norm2": "norm2", "mlp.fc1": "pwff.fc1",
               "mlp.fc2": "pwff.fc2"},
        outer={"cls_token": "class_token", "pos_embed": "positional_embedding.pos_embedding",
               "patch_embed.proj": "patch_embedding", "norm": "norm", "head": "fc"},
        norm_eps=1e-6,
    ),
)


PROJECTION = re.compile(r"head\.(?!weight$|bias$)|dino_head\.|ibot_head\.")  # self-supervision's
COUNTERS = ("n_averaged",)  # of torch's AveragedModel


def bare_vit(tensors: Tensors, source: object) -> Tensors:
    """The tensors of one ViT without the prefix under which a larger module held it
    (``backbone.``, ``net.``, ``teacher.``), and without the projection heads of self-supervised
    training. Tensors that hold no ViT are returned as they are.

    A linear layer beside the ViT (``fc``, ``classifier``) is its head. Where two are held, a
    teacher's goes before a student's, and any before an average. Lines say what was decided;
    UserError where nothing decides.
    """
    ends = [layout.outer["patch_embed.proj"] for layout in LAYOUTS] + ["patch_embed.proj"]
    prefixes = {key[:-len(f"{end}.weight")] for key in tensors for end in ends
                if re.search(rf"(^|\.){re.escape(end)}\.weight$", key)}
    if not prefixes:
        return tensors
    chosen = [prefix for prefix in prefixes if not re.search(r"student|\bema|average", prefix)]
    if len(prefixes) > 1:
        chosen = chosen or [prefix for prefix in prefixes if "student" not in prefix]
        if len(chosen) != 1:
            raise UserError(f"{source} holds {len(prefixes)} ViTs ({', '.join(sorted(prefixes))}): "
                            "save the one that is meant to a file of its own")
        warn(f"{source} holds {len(prefixes)} ViTs ({', '.join(sorted(prefixes))}): {chosen[0]} is "
             "used")
        tensors = {key: tensor for key, tensor in tensors.items()
                   if not key.startswith(tuple(prefixes - set(chosen)))}
    prefix, = chosen or prefixes
    bare = without_prefix(tensors, rf"({re.escape(prefix)})?", source)
    if vit_layout(bare) is not None:
        return {key: tensor for key, tensor in bare.items() if key not in COUNTERS}
    left_out = [key for key in bare if PROJECTION.match(key) or key in COUNTERS]
    if "pre_logits.fc.weight" in bare:  # of timm's older ImageNet-21k weights
        left_out += [key for key in bare if key.startswith(("pre_logits.", "head."))]
    if left_out:
        warn(f"{source}: what is no part of the ViT is left out: {', '.join(left_out[:3])}"
             f"{', …' * (len(left_out) > 3)}")
    bare = {key: tensor for key, tensor in bare.items() if key not in left_out}
    for name in ("fc", "classifier"):
        if getattr(bare.get(f"{name}.weight"), "ndim", 0) == 2 and "head.weight" not in bare:
            warn(f"{source}: {name} is taken as the ViT's head")
            bare = {re.sub(rf"^{name}\.(weight|bias)$", r"head.\1", key): tensor
                    for key, tensor in bare.items()}
    return bare


def vit_layout(tensors: Tensors) -> Layout | None:
    """The layout of a ViT that is not timm's; None where it is none of those known here."""
    return next((layout for layout in LAYOUTS if any(
        key.removeprefix("vit.").startswith(layout.blocks)
        and key.endswith(f"{layout.qkv[0]}.weight") for key in tensors)), None)


def to_timm(tensors: Tensors, source: object) -> Tensors:
    """A ViT's tensors under timm's keys; those of no layout known here are returned as they are."""
    layout = vit_layout(tensors)
    if layout is None:
        return tensors
    bare = without_prefix(tensors, r"(vit\.)?", source)
    outer, unused = dict(layout.outer), layout.unused
    if "pre_logits.weight" in bare:  # of ImageNet-21k weights
        warn(f"{source} has a head of two layers, which timm's ViT has not: it is left out")
        unused = [key for key in bare if key.startswith(("pre_logits.", f"{outer['head']}."))]
    theirs = Source(bare, unused)
    if f"{outer['head']}.weight" not in theirs.left:
        del outer["head"]
    ours = {key: theirs.take(outer.pop(key)) for key in ("cls_token", "pos_embed")}
    ours |= theirs.take_modules(outer)
    kinds = ["weight"] + ["bias"] * any(key.endswith(f"{layout.qkv[0]}.bias") for key in bare)
    for number in theirs.blocks(layout.blocks):
        block, place = f"{layout.blocks}{number}.", f"blocks.{number}."
        ours |= theirs.take_modules({place + key: block + name
                                     for key, name in layout.inner.items()})
        for kind in kinds:
            parts = [theirs.take(f"{block}{name}.{kind}") for name in layout.qkv]
            if parts[0].ndim and len({part.shape[1:] for part in parts}) == 1:  # else: misshapen
                ours[f"{place}attn.qkv.{kind}"] = torch.cat(parts)
    theirs.check(source, layout.title)
    return ours


# --- CLIP ---------------------------------------------------------------------------------------

OPENAI_BLOCK = {"layer_norm1": "ln_1", "self_attn.out_proj": "attn.out_proj",
                "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
OPENAI_UNUSED = ("input_resolution", "context_length", "vocab_size")  # sizes, of its archives


def from_openai_clip(tensors: Tensors, source: object) -> Tensors:
    """OpenAI's state dict -> that of transformers' ``CLIPModel``."""
    theirs = Source(tensors, OPENAI_UNUSED)
    texts, images = "text_model.embeddings", "vision_model.embeddings"
    ours = {
        "logit_scale": theirs.take("logit_scale"),
        "text_projection.weight": theirs.take("text_projection").t(),
        "visual_projection.weight": theirs.take("visual.proj").t(),
        f"{texts}.token_embedding.weight": theirs.take("token_embedding.weight"),
        f"{texts}.position_embedding.weight": theirs.take("positional_embedding"),
        f"{images}.class_embedding": theirs.take("visual.class_embedding"),
        f"{images}.patch_embedding.weight": theirs.take("visual.conv1.weight"),
        f"{images}.position_embedding.weight": theirs.take("visual.positional_embedding"),
    } | theirs.take_modules({"text_model.final_layer_norm": "ln_final",
                             "vision_model.pre_layrnorm": "visual.ln_pre",
                             "vision_model.post_layernorm": "visual.ln_post"})
    for tower, prefix in (("text", "transformer."), ("vision", "visual.transformer.")):
        for number in theirs.blocks(f"{prefix}resblocks."):
            block = f"{prefix}resblocks.{number}."
            place = f"{tower}_model.encoder.layers.{number}."
            ours |= theirs.take_modules({place + key: block + name
                                         for key, name in OPENAI_BLOCK.items()})
            for kind in ("weight", "bias"):
                parts = theirs.take(f"{block}attn.in_proj_{kind}").tensor_split(3)
                ours |= {f"{place}self_attn.{letter}_proj.{kind}": part
                         for letter, part in zip("qkv", parts, strict=True)}
    theirs.check(source, "OpenAI's CLIP with a ViT")
    return ours
