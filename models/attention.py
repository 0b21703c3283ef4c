"""Attention probabilities of timm's vision transformers, and three maps made from them.

timm computes attention in a fused kernel that never stores the probabilities, so a hook cannot read
them. They are computed again here, in float32, from the input of each layer that is asked for; the
model itself runs unchanged. Gradients, which only ``relevance`` needs, are computed with the fused
kernel switched off during that forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from utils import UserError

import torch
from timm.models.vision_transformer import Attention, VisionTransformer

from models.checkpoint import check_output

METHODS = ("last", "rollout", "relevance")


@contextmanager
def capture_attention(
    model: VisionTransformer, layers: Sequence[int], queries: slice = slice(None)
) -> Iterator[dict[int, torch.Tensor]]:
    """Within the ``with`` block each forward pass fills ``{layer: (B, heads, queries, tokens)}``.

    Probabilities after the softmax, float32, on the CPU; rows sum to 1. ``queries=slice(1)`` takes
    the class token's row alone, which costs next to nothing. Negative layers count from the last.
    Raises RuntimeError for a map that is not finite, whose rows do not sum to 1, or that was never
    captured; UserError for a layer that the model does not have. All hooks are removed at the end
    of the block.
    """
    maps: dict[int, torch.Tensor] = {}
    with ExitStack() as hooks:
        for layer in layers:
            attention = _attention_of(model, layer)

            def recompute(module, inputs, options, layer=layer):
                maps[layer] = _checked(_probabilities(module, inputs[0], options, queries), layer)

            handle = attention.register_forward_pre_hook(recompute, with_kwargs=True)
            hooks.callback(handle.remove)
        yield maps
    missing = [layer for layer in layers if layer not in maps]
    if missing:
        raise RuntimeError(f"attention of layers {missing} was not captured: no forward pass ran")


@contextmanager
def _attention_with_graph(model: VisionTransformer) -> Iterator[list[torch.Tensor]]:
    """Within the ``with`` block a forward pass fills the list with each layer's attention
    (B, heads, tokens, tokens), still in the autograd graph; fused kernels are off until the block
    ends."""
    maps: list[torch.Tensor] = []

    def keep(module, inputs, output):
        maps.append(output)

    with ExitStack() as undo:
        for layer in range(len(model.blocks)):
            attention = _attention_of(model, layer)
            undo.callback(setattr, attention, "fused_attn", attention.fused_attn)
            attention.fused_attn = False
            undo.callback(attention.attn_drop.register_forward_hook(keep).remove)
        yield maps


def _attention_of(model: VisionTransformer, layer: int) -> Attention:
    """The attention module of ``layer``; UserError where there is none that can be read."""
    count = len(model.blocks)
    if not -count <= layer < count:
        raise UserError(f"layer {layer} does not exist: the model has layers 0 to {count - 1} "
                        f"(or -{count} to -1)")
    attention = getattr(model.blocks[layer], "attn", None)
    if not isinstance(attention, Attention):
        kind = type(model.blocks[layer]).__name__
        raise UserError(f"attention cannot be read from a {kind}; give a model with timm's "
                        "standard attention")
    return attention


@torch.no_grad()
def _probabilities(
    module: Attention, x: torch.Tensor, options: dict, queries: slice
) -> torch.Tensor:
    """softmax(q k^T / sqrt(head_dim)) in float32: (B, heads, queries, tokens)."""
    if options.get("attn_mask") is not None or options.get("is_causal"):
        raise UserError("attention with a mask is not supported")
    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        weights = module.qkv.weight.float().chunk(3)
        biases = [None] * 3 if module.qkv.bias is None else module.qkv.bias.float().chunk(3)

        def project(x, part, norm):  # (B, N, C) -> (B, heads, N, head_dim)
            heads = torch.nn.functional.linear(x, weights[part], biases[part])
            heads = heads.unflatten(-1, (module.num_heads, module.head_dim)).transpose(1, 2)
            return norm(heads)

        q = project(x[:, queries], 0, module.q_norm)
        k = project(x, 1, module.k_norm)
        return (q.float() * module.scale @ k.float().transpose(-2, -1)).softmax(-1)


def _checked(maps: torch.Tensor, layer: int) -> torch.Tensor:
    """``maps`` on the CPU. UserError where they are not finite, RuntimeError where they are no
    probabilities."""
    maps = maps.cpu()
    check_output(maps, f"layer {layer} of the model")
    off = (maps.sum(-1) - 1).abs().max().item()
    if off > 1e-4:
        raise RuntimeError(f"the sums of layer {layer}'s attention rows differ from 1 by {off:.1e}")
    return maps


# --- maps ---------------------------------------------------------------------------------------


def attention_maps(
    model: VisionTransformer, images: torch.Tensor, method: str = "last", *, layer: int = -1,
    heads: str = "mean", targets: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """((B, heads or 1, rows, cols) maps, (B, classes) logits) of normalized images (B, 3, H, W).

    ``last``: attention of the class token to the patches in ``layer``, the mean over heads or each
    head. ``rollout`` (Abnar & Zuidema 2020, Sec. 4): the product of all layers' mean attention with
    the residual added. ``relevance`` (Chefer et al., ICCV 2021, Sec. 3.1): attention times the
    gradient of the logit of ``targets`` (B,), by default the predicted classes; its positive part,
    averaged over heads and propagated through the layers. A model without a class token gets the
    mean over the patches' rows. Prefix tokens are left out, so a map of ``last`` sums to less
    than 1. Raises UserError for a layer that does not exist, or ``heads="each"`` with another
    method.
    """
    if heads == "each" and method != "last":
        raise UserError(f"--heads each goes with --method last; {method} mixes the heads")
    layers = {"last": [layer], "rollout": range(len(model.blocks))}.get(method)
    if layers is not None:
        own_row = slice(1) if has_class_token(model) and method == "last" else slice(None)
        with torch.no_grad(), capture_attention(model, layers, own_row) as captured:
            logits = model(images)
        if method == "last":
            weights = captured[layer] if heads == "each" else captured[layer].mean(1, keepdim=True)
        else:
            weights = rollout([captured[index] for index in layers]).unsqueeze(1)
    else:
        weights, logits = _relevance_of(model, images, targets)
        weights = weights.unsqueeze(1)
    return _over_patches(model, images, weights), logits.detach().float().cpu()


def maps_of_layers(
    model: VisionTransformer, images: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The map ``last`` of every layer, (B, rows, cols) each, and the logits (B, classes), by one
    forward pass."""
    layers = range(len(model.blocks))
    queries = slice(1) if has_class_token(model) else slice(None)
    with torch.no_grad(), capture_attention(model, layers, queries) as captured:
        logits = model(images)
    return [_over_patches(model, images, captured[layer].mean(1, keepdim=True))[:, 0]
            for layer in layers], logits.float().cpu()


