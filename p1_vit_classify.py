"""Report question: how well does a vision transformer classify photos, and what decides it?

A ViT (Dosovitskiy et al. 2021) is fine-tuned on a folder of photos named <label>_<anything>.jpg.

  python3 p1_vit_classify.py predict --images DIR --output pred.csv
  python3 p1_vit_classify.py eval --images DIR --figures out/
  python3 p1_vit_classify.py train --train DIR --val DIR --out runs/mine --pretrained
  python3 p1_vit_classify.py average --checkpoint A B --output mean.safetensors
  python3 p1_vit_classify.py sweep --train DIR --val DIR --out runs/lr --vary lr=1e-3,1e-4

Without --checkpoint, predict and eval use $HW3_P1_CKPT, else the default of ckpt/checkpoints.json,
which ships: ckpt/pets_vit_tiny.safetensors (37 pet breeds). Several checkpoints are an ensemble:
the mean of their probabilities.

A checkpoint is a file of this project, or a ViT that transformers or pytorch_pretrained_vit saved;
--model also takes hf:owner/name and timm's names, and where train is given one of them as --model
it starts from there.

What to expect: README.md, "Results", names accuracy, data and time for each command.
How to read the result: "accuracy_95" is the Wilson interval. On 447 photos it reaches about 2.5
points to either side: two settings closer than that are not told apart by such a test.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from utils import (
    EXIT_SOME_UNREADABLE,
    ArgumentParser,
    UserError,
    autocast,
    check_writable,
    markdown_table,
    printable,
    resolve_run_options,
    run,
    warn,
    write_csv,
    write_json,
    write_text,
)

import numpy as np

from ckpt import registry
from data.batches import LabelledImages, normalized_batches
from data.labels import class_indices, find_names, hold_out_tenth, read_labels, sort_labels
from data.photos import check_images, list_images, load_image, report_unreadable
from data.transform import Transform, augmentation
from figures import charts
from inference.options import add_run_options
from metrics import accuracy
from training.sweep import combinations, option_words

HERE = Path(__file__).resolve().parent
INFERENCE_BATCH = {"cpu": 8, "cuda": 64}  # on a CPU a batch that stays in the cache is fastest
SHOWN = 20  # predictions that are printed with name and probability; the CSV has all


# --- compute ------------------------------------------------------------------------------------


def classify(classifier, paths, args, title="classify"):
    """(readable paths, (N, classes) float32 probabilities, [(path, reason)] of the others)."""
    import torch

    model = classifier.model.to(args.device).eval()
    readable, rows, unreadable = [], [], []
    for names, images in normalized_batches(
            classifier.preprocessing, paths, args, unreadable, title):
        with torch.inference_mode(), autocast(args.device, args.precision):
            logits = model(images)
        rows.append(logits.float().softmax(1).cpu().numpy())
        readable += names
    none = np.zeros((0, len(classifier.classes)), np.float32)
    return readable, np.concatenate([none, *rows]), unreadable


def classify_with_all(classifiers, paths, args):
    """As ``classify``, with the mean of the classifiers' probabilities; some image is readable."""
    results = [classify(classifier, paths, args) for classifier in classifiers]
    readable, _, unreadable = results[0]
    report_unreadable(readable, unreadable)
    return readable, np.mean([probabilities for _, probabilities, _ in results], axis=0), unreadable


# --- commands -----------------------------------------------------------------------------------


def load_classifiers(args):
    from models.vit import open_vit

    resolve_run_options(args)
    args.batch_size = args.batch_size or INFERENCE_BATCH[args.device]
    classifiers = [open_vit(source, pretrained=True) for source in args.checkpoint]
    if not classifiers[0].classes:
        raise UserError(f"{args.checkpoint[0]} has no classes: train --model {args.checkpoint[0]} "
                        "teaches it yours")
    for path, classifier in zip(args.checkpoint[1:], classifiers[1:], strict=True):
        if classifier.classes != classifiers[0].classes:
            raise UserError(f"{path} and {args.checkpoint[0]} have different labels; "
                            "an ensemble needs the same")
    return classifiers


