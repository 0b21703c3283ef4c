"""Zero-shot classification with CLIP (Radford et al. 2021, Sec. 3.1): class names become texts, and
a photo gets the class whose texts are nearest.

Needs no torch to import, so that a script checks its templates before torch is loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils import UserError, printable

import numpy as np

from data.compute import Compute
from data.files import read_lines
from data.folders import PhotoList
from data.labels import class_indices, read_labels
from data.photos import load_image, report_unreadable
from data.tables import Columns, Gap, percent, points
from inference.clip import feature_work, kept_image_features, text_features
from inference.parser import understood
from inference.predictions import Predicted, label_rows, predictions
from metrics import accuracy
from metrics.paired import accuracy_gap

if TYPE_CHECKING:
    from models.clip import Clip

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

GIVEN = "given"  # the ensemble of the templates that are typed
TOLD_APART = 0.05  # p-value below which a template is called worse than the best one

# --- templates ----------------------------------------------------------------------------------


def read_templates(words: Sequence[str]) -> dict[str, list[str]]:
    """``--template``'s words -> {name of a set, file name, or "given": its templates}.

    Raises UserError for a template without a place for the class name, and for an empty file.
    """
    groups: dict[str, list[str]] = {}
    files = [word for word in words if "{" not in word and os.path.isfile(word)]
    called = dict(zip(files, names_of_files(files), strict=True))
    for word in words:
        word = word if word in called else understood(word, TEMPLATES)
        if word in called:
            groups[called[word]] = templates_in(word)
        elif word in TEMPLATES:
            groups[word] = list(TEMPLATES[word])
        else:
            groups.setdefault(GIVEN, []).append(word)
    groups = {name: list(dict.fromkeys(group)) for name, group in groups.items()}
    for template in unique(groups):
        if not has_place(template):
            raise UserError(f'template "{template}" has no {{object}} (or {{}}) where the class '
                            "name goes, and it is neither a file nor one of the sets "
                            f"{', '.join(TEMPLATES)}")
    return groups


def names_of_files(files: Sequence[str]) -> list[str]:
    """What the ensembles of template files are called: the files' names, or their paths where two
    names are equal or one is that of another ensemble."""
    names = [Path(file).name for file in files]
    clear = len(set(names)) == len(set(files)) and not {*names} & {GIVEN, *TEMPLATES}
    return names if clear else [os.path.join(os.curdir, file) for file in files]


def templates_in(file: str | Path) -> list[str]:
    """The templates of a file, one a line; UserError where there is none."""
    templates = [line.strip() for line in read_lines(file) if line.strip()]
    if not templates:
        raise UserError(f"{file} holds no template; write one on each line")
    return templates


def has_place(template: str) -> bool:
    """Whether ``template`` has a place for the class name."""
    return "{object}" in template or "{}" in template


def unique(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The templates of all groups, each once."""
    return list(dict.fromkeys(template for group in groups.values() for template in group))


def fill(template: str, name: str) -> str:
    """``template`` with ``name`` in the place of {object} or {}."""
    return template.replace("{object}", name).replace("{}", name)


# --- the classifier -----------------------------------------------------------------------------


class ZeroShot:
    """A classifier over ``classes`` (label -> name), made of texts alone.

    Each name is put into each of the ``templates`` and encoded once, on the device of ``clip``:
    ``text_features`` (templates, classes, D), rows of length 1.
    """

    def __init__(self, clip: Clip, classes: Mapping[str, str], templates: Sequence[str]) -> None:
        self.classes, self.templates = dict(classes), list(templates)
        self.logit_scale = clip.logit_scale
        texts = [fill(template, name) for template in templates for name in classes.values()]
        self.text_features = text_features(clip, texts).reshape(len(templates), len(classes), -1)

    def probabilities(
        self, images: np.ndarray, templates: Sequence[str] | None = None
    ) -> np.ndarray:
        """Image features (N, D), rows of length 1 -> (N, classes), rows sum to 1.

        ``templates`` are some of the classifier's, by default all; several are an ensemble.
        """
        chosen = [self.templates.index(text) for text in templates or self.templates]
        classes = ensemble(self.text_features[chosen])
        return softmax(self.logit_scale * (images @ classes.T))


