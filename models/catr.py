"""CATR: captions by a ResNet-101 with a transformer behind it, as the public v3 weights need it.

It reads word pieces, starts a caption with [CLS] and ends it with [SEP]. Every photo is seen alone,
whatever batch it stands in: the ResNet takes photos of one size together and no padding, and the
cells of smaller grids are padded and masked after it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
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
    sine_places,
    stack,
)
from models.gpt2 import KeyValue
from models.tokenizer import Tokenizer, wordpiece_tokenizer

PREPROCESSING = {"size": (299, 299), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
                 "resize": "longest", "interpolation": "bicubic"}


@dataclass(frozen=True)
class CATRConfig:
    """The defaults are v3's."""

    blocks: tuple[int, ...] = (3, 4, 23, 3)  # of the ResNet's four stages
    width: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    hidden: int = 2048  # of the layers' feed-forward part
    mlp: int = 512  # of the output's
    vocab_size: int = 30522
    max_length: int = 128


class CATR(nn.Module):
    """A captioner (see ``models.captioner``)."""

    encoder_prefix = "backbone."
    reorder = Captioner.reorder
    transform = Captioner.transform

    def __init__(
        self, config: CATRConfig, tokenizer: Tokenizer, preprocessing: dict = PREPROCESSING,
        metadata: dict | None = None,
    ) -> None:
        super().__init__()
        if tokenizer.vocab_size != config.vocab_size:
            raise UserError(f"the vocabulary has {tokenizer.vocab_size} word pieces, CATR "
                            f"{config.vocab_size}; they do not belong together")
        self.config, self.tokenizer, self.max_length = config, tokenizer, config.max_length
        self.preprocessing, self.metadata = dict(preprocessing), metadata or {}
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
        """What a training can freeze."""
        return self.backbone

    def with_dropout(self, rate: float) -> CATR:
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = rate
        return self

    def describe(self) -> dict:
        """What a checkpoint says of it; ``described_catr`` reads it."""
        return {"kind": "captioner", "architecture": "catr", "config": asdict(self.config),
                "tokenizer": self.tokenizer.to_json(), "preprocessing": self.preprocessing}

    # --- the photo ---

    def encode(self, images: Tensor) -> Memory:
        """images (M, 3, H, W), or (M, 4, H, W) with 1 in the last channel where there is a photo,
        0 in the padding below and to the right of it."""
        cells = self._cells(images)
        grids = [tuple(grid.shape[1:]) for grid in cells]
        x = pad_sequence([grid.flatten(1).t() for grid in cells], batch_first=True)  # (M, N, C)
        counts = torch.tensor([rows * cols for rows, cols in grids], device=x.device)
        mask = torch.arange(x.shape[1], device=x.device) < counts[:, None]
        mask = None if mask.all() else mask
        places, encoder = sine_places(grids, x.shape[2], x.device), self.transformer["encoder"]
        for layer in encoder["layers"]:
            x = layer(x, places, mask)
        return Memory(encoder["norm"](x), grids, mask)

    def _cells(self, images: Tensor) -> list[Tensor]:
        """What the ResNet makes of each photo: (C, rows, cols)."""
        sizes = [tuple(images.shape[2:])] * len(images)
        if images.shape[1] == 4:
            there = images[:, 3] > 0
            sizes = list(zip(there[:, :, 0].sum(1).tolist(), there[:, 0].sum(1).tolist(),
                             strict=True))
        cells: list = [None] * len(images)
        for rows, cols in dict.fromkeys(sizes):
            alike = [place for place, size in enumerate(sizes) if size == (rows, cols)]
            photos = images[alike, :3, :rows, :cols]
            features = resnet_features(self.backbone[0]["body"], photos)
            for place, grid in zip(alike, self.input_proj(features), strict=True):
                cells[place] = grid
        return cells

    # --- the words ---

    def start(self, memory: Memory) -> State:
        places = sine_places(memory.grids, self.config.width, memory.features.device)
        return State(None, [layer.project(memory.features, places)
                            for layer in self.transformer["decoder"]["layers"]], memory.mask)

    def forward(
        self, source: Memory | Tensor, tokens: Tensor, where: Tensor | None = None
    ) -> Tensor:
        """As ``Captioner.forward``, of a memory or of images still to encode."""
        state = self.start(source if isinstance(source, Memory) else self.encode(source))
        return self._decode(tokens, state, where)[0]

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """tokens (B,) -> logits (B, vocabulary) of the next one."""
        logits, past = self._decode(tokens[:, None], state)
        return logits[:, 0], replace(state, past=past)

    def _decode(
        self, tokens: Tensor, state: State, where: Tensor | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        x, places = self._embed(tokens, state.past)
        decoder, presents = self.transformer["decoder"], []
        for number, layer in enumerate(decoder["layers"]):
            x, present = layer.attend(x, places, state.past and state.past[number])
            x = layer.look_and_think(x, places, state.memory[number], state.mask)
            presents.append(present)
        x = decoder["norm"](x if where is None else x[where])
        *hidden, last = self.mlp["layers"]
        for linear in hidden:
            x = F.relu(linear(x))
        return last(x), presents

    def _embed(self, tokens: Tensor, past: list[KeyValue] | None) -> tuple[Tensor, Tensor]:
        """tokens (B, T) -> (B, T, C), and the embedding of their places (T, C), which the layers
        add to queries and keys once more."""
        embeddings, start = self.transformer["embeddings"], past[0][0].shape[2] if past else 0
        places = embeddings["position_embeddings"].weight[start:start + tokens.shape[1]]
        x = embeddings["LayerNorm"](embeddings["word_embeddings"](tokens) + places)
        return self.drop(x), places

    def cross_attention(self, memory: Memory, tokens: Tensor, layer: int = -1) -> Tensor:
        """As ``Captioner.cross_attention``; what pads a smaller grid gets 0."""
        self.check_layer(layer)
        start = torch.full_like(tokens[:, :1], self.tokenizer.start_id)
        x, places = self._embed(torch.cat([start, tokens[:, :-1]], 1), None)
        state, layers = self.start(memory), self.transformer["decoder"]["layers"]
        last = range(len(layers))[layer]
        for block, seen in zip(layers[:last], state.memory, strict=False):
            x = block.look_and_think(block.attend(x, places, None)[0], places, seen, state.mask)
        x = layers[last].attend(x, places, None)[0]
        return layers[last].weights(x, places, state.memory[last], state.mask)

    def check_layer(self, layer: int) -> None:
        """UserError for a layer that the decoder does not have; negative ones count from the
        last."""
        count = self.config.decoder_layers
        if not -count <= layer < count:
            raise UserError(f"layer {layer} does not exist: the decoder has layers 0 to "
                            f"{count - 1} (or -{count} to -1)")


# --- building -----------------------------------------------------------------------------------


def open_catr(weights: str | Path | None, vocab: str | Path | None) -> CATR:
    """The public weights with BERT's vocabulary (``vocab.txt``), in eval mode."""
    if not (weights and vocab):
        raise UserError("--model catr needs --weights FILE and BERT's vocabulary, --vocab FILE")
    tokenizer = wordpiece_tokenizer(vocab)
    return rebuild(lambda: CATR(CATRConfig(), tokenizer), read_tensors(weights)[0], weights)


def described_catr(metadata: dict, tensors: dict[str, Tensor]) -> CATR:
    """What ``CATR.describe`` described in a checkpoint with ``tensors``."""
    config = CATRConfig(**metadata["config"])
    if sum(config.blocks) + config.encoder_layers + config.decoder_layers > len(tensors):
        raise UserError(f"more layers than the file's {len(tensors)} tensors can fill")
    return CATR(config, Tokenizer.from_json(metadata["tokenizer"]), metadata["preprocessing"],
                metadata)
