"""CATR: a captioner of a ResNet-101 and a transformer encoder and decoder, as the public v3 weights
need it.

A caption is written in word pieces; it starts with [CLS] and ends with [SEP]. A photo's caption
does not depend on the other photos of its batch: the ResNet gets photos of one size together,
without padding, and only after it are smaller grids padded and masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from utils import UserError

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from models.captioner import Captioner, Memory, State
from models.checkpoint import read_tensors, rebuild
from models.detr import (
    DecoderLayer,
    EncoderLayer,
    resnet_body,
    resnet_features,
    sine_positions,
    stack,
)
from models.gpt2 import KeyValue
from models.tokenizer import Tokenizer, wordpiece_tokenizer

PREPROCESSING = {"size": (299, 299), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
                 "resize": "longest", "interpolation": "bicubic"}


@dataclass(frozen=True)
class CATRConfig:
    """Sizes; the defaults are those of the public v3 weights."""

    blocks: tuple[int, ...] = (3, 4, 23, 3)  # bottlenecks in the ResNet's four stages
    width: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    hidden: int = 2048  # width within the layers' feed-forward part
    mlp: int = 512  # width within the output MLP
    vocab_size: int = 30522
    max_length: int = 128


class CATR(Captioner):
    """A ResNet and the encoder and decoder layers of DETR, with an MLP as output layer."""

    encoder_prefix = "backbone."

    def __init__(
        self, config: CATRConfig, tokenizer: Tokenizer, preprocessing: dict = PREPROCESSING,
        metadata: dict | None = None,
    ) -> None:
        super().__init__(tokenizer, dict(preprocessing), metadata)
        if tokenizer.vocab_size != config.vocab_size:
            raise UserError(f"the vocabulary has {tokenizer.vocab_size} word pieces, CATR "
                            f"{config.vocab_size}; they do not belong together")
        self.config = config
        width, layer = config.width, (config.width, config.heads, config.hidden)
        self.backbone = nn.ModuleList([nn.ModuleDict({"body": resnet_body(config.blocks)})])
        self.input_proj = nn.Conv2d(2048, width, 1)
        self.transformer = nn.ModuleDict({
            "embeddings": nn.ModuleDict({
                "word_embeddings": nn.Embedding(config.vocab_size, width),
                "position_embeddings": nn.Embedding(config.max_length, width),
                "LayerNorm": nn.LayerNorm(width, eps=1e-12)}),
            "encoder": stack(EncoderLayer, config.encoder_layers, *layer),
            "decoder": stack(DecoderLayer, config.decoder_layers, *layer)})
        self.mlp = nn.ModuleDict({"layers": nn.ModuleList([
            nn.Linear(width, config.mlp), nn.Linear(config.mlp, config.mlp),
            nn.Linear(config.mlp, config.vocab_size)])})
        self.drop = nn.Dropout()
        self.with_dropout(0.1)

    @property
    def encoder(self) -> nn.Module:
        return self.backbone

    @property
    def max_length(self) -> int:
        return self.config.max_length

    @property
    def num_layers(self) -> int:
        return self.config.decoder_layers

    def with_dropout(self, rate: float) -> CATR:
        """Set the dropout rate; returns this captioner."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = rate
        return self

    def describe(self) -> dict:
        return {"kind": "captioner", "architecture": "catr", "config": asdict(self.config),
                "tokenizer": self.tokenizer.to_json(), "preprocessing": self.preprocessing}

    # --- encoder ---

    def encode(self, images: Tensor) -> Memory:
        """images (M, 3, H, W), or (M, 4, H, W) with a last channel that is 1 on the photo and 0 in
        the padding below and to the right of it."""
        sizes = [tuple(images.shape[2:])] * len(images)
        if images.shape[1] == 4:
            on_photo = images[:, 3] > 0
            sizes = list(zip(on_photo[:, :, 0].sum(1).tolist(), on_photo[:, 0].sum(1).tolist(),
                             strict=True))
        cells: list = [None] * len(images)
        for rows, cols in dict.fromkeys(sizes):
            same_size = [index for index, size in enumerate(sizes) if size == (rows, cols)]
            photos = images[same_size, :3, :rows, :cols]
            features = resnet_features(self.backbone[0]["body"], photos)
            for index, projected in zip(same_size, self.input_proj(features), strict=True):
                cells[index] = projected
        return self.memory_of(cells)

    def memory_of(self, cells: Sequence[Tensor]) -> Memory:
        """The memory of photos whose projected ResNet features, (C, rows, cols) each, are given."""
        grids = [tuple(grid.shape[1:]) for grid in cells]
        x = pad_sequence([grid.flatten(1).t() for grid in cells], batch_first=True)  # (M, N, C)
        counts = torch.tensor([rows * cols for rows, cols in grids], device=x.device)
        mask = torch.arange(x.shape[1], device=x.device) < counts[:, None]
        mask = None if mask.all() else mask
        positions, encoder = self._positions(grids), self.transformer["encoder"]
        for layer in encoder["layers"]:
            x = layer(x, positions, mask)
        return Memory(encoder["norm"](x), grids, mask)

    def _positions(self, grids: list[tuple[int, int]]) -> Tensor:
        return sine_positions(grids, self.config.width, self.input_proj.weight.device)

    # --- decoder ---

    def start(self, memory: Memory) -> State:
        positions = self._positions(memory.grids)
        return State(None, [layer.project_memory(memory.features, positions)
                            for layer in self.transformer["decoder"]["layers"]], memory.mask)

    def decode(
        self, tokens: Tensor, state: State, where: Tensor | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        x, positions = self._embed(tokens, state.past)
        decoder, presents = self.transformer["decoder"], []
        for number, layer in enumerate(decoder["layers"]):
            x, present = layer.self_attend(x, positions, state.past and state.past[number])
            x = layer.cross_attend_and_mlp(x, positions, state.memory[number], state.mask)
            presents.append(present)
        x = decoder["norm"](x if where is None else x[where])
        *hidden, last = self.mlp["layers"]
        for linear in hidden:
            x = F.relu(linear(x))
        return last(x), presents

    def attention_weights(self, tokens: Tensor, state: State, layer: int) -> Tensor:
        x, positions = self._embed(tokens, None)
        layers = self.transformer["decoder"]["layers"]
        for block, keys_values in zip(layers[:layer], state.memory, strict=False):
            x, _ = block.self_attend(x, positions, None)
            x = block.cross_attend_and_mlp(x, positions, keys_values, state.mask)
        x, _ = layers[layer].self_attend(x, positions, None)
        return layers[layer].attention_weights(x, positions, state.memory[layer], state.mask)

    def _embed(self, tokens: Tensor, past: list[KeyValue] | None) -> tuple[Tensor, Tensor]:
        """tokens (B, T), which follow ``past`` -> (B, T, C), and their position embedding (T, C),
        which each layer adds to queries and keys once more."""
        embeddings, start = self.transformer["embeddings"], past[0][0].shape[2] if past else 0
        positions = embeddings["position_embeddings"].weight[start:start + tokens.shape[1]]
        x = embeddings["LayerNorm"](embeddings["word_embeddings"](tokens) + positions)
        return self.drop(x), positions


# --- building -----------------------------------------------------------------------------------


def open_catr(weights: str | Path | None, vocab: str | Path | None) -> CATR:
    """The captioner of the public weights and BERT's vocabulary (``vocab.txt``), in eval mode."""
    if not (weights and vocab):
        raise UserError("--model catr needs --weights FILE and BERT's vocabulary, --vocab FILE")
    tokenizer = wordpiece_tokenizer(vocab)
    return rebuild(lambda: CATR(CATRConfig(), tokenizer), read_tensors(weights)[0], weights)


def described_catr(metadata: dict, tensors: dict[str, Tensor]) -> CATR:
    """What ``CATR.describe`` described in a checkpoint with ``tensors``. May raise any exception on
    a bad description."""
    config = CATRConfig(**metadata["config"])
    if sum(config.blocks) + config.encoder_layers + config.decoder_layers > len(tensors):
        raise UserError(f"more layers than the file's {len(tensors)} tensors can fill")
    return CATR(config, Tokenizer.from_json(metadata["tokenizer"]), metadata["preprocessing"],
                metadata)
