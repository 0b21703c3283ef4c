"""Training tasks of captioners, for every script that trains one: teacher forcing, self-critical
training on CIDEr, and language modelling. Between the scripts and the rooms, as ``captioning``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from utils import UserError

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import Tensor

from data.batches import LabelledImages
from data.transform import Transform, augmentation
from inference.caption import caption_features, caption_images, patch_features
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
)
from models.checkpoint import unwrap
from models.decoding import Search, sample
from training.loop import Task, parameter_groups

# --- photos with captions -----------------------------------------------------------------------


class References:
    """The training captions of N images: as ids to learn, and as words to be rewarded against."""

    def __init__(self, captioner: Captioner, captions: Sequence[Sequence[str]]) -> None:
        self.captions = captions
        flat = caption_targets(captioner, [text for texts in captions for text in texts])
        counts = torch.tensor([len(texts) for texts in captions])
        slots = torch.arange(int(counts.max())) < counts[:, None]  # (images, captions)
        self.targets = torch.full((*slots.shape, flat.shape[1]), IGNORED)
        self.targets[slots] = flat

    def of(self, images: Tensor, device: torch.device, each: int | None = None) -> Tensor:
        """(images · captions, T) targets, image by image, cut to the longest; ``each`` draws so
        many captions of every image."""
        rows = self.targets[images.cpu()]  # (images, captions, T)
        if each and each < rows.shape[1]:
            there = (rows[..., 0] != IGNORED).float() + 1e-9  # padding only where nothing else is
            drawn = there.multinomial(each)
            rows = rows.gather(1, drawn[..., None].expand(-1, -1, rows.shape[2]))
        rows = rows.flatten(0, 1)
        return rows[:, (rows != IGNORED).any(0)].to(device)

    def reward(self) -> CiderReward:
        tokens = iter(tokenize_all([text for texts in self.captions for text in texts]))
        return CiderReward([[next(tokens) for _ in texts] for texts in self.captions])


class Features:
    """A dataset of (features (patches, width), index)."""

    def __init__(self, features: np.ndarray) -> None:
        self.features = features

    def set_epoch(self, epoch: int) -> None:
        """Nothing here is random."""

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int):
        return torch.from_numpy(self.features[index].astype(np.float32)), index


def caption_task(
    captioner: Captioner, images: dict[Path, list[str]], val: list[dict[Path, list[str]]],
    search: Search, save: Callable, args,
) -> Task:
    """The task of captioning ``images``, validated by the mean CIDEr over the sources ``val``.

    Where the encoder is frozen and photos are of one size and not augmented, its features are
    computed once.
    """
    paths, val_paths = list(images), [path for source in val for path in source]
    references = References(captioner, list(images.values()))
    frozen = not any(p.requires_grad for p in captioner.encoder.parameters())
    transform = Transform.from_fields(captioner.preprocessing)
    stored = frozen and args.augment == ["none"] and transform.resize != "longest"
    if stored:
        dataset, val_features = (patch_features(captioner, part, args, args.features)
                                 for part in (paths, val_paths))
        dataset = Features(dataset)
    else:
        dataset = LabelledImages(paths, list(range(len(paths))),
                                      augmentation(args.augment, transform), args.seed)

    def prepare(batch):
        return batch if stored else (transform.normalize(batch[0]), batch[1])

    def source_of(captioner, images):
        return captioner.memory_of(images) if stored else images

    def validate(model, accelerator):
        share = range(accelerator.process_index, len(val_paths), accelerator.num_processes)
        if stored:
            texts = caption_features(model, val_features[share], search, args)
        else:
            _, texts, unreadable = caption_images(
                model, [val_paths[i] for i in share], search, args, "validate")
            if unreadable:
                raise UserError("unreadable: {}: {}".format(*unreadable[0]))
        written = dict(gather_object(list(zip(share, texts, strict=True))))
        return judge([written[i] for i in range(len(val_paths))],
                     [list(source.values()) for source in val])

    if args.objective == "xe":
        loss = _cross_entropy(references, args.captions_each, args.label_smoothing, source_of)
    else:
        loss = _self_critical(references, args.samples, search, source_of)
    groups = parameter_groups(captioner, args.weight_decay,
                              {captioner.encoder_prefix: args.encoder_lr})
    return Task(dataset, groups, prepare, loss, validate, save, select="val_CIDEr")


def _cross_entropy(
    references: References, each: int | None, label_smoothing: float, source_of: Callable
):
    """Teacher forcing on the reference captions of a batch's images, or on ``each`` of them."""
    def loss(model, batch):
        images, indices = batch
        targets = references.of(indices, images.device, each)
        source = source_of(unwrap(model), images)
        loss, right = teacher_forcing_loss(model, source, targets, label_smoothing)
        return loss, right * len(images)

    return loss


def _self_critical(references: References, count: int, search: Search, source_of: Callable):
    """Self-critical sequence training (Rennie et al. 2017) on CIDEr: ``count`` captions an image
    are drawn, and each is reinforced by how much better it is than the mean of the others (the
    baseline of Luo 2020, "A Better Variant of Self-Critical Sequence Training").

    What is reported as accuracy is the mean reward, over 10.
    """
    reward = references.reward()

    def loss(model, batch):
        images, indices = batch
        captioner = unwrap(model)
        captioner.eval()  # what is drawn and what is reinforced must come from one distribution
        with torch.no_grad():
            source = source_of(captioner, images)
            memory = source if isinstance(source, Memory) else captioner.encode(source)
            drawn = sample(captioner, memory, count, search)
        texts = tokenize_all([captioner.tokenizer.decode(row) for row in drawn.tolist()])
        rewards = torch.tensor([reward(index, texts[i * count:(i + 1) * count])
                                for i, index in enumerate(indices.tolist())])  # (images, count)
        baseline = (rewards.sum(1, keepdim=True) - rewards) / (count - 1)
        advantage = (rewards - baseline).flatten().to(images.device)
        ends = (drawn == captioner.tokenizer.end_id).cumsum(1)
        targets = drawn.masked_fill(ends > 1, IGNORED)  # the first end token is the caption's own
        counted = targets != IGNORED
        logits = model(source, teacher_inputs(captioner, targets), counted)
        surprise = F.cross_entropy(logits.float(), targets[counted], reduction="none")
        loss = (advantage[:, None].expand_as(targets)[counted] * surprise).mean()
        return loss, rewards.mean().item() / 10 * len(images)

    return loss


def judge(captions: Sequence[str], sources: Sequence[Sequence[Sequence[str]]]) -> dict:
    """What ``captions`` of the images of all sources score against their references, as the mean
    over sources and each source's CIDEr where there are several, and how alike they are."""
    rest, scores = iter(captions), []
    for references in sources:
        scores.append(score_captions(list(islice(rest, len(references))), references)[0])
    return {"val_CIDEr": float(np.mean([score["CIDEr"] for score in scores])),
            **{f"val_CIDEr_{place}": score["CIDEr"]
               for place, score in enumerate(scores, start=1) if len(scores) > 1},
            "val_BLEU-4": float(np.mean([score["BLEU-4"] for score in scores])),
            "val_length": float(np.mean([len(text.split()) for text in captions])),
            "val_distinct": len(set(captions)) / len(captions)}
