"""Training of a language model on captions alone: the base that captioners start from
(docs/captions.md)."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from utils import UserError

import torch

from data.captions import language_texts
from data.compute import autocast
from data.folders import spread
from models.captioner import IGNORED, Captioner, caption_targets, teacher_forcing_loss
from models.captioner_files import save_captioner
from models.gpt2 import GPT2Config
from models.tokenizer import train_bpe
from models.vit_gpt2 import build_captioner
from training.loop import Task, check_out, fit_recipe
from training.optimizers import parameter_groups
from training.options import FRESH_DECODER, MAX_LENGTH
from training.recipe import (
    Recipe,
    check_files,
    describe_training,
    short_digest,
    texts_digest,
)


def pretrain(args: argparse.Namespace) -> list[dict]:
    """Train a tokenizer and a decoder by the options of ``p2_caption.py pretrain``; returns the
    history, one row an epoch."""
    texts, val_texts = language_texts(args.captions, args.hold_out)
    texts = spread(texts, args.limit)
    check_files(args)
    check_out(args.out, args.resume)
    recipe = Recipe.from_args(args)
    torch.manual_seed(recipe.seed)
    base = fresh_base(args, texts)
    base.encoder.requires_grad_(False)
    about = describe_training(args, recipe, {
        "captions": [Path(path).name for path in args.captions], "texts": len(texts)})

    def save(path, model, row):
        save_captioner(path, model, **about, metrics=row)

    task = language_task(base, texts, val_texts, save, recipe, args.label_smoothing)
    task.what = f"{len(texts):,} captions, {len(val_texts):,} to validate on"
    return fit_recipe(base, task, recipe, args)


def fresh_base(args: argparse.Namespace, texts: Sequence[str]) -> Captioner:
    """A random decoder of the size that the options give, with a tokenizer trained on ``texts``, on
    a ViT. UserError where the number of heads does not divide the width."""
    vocab_size, width, layers, heads = (getattr(args, name) or default
                                        for name, default in FRESH_DECODER.items())
    if width % heads:
        raise UserError(f"--heads {heads} does not divide --width {width}; change one of them")
    tokenizer = train_bpe(texts, vocab_size)
    config = GPT2Config(tokenizer.vocab_size, args.max_length or MAX_LENGTH, width, layers, heads,
                        cross_width=None, dropout=args.dropout)
    return build_captioner(args.model, config, tokenizer, pretrained=args.pretrained,
                           weights=args.weights)


class Texts:
    """A dataset of (targets (T,),): captions padded to one length."""

    def __init__(self, base: Captioner, texts: Sequence[str]) -> None:
        self.targets = caption_targets(base, list(texts))

    def set_epoch(self, epoch: int) -> None:
        """Nothing here is random."""

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        return (self.targets[index],)


def language_task(
    base: Captioner, texts: Sequence[str], val_texts: Sequence[str], save: Callable,
    recipe: Recipe, label_smoothing: float,
) -> Task:
    """Language modelling: the next token of captions is predicted. The best epoch has the highest
    mean log-likelihood of a token of ``val_texts``."""
    def loss(model, batch):
        targets = batch[0][:, (batch[0] != IGNORED).any(0)]
        loss, accuracy = teacher_forcing_loss(model, None, targets, label_smoothing)
        return loss, {"accuracy": accuracy}

    val_targets = caption_targets(base, list(val_texts))

    @torch.inference_mode()
    def evaluate(model, accelerator):
        total = count = 0
        for targets in val_targets.split(256):
            with autocast(recipe.device, recipe.precision):
                mean, _ = teacher_forcing_loss(model, None, targets.to(recipe.device))
            tokens = int((targets != IGNORED).sum())
            total, count = total + mean.item() * tokens, count + tokens
        return {"val_log_likelihood": -total / count, "val_perplexity": math.exp(total / count)}

    settings = {"training captions": texts_digest(texts),
                "validation captions": texts_digest(val_texts),
                "the model": short_digest(base.describe())}
    return Task(Texts(base, texts), parameter_groups(base, recipe.weight_decay),
                lambda batch: batch, loss, evaluate, save, select="val_log_likelihood",
                settings=settings)
