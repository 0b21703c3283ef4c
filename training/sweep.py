"""Sweeps: one training of a classifier for each combination of settings, one table and one figure.

Needs no torch to import, so that a wrong setting is reported at once.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from utils import UserError, warn, write_text

from data.files import markdown_table, write_csv
from figures import charts
from inference.parser import Parser
from metrics import accuracy
from training.options import add_classifier_training
from training.recipe import check_files, check_out
from training.teacher_options import complete_teacher_options


def sweep(args: argparse.Namespace) -> None:
    """Train once for each combination of the options that ``args.vary`` names.

    Table and figure are written anew after each training. One that diverges is a result, not a
    reason to stop. Raises UserError for a wrong setting before the first training.
    """
    settings = combinations(args.vary)
    runs = [setting_arguments(args, setting) for setting in settings]  # checked before any work
    for run in runs:
        check_files(run)
        check_out(run.out, run.resume)
    if not all(run.val or run.hold_out for run in runs):
        raise UserError("sweep compares accuracy on photos that were not trained on: give --val "
                        "DIR or --hold-out")
    from training.classify import train_classifier  # these import torch
    from training.loop import Diverged

    histories = {}
    for number, (setting, run_args) in enumerate(zip(settings, runs, strict=True), 1):
        title = ", ".join(f"{key} {value}" for key, value in setting.items())
        warn(f"setting {number}/{len(settings)}: {title}")
        try:
            histories[title] = train_classifier(run_args)
        except Diverged as error:
            warn(str(error))
            histories[title] = None
        write_sweep(settings, histories, Path(args.out))
    warn(f"wrote sweep.md, sweep.csv and curves.png into {args.out}")


def combinations(vary: list[str]) -> list[dict[str, str]]:
    """["lr=1e-3,1e-4", "optimizer=adam,sgd"] -> every {"lr": …, "optimizer": …} of the product."""
    options = {}
    for text in vary:
        key, equals, values = text.partition("=")
        if not equals or not key or not values:
            raise UserError(f"--vary {text}: write KEY=VALUE,VALUE,…")
        if key == "out":
            raise UserError("--vary out: a sweep names the folders of its trainings itself")
        options[key.replace("_", "-")] = list(dict.fromkeys(values.split(",")))  # each once
    products = itertools.product(*options.values())
    return [dict(zip(options, values, strict=True)) for values in products]


def setting_arguments(args: argparse.Namespace, setting: dict[str, str]) -> argparse.Namespace:
    """The arguments of ``train`` for one setting of a sweep, parsed as if they were typed."""
    folder = "_".join(f"{key}-{value}" for key, value in setting.items()).replace("/", "-")
    parser = Parser(prog="p1_vit_classify.py sweep")
    add_classifier_training(parser)
    words = ["--train", args.train, "--out", str(Path(args.out) / folder), *option_words(setting)]
    parsed = parser.parse_args(words, argparse.Namespace(**vars(args)))
    complete_teacher_options(parsed, parser)
    return parsed


def option_words(setting: dict[str, str]) -> list[str]:
    """{"lr": "1e-3", "pretrained": "false", "augment": "flip+crop"} -> the words one would type."""
    words = []
    for key, value in setting.items():
        if value in ("true", "false"):
            words.append(f"--{key}" if value == "true" else f"--no-{key}")
        else:
            words += [f"--{key}", *value.split("+")]
    return words


def write_sweep(
    settings: list[dict[str, str]], histories: dict[str, list[dict] | None], out: Path
) -> None:
    """sweep.md, sweep.csv and curves.png of the settings that are done, in the order of
    ``settings``: their last epochs, and None for a training that diverged."""
    last = [history[-1] if history else None for history in histories.values()]
    compared = accuracy.compare([row and (row["val_correct"], row["val_images"]) for row in last])
    header = [*settings[0], "train accuracy", "val accuracy", "95 % interval", "against the best"]
    table = [[*setting.values(), f"{row['train_accuracy']:.1%}" if row else "diverged", *columns]
             for setting, row, columns in zip(settings, last, compared, strict=False)]
    write_csv(out / "sweep.csv", header, table)
    write_text(out / "sweep.md", markdown_table(header, table))
    finished = {title: history for title, history in histories.items() if history}
    if finished:
        charts.training_curves(finished, out / "curves.png")
