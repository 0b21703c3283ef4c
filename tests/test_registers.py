"""Registers at test time, on a model with one neuron that makes the brightest patch an outlier."""

from __future__ import annotations

from utils import UserError

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from benchmarks.registers import register_neurons, with_registers
from models import attention

LAYER, NEURON = 1, 7


@pytest.fixture
def model():
    """Neuron 7 of layer 1 fires where the residual has a large first channel, that is at the patch
    of the image that is bright, and writes a huge value there."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2,
                              num_classes=3).eval()
    with torch.no_grad():
        model.patch_embed.proj.weight[0] = 0.05  # not yet an outlier
        model.patch_embed.proj.bias[1:] = torch.tensor([1.0, -1.0] * 8)[1:]  # LayerNorm keeps scale
        first, second = model.blocks[LAYER].mlp.fc1, model.blocks[LAYER].mlp.fc2
        first.weight[NEURON], first.bias[NEURON] = 0, -20.0
        first.weight[NEURON, 0] = 10.0
        second.weight[:, NEURON] = 10.0
    return model


@pytest.fixture
def images():
    """The upper left patch is bright."""
    images = 0.01 * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    images[:, :, :8, :8] = 1.0
    return images


def norms_of(model, images):
    kept = []
    hook = model.blocks[-1].register_forward_hook(lambda *parts: kept.append(parts[2]))
    with torch.no_grad():
        model(images)
    hook.remove()
    return kept[0].norm(dim=-1)


def test_the_neuron_is_found_and_its_outlier_moves_to_the_register(model, images):
    before = norms_of(model, images)
    assert (before[:, 1] > 5 * before[:, 2:].amax(1)).all()
    assert register_neurons(model, images, 1) == [(LAYER, NEURON)]
    with with_registers(model, [(LAYER, NEURON)]):
        after = norms_of(model, images)
        assert after.shape[1] == before.shape[1] + 1
        assert (after[:, 1] > 5 * after[:, 2:].amax(1)).all()  # the register
        maps, _ = attention.attention_maps(model, images)
        assert maps.shape == (2, 1, 4, 4)
    torch.testing.assert_close(norms_of(model, images), before)  # all is as it was
    assert model.num_prefix_tokens == 1 and "_pos_embed" not in vars(model)


def test_a_model_without_outliers_is_refused(images):
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    with pytest.raises(UserError, match="no outliers to move"):
        register_neurons(model.eval(), 0 * images)
