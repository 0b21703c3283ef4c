"""What a report is about: photos, captions and checkpoints; the project's own where none are given.

Needs no torch to import.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from utils import UserError

from safetensors import SafetensorError, safe_open

from ckpt import registry
from data.boxes import boxes_of
from data.captions import captioned_images
from data.folders import spread
from data.labels import read_classes
from data.photos import image_paths, list_images

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"
# Sample photos whose class is known, under names that begin with it, as the scripts read them.
BREEDS = {"Egyptian_Mau_1.jpg": "egyptian_mau.jpg", "Persian_1.jpg": "persian.jpg",
          "Siamese_1.jpg": "siamese.jpg"}
SCENES = {f"{label}_{name}.jpg": f"scenes/{name}.jpg" for label, name in enumerate(
    ("astronaut", "dog", "horses", "photographer", "sheep"))}
SCENE_CAPTIONS = SAMPLES / "scenes" / "captions.json"
KINDS = {"classifier": "p1", "captioner": "p2", "peft": "p2_peft", "clip": "clip"}
TEMPLATES = ("This is a photo of {object}", "This is a {object} image.", "No {object}, no score.",
             "a photo of a {object}")  # the three of the course's report, and that of hw3_1.sh
SMALL = "small"  # in place of a sweep's folder: run a small one


@dataclass(frozen=True)
class Photos:
    """A folder of photos, with a file that says what they show."""

    folder: Path
    truth: Path | None  # labels (CSV) of problem 1 and zero-shot, references (JSON) of captions
    names: Path | None  # id2label.json of zero-shot
    shown: tuple[Path, ...]  # those that figures are made of
    option: str  # that names the folder
    sample: bool  # whether it is the project's own
    boxes: Path | None = None  # of the things in the photos

    @property
    def about(self) -> str:
        """A sentence that says which photos these are."""
        if self.sample:
            return (f"Computed on the project's few sample photos; {self.option} puts your own "
                    "here.")
        return f"Computed on the photos in {self.folder}."


@dataclass(frozen=True)
class Inputs:
    out: Path
    breeds: Photos  # problem 1
    scenes: Photos  # zero-shot
    captioned: Photos  # problem 2 and PEFT
    train: Path | None  # photos to train a sweep on
    sweep: Path | str | None  # the folder of a sweep, or SMALL
    sweep_weights: Path | None
    compared: Path | None  # the folder of a comparison of PEFT methods
    checkpoints: dict[str, list[str]]  # of each kind
    ensemble: bool  # whether the classifiers are one ensemble, the default of problem 1
    decoder: tuple[str, ...]  # words that name the GPT-2 under the PEFT files
    own_clip: bool  # whether the user has named the CLIP, which CLIPScore then uses too
    templates: tuple[str, ...]
    run: tuple[str, ...]  # words of the options that every command gets, --limit apart
    limit: tuple[str, ...]  # words of --limit

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Inputs:
        """The options of hw3_report.sh; UserError for what does not exist or does not fit."""
        out = Path(args.output).absolute()
        own = sort_checkpoints(args.checkpoint)
        defaults = {kind: [_place(str(path)) for path in registry.members(key)]
                    for kind, key in KINDS.items()}
        return cls(
            out=out,
            breeds=_photos(args.p1_val or out / "samples" / "breeds", BREEDS, "--p1-val DIR",
                           not args.p1_val, args.p1_labels, None, args.p1_show, args.show,
                           args.p1_boxes),
            scenes=_photos(args.clip_val or out / "samples" / "scenes", SCENES,
                           "--clip-val DIR with --labels JSON", not args.clip_val, args.clip_truth,
                           args.labels or SAMPLES / "scenes" / "id2label.json", None, args.show),
            captioned=_photos(args.p2_val or SAMPLES / "scenes", None,
                              "--p2-val DIR with --captions JSON", not args.p2_val,
                              args.captions if args.p2_val else SCENE_CAPTIONS, None, args.p2_show,
                              args.show, args.p2_boxes),
            train=_folder(args.p1_train), sweep=_sweep(args.sweep),
            sweep_weights=args.sweep_weights and _file(args.sweep_weights),
            compared=args.compared and _table(args.compared, "compared.csv",
                                              "peft_caption.py compare"),
            checkpoints=defaults | own, ensemble="classifier" not in own,
            decoder=("--decoder", str(_file(args.decoder))) if args.decoder else (),
            own_clip="clip" in own,
            templates=tuple(args.template), run=_run_words(args),
            limit=("--limit", str(args.limit)) if args.limit else ())


# --- photos -------------------------------------------------------------------------------------


def _photos(
    folder, samples, option, sample, truth, names, shown, count, boxes=None
) -> Photos:
    """The photos of one problem, checked; sample photos are copied under their classes' names."""
    folder = Path(folder).absolute()
    if sample and samples:
        folder.mkdir(parents=True, exist_ok=True)
        for name, source in samples.items():
            shutil.copy2(SAMPLES / source, folder / name)  # keeps its time, so nothing runs again
    inside = list_images(folder) if boxes or not shown else []
    paths = image_paths(shown) if shown else spread(inside, count)
    if names:
        read_classes(names)
    if truth and names is None and str(truth).lower().endswith(".json"):
        captioned_images(folder, truth)
    if boxes:
        boxes_of(inside, boxes)
    return Photos(folder, truth and _file(truth), names and _file(names),
                  tuple(path.absolute() for path in paths), option, sample,
                  boxes and _file(boxes))


