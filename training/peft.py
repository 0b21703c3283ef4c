"""Training of PEFT captioners: few parameters over a frozen base (docs/peft.md)."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from utils import UserError, warn

import torch

from inference.peft import BaseSource, given_sizes
from models.captioner import Captioner
from models.decoding import Search
from models.peft import (
    LIMIT,
    Method,
    count_parts,
    identity_of,
    insert,
    method_of,
    save_peft,
    trained,
)
from training.caption import caption_task, photos_from, set_resize
from training.loop import check_out, fit_recipe
from training.options import PEFT_LR
from training.recipe import CaptionOptions, Recipe, check_files, describe_training


def train_peft(args: argparse.Namespace) -> list[dict]:
    """Train one method by the options of ``peft_caption.py train``; returns its history, one row
    an epoch."""
    check_files(args)
    check_out(args.out, args.resume)
    method = method_from(args)
    images, val = photos_from(args)
    return train_over(training_base(args), method, images, val, recipe_from(args), args)


def method_from(args: argparse.Namespace) -> Method:
    """The method with the sizes that are given. UserError for a size of another method."""
    return method_of(args.method, args.cross_width, **given_sizes(args))


def recipe_from(args: argparse.Namespace) -> Recipe:
    """The recipe of a command line, with the method's own learning rate where none is given."""
    recipe = Recipe.from_args(args)
    return recipe if args.lr is not None else dataclasses.replace(recipe, lr=PEFT_LR[args.method])


def training_base(args: argparse.Namespace) -> Captioner:
    """The frozen base, which prepares photos as --resize says."""
    base = BaseSource.from_args(args).open()
    set_resize(base, args.resize)
    return base


def insert_from(base: Captioner, method: Method, args: argparse.Namespace) -> Captioner:
    """A captioner over ``base`` with ``method``'s parameters.

    Raises UserError where it would train more than the course allows, without --allow-large.
    """
    captioner = insert(base, method, args.dropout)
    count = sum(count_parts(trained(captioner)).values())
    if count >= LIMIT and not args.allow_large:
        raise UserError(f"{method.name} would train {count:,} parameters, the course allows fewer "
                        f"than {LIMIT:,}: choose smaller sizes, or give --allow-large")
    return captioner


def train_over(
    base: Captioner, method: Method, images: dict[Path, list[str]],
    val: list[dict[Path, list[str]]], recipe: Recipe, args: argparse.Namespace,
) -> list[dict]:
    """Train ``method`` over ``base`` on ``images``, validated on the sources ``val``, each photo
    with its captions; returns its history."""
    torch.manual_seed(recipe.seed)
    identity, captioner = identity_of(base), insert_from(base, method, args)
    changed = [name.removesuffix(".lora_A.weight").removeprefix("decoder.")
               for name in trained(captioner) if name.endswith(".lora_A.weight")]
    if changed:
        warn(f"LoRA changes {len(changed)} linear layers: {' '.join(changed)}")
    about = describe_training(args, recipe, {
        "captions": [Path(path).name for path in args.captions], "images": len(images)})
    about["encoder"] = {"name": base.architecture["name"], "pretrained": args.pretrained,
                        "weights": args.weights and Path(args.weights).name}

    def save(path, model, row):
        save_peft(path, model, method, identity, **about, metrics=row)

    task = caption_task(captioner, images, val, Search.from_args(args), save, recipe,
                        CaptionOptions.from_args(args))
    task.what = (f"{len(images):,} photos with {sum(map(len, images.values())):,} captions, "
                 f"{sum(map(len, val)):,} photos to validate on")
    return fit_recipe(captioner, task, recipe, args)
