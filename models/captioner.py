"""The captioner interface, and a vision transformer with a GPT-2 decoder behind it.

What decoding and figures need of any captioner:

- ``encode(images)`` -> ``Memory``, once an image
- ``start(memory)`` -> state of one row an image, before its first token
- ``step(tokens, state)`` -> logits and state after one more token a row
- ``reorder(state, index)`` -> the state of other rows
- ``forward(memory, tokens)`` -> logits at every position (teacher forcing)
- ``cross_attention(memory, tokens, layer)`` -> weights over the image grid, which sum to 1
- ``check_layer(layer)``, UserError where there is no such layer to read
- ``describe()`` -> what a checkpoint says of its architecture
- ``encoder``, what a training can freeze, and ``encoder_prefix`` of its parameters' names
- ``max_length``, the most tokens it can write, and ``tokenizer``
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from utils import UserError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.transform import Transform
from models.checkpoint import (
    load_checkpoint,
    load_strict,
    read_tensors,
    rebuild,
    save_checkpoint,
)
from models.gpt2 import GPT2, GPT2Config, KeyValue, described_gpt2, from_gpt2, gpt2_config
from models.tokenizer import Tokenizer, gpt2_files, gpt2_tokenizer
from models.vit import build_vit, described_vit

IGNORED = -100  # what pads targets: no loss there


@dataclass
class Memory:
    """What a decoder sees of M images: features (M, N, C), where there are any (mask (M, N), None
    for everywhere), and each image's grid of rows × cols cells, row by row; what pads a smaller
    grid follows its cells."""

    features: Tensor
    grids: list[tuple[int, int]]
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)


@dataclass
class State:
    """Keys and values of what was written, a row each, and of the memories they look at."""

    past: list[KeyValue] | None
    memory: list[KeyValue]
    mask: Tensor | None


class Captioner(nn.Module):
    """Patch tokens of a timm ViT, seen by GPT-2 through cross-attention.

    With ``cross_width`` None in the decoder's config it is a language model that sees nothing:
    the base that captioners start from.
    """

    encoder_prefix = "encoder."

    def __init__(
        self, encoder: nn.Module, decoder: GPT2Config, tokenizer: Tokenizer, preprocessing: dict,
        architecture: dict, metadata: dict | None = None,
    ) -> None:
        super().__init__()
        if tokenizer.vocab_size != decoder.vocab_size:
            raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the decoder "
                            f"{decoder.vocab_size}; they do not belong together")
        self.encoder, self.decoder = encoder, GPT2(decoder)
        self.memory_proj = nn.Identity()
        if decoder.cross_width and encoder.embed_dim != decoder.width:
            self.memory_proj = nn.Linear(encoder.embed_dim, decoder.width)
        self.tokenizer, self.preprocessing = tokenizer, preprocessing
        self.architecture = architecture  # of the encoder: {"name", "args"} as timm takes them
        self.metadata = metadata or {}

    @property
    def transform(self) -> Transform:
        """How a photo is prepared for this model."""
        return Transform.from_fields(self.preprocessing)

    @property
    def max_length(self) -> int:
        return self.decoder.config.max_length

    def encode(self, images: Tensor) -> Memory:
        """images (M, 3, H, W) -> patch tokens, class and register tokens left out."""
        features = self.encoder.forward_features(images)[:, self.encoder.num_prefix_tokens:]
        return self.memory_of(features)

    def memory_of(self, features: Tensor) -> Memory:
        """The memory of images whose patch tokens (M, N, C) are at hand already."""
        return Memory(features, [tuple(self.encoder.patch_embed.grid_size)] * len(features))

    def forward(
        self, source: Memory | Tensor | None, tokens: Tensor, where: Tensor | None = None
    ) -> Tensor:
        """tokens (B, T), B a multiple of the images -> logits (B, T, vocabulary) of what follows,
        or (places, vocabulary) of the places that are True in ``where`` (B, T).

        ``source`` is a memory, images still to encode, or None where nothing is seen.
        """
        if source is None:
            return self.decoder(tokens, where=where)[0]
        memory = source if isinstance(source, Memory) else self.encode(source)
        state = self.start(memory)
        return self.decoder(tokens, state.memory, state.mask, where=where)[0]

    def start(self, memory: Memory) -> State:
        projected = self.decoder.project_memory(self.memory_proj(memory.features))
        return State(None, projected, memory.mask)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """tokens (B,) -> logits (B, vocabulary) of the next one."""
        logits, past = self.decoder(tokens[:, None], state.memory, state.mask, state.past)
        return logits[:, 0], replace(state, past=past)

    def reorder(self, state: State, index: Tensor) -> State:
        """index (images, beams) of rows of ``state``; the beams of an image belong to one image.

        Images can be left out, rows repeated; the memories are not copied for each beam.
        """
        rows, images = index.reshape(-1), len(state.memory[0][0])
        kept = index[:, 0] // (len(state.past[0][0]) // images)
        past = [(k[rows], v[rows]) for k, v in state.past]
        if torch.equal(kept, torch.arange(images, device=kept.device)):
            return replace(state, past=past)
        memory = [(k[kept], v[kept]) for k, v in state.memory]
        return State(past, memory, None if state.mask is None else state.mask[kept])

    def cross_attention(self, memory: Memory, tokens: Tensor, layer: int = -1) -> Tensor:
        """tokens (B, T) -> (B, heads, T, N) float32: row t is what the query that wrote token
        ``t`` saw, which is the query of the token before it (of the start, for the first)."""
        self.check_layer(layer)
        start = torch.full_like(tokens[:, :1], self.tokenizer.start_id)
        state = self.start(memory)
        inputs = torch.cat([start, tokens[:, :-1]], 1)
        return self.decoder.cross_attention(inputs, state.memory, state.mask, layer)

    def describe(self) -> dict:
        """What ``load_captioner`` rebuilds it from."""
        config = self.decoder.config
        return {"kind": "captioner" if config.cross_width else "base",
                "encoder": self.architecture, "decoder": asdict(config),
                "tokenizer": self.tokenizer.to_json(), "preprocessing": self.preprocessing}

    def check_layer(self, layer: int) -> None:
        """UserError for a layer that the decoder does not have; negative ones count from the
        last."""
        count = self.decoder.config.layers
        if not -count <= layer < count:
            raise UserError(f"layer {layer} does not exist: the decoder has layers 0 to "
                            f"{count - 1} (or -{count} to -1)")


# --- teacher forcing ----------------------------------------------------------------------------


def caption_targets(captioner: Captioner, captions: list[str]) -> Tensor:
    """Captions -> (captions, T) ids that end with the end token, padded with ``IGNORED``.

    A caption that is longer than the captioner can write is cut, and then ends with no end token.
    """
    tokenizer = captioner.tokenizer
    rows = [[*tokenizer.encode(text), tokenizer.end_id][:captioner.max_length]
            for text in captions]
    targets = torch.full((len(rows), max(map(len, rows))), IGNORED)
    for target, row in zip(targets, rows, strict=True):
        target[:len(row)] = torch.tensor(row)
    return targets


def teacher_inputs(captioner: Captioner, targets: Tensor) -> Tensor:
    """What the decoder reads to write ``targets`` (B, T): the start, then each token but the last;
    what stands in padded places is never looked at by a place that counts."""
    start = torch.full_like(targets[:, :1], captioner.tokenizer.start_id)
    read = torch.cat([start, targets[:, :-1]], 1)
    return read.masked_fill(read == IGNORED, captioner.tokenizer.pad_id)


def teacher_forcing_loss(
    model: nn.Module, source: Memory | Tensor | None, targets: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, float]:
    """(mean cross-entropy over the targets (B, T) that are not padding, share foretold rightly).

    ``model`` is a captioner, or what wraps it for several processes.
    """
    captioner, counted = unwrap(model), targets != IGNORED
    logits = model(source, teacher_inputs(captioner, targets), counted).float()
    right = (logits.detach().argmax(-1) == targets[counted]).float().mean().item()
    return F.cross_entropy(logits, targets[counted], label_smoothing=label_smoothing), right


def unwrap(model: nn.Module) -> Captioner:
    """The captioner inside what several processes share."""
    return getattr(model, "module", model)


# --- building, saving, loading ------------------------------------------------------------------


def build_captioner(
    name: str, decoder: GPT2Config, tokenizer: Tokenizer, *, pretrained: bool = False,
    weights: str | Path | None = None,
) -> Captioner:
    """A fresh decoder on a ViT named as timm names it: random, timm's (``pretrained``, from the
    network or its cache) or a file's (``weights``)."""
    encoder, preprocessing, architecture = build_vit(name, pretrained, weights)
    return Captioner(encoder, decoder, tokenizer, preprocessing, architecture)


