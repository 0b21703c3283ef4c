"""Captioners that train few parameters over a frozen base.

``cross``    fresh cross-attention to the photo; every other method has it too, and adds
``adapter``  a bottleneck after each self-attention and each MLP (Houlsby et al. 2019, Sec. 2.1)
``prefix``   learned keys and values before each layer's own (Li & Liang 2021, Sec. 4.2)
``lora``     low-rank changes of linear layers (Hu et al. 2022, Sec. 4.1), by the peft library
``full``     all of the decoder, for comparison

Each of them gives a ``Captioner``. Its file holds only the trained tensors, and the digest of the
base that they belong to.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from utils import UserError, one_line

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import (
    Opened,
    digest,
    load_checkpoint,
    load_strict,
    open_file,
    save_checkpoint,
)
from models.gpt2 import GPT2
from models.vit_gpt2 import ViTGPT2, add_cross_attention

LIMIT = 35_000_000  # trained parameters: the course asks for fewer
# Names within a block. To the peft library a bare "c_attn" would mean the layers of that name in
# self-attention and in cross-attention, but not q_attn.
TARGETS = ("attn.c_attn", "attn.c_proj", "crossattention.q_attn", "crossattention.c_attn",
           "crossattention.c_proj")
OPTIONS = {  # of each method, with their defaults
    "cross": {}, "adapter": {"bottleneck": 64}, "prefix": {"prefix_length": 16},
    "lora": {"rank": 16, "targets": TARGETS}, "full": {}}


@dataclass(frozen=True)
class Method:
    """A method with all of its options. ``cross_width`` None: cross-attention is as wide as the
    decoder."""

    name: str
    cross_width: int | None
    options: dict


def method_of(name: str, cross_width: int | None = None, **options) -> Method:
    """A method; ``options`` that are None take their defaults. Raises UserError for an unknown
    method, an option of another method, and sizes below 1."""
    if name not in OPTIONS:
        raise UserError(f"there is no method {name}; there are {', '.join(OPTIONS)}")
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in OPTIONS[name]:
            raise UserError(f"--{key.replace('_', '-')} has no effect on {name}; leave it out")
    sizes = {**OPTIONS[name], **given}
    for key, value in {"cross_width": cross_width, **sizes}.items():
        if isinstance(value, int) and value < 1:
            raise UserError(f"--{key.replace('_', '-')} must be 1 or more, not {value}")
    return Method(name, cross_width, sizes)


# --- inserting ----------------------------------------------------------------------------------


def insert(base: ViTGPT2, method: Method, dropout: float = 0.1) -> ViTGPT2:
    """A captioner over ``base`` with fresh tensors of ``method``; only these take gradients.

    It shares the encoder with the base and has a copy of the decoder.
    """
    heads = base.decoder.config.heads
    if method.cross_width and method.cross_width % heads:
        raise UserError(f"--cross-width {method.cross_width} is no multiple of the decoder's "
                        f"{heads} heads")
    captioner = add_cross_attention(base, dropout, method.cross_width)
    add = {"adapter": _add_adapters, "prefix": _add_prefixes, "lora": _add_lora}.get(method.name)
    if add:
        add(captioner.decoder, **method.options)
    known = dict(base.named_parameters())
    for name, parameter in captioner.named_parameters():
        whole = method.name == "full" and name.startswith("decoder.")
        parameter.requires_grad_(whole or canonical(name) not in known)
    return captioner


class Adapter(nn.Module):
    """A bottleneck with a residual connection; the identity before training."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.gelu(self.down(x)))


def _add_adapters(decoder: GPT2, bottleneck: int) -> None:
    for block in decoder.h:
        block.after_attn = Adapter(decoder.config.width, bottleneck)
        block.after_mlp = Adapter(decoder.config.width, bottleneck)