def predict(args):
    paths = list_images(args.images, args.limit)
    check_writable(args.output)
    classifiers = load_classifiers(args)
    readable, probabilities, unreadable = classify_with_all(classifiers, paths, args)
    labels = [classifiers[0].classes[i] for i in probabilities.argmax(1)]
    write_csv(args.output, ["filename", "label"],
              [[path.name, label] for path, label in zip(readable, labels, strict=True)])
    for path, label, row in list(zip(readable, labels, probabilities, strict=True))[:SHOWN]:
        print(f"{printable(path.name):24} {label:>4} {classifiers[0].name_of(label):28} "
              f"{row.max():4.0%}")
    if len(readable) > SHOWN:
        print(f"… and {len(readable) - SHOWN} more in {printable(args.output)}")
    return EXIT_SOME_UNREADABLE if unreadable else 0


def evaluate(args):
    paths = list_images(args.images, args.limit)
    labels = dict(zip(paths, read_labels(paths, args.labels), strict=True))
    if args.output:
        check_writable(args.output)
    if args.record and len(args.checkpoint) > 1:
        raise UserError("--record takes one checkpoint, not an ensemble")
    classifiers = load_classifiers(args)
    first = classifiers[0]
    if args.record and not first.metadata:
        raise UserError(f"--record writes into a checkpoint of this project, and "
                        f"{args.checkpoint[0]} is none")
    class_indices(list(labels.values()), first.classes, args.labels or args.images)
    readable, probabilities, unreadable = classify_with_all(classifiers, paths, args)
    targets = class_indices([labels[path] for path in readable], first.classes, args.images)
    confusion = accuracy.confusion_matrix(targets, probabilities.argmax(1), len(first.classes))
    names = [first.name_of(label).replace("_", " ") for label in first.classes]
    result = accuracy.summarize(probabilities, targets) | {
        "per_class": {first.classes[i]: {"name": names[i], "correct": int(row[i]),
                                         "total": int(row.sum())}
                      for i, row in enumerate(confusion) if row.sum()},
        "checkpoints": [str(path) for path in args.checkpoint],
        "image_sizes": [classifier.preprocessing["size"] for classifier in classifiers],
        "images": str(args.images),
        "device": args.device, "precision": args.precision, "unreadable": len(unreadable),
    }
    if args.figures:
        charts.confusion(confusion, names, Path(args.figures) / "confusion.png")
        wrong = accuracy.confident_errors(probabilities, targets)[:16]
        charts.gallery(
            [load_image(readable[i]) for i in wrong],
            [f"{names[targets[i]]}\ntaken for {names[probabilities[i].argmax()]} "
             f"({probabilities[i].max():.0%})" for i in wrong],
            "Most confident errors", Path(args.figures) / "errors.png")
        warn(f"wrote confusion.png and errors.png into {args.figures}")
    if args.record:
        from models.checkpoint import record_measurement

        kept = ("accuracy", "accuracy_95", "correct", "total", "loss", "precision")
        record_measurement(args.checkpoint[0], args.record, {key: result[key] for key in kept})
    write_json(result, args.output)
    return EXIT_SOME_UNREADABLE if unreadable else 0


def average(args):
    from models.vit import average_classifiers, save_classifier

    check_writable(args.output)
    classifier = average_classifiers(args.checkpoint)
    save_classifier(args.output, classifier, **classifier.metadata)
    warn(f"wrote {args.output}: the mean of {len(args.checkpoint)} checkpoints' weights")


def labelled_folders(
    train: str | Path, val: str | Path | None, hold_out: bool, labels_csv: str | Path | None = None,
    limit: int | None = None,
) -> tuple[tuple[list[Path], list[str]], tuple[list[Path], list[str]]]:
    """((train paths, labels), (val paths, labels)): val from its own folder, or a tenth of
    train (``hold_out``), or empty."""
    paths = list_images(train, limit)
    labels = read_labels(paths, labels_csv)
    if val:
        val_paths = list_images(val, limit)
        return (paths, labels), (val_paths, read_labels(val_paths, labels_csv))
    if not hold_out:
        return (paths, labels), ([], [])
    parts = hold_out_tenth(paths, labels)
    return tuple(([paths[i] for i in part], [labels[i] for i in part]) for part in parts)


