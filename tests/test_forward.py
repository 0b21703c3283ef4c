"""Which device and precision are taken, and models as fast as the hardware runs them."""

from __future__ import annotations

import csv
import shutil

from utils import UserError

import pytest
import timm
import torch
from conftest import ROOT, inside
from torch import nn

import p1_vit_classify
from ckpt import registry
from data.compute import Compute, autocast, choose_device, choose_precision, to_device
from data.photos import list_images
from inference.classify import classify, load_classifiers
from models.clip_towers import PooledVit
from models.forward import (
    Forward,
    FusedLinear,
    can_fuse,
    compile_obstacle,
    fuse_linear,
    held_in_bf16,
    is_convolutional,
)

BF16 = torch.bfloat16

# --- device and precision -----------------------------------------------------------------------


@pytest.mark.parametrize("name, has_cuda, has_mps, device", [
    ("auto", True, False, "cuda"), ("auto", False, False, "cpu"), ("auto", False, True, "cpu"),
    ("cpu", True, True, "cpu"), ("cuda", True, True, "cuda"), ("mps", True, True, "mps")])
def test_the_device(name, has_cuda, has_mps, device):
    assert choose_device(name, has_cuda, has_mps) == device


@pytest.mark.parametrize("name, others", [("cuda", (False, True)), ("mps", (True, False))])
def test_a_device_that_is_not_there_is_one_line(name, others):
    with pytest.raises(UserError, match=f"--device {name}: .*use --device cpu"):
        choose_device(name, *others)


@pytest.mark.parametrize("name, device, has_bf16, precision", [
    ("auto", "cpu", True, "bf16"), ("auto", "cpu", False, "fp32"), ("auto", "cuda", True, "bf16"),
    ("auto", "cuda", False, "fp32"), ("auto", "mps", True, "fp32"), ("bf16", "mps", True, "bf16"),
    ("bf16", "cpu", False, "bf16"), ("fp32", "cuda", True, "fp32")])
def test_the_precision(name, device, has_bf16, precision):
    assert choose_precision(name, device, has_bf16) == precision


def test_bf16_on_an_old_mac_is_one_line():
    with pytest.raises(UserError, match="--precision bf16: .*macOS 14; use --precision fp32"):
        choose_precision("bf16", "mps", False)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_command_on_a_device_that_is_not_there(capsys, tmp_path, device):
    if torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available():
        pytest.skip(f"there is {device}")
    status, _, errors = inside(p1_vit_classify, "predict", "--device", device,
                               "--output", tmp_path / "out.csv", capsys=capsys)
    assert status == 1 and errors[-1].startswith(f"error: --device {device}: ")
    assert not list(tmp_path.iterdir())


def test_on_a_cpu_nothing_is_copied():
    batch = torch.zeros(2, 3)
    assert to_device(batch, "cpu") is batch


# --- weights held in bfloat16 -------------------------------------------------------------------


def with_random_head(name: str, **args) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **args).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features ** -0.5)
    return model


def images_for(model: nn.Module, count: int = 4) -> torch.Tensor:
    rows, cols = timm.data.resolve_model_data_config(model)["input_size"][1:]
    return torch.randn(count, rows, cols, 3).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return with_random_head("test_vit3", qkv_bias=True, init_values=0.5)


def largest_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours - exact).abs().max() / exact.abs().max())


