"""Report question: how well does a vision transformer classify photos, and what decides it?

A ViT (Dosovitskiy et al. 2021) is fine-tuned on a folder of photos named <label>_<anything>.jpg.

  python3 p1_vit_classify.py predict --images DIR --output pred.csv
  python3 p1_vit_classify.py eval --images DIR --figures out/
  python3 p1_vit_classify.py compare A.safetensors B.safetensors --images DIR --output out/
  python3 p1_vit_classify.py train --train DIR --val DIR --out runs/mine --pretrained
  python3 p1_vit_classify.py average --checkpoint A B --output mean.safetensors
  python3 p1_vit_classify.py sweep --train DIR --val DIR --out runs/lr --vary lr=1e-3,1e-4

Without --checkpoint, predict and eval use $HW3_P1_CKPT, else the default of ckpt/checkpoints.json:
ckpt/pets_vit_tiny.safetensors (37 pet breeds), which comes with the project. Several checkpoints of
the same labels (HW3_P1_CKPT=A:B) are an ensemble, the mean of their probabilities; models and image
sizes may differ, and eval also says what each of them reaches alone.

A checkpoint is a file of this project, or a ViT that transformers or pytorch_pretrained_vit saved.
--model also takes hf:owner/name and the name of any of timm's image classifiers, convolutional ones
too; train starts from what --model names, and may learn from other classifiers (--teacher).

What to expect: eval on the course's 447 validation photos gives 91.5 % with the default
checkpoint in float32, and 91.3 % where the processor has bfloat16, which is then the default.
docs/results.md has accuracy, data and time for each command, docs/training.md the training recipes.
How to read the result: "accuracy_95" is the Wilson interval. On 447 photos it reaches about 2.5
points to either side, so a test of that size cannot tell two settings apart that are closer.
compare can tell more, since both classifiers see the same photos: its interval is of the difference
alone, and p is how often two equally good classifiers would differ as much.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out
from utils import (
    EXIT_SOME_UNREADABLE,
    UserError,
    printable,
    run,
    warn,
)

import numpy as np

from ckpt import registry
from data.compute import Compute
from data.files import check_outputs, print_some, write_csv
from data.labels import class_indices, read_labels
from data.photos import list_images
from inference.answers import by_class, figure_files, write_answers
from inference.options import (
    BATCH_SIZES,
    add_command,
    add_compile_option,
    add_fine_tuned_options,
    add_images_option,
    add_json_option,
    add_names_option,
    add_prediction_options,
    add_run_options,
)
from inference.parser import Parser
from inference.results import of_classifier, of_two_classifiers, write_result
from metrics import accuracy
from training.options import add_classifier_training
from training.sweep import sweep
from training.sweep_options import add_sweep_options
from training.teacher_options import complete_teacher_options

HERE = Path(__file__).resolve().parent
RECORDED = ("accuracy", "accuracy_95", "correct", "total", "loss", "precision")
COMPARED = ("only_first.png", "only_second.png", "compared.csv")
MAPS = ("last", "rollout", "relevance")  # as p1_attn_map.py explains them

# --- predict ------------------------------------------------------------------------------------


def predict(args):
    """The most probable label of each photo: a CSV, and the first lines on stdout."""
    paths = list_images(args.images, args.limit)
    check_outputs({"--output": args.output}, {"--images": paths, **model_files(args)})
    from inference.classify import Probabilities, load_classifiers  # these import torch
    from inference.predictions import label_rows, predictions

    compute = Compute.from_args(args, BATCH_SIZES["classifier"])
    classifiers = load_classifiers(args.checkpoint, args.weights, args.ema_weights, args.names)
    first = classifiers[0]
    probabilities = Probabilities(classifiers, compute)
    with predictions(args, paths, probabilities.transform,
                     lambda images: label_rows(probabilities(images).mean(1), first.classes),
                     compute, "classify") as done:
        write_csv(args.output, ["filename", "label"],
                  ([name, label] for name, (label, _) in done.rows()))
        print_some((f"{printable(name):24} {label:>4} {first.name_of(label):28} {share:4.0%}"
                    for name, (label, share) in done.rows()), done.count, args.output)
    return EXIT_SOME_UNREADABLE if done.unreadable else 0


# --- eval ---------------------------------------------------------------------------------------


def evaluate(args):
    """Loss, accuracy and confusions on labelled photos, and figures where they are asked."""
    paths = list_images(args.images, args.limit)
    check_outputs({"--json": args.json, "--figures": figure_files(args.figures)},
                  {"--images": paths, "--labels": args.labels, **model_files(args)})
    if args.record and len(args.checkpoint) > 1:
        raise UserError("--record takes one checkpoint, not an ensemble; give one --checkpoint")
    from inference.classify import Probabilities, classify_with_each, load_classifiers
    from models.checkpoint import check_recordable, record_result

    if args.record:
        check_recordable(args.checkpoint[0])
    compute = Compute.from_args(args, BATCH_SIZES["classifier"])
    classifiers = load_classifiers(args.checkpoint, args.weights, args.ema_weights, args.names)
    known = {label: classifiers[0].name_of(label) for label in classifiers[0].classes}
    indices = class_indices(read_labels(paths, args.labels, known), known,
                            args.labels or args.images)
    work = Probabilities(classifiers, compute)
    readable, each, unreadable = classify_with_each(work, paths, compute)
    probabilities = each.mean(0)
    index_of = dict(zip(paths, indices, strict=True))
    targets = np.array([index_of[path] for path in readable])
    names = shown_names(classifiers[0])
    result = accuracy.summarize(probabilities, targets) | {
        "per_class": by_class(names, probabilities, targets),
        "checkpoints": [str(source) for source in args.checkpoint],
        **({"weights": args.weights, "ema_weights": args.ema_weights} if args.weights else {}),
        "image_sizes": [classifier.preprocessing["size"] for classifier in classifiers],
        "images": str(args.images), "device": compute.device, "precision": compute.precision,
        **({"compile_s": round(work.compile_seconds, 1)} if args.compile else {}),
        "unreadable": len(unreadable)}
    if len(classifiers) > 1:
        sources = args.weights or args.checkpoint
        result["members"] = [
            {"checkpoint": str(source)} | accuracy.summarize(alone, targets)
            for source, alone in zip(sources, each, strict=True)]
    write_result(result, of_classifier(result), args.json)
    if args.record:
        record_result(args.checkpoint[0], args.record, result, RECORDED)
    if args.figures:
        write_answers(names, readable, probabilities, targets, Path(args.figures))
    return EXIT_SOME_UNREADABLE if unreadable else 0


def model_files(args) -> dict:
    """The files that a classifier is read from, by option."""
    return {"--checkpoint": args.checkpoint, "--weights": args.weights, "--names": args.names}


def shown_names(classifier) -> dict[str, str]:
    """The readable name of each label, as figures and tables have it."""
    return {label: classifier.name_of(label).replace("_", " ") for label in classifier.classes}


# --- compare ------------------------------------------------------------------------------------


def compare(args):
    """Two classifiers on the same labelled photos: their difference, and where they differ."""
    paths, both = list_images(args.images, args.limit), [args.first, args.second]
    files = [Path(args.output) / name for name in COMPARED]
    check_outputs({"--output": files, "--json": args.json},
                  {"--images": paths, "--labels": args.labels, "the checkpoints": both})
    from inference.classify_compare import answer_all, comparison, open_both, write_comparison

    classifiers = open_both(both, for_maps=bool(args.maps))
    compute = Compute.from_args(args, BATCH_SIZES["classifier"])
    readable, answers, unreadable = answer_all(classifiers, paths, args.labels, args.images,
                                               compute)
    result = comparison(*answers, args.seed) | {
        "images": str(args.images), "device": compute.device, "precision": compute.precision,
        "unreadable": len(unreadable)}
    write_comparison(readable, answers, args.maps, compute, files)
    write_result(result, of_two_classifiers(result), args.json)
    return EXIT_SOME_UNREADABLE if unreadable else 0


# --- train and average --------------------------------------------------------------------------


def train(args):
    """Fine-tune a classifier, or train one from random weights."""
    from training.classify import train_classifier

    train_classifier(args)


def average(args):
    """One checkpoint with the mean of several checkpoints' weights."""
    check_outputs({"--output": args.output}, {"--checkpoint": args.checkpoint})
    from models.classifier import average_classifiers, save_classifier

    classifier = average_classifiers(args.checkpoint)
    save_classifier(args.output, classifier, **classifier.metadata)
    warn(f"wrote {args.output}: the mean of the weights of {len(args.checkpoint)} checkpoints")


