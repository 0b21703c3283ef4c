"""Report question: how well does CLIP name photos of classes that it was never trained on?

CLIP (Radford et al. 2021) maps images and texts into one space. A photo gets the class whose name,
put into a sentence (a template), is nearest. No photo of the classes is needed.

  python3 clip_zeroshot.py predict --images DIR --labels id2label.json --output pred.csv
  python3 clip_zeroshot.py eval --images DIR --labels id2label.json --table t.md --figures out/
  python3 clip_zeroshot.py prompts --images DIR --labels id2label.json --candidates templates.txt
  python3 clip_zeroshot.py top5 --images DIR --sample 3 --labels id2label.json --output top5.png
  python3 clip_zeroshot.py retrieval --images DIR --captions val.json

id2label.json names the classes, {"0": "bicycle", "1": "chair"}: the key is written for a photo,
whatever the order of the keys. --model takes a checkpoint of this project, OpenAI's state dict, a
folder that transformers wrote, or a name on the hub such as openai/clip-vit-base-patch32; the
default is $HW3_CLIP_CKPT, else the default of ckpt/checkpoints.json, else
ckpt/clip_vit_tiny.safetensors. --template takes texts with {object} or {} where the name goes, the
name of a set (course: the report's five; cifar: the 18 that OpenAI published for CIFAR), and files
with one template on each line; several templates are an ensemble (the mean of their normalized
features, normalized again).

words and train make a small CLIP in two steps; docs/zeroshot.md gives the commands.

What to expect: docs/results.md gives accuracy, data and time for each command.
How to read the result: "accuracy_95" is the Wilson interval: such a test does not tell templates
apart whose difference is smaller. A negation ("not a photo of") contains the same class name, and
CLIP hardly notices it. Probabilities are a softmax over the given classes with the model's own
logit scale: they say which of these names fits best, not whether any of them fits. retrieval's
recall@K falls as the folder grows: compare it only on the same photos.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out
from utils import EXIT_SOME_UNREADABLE, UserError, printable, run, warn

import numpy as np

from ckpt import registry
from data.captions import captioned_images
from data.compute import Compute
from data.files import check_outputs, print_some, write_csv
from data.labels import labels_in_names, read_classes
from data.photos import figure_file, image_paths, list_images, report_unreadable
from data.tables import for_terminal, write_form
from inference.answers import by_class, figure_files, write_answers
from inference.clip import image_features, kept_image_features, open_clip, text_features
from inference.options import (
    BATCH_SIZES,
    add_compile_option,
    add_images_option,
    add_json_option,
    add_prediction_options,
    add_prompt_options,
    add_run_options,
)
from inference.parser import Parser, npz_name, positive_int
from inference.prompts import choose_prompt
from inference.results import of_likeliest, of_retrieval, of_templates, write_result
from inference.zeroshot import (
    TEMPLATE,
    TEMPLATES,
    ZeroShot,
    accuracy_table,
    best_five,
    best_of,
    classifiers,
    panel,
    provenance,
    read_templates,
    said,
    template_accuracies,
    true_classes,
    unique,
    zero_shot_predictions,
)
from inference.zeroshot_page import write_zeroshot_page
from metrics.retrieval import recall
from training.options import add_clip_pairs_training, add_clip_words_training

HERE = Path(__file__).resolve().parent
MOST_PANELS = 24

# --- commands -----------------------------------------------------------------------------------


def predict(args):
    paths = list_images(args.images, args.limit)
    if args.resume and args.embeddings:
        raise UserError("--resume does not go with --embeddings, which keeps features for all "
                        "photos; give one of them")
    check_outputs({"--output": args.output, "--embeddings": args.embeddings},
                  {"--images": paths, "--labels": args.labels, "--model": args.model,
                   "--template": args.template})
    classes, templates = read_classes(args.labels), unique(read_templates(args.template))
    compute = Compute.from_args(args, BATCH_SIZES["clip"])
    clip = open_clip(args.model).to(compute.device)
    zero_shot = ZeroShot(clip, classes, templates)
    with zero_shot_predictions(args, clip, paths, zero_shot, compute) as done:
        write_csv(args.output, ["filename", "label"],
                  ([name, label] for name, (label, _) in done.rows()))
        print_some((f"{printable(name):24} {printable(label):>4} {printable(classes[label]):28} "
                    f"{share:4.0%}" for name, (label, share) in done.rows()),
                   done.count, args.output)
    return EXIT_SOME_UNREADABLE if done.unreadable else 0


def evaluate(args):
    paths = list_images(args.images, args.limit)
    classes, groups = read_classes(args.labels), read_templates(args.template)
    check_recording(args)
    check_outputs({"--json": args.json, "--table": args.table, "--embeddings": args.embeddings,
                   "--html": args.html, "--figures": figure_files(args.figures)},
                  {"--images": paths, "--labels": args.labels, "--truth": args.truth,
                   "--model": args.model, "--template": args.template})
    class_of = true_classes(paths, args, classes)
    compute = Compute.from_args(args, BATCH_SIZES["clip"])
    clip = open_clip(args.model).to(compute.device)
    readable, images, unreadable = kept_image_features(clip, paths, compute, args.embeddings)
    report_unreadable(readable, unreadable)
    zero_shot = ZeroShot(clip, classes, unique(groups))
    targets = np.array([class_of[path] for path in readable])
    rows = template_accuracies(zero_shot, images, targets, groups)
    if args.html:
        write_zeroshot_page(args.html, zero_shot, readable, images, targets, groups, rows)
    for file in args.table or ():
        write_form(file, *accuracy_table(rows))
    best = best_of(rows)["template"]
    templates = classifiers(groups)[best]
    probabilities = zero_shot.probabilities(images, templates)
    if args.figures:
        write_answers(classes, readable, probabilities, targets, Path(args.figures),
                      best if len(templates) > 1 else f"template {said(templates)}")
    result = {"rows": rows, "best": {"template": best,
                                     "per_class": by_class(classes, probabilities, targets)},
              **provenance(clip, classes, compute, args), "images": str(args.images),
              "unreadable": len(unreadable)}
    record(args, result, ("rows", "precision"))
    write_result(result, [*for_terminal(*accuracy_table(rows, wide=False)),
                          *of_templates(result)], args.json)
    return EXIT_SOME_UNREADABLE if unreadable else 0


def top5(args):
    paths = image_paths(args.images, args.limit)
    if args.sample:
        paths = sorted(random.Random(args.seed).sample(paths, min(args.sample, len(paths))))
    if len(paths) > MOST_PANELS:
        raise UserError(f"{len(paths)} images are too many for one figure; --sample N draws some")
    if len({path.name for path in paths}) < len(paths):
        raise UserError("two of the images have one name, by which the result names them; "
                        "rename one")
    figure = figure_file(args.output, "top5")
    check_outputs({"--output": figure, "--json": args.json},
                  {"--images": paths, "--labels": args.labels, "--model": args.model,
                   "--template": args.template})
    classes, templates = read_classes(args.labels), unique(read_templates(args.template))
    compute = Compute.from_args(args, BATCH_SIZES["clip"])
    clip = open_clip(args.model).to(compute.device)
    readable, images, unreadable = image_features(clip, paths, compute)
    report_unreadable(readable, unreadable)
    probabilities = ZeroShot(clip, classes, templates).probabilities(images)
    from figures import charts  # matplotlib, which predict does not need, takes long to import

    charts.top_classes(
        [panel(path, row, classes, true) for path, row, true in zip(
            readable, probabilities, labels_in_names(readable, classes), strict=True)],
        f"probability (%) of {said(templates)}\nsoftmax over {len(classes)} classes, logit scale "
        f"{clip.logit_scale:.1f} · {printable(Path(clip.name).name)}", figure)
    warn(f"wrote {figure}")
    labels = list(classes)
    result = {"images": {path.name: [{"label": labels[i], "name": classes[labels[i]],
                                      "probability": float(row[i])} for i in best_five(row)]
                         for path, row in zip(readable, probabilities, strict=True)},
              **provenance(clip, classes, compute, args), "templates": templates}
    write_result(result, of_likeliest(result), args.json)
    return EXIT_SOME_UNREADABLE if unreadable else 0


def retrieve(args):
    photos = captioned_images(args.images, args.captions, args.limit)
    check_recording(args)
    check_outputs({"--json": args.json, "--embeddings": args.embeddings},
                  {"--images": list(photos), "--captions": args.captions, "--model": args.model})
    compute = Compute.from_args(args, BATCH_SIZES["clip"])
    clip = open_clip(args.model).to(compute.device)
    readable, images, unreadable = kept_image_features(
        clip, list(photos), compute, args.embeddings)
    report_unreadable(readable, unreadable)
    owner = [row for row, path in enumerate(readable) for _ in photos[path]]
    texts = text_features(clip, [text for path in readable for text in photos[path]])
    result = {"recall": recall(images, texts, np.array(owner)), "images": len(readable),
              "captions": len(texts), "model": clip.name, "precision": compute.precision,
              "unreadable": len(unreadable)}
    record(args, result, ("recall", "images", "captions", "precision"))
    write_result(result, of_retrieval(result), args.json)
    return EXIT_SOME_UNREADABLE if unreadable else 0


def words(args):
    from training.clip_words import train_words

    train_words(args)


def train(args):
    from training.clip_pairs import train_pairs

    train_pairs(args)


# --- what the commands write --------------------------------------------------------------------


def check_recording(args):
    """UserError, before any work, where --record could not write."""
    if args.record:
        from models.checkpoint import check_recordable

        check_recordable(args.model)


def record(args, result, keys):
    """With --record: write these parts of the result into the checkpoint."""
    if args.record:
        from models.checkpoint import record_result

        record_result(args.model, args.record, result, keys)


# --- command line -------------------------------------------------------------------------------

COMMANDS = {
    "predict": (predict, "name a folder of photos: a CSV filename,label"),
    "eval": (evaluate, "accuracy of each template and of their ensembles"),
    "prompts": (choose_prompt, "choose a template on one part of the photos, test it on the rest"),
    "top5": (top5, "a figure: each photo beside its five likeliest classes"),
    "retrieval": (retrieve, "recall@K between photos and their captions"),
    "words": (words, "training, first step: a new text tower learns what names mean"),
    "train": (train, "training, second step: both towers learn from photos with texts"),
}


def make_parser():
    parser = Parser(prog="clip_zeroshot.py", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands = {}
    for name, (function, text) in COMMANDS.items():
        commands[name] = subparsers.add_parser(name, help=text, description=text)
        commands[name].set_defaults(run=function)
    predicting, evaluating, choosing, drawing, retrieving = (
        commands[name] for name in ("predict", "eval", "prompts", "top5", "retrieval"))
    default = str(registry.default("clip"))
    for command in (predicting, evaluating, choosing, drawing, retrieving):
        add_run_options(command, None)
        command.add_argument("--model", "--checkpoint", default=default,
                             metavar="FILE|FOLDER|NAME",
                             help="a CLIP checkpoint, a folder that transformers wrote, or a name "
                                  "on the hub")
    for command in (predicting, evaluating, choosing, drawing):
        command.add_argument("--labels", required=True, metavar="JSON",
                             help='the classes, label to name: {"0": "bicycle", …}')
    for command in (predicting, evaluating, drawing):
        command.add_argument("--template", nargs="+", metavar="T",
                             default=list(TEMPLATES) if command is evaluating else [TEMPLATE],
                             help="texts with {object} or {}; sets (course, cifar); files")
    for command in (predicting, evaluating):
        add_compile_option(command)
    for command in (predicting, evaluating, choosing):
        add_images_option(command)
    retrieving.add_argument("--images", required=True, metavar="DIR",
                            help="folder of photos, without its subfolders")
    for command in (predicting, evaluating, choosing, retrieving):
        command.add_argument("--embeddings", type=npz_name, metavar="FILE.npz",
                             help="keep the photos' features here, and use them again")
    for command in (evaluating, retrieving):
        command.add_argument("--record", metavar="NAME",
                             help="write the result into the checkpoint, as measured on NAME")
        add_json_option(command, "--output")
    add_prediction_options(predicting, "CSV")
    for command in (evaluating, choosing):
        command.add_argument("--truth", metavar="CSV",
                             help="filename,label: the true labels (default: in the file names)")
    add_prompt_options(choosing)
    evaluating.add_argument("--html", metavar="FILE",
                            help="also write a page with each photo and its answers")
    evaluating.add_argument("--table", nargs="+", metavar="FILE",
                            help="also write the table: numbers into a .csv, Markdown into others")
    evaluating.add_argument("--figures", metavar="DIR",
                            help="write the confusion matrix, the most confident errors and the "
                                 "accuracy of each class here, of the template or ensemble with "
                                 "the highest accuracy")
    retrieving.add_argument("--captions", required=True, metavar="JSON",
                            help="the photos' captions, in COCO's format")
    drawing.add_argument("--images", nargs="+", default=[str(HERE / "samples" / "scenes")],
                         metavar="PATH", help="image files, or one folder")
    drawing.add_argument("--sample", type=positive_int, metavar="N",
                         help="draw N of the images at random, by --seed")
    drawing.add_argument("--output", required=True, metavar="PNG|DIR",
                         help="figure to write; top5.png in a folder")
    add_json_option(drawing)
    add_clip_words_training(commands["words"])
    add_clip_pairs_training(commands["train"])
    return parser


def main():
    args = make_parser().parse_args()
    return args.run(args)


if __name__ == "__main__":
    run(main)
