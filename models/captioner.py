"""The captioner interface, a base class, and teacher forcing for any captioner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from utils import UserError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.transform import Transform, Transforms
from models.checkpoint import unwrap
from models.gpt2 import KeyValue
from models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from models.judge import Judge

IGNORED = -100  # the target at padding: no loss there


@dataclass
class Memory:
    """What a decoder attends to: M encoded images.

    ``features`` (M, N, C); N is the largest grid's cell count. ``grids`` has each image's
    (rows, cols); its cells come first in its features, row by row, then padding. ``mask`` (M, N) is
    False at padding; None where there is no padding. ``looks`` (M, D) is what the captioner's
    ``judge`` sees of the images; None without a judge.
    """

    features: Tensor
    grids: list[tuple[int, int]]
    mask: Tensor | None = None
    looks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)


@dataclass
class State:
    """The cache of step-by-step decoding: for each decoder layer, keys and values.

    ``past`` holds those of the tokens so far, one row a caption; None before the first token.
    ``memory`` holds those of the images, one row an image; None for a language model.
    ``mask`` is the memory's.
    """

    past: list[KeyValue] | None
    memory: list[KeyValue] | None
    mask: Tensor | None


class Captioner(nn.Module, ABC):
    """All that decoding, training and the word figures know of a captioner.

    Each image is encoded once, into a ``Memory``. A decoder then writes its caption token by token,
    and each of its layers attends to the memory through cross-attention. Several captions may share
    an image: of B rows of tokens over M images, row r belongs to image r // (B / M).

    An architecture sets ``encoder`` and ``encoder_prefix`` and implements the abstract methods.
    """

    encoder: nn.Module  # the part over the images, which training can freeze
    encoder_prefix: str  # what the names of its parameters begin with

    def __init__(
        self, tokenizer: Tokenizer, preprocessing: dict, metadata: dict | None = None
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing  # the fields of data.transform.Transform
        self.metadata = metadata or {}  # of the checkpoint that it was loaded from
        self.source = "the captioner"  # the file that it was opened from, for error messages
        self.judge: Judge | None = None  # what --rerank chooses among its captions with

    @property
    def transform(self) -> Transform:
        """How a photo is prepared for this model."""
        return Transform.from_fields(self.preprocessing)

    @property
    def views(self) -> Transform | Transforms:
        """How a photo is prepared for this model and its judge, if it has one."""
        transform = self.transform
        return Transforms((transform, self.judge.clip.transform)) if self.judge else transform

    # --- what each architecture implements ---

    @property
    @abstractmethod
    def max_length(self) -> int:
        """The most tokens of a caption, the end token included."""

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """How many layers the decoder has."""

    @abstractmethod
    def encode(self, images: Tensor) -> Memory:
        """images (M, channels, H, W), as ``transform.normalize`` returns them -> their memory."""

    @abstractmethod
    def start(self, memory: Memory) -> State:
        """The state before the first token, with one row an image."""

    @abstractmethod
    def decode(
        self, tokens: Tensor, state: State, where: Tensor | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """tokens (B, T), which follow ``state.past`` -> logits (B, T, vocabulary) and the new past.

        With ``where`` (B, T) bool, logits (positions, vocabulary) of the positions that are True.
        """

    @abstractmethod
    def attention_weights(self, tokens: Tensor, state: State, layer: int) -> Tensor:
        """tokens (B, T), the start token first -> (B, heads, T, N) float32: the cross-attention of
        the query at each token in ``layer`` (0 or more). Rows sum to 1; padding has 0."""

    @abstractmethod
    def describe(self) -> dict:
        """What a checkpoint says of the architecture, enough to build it again."""

    # --- what all of them share ---

    def forward(
        self, source: Memory | Tensor | None, tokens: Tensor, where: Tensor | None = None
    ) -> Tensor:
        """Teacher forcing: tokens (B, T) -> logits (B, T, vocabulary) of each next token, or of
        the positions ``where`` (see ``decode``).

        ``source`` is a memory, images still to encode, or None for a language model.
        """
        memory = self.encode(source) if isinstance(source, Tensor) else source
        return self.decode(tokens, self.start(memory), where)[0]

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One token more in each row, tokens (B,) -> logits (B, vocabulary) of the next one, and
        the new state."""
        logits, past = self.decode(tokens[:, None], state)
        return logits[:, 0], replace(state, past=past)

    def reorder(self, state: State, index: Tensor) -> State:
        """The state whose rows are the rows ``index`` (images, beams) of ``state``.

        All beams of an image must come from rows of one image. Images can be left out, and rows
        repeated; the memories are not copied for each beam.
        """
        rows, images = index.reshape(-1), len(state.memory[0][0])
        kept = index[:, 0] // (len(state.past[0][0]) // images)
        past = _rows_of(state.past, rows)
        if torch.equal(kept, torch.arange(images, device=kept.device)):
            return replace(state, past=past)
        mask = None if state.mask is None else state.mask[kept]
        return State(past, _rows_of(state.memory, kept), mask)

    def cross_attention(self, memory: Memory, tokens: Tensor, layer: int = -1) -> Tensor:
        """tokens (B, T) of captions -> (B, heads, T, N) float32, rows that sum to 1: row t belongs
        to the query that produced token t. That query stands at the token before it; for the first
        token, at the start token.

        Raises UserError for a layer that the decoder does not have.
        """
        self.check_layer(layer)
        return self.attention_weights(teacher_inputs(self, tokens), self.start(memory),
                                      layer % self.num_layers)

    def check_layer(self, layer: int) -> None:
        """Raise UserError for a layer that the decoder does not have; negative numbers count from
        the last layer."""
        count = self.num_layers
        if not -count <= layer < count:
            raise UserError(f"layer {layer} does not exist: the decoder has layers 0 to "
                            f"{count - 1} (or -{count} to -1)")