def gpt2_base(
    vit: tuple[nn.Module, dict, dict], decoder: str | Path, dropout: float = 0.1
) -> Captioner:
    """A base of public GPT-2 weights of any size (the course's ``decoder_model.bin``), with the
    tokenizer beside them, on a ViT, its preprocessing and architecture, as ``build_vit`` gives."""
    tensors = from_gpt2(read_tensors(decoder)[0], decoder)
    config, files = gpt2_config(tensors, decoder, dropout), gpt2_files(decoder)
    tokenizer = gpt2_tokenizer(*files)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(f"{files[0]} has {tokenizer.vocab_size} tokens, {decoder} "
                        f"{config.vocab_size}; they do not belong together")
    encoder, preprocessing, architecture = vit
    base = Captioner(encoder, config, tokenizer, preprocessing, architecture)
    load_strict(base.decoder, tensors, decoder)
    return base


def see(base: Captioner, dropout: float = 0.1, cross_width: int | None = None) -> Captioner:
    """A captioner with the weights of ``base``, a captioner or a language model: cross-attention
    is fresh where there was none. One of another architecture sees already."""
    if not isinstance(base, Captioner):
        return base.with_dropout(dropout)
    config = base.decoder.config
    cross_width = config.cross_width or cross_width or config.width
    config = replace(config, cross_width=cross_width, dropout=dropout)
    captioner = Captioner(base.encoder, config, base.tokenizer, base.preprocessing,
                          base.architecture, base.metadata)
    load_strict(captioner, captioner.state_dict() | base.state_dict(), "the base")
    return captioner


