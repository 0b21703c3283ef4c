"""The page of zero-shot classification: each photo with the answer of every template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from utils import printable

import numpy as np

from data.photos import load_image
from inference.zeroshot import ZeroShot, classifiers


def write_zeroshot_page(
    file: str | Path, zero_shot: ZeroShot, paths: Sequence[Path], images: np.ndarray,
    targets: np.ndarray, groups: Mapping[str, Sequence[str]], rows: Sequence[dict],
) -> None:
    """Write the page ``file`` of the photos ``paths``, whose features are ``images`` (N, D) and
    whose class indices are ``targets`` (N,). ``rows`` are those of ``template_accuracies``."""
    from figures import page  # matplotlib: every command of clip_zeroshot.py would load it

    names = [printable(name).replace("_", " ") for name in zero_shot.classes.values()]
    answers = [zero_shot.probabilities(images, templates)
               for templates in classifiers(groups).values()]
    about = {"title": "What CLIP calls each photo", "truth": "true class", "total": "methods right",
             "lead": f"{len(paths):,} photos, {len(names)} classes. A column is a template, or an "
                     "ensemble of several; a percentage in it is the probability of the class that "
                     "it chose.",
             "notes": "The interval of an accuracy is Wilson's 95 % interval: intervals "
                      "that overlap do not tell two methods apart.",
             "methods": [{"name": printable(row["template"]), "note": _accuracy(row)}
                         for row in rows]}
    with page.html_page(file, "table", about) as add:
        for place, (path, target) in enumerate(zip(paths, targets, strict=True)):
            best = [(int(each[place].argmax()), float(each[place].max())) for each in answers]
            right = sum(index == int(target) for index, _ in best)
            entry = {
                "name": printable(path.name), "truth": [names[target]], "total": right,
                "totalText": f"{right} of {len(best)}",
                "answers": [{"text": names[index], "score": round(share, 4),
                             "note": f"{100 * share:.0f}\u00a0%", "right": index == int(target)}
                            for index, share in best]}
            add(entry, {"photo": page.small_picture(load_image(path, (192, 192)), len(paths))})


def _accuracy(row: dict) -> str:
    low, high = row["accuracy_95"]
    return f"{100 * row['accuracy']:.1f} % right ({100 * low:.1f} - {100 * high:.1f} %)"
