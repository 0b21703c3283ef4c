"""The rows of ``peft_caption.py compare``: methods, and with --vary each method with each setting.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from utils import UserError

from inference.settings import (
    Options,
    combinations,
    folder_of,
    refuse_other_keys,
    title_of,
    with_setting,
)
from models.peft import OPTIONS
from training.options import add_peft_training
from training.recipe import CaptionOptions

# What --vary may name: all other options decide the base, the photos or how captions are scored,
# which the rows of a table have in common.
VARIED = ("cross-width", "bottleneck", "prefix-length", "rank", "targets", "dropout", "epochs",
          "lr", "optimizer", "sam-base", "sam-rho", "momentum", "weight-decay", "schedule",
          "warmup", "clip-norm", "ema", "accumulate", "batch-size", "label-smoothing",
          "captions-each", "augment", "seed")
# Options that ``train`` does not have.
COMPARISON = ("methods", "lr_of", "eval_images", "eval_captions", "clip", "bootstrap", "html",
              "show", "vary")


@dataclass(frozen=True)
class Row:
    """One training of a comparison."""

    method: str
    options: Options  # those of --vary that concern this method
    run: argparse.Namespace  # the arguments of its ``train``

    @property
    def title(self) -> str:
        """"lora, rank 4"."""
        return ", ".join(filter(None, [self.method, title_of(self.options)]))


def comparison_rows(args: argparse.Namespace) -> list[Row]:
    """Each method of ``args.methods`` with each combination of ``args.vary``, where a size of other
    methods gives it no further row. UserError or a usage error for a wrong one."""
    varied = combinations(args.vary)
    refuse_other_keys(varied, VARIED, "sizes and options of the recipe")
    methods = list(dict.fromkeys(args.methods))
    if "lr" in varied[0] and {*dict(args.lr_of)} & {*methods}:
        raise UserError("--lr-of and --vary lr both give the learning rate; give one of them")
    for key in varied[0]:
        if not any(concerns(key, method) for method in methods):
            raise UserError(f"--vary {key}: none of the methods {', '.join(methods)} has this size")
    rows = []
    for method in methods:
        own = [{key: value for key, value in options.items() if concerns(key, method)}
               for options in varied]
        rows += [Row(method, options, run_arguments(args, method, options))
                 for number, options in enumerate(own) if options not in own[:number]]
    return rows


def concerns(key: str, method: str) -> bool:
    """Whether an option says something of a training of ``method``."""
    owners = [name for name, sizes in OPTIONS.items() if key.replace("-", "_") in sizes]
    return not owners or method in owners


def run_arguments(args: argparse.Namespace, method: str, options: Options) -> argparse.Namespace:
    """The arguments of ``train`` for one row of a comparison, as if they were typed: without the
    sizes of other methods. A run that was stopped is resumed."""
    given = with_setting(
        args, options, "peft_caption.py compare", lambda parser: add_peft_training(parser, False),
        ["--images", *args.images, "--captions", *args.captions, "--out", args.out])
    own = {key: value if concerns(key, method) else None for key, value in vars(given).items()
           if key not in COMPARISON}
    name = "_".join(filter(None, [method, folder_of(options)]))  # lora_rank-4
    lr = given.lr if "lr" in options else dict(args.lr_of).get(method, args.lr)
    return argparse.Namespace(**own | {
        "method": method, "lr": lr, "resume": True, "out": str(Path(args.out) / name),
        "features": CaptionOptions.from_args(args).features})  # one encoding for all rows
