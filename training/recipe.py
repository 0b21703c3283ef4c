"""How a model is trained: the recipe, what a checkpoint keeps of it, what a resume must repeat.

Needs no torch to import: command lines take their defaults from here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from utils import UserError, warn

from data.compute import Compute, resolve_device, resolve_precision
from data.files import check_outputs

if TYPE_CHECKING:
    from torch.nn import Module

# Where --lr and --weight-decay are not given. AdamW alone decouples its weight decay from the
# gradient (Loshchilov & Hutter 2019): Adam divides a decay in the gradient by the gradient's own
# size, so that 0.05 outweighs what is to be learned. SAM takes the defaults of its base.
OPTIMIZER_DEFAULTS = {
    "adamw": {"lr": 1e-4, "weight_decay": 0.05},
    "adam": {"lr": 1e-4, "weight_decay": 0.0},
    "sgd": {"lr": 1e-2, "weight_decay": 5e-4},
}


@dataclass(frozen=True)
class Recipe:
    """What decides how a model is trained, apart from the model, the data and the loss.

    ``lr`` and ``weight_decay`` that are None become those of the optimizer.
    """

    epochs: int = 10
    batch_size: int = 32  # images in an optimizer step, over all processes and micro-batches
    accumulate: int = 1  # micro-batches that such a step is computed in
    optimizer: str = "adamw"
    sam_base: str = "sgd"
    sam_rho: float = 0.05
    momentum: float = 0.9
    lr: float | None = None
    weight_decay: float | None = None
    schedule: str = "cosine"
    warmup: float = 1.0  # epochs
    clip_norm: float = 1.0  # 0: no clipping
    ema: float = 0.0  # decay a step; 0: none
    seed: int = 0
    workers: int = 2
    device: str = "cpu"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for name, default in OPTIMIZER_DEFAULTS[base_optimizer(self)].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)  # a frozen class allows no assignment

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Recipe:
        """The recipe of a command line; device and precision "auto" become this machine's."""
        device = resolve_device(args.device)
        precision = resolve_precision(args.precision, device)
        given = {field.name: getattr(args, field.name) for field in fields(cls)}
        return cls(**given | {"device": device, "precision": precision})

    @property
    def compute(self) -> Compute:
        """How validation runs a model."""
        return Compute(self.device, self.precision, self.batch_size)


def base_optimizer(recipe: Recipe) -> str:
    """The optimizer that takes the step: under SAM its base."""
    return recipe.sam_base if recipe.optimizer == "sam" else recipe.optimizer


def describe_optimizer(recipe: Recipe) -> str:
    """One line with the optimizer and the numbers that it uses, defaults included."""
    base = base_optimizer(recipe)
    name = f"sam (rho {recipe.sam_rho:g}) over {base}" if recipe.optimizer == "sam" else base
    momentum = f", momentum {recipe.momentum:g}" if base == "sgd" else ""
    return f"optimizer {name}: lr {recipe.lr:g}, weight decay {recipe.weight_decay:g}{momentum}"


def optimizer_defaults(name: str) -> str:
    """The default of ``name`` ("lr", "weight_decay") for each optimizer, for --help."""
    values = [f"{optimizer} {values[name]:g}" for optimizer, values in OPTIMIZER_DEFAULTS.items()]
    return f"{', '.join(values)}; sam: that of --sam-base"


@dataclass(frozen=True)
class CaptionOptions:
    """What decides how a captioner learns from photos, beside the recipe."""

    features: str | Path  # folder in which a frozen encoder's features are kept
    label_smoothing: float
    augment: Sequence[str] = ("none",)
    captions_each: int | None = None  # captions of a photo an epoch, drawn anew; None: all
    objective: str = "xe"  # cross-entropy, or "cider": self-critical training
    samples: int = 5  # captions of a photo that self-critical training draws
    encoder_lr: float = 0.0  # the encoder's learning rate is this times the recipe's; 0 freezes it

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> CaptionOptions:
        """The options of a command line; one that the command does not have keeps its default."""
        given = {field.name: getattr(args, field.name) for field in fields(cls)
                 if hasattr(args, field.name)}
        return cls(**given | {"features": args.features or Path(args.out) / "features"})


# Options that name a file or folder: a checkpoint keeps the name alone, and a resume compares what
# is in it (photos, starting weights), not where it lies.
PATHS = ("train", "images", "captions", "val_captions", "checkpoint", "base", "decoder", "weights",
         "vocab", "labels", "names", "pairs", "wordnet", "name_vectors", "unlabelled", "teacher")
