"""Options of a sweep, and the settings and trainings that they name. Needs no torch."""

from __future__ import annotations

import argparse
import itertools
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from utils import UserError, positive_int

from inference.parser import Parser
from training.options import add_classifier_training
from training.teacher_options import complete_teacher_options

Options = dict[str, str]  # {"lr": "1e-3", "optimizer": "sam"}


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


def title_of(options: Options) -> str:
    """"lr 1e-3, optimizer sam"."""
    return ", ".join(f"{key} {value}" for key, value in options.items())


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
    if args.seeds > 1 and any("seed" in options for options in different):
        raise UserError("--seeds N gives every setting its seeds; leave seed out of the settings")
    settings = [Setting(options, with_each_seed(run_arguments(args, options), args.seeds))
                for options in different]
    refuse_shared_folders(settings)
    return settings


def combinations(vary: list[str]) -> list[Options]:
    """["lr=1e-3,1e-4", "optimizer=adam,sgd"] -> every {"lr": …, "optimizer": …} of the product."""
    options = {}
    for text in vary:
        key, values = key_and_value(text, f"--vary {text}: write KEY=VALUE,VALUE,…")
        options[key] = list(dict.fromkeys(values.split(",")))  # each once
    products = itertools.product(*options.values())
    return [dict(zip(options, values, strict=True)) for values in products]


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


def key_and_value(word: str, form: str) -> tuple[str, str]:
    """"weight_decay=0" -> ("weight-decay", "0"); UserError that says the ``form`` otherwise."""
    key, equals, value = word.partition("=")
    if not equals or not key or not value:
        raise UserError(form)
    if key == "out":
        raise UserError(f"{word}: a sweep names the folders of its trainings itself; leave it out")
    return key.replace("_", "-"), value


class SettingParser(Parser):
    """A parser whose usage errors say which setting is wrong."""

    def __init__(self, options: Options) -> None:
        super().__init__(prog="p1_vit_classify.py sweep", add_help=False)
        self.title = title_of(options)

    def error(self, message: str) -> NoReturn:
        super().error(f"setting {self.title}: {message}")


def run_arguments(args: argparse.Namespace, options: Options) -> argparse.Namespace:
    """The arguments of ``train`` for one setting of a sweep, parsed as if they were typed."""
    name = "_".join(f"{key}-{value}" for key, value in options.items()).replace("/", "-")
    parser = SettingParser(options)
    add_classifier_training(parser)
    words = ["--train", args.train, "--out", str(Path(args.out) / name), *option_words(options)]
    parsed = parser.parse_args(words, argparse.Namespace(**vars(args)))
    complete_teacher_options(parsed, parser)
    return parsed


def with_each_seed(run: argparse.Namespace, seeds: int) -> list[argparse.Namespace]:
    """The trainings of one setting: in its folder, or for several seeds in folders in it."""
    if seeds == 1:
        return [run]
    return [argparse.Namespace(**vars(run) | {"seed": seed, "out": f"{run.out}/seed-{seed}"})
            for seed in range(run.seed, run.seed + seeds)]


def option_words(options: Options) -> list[str]:
    """{"lr": "1e-3", "pretrained": "false", "augment": "flip+crop"} -> the words one would type."""
    words = []
    for key, value in options.items():
        if value in ("true", "false"):
            words.append(f"--{key}" if value == "true" else f"--no-{key}")
        else:
            words += [f"--{key}", *value.split("+")]
    return words


def refuse_shared_folders(settings: list[Setting]) -> None:
    """UserError where two settings would be written into one folder."""
    owners: dict[str, str] = {}
    for setting in settings:
        folder = setting.runs[0].out
        other = owners.setdefault(folder, setting.title)
        if other != setting.title:
            raise UserError(f"the settings {other!r} and {setting.title!r} would both be written "
                            f"into {folder}; name their files differently")