def _rows_of(layers: list[KeyValue], rows: Tensor) -> list[KeyValue]:
    """``rows`` of each layer's keys and values. ``index_select`` copies a row as one block, which
    is several times as fast as indexing."""
    return [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in layers]


# --- teacher forcing ----------------------------------------------------------------------------


def caption_targets(captioner: Captioner, captions: Sequence[str]) -> Tensor:
    """Captions -> (captions, T) token ids, each row closed by the end token and padded with
    ``IGNORED``.

    A caption that is longer than the captioner can write is cut, and then has no end token.
    """
    tokenizer = captioner.tokenizer
    rows = [[*tokenizer.encode(text), tokenizer.end_id][:captioner.max_length]
            for text in captions]
    targets = torch.full((len(rows), max(map(len, rows))), IGNORED)
    for target, row in zip(targets, rows, strict=True):
        target[:len(row)] = torch.tensor(row)
    return targets


def teacher_inputs(captioner: Captioner, targets: Tensor) -> Tensor:
    """The tokens that the decoder reads to predict ``targets`` (B, T): the start token, then each
    target but the last.

    ``IGNORED`` is read as the padding token. It stands only after the end of a caption, where
    causal attention hides it from every position that counts.
    """
    tokenizer = captioner.tokenizer
    start = torch.full_like(targets[:, :1], tokenizer.start_id)
    inputs = torch.cat([start, targets[:, :-1]], 1)
    return inputs.masked_fill(inputs == IGNORED, tokenizer.pad_id)


def teacher_forcing_loss(
    model: nn.Module, source: Memory | Tensor | None, targets: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, float]:
    """(mean cross-entropy over the targets (B, T) that are not padding, share of tokens predicted
    correctly).

    ``model`` is a captioner, or a wrapper of one for several processes; ``source`` is as in
    ``Captioner.forward``.
    """
    counted = targets != IGNORED
    logits = model(source, teacher_inputs(unwrap(model), targets), counted).float()
    correct = logits.detach().argmax(-1) == targets[counted]
    loss = F.cross_entropy(logits, targets[counted], label_smoothing=label_smoothing)
    return loss, correct.float().mean().item()
