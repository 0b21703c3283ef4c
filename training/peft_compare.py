"""The comparison of PEFT methods that are trained alike (docs/peft.md)."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from utils import UserError, printable, read_json, warn, write_json

import numpy as np

from data.captions import captioned_images
from data.compute import Compute
from data.files import check_outputs, read_csv
from data.photos import check_images, load_image
from data.tables import Gap, decimals, thousands, write_table
from figures import charts, page
from inference.caption import caption_features, patch_features
from inference.caption_compare import SHEET, Written, write_sheet
from inference.peft import BaseSource
from inference.scoring import ClipScorer, Scoring, default_clip, measure, write_per_image
from metrics.paired import difference
from models.captioner import Captioner
from models.checkpoint import digest, read_tensors
from models.decoding import Search
from models.peft import count_parts, load_peft
from training.caption import photos_from
from training.loop import Diverged
from training.peft import insert_from, method_from, recipe_from, train_over, training_base
from training.peft_settings import Row, comparison_rows
from training.recipe import CaptionOptions

BEAMS = {"greedy": 1, "beam 3": 3}
NOTE = ('"Against the best" is the difference from the highest CIDEr with {search} on the same '
        'photos, or "none" where its 95 % interval (paired bootstrap) contains 0.')


@dataclass(frozen=True)
class EvaluationSet:
    """The photos that the table is about, and how captions of them are written and scored."""

    paths: Sequence[Path]
    features: np.ndarray  # (images, patches, width), a memory-mapped file
    references: Sequence[Sequence[str]]
    searches: dict[str, Search]
    scoring: Scoring
    clip_scorer: ClipScorer | None

    def identity(self) -> dict:
        """What the scores of a checkpoint follow from, beside its tensors."""
        return {"photos": Path(self.features.filename).stem,
                "references": hashlib.sha256(json.dumps(self.references).encode()).hexdigest(),
                "bootstrap": self.scoring.bootstrap, "seed": self.scoring.seed,
                "clip": self.clip_scorer and self.clip_scorer.clip.identity,
                "searches": {name: asdict(search) for name, search in self.searches.items()}}


def compare(args: argparse.Namespace) -> None:
    """Train and measure each method of ``peft_caption.py compare``, with each setting; one table
    and one figure."""
    rows = comparison_rows(args)
    methods = [method_from(row.run) for row in rows]
    if args.show and len(rows) < 2:
        raise UserError("--show draws where methods differ; give two or more --methods, or --vary")
    shown = captioned_images(args.eval_images, args.eval_captions, args.limit)
    check_outputs({"--html": args.html, "--out": Path(args.out) / SHEET if args.show else None},
                  {"--images": args.images, "--captions": args.captions,
                   "--eval-images": list(shown), "--eval-captions": args.eval_captions,
                   "--base": args.base, "--clip": args.clip})
    images, val = photos_from(args)
    check_images(list(shown))
    recipes = [recipe_from(row.run) for row in rows]
    base = training_base(args)
    for row, method in zip(rows, methods, strict=True):
        insert_from(base, method, row.run)  # what is too large, or does not fit, is refused here
    compute = recipes[0].compute
    evaluation = evaluation_set(base, shown, compute, args)
    base_words = BaseSource.from_args(args).words()
    histories, results, done, diverged = {}, {}, [], []
    for number, (row, method, recipe) in enumerate(zip(rows, methods, recipes, strict=True), 1):
        warn(f"training {number} of {len(rows)}: {row.title}")
        try:
            histories[row.title] = train_over(base, method, images, val, recipe, row.run)
        except Diverged as error:  # a result, not a reason to stop
            warn(f"{row.title}: {error}")
            diverged.append(row.title)
        else:
            done.append(row)
            results[row.title] = measure_run(Path(row.run.out), method.name, base, base_words,
                                             evaluation, compute)
        if done:
            write_comparison(done, diverged, histories, results, evaluation.scoring,
                             Path(args.out))
    if not done:
        raise UserError("every training diverged; give a lower --lr")
    if args.show:
        write_comparison_sheet(args.show, done, evaluation, Path(args.out) / SHEET)
    if args.html:
        write_comparison_page(args.html, done, results, evaluation)
    warn(f"wrote compared.md, compared.csv and curves.png into {args.out}")


def evaluation_set(
    base: Captioner, photos: dict[Path, list[str]], compute: Compute, args: argparse.Namespace
) -> EvaluationSet:
    """``photos``, each with its references, scored as the options of ``compare`` say."""
    scoring, search = Scoring.from_args(args, args.clip or default_clip()), Search.from_args(args)
    folder = CaptionOptions.from_args(args).features
    return EvaluationSet(
        paths=list(photos),
        features=patch_features(base, list(photos), compute, folder),
        references=list(photos.values()),
        searches={name: replace(search, beams=beams) for name, beams in BEAMS.items()},
        scoring=scoring, clip_scorer=scoring.clip_scorer(scoring.open_clip(), list(photos)))


def measure_run(
    run: Path, method: str, base: Captioner, base_words: str, evaluation: EvaluationSet,
    compute: Compute,
) -> dict:
    """The scores of the best epoch in the folder ``run``. They are kept in its result.json, and
    those of each photo in ``per_image_file``, and read from there as long as nothing that they
    follow from has changed."""
    best, kept = run / "best.safetensors", run / "result.json"
    tensors = read_tensors(best)[0]
    follows_from = {"trained": digest(tensors)} | evaluation.identity()
    each_photo = {name: per_image_file(run, search.beams)
                  for name, search in evaluation.searches.items()}
    if (all(file.is_file() for file in [kept, *each_photo.values()])
            and read_json(kept).get("follows_from") == follows_from):
        return read_json(kept)
    captioner = load_peft(best, base, base_words, method).to(compute.device)
    result = {"trained_parameters": sum(count_parts(tensors).values()),
              "bytes": best.stat().st_size}
    for name, search in evaluation.searches.items():
        captions = caption_features(captioner, evaluation.features, search, compute)
        result[name], each = measure(captions, evaluation.references, evaluation.scoring,
                                     evaluation.clip_scorer)
        write_per_image(each_photo[name], [path.name for path in evaluation.paths], each, captions)
    write_json(result | {"follows_from": follows_from}, kept)
    return result


def per_image_file(run: Path, beams: int) -> Path:
    """The table of each photo's caption and its scores."""
    return run / f"per_image_beam{beams}.csv"


