"""Settings that a command compares in one table: what ``--vary KEY=V1,V2`` names. Needs no torch.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from utils import UserError

from inference.parser import Parser, is_given

Options = dict[str, str]  # {"lr": "1e-3", "optimizer": "sam"}


def title_of(options: Options) -> str:
    """"lr 1e-3, optimizer sam"."""
    return ", ".join(f"{key} {value}" for key, value in options.items())


def folder_of(options: Options) -> str:
    """"lr-1e-3_optimizer-sam", a name for the files of a setting."""
    return "_".join(f"{key}-{value}" for key, value in options.items()).replace("/", "-")


def combinations(vary: list[str]) -> list[Options]:
    """["lr=1e-3,1e-4", "optimizer=adam,sgd"] -> every {"lr": …, "optimizer": …} of the product."""
    options = {}
    for text in vary:
        key, values = key_and_value(text, f"--vary {text}: write KEY=VALUE,VALUE,…")
        if key in options:
            raise UserError(f"--vary gives {key} twice; write all its values behind one {key}=")
        options[key] = list(dict.fromkeys(values.split(",")))  # each once
    products = itertools.product(*options.values())
    return [dict(zip(options, values, strict=True)) for values in products]


def key_and_value(word: str, form: str) -> tuple[str, str]:
    """"weight_decay=0" -> ("weight-decay", "0"); UserError that says the ``form`` otherwise."""
    key, equals, value = word.partition("=")
    if not equals or not key or not value:
        raise UserError(form)
    return key.replace("_", "-"), value


def refuse_other_keys(varied: list[Options], keys: Sequence[str], what: str) -> None:
    """UserError where ``combinations`` vary an option that is none of ``keys``, which are ``what``.
    """
    for key in varied[0]:
        if key not in keys:
            raise UserError(f"--vary {key}: only {what} can be varied: {', '.join(keys)}")


class SettingParser(Parser):
    """A parser of the command ``prog`` whose usage errors say which setting is wrong."""

    def __init__(self, prog: str, options: Options) -> None:
        super().__init__(prog=prog, add_help=False)
        self.title = title_of(options)

    def error(self, message: str) -> NoReturn:
        message = message.replace("ignored explicit argument", "must be true or false, not")
        super().error(f"setting {self.title}: {message}")

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """As argparse; the command itself has given a sign of life."""
        return super(Parser, self).parse_args(args, namespace)


def with_setting(
    args: argparse.Namespace, options: Options, prog: str,
    add_options: Callable[[argparse.ArgumentParser], object], required: Sequence[str] = (),
) -> argparse.Namespace:
    """``args`` with ``options`` in place of what it has, parsed by the options of ``add_options``
    as if they were typed; a usage error for a value that is wrong. ``required`` are the words of
    the options that must be given."""
    parser = SettingParser(prog, options)
    add_options(parser)
    refuse_varied(args, options, parser)
    return parser.parse_args([*required, *option_words(options)],
                             argparse.Namespace(**vars(args)))


def refuse_varied(
    args: argparse.Namespace, varied: Iterable[str], parser: argparse.ArgumentParser
) -> None:
    """UserError where ``args`` also give an option that is ``varied``; ``parser`` has its default.
    """
    for key in varied:
        if is_given(args, key, parser):
            raise UserError(f"--{key} and --vary {key} both give this option; leave --{key} out")


def option_words(options: Options) -> list[str]:
    """{"lr": "1e-3", "pretrained": "false", "augment": "flip+crop"} -> the words one would type."""
    words = []
    for key, value in options.items():
        if value in ("true", "false"):
            words.append(f"--{key}" if value == "true" else f"--no-{key}")
        elif "+" in value and not is_number(value):
            words += [f"--{key}", *value.split("+")]
        else:
            words.append(f"--{key}={value}")  # which may begin with a dash
    return words


def is_number(text: str) -> bool:
    """Whether ``text`` is one number, such as 1e+0."""
    try:
        float(text)
    except ValueError:
        return False
    return True
