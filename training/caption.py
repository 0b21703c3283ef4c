"""Training of captioners on photos: teacher forcing, and self-critical training on CIDEr
(docs/captions.md)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

from utils import UserError, warn

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import Tensor

from data.captions import training_photos
from data.photos import check_images
from metrics.captions import score_captions
from metrics.cider import CiderReward
from metrics.ptb import tokenize_all
from models.captioner import (
    IGNORED,
    Captioner,
    Memory,
    caption_targets,
    teacher_forcing_loss,
    teacher_inputs,
    unwrap,
)
from models.captioner_files import load_captioner, save_captioner
from models.catr import open_catr
from models.decoding import Search, sample
from models.hub import local_file
from models.vit import build_vit
from models.vit_gpt2 import add_cross_attention, gpt2_base
from training.language import fresh_base
from training.loop import Task, check_out, fit_recipe
from training.optimizers import parameter_groups
from training.options import FRESH_DECODER
from training.photo_source import photo_source
from training.recipe import (
    CaptionOptions,
    Recipe,
    check_files,
    describe_training,
    photos_digest,
    short_digest,
)

# What training can start from, and the options that have no effect on it.
NO_EFFECT = {"checkpoint": ("weights", "pretrained", "vocab", *FRESH_DECODER),
             "decoder": ("vocab", *FRESH_DECODER),
             "model catr": ("pretrained", *FRESH_DECODER),
             "model": ("vocab",)}


# --- the command --------------------------------------------------------------------------------


def train_captioner(args: argparse.Namespace) -> list[dict]:
    """Train a captioner by the options of ``p2_caption.py train``; returns the history, one row an
    epoch."""
    start = starting_option(args)
    check_files(args)
    check_out(args.out, args.resume)
    images, val = photos_from(args)
    recipe, options = Recipe.from_args(args), CaptionOptions.from_args(args)
    torch.manual_seed(recipe.seed)
    captioner = starting_point(start, args, images.values())
    if start in ("model", "decoder") and not (
            args.pretrained or args.weights or local_file(args.model)):
        warn("the encoder's weights start at random; --pretrained or --weights FILE starts from "
             "others")
    captioner.encoder.requires_grad_(options.encoder_lr > 0)
    set_resize(captioner, args.resize)
    about = describe_training(args, recipe, {
        "captions": [Path(path).name for path in args.captions], "images": len(images)})
    about["started_from"] = {key: captioner.metadata[key] for key in (*about, "started_from")
                             if key in captioner.metadata}

    def save(path, model, row):
        save_captioner(path, model, **about, metrics=row)

    task = caption_task(captioner, images, val, Search.from_args(args), save, recipe, options)
    task.what = (f"{len(images):,} photos with {sum(map(len, images.values())):,} captions, "
                 f"{sum(map(len, val)):,} photos to validate on")
    return fit_recipe(captioner, task, recipe, args)


def photos_from(
    args: argparse.Namespace,
) -> tuple[dict[Path, list[str]], list[dict[Path, list[str]]]]:
    """``training_photos`` by the options of ``add_photo_options``, each decoded once, so that an
    unreadable one is a UserError before hours of training."""
    images, val = training_photos(args.images, args.captions, args.val_images, args.val_captions,
                                  args.hold_out, args.limit)
    check_images([*images, *(path for source in val for path in source)])
    return images, val


def starting_option(args: argparse.Namespace) -> str:
    """The option that says what training starts from, a key of ``NO_EFFECT``. UserError for an
    option that has no effect on it."""
    start = ("checkpoint" if args.checkpoint else "decoder" if args.decoder else
             "model catr" if args.model == "catr" else "model")
    unused = [name for name in NO_EFFECT[start] if getattr(args, name)]
    if unused:
        raise UserError(f"--{unused[0].replace('_', '-')} has no effect on what --{start} gives; "
                        "leave it out")
    return start


def starting_point(
    start: str, args: argparse.Namespace, captions: Iterable[Sequence[str]]
) -> Captioner:
    """The captioner that training starts from: a checkpoint's weights, public GPT-2 or CATR
    weights, or a fresh decoder with a tokenizer trained on each photo's ``captions``."""
    if start == "checkpoint":
        base = load_captioner(args.checkpoint, "base", "captioner")
    elif start == "decoder":
        base = gpt2_base(build_vit(args.model, args.pretrained, args.weights), args.decoder)
    elif start == "model catr":
        base = open_catr(args.weights, args.vocab)
    else:
        base = fresh_base(args, [text for texts in captions for text in texts])
    return add_cross_attention(base, args.dropout)


def set_resize(captioner: Captioner, resize: str | None) -> None:
    """Make ``captioner`` prepare photos as --resize says; None leaves that as it is."""
    if resize:
        captioner.preprocessing = captioner.preprocessing | {"resize": resize, "crop_pct": 1.0}


# --- photos and their captions ------------------------------------------------------------------


