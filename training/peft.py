"""What ``peft_caption.py``'s commands share: the base that options name, training over it, opening
and measuring what was trained. Between the script and the rooms, as ``caption_training``."""

from __future__ import annotations

from pathlib import Path

from utils import UserError, warn

import torch

from inference.peft import open_base
from models.decoding import Search
from models.peft import (
    LIMIT,
    OPTIONS,
    Method,
    count_parts,
    identity_of,
    insert,
    method_of,
    save_peft,
    trained,
)
from models.vit_gpt2 import ViTGPT2
from training.caption import caption_task
from training.loop import describe_training, fit_recipe

# Highest learning rate of each method, cross-attention included, which is fresh in all of them.
LR = {"cross": 3e-3, "adapter": 3e-3, "prefix": 3e-3, "lora": 3e-3, "full": 1.5e-3}


def method_from(args) -> Method:
    sizes = {key: getattr(args, key) for options in OPTIONS.values() for key in options}
    return method_of(args.method, args.cross_width, **sizes)


def insert_from(args, base: ViTGPT2) -> ViTGPT2:
    """A captioner over ``base`` by the options. UserError where it would train more than the
    course allows."""
    captioner = insert(base, method_from(args), args.dropout)
    count = sum(count_parts(trained(captioner)).values())
    if count >= LIMIT and not args.allow_large:
        raise UserError(f"{args.method} would train {count:,} parameters, the course allows fewer "
                        f"than {LIMIT:,}: choose smaller sizes, or give --allow-large")
    return captioner


# --- training -----------------------------------------------------------------------------------


def training_base(args) -> ViTGPT2:
    """``open_base``, seeing photos as --resize says."""
    base = open_base(args)
    if args.resize:
        base.preprocessing = base.preprocessing | {"resize": args.resize, "crop_pct": 1.0}
    return base


def train_over(base: ViTGPT2, images: dict, val: dict, args) -> list[dict]:
    """Train ``args.method`` over ``base``; returns its history (see training.fit)."""
    torch.manual_seed(args.seed)
    args.lr = args.lr or LR[args.method]
    method, identity, captioner = method_from(args), identity_of(base), insert_from(args, base)
    changed = [name.removesuffix(".lora_A.weight").removeprefix("decoder.")
               for name in trained(captioner) if name.endswith(".lora_A.weight")]
    if changed:
        warn(f"lora changes {len(changed)} linear layers: {' '.join(changed)}")
    about = describe_training(args, {
        "captions": [Path(path).name for path in args.captions], "images": len(images)})
    about["encoder"] = {"name": base.architecture["name"], "pretrained": args.pretrained,
                        "weights": args.weights and Path(args.weights).name}

    def save(path, model, row):
        save_peft(path, model, method, identity, **about, metrics=row)

    task = caption_task(captioner, images, val, Search.from_args(args), save, args)
    return fit_recipe(captioner, task, about["recipe"] | {"base": identity}, args)
