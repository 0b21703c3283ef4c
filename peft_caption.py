"""Report question: how well can a frozen GPT-2 describe photos when few parameters are trained?

  python3 peft_caption.py train --method adapter --images DIR --captions train.json --out runs/mine
  python3 peft_caption.py eval --checkpoint runs/mine/best.safetensors --images DIR \\
      --captions val.json --bootstrap 1000
  python3 peft_caption.py compare --images DIR --captions train.json --eval-images DIR \\
      --eval-captions val.json --show 12 --out runs/compared
  python3 peft_caption.py predict --images DIR --output captions.json
  python3 peft_caption.py params runs/mine/best.safetensors
  python3 peft_caption.py params --sizes     the table for GPT-2 small with a ViT-L, in seconds

The base stays as it is, bit for bit. It is --base, by default ckpt/captioner_base.safetensors; with
--decoder decoder_model.bin (encoder.json and vocab.bpe beside it) it is that GPT-2 with a ViT: the
base's own, or --encoder NAME with --weights FILE or --pretrained. A PEFT file holds only trained
tensors and fits only the base that it was trained over. It names that base's encoder; a file of the
encoder's weights is looked for beside it. Without --checkpoint, predict and eval use $HW3_P2_CKPT,
else the default of ckpt/checkpoints.json, which is ckpt/flickr8k_peft.safetensors.

Methods: cross trains new cross-attention to the photo and nothing else. adapter, prefix and lora
also train bottlenecks, keys and values, or low-rank changes of weights; full also trains the whole
decoder. The best epoch is the one with the highest CIDEr on photos held out of training.
compare continues where it was stopped, and does not repeat what is done.

What to expect: prefix, which ships, has CIDEr 0.438 on 1,000 photos of Flickr8k val with 0.6 M
trained parameters; an epoch over Flickr8k's train takes 53 s on one CPU core. docs/peft.md has the
commands and the table of all methods, docs/results.md every figure with its data and interval.
How to read the table: two methods whose 95 % intervals overlap widely cannot be told apart on so
few photos.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out
from utils import EXIT_SOME_UNREADABLE, UserError, run

from data.captions import captioned_images, write_predictions
from data.compute import Compute
from data.files import check_outputs
from data.photos import list_images, refuse_equal_stems
from inference.options import (
    BATCH_SIZES,
    add_captioner_options,
    add_command,
    add_images_option,
    add_json_option,
    add_peft_size_options,
    add_prediction_options,
    add_run_options,
    add_scoring_options,
    add_search_options,
    add_show_option,
    complete_captioner_options,
)
from inference.parser import Parser, non_negative
from inference.results import of_captions, of_parameters, write_result
from training.options import PEFT_LR, add_peft_training

SCENES = Path(__file__).resolve().parent / "samples" / "scenes"
RESAMPLES = 1000  # behind the 95 % intervals

# Torch takes seconds to import, so commands import what needs it after they have checked files.

# --- training -----------------------------------------------------------------------------------


def train(args):
    """Train one method over a frozen base."""
    from training.peft import train_peft

    train_peft(args)


def compare(args):
    """Train and measure each method; one table and one figure."""
    from training import peft_compare

    peft_compare.compare(args)


# --- captions and their scores ------------------------------------------------------------------


def predict(args):
    """Write the captions of a folder of photos."""
    complete_captioner_options(args, "p2_peft")
    paths = list_images(args.images, args.limit)
    refuse_equal_stems(paths)
    check_outputs({"--output": args.output},
                  {"--images": paths, "--checkpoint": args.checkpoint, "--base": args.base,
                   "--decoder": args.decoder, "--weights": args.weights, "--vocab": args.vocab})
    from inference.caption import caption_work, open_captioner
    from inference.predictions import predictions
    from models.decoding import Search

    captioner = open_captioner(args)
    compute = Compute.from_args(args, BATCH_SIZES["captioner"])
    captions = caption_work(captioner, Search.from_args(args), compute)
    with predictions(args, paths, captioner.transform, captions, compute, "caption") as done:
        write_predictions(done.rows, done.count, args.output)
    return EXIT_SOME_UNREADABLE if done.unreadable else 0


def evaluate(args):
    """Print the scores of a PEFT checkpoint on photos with references."""
    complete_captioner_options(args, "p2_peft")
    images = captioned_images(args.images, args.captions, args.limit)
    check_outputs({"--json": args.json},
                  {"--images": list(images), "--captions": args.captions, "--clip": args.clip,
                   "--checkpoint": args.checkpoint, "--base": args.base, "--decoder": args.decoder,
                   "--weights": args.weights, "--vocab": args.vocab})
    if args.record and args.model:
        raise UserError("--record writes into a checkpoint of this project, not with --model")
    from inference.caption import open_captioner
    from inference.scoring import Scoring, default_clip, evaluate_captioner, record_scores
    from models.checkpoint import check_recordable
    from models.decoding import Search

    if args.record:
        check_recordable(args.checkpoint)
    captioner = open_captioner(args)
    compute = Compute.from_args(args, BATCH_SIZES["captioner"])
    scoring = Scoring.from_args(args, args.clip or default_clip())
    result, _ = evaluate_captioner(captioner, images, Search.from_args(args), compute, scoring)
    result |= {"method": captioner.metadata.get("method"), "captions": args.captions,
               "checkpoint": captioner.source}
    if args.record:
        record_scores(args.checkpoint, args.record, result)
    write_result(result, of_captions(result), args.json)
    return EXIT_SOME_UNREADABLE if result["unreadable"] else 0


def count(args):
    """Print how many parameters are trained: in a file, or by each method at the course's size."""
    from inference.peft import count_file, given_sizes, sizes_table

    if args.sizes:
        print(sizes_table(args.cross_width, given_sizes(args)), end="")
    else:
        result = count_file(args.file)
        write_result(result, of_parameters(result), args.json)