class References:
    """The training captions of N images: as ids to learn, and as words to compute rewards with."""

    def __init__(self, captioner: Captioner, captions: Sequence[Sequence[str]]) -> None:
        self.captions = captions
        flat = caption_targets(captioner, [text for texts in captions for text in texts])
        counts = torch.tensor([len(texts) for texts in captions])
        slots = torch.arange(int(counts.max())) < counts[:, None]  # (images, captions)
        self.targets = torch.full((*slots.shape, flat.shape[1]), IGNORED)  # (images, captions, T)
        self.targets[slots] = flat

    def of(self, images: Tensor, device: torch.device, each: int | None = None) -> Tensor:
        """(images · captions, T) targets, image by image, cut to the longest; with ``each``, that
        many captions of every image, drawn at random."""
        rows = self.targets[images.cpu()]  # (images, captions, T)
        if each and each < rows.shape[1]:
            # Padding is drawn only where an image has fewer captions.
            weights = (rows[..., 0] != IGNORED).float() + 1e-9
            drawn = weights.multinomial(each)
            rows = rows.gather(1, drawn[..., None].expand(-1, -1, rows.shape[2]))
        rows = rows.flatten(0, 1)
        return rows[:, (rows != IGNORED).any(0)].to(device)

    def reward(self) -> CiderReward:
        tokens = iter(tokenize_all([text for texts in self.captions for text in texts]))
        return CiderReward([[next(tokens) for _ in texts] for texts in self.captions])


# --- the task -----------------------------------------------------------------------------------


def caption_task(
    captioner: Captioner, images: dict[Path, list[str]], val: list[dict[Path, list[str]]],
    search: Search, save: Callable, recipe: Recipe, options: CaptionOptions,
) -> Task:
    """Captioning of ``images``, each with its captions. The best epoch has the highest CIDEr on the
    photos ``val``, as the mean over their sources."""
    captions = list(images.values())
    val_paths = [path for photos in val for path in photos]
    val_references = [list(photos.values()) for photos in val]
    source = photo_source(captioner, list(images), val_paths, recipe, options)
    references = References(captioner, captions)

    def evaluate(model, accelerator):
        share = range(accelerator.process_index, len(val_paths), accelerator.num_processes)
        texts = source.captions(model, share, search)
        written = dict(gather_object(list(zip(share, texts, strict=True))))
        return validation_scores([written[place] for place in range(len(val_paths))],
                                 val_references)

    if options.objective == "cider":
        loss = self_critical_loss(references, options.samples, search, source.inputs)
    else:
        loss = cross_entropy_loss(references, options.captions_each, options.label_smoothing,
                                  source.inputs)
    groups = parameter_groups(captioner, recipe.weight_decay,
                              {captioner.encoder_prefix: options.encoder_lr})
    settings = {"training photos": photos_digest(list(images), captions),
                "validation photos": " and ".join(
                    photos_digest(list(photos), photos.values()) for photos in val),
                "the model": short_digest(captioner.describe())}
    return Task(source, groups, source.prepare, loss, evaluate, save, select="val_CIDEr",
                settings=settings)


def cross_entropy_loss(
    references: References, each: int | None, label_smoothing: float, inputs: Callable
) -> Callable:
    """Teacher forcing on the reference captions of a batch's images, or on ``each`` of them."""
    def loss(model, batch):
        images, indices = batch
        targets = references.of(indices, images.device, each)
        loss, accuracy = teacher_forcing_loss(model, inputs(unwrap(model), images), targets,
                                              label_smoothing)
        return loss, {"accuracy": accuracy}

    return loss


def self_critical_loss(
    references: References, count: int, search: Search, inputs: Callable
) -> Callable:
    """Self-critical sequence training (Rennie et al. 2017) on CIDEr.

    ``count`` captions of each image are drawn, and each is reinforced by its reward minus the mean
    reward of the others (the baseline of Luo 2020, "A Better Variant of Self-Critical Sequence
    Training").
    """
    reward = references.reward()

    def loss(model, batch):
        images, indices = batch
        captioner = unwrap(model)
        captioner.eval()  # captions are drawn and reinforced under one distribution: no dropout
        with torch.no_grad():
            source = inputs(captioner, images)
            memory = source if isinstance(source, Memory) else captioner.encode(source)
            drawn = sample(captioner, memory, count, search)  # (images · count, T)
        texts = tokenize_all([captioner.tokenizer.decode(row) for row in drawn.tolist()])
        rewards = torch.tensor([reward(index, texts[i * count:(i + 1) * count])
                                for i, index in enumerate(indices.tolist())])  # (images, count)
        baseline = (rewards.sum(1, keepdim=True) - rewards) / (count - 1)
        advantage = (rewards - baseline).flatten().to(images.device)
        ends = (drawn == captioner.tokenizer.end_id).cumsum(1)
        targets = drawn.masked_fill(ends > 1, IGNORED)  # the first end token is the caption's own
        counted = targets != IGNORED
        logits = model(source, teacher_inputs(captioner, targets), counted)
        cross_entropy = F.cross_entropy(logits.float(), targets[counted], reduction="none")
        loss = (advantage[:, None].expand_as(targets)[counted] * cross_entropy).mean()
        return loss, {"reward": rewards.mean().item()}

    return loss


def validation_scores(
    captions: Sequence[str], sources: Sequence[Sequence[Sequence[str]]]
) -> dict[str, float]:
    """Scores of ``captions`` of the images of all ``sources`` against their references: CIDEr and
    BLEU-4 as the mean over the sources, CIDEr of each source where there are several, the mean
    number of words, and the share of distinct captions."""
    rest, scores = iter(captions), []
    for references in sources:
        scores.append(score_captions(list(islice(rest, len(references))), references)[0])
    each = {f"val_CIDEr_{number}": score["CIDEr"] for number, score in enumerate(scores, start=1)}
    return {"val_CIDEr": float(np.mean([score["CIDEr"] for score in scores])),
            **(each if len(scores) > 1 else {}),
            "val_BLEU-4": float(np.mean([score["BLEU-4"] for score in scores])),
            "val_length": float(np.mean([len(text.split()) for text in captions])),
            "val_distinct": len(set(captions)) / len(captions)}
