"""The parts of DETR (Carion et al. 2020, "End-to-End Object Detection with Transformers") that CATR
uses: a dilated ResNet, and pre-norm transformer layers that add position embeddings to queries and
keys. Parameters have the names of the public files.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from models.gpt2 import KeyValue

# --- the ResNet ---------------------------------------------------------------------------------


def resnet_body(blocks: tuple[int, ...]) -> nn.Sequential:
    """A ResNet (He et al. 2016) with ``blocks`` bottlenecks in its four stages and frozen batch
    norms; the last stage has dilation in place of its stride."""
    resnet = ResNet(Bottleneck, list(blocks), norm_layer=FrozenBatchNorm2d,
                    replace_stride_with_dilation=[False, False, True])
    return nn.Sequential(OrderedDict(list(resnet.named_children())[:-2]))  # no pooling, no head


def resnet_features(body: nn.Sequential, x: Tensor) -> Tensor:
    """x (B, 3, H, W) -> (B, 2048, H / 16, W / 16), rounded up. Equal to ``body(x)`` but faster:
    each frozen norm is folded into the convolution before it."""
    x = x.contiguous(memory_format=torch.channels_last)
    x = body.maxpool(_conv_norm(x, body.conv1, body.bn1).relu_())
    for block in (*body.layer1, *body.layer2, *body.layer3, *body.layer4):
        y = _conv_norm(x, block.conv1, block.bn1).relu_()
        y = _conv_norm(y, block.conv2, block.bn2).relu_()
        y = _conv_norm(y, block.conv3, block.bn3)
        x = y.add_(_conv_norm(x, *block.downsample) if block.downsample else x).relu_()
    return x


def _conv_norm(x: Tensor, conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> Tensor:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return F.conv2d(x, conv.weight * scale[:, None, None, None],
                    norm.bias - norm.running_mean * scale, conv.stride, conv.padding, conv.dilation)


# --- the transformer ----------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head attention with the parameters of ``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.drop = nn.Dropout()
        nn.init.xavier_uniform_(self.in_proj_weight)

    def project(self, x: Tensor, part: int) -> Tensor:
        """x (B, T, C) -> (B, heads, T, C / heads): queries (part 0), keys (1) or values (2)."""
        weight, bias = self.in_proj_weight.chunk(3)[part], self.in_proj_bias.chunk(3)[part]
        return F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """q (B, heads, T, D), k and v (B, heads, N, D), mask (B, N), False at padding
        -> (B, T, C)."""
        x = F.scaled_dot_product_attention(
            q, k, v, None if mask is None else mask[:, None, None], is_causal=causal,
            dropout_p=self.drop.p if self.training else 0.0)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """What encoder and decoder layers share."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = nn.Dropout()

    def feed_forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return x + self.drop(self.linear2(self.drop(F.relu(self.linear1(norm(x))))))


class EncoderLayer(Layer):
    """Self-attention over the cells of each image, then the feed-forward part."""

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """x and its position embedding (B, N, C), mask (B, N), False at padding -> (B, N, C)."""
        y, attention = self.norm1(x), self.self_attn
        q, k = (attention.project(y + positions, part) for part in (0, 1))
        x = x + self.drop(attention(q, k, attention.project(y, 2), mask))
        return self.feed_forward(x, self.norm2)


class DecoderLayer(Layer):
    """B rows of tokens attend to M memories, as in ``models.gpt2``."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__(width, heads, hidden)
        self.multihead_attn = Attention(width, heads)
        self.norm3 = nn.LayerNorm(width)

    def project_memory(self, memory: Tensor, positions: Tensor) -> KeyValue:
        """A memory and its position embedding, (M, N, C) each -> keys and values, computed once an
        image."""
        return (self.multihead_attn.project(memory + positions, 1),
                self.multihead_attn.project(memory, 2))

    def self_attend(
        self, x: Tensor, positions: Tensor, past: KeyValue | None
    ) -> tuple[Tensor, KeyValue]:
        """x (B, T, C) with its position embedding (T, C) -> (B, T, C), and the keys and values of
        all tokens so far. x is a whole text, or one token after ``past``."""
        y, attention = self.norm1(x), self.self_attn
        q, k = (attention.project(y + positions, part) for part in (0, 1))
        v = attention.project(y, 2)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        return x + self.drop(attention(q, k, v, causal=past is None)), (k, v)

    def cross_attend_and_mlp(
        self, x: Tensor, positions: Tensor, memory: KeyValue, mask: Tensor | None
    ) -> Tensor:
        """x (B, T, C) with its position embedding (T, C), mask (M, N) -> (B, T, C)."""
        attended = self.multihead_attn(self._queries(x, positions, len(memory[0])), *memory, mask)
        return self.feed_forward(x + self.drop(attended.view_as(x)), self.norm3)

    def attention_weights(
        self, x: Tensor, positions: Tensor, memory: KeyValue, mask: Tensor | None
    ) -> Tensor:
        """Cross-attention of x (B, T, C) -> (B, heads, T, N) float32; rows sum to 1."""
        q, k = self._queries(x, positions, len(memory[0])).float(), memory[0].float()
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5  # (M, heads, B / M · T, N)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
        return scores.softmax(-1).unflatten(2, (-1, x.shape[1])).transpose(1, 2).flatten(0, 1)

    def _queries(self, x: Tensor, positions: Tensor, memories: int) -> Tensor:
        """x (B, T, C) -> (M, heads, B / M · T, D): the queries of all rows of a memory together."""
        y = self.norm2(x) + positions
        return self.multihead_attn.project(y.view(memories, -1, y.shape[-1]), 0)


def stack(layer: type[Layer], count: int, width: int, heads: int, hidden: int) -> nn.ModuleDict:
    """``count`` layers and the norm after the last of them."""
    return nn.ModuleDict({
        "layers": nn.ModuleList(layer(width, heads, hidden) for _ in range(count)),
        "norm": nn.LayerNorm(width)})


def sine_positions(grids: list[tuple[int, int]], width: int, device: torch.device) -> Tensor:
    """The position embedding of each grid's cells, (M, N, width), padded with zeros: sines and
    cosines of the row and of the column, both scaled to 2π (Carion et al. 2020, Sec. A.4)."""
    temperatures = 10000 ** (torch.arange(0, width // 2, 2, device=device) / (width // 2))

    def along(length: int) -> Tensor:  # (length, width / 2)
        scaled = torch.arange(1, length + 1, device=device) / (length + 1e-6) * 2 * torch.pi
        angles = scaled[:, None] / temperatures
        return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)

    return pad_sequence([
        torch.cat([along(rows)[:, None].expand(-1, cols, -1), along(cols).expand(rows, -1, -1)], 2)
        .flatten(0, 1) for rows, cols in grids], batch_first=True)