def blend_captioners(first: str | Path, second: str | Path, share: float) -> Captioner:
    """``first`` with ``share`` of ``second``'s weights: between two stages of one training often
    lies a model better than both (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").

    Raises UserError where they are not of one shape.
    """
    captioner, other = load_captioner(first), load_captioner(second)
    if captioner.tokenizer.to_json() != other.tokenizer.to_json():
        raise UserError(f"{first} and {second} have different tokenizers; only stages of one "
                        "training can be blended")
    theirs = other.state_dict()
    blended = {key: tensor.lerp(theirs[key], share) if key in theirs else tensor
               for key, tensor in captioner.state_dict().items()}
    load_strict(captioner, {**theirs, **blended}, second)
    return captioner


def save_captioner(path: str | Path, captioner: Captioner, **metadata) -> None:
    """Write a checkpoint in float16, of kind ``base`` where there is no cross-attention."""
    save_checkpoint(path, captioner.state_dict(), captioner.describe() | metadata)


def load_captioner(path: str | Path, *kinds: str) -> Captioner:
    """What ``save_captioner`` wrote, in float32 and eval mode; ``kinds`` default to captioner."""
    tensors, metadata = load_checkpoint(path, *(kinds or ("captioner",)))

    return rebuild(lambda: _described(metadata, tensors), tensors, path)


def _described(metadata: dict, tensors: dict[str, Tensor]) -> Captioner:
    """What ``describe`` described. Raises anything where that is wrong."""
    if metadata.get("architecture") == "catr":
        from models.catr import described_catr  # which builds on this file

        return described_catr(metadata, tensors)
    encoder, preprocessing = metadata["encoder"], metadata["preprocessing"]
    return Captioner(described_vit(encoder, preprocessing),
                     described_gpt2(metadata["decoder"], tensors),
                     Tokenizer.from_json(metadata["tokenizer"]), preprocessing, encoder, metadata)