def _add_prefixes(decoder: GPT2, prefix_length: int) -> None:
    heads = decoder.config.heads
    for block in decoder.h:
        block.attn.prefix = nn.Parameter(
            0.02 * torch.randn(2, heads, prefix_length, decoder.config.width // heads))


def _add_lora(decoder: GPT2, rank: int, targets: list[str]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=lora_targets(decoder, targets))
    inject_adapter_in_model(config, decoder)


def lora_targets(decoder: GPT2, targets: list[str]) -> list[str]:
    """The full names of the linear layers that ``targets``, names within a block, stand for.

    Raises UserError for a name that no block has.
    """
    linear = [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    found = []
    for target in targets:
        names = [name for name in linear if re.fullmatch(rf"h\.\d+\.{re.escape(target)}", name)]
        if not names:
            known = [name.removeprefix("h.0.") for name in linear if name.startswith("h.0.")]
            raise UserError(f"the decoder has no linear layer {target}; its blocks have "
                            f"{', '.join(known)}")
        found += names
    return found


def merge_lora(captioner: ViTGPT2) -> None:
    """Add LoRA's changes to the weights that they change: the captioner is then as fast as without
    LoRA."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(captioner.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            captioner.set_submodule(name, module.get_base_layer())


# --- names and counts ---------------------------------------------------------------------------


def canonical(name: str) -> str:
    """A tensor's name without the parts that the peft library adds to it."""
    return re.sub(r"\.(base_layer|default)(?=\.)", "", name)


def trained(captioner: ViTGPT2) -> dict[str, Tensor]:
    """The parameters that take gradients, under canonical names."""
    return {canonical(name): parameter for name, parameter in captioner.named_parameters()
            if parameter.requires_grad}


def count_parts(tensors: dict[str, Tensor]) -> dict[str, int]:
    """How many parameters each part of ``trained`` tensors has."""
    counts: dict[str, int] = {}
    for name, tensor in tensors.items():
        part = next((part for part, mark in {
            "lora": ".lora_", "prefix": ".prefix", "adapters": ".after_",
            "cross_attention": "cross", "memory_projection": "memory_proj"}.items()
            if mark in name), "decoder")
        counts[part] = counts.get(part, 0) + tensor.numel()
    return counts


# --- files --------------------------------------------------------------------------------------


def identity_of(base: ViTGPT2) -> dict[str, str]:
    """The digest of a base's encoder and of its decoder; the tokenizer is left out.

    Values are rounded to float16, so that a file and its float16 copy are the same base.
    """
    state = base.state_dict()
    return {part: digest({name: tensor.half() for name, tensor in state.items()
                          if name.startswith(f"{part}.")}) for part in ("encoder", "decoder")}


def save_peft(
    path: str | Path, captioner: ViTGPT2, method: Method, base: dict[str, str], **metadata
) -> None:
    """Write the trained tensors, in float16, and the ``base`` that they belong to
    (``identity_of``)."""
    save_checkpoint(path, trained(captioner), {
        "kind": "peft", "method": asdict(method), "base": base,
        "preprocessing": captioner.preprocessing, **metadata})


def load_peft(
    source: str | Path | Opened, base: ViTGPT2, base_words: str, method: str | None = None
) -> ViTGPT2:
    """What ``save_peft`` wrote, over ``base``, with LoRA merged, in float32 and eval mode.

    ``base_words`` are the options that name the base on a command line. Raises UserError for a file
    of another base, with the command that trains one for this base; and for a file of another
    ``method``.
    """
    file = open_file(source)
    path = file.path
    tensors, metadata = load_checkpoint(file, "peft")
    try:
        described, digests = dict(metadata["method"]), dict(metadata["base"])
        kind = method_of(described["name"], described["cross_width"], **described["options"])
        preprocessing = dict(metadata["preprocessing"])
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} describes its model wrongly: {one_line(error)}") from None
    if method not in (None, kind.name):
        raise UserError(f"{path} holds the tensors of {kind.name}, not of {method}")
    found = identity_of(base)
    differs = [part for part in found if digests.get(part) != found[part]]
    if differs:
        raise UserError(
            f"{path} belongs to another base (its {' and its '.join(differs)} differs); train one "
            f"for this base: python3 peft_caption.py train --method {kind.name} {base_words} "
            "--images DIR --captions JSON --out DIR")
    captioner = insert(base, kind)
    names = {canonical(name): name for name, parameter in captioner.named_parameters()
             if parameter.requires_grad}
    load_strict(captioner, {names.get(key, key): tensor for key, tensor in tensors.items()}, path,
                only=names.values())
    if kind.name == "lora":
        merge_lora(captioner)
    captioner.preprocessing, captioner.metadata = preprocessing, metadata
    return captioner.requires_grad_(False).eval()
