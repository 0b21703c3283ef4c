"""Scores of captions: the toolkit's metrics and CLIPScore."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils import (
    UserError,
)

import numpy as np

from inference.clip import Unreadable, image_features, prepare_clip
from metrics.captions import score_captions
from metrics.clipscore import WEIGHT, clipscore, mean_interval
from models.clip import Clip

# --- captions and class names -------------------------------------------------------------------


def caption_scores(
    clip: Clip, paths: Sequence[Path], captions: Sequence[str], args, prefix: str
) -> tuple[np.ndarray, Unreadable]:
    """CLIPScore of each photo's caption (N,), nan where the photo cannot be read; and which."""
    readable, features, unreadable = image_features(clip, paths, args, "CLIPScore")
    places = {path: place for place, path in enumerate(paths)}
    rows = [places[path] for path in readable]
    scores = np.full(len(paths), np.nan)
    if rows:
        scores[rows] = clipscore(features, [captions[row] for row in rows],
                                 lambda texts: clip.encode_text(texts).cpu().numpy(), prefix)
    return scores, unreadable


def about_clipscore(clip: Clip, prefix: str) -> dict:
    """What must stand beside a CLIPScore."""
    published = Path(clip.name).name == "clip-vit-base-patch32"
    name = Path(clip.name).name if Path(clip.name).is_file() else clip.name
    return {"model": name, "weight": WEIGHT, "prefix": prefix,
            "comparable": "to ViT-B/32's CLIPScores with this prefix" if published else
                          "among captions judged by this model; not comparable to ViT-B/32's"}


# --- measuring ----------------------------------------------------------------------------------


class Judge:
    """Gives captions of ``paths`` their CLIPScore, by --clip or the CLIP that ships; the photos are
    encoded once."""

    def __init__(self, source: str | Path, paths: list[Path], args) -> None:
        from inference.clip import image_features
        from inference.scoring import about_clipscore

        self.clip = prepare_clip(source, args)
        self.photos = image_features(self.clip, paths, args, "CLIPScore")[1]
        self.about = about_clipscore(self.clip, prefix="")

    def scores(self, texts: list[str]) -> np.ndarray:
        return clipscore(self.photos, texts, prefix="", encode_text=lambda part:
                         self.clip.encode_text(part).cpu().numpy())


def measure(texts: list[str], references: list[list[str]], args, judge: Judge | None) -> dict:
    """The metrics of captions and their 95 % intervals, CLIPScore where there is a judge."""
    try:
        scores, intervals, _ = score_captions(texts, references, args.bootstrap, args.seed)
    except ValueError as error:
        raise UserError(str(error)) from None
    if judge:
        each = judge.scores(texts)
        scores["CLIPScore"] = float(each.mean())
        intervals["CLIPScore"] = mean_interval(each, args.bootstrap, args.seed)
    return {"metrics": scores, "intervals_95": intervals}
