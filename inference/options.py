"""Options of commands that run a model, in groups that scripts share.

Needs no torch, so that --help and wrong usage take no time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from utils import UserError

from ckpt import registry
from inference.parser import fraction, is_given, natural, non_negative, positive_int, power
from metrics.clipscore import PREFIX

# Images in a batch by default; on a CPU a batch that stays in the cache is fastest.
BATCH_SIZES = {
    "classifier": {"cpu": 8, "cuda": 64, "mps": 32},
    "captioner": {"cpu": 32, "cuda": 128, "mps": 32},
    "clip": {"cpu": 16, "cuda": 256, "mps": 64},
}
# The options of ``add_search_options`` that --vary can vary.
SEARCH_KEYS = ("beam", "length-penalty", "min-length", "max-length", "no-repeat-ngram", "rerank")
RERANK = 4.0  # --rerank of the shipped captioner
MOST_SHOWN = 60  # photos on a sheet; a PNG of more could be taller than can be drawn


def add_command(
    commands: argparse._SubParsersAction, name: str, run: Callable, help: str
) -> argparse.ArgumentParser:
    """The parser of a script's command, which calls ``run(args)``; ``help`` describes it."""
    command = commands.add_parser(name, help=help, description=help)
    command.set_defaults(run=run)
    return command


def add_run_options(
    parser: argparse.ArgumentParser, batch_size: int | None, unit: str = "images"
) -> None:
    """The options that every command has; ``unit`` says what batches consist of."""
    group = parser.add_argument_group("run")
    group.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
                       help="where to compute; auto takes CUDA when there is one, and never mps")
    group.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                       help="auto takes bfloat16 where the hardware has it")
    group.add_argument("--batch-size", type=positive_int, default=batch_size, metavar="N",
                       help=f"{unit} in a batch" + " (default: by device)" * (batch_size is None))
    group.add_argument("--limit", type=positive_int, metavar="N",
                       help=f"use only N {unit}, spread over all of them")
    group.add_argument("--seed", type=natural, default=0, help="seed of every random choice")


def add_images_option(parser: argparse.ArgumentParser, default: object = None) -> None:
    """--images of commands that take any number of photos; required without a ``default``."""
    parser.add_argument("--images", required=default is None, default=default and str(default),
                        metavar="DIR|LIST",
                        help="folder of photos, without its subfolders; or a file that ends in "
                             ".txt, with a path on each line; or - for such lines on stdin")


def add_compile_option(parser: argparse.ArgumentParser) -> None:
    """--compile of commands that only run a model forward."""
    parser.add_argument("--compile", action="store_true",
                        help="compile the model first, which takes a minute or more and pays for "
                             "thousands of photos; needs a C++ compiler")


def add_prediction_options(parser: argparse.ArgumentParser, kind: str) -> None:
    """Where ``inference.predictions`` writes; ``kind`` is the format."""
    parser.add_argument("--output", required=True, metavar=kind,
                        help="file to write, whole or not at all")
    parser.add_argument("--resume", action="store_true",
                        help="go on after a run that was stopped: keep its rows, which are in "
                             "OUTPUT.part, of photos that are unchanged")


def add_fine_tuned_options(group: argparse._ActionsContainer, several: bool = False) -> None:
    """A model of timm's with weights that any training left: behind ``open_classifier``."""
    group.add_argument("--weights", metavar="FILE", nargs="+" if several else None,
                       help="weights for --model NAME, fine-tuned by any program: the file tells "
                            "the number of classes" + "; several are an ensemble" * several)
    add_averaged_option(group)


def add_averaged_option(group: argparse._ActionsContainer) -> None:
    group.add_argument("--ema-weights", action="store_true",
                       help="take the averaged (EMA) weights that are in the file beside others")