def train(args):
    """Train one model; returns its history (see training.fit)."""
    import torch
    import torch.nn.functional as F
    from timm.optim import param_groups_layer_decay
    from torchvision.transforms import v2

    from models.vit import build_classifier, save_classifier
    from training.loop import Recipe, Task, fit

    (train_paths, train_labels), (val_paths, val_labels) = labelled_folders(
        args.train, args.val, args.hold_out, args.labels, args.limit)
    classes = sort_labels(train_labels)
    targets = class_indices(train_labels, classes, args.train)
    val_targets = class_indices(val_labels, classes, args.val)
    check_images(train_paths + val_paths)
    resolve_run_options(args)
    names = find_names(args.train, args.names)
    torch.manual_seed(args.seed)  # the new head
    pretrained = args.pretrained if args.pretrained is not None else bool(args.weights)
    classifier = build_classifier(
        args.model, classes, names, image_size=args.image_size, num_heads=args.num_heads,
        drop_path=args.drop_path, resize=args.resize, crop_pct=args.crop_pct,
        pretrained=False if args.weights else args.pretrained,
        weights=args.weights if pretrained else None)
    model = classifier.model
    if args.freeze:
        model.requires_grad_(False)
        model.get_classifier().requires_grad_(True)
    transform = Transform.from_fields(classifier.preprocessing)
    # Logit adjustment (Menon et al. 2021, Eq. 10): the loss sees the logits with the labels'
    # frequencies added, so the model itself comes to judge as if all labels were equally frequent.
    shares = np.bincount(targets, minlength=len(classes)) / len(targets)
    log_prior = torch.tensor(np.log(shares) if args.balance else 0.0, dtype=torch.float32)
    mixup = v2.MixUp(alpha=args.mixup, num_classes=len(classes)) if args.mixup else None

    def prepare(batch):
        images, labels = transform.normalize(batch[0]), batch[1]
        return mixup(images, labels) if mixup else (images, labels)

    def loss(model, batch):
        images, labels = batch
        logits = model(images).float()
        adjusted = logits + log_prior.to(logits.device)
        loss = F.cross_entropy(adjusted, labels, label_smoothing=args.label_smoothing)
        main = labels if labels.ndim == 1 else labels.argmax(1)  # of two mixed, the larger share
        return loss, int((logits.argmax(1) == main).sum())

    def validate(model, accelerator):
        if not val_paths:
            return {}
        share = slice(accelerator.process_index, None, accelerator.num_processes)
        judged = classifier.with_model(model)
        _, probabilities, unreadable = classify(judged, val_paths[share], args, "validate")
        if unreadable:
            raise UserError("unreadable: {}: {}".format(*unreadable[0]))
        right = val_targets[share]
        losses = -np.log(np.maximum(probabilities[np.arange(len(right)), right], 1e-12))
        sums = torch.tensor([losses.sum(), (probabilities.argmax(1) == right).sum(), len(right)])
        total = accelerator.reduce(sums.to(accelerator.device), "sum").tolist()
        return {"val_loss": total[0] / total[2], "val_accuracy": total[1] / total[2],
                "val_correct": int(total[1]), "val_images": int(total[2])}

    recipe = Recipe(**{field.name: getattr(args, field.name)
                                for field in dataclasses.fields(Recipe)})
    paths = ("train", "weights", "labels", "names")  # of which the checkpoint keeps the name alone
    about = {
        "recipe": {key: Path(value).name if (key in paths and value)
                   or (key == "model" and Path(value).exists()) else value
                   for key, value in vars(args).items() if key not in ("run", "out", "val")},
        "trained_on": {"folder": Path(args.train).resolve().name, "images": len(train_paths)},
        "about": args.about,
    }

    def save(path, model, row):
        save_classifier(path, classifier.with_model(model), **about, metrics=row)

    task = Task(
        dataset=LabelledImages(train_paths, targets,
                                    augmentation(args.augment, transform), args.seed),
        groups=param_groups_layer_decay(model, args.weight_decay, model.no_weight_decay(),
                                        layer_decay=args.layer_decay),
        prepare=prepare, loss=loss, evaluate=validate, save=save,
        select="val_accuracy" if val_paths else None,
        after_epoch=lambda rows: charts.training_curves({"": rows}, Path(args.out) / "curves.png"))
    history = fit(model, task, recipe, Path(args.out), args.resume)
    warn(f"wrote best.safetensors, last.safetensors, history.csv and curves.png into {args.out}")
    return history


