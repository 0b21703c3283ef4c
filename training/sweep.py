"""Sweeps: one training of a classifier for each setting, one table and one figure.

Needs no torch to import, so that a wrong setting is reported at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from utils import UserError, warn, write_text

from data.files import markdown_table, write_csv
from figures import charts
from metrics import accuracy
from training.recipe import check_files, check_out
from training.sweep_options import Setting, read_settings


def sweep(args: argparse.Namespace) -> None:
    """Train once for each setting that ``args.vary`` and ``args.setting`` name.

    Table and figure are written anew after each training. One that diverges is a result, not a
    reason to stop. Raises UserError for a wrong setting before the first training.
    """
    settings = read_settings(args)
    for setting in settings:
        check_files(setting.run)
        check_out(setting.run.out, setting.run.resume)
    if not all(setting.run.val or setting.run.hold_out for setting in settings):
        raise UserError("sweep compares accuracy on photos that were not trained on: give --val "
                        "DIR or --hold-out")
    from training.classify import train_classifier  # these import torch
    from training.loop import Diverged

    histories = {}
    for number, setting in enumerate(settings, 1):
        warn(f"setting {number}/{len(settings)}: {setting.title}")
        try:
            histories[setting.title] = train_classifier(setting.run)
        except Diverged as error:
            warn(str(error))
            histories[setting.title] = None
        write_sweep(settings, histories, Path(args.out))
    warn(f"wrote sweep.md, sweep.csv and curves.png into {args.out}")


def write_sweep(
    settings: list[Setting], histories: dict[str, list[dict] | None], out: Path
) -> None:
    """sweep.md, sweep.csv and curves.png of the settings that are done, in the order of
    ``settings``: their last epochs, and None for a training that diverged."""
    last = [history[-1] if history else None for history in histories.values()]
    compared = accuracy.compare([row and (row["val_correct"], row["val_images"]) for row in last])
    keys = list(dict.fromkeys(key for setting in settings for key in setting.options))
    header = [*keys, "train accuracy", "val accuracy", "95 % interval", "against the best"]
    table = [[*(setting.options.get(key, "") for key in keys),
              f"{row['train_accuracy']:.1%}" if row else "diverged", *columns]
             for setting, row, columns in zip(settings, last, compared, strict=False)]
    write_csv(out / "sweep.csv", header, table)
    write_text(out / "sweep.md", markdown_table(header, table))
    finished = {title: history for title, history in histories.items() if history}
    if finished:
        charts.training_curves(finished, out / "curves.png")
