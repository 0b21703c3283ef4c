"""Command lines whose choices are understood as people type them. Needs no torch to import."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence

from utils import ArgumentParser, warn

# What other libraries and papers call our choices; "Adam-W" and "adam_w" are adamw without it.
OTHER_NAMES = {
    "jitter": ("colorjitter", "colourjitter", "color", "colour"),
    "flip": ("hflip", "horizontalflip", "randomhorizontalflip"),
    "crop": ("randomcrop", "randomresizedcrop", "rrc"),
    "rand": ("randaug", "randaugment"),
    "auto": ("autoaug", "autoaugment"),
    "cosine": ("cos", "cosineannealing", "cosineannealinglr"),
    "constant": ("const",),
    "fp32": ("float32",),
    "bf16": ("bfloat16",),
    "cuda": ("gpu", "cuda:0"),
    "rollout": ("attentionrollout",),
    "prefix": ("prefixtuning",),
    "adapter": ("adapters",),
    "cross": ("crossattention",),
    "full": ("finetune", "finetuning", "fullfinetuning"),
    "xe": ("ce", "crossentropy"),
    "eval": ("evaluate", "evaluation", "test"),
    "--lr": ("learningrate",),
    "--batch-size": ("bs",),
    "--weight-decay": ("wd",),
    "--checkpoint": ("ckpt", "ckptpath"),
}
MEANT = {other: name for name, others in OTHER_NAMES.items() for other in others}


class Parser(ArgumentParser):
    """A parser that takes ``AdamW``, ``adam-w`` and ``flip,jitter`` for what they mean, and tells
    the nearest name where it does not understand."""

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """As argparse; a terminal then gets a sign of life: importing torch takes seconds."""
        parsed = super().parse_args(args, namespace)
        if sys.stderr and sys.stderr.isatty():
            warn(f"{self.prog}: starting …")
        return parsed

    def _get_values(self, action: argparse.Action, arg_strings: Sequence[str]) -> object:
        names = _names(action)
        if names and action.nargs in ("+", "*"):
            split = [word for text in arg_strings for word in text.split(",") if word]
            arg_strings = split or arg_strings
        # Behind the name of a command stands what the command's own parser reads.
        count = 1 if action.nargs == argparse.PARSER else len(arg_strings)
        words = [understood(word, names) for word in arg_strings[:count]]
        return super()._get_values(action, [*words, *arg_strings[count:]])

    def _check_value(self, action: argparse.Action, value: object) -> None:
        names = _names(action)
        if names and value not in names:
            raise argparse.ArgumentError(action, f"invalid choice: {value}{_hint(value, names)}; "
                                                 f"choose from {', '.join(names)}")
        super()._check_value(action, value)

    def parse_known_args(self, args=None, namespace=None) -> tuple[argparse.Namespace, list[str]]:
        parsed, rest = super().parse_known_args(args, namespace)
        unknown = [word.partition("=")[0] for word in rest if word.startswith("--")]
        hint = _hint(unknown[0], self._option_string_actions) if unknown else ""
        if hint:
            self.error(f"unrecognized argument: {unknown[0]}{hint}")
        return parsed, rest


def is_given(args: argparse.Namespace, key: str, parser: argparse.ArgumentParser) -> bool:
    """Whether ``args`` give the option --``key`` another value than its default in ``parser``."""
    name = key.replace("-", "_")
    default = parser.get_default(name)
    return getattr(args, name, default) != default


def understood(word: str, names: Iterable[str]) -> str:
    """The one of ``names`` that ``word`` means; ``word`` itself where there is none."""
    by_letters = {_letters(name): name for name in names}
    meant = MEANT.get(_letters(word))
    return word if word in names else by_letters.get(_letters(word)) or (
        meant if meant in names else word)


def _hint(word: str, names: Iterable[str]) -> str:
    """What may be meant by a ``word`` that is none of ``names``; "" where nothing is near."""
    other = understood(word, names)
    near = [other] if other != word else difflib.get_close_matches(word.lower(), names, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _names(action: argparse.Action) -> list[str]:
    """The choices of an option, or the commands, where they are names."""
    return [name for name in action.choices or () if isinstance(name, str)]


def _letters(text: str) -> str:
    """``text`` without what people write differently: case, hyphens, underscores, spaces."""
    return re.sub(r"[-_ ]+", "", text).lower()


# --- numbers ------------------------------------------------------------------------------------


def _number(kind: type, allowed: Callable[[float], bool], rule: str) -> Callable[[str], float]:
    """argparse type: a number of ``kind`` that is ``allowed``, else an error that says ``rule``."""
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not allowed(value):
            raise argparse.ArgumentTypeError(f"must be {rule}, not {text}")
        return value
    return parse


positive_int = _number(int, lambda value: 1 <= value < 2**31, "a whole number from 1 to 2^31 - 1")
natural = _number(int, lambda value: 0 <= value < 2**31, "a whole number from 0 to 2^31 - 1")
fraction = _number(float, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")
non_negative = _number(float, lambda value: 0 <= value < float("inf"), "a number, 0 or more")
power = _number(float, lambda value: 0 <= value <= 100, "a number from 0 to 100")
positive = _number(float, lambda value: 0 < value < float("inf"), "a number above 0")
share = _number(float, lambda value: 0 < value <= 1, "a number above 0 and at most 1")


# --- files --------------------------------------------------------------------------------------


def npz_name(text: str) -> str:
    """argparse type: the name of an .npz file, to which numpy would add that ending otherwise."""
    if not text.endswith(".npz"):
        raise argparse.ArgumentTypeError(f"must end in .npz, not {text}")
    return text
