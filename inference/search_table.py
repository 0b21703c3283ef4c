"""One captioner with several searches, as a table: ``p2_caption.py eval --vary``.

Needs no torch to import, so that a wrong setting is reported at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from utils import EXIT_SOME_UNREADABLE, UserError, warn

import numpy as np

from data.batches import Unreadable, all_rows, photo_rows
from data.captions import captioned_images, read_texts
from data.compute import Compute
from data.files import check_outputs
from data.photos import report_unreadable
from data.tables import Columns, Gap, decimals, for_terminal, percent, thousands, write_table
from inference.options import BATCH_SIZES, SEARCH_KEYS, add_search_options, complete_rerank
from inference.results import of_searches, write_result
from inference.scoring import Scoring, default_clip, measure, write_per_image
from inference.settings import (
    Options,
    combinations,
    folder_of,
    refuse_other_keys,
    title_of,
    with_setting,
)
from metrics.captions import describe
from metrics.paired import difference

if TYPE_CHECKING:
    from models.captioner import Captioner
    from models.decoding import Search

PROG = "p2_caption.py eval"
RESAMPLES = 1000  # behind the intervals where --bootstrap gives no other number
NOTE = ('"Against the best" is the difference from the highest CIDEr on the same photos, or "none" '
        "where its 95 % interval (paired bootstrap) contains 0.")


@dataclass(frozen=True)
class Measured:
    """What a search reaches: its options, its metrics as ``measure`` gives them, CIDEr of each
    photo (N,), and what its captions read like."""

    options: Options
    scores: dict
    cider: np.ndarray
    reads: dict


def compare_searches(args: argparse.Namespace) -> int:
    """Score one captioner with each combination of ``args.vary``; returns the exit status.

    The captioner is opened once and each photo is encoded once. ``args`` are those of
    ``p2_caption.py eval``, completed.
    """
    settings = read_searches(args)
    images = captioned_images(args.images, args.captions, args.limit)
    training = read_texts(args.train_captions) if args.train_captions else None
    out = Path(args.out)
    each_file = [out / f"{folder_of(options)}.csv" for options, _ in settings]
    check_outputs({"--json": args.json, "--out": [out / "varied.csv", out / "varied.md",
                                                  *each_file]},
                  {"--images": list(images), "--captions": args.captions,
                   "--train-captions": args.train_captions, "--checkpoint": args.checkpoint,
                   "--weights": args.weights, "--vocab": args.vocab, "--clip": args.clip,
                   "--base": args.base, "--decoder": args.decoder,
                   "--rerank-clip": args.rerank_clip})
    from inference.caption import open_captioner
    from models.decoding import Search

    compute = Compute.from_args(args, BATCH_SIZES["captioner"])
    scoring = Scoring.from_args(args, args.clip or default_clip())
    scoring = replace(scoring, bootstrap=scoring.bootstrap or RESAMPLES)
    most = max(settings, key=lambda setting: setting[1].rerank)[1]  # whose judge all can use
    clip, captioner = scoring.open_clip(), open_captioner(most, compute)
    searches = [Search.from_args(given) for _, given in settings]
    readable, captions, unreadable = captions_of_each(captioner, list(images), searches, compute)
    report_unreadable(readable, unreadable)
    references = [images[path] for path in readable]
    clip_scorer = scoring.clip_scorer(clip, readable)
    done = []
    for (options, _), texts, file in zip(settings, captions, each_file, strict=True):
        scores, each = measure(texts, references, scoring, clip_scorer)
        write_per_image(file, [path.name for path in readable], each, texts)
        done.append(Measured(options, scores, each["CIDEr"], describe(texts, training)))
    best = max(done, key=lambda row: row.scores["metrics"]["CIDEr"])
    columns, rows = search_table(done, best, scoring)
    write_table(out / "varied.csv", out / "varied.md", columns, rows, NOTE)
    warn(f"wrote {out / 'varied.md'}")
    result = about_searches(done, searches, best) | {
        "captions": args.captions, "checkpoint": args.weights if args.model else args.checkpoint,
        "device": compute.device, "precision": compute.precision, "unreadable": len(unreadable)}
    write_result(result, [*for_terminal(columns, rows), *of_searches(result)], args.json)
    return EXIT_SOME_UNREADABLE if unreadable else 0


def read_searches(args: argparse.Namespace) -> list[tuple[Options, argparse.Namespace]]:
    """Each combination of ``args.vary``, and ``args`` with it. UserError or a usage error for one
    that is wrong, and for options of eval that are for a single search."""
    if not args.vary or not args.out:
        raise UserError("--vary KEY=V1,V2 and --out DIR go together: the settings, and where their "
                        "table is written")
    if args.record or args.per_image:
        raise UserError(f"{'--record' if args.record else '--per-image'} is for a single search; "
                        "leave it out with --vary, whose --out gets the scores of each image")
    varied = combinations(args.vary)
    refuse_other_keys(varied, SEARCH_KEYS, "the options of the search")
    add_options = partial(add_search_options, rerank=True)
    searches = [with_setting(args, options, PROG, add_options) for options in varied]
    return list(zip(varied, complete_rerank(*searches), strict=True))


def captions_of_each(
    captioner: Captioner, paths: Sequence[Path], searches: Sequence[Search], compute: Compute
) -> tuple[list[Path], list[list[str]], Unreadable]:
    """(readable paths, for each search their captions, the other files). Each photo is encoded
    once."""
    from inference.caption import encode, write_captions

    captioner.to(compute.device).eval()

    def work(images) -> list[tuple[str, ...]]:
        memory = encode(captioner, images, compute)
        return list(zip(*(write_captions(captioner, memory, search) for search in searches),
                        strict=True))

    blocks = photo_rows(captioner.views, paths, compute, work, "caption")
    readable, rows, unreadable = all_rows(blocks, paths, compute)
    return readable, [list(texts) for texts in zip(*rows, strict=True)], unreadable


def search_table(
    done: Sequence[Measured], best: Measured, scoring: Scoring
) -> tuple[Columns, list[dict]]:
    """The table as ``data.tables`` writes it; differences from ``best`` are paired by photo."""
    columns = {key: str for row in done for key in row.options} | {
        "CIDEr": decimals, "95 % interval": decimals, "against the best": decimals,
        "BLEU-4": decimals, "ROUGE-L": decimals, "CLIPScore": decimals, "CLIPScore, 95 %": decimals,
        "mean words": decimals, "distinct captions": thousands, "broken off": percent,
        "copied from training": percent}
    rows = []
    for row in done:
        metrics, intervals = row.scores["metrics"], row.scores["intervals_95"]
        gap, (low, high) = difference(row.cider, best.cider, scoring.bootstrap, scoring.seed)
        cells = {**row.options, "95 % interval": intervals["CIDEr"],
                 "against the best": Gap(gap, not low <= 0 <= high),
                 **{name: value for name, value in metrics.items() if name in columns},
                 **{name.replace("_", " "): value for name, value in row.reads.items()}}
        if "CLIPScore" in metrics:
            cells["CLIPScore, 95 %"] = intervals["CLIPScore"]
        rows.append(cells)
    return {name: show for name, show in columns.items() if name in rows[0]}, rows


def about_searches(done: Sequence[Measured], searches: Sequence[Search], best: Measured) -> dict:
    """The JSON of ``eval --vary``: what all settings have in common, and the scores of each."""
    each = ("metrics", "intervals_95")
    return {"settings": [{"options": row.options, "search": asdict(search), "reads": row.reads,
                          **{key: row.scores[key] for key in each}}
                         for row, search in zip(done, searches, strict=True)],
            "best": title_of(best.options),
            **{key: value for key, value in best.scores.items() if key not in each}}