# --- command line -------------------------------------------------------------------------------


def rate(text):
    """argparse type: METHOD=RATE."""
    method, _, number = text.partition("=")
    if method not in PEFT_LR:
        raise argparse.ArgumentTypeError(f"must be METHOD=RATE of {', '.join(PEFT_LR)}, not {text}")
    return method, non_negative(number)


def make_parser():
    parser = Parser(prog="peft_caption.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    training = add_command(commands, "train", train, "train one method over a frozen base")
    training.add_argument("--method", choices=PEFT_LR, required=True, help="what is trained")
    add_peft_training(training)

    comparing = add_command(commands, "compare", compare, "train and measure several methods alike")
    add_peft_training(comparing, resume=False)
    comparing.add_argument("--methods", nargs="+", choices=PEFT_LR, default=list(PEFT_LR),
                           metavar="METHOD", help="any of " + " ".join(PEFT_LR))
    comparing.add_argument("--lr-of", type=rate, nargs="+", default=[], metavar="METHOD=RATE",
                           help="highest learning rates that differ from --lr")
    comparing.add_argument("--vary", action="append", default=[], metavar="KEY=V1,V2",
                           help="a size or an option of the recipe, and its values: each method "
                                "that has it is trained with each; several --vary form a product")
    comparing.add_argument("--eval-images", required=True, metavar="DIR",
                           help="photos that the table is about; nothing is chosen by them")
    comparing.add_argument("--eval-captions", required=True, metavar="JSON",
                           help="their references, in COCO's format")
    comparing.add_argument("--html", metavar="FILE",
                           help="also write a page with each photo and its captions")
    add_show_option(comparing, "methods")
    add_scoring_options(comparing, RESAMPLES)

    predicting = add_command(commands, "predict", predict,
                             "caption a folder of photos: a JSON of stem and caption")
    evaluating = add_command(commands, "eval", evaluate, "the scores of a PEFT checkpoint")
    add_images_option(predicting, SCENES)
    evaluating.add_argument("--images", default=str(SCENES), metavar="DIR",
                            help="folder of photos, without its subfolders")
    for command in (predicting, evaluating):
        add_run_options(command, None)
        add_captioner_options(command, "p2_peft")
        add_search_options(command)
    add_prediction_options(predicting, "JSON")
    evaluating.add_argument("--captions", required=True, metavar="JSON",
                            help="references in COCO's format, of images in --images")
    add_json_option(evaluating, "--output")
    evaluating.add_argument("--record", metavar="NAME",
                            help="write the result into the checkpoint, as measured on NAME")
    add_scoring_options(evaluating, RESAMPLES)

    counting = add_command(commands, "params", count, "how many parameters are trained")
    source = counting.add_mutually_exclusive_group(required=True)
    source.add_argument("file", nargs="?", metavar="FILE", help="a PEFT file, as train writes it")
    source.add_argument("--sizes", action="store_true",
                        help="of each method over GPT-2 small with a ViT-L, as a table")
    add_peft_size_options(counting)
    add_json_option(counting)
    return parser


def main():
    args = make_parser().parse_args()
    return args.run(args)


if __name__ == "__main__":
    run(main)
