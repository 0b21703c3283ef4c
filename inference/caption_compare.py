"""Captioners on the same photos: ``p2_caption.py compare``, and the sheet of the photos on which
captions differ most."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from utils import EXIT_SOME_UNREADABLE, warn, write_text

import numpy as np

from data.captions import captioned_images
from data.compute import Compute
from data.files import (
    check_outputs,
    markdown_table,
    refuse_equal_files,
    short_names,
    write_csv,
)
from data.photos import load_image, report_unreadable
from figures.captions import Card, caption_sheet
from inference.caption import caption_images, give_judge, open_each
from inference.options import BATCH_SIZES, complete_rerank
from inference.results import about_clipscore, of_captioners, write_result
from inference.scoring import Scoring, default_clip, measure
from metrics import paired
from models.captioner import Captioner
from models.decoding import Search

SHOWN = ("CIDEr", "CLIPScore")  # metrics in the table and on the sheet
SHEET = "most_different.png"


@dataclass(frozen=True)
class Written:
    """What one captioner writes about N photos."""

    name: str
    captions: Sequence[str]
    scores: dict[str, np.ndarray]  # metric -> (N,); CIDEr is among them


def compare_captioners(args: argparse.Namespace) -> int:
    """Do what ``p2_caption.py compare`` is asked for; returns its exit status."""
    checkpoints = [args.first, *args.others]
    images = captioned_images(args.images, args.captions, args.limit)
    refuse_equal_files(checkpoints)
    table, rows, sheet = (Path(args.output) / name
                          for name in ("compared.md", "compared.csv", SHEET))
    check_outputs({"--output": [table, rows, sheet], "--json": args.json},
                  {"--images": list(images), "--captions": args.captions, "--clip": args.clip,
                   "the captioners": checkpoints, "--base": args.base, "--decoder": args.decoder,
                   "--weights": args.weights, "--rerank-clip": args.rerank_clip})
    given = complete_rerank(*(argparse.Namespace(**vars(args) | {"checkpoint": checkpoint})
                              for checkpoint in checkpoints))
    captioners = open_each(checkpoints, args)
    searches = [Search.from_args(own) for own in given]
    compute = Compute.from_args(args, BATCH_SIZES["captioner"])
    for captioner, own in zip(captioners, given, strict=True):
        give_judge(captioner, own, compute)
    scoring = Scoring.from_args(args, args.clip or default_clip())
    clip = scoring.open_clip()  # before the work, so that a wrong --clip is an error at once
    names = short_names(checkpoints)
    captions, unreadable = caption_all(captioners, names, list(images), searches, compute)
    paths = list(captions)
    references = [images[path] for path in paths]
    scorer = scoring.clip_scorer(clip, paths)
    measured, written = [], []
    for name, texts in zip(names, zip(*captions.values(), strict=True), strict=True):
        result, each = measure(texts, references, scoring, scorer)
        measured.append(result)
        written.append(Written(name, texts, each))
    result = comparison(checkpoints, measured, written, searches, scoring) | {
        "device": compute.device, "precision": compute.precision,
        "unreadable": unreadable, "captions": args.captions}
    write_text(table, comparison_table(result))
    warn(f"wrote {table}")
    write_rows(paths, written, rows)
    write_sheet(paths, references, written, args.show, "captioners", beams(args.beam), sheet)
    write_result(result, of_captioners(result), args.json)
    return EXIT_SOME_UNREADABLE if unreadable else 0


def caption_all(
    captioners: Sequence[Captioner], names: Sequence[str], paths: Sequence[Path],
    searches: Sequence[Search], compute: Compute,
) -> tuple[dict[Path, list[str]], int]:
    """({readable photo: each captioner's caption}, how many others there are); these are named on
    stderr."""
    captions: dict[Path, list[str]] = {path: [] for path in paths}
    reasons: dict[Path, str] = {}
    for captioner, name, search in zip(captioners, names, searches, strict=True):
        readable, texts, unreadable = caption_images(captioner, list(captions), search, compute,
                                                     name)
        reasons |= dict(unreadable)
        captions = {path: [*captions[path], text]
                    for path, text in zip(readable, texts, strict=True)}
    report_unreadable(list(captions), list(reasons.items()))
    return captions, len(reasons)


# --- table --------------------------------------------------------------------------------------


def comparison(
    checkpoints: Sequence[str], measured: Sequence[dict], written: Sequence[Written],
    searches: Sequence[Search], scoring: Scoring,
) -> dict:
    """What ``compare`` prints: the scores of each captioner, and the CIDEr of each but the first
    minus the first's, with its interval by the paired bootstrap."""
    rows = [{"name": one.name, "checkpoint": str(checkpoint), "search": asdict(search),
             **{key: result[key] for key in ("metrics", "intervals_95")}}
            for checkpoint, result, one, search in zip(checkpoints, measured, written, searches,
                                                       strict=True)]
    first = written[0].scores["CIDEr"]
    for row, one in zip(rows[1:], written[1:], strict=True):
        own = one.scores["CIDEr"]
        gap, interval = paired.difference(own, first, scoring.bootstrap, scoring.seed)
        row["minus_first"] = {"CIDEr": gap, "CIDEr_95": interval,
                              "higher_on": int((own > first).sum()),
                              "lower_on": int((own < first).sum())}
    shared = ("images", "tokenizer", "bootstrap", "clipscore")
    return {"captioners": rows, **{key: measured[0][key] for key in shared if key in measured[0]}}


def comparison_table(result: dict) -> str:
    """The table of ``compared.md``, and how it was made."""
    metrics = [metric for metric in SHOWN if metric in result["captioners"][0]["metrics"]]
    rows = []
    for row in result["captioners"]:
        gap = row.get("minus_first")
        rows.append([
            row["name"],
            *("{:.3f} ({:.3f} - {:.3f})".format(row["metrics"][metric],
                                                *row["intervals_95"][metric])
              for metric in metrics),
            *(["{:+.3f} ({:+.3f} to {:+.3f})".format(gap["CIDEr"], *gap["CIDEr_95"]),
               gap["higher_on"], gap["lower_on"]] if gap else [""] * 3)])
    first = result["captioners"][0]["name"]
    shown = beams(result["captioners"][0]["search"]["beams"])
    notes = [f"{result['images']:,} photos, {shown}. The intervals are of "
             f"{result['bootstrap']['resamples']:,} resamples of the photos; those of the "
             "difference are paired: a difference whose interval does not contain 0 is more than "
             "chance explains.", *reranked(result),
             *(f"{line}." for line in about_clipscore(result))]
    header = ["captioner", *(f"{metric} (95 %)" for metric in metrics),
              f"CIDEr minus that of {first} (95 %)", "photos with a higher CIDEr",
              "with a lower one"]
    return markdown_table(header, rows) + "\n" + "\n".join(notes) + "\n"


def reranked(result: dict) -> list[str]:
    """A sentence that names the captioners whose captions a CLIP has ranked again, if any."""
    weights = {row["name"]: row["search"]["rerank"] for row in result["captioners"]
               if row["search"]["rerank"]}
    named = ", ".join(f"{name} ({weight:g})" for name, weight in weights.items())
    return [f"--rerank is not 0 for {named}."] if weights else []


def write_rows(paths: Sequence[Path], written: Sequence[Written], file: Path) -> None:
    """A row for each photo: the captioners' captions with their scores, and how far CIDEr differs.
    """
    metrics = [metric for metric in SHOWN if metric in written[0].scores]
    spread = spread_of(written)
    write_csv(file, ["filename", *(f"{one.name} {column}" for one in written
                                   for column in (*metrics, "caption")), "CIDEr spread"],
              ([path.name, *(value for one in written for value in (
                  *(f"{one.scores[metric][photo]:.4f}" for metric in metrics),
                  one.captions[photo])), f"{spread[photo]:.4f}"]
               for photo, path in enumerate(paths)))


# --- sheet --------------------------------------------------------------------------------------


def spread_of(written: Sequence[Written]) -> np.ndarray:
    """(N,) the highest minus the lowest CIDEr of each photo."""
    return np.ptp([one.scores["CIDEr"] for one in written], axis=0)


def write_sheet(
    paths: Sequence[Path], references: Sequence[Sequence[str]], written: Sequence[Written],
    count: int, what: str, search: str, file: Path,
) -> None:
    """Draw the ``count`` photos with the largest spread of CIDEr, the largest first; ``what`` names
    those that wrote the captions (captioners, methods), ``search`` how."""
    chosen = np.argsort(-spread_of(written), kind="stable")[:count].tolist()
    metrics = [metric for metric in SHOWN if metric in written[0].scores]
    cards = [Card(paths[photo].name, load_image(paths[photo], (480, 480)), references[photo],
                  [one.captions[photo] for one in written],
                  [{metric: float(one.scores[metric][photo]) for metric in metrics}
                   for one in written]) for photo in chosen]
    which = (f"The {len(chosen)} of {len(paths):,} photos on which the {what} differ most"
             if len(chosen) < len(paths) else
             f"All {len(paths)} photos, first those on which the {what} differ most")
    caption_sheet(cards, [one.name for one in written],
                  [which, f"Search: {search}. The references are grey. Photos are in the order of "
                          "the difference between their highest CIDEr (bold) and their lowest."],
                  file)
    warn(f"wrote {file}")


def beams(count: int) -> str:
    """"5 beams"."""
    return "greedy search" if count == 1 else f"{count} beams"
