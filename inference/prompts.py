"""A template that is chosen on one part of the photos and measured on the others:
``clip_zeroshot.py prompts``.

The best of many templates on some photos is partly the best by chance, so its accuracy on those
photos is too high. Photos that had no part in the choice give an honest one.

Needs no torch to import.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils import EXIT_SOME_UNREADABLE, UserError

import numpy as np

from data.compute import Compute
from data.files import check_outputs
from data.labels import read_classes
from data.photos import list_images, report_unreadable
from data.tables import Columns, Gap, for_terminal, percent, points, write_form
from inference.clip import kept_image_features, open_clip
from inference.options import BATCH_SIZES
from inference.results import of_prompts, write_result
from inference.zeroshot import (
    TOLD_APART,
    ZeroShot,
    fill,
    has_place,
    provenance,
    templates_in,
    true_classes,
)
from metrics import accuracy
from metrics.paired import accuracy_gap

KEPT = ("correct", "total", "accuracy", "accuracy_95", "loss")


def choose_prompt(args: argparse.Namespace) -> int:
    """Measure each template of ``args.candidates`` on both parts of the photos; returns the exit
    status."""
    paths = list_images(args.images, args.limit)
    classes, candidates = read_classes(args.labels), read_candidates(args.candidates)
    check_outputs({"--output": args.output, "--json": args.json, "--embeddings": args.embeddings},
                  {"--images": paths, "--labels": args.labels, "--truth": args.truth,
                   "--model": args.model, "--candidates": args.candidates})
    class_of = true_classes(paths, args, classes)
    held_out = split_classes(np.array([*class_of.values()]), list(classes.values()),
                             args.hold_out, args.seed)
    is_held_out = dict(zip(class_of, held_out, strict=True))
    compute = Compute.from_args(args, BATCH_SIZES["clip"])
    clip = open_clip(args.model).to(compute.device)
    readable, images, unreadable = kept_image_features(clip, paths, compute, args.embeddings)
    report_unreadable(readable, unreadable)
    rows = measured(ZeroShot(clip, classes, candidates), images,
                    np.array([class_of[path] for path in readable]),
                    np.array([is_held_out[path] for path in readable]))
    if args.output:
        write_form(args.output, *prompt_table(rows))
    result = {"rows": rows, "chosen": next(row for row in rows if row["chosen"]),
              "hold_out": args.hold_out, "seed": args.seed,
              **provenance(clip, classes, compute, args), "images": str(args.images),
              "unreadable": len(unreadable)}
    write_result(result, [*for_terminal(*prompt_table(rows)), *of_prompts(result)], args.json)
    return EXIT_SOME_UNREADABLE if unreadable else 0


def read_candidates(file: str | Path) -> list[str]:
    """The templates of a file, one a line. UserError where one has no place for the class name,
    where two say the same, and where there is nothing to choose from."""
    templates = templates_in(file)
    seen = {}
    for template in templates:
        if not has_place(template):
            raise UserError(f'{file}: the template "{template}" has no {{object}} (or {{}}) where '
                            "the class name goes; write it there")
        same = seen.setdefault(fill(template, "{}"), template)
        if same is not template:
            raise UserError(f'{file} has the template "{template}" twice; keep one of them')
    if len(templates) == 1:
        raise UserError(f"{file} has one template only; write those to choose from, one on each "
                        "line")
    return templates


def split_classes(
    targets: np.ndarray, names: Sequence[str], share: float, seed: int
) -> np.ndarray:
    """(N,) bool: the photos that are held out of the choice, drawn at random by ``seed``.

    ``targets`` (N,) are indices of classes with ``names``. Of each class about ``share`` of its
    photos is held out, at least one, and at least one is not. UserError for a class that has one
    photo.
    """
    draw = np.random.default_rng(seed)
    held_out = np.zeros(len(targets), dtype=bool)
    single = [names[index] for index in np.flatnonzero(np.bincount(targets) == 1)]
    if single:
        raise UserError(f"{len(single)} of the classes ({', '.join(single[:5])}"
                        f"{', …' * (len(single) > 5)}) have one photo, which cannot be in both "
                        "parts; give each class two or more, or leave its photo out")
    for index in np.unique(targets):
        places = np.flatnonzero(targets == index)
        count = min(max(round(share * len(places)), 1), len(places) - 1)
        held_out[draw.permutation(places)[:count]] = True
    return held_out


def measured(
    zero_shot: ZeroShot, images: np.ndarray, targets: np.ndarray, held_out: np.ndarray
) -> list[dict]:
    """A row for each template of ``zero_shot``: its accuracy on the photos that the choice is made
    by ("choosing") and on the photos that are ``held_out`` ("others"), and there its difference
    from the chosen template, with the p-value of McNemar's test. The chosen one has the highest
    accuracy by the first photos; of equals it is the first.

    ``images`` (N, D) are the photos' features, ``targets`` (N,) their class indices.
    """
    if held_out.all() or not held_out.any():
        raise UserError("all readable photos are in one part; give more photos that can be read")
    rows, right = [], []
    for template in zero_shot.templates:
        probabilities = zero_shot.probabilities(images, [template])
        right.append(probabilities.argmax(1) == targets)
        rows.append({"template": template} | {
            part: {key: value for key, value in accuracy.summarize(
                probabilities[chosen], targets[chosen]).items() if key in KEPT}
            for part, chosen in (("choosing", ~held_out), ("others", held_out))})
    best = max(range(len(rows)), key=lambda place: rows[place]["choosing"]["correct"])
    for place, row in enumerate(rows):
        row["chosen"] = place == best
        row["minus_chosen"], row["mcnemar_p"] = accuracy_gap(right[place][held_out],
                                                             right[best][held_out])
    return rows


def prompt_table(rows: Sequence[dict]) -> tuple[Columns, list[dict]]:
    """The rows of ``measured`` as ``data.tables`` writes them."""
    columns = {"template": str, "photos to choose by": percent,
               "photos to choose by, 95 %": percent, "other photos": percent,
               "other photos, 95 %": percent, "against the chosen": points, "chosen": str}
    return columns, [
        {"template": row["template"], "photos to choose by": row["choosing"]["accuracy"],
         "photos to choose by, 95 %": row["choosing"]["accuracy_95"],
         "other photos": row["others"]["accuracy"],
         "other photos, 95 %": row["others"]["accuracy_95"],
         "against the chosen": Gap(row["minus_chosen"], row["mcnemar_p"] < TOLD_APART),
         "chosen": "yes" if row["chosen"] else ""} for row in rows]
