"""A finished model as fast as the hardware runs it: weights held in bfloat16, or compiled code.

Autocast alone converts all weights again for every batch, since its cache ends with its context.
"""

from __future__ import annotations

import copy
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from utils import one_line, warn

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from data.compute import Compute, autocast

COMPILERS = ("g++", "clang++", "c++")


class Forward:
    """``model`` (images (B, 3, H, W) -> (B, D)) as a function without gradients that returns
    float32, on the device and at the precision of ``compute``. The model itself stays float32.

    With ``compute.compile`` the first call compiles it for batches of ``compute.batch_size``, says
    how long that took and keeps it in ``compile_seconds``. Where it cannot be compiled, one line
    says why, and it runs as without.
    """

    def __init__(self, model: nn.Module, compute: Compute) -> None:
        self.compute, self.compile_seconds = compute, 0.0
        self.model = model.to(compute.device).eval()
        if is_convolutional(model):
            self.model.to(memory_format=torch.channels_last)
        if compute.precision == "bf16":
            self.model = held_in_bf16(self.model)
            if not compute.compile:
                self._fuse()
        self._compiled: Callable[[Tensor], Tensor] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(self.compute.device, self.compute.precision):
            if self.compute.compile:
                # Code for another number of images would have to be compiled anew.
                missing = self.compute.batch_size - len(images)
                padded = F.pad(images, (0, 0, 0, 0, 0, 0, 0, missing))
                if self._compiled is None:
                    self._compile(padded)
                if self._compiled is not None:
                    return self._compiled(padded)[:len(images)].float()
            return self.model(images).float()

    def _fuse(self) -> None:
        """What torch.compile does of itself."""
        if (self.compute.device, self.compute.precision) == ("cpu", "bf16") and can_fuse():
            fuse_linear(self.model)

    def _compile(self, images: Tensor) -> None:
        why_not = compile_obstacle(self.compute.device, os.environ.get("CXX"), shutil.which)
        started = time.perf_counter()
        if not why_not:
            import torch._inductor.config as inductor  # takes a second to import

            compiled = torch.compile(self.model, dynamic=False)
            try:
                with inductor.patch(freezing=True):  # weights are laid out for the processor once
                    compiled(images)
            except Exception as error:  # torch's compiler and the C++ compiler raise anything
                why_not = one_line(error)[:200]
        if why_not:
            warn(f"--compile: {why_not}; the model runs without it")
            self.compute = replace(self.compute, compile=False)
            self._fuse()
            return
        self._compiled, self.compile_seconds = compiled, time.perf_counter() - started
        warn(f"compiled the model in {self.compile_seconds:.0f} s")


def compile_obstacle(
    device: str, named: str | None, find: Callable[[str], str | None]
) -> str:
    """Why torch.compile cannot work on ``device``, "" where it can; ``named`` is the C++ compiler
    that the environment variable CXX names, and ``find`` finds a program as ``shutil.which``."""
    if device == "mps":
        return "it is not supported on mps"
    wanted = (named,) if named else COMPILERS
    return "" if any(map(find, wanted)) else \
        f"it needs a C++ compiler, and there is no {' or '.join(wanted)}"


def is_convolutional(model: nn.Module) -> bool:
    """Whether the model has more convolutions than the one that makes a ViT's patches: then it is
    faster where the channels of a pixel lie side by side in memory."""
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1


def held_in_bf16(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that runs under autocast to bfloat16 and need not convert its weights:
    linear layers and convolutions hold them in bfloat16. What stays float32 is shared with it.

    A ViT's residual stream is added up in float32, which costs 7 % of the speed of a ViT-Ti: in
    bfloat16 its logits were half as far again from those in float32. Its head stays float32, too,
    since logits that are rounded to bfloat16 can tie.
    """
    vits = [module for module in model.modules() if isinstance(module, VisionTransformer)]
    rounded = _parameters(module for module in model.modules()
                          if type(module) in (nn.Linear, nn.Conv2d))
    rounded -= _parameters(vit.head for vit in vits)
    held = copy.deepcopy(model, {
        id(parameter): nn.Parameter(parameter.detach().bfloat16(), requires_grad=False)
        if parameter in rounded else parameter for parameter in model.parameters()})
    for module in list(held.modules()):
        if isinstance(module, VisionTransformer) and type(module.head) is nn.Linear:
            module.head = _Float32(module.head)
    return held


def _parameters(modules: Iterable[nn.Module]) -> set[nn.Parameter]:
    return {parameter for module in modules for parameter in module.parameters()}


class _Float32(nn.Module):
    """A module that computes in float32, whatever surrounds it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.module(features.float())


# --- linear layers with what follows them ---------------------------------------------------------


class FusedLinear(nn.Module):
    """A linear layer with bfloat16 weights, and perhaps the GELU behind it, in one call of oneDNN.

    torch.compile uses this operator too. ``F.linear`` instead writes the bias to every row of the
    result and adds the product to it, which is slower.
    """

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        super().__init__()
        self.weight, self.bias, self.gelu = linear.weight, linear.bias, gelu

    def forward(self, x: Tensor) -> Tensor:
        after = ("gelu", [], "none") if self.gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.weight, self.bias, *after)


def can_fuse() -> bool:
    """Whether this PyTorch and this processor have the operator of ``FusedLinear``."""
    try:
        FusedLinear(nn.Linear(1, 1, dtype=torch.bfloat16))(torch.ones(1, 1, dtype=torch.bfloat16))
    except (AttributeError, RuntimeError):
        return False
    return True


def fuse_linear(model: nn.Module) -> None:
    """Replace the linear layers in the blocks of the ViTs in ``model``, which ``held_in_bf16``
    made for a CPU, by ``FusedLinear``."""
    vits = [module for module in model.modules() if isinstance(module, VisionTransformer)]
    for module in [inner for vit in vits for inner in vit.blocks.modules()]:
        with_gelu = type(module) is Mlp and type(module.act) is nn.GELU \
            and module.act.approximate == "none"
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Linear:
                setattr(module, name, FusedLinear(layer, with_gelu and name == "fc1"))
        if with_gelu:
            module.act = nn.Identity()
