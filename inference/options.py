"""What several scripts' command lines share: the parser, its types, and groups of options. No
torch, so that --help and wrong usage take no time."""

from __future__ import annotations

import argparse

from utils import natural, non_negative, positive_int


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