def ensemble(features: np.ndarray) -> np.ndarray:
    """(templates, classes, D), rows of length 1 -> (classes, D): their mean, normalized
    (Radford et al. 2021, Sec. 3.1.4)."""
    mean = features.astype(np.float64).mean(0)
    lengths = np.linalg.norm(mean, axis=1, keepdims=True)
    return (mean / np.maximum(lengths, 1e-12)).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, classes) -> (N, classes), rows sum to 1; large logits do not overflow."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


@contextlib.contextmanager
def zero_shot_predictions(
    args: argparse.Namespace, clip: Clip, photos: PhotoList, zero_shot: ZeroShot, compute: Compute
) -> Iterator[Predicted]:
    """As ``predictions``, the label and its probability for each photo; with ``args.embeddings``
    from features that are kept."""
    labels = list(zero_shot.classes)
    if args.embeddings is None:
        features = feature_work(clip, compute)
        with predictions(args, photos, clip.transform,
                         lambda images: label_rows(zero_shot.probabilities(features(images)),
                                                   labels), compute, "encode") as done:
            yield done
        return
    readable, images, unreadable = kept_image_features(clip, photos, compute, args.embeddings)
    report_unreadable(readable, unreadable)
    lost = {path for path, _ in unreadable}
    names = [name for name, path in zip(photos.names, photos, strict=True) if path not in lost]
    rows = label_rows(zero_shot.probabilities(images), labels)
    yield Predicted(lambda: zip(names, rows, strict=True), len(rows), unreadable)


# --- accuracy of templates ----------------------------------------------------------------------