def write_comparison(
    rows: Sequence[Row], diverged: Sequence[str], histories: dict[str, list[dict]],
    results: dict[str, dict], scoring: Scoring, out: Path,
) -> None:
    """The rows that are done: compared.md, which also names those that ``diverged``, compared.csv
    and the curves by epoch. ``histories`` and ``results`` are those of each row by its title."""
    scores = {f"{metric}, {search}": (metric, search) for metric in ("CIDEr", "CLIPScore")
              for search in BEAMS if metric in results[rows[0].title][search]["metrics"]}
    columns = {"method": str} | {key: str for row in rows for key in row.options} | {
        "trained parameters": thousands, "file (MB)": "{:.2f}".format,
        "seconds an epoch": "{:.0f}".format, "best epoch": str}
    for title in scores:
        columns |= {title: decimals, f"{title}, 95 %": decimals}
    cells = []
    for row, gap in zip(rows, gaps(rows, results, scoring), strict=True):
        result, history = results[row.title], histories[row.title]
        cells.append({
            "method": row.method, **row.options,
            "trained parameters": result["trained_parameters"], "file (MB)": result["bytes"] / 1e6,
            "seconds an epoch": median(epoch["seconds"] for epoch in history),
            "best epoch": max(history, key=lambda epoch: epoch["val_CIDEr"])["epoch"],
            "against the best": gap})
        for title, (metric, search) in scores.items():
            cells[-1] |= {title: result[search]["metrics"][metric],
                          f"{title}, 95 %": result[search]["intervals_95"][metric]}
    write_table(out / "compared.csv", out / "compared.md", columns | {"against the best": decimals},
                cells, "\n\n".join([NOTE.format(search=widest()), *(
                    f"{title}: the training diverged." for title in diverged)]))
    charts.caption_curves(histories, out / "curves.png")