# What a training writes into its --out.
WRITTEN = ("best.safetensors", "last.safetensors", "last.pt", "history.csv", "curves.png")
# Options that decide nothing of what is learned, or that only name where something is read.
LEFT_OUT = ("run", "command", "out", "val", "val_images", "features", "resume", "about", "vary",
            "setting", "seeds")


def check_files(args: argparse.Namespace) -> None:
    """UserError, before any work, where a training could not write into ``args.out``, or would
    overwrite a file that one of its options names."""
    inputs = {f"--{key.replace('_', '-')}": value for key, value in vars(args).items()
              if key in ("val", "val_images") or _is_path(key, value)}
    check_outputs({"--out": [Path(args.out) / name for name in WRITTEN]}, inputs)


def check_out(out: str | Path, resume: bool) -> None:
    """UserError where ``out`` holds a training that is not to be resumed, or cannot be."""
    if (Path(out) / "last.pt").exists():
        if not resume:
            raise UserError(f"{out} holds a training already: give --resume to continue it, "
                            "or another --out")
    elif (Path(out) / "best.safetensors").exists():
        raise UserError(f"{out} holds best.safetensors, but no last.pt to continue from: give "
                        "another --out")


def announce(what: str, model: Module, recipe: Recipe) -> None:
    """Say on stderr, before the first step, what is trained and how."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, needed in sizes if needed)
    learned = f"{total:,} parameters" if trained == total else \
        f"{trained:,} of {total:,} parameters are trained"
    warn(f"{what}; {learned}; {recipe.compute.device}, {recipe.compute.precision}, "
         f"{recipe.epochs} epochs")


def describe_training(args: argparse.Namespace, recipe: Recipe, trained_on: dict) -> dict:
    """What a checkpoint keeps of how it was trained: of each path, its name alone."""
    options = {key: value for key, value in vars(args).items() if key not in LEFT_OUT}
    named = {key: _bare(value) if _is_path(key, value) else value
             for key, value in options.items()}
    return {"recipe": named | asdict(recipe), "trained_on": trained_on, "about": args.about}


def deciding_options(args: argparse.Namespace, recipe: Recipe) -> dict:
    """The options that a resumed training must repeat, paths left out: their contents are compared
    apart (``photos_digest`` and the starting weights)."""
    compared_apart = ("workers", "epochs", "ema_weights")
    options = {key: value for key, value in vars(args).items()
               if key not in (*LEFT_OUT, *compared_apart) and not _is_path(key, value)}
    return {"epochs": recipe.epochs} | options | {
        key: value for key, value in asdict(recipe).items() if key != "workers"}


def photos_digest(paths: Sequence[Path], targets: Iterable = ()) -> str:
    """How many photos there are, and a digest of their names, in order, and of what is learned of
    each (labels, captions)."""
    return _counted_digest(len(paths), [[path.name for path in paths], list(targets)])


def texts_digest(texts: Sequence[str]) -> str:
    """How many texts there are, and a digest of them in order."""
    return _counted_digest(len(texts), list(texts))


def _counted_digest(count: int, content: object) -> str:
    return f"{count} (digest {short_digest(content)})"


def short_digest(content: object) -> str:
    """The first 12 digits of the SHA-256 of ``content`` as JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def check_same(before: dict, now: dict, out: object) -> None:
    """UserError that names the first setting in which a resumed training differs from ``before``.

    A setting that only one of them has, from another version of the project, differs too.
    """
    for key in [*now, *(key for key in before if key not in now)]:
        if before.get(key) != now.get(key):
            old, new = (_shown(settings.get(key, "not recorded")) for settings in (before, now))
            option = key if " " in key else f"--{key.replace('_', '-')}"
            raise UserError(f"cannot resume {out}: it was trained with {option} {old}, not {new}; "
                            "give the same, or another --out")


def _is_path(key: str, value: object) -> bool:
    """Whether an option's value names a file or folder (``--teacher`` may be a weight)."""
    if key == "model":  # a name of timm's, or a file to start from
        return value is not None and Path(value).exists()
    return key in PATHS and isinstance(value, (str, list))


def _bare(value: str | list[str]) -> str | list[str]:
    return [_bare(word) for word in value] if isinstance(value, list) else Path(value).name


def _shown(value: object) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:60] + "…"
