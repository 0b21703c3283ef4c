"""Options of a sweep, and the settings and trainings that they name. Needs no torch."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path

from utils import UserError

from inference.parser import Parser, positive_int
from inference.settings import (
    Options,
    SettingParser,
    combinations,
    folder_of,
    key_and_value,
    option_words,
    refuse_varied,
    title_of,
)
from training.options import add_classifier_training
from training.teacher_options import complete_teacher_options


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``p1_vit_classify.py sweep`` beside those of ``train``."""
    parser.add_argument("--vary", action="append", default=[], metavar="KEY=V1,V2",
                        help="an option of train and its values (several words: flip+crop); "
                             "several --vary form a product")
    parser.add_argument("--setting", action="append", default=[], metavar="'KEY=V KEY=V'",
                        help="the options of one row of the table; repeat it for each row. With "
                             "--vary, each setting is trained with each combination")
    parser.add_argument("--seeds", type=positive_int, default=1, metavar="N",
                        help="train each setting N times, with --seed and the next N - 1 seeds: "
                             "mean and spread")
    add_classifier_training(parser)


@dataclass(frozen=True)
class Setting:
    """A row of the table: the options that it gives, and the arguments of its training with each
    seed."""

    options: Options
    runs: list[argparse.Namespace]

    @property
    def title(self) -> str:
        return title_of(self.options)


def read_settings(args: argparse.Namespace) -> list[Setting]:
    """Each --setting with each combination of --vary. UserError or a usage error for a wrong one.
    """
    if not args.vary and not args.setting:
        Parser(prog="p1_vit_classify.py sweep").error(
            "give the settings to compare: --vary KEY=V1,V2 or --setting 'KEY=V KEY=V'")
    given = [one_setting(text) for text in args.setting] or [{}]
    varied = combinations(args.vary)
    for key in varied[0]:
        if any(key in setting for setting in given):
            raise UserError(f"{key} is in --vary and in --setting; give it in one of them")
    products = [setting | values for setting in given for values in varied]
    different = [options for number, options in enumerate(products)
                 if options not in products[:number]]
    if any("out" in options for options in different):
        raise UserError("out: a sweep names the folders of its trainings itself; leave it out")
    if args.seeds > 1 and any("seed" in options for options in different):
        raise UserError("--seeds N gives every setting its seeds; leave seed out of the settings")
    parser = Parser()
    add_classifier_training(parser)
    refuse_varied(args, varied[0], parser)
    settings = [Setting(options, with_each_seed(run_arguments(args, options), args.seeds))
                for options in different]
    refuse_shared_folders(settings)
    return settings


def one_setting(text: str) -> Options:
    """"model=test_vit weights='my file.pth'" -> {"model": "test_vit", "weights": "my file.pth"}.
    """
    form = f"--setting {text!r}: write KEY=VALUE KEY=VALUE …"
    try:
        words = shlex.split(text)
    except ValueError:
        raise UserError(f"{form}; a quotation mark is not closed") from None
    options: Options = {}
    for word in words:
        key, value = key_and_value(word, form)
        if key in options:
            raise UserError(f"--setting {text!r} gives {key} twice; give it once")
        options[key] = value
    if not options:
        raise UserError(form)
    return options


def run_arguments(args: argparse.Namespace, options: Options) -> argparse.Namespace:
    """The arguments of ``train`` for one setting of a sweep, parsed as if they were typed."""
    parser = SettingParser("p1_vit_classify.py sweep", options)
    add_classifier_training(parser)
    words = ["--train", args.train, "--out", str(Path(args.out) / folder_of(options)),
             *option_words(options)]
    parsed = parser.parse_args(words, argparse.Namespace(**vars(args)))
    complete_teacher_options(parsed, parser)
    return parsed


def with_each_seed(run: argparse.Namespace, seeds: int) -> list[argparse.Namespace]:
    """The trainings of one setting: in its folder, or for several seeds in folders in it."""
    if seeds == 1:
        return [run]
    return [argparse.Namespace(**vars(run) | {"seed": seed, "out": f"{run.out}/seed-{seed}"})
            for seed in range(run.seed, run.seed + seeds)]


def refuse_shared_folders(settings: list[Setting]) -> None:
    """UserError where two settings would be written into one folder."""
    owners: dict[str, str] = {}
    for setting in settings:
        folder = setting.runs[0].out
        other = owners.setdefault(folder, setting.title)
        if other != setting.title:
            raise UserError(f"the settings {other!r} and {setting.title!r} would both be written "
                            f"into {folder}; name their files differently")