def sweep(args):
    """Train once for each combination of the varied options; one table and one figure."""
    settings = combinations(args.vary)
    runs = [setting_arguments(args, setting) for setting in settings]  # checked before any work
    histories = {}
    for number, (setting, run_args) in enumerate(zip(settings, runs, strict=True), 1):
        title = ", ".join(f"{key} {value}" for key, value in setting.items())
        warn(f"setting {number}/{len(settings)}: {title}")
        try:
            histories[title] = train(run_args)
        except UserError as error:
            if "lower --lr" not in str(error):
                raise
            warn(str(error))  # a setting that diverges is a result, not a reason to stop
            histories[title] = None
        write_sweep(settings, histories, Path(args.out))
    warn(f"wrote sweep.md, sweep.csv and curves.png into {args.out}")


def setting_arguments(args, setting):
    """The arguments of ``train`` for one setting of a sweep, parsed as if they were typed."""
    folder = "_".join(f"{key}-{value}" for key, value in setting.items()).replace("/", "-")
    parser = ArgumentParser(prog="p1_vit_classify.py sweep")
    add_classifier_training(parser)
    words = ["--train", args.train, "--out", str(Path(args.out) / folder), *option_words(setting)]
    return parser.parse_args(words, argparse.Namespace(**vars(args)))


def write_sweep(settings, histories, out):
    """The settings that are done: sweep.md, sweep.csv and the curves, judged by the last epoch."""
    last = [history[-1] if history else None for history in histories.values()]
    judged = accuracy.compare([row and (row["val_correct"], row["val_images"]) for row in last])
    header = [*settings[0], "train accuracy", "val accuracy", "95 % interval", "against the best"]
    table = [[*setting.values(), f"{row['train_accuracy']:.1%}" if row else "diverged", *columns]
             for setting, row, columns in zip(settings, last, judged, strict=False)]
    write_csv(out / "sweep.csv", header, table)
    write_text(out / "sweep.md", markdown_table(header, table))
    shown = {title: history for title, history in histories.items() if history}
    if shown:
        charts.training_curves(shown, out / "curves.png")


# --- command line -------------------------------------------------------------------------------


def make_parser():
    parser = ArgumentParser(prog="p1_vit_classify.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name, function, batch_size, help):
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=function)
        add_run_options(command, batch_size)
        return command

    predicting = add("predict", predict, None, "label a folder of photos: a CSV filename,label")
    predicting.add_argument("--output", required=True, metavar="CSV",
                            help="file to write, whole or not at all")
    evaluating = add("eval", evaluate, None, "loss and accuracy on labelled photos, as JSON")
    evaluating.add_argument("--labels", metavar="CSV", help="filename,label; else names carry it")
    evaluating.add_argument("--figures", metavar="DIR", help="confusion matrix and worst errors")
    evaluating.add_argument("--record", metavar="NAME",
                            help="write the result into the checkpoint, as measured on NAME")
    evaluating.add_argument("--output", metavar="JSON", help="instead of stdout")
    for command in (predicting, evaluating):
        command.add_argument("--images", default=str(HERE / "samples"), metavar="DIR",
                             help="folder of photos, without its subfolders")
        command.add_argument("--checkpoint", nargs="+", default=[str(registry.default("p1"))],
                             metavar="FILE", help="several: their mean probability")
        command.add_argument("--model", nargs="+", dest="checkpoint", default=argparse.SUPPRESS,
                             metavar="NAME|FILE", help="the same, by hf:owner/name or timm's name")
    averaging = commands.add_parser("average", help="one checkpoint of several ones' mean weights")
    averaging.set_defaults(run=average)
    averaging.add_argument("--checkpoint", nargs="+", required=True, metavar="FILE",
                           help="fine-tuned from the same weights")
    averaging.add_argument("--output", required=True, metavar="FILE", help="file to write")
    add_classifier_training(add("train", train, 32, "fine-tune a ViT, or train one from scratch"))
    sweeping = add("sweep", sweep, 32, "train once for each setting: a table and the curves")
    sweeping.add_argument("--vary", action="append", required=True, metavar="KEY=V1,V2",
                          help="an option of train and its values (several words: flip+crop); "
                               "several --vary form a product")
    add_classifier_training(sweeping)
    return parser


def main():
    args = make_parser().parse_args()
    status = args.run(args)
    return status if isinstance(status, int) else 0  # train returns its history


if __name__ == "__main__":
    run(main)
