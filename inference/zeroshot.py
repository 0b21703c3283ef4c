"""Zero-shot classification with CLIP (Radford et al. 2021, Sec. 3.1): class names become texts, and
a photo gets the class whose texts are nearest.

Needs no torch to import, so that a script checks its templates before torch is loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils import UserError, printable

import numpy as np

from data.files import markdown_table, read_lines
from data.photos import load_image
from inference.clip import text_features
from inference.parser import understood
from metrics import accuracy

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

# --- templates ----------------------------------------------------------------------------------


def read_templates(words: Iterable[str]) -> dict[str, list[str]]:
    """``--template``'s words -> {name of a set, file name, or "given": its templates}.

    Raises UserError for a template without a place for the class name, and for an empty file.
    """
    groups: dict[str, list[str]] = {}
    for word in words:
        word = word if Path(word).is_file() else understood(word, TEMPLATES)
        if word in TEMPLATES:
            groups[word] = list(TEMPLATES[word])
        elif "{" not in word and Path(word).is_file():
            groups[word] = [line.strip() for line in read_lines(word) if line.strip()]
            if not groups[word]:
                raise UserError(f"{word} holds no template; write one on each line")
        else:
            groups.setdefault("given", []).append(word)
    for template in unique(groups):
        if "{object}" not in template and "{}" not in template:
            raise UserError(f'template "{template}" has no {{object}} (or {{}}) where the class '
                            "name goes, and it is neither a file nor one of the sets "
                            f"{', '.join(TEMPLATES)}")
    return groups


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


# --- accuracy of templates ----------------------------------------------------------------------


def classifiers(groups: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """{title: its templates}: each template of ``groups``, the ensemble of each group that has
    several, and the ensemble of all."""
    texts = unique(groups)
    found = {text: [text] for text in texts}
    found |= {f"ensemble of {Path(name).name} ({len(group)})": list(group)
              for name, group in groups.items() if len(group) > 1}
    if len(groups) > 1:
        found[f"ensemble of all ({len(texts)})"] = texts
    return found


def template_accuracies(
    zero_shot: ZeroShot, images: np.ndarray, targets: np.ndarray,
    groups: Mapping[str, Sequence[str]],
) -> list[dict]:
    """Rows of a table, one for each of ``classifiers``; as ``accuracy_row``.

    ``images`` (N, D) are features of photos whose class indices are ``targets`` (N,).
    """
    inside = np.array([inside_imagenet(name) for name in zero_shot.classes.values()])[targets]
    return [{"template": title, "templates": len(templates),
             **accuracy_row(zero_shot.probabilities(images, templates), targets, inside)}
            for title, templates in classifiers(groups).items()]


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


def accuracy_table(rows: Sequence[dict]) -> str:
    """The rows of ``template_accuracies`` as a Markdown table; names inside and outside ImageNet
    have columns of their own where there are photos of both."""
    parts = [part for part in ("inside_imagenet", "outside_imagenet") if part in rows[0]]
    header = ["template", "accuracy", "95 % interval"]
    if len(parts) == 2:
        header += ["names in ImageNet", "95 %", "others", "95 %"]
    lines = []
    for row in rows:
        shown = [row, *(row[part] for part in parts)] if len(parts) == 2 else [row]
        lines.append([row["template"].replace("|", "\\|")])
        for summary in shown:
            low, high = summary["accuracy_95"]
            lines[-1] += [f"{summary['accuracy']:.1%}", f"{low:.1%} - {high:.1%}"]
    return markdown_table(header, lines)


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
