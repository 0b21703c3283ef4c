"""Attention capture and the maps made from it, against independent computations."""

from __future__ import annotations

import math

from utils import UserError

import pytest
import timm
import torch
from conftest import TINY

from models import attention as A

MODELS = {
    "plain": ("vit_tiny_patch16_224", {"img_size": 64}),
    "distilled": ("deit_tiny_distilled_patch16_224", {"img_size": 64}),
    "registers": (TINY, {"img_size": 64, "reg_tokens": 4}),
    "rectangular": (TINY, {"img_size": (48, 96)}),
    "no class token": (TINY, {"img_size": 64, "class_token": False, "global_pool": "avg"}),
    "query and key norm": (TINY, {"img_size": 64, "qk_norm": True}),
}


def build(kind, depth=3):
    name, options = MODELS[kind]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, depth=depth, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # timm's small start gives nearly uniform attention
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def photos(model, count=3):
    torch.manual_seed(1)
    return torch.randn(count, 3, *model.patch_embed.img_size)


def by_hand(model, images, layer):
    """softmax(q k^T / sqrt(d)) of ``layer`` from its own weights, one head at a time."""
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    for block in model.blocks[:layer]:
        x = block(x)
    module = model.blocks[layer].attn
    qkv = model.blocks[layer].norm1(x) @ module.qkv.weight.T + module.qkv.bias
    width = qkv.shape[-1] // 3
    heads = []
    for head in range(module.num_heads):
        span = slice(head * module.head_dim, (head + 1) * module.head_dim)
        q = module.q_norm(qkv[..., :width][..., span])
        k = module.k_norm(qkv[..., width:2 * width][..., span])
        scores = torch.einsum("bid,bjd->bij", q, k) / math.sqrt(module.head_dim)
        heads.append(torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True))
    return torch.stack(heads, 1)


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_captured_attention_is_the_layers_own(kind):
    # PEERS: hooks that never fire under fused attention; raw scores drawn as attention
    model = build(kind)
    images = photos(model)
    plain = model(images)
    for layer in (1, -1):
        with A.capture_attention(model, [layer]) as captured:
            logits = model(images)
        torch.testing.assert_close(captured[layer], by_hand(model, images, layer % 3),
                                   atol=1e-5, rtol=0)
        torch.testing.assert_close(logits, plain)
    assert all(block.attn.fused_attn for block in model.blocks)


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_last_is_the_class_tokens_row_over_the_patches(kind):
    # PEERS: batch index 0 only; every figure shows the first image
    model = build(kind)
    images = photos(model)
    full = by_hand(model, images, 2)
    prefix = model.num_prefix_tokens
    rows, cols = (side // 16 for side in images.shape[-2:])
    expected = full[:, :, prefix:, prefix:].mean(2) if kind == "no class token" \
        else full[:, :, 0, prefix:]
    each, logits = A.attention_maps(model, images, heads="each")
    mean, _ = A.attention_maps(model, images)
    torch.testing.assert_close(each, expected.unflatten(-1, (rows, cols)), atol=1e-5, rtol=0)
    torch.testing.assert_close(mean[:, 0], each.mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(logits, model(images))
    assert (mean[0] - mean[1]).abs().max() > 1e-3, "each image has a map of its own"
    alone, _ = A.attention_maps(model, images[1:2])
    torch.testing.assert_close(alone[0], mean[1], atol=1e-6, rtol=0)
    assert mean.shape == (3, 1, rows, cols) and mean.sum((-2, -1)).max() <= 1 + 1e-5


def test_rollout_is_the_brute_force_product():
    # PEERS: rows of a rollout that do not sum to 1
    model = build("registers")
    images = photos(model, 2)
    with torch.no_grad():
        layers = [by_hand(model, images, layer) for layer in range(3)]
    ours = A.rollout(layers)
    for image in range(2):
        total = torch.eye(layers[0].shape[-1], dtype=torch.float64)
        for layer in layers:
            mean = layer[image].double().mean(0) + torch.eye(total.shape[0], dtype=torch.float64)
            for row in range(len(mean)):
                mean[row] /= mean[row].sum()
            total = mean @ total
        torch.testing.assert_close(ours[image].double(), total, atol=1e-6, rtol=0)
    assert (ours.sum(-1) - 1).abs().max() < 1e-5
    maps, _ = A.attention_maps(model, images, "rollout")
    torch.testing.assert_close(maps[:, 0].flatten(1), ours[:, 0, 5:], atol=1e-5, rtol=0)


def test_relevance_equals_autograd_by_hand():
    # PEERS: gradients paired with attentions in reverse order
    model = build("plain", depth=2)
    images = photos(model, 2)
    targets = torch.tensor([3, 1])
    maps, _ = A.attention_maps(model, images, "relevance", targets=targets)
    for image in range(2):
        attentions = []
        x = model._pos_embed(model.patch_embed(images[image:image + 1]))
        for block in model.blocks:  # the two blocks spelled out
            module, heads = block.attn, block.attn.num_heads
            q, k, v = module.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1)).permute(
                2, 0, 3, 1, 4)
            weights = (q @ k.transpose(-2, -1) / math.sqrt(module.head_dim)).softmax(-1)
            attentions.append(weights)
            x = x + module.proj((weights @ v).transpose(1, 2).flatten(2))
            x = x + block.mlp(block.norm2(x))
        logit = model.head(model.norm(x)[:, 0])[0, targets[image]]
        gradients = torch.autograd.grad(logit, attentions)
        total = torch.eye(17)
        for weights, gradient in zip(attentions, gradients, strict=True):
            total = total + torch.relu(gradient[0] * weights[0]).mean(0) @ total
        torch.testing.assert_close(maps[image].flatten(), total[0, 1:], atol=1e-5, rtol=1e-4)


