"""Options of learning from teachers (``training.distillation``). Needs no torch."""

from __future__ import annotations

import argparse

from inference.parser import positive, share

# The parser's own defaults are None, which tells whether an option was typed.
DEFAULTS = {"distill_temperature": 1.0, "distill_weight": 0.5}


def add_teacher_options(parser: argparse.ArgumentParser) -> None:
    """Teachers, photos without labels, and the distillation loss."""
    group = parser.add_argument_group("teachers")
    group.add_argument("--teacher", nargs="+", metavar="FILE[=WEIGHT]",
                       help="learn from the mean prediction of these classifiers, which must have "
                            "the same labels")
    group.add_argument("--unlabelled", nargs="+", metavar="DIR",
                       help="photos without labels, which are learned from the teachers alone")
    group.add_argument("--distill-temperature", type=positive, metavar="T",
                       help="softmax temperature of teachers and student (default: "
                            f"{DEFAULTS['distill_temperature']})")
    group.add_argument("--distill-weight", type=share, metavar="SHARE",
                       help="share of the distillation loss in the loss of a labelled photo "
                            f"(default: {DEFAULTS['distill_weight']})")


def complete_teacher_options(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Fill in the defaults, right after parsing. Without a teacher, the other options are a usage
    error."""
    for name in ("unlabelled", *DEFAULTS):
        if not args.teacher and getattr(args, name) is not None:
            parser.error(f"--{name.replace('_', '-')} needs --teacher")
    for name, default in DEFAULTS.items():
        if args.teacher and getattr(args, name) is None:
            setattr(args, name, default)