def under_autocast(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(), autocast("cpu", "bf16"):
        return model(images).float()


def test_linear_layers_of_a_vit_are_held_in_bf16_but_for_its_head(vit):
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    held = held_in_bf16(vit)
    types = {name: value.dtype for name, value in held.named_parameters()}
    rounded = {name for name, dtype in types.items() if dtype == BF16}
    layers = (".qkv.", ".q.", ".kv.", ".proj.", ".fc1.", ".fc2.")
    assert rounded == {name for name in types if any(layer in name for layer in layers)}
    assert held.pos_embed is vit.pos_embed  # shared: no memory is taken twice
    for name, value in vit.state_dict().items():  # the model that was given is as it was
        assert value.dtype == torch.float32 and torch.equal(value, before[name])


def test_a_vit_in_bf16_is_as_exact_as_autocast(vit):
    images = images_for(vit, 16)
    with torch.inference_mode():
        exact = vit(images)
    ours = Forward(vit, Compute("cpu", "bf16", 4))(images)
    assert ours.dtype == torch.float32
    assert largest_error(ours, exact) < max(
        1.5 * largest_error(under_autocast(vit, images), exact), 0.01)
    as_float = Forward(vit, Compute("cpu", "fp32", 4))(images)
    torch.testing.assert_close(as_float, exact, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_resnet"])
def test_a_convolutional_network_computes_the_same_as_under_autocast(name):
    model = with_random_head(name)
    images = images_for(model)
    assert is_convolutional(model)
    with torch.inference_mode():
        exact = model(images)
    error = largest_error(under_autocast(model, images), exact)
    assert largest_error(Forward(model, Compute("cpu", "bf16", 4))(images), exact) <= 2 * error
    torch.testing.assert_close(Forward(model, Compute("cpu", "fp32", 4))(images), exact,
                               atol=1e-4, rtol=1e-4)


def test_a_vit_without_its_head(vit):
    tower = nn.Sequential(PooledVit(vit), nn.Linear(vit.num_features, 8))
    images = images_for(vit)
    with torch.inference_mode():
        exact = tower(images)
    assert largest_error(Forward(tower, Compute("cpu", "bf16", 4))(images), exact) < 0.03


@pytest.mark.skipif(not can_fuse(), reason="this processor has no bfloat16 in oneDNN")
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_fused_linear_layers_against_their_formula(gelu, bias):
    torch.manual_seed(0)
    linear = nn.Linear(24, 40, bias=bias, dtype=BF16)
    x = torch.randn(2, 7, 24).to(BF16)
    exact = x.double() @ linear.weight.double().T + (linear.bias.double() if bias else 0)
    exact = exact * torch.special.ndtr(exact) if gelu else exact
    with torch.inference_mode():
        torch.testing.assert_close(FusedLinear(linear, gelu)(x).double(), exact,
                                   atol=0.02, rtol=0.01)


@pytest.mark.skipif(not can_fuse(), reason="this processor has no bfloat16 in oneDNN")
def test_only_the_exact_gelu_is_fused(vit):
    tanh = with_random_head("test_vit3", act_layer="gelu_tanh")
    for model, fused in ((vit, True), (tanh, False)):
        held = held_in_bf16(model)
        fuse_linear(held)
        mlp = held.blocks[0].mlp
        assert isinstance(mlp.act, nn.Identity) == mlp.fc1.gelu == fused
        assert not any(isinstance(module, nn.Linear) for module in held.blocks.modules())


def test_labels_of_photos_are_those_of_float32():
    paths = list_images(ROOT / "samples")
    classifier = load_classifiers([registry.members("p1")[0]])[0]
    (_, exact, _), (_, ours, _) = (classify(classifier, paths, Compute("cpu", precision, 2))
                                   for precision in ("fp32", "bf16"))
    assert (exact.argmax(1) == ours.argmax(1)).all()
    assert abs(exact - ours).max() < 0.03


# --- --compile ----------------------------------------------------------------------------------


@pytest.mark.parametrize("device, named, there, why", [
    ("cpu", None, ["g++"], ""), ("cpu", None, ["clang++"], ""), ("cuda", None, ["c++"], ""),
    ("cpu", "/opt/g++-14", ["/opt/g++-14"], ""), ("mps", None, ["g++"], "not supported on mps"),
    ("cpu", None, ["gcc"], "no g++ or clang++ or c++"), ("cpu", "icx", ["g++"], "no icx")])
def test_where_a_model_can_be_compiled(device, named, there, why):
    found = compile_obstacle(device, named, lambda name: name if name in there else None)
    assert why in found and bool(found) == bool(why)


def test_a_compiled_model_computes_the_same(capsys):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(64, 5))  # compiles soon
    images = torch.randn(5, 32, 32, 3).permute(0, 3, 1, 2)
    compiled = Forward(model, Compute("cpu", "bf16", 3, compile=True))
    with torch.inference_mode():
        exact = model(images)
    ours = torch.cat([compiled(images[:3]), compiled(images[3:])])
    assert ours.dtype == torch.float32 and largest_error(ours, exact) < 0.03
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if "compile" in line]) == 1
    if not compile_obstacle("cpu", None, shutil.which):
        assert compiled.compile_seconds > 0 and "compiled the model in" in said[-1]


def test_where_it_cannot_be_compiled_the_rows_are_the_same(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    rows = []
    for words in ((), ("--compile",)):
        output = tmp_path / "out.csv"
        status, _, errors = inside(
            p1_vit_classify, "predict", "--images", ROOT / "samples", "--output", output,
            "--device", "cpu", *words, capsys=capsys)
        assert status == 0
        rows.append(list(csv.reader(output.open())))
    assert rows[0] == rows[1]
    assert errors.count("--compile: it needs a C++ compiler, and there is no no-such-compiler; "
                        "the model runs without it") == 1