def widest() -> str:
    """The name of the search with the most beams."""
    return max(BEAMS, key=BEAMS.get)


def gaps(rows: Sequence[Row], results: dict[str, dict], scoring: Scoring) -> list[Gap]:
    """How far each row's CIDEr with the widest search is from the best one's, photo by photo."""
    search = widest()
    best = max(rows, key=lambda row: results[row.title][search]["metrics"]["CIDEr"])
    each = [np.array([float(image["CIDEr"]) for image in read_csv(
        per_image_file(Path(row.run.out), BEAMS[search]), "CIDEr")]) for row in rows]
    found = []
    for scores in each:
        gap, (low, high) = difference(scores, each[rows.index(best)], scoring.bootstrap,
                                      scoring.seed)
        found.append(Gap(gap, not low <= 0 <= high))
    return found


def written_captions(
    rows: Sequence[Row], evaluation: EvaluationSet,
) -> tuple[str, Sequence[str], list[list[dict[str, str]]]]:
    """(the search with the most beams, metrics, for each row the photos' values of these and its
    captions), read from the files of ``measure_run``."""
    search = widest()
    metrics = ("CIDEr", "CLIPScore") if evaluation.clip_scorer else ("CIDEr",)
    return search, metrics, [read_csv(
        per_image_file(Path(row.run.out), BEAMS[search]), *metrics, "caption") for row in rows]


def write_comparison_sheet(
    count: int, rows: Sequence[Row], evaluation: EvaluationSet, file: Path
) -> None:
    """The figure of the ``count`` photos on which the methods' captions differ most."""
    search, metrics, tables = written_captions(rows, evaluation)
    written = [Written(row.title, [image["caption"] for image in table],
                       {metric: np.array([float(image[metric]) for image in table])
                        for metric in metrics})
               for row, table in zip(rows, tables, strict=True)]
    write_sheet(evaluation.paths, evaluation.references, written, count, "methods", search, file)


def write_comparison_page(
    file: str | Path, rows: Sequence[Row], results: dict[str, dict], evaluation: EvaluationSet
) -> None:
    """The page ``file``: each photo with its references and every method's caption."""
    search, shown, tables = written_captions(rows, evaluation)
    about = {"title": "What each method writes about a photo", "truth": "references",
             "total": "mean CIDEr",
             "lead": f"{len(evaluation.paths):,} photos with the captions of {len(results)} "
                     f"methods, written with {search}.",
             "notes": "CIDEr of a single photo depends on few references: read it beside the "
                      "photo. 95 % intervals that overlap do not tell two methods apart.",
             "methods": [{"name": method, "note": _with_interval(result[search])}
                         for method, result in results.items()]}
    with page.html_page(file, "table", about) as add:
        for path, references, *answers in zip(evaluation.paths, evaluation.references, *tables,
                                              strict=True):
            scores = [float(answer["CIDEr"]) for answer in answers]
            mean = sum(scores) / len(scores)
            entry = {"name": printable(path.name), "truth": list(references), "total": mean,
                     "totalText": f"{mean:.2f}",
                     "answers": [{"text": answer["caption"], "score": score, "note": ", ".join(
                         f"{metric} {float(answer[metric]):.2f}" for metric in shown)}
                         for answer, score in zip(answers, scores, strict=True)]}
            photo = load_image(path, (192, 192))
            add(entry, {"photo": page.small_picture(photo, len(evaluation.paths))})


def _with_interval(result: dict) -> str:
    low, high = result["intervals_95"]["CIDEr"]
    return f"CIDEr {result['metrics']['CIDEr']:.3f} ({low:.3f} - {high:.3f})"
