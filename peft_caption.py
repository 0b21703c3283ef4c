"""Report question: how well can a frozen GPT-2 caption photos when few parameters may change?

  python3 peft_caption.py train --method adapter --images DIR --captions train.json --out runs/mine
  python3 peft_caption.py eval --checkpoint runs/mine/best.safetensors --images DIR \\
      --captions val.json --bootstrap 1000
  python3 peft_caption.py compare --images DIR --captions train.json --eval-images DIR \\
      --eval-captions val.json --out runs/compared
  python3 peft_caption.py predict --images DIR --output captions.json
  python3 peft_caption.py params runs/mine/best.safetensors
  python3 peft_caption.py params --sizes        GPT-2 small that sees a ViT-L: the table, in seconds

The base stays as it is, bit for bit. It is --base, by default the one in ckpt/, or with --decoder
decoder_model.bin (encoder.json and vocab.bpe beside it) that GPT-2 and a ViT: the base's own, or
--encoder NAME with --weights FILE or --pretrained. A PEFT file holds trained tensors alone and
fits the base that it was trained over, no other; it remembers by what name and from where its
encoder came, and looks for a --weights file beside itself. Without --checkpoint, predict and eval
take $HW3_P2_CKPT, else the default of ckpt/checkpoints.json, ckpt/flickr8k_peft.safetensors.

Methods: cross trains fresh cross-attention to the photo alone; adapter, prefix and lora add
bottlenecks, learned keys and values, or low-rank changes to it; full trains all of the decoder. The
best epoch is that of the highest CIDEr on photos held out of training, never of the lowest loss.
compare goes on where it was stopped, and takes runs that are done as they are.

What to expect: README.md, "Few parameters". How to read the table: two methods whose 95 % intervals
overlap widely are not told apart by so many photos.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from statistics import median

from utils import (
    EXIT_SOME_UNREADABLE,
    ArgumentParser,
    UserError,
    check_writable,
    markdown_table,
    non_negative,
    positive_int,
    resolve_run_options,
    run,
    warn,
    write_csv,
    write_json,
    write_text,
)

from ckpt import registry
from data.captions import captioned_images, training_photos
from data.photos import check_images, list_images, refuse_equal_stems, report_unreadable
from inference.options import add_run_options, add_search_options

HERE = Path(__file__).resolve().parent
COMPARISON = ("methods", "lr_of", "eval_images", "eval_captions", "clip", "bootstrap")

# --- train and compare --------------------------------------------------------------------------


def train(args):
    """Train one method; returns its history (see training.fit)."""
    images, val = training_photos(args)
    from training.loop import check_out
    from training.peft import method_from, train_over, training_base

    resolve_run_options(args)
    method_from(args)  # a wrong size is said before any work
    check_out(args.out, args.resume)
    check_images([*images, *(path for source in val for path in source)])
    args.features = args.features or str(Path(args.out) / "features")
    return train_over(training_base(args), images, val, args)


def compare(args):
    """Train and measure each method under one budget; one table and one figure of them all."""
    images, val = training_photos(args)
    shown = captioned_images(args.eval_images, args.eval_captions, args.limit)
    from inference.caption import patch_features
    from training.peft import insert_from, train_over, training_base
    from training.peft_compare import measure_run

    resolve_run_options(args)
    args.features = args.features or str(Path(args.out) / "features")
    runs = [run_arguments(args, method) for method in args.methods]
    check_images([*images, *(path for source in val for path in source), *shown])
    base = training_base(args)
    for run_args in runs:
        insert_from(run_args, base)  # too large, or of a width that does not fit: said at once
    features = patch_features(base, list(shown), args, args.features)
    judge, histories, results = judge_of(list(shown), args), {}, {}
    for method, run_args in zip(args.methods, runs, strict=True):
        warn(f"method {len(results) + 1}/{len(runs)}: {method}")
        histories[method] = train_over(base, images, val, run_args)
        results[method] = measure_run(base, run_args, features, list(shown.values()), args, judge)
        write_comparison(histories, results, Path(args.out))
    warn(f"wrote compared.md, compared.csv and curves.png into {args.out}")


def run_arguments(args, method):
    """The arguments of ``train`` for one method of a comparison, as if they were typed."""
    from models.peft import OPTIONS

    other = [key for options in OPTIONS.values() for key in options if key not in OPTIONS[method]]
    own = {key: None if key in other else value for key, value in vars(args).items()
           if key not in COMPARISON}
    return argparse.Namespace(**own | {
        "method": method, "lr": dict(args.lr_of).get(method, args.lr), "resume": True,
        "out": str(Path(args.out) / method)})


def write_comparison(histories, results, out):
    """The methods that are done: compared.md, compared.csv and the curves by epoch."""
    from figures import charts

    columns = [(search, metric) for metric in ("CIDEr", "CLIPScore")
               for search in ("greedy", "beam 3")
               if all(metric in result[search]["metrics"] for result in results.values())]
    header = ["method", "trained parameters", "file (MB)", "seconds an epoch", "best epoch",
              *(f"{metric}, {search} (95 %)" for search, metric in columns)]
    table = []
    for method, result in results.items():
        best = max(histories[method], key=lambda row: row["val_CIDEr"])
        scores = [(result[search]["metrics"][metric], *result[search]["intervals_95"][metric])
                  for search, metric in columns]
        table.append([
            method, f"{result['trained_parameters']:,}", f"{result['bytes'] / 1e6:.2f}",
            f"{median(row['seconds'] for row in histories[method]):.0f}", best["epoch"],
            *("{:.3f} ({:.3f} - {:.3f})".format(*score) for score in scores)])
    write_csv(out / "compared.csv", header, table)
    write_text(out / "compared.md", markdown_table(header, table))
    charts.caption_curves(histories, out / "curves.png")


# --- predict, eval, params ----------------------------------------------------------------------


def predict(args):
    paths = list_images(args.images, args.limit)
    refuse_equal_stems(paths)
    check_writable(args.output)
    from inference.caption import caption_images
    from inference.peft import open_peft
    from models.decoding import Search

    captioner = open_peft(args)
    readable, texts, unreadable = caption_images(
        captioner, paths, Search.from_args(args), args)
    report_unreadable(readable, unreadable)
    write_json({path.stem: text for path, text in zip(readable, texts, strict=True)}, args.output)
    return EXIT_SOME_UNREADABLE if unreadable else 0


def evaluate(args):
    images = captioned_images(args.images, args.captions, args.limit)
    if args.output:
        check_writable(args.output)
    from inference.caption import caption_images
    from inference.peft import open_peft
    from inference.scoring import measure
    from models.decoding import Search

    captioner = open_peft(args)
    search = Search.from_args(args)
    readable, texts, unreadable = caption_images(captioner, list(images), search, args)
    report_unreadable(readable, unreadable)
    judge = judge_of(readable, args)
    result = measure(texts, [images[path] for path in readable], args, judge)
    result |= {
        "images": len(texts), "unreadable": len(unreadable), "checkpoint": str(args.checkpoint),
        "method": captioner.metadata["method"], "captions": str(args.captions),
        "search": dataclasses.asdict(search), "bootstrap": args.bootstrap, "seed": args.seed,
        "clipscore": judge and judge.about, "device": args.device, "precision": args.precision}
    if args.record:
        from models.checkpoint import record_measurement

        record_measurement(args.checkpoint, args.record, {key: result[key] for key in (
            "metrics", "intervals_95", "images", "search", "precision", "clipscore")})
    write_json(result, args.output)
    return EXIT_SOME_UNREADABLE if unreadable else 0


def judge_of(photos, args):
    """What gives captions of ``photos`` their CLIPScore; None where no CLIP is at hand."""
    from inference.scoring import Judge

    source = args.clip or (registry.CLIP if registry.CLIP.is_file() else None)
    return source and Judge(source, photos, args)


def count(args):
    """What is trained: in a file, or (--sizes) by each method at the course's size."""
    if args.sizes == bool(args.file):
        raise UserError("params counts a FILE, or --sizes: give one of them")
    if args.sizes:
        from inference.peft import sizes_table

        return print(sizes_table(args), end="")
    from models.checkpoint import load_checkpoint
    from models.peft import LIMIT, count_parts

    tensors, metadata = load_checkpoint(args.file, "peft")
    parts = count_parts(tensors)
    write_json({"checkpoint": str(args.file), "method": metadata["method"],
                "trained_parameters": sum(parts.values()), "parts": parts,
                "fewer_than_the_course_allows": sum(parts.values()) < LIMIT,
                "bytes": Path(args.file).stat().st_size, "base": metadata["base"]})


