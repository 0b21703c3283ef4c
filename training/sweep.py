"""Sweeps: one training for each combination of settings."""

from __future__ import annotations

import itertools

from utils import UserError


def combinations(vary: list[str]) -> list[dict[str, str]]:
    """["lr=1e-3,1e-4", "optimizer=adam,sgd"] -> every {"lr": …, "optimizer": …} of the product."""
    options = {}
    for text in vary:
        key, equals, values = text.partition("=")
        if not equals or not key or not values:
            raise UserError(f"--vary {text}: write KEY=VALUE,VALUE,…")
        options[key.replace("_", "-")] = values.split(",")
    products = itertools.product(*options.values())
    return [dict(zip(options, values, strict=True)) for values in products]


def option_words(setting: dict[str, str]) -> list[str]:
    """{"lr": "1e-3", "pretrained": "false", "augment": "flip+crop"} -> the words one would type."""
    words = []
    for key, value in setting.items():
        if value in ("true", "false"):
            words.append(f"--{key}" if value == "true" else f"--no-{key}")
        else:
            words += [f"--{key}", *value.split("+")]
    return words
