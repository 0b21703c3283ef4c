"""What several scripts' command lines share: the parser, its types, and groups of options. No
torch, so that --help and wrong usage take no time."""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import NoReturn

from utils import EXIT_USAGE, UserError, one_line


class _HelpFormatter(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    """Keeps a script's docstring as it is written and shows each option's default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # argparse adds a default only where there is help text, and would print "None" and "False".
        hidden = action.default is None or action.default is False
        return action.help if hidden else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose wrong-usage message is one line that names the argument; exit 2."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**{"formatter_class": _HelpFormatter, "allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {one_line(message)} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(EXIT_USAGE)


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return value


def natural(text: str) -> int:
    """argparse type: an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return value


def fraction(text: str) -> float:
    """argparse type: a number from 0 to below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, not {text}")
    return value


def non_negative(text: str) -> float:
    """argparse type: a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return value


def share(text: str) -> float:
    """argparse type: a number above 0, up to 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, not {text}")
    return value


def add_run_options(parser: argparse.ArgumentParser, batch_size: int | None) -> None:
    """The options that every command has."""
    group = parser.add_argument_group("run")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                       help="where to compute; auto takes CUDA when there is one")
    group.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                       help="auto takes bfloat16 where the hardware has it")
    group.add_argument("--batch-size", type=positive_int, default=batch_size, metavar="N",
                       help="images in a batch" + " (default: by device)" * (batch_size is None))
    group.add_argument("--limit", type=positive_int, metavar="N",
                       help="use only N images, spread over the folder")
    group.add_argument("--seed", type=int, default=0, help="seed of every random choice")


def add_recipe_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The options behind ``training.Recipe``, and --resume; returns the group for more of them."""
    group = parser.add_argument_group("recipe")
    group.add_argument("--epochs", type=positive_int, default=10, metavar="N",
                       help="passes over the photos")
    group.add_argument("--optimizer", choices=("adam", "adamw", "sgd", "sam"), default="adamw",
                       help="sam: sharpness-aware minimization over --sam-base")
    group.add_argument("--sam-base", choices=("adam", "adamw", "sgd"), default="sgd",
                       help="the optimizer that takes sam's second step")
    group.add_argument("--sam-rho", type=non_negative, default=0.05, metavar="RHO",
                       help="how far sam climbs")
    group.add_argument("--momentum", type=fraction, default=0.9, metavar="M",
                       help="of sgd")
    group.add_argument("--lr", type=non_negative, default=1e-4, metavar="RATE",
                       help="highest learning rate")
    group.add_argument("--weight-decay", type=non_negative, default=0.05, metavar="W",
                       help="not on norms, biases and position embedding")
    group.add_argument("--schedule", choices=("constant", "cosine", "linear"), default="cosine",
                       help="what follows the warm-up; cosine and linear end at 0")
    group.add_argument("--warmup", type=non_negative, default=1.0, metavar="EPOCHS",
                       help="how long the learning rate rises")
    group.add_argument("--accumulate", type=positive_int, default=1, metavar="N",
                       help="compute each batch in N parts")
    group.add_argument("--clip-norm", type=non_negative, default=1.0, metavar="NORM",
                       help="largest gradient norm; 0 for no clipping")
    group.add_argument("--label-smoothing", type=fraction, default=0.1, metavar="SHARE",
                       help="of the target given to all classes alike")
    group.add_argument("--ema", type=fraction, default=0.0, metavar="DECAY",
                       help="judge and keep the moving average of the weights; 0 for none")
    group.add_argument("--workers", type=int, choices=range(65), default=2, metavar="N",
                       help="processes that read photos; 0 reads in the main one")
    group.add_argument("--resume", action="store_true", help="continue the training in --out")
    return group


def add_photo_options(parser: argparse.ArgumentParser) -> None:
    """Which captioned photos to train on and to choose the best epoch by, and how they are seen."""
    group = parser.add_argument_group("photos")
    group.add_argument("--images", nargs="+", required=True, metavar="DIR",
                       help="photos to train on; several folders are several sources")
    group.add_argument("--captions", nargs="+", required=True, metavar="JSON",
                       help="their captions in COCO's format, a file for each folder")
    group.add_argument("--val-images", nargs="+", metavar="DIR", help="default: --images")
    group.add_argument("--val-captions", nargs="+", metavar="JSON",
                       help="chooses the best epoch by the mean over the files (default: photos "
                            "held out of --captions)")
    group.add_argument("--hold-out", type=positive_int, default=400, metavar="N",
                       help="photos of each source to hold out where there is no --val-captions")
    group.add_argument("--resize", choices=("crop", "squash"),
                       help="the largest centre square, or the whole photo made square "
                            "(default: as the starting point has it)")
    group.add_argument("--features", metavar="DIR",
                       help="where a frozen encoder's features are kept (default: in --out)")
    group.add_argument("--captions-each", type=positive_int, metavar="N",
                       help="learn N captions of each photo an epoch, drawn anew (default: all)")


def add_captioner_options(parser: argparse.ArgumentParser, checkpoint: object) -> None:
    """The options behind ``captioning.open_captioner``; ``checkpoint`` is the default one."""
    group = parser.add_argument_group("captioner")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", default=str(checkpoint), metavar="FILE",
                        help="a captioner of this project, or a PEFT file over ckpt's base")
    source.add_argument("--model", choices=("catr",), help="a public captioner, instead")
    group.add_argument("--weights", metavar="FILE",
                       help="the public captioner's weights (.pth, .bin or .safetensors)")
    group.add_argument("--vocab", metavar="FILE",
                       help="its vocabulary (vocab.txt of bert-base-uncased)")


def add_search_options(
    parser: argparse.ArgumentParser, beams: int = 5, length_penalty: float = 0.8,
    no_repeat_ngram: int = 3,
) -> None:
    """The options behind ``models.decoding.Search``; the defaults did best for the shipped
    captioner on photos held out of its training."""
    group = parser.add_argument_group("search")
    group.add_argument("--beam", type=positive_int, default=beams, metavar="N",
                       help="beams; 1 is greedy")
    group.add_argument("--length-penalty", type=non_negative, default=length_penalty,
                       metavar="POWER",
                       help="a finished caption's log-probability is divided by its length to this "
                            "power; the higher, the longer captions get")
    group.add_argument("--min-length", type=natural, default=0, metavar="N",
                       help="tokens before a caption may end")
    group.add_argument("--max-length", type=positive_int, metavar="N",
                       help="tokens at most (default: what the captioner can write)")
    group.add_argument("--no-repeat-ngram", type=natural, default=no_repeat_ngram, metavar="N",
                       help="write no N tokens twice in one caption; 0: no such rule")


def combinations(vary: list[str]) -> list[dict[str, str]]:
    """["lr=1e-3,1e-4", "optimizer=adam,sgd"] -> every {"lr": …, "optimizer": …} of the product."""
    options = {}
    for text in vary:
        key, equals, values = text.partition("=")
        if not equals or not key or not values:
            raise UserError(f"--vary {text}: write KEY=VALUE,VALUE,…")
        options[key.replace("_", "-")] = values.split(",")
    products = itertools.product(*options.values())
    return [dict(zip(options, values, strict=True)) for values in products]


def option_words(setting: dict[str, str]) -> list[str]:
    """{"lr": "1e-3", "pretrained": "false", "augment": "flip+crop"} -> the words one would type."""
    words = []
    for key, value in setting.items():
        if value in ("true", "false"):
            words.append(f"--{key}" if value == "true" else f"--no-{key}")
        else:
            words += [f"--{key}", *value.split("+")]
    return words
