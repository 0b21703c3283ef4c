"""Sweeps: trainings of a classifier for each setting, one table and one figure.

Needs no torch to import, so that a wrong setting is reported at once.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from utils import UserError, warn

from training.recipe import check_files, check_out
from training.sweep_options import Setting, read_settings
from training.sweep_table import Done, write_sweep


def sweep(args: argparse.Namespace) -> None:
    """Train each setting that ``args.vary`` and ``args.setting`` name, with ``args.seeds`` seeds.

    Table and figure are written anew after each training. One that diverges is a result, not a
    reason to stop. Raises UserError for a wrong setting before the first training.
    """
    settings = read_settings(args)
    runs = [run for setting in settings for run in setting.runs]
    for setting in settings:
        with naming(setting):
            for run in setting.runs:
                check_files(run)
                check_out(run.out, run.resume)
    if not all(run.val or run.hold_out for run in runs):
        raise UserError("sweep compares accuracy on photos that were not trained on: give --val "
                        "DIR or --hold-out")
    from training.classify import open_training, train_classifier  # these import torch
    from training.loop import Diverged

    for number, setting in enumerate(settings, 1):
        warn(f"checking setting {number}/{len(settings)}: {setting.title}")
        with naming(setting):
            open_training(setting.runs[0])
    done: list[Done] = []
    for number, setting in enumerate(settings, 1):
        histories = []
        for run in setting.runs:
            seed = f", seed {run.seed}" if len(setting.runs) > 1 else ""
            warn(f"setting {number}/{len(settings)}: {setting.title}{seed}")
            try:
                histories.append(train_classifier(run))
            except Diverged as error:
                warn(str(error))
                histories.append(None)
            write_sweep([*done, Done(setting, histories)], args.seeds, Path(args.out))
        done.append(Done(setting, histories))
    warn(f"wrote sweep.md, sweep.csv and curves.png into {args.out}")


@contextlib.contextmanager
def naming(setting: Setting) -> Iterator[None]:
    """A UserError inside says which setting is wrong."""
    try:
        yield
    except UserError as error:
        raise UserError(f"setting {setting.title}: {error}") from None
