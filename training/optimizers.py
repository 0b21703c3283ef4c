"""Optimizers, their parameter groups, and the schedule of the learning rate.

The defaults of each optimizer are in ``training.recipe``, which needs no torch.
"""

from __future__ import annotations

import math

import torch
from pytorch_optimizer import SAM
from torch import nn

from training.recipe import Recipe, base_optimizer

EMBEDDINGS = ("wte", "wpe", "prefix", "pos_embed", "cls_token", "logit_scale", "_embeddings.")


def make_optimizer(groups: list[dict], recipe: Recipe) -> torch.optim.Optimizer:
    """Adam, AdamW, SGD, or SAM (Foret et al. 2021) over one of them.

    ``groups`` are parameter groups; ``lr_scale`` in one multiplies the recipe's learning rate.
    Weight decay is decoupled for AdamW alone; the others add it to the gradient.
    """
    groups = [{**group, "lr": recipe.lr * group.get("lr_scale", 1.0)} for group in groups]
    classes = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    base = base_optimizer(recipe)
    options = {"lr": recipe.lr} | ({"momentum": recipe.momentum} if base == "sgd" else {})
    if recipe.optimizer == "sam":
        return SAM(groups, classes[base], rho=recipe.sam_rho, **options)
    return classes[base](groups, **options)


def parameter_groups(
    model: nn.Module, weight_decay: float, lr_scales: dict[str, float] | None = None
) -> list[dict]:
    """Trained parameters by whether they decay and by learning rate: ``lr_scales`` says how that of
    names with a prefix is scaled. Norms, biases and embeddings do not decay."""
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            embedding = any(part in name for part in EMBEDDINGS)
            decay = 0.0 if embedding or parameter.ndim < 2 else weight_decay
            scale = next((scale for prefix, scale in (lr_scales or {}).items()
                          if name.startswith(prefix)), 1.0)
            groups.setdefault((decay, scale), []).append(parameter)
    return [{"params": parameters, "weight_decay": decay, "lr_scale": scale}
            for (decay, scale), parameters in groups.items()]


def lr_factor(recipe: Recipe, steps_an_epoch: int, step: int) -> float:
    """What the learning rate is multiplied by at optimizer step ``step`` (from 0): a linear
    warm-up, then constant, or a cosine or a line down to 0 at the end of the last epoch."""
    warmup, total = recipe.warmup * steps_an_epoch, recipe.epochs * steps_an_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[
        recipe.schedule]