# --- command line -------------------------------------------------------------------------------


def rate(text):
    """argparse type: METHOD=RATE."""
    method, _, number = text.partition("=")
    if method not in PEFT_LR:
        raise argparse.ArgumentTypeError(f"must be METHOD=RATE of {', '.join(PEFT_LR)}, not {text}")
    return method, non_negative(number)


def add_measure_options(parser):
    parser.add_argument("--bootstrap", type=positive_int, default=1000, metavar="N",
                        help="resamples of the images behind the 95 %% intervals")
    parser.add_argument("--clip", metavar="FILE|FOLDER|NAME",
                        help="the CLIP behind CLIPScore (default: "
                             f"{registry.CLIP.name}, where it is)")


def make_parser():
    parser = ArgumentParser(prog="peft_caption.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name, function, help):
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=function)
        return command

    training = add("train", train, "train one method over a frozen base")
    add_peft_training(training)
    training.add_argument("--method", choices=PEFT_LR, required=True, help="what is trained")
    comparing = add("compare", compare, "train and measure every method under one budget")
    add_peft_training(comparing)
    comparing.add_argument("--methods", nargs="+", choices=PEFT_LR, default=list(PEFT_LR),
                           metavar="METHOD", help="any of " + " ".join(PEFT_LR))
    comparing.add_argument("--lr-of", type=rate, nargs="+", default=[], metavar="METHOD=RATE",
                           help="highest learning rates that differ from the methods' own")
    comparing.add_argument("--eval-images", required=True, metavar="DIR",
                           help="photos that the table is about; no choice is made by them")
    comparing.add_argument("--eval-captions", required=True, metavar="JSON",
                           help="their references, in COCO's format")
    add_measure_options(comparing)

    predicting = add("predict", predict, "caption a folder of photos: a JSON of stem and caption")
    evaluating = add("eval", evaluate, "the metrics of a PEFT checkpoint, as JSON")
    for command in (predicting, evaluating):
        add_run_options(command, None)
        add_base_options(command)
        command.add_argument("--images", default=str(HERE / "samples" / "scenes"), metavar="DIR",
                             help="folder of photos, without its subfolders")
        command.add_argument("--checkpoint", metavar="FILE", help="what train wrote",
                             default=str(registry.default("p2_peft")))
        add_search_options(command)
    predicting.add_argument("--output", required=True, metavar="JSON",
                            help="file to write, whole or not at all")
    evaluating.add_argument("--captions", required=True, metavar="JSON",
                            help="references in COCO's format, of images in --images")
    evaluating.add_argument("--output", metavar="JSON", help="instead of stdout")
    evaluating.add_argument("--record", metavar="NAME",
                            help="write the result into the checkpoint, as measured on NAME")
    add_measure_options(evaluating)

    counting = add("params", count, "how many parameters are trained")
    counting.add_argument("file", nargs="?", metavar="FILE", help="what train wrote")
    counting.add_argument("--sizes", action="store_true",
                          help="of each method over GPT-2 small with a ViT-L, as a table")
    add_peft_size_options(counting)
    return parser


def main():
    args = make_parser().parse_args()
    status = args.run(args)
    return status if isinstance(status, int) else 0  # train returns its history


if __name__ == "__main__":
    run(main)
