"""Training of the small CLIP, second step: pictures with texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from utils import UserError, read_csv, resolve_run_options

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.batches import LabelledImages, read_batches
from data.captions import captioned_images
from data.photos import check_images
from data.transform import Transform, augmentation
from models.clip import Clip, DualEncoder, load_clip
from training.clip_words import (
    Words,
    _fixed,
    fit_clip,
    groups_of,
    head_directions,
    make_words,
    photo_meanings,
    saver,
    trim,
    untrained_features,
)
from training.loop import Task, check_out

PHOTO_PHRASES = ("a photo of a {}", "this is a photo of {}", "a picture of a {}",
                 "a blurry photo of a {}", "a small photo of the {}", "a {}")


# --- pictures with texts ------------------------------------------------------------------------


class Pairs:
    """A dataset of (pixels (height, width, 3) uint8, ids (T,), which text, index).

    ``texts`` holds each image's possible texts, of which one is drawn an epoch; images whose texts
    are equal say the same and are no counter-examples of each other.
    """

    def __init__(
        self, model: DualEncoder, paths: Sequence[Path], texts: Sequence[Sequence[str]],
        augment: Callable, seed: int,
    ) -> None:
        self.model, self.texts, self.seed = model, texts, seed
        self.images = LabelledImages(paths, list(range(len(paths))), augment, seed)
        groups: dict[tuple, int] = {}
        self.group = [groups.setdefault(tuple(each), len(groups)) for each in texts]
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.images.set_epoch(epoch)
        random = np.random.default_rng([self.seed, epoch])
        self.drawn = [each[random.integers(len(each))] for each in self.texts]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int):
        pixels, _ = self.images[index]
        return pixels, _fixed(self.model, self.drawn[index]), self.group[index], index


class Shrunk:
    """Augmentation that takes away detail: with probability ``share``, a photo is made as small as
    ``least`` pixels and large again, as small pictures are when a large model sees them."""

    def __init__(self, augment: Callable, least: int, share: float) -> None:
        self.augment, self.least, self.share = augment, least, share

    def __call__(self, image):
        image = self.augment(image)
        if torch.rand(()) >= self.share:
            return image
        side = int(torch.randint(self.least, 3 * self.least, ()))
        return image.resize((side, side), 4).resize(image.size, 3)  # averaged, then bicubic


def contrastive_task(
    model: DualEncoder, pairs: Pairs, words: Words | None, classes: Tensor | None,
    teacher: Tensor | None, groups: list[dict], validate: Callable, save: Callable, args,
) -> Task:
    """CLIP's symmetric loss over a batch (Radford et al. 2021, Sec. 2.3), with two reminders: the
    ``teacher``'s shares (images, K) of the ``classes`` (K, D), and ``words`` beside the texts."""
    transform = Transform.from_fields(model.preprocessing)
    random = np.random.default_rng(args.seed)

    def prepare(batch):
        pixels, tokens, group, index = batch
        images = transform.normalize(pixels)
        if words is None:
            return images, trim(tokens, model.pad_id), group, index, None
        chosen = [words[int(place)] for place in random.integers(0, len(words), len(pixels))]
        more = torch.stack([ids for ids, _ in chosen]).to(tokens.device)
        meant = words.vectors[[place for _, place in chosen]].to(tokens.device)
        return images, trim(torch.cat([tokens, more]), model.pad_id), group, index, meant

    def loss(model, batch):
        images, tokens, group, index, meant = batch
        seen, written, scale = model(images, tokens)
        texts = written[:len(seen)]
        logits = scale * seen @ texts.T
        same = (group[:, None] == group[None]).float()
        total = (F.cross_entropy(logits, same / same.sum(1, keepdim=True))
                 + F.cross_entropy(logits.T, same / same.sum(1, keepdim=True))) / 2
        if teacher is not None:
            said = args.word_scale * seen @ classes.to(seen.device).T
            total = total + args.teacher * F.cross_entropy(said, teacher[index.cpu()].to(
                seen.device))
        if meant is not None:
            there = classes.to(seen.device)
            said = args.word_scale * written[len(seen):] @ there.T
            total = total + args.words * F.cross_entropy(
                said, (args.word_scale * meant @ there.T).softmax(1))
        right = (same.gather(1, logits.argmax(1, keepdim=True)) > 0).sum().item()
        return total, right

    return Task(pairs, groups, prepare, loss, validate, save, select=None)


def read_pairs(args) -> tuple[list[Path], list[list[str]], int]:
    """Images and the texts of each, from --pairs and then from --images with --captions, and how
    many of the latter there are."""
    paths, texts, images = [], [], {}
    for file in args.pairs:
        for row in read_csv(file, "image", "text"):
            paths.append(Path(file).parent / row["image"])
            texts.append([phrase.format(row["text"]) for phrase in PHOTO_PHRASES])
    if args.captions:
        images = captioned_images(args.images, args.captions)
        paths += images
        texts += images.values()
    if not paths:
        raise UserError("nothing to learn from: give --pairs, or --images with --captions")
    return paths, texts, len(images)


def pairs(args) -> list[dict]:
    """Train both towers on images with texts; returns the history."""
    check_out(args.out, args.resume)
    paths, texts, captioned = read_pairs(args)
    check_images(paths)
    resolve_run_options(args)
    torch.manual_seed(args.seed)
    model = load_clip(args.checkpoint)
    if args.crop_pct:
        model.preprocessing["crop_pct"] = args.crop_pct
    classes = teacher = drawn = None
    if not model.metadata.get("centered"):
        center(model, paths[:: max(len(paths) // 512, 1)], args)
    if args.weights or args.pretrained:
        classes, _, _ = head_directions(args)
        seen = untrained_features(model, paths, args)
        teacher = (args.word_scale * torch.from_numpy(seen) @ classes.T).softmax(1)
        if args.wordnet:
            first = len(paths) - captioned
            photos = photo_meanings(seen[first:], texts[first:], args) if captioned else {}
            drawn = make_words(model, classes, [text for each in texts[first:] for text in each],
                               photos, args)
    model.requires_grad_(True)
    if args.freeze:  # what is below needs no backward pass, a third of the time for half a ViT
        vision = model.vision
        for part in (vision.patch_embed, vision.blocks[:args.freeze]):
            part.requires_grad_(False)
        vision.pos_embed.requires_grad_(False)
        vision.cls_token.requires_grad_(False)
    transform = Transform.from_fields(model.preprocessing)
    augment = Shrunk(augmentation(args.augment, transform), args.shrink_to, args.shrink)
    dataset = Pairs(model, paths, texts, augment, args.seed)
    task = contrastive_task(model, dataset, drawn, classes, teacher, groups_of(model, args),
                            lambda model, accelerator: {}, saver(args, len(paths)), args)
    return fit_clip(model, task, args)


def center(model: DualEncoder, paths: Sequence[Path], args) -> None:
    """Move the origin of the image features to their mean: before, all images point one way."""
    clip = Clip(model.to(args.device).eval(), model.preprocessing, "the untrained tower")
    transform = Transform.from_fields(model.preprocessing)
    total = []
    for _, pixels in read_batches(paths, transform, 32, lambda path, reason: None):
        with torch.inference_mode():
            total.append(clip.towers.image_features(
                transform.normalize(torch.from_numpy(pixels).to(args.device))).mean(0))
    with torch.no_grad():
        model.image_proj.bias.sub_(torch.stack(total).mean(0))
    model.metadata["centered"] = True