# --- command line -------------------------------------------------------------------------------


def make_parser():
    parser = Parser(prog="p1_vit_classify.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    predicting = add_command(commands, "predict", predict,
                             "label a folder of photos: a CSV filename,label")
    evaluating = add_command(commands, "eval", evaluate,
                             "loss and accuracy on labelled photos")
    for command in (predicting, evaluating):
        add_run_options(command, None)
        add_compile_option(command)
        add_images_option(command, HERE / "samples")
        which = command.add_mutually_exclusive_group()
        which.add_argument("--checkpoint", nargs="+", metavar="FILE",
                           default=list(map(str, registry.members("p1"))),
                           help="several: the mean of their probabilities")
        which.add_argument("--model", nargs="+", dest="checkpoint", default=argparse.SUPPRESS,
                           metavar="NAME|FILE", help="the same, by hf:owner/name or timm's name")
        add_fine_tuned_options(command, several=True)
        add_names_option(command)
    add_prediction_options(predicting, "CSV")
    evaluating.add_argument("--labels", metavar="CSV",
                            help="filename,label (default: the labels in the file names)")
    evaluating.add_argument("--figures", metavar="DIR",
                            help="write the confusion matrix, the most confident errors and the "
                                 "accuracy of each class here")
    evaluating.add_argument("--record", metavar="NAME",
                            help="write the result into the checkpoint, as measured on NAME")
    add_json_option(evaluating, "--output")

    comparing = add_command(commands, "compare", compare,
                            "two classifiers on the same photos: is one of them better, and where")
    add_run_options(comparing, None)
    for place in ("first", "second"):
        comparing.add_argument(place, metavar="FILE", help=f"the {place} classifier's checkpoint")
    add_images_option(comparing)
    comparing.add_argument("--labels", metavar="CSV",
                           help="filename,label (default: the labels in the file names)")
    comparing.add_argument("--maps", nargs="?", const="relevance", choices=MAPS,
                           help="also draw where each model looks, by this method of "
                                "p1_attn_map.py (--maps alone: relevance)")
    comparing.add_argument("--output", default="runs/compared_classifiers", metavar="DIR",
                           help=f"folder for {', '.join(COMPARED)}")
    add_json_option(comparing)

    add_classifier_training(add_command(commands, "train", train,
                                        "fine-tune a classifier, or train one from random weights"))
    averaging = add_command(commands, "average", average,
                            "one checkpoint with the mean of several checkpoints' weights")
    averaging.add_argument("--checkpoint", nargs="+", required=True, metavar="FILE",
                           help="checkpoints that were fine-tuned from the same weights")
    averaging.add_argument("--output", required=True, metavar="FILE", help="file to write")
    sweeping = add_command(commands, "sweep", sweep,
                           "train once for each setting: a table and the curves")
    add_sweep_options(sweeping)
    return parser


def main():
    parser = make_parser()
    args = parser.parse_args()
    if args.command == "train":
        complete_teacher_options(args, parser)
    return args.run(args)


if __name__ == "__main__":
    run(main)
