"""Training of a language model on captions alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from utils import autocast

import torch

from models.captioner import (
    IGNORED,
    Captioner,
    caption_targets,
    teacher_forcing_loss,
)
from training.loop import Task, parameter_groups

# --- captions alone -----------------------------------------------------------------------------


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
    base: Captioner, texts: list[str], val_texts: list[str], save: Callable, args
) -> Task:
    """The task of foretelling the next token of captions, judged by ``val_texts``."""
    def loss(model, batch):
        targets = batch[0][:, (batch[0] != IGNORED).any(0)]
        loss, right = teacher_forcing_loss(model, None, targets, args.label_smoothing)
        return loss, right * len(targets)

    val = caption_targets(base, val_texts)

    @torch.inference_mode()
    def validate(model, accelerator):
        total = count = 0
        for part in val.split(256):
            with autocast(args.device, args.precision):
                mean, _ = teacher_forcing_loss(model, None, part.to(args.device))
            tokens = int((part != IGNORED).sum())
            total, count = total + mean.item() * tokens, count + tokens
        return {"val_log_likelihood": -total / count, "val_perplexity": math.exp(total / count)}

    return Task(Texts(base, texts), parameter_groups(base, args.weight_decay),
                lambda batch: batch, loss, validate, save, select="val_log_likelihood")
