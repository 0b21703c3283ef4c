"""Two classifiers on the same labelled photos: ``p1_vit_classify.py compare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from utils import printable, warn

import numpy as np

from data.batches import Unreadable
from data.compute import Compute
from data.files import short_names, write_csv
from data.labels import class_indices, read_labels
from data.photos import load_image, report_unreadable
from figures import charts, maps
from inference.classify import classify, load_classifiers
from metrics import accuracy, paired
from models.attention import attention_maps
from models.classifier import Classifier
from models.vit import check_vit

MOST = 12  # photos on a sheet
RESAMPLES = 2000  # of the bootstrap


@dataclass(frozen=True)
class Answers:
    """What one classifier says of N photos."""

    classifier: Classifier
    probabilities: np.ndarray  # (N, classes)
    targets: np.ndarray  # (N,) index of the true class

    @cached_property
    def right(self) -> np.ndarray:
        """(N,) bool: whether the most probable class is the true one."""
        return self.probabilities.argmax(1) == self.targets

    @cached_property
    def labels(self) -> list[str]:
        """The label that it gives to each photo."""
        return [self.classifier.classes[i] for i in self.probabilities.argmax(1)]

    def name(self, photo: int) -> str:
        """The readable name of what it takes a photo for."""
        return self.classifier.name_of(self.labels[photo]).replace("_", " ")


def open_both(sources: Sequence[str], for_maps: bool) -> list[Classifier]:
    """The two classifiers, which may have different classes. UserError where maps are asked of a
    model that is no ViT."""
    classifiers = [load_classifiers([source])[0] for source in sources]
    for classifier in classifiers if for_maps else ():
        check_vit(classifier.model, classifier.source)
    return classifiers


def answer_all(
    classifiers: Sequence[Classifier], paths: Sequence[Path], labels: str | None,
    folder: str | Path, compute: Compute,
) -> tuple[list[Path], list[Answers], Unreadable]:
    """(readable photos, each classifier's answers, the other files with reasons).

    The true labels are in the CSV ``labels``, or else in the names of the files in ``folder``.
    Unreadable files are named on stderr. Raises UserError for a label that one of the classifiers
    does not know, and where no file is readable.
    """
    known = [{label: classifier.name_of(label) for label in classifier.classes}
             for classifier in classifiers]
    true = read_labels(paths, labels, known[0])
    targets = [class_indices(true, classes, labels or folder, classifier.source)
               for classes, classifier in zip(known, classifiers, strict=True)]
    answers = []
    for classifier, indices in zip(classifiers, targets, strict=True):
        readable, probabilities, unreadable = classify(classifier, paths, compute)
        index_of = dict(zip(paths, indices, strict=True))
        answers.append(Answers(classifier, probabilities,
                               np.array([index_of[path] for path in readable], np.int64)))
    report_unreadable(readable, unreadable)
    return readable, answers, unreadable


def comparison(first: Answers, second: Answers, seed: int) -> dict:
    """Accuracy of both, the first minus the second with its interval, and McNemar's exact test."""
    a, b = first.right, second.right
    gap, interval = paired.difference(a, b, RESAMPLES, seed)
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    kept = ("correct", "total", "accuracy", "accuracy_95")
    scores = [accuracy.summarize(answers.probabilities, answers.targets)
              for answers in (first, second)]
    return {"classifiers": [{"checkpoint": answers.classifier.source,
                             **{key: score[key] for key in kept}}
                            for answers, score in zip((first, second), scores, strict=True)],
            "difference": gap, "difference_95": interval, "both_right": int((a & b).sum()),
            "only_first_right": only_first, "only_second_right": only_second,
            "neither_right": int((~a & ~b).sum()), "mcnemar_p": paired.mcnemar(
                only_first, only_second), "bootstrap": {"resamples": RESAMPLES, "seed": seed}}


# --- sheets and table ---------------------------------------------------------------------------


def two_names(sources: Sequence[str]) -> list[str]:
    """What figures call the two classifiers, which may be one file."""
    first, second = sources
    return ["first", "second"] if first == second else short_names(sources)


def write_comparison(
    paths: Sequence[Path], both: Sequence[Answers], method: str | None, compute: Compute,
    files: Sequence[Path],
) -> None:
    """Write three ``files``: a sheet for each classifier of the photos that it alone gets right,
    and a table of all photos. ``method`` adds both models' maps beside each photo of the sheets."""
    names = two_names([answers.classifier.source for answers in both])
    for winner, file in enumerate(files[:2]):
        write_sheet(paths, both, winner, names, method, compute, file)
    warn(f"wrote {files[0]} and {files[1]}")
    write_table(paths, both, files[2])


def write_sheet(
    paths: Sequence[Path], both: Sequence[Answers], winner: int, names: Sequence[str],
    method: str | None, compute: Compute, file: Path,
) -> None:
    """The photos that only the classifier ``winner`` (0 or 1) gets right; those of which the other
    one is surest come first."""
    right, wrong, other = both[winner], both[1 - winner], names[1 - winner]
    chosen = np.flatnonzero(right.right & ~wrong.right)
    chosen = chosen[np.argsort(-wrong.probabilities[chosen].max(1), kind="stable")]
    heading = f"Only {names[winner]} is right"  # of no photo at all the gallery itself says "none"
    if len(chosen):
        heading += f": {len(chosen)} of {len(paths)} photos"
    if len(chosen) > MOST:
        heading += f"\nthe {MOST} photos where {other} is surest"
    images, titles = [], []
    for photo in chosen[:MOST]:
        images.append(shown_photo(paths[photo], right.classifier)[0])
        titles.append(f"{paths[photo].name}\ntrue: {right.name(photo)}\n{other}: "
                      f"{wrong.name(photo)} ({wrong.probabilities[photo].max():.0%})")
        for name, answers in zip(names, both, strict=True) if method else ():
            images.append(map_of(answers, photo, paths[photo], method, compute))
            titles.append(f"{name}\n{method}\n{answers.name(photo)}")
    scale = "share of the brightest value of each map" if method and images else ""
    charts.gallery(images, titles, printable(heading), file, scale, 3 if method else 4)


def write_table(paths: Sequence[Path], both: Sequence[Answers], file: Path) -> None:
    """A row for each photo: its true label, and each classifier's with its probability."""
    first, second = both
    who = {(True, True): "both", (True, False): "first", (False, True): "second",
           (False, False): "neither"}
    write_csv(file, ["filename", "true", "first", "first probability", "second",
                     "second probability", "right"],
              ([path.name, first.classifier.classes[first.targets[photo]],
                first.labels[photo], f"{first.probabilities[photo].max():.4f}",
                second.labels[photo], f"{second.probabilities[photo].max():.4f}",
                who[bool(first.right[photo]), bool(second.right[photo])]]
               for photo, path in enumerate(paths)))


def shown_photo(path: Path, classifier: Classifier) -> tuple:
    """(the photo at a size for sheets, the part of it that ``classifier`` sees)."""
    photo = load_image(path, (480, 480))
    return maps.for_display(photo, classifier.transform.box(*photo.size))


def map_of(
    answers: Answers, photo: int, path: Path, method: str, compute: Compute
) -> np.ndarray:
    """The photo under the map of what its classifier attends to (H, W, 3); ``relevance`` speaks for
    the class that this classifier predicts."""
    classifier = answers.classifier
    transform = classifier.transform
    grids, _ = attention_maps(classifier.model,
                              transform.tensor([transform.load(path)], compute.device), method)
    picture, box = shown_photo(path, classifier)
    return maps.overlay(picture, maps.map_onto_photo(grids[0, 0].numpy(), box, *picture.size))
