"""GPT-2 (Radford et al. 2019) as a decoder with cross-attention, equal to transformers' GPT-2.

Parameters have the names of OpenAI's and Hugging Face's files. GPT-2 files store matrices as
(in, out); here they are ordinary ``nn.Linear``, and ``from_gpt2`` transposes. B rows of tokens may
attend to fewer memories, M: row r attends to memory r // (B / M), so that the beams of one image,
or its five captions, share one set of keys and values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from utils import UserError, warn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.hub import beside

KeyValue = tuple[Tensor, Tensor]  # each (rows or memories, heads, length, width / heads)


@dataclass(frozen=True)
class GPT2Config:
    vocab_size: int = 50257
    max_length: int = 1024
    width: int = 768
    layers: int = 12
    heads: int = 12
    cross_width: int | None = 768  # of cross-attention; None: there is no cross-attention
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """UserError for sizes that no GPT-2 can have."""
        sizes = (self.vocab_size, self.max_length, self.width, self.layers, self.heads,
                 self.width if self.cross_width is None else self.cross_width)
        if not all(type(size) is int and size > 0 for size in sizes):
            raise UserError(f"a GPT-2 cannot have the sizes {sizes}")
        if self.width % self.heads or sizes[-1] % self.heads:
            raise UserError(f"{self.heads} heads do not divide a width of "
                            f"{self.width if self.width % self.heads else self.cross_width}")


class SelfAttention(nn.Module):
    """Causal multi-head attention over the tokens so far."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.c_attn = nn.Linear(config.width, 3 * config.width)
        self.c_proj = nn.Linear(config.width, config.width)
        self.register_parameter("prefix", None)  # (2, heads, length, C / heads): models.peft

    def forward(self, x: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """x (B, T, C) -> (B, T, C), and the keys and values of all tokens so far.

        The learned keys and values of a prefix come before each row's own. The past does not hold
        them, because its length gives the position of the next token.
        """
        B, T, C = x.shape
        # each (B, H, T, D)
        q, k, v = self.c_attn(x).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        present = k, v
        if self.prefix is not None:
            k, v = (torch.cat([learned.to(own.dtype).expand(B, -1, -1, -1), own], 2)
                    for learned, own in zip(self.prefix, present, strict=True))
        mask, before = None, k.shape[2] - T  # keys before the first query's own
        if T > 1 and before:
            mask = torch.ones(T, k.shape[2], dtype=torch.bool, device=x.device).tril(before)
        x = F.scaled_dot_product_attention(
            q, k, v, mask, dropout_p=self.dropout if self.training else 0.0,
            is_causal=T > 1 and not before)
        return self.c_proj(x.transpose(1, 2).reshape(B, T, C)), present


class CrossAttention(nn.Module):
    """Multi-head attention from the tokens to a memory."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.q_attn = nn.Linear(config.width, config.cross_width)
        self.c_attn = nn.Linear(config.width, 2 * config.cross_width)
        self.c_proj = nn.Linear(config.cross_width, config.width)

    def project(self, memory: Tensor) -> KeyValue:
        """memory (M, N, C) -> keys and values, computed once an image."""
        M, N, _ = memory.shape
        k, v = self.c_attn(memory).view(M, N, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return k, v  # (M, H, N, D)

    def queries(self, x: Tensor, memories: int) -> Tensor:
        """x (B, T, C) -> (M, H, B / M · T, D): the queries of all rows of a memory together."""
        return self.q_attn(x).view(memories, -1, self.heads, self.q_attn.out_features // self.heads
                                   ).transpose(1, 2)

    def forward(self, x: Tensor, memory: KeyValue, mask: Tensor | None) -> Tensor:
        """x (B, T, C), mask (M, N), False at padding -> (B, T, C)."""
        B, T, _ = x.shape
        k, v = memory
        q, mask = self.queries(x, len(k)), None if mask is None else mask[:, None, None]
        if self.training and x.device.type == "cpu":
            # With few queries, the fused kernel's backward pass is slower than these products.
            scores = q / q.shape[-1] ** 0.5 @ k.transpose(2, 3)
            if mask is not None:
                scores = scores.masked_fill(~mask, float("-inf"))
            x = F.dropout(scores.softmax(-1).to(v.dtype), self.dropout) @ v
        else:
            x = F.scaled_dot_product_attention(
                q, k, v, mask, dropout_p=self.dropout if self.training else 0.0)
        return self.c_proj(x.transpose(1, 2).reshape(B, T, -1))

    def attention_weights(self, x: Tensor, memory: KeyValue, mask: Tensor | None) -> Tensor:
        """x (B, T, C) -> (B, heads, T, N) float32; rows sum to 1."""
        B, T, _ = x.shape
        k = memory[0]
        q = self.queries(x, len(k)).float()
        scores = q @ k.float().transpose(2, 3) / q.shape[-1] ** 0.5  # (M, H, B / M · T, N)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
        weights = scores.softmax(-1).view(len(k), self.heads, -1, T, k.shape[2])
        return weights.transpose(1, 2).reshape(B, self.heads, T, -1)


class Block(nn.Module):
    """A pre-norm layer: self-attention, cross-attention where the config has it, MLP."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width)
        self.attn = SelfAttention(config)
        if config.cross_width:
            self.ln_cross_attn = nn.LayerNorm(config.width)
            self.crossattention = CrossAttention(config)
        self.ln_2 = nn.LayerNorm(config.width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(config.width, 4 * config.width),
                                  "c_proj": nn.Linear(4 * config.width, config.width)})
        self.drop = nn.Dropout(config.dropout)
        self.after_attn, self.after_mlp = nn.Identity(), nn.Identity()  # adapters: models.peft

    def self_attend(self, x: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        attended, present = self.attn(self.ln_1(x), past)
        return x + self.drop(self.after_attn(attended)), present

    def cross_attend_and_mlp(
        self, x: Tensor, memory: KeyValue | None, mask: Tensor | None
    ) -> Tensor:
        if memory is not None:
            x = x + self.drop(self.crossattention(self.ln_cross_attn(x), memory, mask))
        hidden = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + self.drop(self.after_mlp(self.mlp["c_proj"](hidden)))


class GPT2(nn.Module):
    """Tokens (and a memory) -> logits of the next token; output and input embedding are one."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.width)
        self.wpe = nn.Embedding(config.max_length, config.width)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width)
        self.apply(_initialize)
        for name, parameter in self.named_parameters():  # Radford et al. 2019, Sec. 2.3
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=0.02 / (2 * config.layers) ** 0.5)

    def project_memory(self, memory: Tensor) -> list[KeyValue]:
        """memory (M, N, C) -> each layer's keys and values over it."""
        return [block.crossattention.project(memory) for block in self.h]

    def forward(
        self, tokens: Tensor, memory: list[KeyValue] | None = None, mask: Tensor | None = None,
        past: list[KeyValue] | None = None, where: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """tokens (B, T), which follow ``past`` -> logits (B, T, vocabulary), and the new past.

        With ``where`` (B, T) bool, logits (positions, vocabulary) of the positions that are True.
        Over a large vocabulary the logits take most of a training step.
        """
        x, presents = self.hidden(tokens, memory, mask, past, where)
        return F.linear(x, self.wte.weight), presents

    def hidden(
        self, tokens: Tensor, memory: list[KeyValue] | None = None, mask: Tensor | None = None,
        past: list[KeyValue] | None = None, where: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """As ``forward``, but the states after the last norm, (B, T, C) or (positions, C)."""
        x = self.embed(tokens, past)
        presents = []
        for layer, block in enumerate(self.h):
            x, present = block.self_attend(x, past and past[layer])
            x = block.cross_attend_and_mlp(x, memory and memory[layer], mask)
            presents.append(present)
        return self.ln_f(x if where is None else x[where]), presents

    def cross_attention(
        self, tokens: Tensor, memory: list[KeyValue], mask: Tensor | None, layer: int
    ) -> Tensor:
        """tokens (B, T) -> (B, heads, T, N) float32: the cross-attention weights of each token's
        query in ``layer`` (0 or more); rows sum to 1."""
        x = self.embed(tokens, None)
        for block, keys_values in zip(self.h[:layer], memory, strict=False):
            x, _ = block.self_attend(x, None)
            x = block.cross_attend_and_mlp(x, keys_values, mask)
        block = self.h[layer]
        x, _ = block.self_attend(x, None)
        return block.crossattention.attention_weights(block.ln_cross_attn(x), memory[layer], mask)

    def embed(self, tokens: Tensor, past: list[KeyValue] | None) -> Tensor:
        """tokens (B, T), which follow ``past`` -> token and position embeddings (B, T, C)."""
        start = past[0][0].shape[2] if past else 0
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        return self.drop(self.wte(tokens) + self.wpe(positions))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


# --- OpenAI's and Hugging Face's files ----------------------------------------------------------

MASK_BUFFERS = ("attn.bias", "attn.masked_bias", "crossattention.bias",
                "crossattention.masked_bias")


def from_gpt2(tensors: dict[str, Tensor], source: object = "the file") -> dict[str, Tensor]:
    """A state dict of OpenAI's or Hugging Face's GPT-2 -> one of ``GPT2``.

    A ``transformer.`` prefix, the causal-mask buffers and an output layer that repeats the
    embedding are left out. All matrices but the embeddings are transposed. Raises UserError for an
    output layer that differs from the embedding: the decoder's output layer is its embedding.
    """
    ours = {}
    for key, tensor in tensors.items():
        key = key.removeprefix("transformer.")
        in_layer = key.split(".", 2)[-1] if key.startswith("h.") else None
        if in_layer not in MASK_BUFFERS:
            ours[key] = tensor.t() if in_layer and tensor.ndim == 2 else tensor
    output, embedding = ours.pop("lm_head.weight", None), ours.get("wte.weight")
    if output is not None and (
            embedding is None or not torch.equal(output.float(), embedding.float())):
        raise UserError(f"{source} has an output layer (lm_head.weight) that is not its embedding "
                        "(wte.weight); only GPT-2s that share the two can be used, as the public "
                        "ones do")
    return ours


def described_gpt2(fields: dict, tensors: dict[str, Tensor]) -> GPT2Config:
    """The config that a checkpoint with ``tensors`` gives for its GPT-2."""
    config = GPT2Config(**fields)
    if config.layers > len(tensors):  # a wrong number could be a billion: refused before building
        raise UserError(f"{config.layers} layers, in a file of {len(tensors)} tensors")
    return config


# What a config.json may say only thus: the decoder computes nothing else.
COMPUTED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),  # one function
    "layer_norm_epsilon": (1e-5,), "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,)}


def gpt2_config(tensors: dict[str, Tensor], source: object, dropout: float = 0.1) -> GPT2Config:
    """The config of a GPT-2 from its tensors, as ``from_gpt2`` returns them, and from the
    ``config.json`` beside ``source``, which alone tells the number of heads; without it heads are
    64 wide, as in all public GPT-2 models.

    Raises UserError that names missing tensors, and for a config.json of another model or of one
    that computes something else.
    """
    missing = [key for key in ("wte.weight", "wpe.weight", "h.0.attn.c_attn.weight")
               if getattr(tensors.get(key), "ndim", 0) != 2]
    if missing:
        raise UserError(f"{source} is no GPT-2: {', '.join(missing)} missing or no matrix")
    vocab_size, width = tensors["wte.weight"].shape
    layers = {int(key.split(".")[1]) for key in tensors if re.match(r"h\.\d+\.", key)}
    seen = {"vocab_size": vocab_size, "n_positions": len(tensors["wpe.weight"]), "n_embd": width,
            "n_layer": len(layers)}
    heads = _heads(source, seen) or max(width // 64, 1)
    return GPT2Config(vocab_size, seen["n_positions"], width, len(layers), heads, cross_width=None,
                      dropout=dropout)


def _heads(source: object, seen: dict[str, int]) -> int | None:
    """``n_head`` of the config.json beside a file with the sizes ``seen``; None where it is not
    told."""
    told = beside(str(source), "config.json")
    if told and told.get("model_type", "gpt2") != "gpt2":
        warn(f"the config.json beside {source} is of a {told['model_type']} model: it is not used, "
             "and the decoder's heads are taken to be 64 wide")
        return None
    sizes = {key: told.get(key, value) for key, value in seen.items()}
    if sizes != seen:
        raise UserError(f"{source} and the config.json beside it do not belong together: {seen} "
                        f"against {sizes}")
    odd = [f"{key} {told[key]}" for key, values in COMPUTED.items()
           if told.get(key, values[0]) not in values]
    if odd:
        raise UserError(f"the config.json beside {source} asks for {', '.join(odd)}; the decoder "
                        "computes as the public GPT-2s do")
    return told.get("n_head")
