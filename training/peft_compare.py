"""The comparison of PEFT methods that are trained alike (docs/peft.md)."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from utils import UserError, printable, read_json, warn, write_json, write_text

import numpy as np

from data.captions import captioned_images
from data.compute import Compute
from data.files import check_outputs, markdown_table, read_csv, write_csv
from data.photos import check_images, load_image
from figures import charts, page
from inference.caption import caption_features, patch_features
from inference.caption_compare import SHEET, Written, write_sheet
from inference.peft import BaseSource
from inference.scoring import ClipScorer, Scoring, default_clip, measure, write_per_image
from models.captioner import Captioner
from models.checkpoint import digest, read_tensors
from models.decoding import Search
from models.peft import OPTIONS, count_parts, load_peft
from training.caption import photos_from
from training.peft import insert_from, method_from, recipe_from, train_over, training_base
from training.recipe import CaptionOptions

BEAMS = {"greedy": 1, "beam 3": 3}
# Options that ``train`` does not have.
COMPARISON = ("methods", "lr_of", "eval_images", "eval_captions", "clip", "bootstrap", "html",
              "show")


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
    """Train and measure each method of ``peft_caption.py compare``; one table and one figure."""
    runs = [run_arguments(args, name) for name in args.methods]
    methods = [method_from(run) for run in runs]
    if args.show and len(set(args.methods)) < 2:
        raise UserError("--show draws where methods differ; give two or more --methods")
    shown = captioned_images(args.eval_images, args.eval_captions, args.limit)
    check_outputs({"--html": args.html, "--out": Path(args.out) / SHEET if args.show else None},
                  {"--images": args.images, "--captions": args.captions,
                   "--eval-images": list(shown), "--eval-captions": args.eval_captions,
                   "--base": args.base, "--clip": args.clip})
    images, val = photos_from(args)
    check_images(list(shown))
    recipes = [recipe_from(run) for run in runs]
    base = training_base(args)
    for method in methods:  # one that is too large, or does not fit, is refused before any training
        insert_from(base, method, args)
    compute = recipes[0].compute
    evaluation = evaluation_set(base, shown, compute, args)
    base_words = BaseSource.from_args(args).words()
    histories, results = {}, {}
    for run, method, recipe in zip(runs, methods, recipes, strict=True):
        warn(f"method {len(results) + 1} of {len(runs)}: {method.name}")
        histories[method.name] = train_over(base, method, images, val, recipe, run)
        results[method.name] = measure_run(Path(run.out), method.name, base, base_words,
                                           evaluation, compute)
        write_comparison(histories, results, Path(args.out))
    if args.show:
        write_comparison_sheet(args.show, Path(args.out), results, evaluation)
    if args.html:
        write_comparison_page(args.html, Path(args.out), results, evaluation)
    warn(f"wrote compared.md, compared.csv and curves.png into {args.out}")


def run_arguments(args: argparse.Namespace, method: str) -> argparse.Namespace:
    """The arguments of ``train`` for one method of a comparison, as if they were typed: without the
    sizes of other methods. A run that was stopped is resumed."""
    other = {key for options in OPTIONS.values() for key in options} - set(OPTIONS[method])
    own = {key: None if key in other else value for key, value in vars(args).items()
           if key not in COMPARISON}
    return argparse.Namespace(**own | {
        "method": method, "lr": dict(args.lr_of).get(method, args.lr), "resume": True,
        "out": str(Path(args.out) / method),
        "features": CaptionOptions.from_args(args).features})  # one encoding for all methods


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
    histories: dict[str, list[dict]], results: dict[str, dict], out: Path
) -> None:
    """The methods that are done: compared.md, compared.csv and the curves by epoch."""
    columns = [(search, metric) for metric in ("CIDEr", "CLIPScore") for search in BEAMS
               if all(metric in result[search]["metrics"] for result in results.values())]
    header = ["method", "trained parameters", "file (MB)", "seconds an epoch", "best epoch",
              *(f"{metric}, {search} (95 %)" for search, metric in columns)]
    rows = []
    for method, result in results.items():
        best = max(histories[method], key=lambda row: row["val_CIDEr"])
        scores = [(result[search]["metrics"][metric], *result[search]["intervals_95"][metric])
                  for search, metric in columns]
        rows.append([
            method, f"{result['trained_parameters']:,}", f"{result['bytes'] / 1e6:.2f}",
            f"{median(row['seconds'] for row in histories[method]):.0f}", best["epoch"],
            *("{:.3f} ({:.3f} - {:.3f})".format(*score) for score in scores)])
    write_csv(out / "compared.csv", header, rows)
    write_text(out / "compared.md", markdown_table(header, rows))
    charts.caption_curves(histories, out / "curves.png")


def written_captions(
    out: Path, results: dict[str, dict], evaluation: EvaluationSet
) -> tuple[str, Sequence[str], list[list[dict[str, str]]]]:
    """(the search with the most beams, metrics, each method's rows of these and its captions), read
    from the files of ``measure_run``."""
    search, beams = max(BEAMS.items(), key=lambda item: item[1])
    metrics = ("CIDEr", "CLIPScore") if evaluation.clip_scorer else ("CIDEr",)
    return search, metrics, [read_csv(per_image_file(out / method, beams), *metrics, "caption")
                             for method in results]


def write_comparison_sheet(
    count: int, out: Path, results: dict[str, dict], evaluation: EvaluationSet
) -> None:
    """The figure of the ``count`` photos on which the methods' captions differ most."""
    search, metrics, tables = written_captions(out, results, evaluation)
    written = [Written(method, [row["caption"] for row in rows],
                       {metric: np.array([float(row[metric]) for row in rows])
                        for metric in metrics})
               for method, rows in zip(results, tables, strict=True)]
    write_sheet(evaluation.paths, evaluation.references, written, count, "methods", search,
                out / SHEET)


def write_comparison_page(
    file: str | Path, out: Path, results: dict[str, dict], evaluation: EvaluationSet
) -> None:
    """The page ``file``: each photo with its references and every method's caption."""
    search, shown, tables = written_captions(out, results, evaluation)
    about = {"title": "What each method writes about a photo", "truth": "references",
             "total": "mean CIDEr",
             "lead": f"{len(evaluation.paths):,} photos with the captions of {len(results)} "
                     f"methods, written with {search}.",
             "notes": "CIDEr of a single photo depends on few references: read it beside the "
                      "photo. Two methods whose 95 % intervals overlap widely are not told apart.",
             "methods": [{"name": method, "note": _with_interval(result[search])}
                         for method, result in results.items()]}
    with page.html_page(file, "table", about) as add:
        for path, references, *rows in zip(evaluation.paths, evaluation.references, *tables,
                                           strict=True):
            scores = [float(row["CIDEr"]) for row in rows]
            mean = sum(scores) / len(scores)
            entry = {"name": printable(path.name), "truth": list(references), "total": mean,
                     "totalText": f"{mean:.2f}",
                     "answers": [{"text": row["caption"], "score": score, "note": ", ".join(
                         f"{metric} {float(row[metric]):.2f}" for metric in shown)}
                         for row, score in zip(rows, scores, strict=True)]}
            photo = load_image(path, (192, 192))
            add(entry, {"photo": page.small_picture(photo, len(evaluation.paths))})


def _with_interval(result: dict) -> str:
    low, high = result["intervals_95"]["CIDEr"]
    return f"CIDEr {result['metrics']['CIDEr']:.3f} ({low:.3f} - {high:.3f})"
