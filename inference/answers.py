"""What a classifier answers about labelled photos: right answers by class, confusions, errors.

Needs no torch to import, and matplotlib only to draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from utils import warn

import numpy as np

from data.files import write_csv
from data.photos import load_image
from data.tables import as_number
from metrics import accuracy

FIGURES = ("confusion.csv", "confusion.png", "errors.png", "classes.csv")
MOST_CLASSES = 60  # in the figure of the confusions
ERRORS = 16  # photos in the figure of the most confident errors


def figure_files(folder: str | Path | None) -> list[Path]:
    """What ``write_answers`` writes into ``folder``; nothing where there is none."""
    return [Path(folder) / name for name in FIGURES] if folder else []


def by_class(names: Mapping[str, str], probabilities: np.ndarray, targets: np.ndarray) -> dict:
    """{label: its name, how many of its photos are named rightly, how many it has}, of the labels
    that occur.

    ``names`` has the label and the name of each column of ``probabilities`` (N, classes);
    ``targets`` (N,) are class indices.
    """
    totals = np.bincount(targets, minlength=len(names))
    correct = np.bincount(targets[probabilities.argmax(1) == targets], minlength=len(names))
    items = list(names.items())
    return {items[i][0]: {"name": items[i][1], "correct": int(correct[i]), "total": int(totals[i])}
            for i in np.flatnonzero(totals)}


def write_answers(
    names: Mapping[str, str], paths: Sequence[Path], probabilities: np.ndarray,
    targets: np.ndarray, folder: Path, method: str = "",
) -> None:
    """Write ``figure_files``: the confusions as a table and, of the classes most often confused, as
    a figure; a gallery of the most confident errors; and the accuracy of each class.

    ``names``, ``probabilities`` and ``targets`` as in ``by_class``, of the photos ``paths``. The
    figures say which ``method`` gave the answers.
    """
    write_confusions(names, probabilities, targets, folder, method)
    draw_errors(list(names.values()), paths, probabilities, targets, folder, method)
    warn(f"wrote confusion.png and errors.png into {folder}")
    write_csv(folder / "classes.csv", ["label", "name", "correct", "total", "accuracy",
                                       "95 % interval"],
              [[label, *row.values(), as_number(row["correct"] / row["total"]),
                as_number(accuracy.wilson_interval(row["correct"], row["total"]))]
               for label, row in by_class(names, probabilities, targets).items()])


def write_confusions(
    names: Mapping[str, str], probabilities: np.ndarray, targets: np.ndarray, folder: Path,
    method: str,
) -> None:
    """confusion.csv with every pair of classes that occurs, and confusion.png."""
    from figures import charts  # matplotlib, which predict does not need, is slow to import

    labels, shown_as, predicted = list(names), list(names.values()), probabilities.argmax(1)
    confused = accuracy.confusions(targets, predicted)
    write_csv(folder / "confusion.csv", ["true", "predicted", "count", "true name",
                                         "predicted name"],
              [[labels[true], labels[guess], count, shown_as[true], shown_as[guess]]
               for true, guess, count in confused.tolist()])
    shown = accuracy.classes_to_show(confused, MOST_CLASSES)
    heading = [f"Confusion: {(predicted == targets).sum()} of {len(targets)} right", method]
    occurring = len(np.unique(confused[:, :2]))
    if len(shown) < occurring:
        about = f"{len(shown)} of {occurring} classes, those most often confused"
        warn(f"confusion.png shows {about}; confusion.csv has all")
        heading.append(about)
    charts.confusion(accuracy.confusion_matrix(confused, shown), [shown_as[i] for i in shown],
                     "\n".join(filter(None, heading)), folder / "confusion.png")


def draw_errors(
    names: Sequence[str], paths: Sequence[Path], probabilities: np.ndarray, targets: np.ndarray,
    folder: Path, method: str,
) -> None:
    """errors.png: the wrong answers of the highest probability."""
    from figures import charts

    wrong = accuracy.confident_errors(probabilities, targets)[:ERRORS]
    titles = [f"{names[targets[i]]}\ntaken for {names[probabilities[i].argmax()]} "
              f"({probabilities[i].max():.0%})" for i in wrong]
    charts.gallery([small_photo(paths[i]) for i in wrong], titles,
                   "\n".join(filter(None, ["Most confident errors", method])),
                   folder / "errors.png")


def small_photo(path: Path):
    """The photo with a longer side of 480 pixels."""
    from figures import maps

    photo = load_image(path, (480, 480))
    return maps.for_display(photo, (0, 0, *photo.size))[0]
