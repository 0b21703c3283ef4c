"""Scores of captions: the metrics of the COCO caption toolkit, and CLIPScore.

Needs no torch to import, and none to score captions without CLIPScore.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils import UserError

import numpy as np

from ckpt import registry
from data.compute import Compute
from data.files import write_csv
from inference.options import BATCH_SIZES
from metrics.captions import NAMES, score_captions
from metrics.clipscore import WEIGHT, clipscore, mean_interval

if TYPE_CHECKING:
    from data.batches import Unreadable
    from models.captioner import Captioner
    from models.clip import Clip
    from models.decoding import Search

TOKENIZER = "PTB (equal to Stanford CoreNLP 3.4.1's, lower-cased, punctuation dropped)"
RECORDED = ("metrics", "intervals_95", "images", "search", "precision", "clipscore")


# --- CLIPScore ----------------------------------------------------------------------------------


class ClipScorer:
    """Gives captions of the photos ``paths`` their CLIPScore (Hessel et al. 2021).

    The photos are encoded once. ``clip`` is on ``compute.device``; ``prefix`` is put before each
    caption. Names photos that cannot be read on stderr; UserError where none can be read.
    """

    def __init__(
        self, clip: Clip, paths: Sequence[Path], compute: Compute, prefix: str = ""
    ) -> None:
        from data.photos import report_unreadable
        from inference.clip import image_features

        self.clip, self.prefix, self.count = clip, prefix, len(paths)
        readable, self.features, self.unreadable = image_features(clip, paths, compute, "CLIPScore")
        report_unreadable(readable, self.unreadable)
        places = {path: place for place, path in enumerate(paths)}
        self.rows = [places[path] for path in readable]

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """The score of each photo's caption (N,), nan where the photo cannot be read."""
        scores = np.full(self.count, np.nan)
        scores[self.rows] = clipscore(
            self.features, [captions[row] for row in self.rows],
            lambda texts: self.clip.encode_text(texts).cpu().numpy(), self.prefix)
        return scores

    @property
    def about(self) -> dict:
        """What must be known to compare these scores with others."""
        return about_clipscore(self.clip, self.prefix)


def caption_scores(
    clip: Clip, paths: Sequence[Path], captions: Sequence[str], compute: Compute, prefix: str
) -> tuple[np.ndarray, Unreadable]:
    """(CLIPScore of each photo's caption (N,), nan where the photo is unreadable, those photos)."""
    scorer = ClipScorer(clip, paths, compute, prefix)
    return scorer(captions), scorer.unreadable


def about_clipscore(clip: Clip, prefix: str) -> dict:
    """What must be known to compare CLIPScores with others: the CLIP, the weight, the prefix."""
    published = Path(clip.name).name == "clip-vit-base-patch32"
    name = Path(clip.name).name if Path(clip.name).is_file() else clip.name
    return {"model": name, "weight": WEIGHT, "prefix": prefix,
            "comparable": "to ViT-B/32's CLIPScores with this prefix" if published else
                          "among captions scored by this model; not comparable to ViT-B/32's"}


# --- all metrics --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scoring:
    """How captions are scored."""

    clip: str | Path | None = None  # what CLIPScore is computed with; None: no CLIPScore
    compute: Compute | None = None  # of the CLIP
    clip_prefix: str = ""  # put before each caption for CLIPScore
    bootstrap: int = 0  # resamples of the images behind the 95 % intervals; 0: no intervals
    seed: int = 0  # of the resamples

    @classmethod
    def from_args(cls, args: argparse.Namespace, clip: str | Path | None) -> Scoring:
        """The options of a command line; without --clip-prefix there is none."""
        return cls(clip, clip and Compute.from_args(args, BATCH_SIZES["clip"]),
                   getattr(args, "clip_prefix", None) or "", args.bootstrap or 0, args.seed)

    def open_clip(self) -> Clip | None:
        """The CLIP on its device."""
        if self.clip is None:
            return None
        from models.clip import open_clip

        return open_clip(self.clip).to(self.compute.device)

    def clip_scorer(self, clip: Clip | None, paths: Sequence[Path]) -> ClipScorer | None:
        """What gives captions of ``paths`` their CLIPScore."""
        return clip and ClipScorer(clip, paths, self.compute, self.clip_prefix)


def default_clip() -> Path | None:
    """The shipped CLIP; None where its file is missing."""
    return registry.CLIP if registry.CLIP.is_file() else None


def measure(
    captions: Sequence[str], references: Sequence[Sequence[str]], scoring: Scoring,
    clip_scorer: ClipScorer | None = None,
) -> tuple[dict, dict[str, np.ndarray]]:
    """(the metrics of N captions as eval and score print them, each metric's values (N,)).

    Raises UserError for fewer than two images, on which CIDEr is not defined.
    """
    try:
        overall, intervals, per_image = score_captions(captions, references, scoring.bootstrap,
                                                       scoring.seed)
    except ValueError as error:
        raise UserError(str(error)) from None
    each = dict(zip(NAMES, per_image.T, strict=True))
    result = {"metrics": overall, "images": len(captions), "tokenizer": TOKENIZER}
    if scoring.bootstrap:
        result["intervals_95"] = intervals
        result["bootstrap"] = {"resamples": scoring.bootstrap, "seed": scoring.seed}
    if clip_scorer:
        each["CLIPScore"] = clip_scorer(captions)
        known = each["CLIPScore"][clip_scorer.rows]
        overall["CLIPScore"] = float(known.mean())
        if scoring.bootstrap:
            intervals["CLIPScore"] = mean_interval(known, scoring.bootstrap, scoring.seed)
        result["clipscore"] = clip_scorer.about | {"images": len(known)}
    return result, each


def evaluate_captioner(
    captioner: Captioner, images: dict[Path, list[str]], search: Search, compute: Compute,
    scoring: Scoring, per_image: str | Path | None = None,
) -> tuple[dict, list[str]]:
    """(what eval prints of a captioner on ``images``, each photo with its references, the captions
    of the readable photos); each image's scores go to the CSV file ``per_image``."""
    from data.photos import report_unreadable
    from inference.caption import caption_images

    clip = scoring.open_clip()  # before the work, so that a wrong --clip is an error at once
    readable, captions, unreadable = caption_images(captioner, list(images), search, compute)
    report_unreadable(readable, unreadable)
    result, each = measure(captions, [images[path] for path in readable], scoring,
                           scoring.clip_scorer(clip, readable))
    if per_image:
        write_per_image(per_image, [path.name for path in readable], each, captions)
    return result | {"search": asdict(search), "device": compute.device,
                     "precision": compute.precision, "unreadable": len(unreadable)}, captions


def write_per_image(
    path: str | Path, names: Sequence[str], each: dict[str, np.ndarray], captions: Sequence[str]
) -> None:
    """A CSV with each image's scores and caption."""
    rows = np.column_stack(list(each.values())).tolist()
    write_csv(path, ["filename", *each, "caption"],
              [[name, *map(repr, row), caption]
               for name, row, caption in zip(names, rows, captions, strict=True)])


def record_scores(checkpoint: str | Path, data_name: str, result: dict) -> None:
    """Write what ``evaluate_captioner`` measured on ``data_name`` into the checkpoint."""
    from models.checkpoint import record_result

    record_result(checkpoint, data_name, result, RECORDED)