def test_relevance_needs_no_trainable_weight_and_leaves_no_gradient():
    model = build("plain").requires_grad_(False)
    maps, _ = A.attention_maps(model, photos(model), "relevance")
    assert maps.abs().max() > 0 and not maps.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("method", A.METHODS)
def test_nothing_is_left_hooked_after_an_exception(method, monkeypatch):
    # PEERS: hooks added per image and never removed
    model = build("plain")
    before = model(photos(model))

    def fail(*args):
        raise KeyError("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward_head", fail)
        with pytest.raises(KeyError):
            A.attention_maps(model, photos(model), method)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert all(block.attn.fused_attn for block in model.blocks)
    torch.testing.assert_close(model(photos(model)), before)


def test_a_map_that_is_wrong_or_missing_is_an_error():
    model = build("plain")
    with pytest.raises(RuntimeError, match="was not captured"), A.capture_attention(model, [0]):
        pass
    with torch.no_grad():
        model.blocks[1].norm1.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="layer 1 of the model computes NaN"), \
            A.capture_attention(model, [1]):
        model(photos(model))


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_does_not_exist_is_named(layer):  # PEERS: layer chosen by i % 11
    with pytest.raises(UserError, match=f"layer {layer} does not exist: the model has layers 0 to"):
        A.attention_maps(build("plain"), photos(build("plain")), layer=layer)


def test_blocks_of_another_kind_are_refused_by_name():
    model = timm.create_model(TINY, img_size=32,
                              block_fn=timm.models.vision_transformer.ParallelScalingBlock)
    with pytest.raises(UserError, match="ParallelScalingBlock"), A.capture_attention(model, [0]):
        pass


def test_rows_sum_to_one_under_bfloat16():
    model = build("plain")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), \
            A.capture_attention(model, [0, 1, 2]) as captured:
        model(photos(model))
    for weights in captured.values():
        assert weights.dtype == torch.float32 and (weights.sum(-1) - 1).abs().max() < 1e-5


def test_entropy_and_distance_of_known_maps():
    even = torch.ones(1, 4, 4)
    peaked = torch.zeros(1, 4, 4)
    peaked[0, 1, 2] = 3.0
    torch.testing.assert_close(A.entropy(torch.cat([even, peaked])), torch.tensor([4.0, 0.0]),
                               atol=1e-4, rtol=0)
    rows, cols, prefix = 2, 3, 1
    weights = torch.rand(2, 2, 7, 7).softmax(-1)
    ours = A.mean_attention_distance(weights, (rows, cols), image_size=(32, 48), prefix=prefix)
    for image in range(2):
        for head in range(2):
            total = 0.0
            for query in range(6):
                row = weights[image, head, query + 1, 1:]
                row = row / row.sum()
                for key in range(6):
                    dy = 16 * (query // cols - key // cols)
                    dx = 16 * (query % cols - key % cols)
                    total += float(row[key]) * math.hypot(dx, dy) / 6
            assert ours[image, head].item() == pytest.approx(total, rel=1e-4)
