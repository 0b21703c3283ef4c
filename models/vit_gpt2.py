"""A captioner of a timm ViT as encoder and a GPT-2 with cross-attention as decoder."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from utils import UserError

from torch import Tensor, nn

from models.captioner import Captioner, Memory, State
from models.checkpoint import load_strict, read_tensors
from models.gpt2 import GPT2, GPT2Config, KeyValue, described_gpt2, from_gpt2, gpt2_config
from models.tokenizer import Tokenizer, gpt2_files, gpt2_tokenizer
from models.vit import Encoder, build_vit, described_vit


class ViTGPT2(Captioner):
    """Each layer of a GPT-2 attends to the patch tokens of a ViT.

    Where the decoder's ``cross_width`` is None it has no cross-attention: it is a language model
    that sees no image, the base that captioners start from.
    """

    encoder_prefix = "encoder."

    def __init__(
        self, encoder: nn.Module, decoder: GPT2Config, tokenizer: Tokenizer, preprocessing: dict,
        architecture: dict, metadata: dict | None = None,
    ) -> None:
        super().__init__(tokenizer, preprocessing, metadata)
        if tokenizer.vocab_size != decoder.vocab_size:
            raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the decoder "
                            f"{decoder.vocab_size}; they do not belong together")
        self.encoder, self.decoder = encoder, GPT2(decoder)
        self.memory_proj = nn.Identity()
        if decoder.cross_width and encoder.embed_dim != decoder.width:
            self.memory_proj = nn.Linear(encoder.embed_dim, decoder.width)
        self.architecture = architecture  # of the encoder: {"name", "args"} as timm takes them

    @property
    def max_length(self) -> int:
        return self.decoder.config.max_length

    @property
    def num_layers(self) -> int:
        return self.decoder.config.layers

    def encode(self, images: Tensor) -> Memory:
        """images (M, 3, H, W) -> their patch tokens, without class and register tokens."""
        features = self.encoder.forward_features(images)[:, self.encoder.num_prefix_tokens:]
        return self.memory_of(features)

    def memory_of(self, features: Tensor) -> Memory:
        """The memory of images whose patch tokens (M, N, C) were computed before."""
        return Memory(features, [tuple(self.encoder.patch_embed.grid_size)] * len(features))

    def start(self, memory: Memory | None) -> State:
        """As ``Captioner.start``; None for a language model."""
        if memory is None:
            return State(None, None, None)
        projected = self.decoder.project_memory(self.memory_proj(memory.features))
        return State(None, projected, memory.mask)

    def decode(
        self, tokens: Tensor, state: State, where: Tensor | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        return self.decoder(tokens, state.memory, state.mask, state.past, where)

    def attention_weights(self, tokens: Tensor, state: State, layer: int) -> Tensor:
        return self.decoder.cross_attention(tokens, state.memory, state.mask, layer)

    def describe(self) -> dict:
        """As ``Captioner.describe``; of kind ``base`` where there is no cross-attention."""
        config = self.decoder.config
        return {"kind": "captioner" if config.cross_width else "base",
                "encoder": self.architecture, "decoder": asdict(config),
                "tokenizer": self.tokenizer.to_json(), "preprocessing": self.preprocessing}


def build_captioner(
    name: str, decoder: GPT2Config, tokenizer: Tokenizer, *, pretrained: bool = False,
    weights: str | Path | None = None,
) -> ViTGPT2:
    """A fresh decoder on the ViT that timm calls ``name``. The ViT's weights are random, timm's
    (``pretrained``, from the network or its cache) or a file's (``weights``)."""
    encoder, preprocessing, architecture = build_vit(name, pretrained, weights)
    return ViTGPT2(encoder, decoder, tokenizer, preprocessing, architecture)


def gpt2_base(vit: Encoder, decoder: str | Path, dropout: float = 0.1) -> ViTGPT2:
    """A base with public GPT-2 weights of any size (such as the course's ``decoder_model.bin``) and
    the tokenizer that belongs to them, on an encoder as ``build_vit`` returns it."""
    tensors = from_gpt2(read_tensors(decoder)[0], decoder)
    config, files = gpt2_config(tensors, decoder, dropout), gpt2_files(decoder)
    tokenizer = gpt2_tokenizer(*files)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(f"{files[0]} has {tokenizer.vocab_size} tokens, {decoder} "
                        f"{config.vocab_size}; they do not belong together")
    encoder, preprocessing, architecture = vit
    base = ViTGPT2(encoder, config, tokenizer, preprocessing, architecture)
    load_strict(base.decoder, tensors, decoder)
    return base


def add_cross_attention(
    base: Captioner, dropout: float = 0.1, cross_width: int | None = None
) -> Captioner:
    """A captioner to train, with the encoder and the weights of ``base``. If the base has no
    cross-attention, fresh cross-attention is added, ``cross_width`` wide (default: as wide as the
    decoder).

    Captioners of other architectures have cross-attention already: only their dropout changes.
    """
    if not isinstance(base, ViTGPT2):
        return base.with_dropout(dropout)
    config = base.decoder.config
    cross_width = config.cross_width or cross_width or config.width
    config = replace(config, cross_width=cross_width, dropout=dropout)
    captioner = ViTGPT2(base.encoder, config, base.tokenizer, base.preprocessing,
                        base.architecture, base.metadata)
    load_strict(captioner, captioner.state_dict() | base.state_dict(), "the base")
    return captioner


def described_vit_gpt2(metadata: dict, tensors: dict[str, Tensor]) -> ViTGPT2:
    """What ``ViTGPT2.describe`` described in a checkpoint with ``tensors``. May raise any exception
    on a bad description."""
    encoder, preprocessing = metadata["encoder"], metadata["preprocessing"]
    return ViTGPT2(described_vit(encoder, preprocessing),
                   described_gpt2(metadata["decoder"], tensors),
                   Tokenizer.from_json(metadata["tokenizer"]), preprocessing, encoder, metadata)