def add_names_option(group: argparse._ActionsContainer) -> None:
    group.add_argument("--names", metavar="FILE",
                       help="what the classes are called: a list, one a line or JSON, or an object "
                            "as in id2label.json (default: id2label.json beside --weights)")


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``clip_zeroshot.py prompts`` that eval does not have."""
    parser.add_argument("--candidates", required=True, metavar="FILE",
                        help="templates to choose from, one on each line, with {object} or {}")
    parser.add_argument("--hold-out", type=_part, default=0.5, metavar="SHARE",
                        help="share of each class's photos that the choice is not made by, drawn "
                             "by --seed")
    parser.add_argument("--output", metavar="FILE",
                        help="also write the table: numbers into a file that ends in .csv, "
                             "Markdown for readers into any other")
    add_json_option(parser)


def _part(text: str) -> float:
    """argparse type: a share that leaves something on both sides."""
    value = fraction(text)
    if not value:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and below 1, not {text}")
    return value


def add_json_option(parser: argparse.ArgumentParser, *other_names: str) -> None:
    """The option behind ``inference.results.write_result``."""
    parser.add_argument("--json", *other_names, metavar="FILE",
                        help="write the whole result here, as JSON (default: to stdout where that "
                             "is no terminal; a terminal shows a summary)")


def add_captioner_options(parser: argparse.ArgumentParser, key: str = "p2") -> None:
    """The options behind ``inference.caption.open_captioner``. ``complete_captioner_options`` must
    get the same ``key``, the entry point whose checkpoint is the default."""
    group = parser.add_argument_group("captioner")
    source = group.add_mutually_exclusive_group()
    default, peft = (str(registry.default(name)).replace("%", "%%") for name in (key, "p2_peft"))
    source.add_argument("--checkpoint", metavar="FILE",
                        help=f"a captioner of this project, or a PEFT file (default: {default}"
                             + f"; with --decoder, --encoder or --base: {peft}" * (peft != default)
                             + ")")
    source.add_argument("--model", choices=("catr",),
                        help="a public captioner, in place of --checkpoint, with --weights")
    group.add_argument("--vocab", metavar="FILE",
                       help="its vocabulary (vocab.txt of bert-base-uncased)")
    add_base_options(parser, "base of a PEFT file", "weights of --encoder, or of --model catr")


def complete_captioner_options(args: argparse.Namespace, key: str = "p2") -> None:
    """Fill in the checkpoint where none was named, before any file is looked at: that of entry
    point ``key``, or the PEFT file where the options name a base for one."""
    if args.checkpoint is None and not args.model:
        args.checkpoint = str(registry.default("p2_peft" if base_options(args) else key))


def base_options(args: argparse.Namespace) -> list[str]:
    """The options of ``add_base_options`` that were given, without --weights."""
    given = {"--base": args.base != str(registry.BASE), "--decoder": args.decoder,
             "--encoder": args.encoder, "--pretrained": args.pretrained}
    return [option for option, value in given.items() if value]


def add_search_options(
    parser: argparse.ArgumentParser, beams: int = 5, length_penalty: float = 0.8,
    no_repeat_ngram: int = 3, rerank: bool = False,
) -> None:
    """The options behind ``models.decoding.Search.from_args``, with ``rerank`` those of
    ``complete_rerank`` too. The defaults did best for the shipped captioner on photos held out of
    its training."""
    group = parser.add_argument_group("search")
    group.add_argument("--beam", type=positive_int, default=beams, metavar="N",
                       help="beams; 1 is greedy")
    group.add_argument("--length-penalty", type=power, default=length_penalty,
                       metavar="POWER",
                       help="a finished caption's log-probability is divided by its length to this "
                            "power; the higher, the longer captions get")
    group.add_argument("--min-length", type=natural, default=0, metavar="N",
                       help="tokens before a caption may end")
    group.add_argument("--max-length", type=positive_int, metavar="N",
                       help="tokens at most (default: what the captioner can write)")
    group.add_argument("--no-repeat-ngram", type=natural, default=no_repeat_ngram, metavar="N",
                       help="write no N tokens twice in one caption; 0: no such rule")
    if rerank:
        group.add_argument("--rerank", type=non_negative, metavar="WEIGHT",
                           help="of the finished captions, choose the one with the highest score + "
                                "WEIGHT times its cosine with the photo, by a CLIP (default: "
                                f"{RERANK:g} for the shipped captioner, 0 for others)")
        parser.add_argument("--rerank-clip", metavar="FILE|FOLDER|NAME",
                            help=f"the CLIP behind --rerank (default: {registry.CLIP.name})")


def typed_search_options(
    args: argparse.Namespace, parser: argparse.ArgumentParser
) -> list[str]:
    """The options of ``add_search_options`` that ``args`` give another value than the default."""
    return [f"--{key}" for key in (*SEARCH_KEYS, "rerank-clip") if is_given(args, key, parser)]


def complete_rerank(*searches: argparse.Namespace) -> list[argparse.Namespace]:
    """The arguments of each of a command's ``searches`` with --rerank and --rerank-clip filled in,
    once the checkpoint is. UserError where they have no effect."""
    complete = []
    for args in searches:
        if args.rerank and args.beam == 1:
            raise UserError("--rerank chooses among the captions of several beams, and there is "
                            "one; give --beam 2 or more, or --rerank 0")
        is_default = args.rerank is None and args.beam > 1 and args.checkpoint is not None
        shipped = is_default and registry.is_shipped("p2", args.checkpoint)
        complete.append(argparse.Namespace(**vars(args) | {
            "rerank": RERANK if shipped else args.rerank or 0.0,
            "rerank_clip": args.rerank_clip or str(registry.CLIP)}))
    if searches[0].rerank_clip and not any(args.rerank for args in complete):
        raise UserError("--rerank-clip has no effect without a --rerank WEIGHT above 0")
    return complete


def add_vary_options(parser: argparse.ArgumentParser) -> None:
    """The options behind ``inference.search_table``."""
    group = parser.add_argument_group("several searches")
    group.add_argument("--vary", action="append", default=[], metavar="KEY=V1,V2",
                       help="an option of the search and its values: one table of the scores with "
                            "each; several --vary form a product")
    group.add_argument("--out", metavar="DIR",
                       help="folder for this table, varied.md and varied.csv, and a table of each "
                            "image's scores for each setting")


def add_scoring_options(parser: argparse.ArgumentParser, resamples: int | None = None) -> None:
    """The options behind ``inference.scoring.Scoring`` that all scoring commands have."""
    parser.add_argument("--bootstrap", type=positive_int, default=resamples, metavar="N",
                        help="95 %% intervals from N resamples of the images")
    parser.add_argument("--clip", metavar="FILE|FOLDER|NAME",
                        help="the CLIP behind CLIPScore: a clip checkpoint, transformers' folder "
                             f"or hub name (default: {registry.CLIP.name})")


def add_clip_prefix_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clip-prefix", nargs="?", const=PREFIX, metavar="TEXT",
                        help="put TEXT before each caption for CLIPScore; without TEXT, "
                             f'"{PREFIX}", as in its paper (default: nothing, as in the course\'s '
                             "evaluator)")


def add_show_option(
    parser: argparse.ArgumentParser, what: str, default: int | None = None
) -> None:
    """The option behind ``inference.caption_compare.write_sheet``; ``what`` is compared."""
    parser.add_argument("--show", type=_shown, default=default, metavar="N",
                        help=f"draw the N photos on which the {what} differ most, with their "
                             "references and captions, as most_different.png")


def _shown(text: str) -> int:
    """argparse type: a number of photos on a sheet."""
    count = positive_int(text)
    if count > MOST_SHOWN:
        raise argparse.ArgumentTypeError(f"must be at most {MOST_SHOWN}, not {text}")
    return count


def add_caption_comparison(parser: argparse.ArgumentParser) -> None:
    """The options of ``p2_caption.py compare``."""
    parser.add_argument("first", metavar="FILE",
                        help="the captioner that the others are compared with: a checkpoint of "
                             "this project, or a PEFT file")
    parser.add_argument("others", metavar="FILE", nargs="+", help="other captioners")
    parser.add_argument("--images", required=True, metavar="DIR",
                        help="folder of photos, without its subfolders")
    parser.add_argument("--captions", required=True, metavar="JSON",
                        help="references in COCO's format, of images in --images")
    parser.add_argument("--output", default="runs/compared_captioners", metavar="DIR",
                        help="folder for compared.md, compared.csv and most_different.png")
    add_show_option(parser, "captioners", 12)
    add_run_options(parser, None)
    add_search_options(parser, rerank=True)
    add_scoring_options(parser, 1000)
    add_clip_prefix_option(parser)
    add_base_options(parser, "base of the PEFT files")
    add_json_option(parser)


def add_base_options(
    parser: argparse.ArgumentParser, title: str = "base", weights: str = "weights of --encoder"
) -> None:
    """The frozen base of a PEFT captioner; ``weights`` is the help of --weights."""
    group = parser.add_argument_group(title)
    group.add_argument("--base", default=str(registry.BASE), metavar="FILE",
                       help="a language model with its encoder, as p2_caption.py pretrain makes it")
    group.add_argument("--decoder", metavar="FILE",
                       help="GPT-2 weights (decoder_model.bin) in place of the base's language "
                            "model")
    group.add_argument("--encoder", metavar="NAME",
                       help="timm's name of a ViT in place of the base's encoder, with --decoder")
    group.add_argument("--weights", metavar="FILE", help=weights)
    group.add_argument("--pretrained", action="store_true",
                       help="timm's weights for --encoder (network, or its cache)")


def add_peft_size_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Sizes of the PEFT methods; returns the group for more of them."""
    group = parser.add_argument_group("method")
    group.add_argument("--cross-width", type=positive_int, metavar="N",
                       help="width of the cross-attention (default: the decoder's)")
    group.add_argument("--bottleneck", type=positive_int, metavar="N",
                       help="of adapter (default: 64)")
    group.add_argument("--prefix-length", type=positive_int, metavar="N",
                       help="keys and values that prefix learns in each layer (default: 16)")
    group.add_argument("--rank", type=positive_int, metavar="N",
                       help="of lora's changes, which are scaled by 2 (default: 16)")
    group.add_argument("--targets", nargs="+", metavar="LAYER",
                       help="linear layers that lora changes (default: attn.c_attn attn.c_proj and "
                            "crossattention's q_attn c_attn c_proj; there are mlp.c_fc mlp.c_proj)")
    return group