def _over_patches(
    model: VisionTransformer, images: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Weights (B, heads, queries, tokens) -> (B, heads, rows, cols): the class token's row, or the
    mean of the patches' rows where there is no class token."""
    to_patches = weights[..., model.num_prefix_tokens:]  # (B, heads, queries, rows * cols)
    if has_class_token(model):
        row = to_patches[:, :, 0]
    else:
        row = to_patches[:, :, model.num_prefix_tokens:].mean(2)
    return row.unflatten(-1, patch_grid(model, images))


def rollout(attentions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Attention (B, heads, N, N) of each layer, the first layer first -> (B, N, N), whose rows sum
    to 1."""
    total = None
    for attention in attentions:
        mixed = attention.mean(1) + torch.eye(attention.shape[-1])
        mixed = mixed / mixed.sum(-1, keepdim=True)
        total = mixed if total is None else mixed @ total
    return total


def relevance(
    attentions: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Attention and its gradient, both (B, heads, N, N), of each layer, the first layer first ->
    (B, N, N)."""
    total = torch.eye(attentions[0].shape[-1]).expand(len(attentions[0]), -1, -1)
    for attention, gradient in zip(attentions, gradients, strict=True):
        total = total + (gradient * attention).clamp(min=0).mean(1) @ total
    return total


def _relevance_of(
    model: VisionTransformer, images: torch.Tensor, targets: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(relevance (B, N, N), logits (B, classes)) of ``targets`` (B,)."""
    images = images.detach().requires_grad_()  # a graph even where every weight is frozen
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False), \
            _attention_with_graph(model) as captured:
        logits = model(images)
        if targets is None:
            targets = logits.argmax(1)
        chosen = logits.gather(1, targets.to(logits.device).unsqueeze(1)).sum()
        gradients = torch.autograd.grad(chosen, captured)
    maps = relevance([attention.detach().float().cpu() for attention in captured],
                     [gradient.float().cpu() for gradient in gradients])
    return maps, logits


def has_class_token(model: VisionTransformer) -> bool:
    """Whether a class token reads out the photo; else the model averages over its patches."""
    return model.cls_token is not None


def patch_grid(model: VisionTransformer, images: torch.Tensor) -> tuple[int, int]:
    """(rows, cols) of patches that the model cuts ``images`` (B, 3, H, W) into."""
    return tuple(model.patch_embed.dynamic_feat_size(tuple(images.shape[-2:])))


# --- numbers ------------------------------------------------------------------------------------


def entropy(maps: torch.Tensor) -> torch.Tensor:
    """Entropy in bits of maps (…, rows, cols), each scaled to sum to 1: (…)."""
    shares = maps.flatten(-2)
    shares = shares / shares.sum(-1, keepdim=True).clamp(min=1e-12)
    return -(shares * shares.clamp(min=1e-12).log2()).sum(-1)


def mean_attention_distance(
    attention: torch.Tensor, grid: tuple[int, int], *, image_size: tuple[int, int], prefix: int
) -> torch.Tensor:
    """(B, heads): the mean distance of a patch to those it attends to, in input pixels
    (Dosovitskiy et al. 2021, Fig. 7).

    ``attention`` (B, heads, N, N) of one layer, for a ``grid`` (rows, cols) of images of
    ``image_size`` (height, width) pixels: behind a convolutional stem a grid cell is larger than
    what the model calls a patch. The ``prefix`` tokens are left out on both sides, and the rows
    scaled to sum to 1 again.
    """
    rows, cols = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten() * (image_size[0] / grid[0]),
                          cols.flatten() * (image_size[1] / grid[1])], -1).float()
    distances = torch.cdist(places, places)
    weights = attention[..., prefix:, prefix:]
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights * distances).sum(-1).mean(-1)