def classifiers(groups: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """{title: its templates}: each template of ``groups``, the ensemble of each group that has
    several, and the ensemble of all."""
    texts = unique(groups)
    found = {text: [text] for text in texts}
    found |= {f"ensemble of {name} ({len(group)})": list(group)
              for name, group in groups.items() if len(group) > 1}
    if len(groups) > 1:
        found[f"ensemble of all ({len(texts)})"] = texts
    return found


def template_accuracies(
    zero_shot: ZeroShot, images: np.ndarray, targets: np.ndarray,
    groups: Mapping[str, Sequence[str]],
) -> list[dict]:
    """Rows of a table, one for each of ``classifiers``; as ``accuracy_row``, and as
    ``add_distances`` adds.

    ``images`` (N, D) are features of photos whose class indices are ``targets`` (N,).
    """
    inside = np.array([inside_imagenet(name) for name in zero_shot.classes.values()])[targets]
    rows, right = [], []
    for title, templates in classifiers(groups).items():
        probabilities = zero_shot.probabilities(images, templates)
        rows.append({"template": title, "templates": len(templates),
                     **accuracy_row(probabilities, targets, inside)})
        right.append(probabilities.argmax(1) == targets)
    add_distances(rows, right)
    return rows


def accuracy_row(probabilities: np.ndarray, targets: np.ndarray, inside: np.ndarray) -> dict:
    """Accuracy and its 95 % interval; under "inside_imagenet" and "outside_imagenet" the same of
    the photos whose class name is, or is not, an ImageNet class name (``inside`` (N,) bool)."""
    row = accuracy.summarize(probabilities, targets)
    for part, chosen in (("inside_imagenet", inside), ("outside_imagenet", ~inside)):
        if chosen.any():
            summary = accuracy.summarize(probabilities[chosen], targets[chosen])
            row[part] = {key: summary[key]
                         for key in ("correct", "total", "accuracy", "accuracy_95")}
    return row


def best_of(rows: Sequence[dict]) -> dict:
    """The row with the highest accuracy, the first of equals."""
    return max(rows, key=lambda row: row["correct"])


def add_distances(rows: Sequence[dict], right: Sequence[np.ndarray]) -> None:
    """Give each row its accuracy minus the best row's, and the p-value of McNemar's test of the
    two, which sees that both named the same photos: ``right`` are their right answers (N,) bool."""
    best = rows.index(best_of(rows))
    for row, own in zip(rows, right, strict=True):
        row["minus_best"], row["mcnemar_p"] = accuracy_gap(own, right[best])


def accuracy_table(rows: Sequence[dict], wide: bool = True) -> tuple[Columns, list[dict]]:
    """The rows of ``template_accuracies`` as ``data.tables`` writes them; where it may be ``wide``,
    names inside and outside ImageNet have columns of their own if there are photos of both."""
    columns = {"template": str, "accuracy": percent, "95 % interval": percent,
               "against the best": points}
    parts = {"inside_imagenet": "names in ImageNet", "outside_imagenet": "other names"}
    if not wide or not parts.keys() <= rows[0].keys():
        parts = {}
    for title in parts.values():
        columns |= {title: percent, f"{title}, 95 %": percent}
    return columns, [
        {"template": row["template"], "accuracy": row["accuracy"],
         "95 % interval": row["accuracy_95"],
         "against the best": Gap(row["minus_best"], row["mcnemar_p"] < TOLD_APART)}
        | {title: row[part]["accuracy"] for part, title in parts.items()}
        | {f"{title}, 95 %": row[part]["accuracy_95"] for part, title in parts.items()}
        for row in rows]


def true_classes(paths: PhotoList, args: argparse.Namespace, classes: Mapping[str, str]) -> dict:
    """The class index of each photo, by ``args.truth`` or else by the names of the files."""
    labels = read_labels(paths, args.truth, classes)
    return dict(zip(paths, class_indices(labels, classes, args.truth or args.images, args.labels,
                                         "correct it, or add it there"), strict=True))


@functools.cache
def _imagenet_names() -> frozenset[str]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return frozenset(lemma.strip().casefold() for index in range(info.num_classes())
                     for lemma in info.index_to_description(index).split(","))


def inside_imagenet(name: str) -> bool:
    """Whether ``name`` is one of the names that ImageNet-1k (Russakovsky et al. 2015) gives its
    classes, which are WordNet's lemmas: "tabby" and "tabby cat" are, "cat" is not."""
    return name.replace("_", " ").strip().casefold() in _imagenet_names()


def provenance(
    clip: Clip, classes: Mapping[str, str], compute: Compute, args: argparse.Namespace
) -> dict:
    """What a result was computed with."""
    return {"model": clip.name, "logit_scale": clip.logit_scale, "classes": len(classes),
            "labels": str(args.labels), "device": compute.device, "precision": compute.precision}


# --- the figure of the likeliest classes ---------------------------------------------------------


def best_five(row):
    """Indices of the five largest probabilities, the largest first."""
    return np.argsort(-row, kind="stable")[:5]


def said(templates):
    """The template, in quotes, or of how many the mean is."""
    return f"“{printable(templates[0])}”" if len(templates) == 1 else (
        f"the mean of {len(templates)} templates")


def panel(path, row, classes, true):
    """A panel of ``charts.top_classes``: the photo, its title, and names, probabilities and
    correctness of the five likeliest classes. ``true`` is the label in the file's name."""
    labels, best = list(classes), best_five(row)
    title = printable(path.name)
    if true in classes:
        title += f"\ntrue: {printable(classes[true])}, {row[labels.index(true)]:.1%}"
        rank = int((row > row[labels.index(true)]).sum()) + 1
        if rank > len(best):
            title += f" (rank {rank})"
    return (load_image(path), title, [printable(classes[labels[i]]) for i in best], row[best],
            [labels[i] == true for i in best])