def _file(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise UserError(f"the file {path} does not exist")
    return Path(path).absolute()


def _folder(path: str | None) -> Path | None:
    if path is not None:
        list_images(path)
    return path and Path(path).absolute()


def _table(folder: str, name: str, command: str) -> Path:
    if not (Path(folder) / name).is_file():
        raise UserError(f"{folder} has no {name}; give the --out of {command}")
    return Path(folder).absolute()


def _sweep(value: str | None) -> Path | str | None:
    if value in (None, SMALL):
        return value
    return _table(value, "sweep.csv", f"p1_vit_classify.py sweep, or the word {SMALL}")


# --- checkpoints and options --------------------------------------------------------------------


def sort_checkpoints(words: Iterable[str]) -> dict[str, list[str]]:
    """``--checkpoint FILE | KIND=FILE|NAME …`` -> the checkpoints of each kind, in their order.

    A file of this project says of which kind it is; for another's the word before = does.
    """
    found: dict[str, list[str]] = {}
    for word in words:
        kind, equals, source = word.partition("=")
        if not (equals and kind in KINDS):
            kind, source = kind_of(word), word
        place, others = _place(source), found.setdefault(kind, [])
        if place in others:
            raise UserError(f"--checkpoint names {source} twice; give each model once")
        others.append(place)
    return found


def _place(source: str) -> str:
    """A file's absolute path, since commands are run in the project's folder; any other name, such
    as one on the hub, as it is."""
    return os.path.abspath(source) if os.path.exists(source) else source


def kind_of(path: str) -> str:
    """The kind of a checkpoint of this project; UserError for any other file."""
    remedy = f"; write {'|'.join(KINDS)} and = before a model of another program"
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path} does not exist{remedy}")
    try:
        with safe_open(path, framework="numpy") as file:
            kind = json.loads((file.metadata() or {}).get("checkpoint", "{}")).get("kind")
    except (SafetensorError, OSError, ValueError, AttributeError):
        kind = None
    if kind not in KINDS:
        raise UserError(f"{path} is no {', '.join(KINDS)} of this project{remedy}")
    return kind


def _run_words(args: argparse.Namespace) -> tuple[str, ...]:
    """The options that were given, as they are typed behind each command."""
    words: list[str] = []
    for option in ("device", "precision", "batch_size", "seed"):
        value = getattr(args, option)
        if value not in ("auto", None, 0):
            words += [f"--{option.replace('_', '-')}", str(value)]
    return tuple(words)
