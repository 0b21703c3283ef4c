"""Report question: how well does CLIP name photos of classes that it was never trained on?

CLIP (Radford et al. 2021) puts images and texts into one space. A photo gets the class whose name,
put into a sentence (a template), lies nearest; nothing is trained.

  python3 clip_zeroshot.py predict --images DIR --labels id2label.json --output pred.csv
  python3 clip_zeroshot.py eval --images DIR --labels id2label.json --table templates.md
  python3 clip_zeroshot.py top5 --images DIR --sample 3 --labels id2label.json --output top5.png
  python3 clip_zeroshot.py retrieval --images DIR --captions val.json

id2label.json names the classes, {"0": "bicycle", "1": "chair"}: what is written for a photo is the
key, whatever the order. --model takes a checkpoint of this project, OpenAI's state dict, a folder
that transformers wrote, or a name on the hub such as openai/clip-vit-base-patch32; without it, it
is $HW3_CLIP_CKPT, else the default of ckpt/checkpoints.json, ckpt/clip_vit_tiny.safetensors.
--template takes a text with {object} or {} in the name's place, the name of a set (course: the
report's five; cifar: the 18 that OpenAI published for CIFAR), or a file with a template a line;
several are an ensemble (each normalized, their mean, normalized).

What to expect: README.md, "Results", names accuracy, data and time for each command.
How to read the result: "accuracy_95" is the Wilson interval: templates closer than that are not
told apart by such a test. A negation ("not a photo of") names the same class and does no harm.
Probabilities are a softmax over the given classes with the model's own logit scale: they say which
of these names fits best, not that any fits. retrieval's recall@K falls as the folder grows: compare
it on the same photos alone.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

from utils import (
    EXIT_SOME_UNREADABLE,
    ArgumentParser,
    UserError,
    check_writable,
    markdown_table,
    positive_int,
    printable,
    run,
    warn,
    write_csv,
    write_json,
    write_text,
)

import numpy as np

from ckpt import registry
from data.captions import captioned_images
from data.labels import read_classes, read_labels, sort_labels
from data.photos import image_paths, list_images, load_image, report_unreadable
from figures import charts
from inference.options import add_run_options
from metrics import accuracy
from metrics.retrieval import recall

HERE = Path(__file__).resolve().parent
SHOWN = 20  # predictions that are printed with name and probability; the CSV has all
MOST_PANELS = 24
TEMPLATE = "a photo of a {object}"  # of predict and top5, so of hw3_1.sh
TEMPLATES = {
    "course": ("This is a photo of {object}", "This is not a photo of {object}",
               "This is a {object} image.", "No {object}, no score.", "a photo of a {object}"),
    # github.com/openai/CLIP, data/prompts.md, CIFAR10 and CIFAR100
    "cifar": tuple(text.format(article, "{}") for article in ("a", "the") for text in (
        "a photo of {} {}.", "a blurry photo of {} {}.", "a black and white photo of {} {}.",
        "a low contrast photo of {} {}.", "a high contrast photo of {} {}.",
        "a bad photo of {} {}.", "a good photo of {} {}.", "a photo of {} small {}.",
        "a photo of {} big {}.")),
}

# --- templates ----------------------------------------------------------------------------------


def read_templates(words: Sequence[str]) -> dict[str, list[str]]:
    """``--template``'s words -> {set, file, or "given": its templates}.

    Raises UserError for a template that has no place for the name.
    """
    groups: dict[str, list[str]] = {}
    for word in words:
        if word in TEMPLATES:
            groups[word] = list(TEMPLATES[word])
        elif "{" not in word and Path(word).is_file():
            text = Path(word).read_bytes().decode("utf-8", "replace")
            groups[word] = [line.strip() for line in text.splitlines() if line.strip()]
            if not groups[word]:
                raise UserError(f"{word} holds no template; write one a line")
        else:
            groups.setdefault("given", []).append(word)
    for template in unique(groups):
        if "{object}" not in template and "{}" not in template:
            raise UserError(f'template "{template}" has no {{object}} (or {{}}) in the name\'s '
                            f"place; nor is it a file or one of the sets {', '.join(TEMPLATES)}")
    return groups


def unique(groups: dict[str, list[str]]) -> list[str]:
    """All templates of the groups, each once."""
    return list(dict.fromkeys(template for group in groups.values() for template in group))


# --- compute ------------------------------------------------------------------------------------


def ensemble(features: np.ndarray) -> np.ndarray:
    """(templates, classes, D), rows of length 1 -> (classes, D): their mean, normalized
    (Radford et al. 2021, Sec. 3.1.4)."""
    mean = features.astype(np.float64).mean(0)
    lengths = np.linalg.norm(mean, axis=1, keepdims=True)
    return (mean / np.maximum(lengths, 1e-12)).astype(np.float32)


def probabilities(images: np.ndarray, classes: np.ndarray, logit_scale: float) -> np.ndarray:
    """Features (N, D) and (classes, D), rows of length 1 -> (N, classes), rows sum to 1."""
    logits = logit_scale * (images @ classes.T)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def judge(probabilities: np.ndarray, targets: np.ndarray, inside: np.ndarray) -> dict:
    """A row of the table: accuracy and its interval; apart, those of photos whose class ImageNet
    has a name for (``inside`` (N,) bool) and of the others."""
    row = accuracy.summarize(probabilities, targets)
    for part, chosen in (("inside_imagenet", inside), ("outside_imagenet", ~inside)):
        if chosen.any():
            summary = accuracy.summarize(probabilities[chosen], targets[chosen])
            row[part] = {key: summary[key]
                         for key in ("correct", "total", "accuracy", "accuracy_95")}
    return row


# --- commands -----------------------------------------------------------------------------------


def predict(args):
    paths = list_images(args.images, args.limit)
    check_writable(args.output)
    classes, templates, clip = prepare(args)
    readable, images, unreadable = encode(clip, paths, args, args.embeddings)
    rows = classify(clip, images, classes, templates)
    labels = [list(classes)[i] for i in rows.argmax(1)]
    write_csv(args.output, ["filename", "label"],
              [[path.name, label] for path, label in zip(readable, labels, strict=True)])
    for path, label, row in list(zip(readable, labels, rows, strict=True))[:SHOWN]:
        print(f"{printable(path.name):24} {printable(label):>4} {printable(classes[label]):28} "
              f"{row.max():4.0%}")
    if len(readable) > SHOWN:
        print(f"… and {len(readable) - SHOWN} more in {printable(args.output)}")
    return EXIT_SOME_UNREADABLE if unreadable else 0


def evaluate(args):
    from inference.zeroshot import class_features, inside_imagenet

    paths = list_images(args.images, args.limit)
    truth = dict(zip(paths, read_labels(paths, args.truth), strict=True))
    check_outputs(args, args.output, args.table)
    classes, templates, clip = prepare(args)
    index = {label: i for i, label in enumerate(classes)}
    unknown = sort_labels([label for label in truth.values() if label not in index])
    if unknown:
        raise UserError(f"label {unknown[0]} in {args.truth or args.images} is not among the "
                        f"{len(classes)} of {args.labels}")
    readable, images, unreadable = encode(clip, paths, args, args.embeddings)
    targets = np.array([index[truth[path]] for path in readable])
    inside = np.array([inside_imagenet(name) for name in classes.values()])[targets]
    texts = unique(templates)
    of = dict(zip(texts, class_features(clip, list(classes.values()), texts), strict=True))
    candidates = {template: [template] for template in texts}
    candidates |= {f"ensemble of {Path(name).name} ({len(group)})": group
                   for name, group in templates.items() if len(group) > 1}
    if len(templates) > 1:
        candidates[f"ensemble of all ({len(texts)})"] = texts
    rows = [{"template": title, "templates": len(group)} | judge(probabilities(
                images, ensemble(np.stack([of[text] for text in group])), clip.logit_scale),
                targets, inside) for title, group in candidates.items()]
    table = table_of(rows)
    print(table, file=sys.stderr)
    if args.table:
        write_text(args.table, table)
        warn(f"wrote {args.table}")
    result = {"rows": rows, **provenance(clip, classes, args), "images": str(args.images),
              "unreadable": len(unreadable)}
    record(args, result, ("rows", "precision"))
    write_json(result, args.output)
    return EXIT_SOME_UNREADABLE if unreadable else 0


def top5(args):
    paths = image_paths(args.images, args.limit)
    if args.sample:
        paths = sorted(random.Random(args.seed).sample(paths, min(args.sample, len(paths))))
    if len(paths) > MOST_PANELS:
        raise UserError(f"{len(paths)} images are too many for one figure; --sample N draws some")
    check_writable(args.output)
    classes, templates, clip = prepare(args)
    readable, images, unreadable = encode(clip, paths, args)
    labels, panels, result = list(classes), [], {}
    for path, row in zip(readable, classify(clip, images, classes, templates), strict=True):
        best = np.argsort(-row, kind="stable")[:5]
        true = path.name.partition("_")[0]
        title = printable(path.name)
        if true in classes:
            rank = int((row > row[labels.index(true)]).sum()) + 1
            title += f"\ntrue: {printable(classes[true])}" + f" (rank {rank})" * (rank > 5)
        panels.append((load_image(path), title, [printable(classes[labels[i]]) for i in best],
                       row[best], [labels[i] == true for i in best]))
        result[path.name] = [{"label": labels[i], "name": classes[labels[i]],
                              "probability": float(row[i])} for i in best]
    charts.top_classes(panels, f"probability (%): softmax over {len(classes)} classes, "
                                f"logit scale {clip.logit_scale:.1f}", args.output)
    warn(f"wrote {args.output}")
    write_json({"images": result, **provenance(clip, classes, args),
                "templates": unique(templates)})
    return EXIT_SOME_UNREADABLE if unreadable else 0


def retrieve(args):
    photos = captioned_images(args.images, args.captions, args.limit)
    check_outputs(args, args.output)
    from inference.clip import prepare_clip, text_features

    clip = prepare_clip(args.model, args)
    readable, images, unreadable = encode(clip, list(photos), args, args.embeddings)
    owner = [row for row, path in enumerate(readable) for _ in photos[path]]
    texts = text_features(clip, [text for path in readable for text in photos[path]])
    result = {"recall": recall(images, texts, np.array(owner)), "images": len(readable),
              "captions": len(texts), "model": clip.name, "precision": args.precision,
              "unreadable": len(unreadable)}
    record(args, result, ("recall", "images", "captions", "precision"))
    write_json(result, args.output)
    return EXIT_SOME_UNREADABLE if unreadable else 0


def words(args):
    from training.clip_words import words

    words(args)


def train(args):
    from training.clip_pairs import pairs

    pairs(args)


# --- what the commands share --------------------------------------------------------------------


def prepare(args):
    """(label: name of each class, templates by group, the model)."""
    classes, templates = read_classes(args.labels), read_templates(args.template)
    from inference.clip import prepare_clip

    return classes, templates, prepare_clip(args.model, args)


def encode(clip, paths, args, embeddings=None):
    """As clip_features.image_features; unreadable files are reported, some image is readable."""
    from inference.clip import kept_image_features

    readable, features, unreadable = kept_image_features(clip, paths, args, embeddings)
    report_unreadable(readable, unreadable)
    return readable, features, unreadable


def check_outputs(args, *paths):
    """UserError, before any work, where a result could not be written."""
    for path in filter(None, paths):
        check_writable(path)
    if args.record and not Path(args.model).is_file():
        raise UserError(f"--record writes into a checkpoint file, and {args.model} is none")


def record(args, result, keys):
    """--record: what was measured, into the checkpoint."""
    if args.record:
        from models.checkpoint import record_measurement

        record_measurement(args.model, args.record, {key: result[key] for key in keys})


def classify(clip, images, classes, templates):
    """(N, D) features -> (N, classes) probabilities, by the ensemble of all templates."""
    from inference.zeroshot import class_features

    texts = class_features(clip, list(classes.values()), unique(templates))
    return probabilities(images, ensemble(texts), clip.logit_scale)


def provenance(clip, classes, args):
    return {"model": clip.name, "logit_scale": clip.logit_scale, "classes": len(classes),
            "labels": str(args.labels), "device": args.device, "precision": args.precision}


def table_of(rows):
    """The rows of eval as a Markdown table."""
    def cells(part):
        if not part:
            return ["", ""]
        return [f"{part['accuracy']:.1%}", "{:.1%} - {:.1%}".format(*part["accuracy_95"])]

    header = ["template", "accuracy", "95 % interval"]
    parts = [part for part in ("inside_imagenet", "outside_imagenet") if part in rows[0]]
    if len(parts) == 2:
        header += ["names in ImageNet", "95 %", "others", "95 %"]
    return markdown_table(header, [
        [row["template"].replace("|", "\\|"), *cells(row),
         *(cell for part in parts if len(parts) == 2 for cell in cells(row.get(part)))]
        for row in rows])


# --- command line -------------------------------------------------------------------------------


def make_parser():
    parser = ArgumentParser(prog="clip_zeroshot.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name, function, help):
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=function)
        add_run_options(command, None)
        command.add_argument("--model", "--checkpoint", default=str(registry.default("clip")),
                             metavar="FILE|FOLDER|NAME",
                             help="a clip checkpoint, transformers' folder, or a hub name")
        return command

    predicting = add("predict", predict, "name a folder of photos: a CSV filename,label")
    evaluating = add("eval", evaluate, "accuracy of each template and of their ensembles")
    panels = add("top5", top5, "a figure: each photo beside its five likeliest classes")
    retrieving = add("retrieval", retrieve, "recall@K between photos and their captions")
    for command in (predicting, evaluating, panels):
        command.add_argument("--labels", required=True, metavar="JSON",
                             help='{"0": "bicycle", …}: what is written, and the name')
        command.add_argument("--template", nargs="+", metavar="T",
                             default=list(TEMPLATES) if command is evaluating else [TEMPLATE],
                             help="texts with {object} or {}; sets (course, cifar); files")
    for command in (predicting, evaluating, retrieving):
        command.add_argument("--images", required=True, metavar="DIR",
                             help="folder of photos, without its subfolders")
        command.add_argument("--embeddings", metavar="FILE.npz",
                             help="keep the photos' features here, and use them again")
    for command in (evaluating, retrieving):
        command.add_argument("--record", metavar="NAME",
                             help="write the result into the checkpoint, as measured on NAME")
        command.add_argument("--output", metavar="JSON", help="instead of stdout")
    predicting.add_argument("--output", required=True, metavar="CSV",
                            help="file to write, whole or not at all")
    evaluating.add_argument("--truth", metavar="CSV", help="filename,label; else names carry it")
    evaluating.add_argument("--table", metavar="FILE", help="also write the table, as Markdown")
    retrieving.add_argument("--captions", required=True, metavar="JSON",
                            help="their captions, in COCO's format")
    panels.add_argument("--images", nargs="+", default=[str(HERE / "samples" / "scenes")],
                        metavar="PATH", help="image files, or one folder")
    panels.add_argument("--sample", type=positive_int, metavar="N",
                        help="draw N of the images, by --seed")
    panels.add_argument("--output", required=True, metavar="PNG", help="figure to write")
    add_training(commands)
    return parser


def main():
    args = make_parser().parse_args()
    return args.run(args)


if __name__ == "__main__":
    run(main)
