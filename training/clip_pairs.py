"""Training of the small CLIP, second step: photos with texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils import UserError

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from data.augmentation import augmentation
from data.batches import LabelledImages, normalized_batches
from data.captions import captioned_sources
from data.compute import Compute
from data.photos import check_images
from models.clip import DualEncoder, load_clip, save_clip
from training.clip_targets import (
    Lexicon,
    centered_class_vectors,
    names_to_learn,
    pair_vectors,
    photo_vectors,
    read_lexicon,
    read_pairs,
    target_settings,
    tower_features,
)
from training.clip_words import NamePhrases, full_length_ids, trim_padding
from training.loop import Task, check_out, fit_recipe
from training.optimizers import parameter_groups
from training.recipe import Recipe, check_files, describe_training, photos_digest

PHOTO_PHRASES = ("a photo of a {}", "this is a photo of {}", "a picture of a {}",
                 "a blurry photo of a {}", "a small photo of the {}", "a {}")
PHRASES_A_PHOTO = 4  # the text tower is small: more phrases cost little
CENTERED_ON = 512  # photos whose mean feature becomes the origin

# --- photos with texts --------------------------------------------------------------------------


class Pairs:
    """A dataset of (pixels (height, width, 3) uint8, ids (T,), group, index).

    ``texts`` holds each image's possible texts, of which one is drawn in each epoch. Images with
    the same possible texts are one group: they are not negatives of each other.
    """

    def __init__(
        self, model: DualEncoder, paths: Sequence[Path], texts: Sequence[Sequence[str]],
        augment: Callable[[Image.Image], Image.Image], seed: int,
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

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int, int]:
        pixels, _ = self.images[index]
        return pixels, full_length_ids(self.model, self.drawn[index]), self.group[index], index


class Shrunk:
    """An augmentation that removes detail after ``augment``: with probability ``share`` a photo is
    scaled down to between ``least`` and three times as many pixels a side, and up again, so that
    small pictures look familiar to the model."""

    def __init__(
        self, augment: Callable[[Image.Image], Image.Image], least: int, share: float
    ) -> None:
        self.augment, self.least, self.share = augment, least, share

    def __call__(self, image: Image.Image) -> Image.Image:
        image = self.augment(image)
        if torch.rand(()) >= self.share:
            return image
        side = int(torch.randint(self.least, 3 * self.least, ()))
        small = image.resize((side, side), Image.Resampling.BOX)
        return small.resize(image.size, Image.Resampling.BICUBIC)


# --- losses -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Targets:
    """What the two optional losses compare with, on the CPU."""

    classes: Tensor  # (K, D): the class vectors
    teacher: Tensor  # (images, K): the frozen image tower's class distribution for each image
    phrases: NamePhrases | None
    settings: dict  # what a resumed training must repeat of them


def contrastive_task(
    model: DualEncoder, pairs: Pairs, targets: Targets | None, save: Callable, recipe: Recipe, args
) -> Task:
    """CLIP's symmetric loss over a batch (Radford et al. 2021, Sec. 2.3), plus two optional losses:
    distillation from the frozen image tower, weighted by ``args.teacher``, and the word loss of
    ``training.clip_words``, weighted by ``args.words``.

    There is no validation: ``clip_zeroshot.py eval`` measures the result.
    """
    transform, scale = model.transform, args.word_scale

    def prepare(batch):
        pixels, tokens, group, index = batch
        vectors = None
        if targets and targets.phrases:  # after the photos' texts
            phrases = targets.phrases
            ids, names = zip(*(phrases[place] for place in torch.randint(
                len(phrases), (PHRASES_A_PHOTO * len(pixels),)).tolist()), strict=True)
            tokens = torch.cat([tokens, torch.stack(ids).to(tokens.device)])
            vectors = phrases.vectors[list(names)].to(tokens.device)
        return (transform.normalize(pixels), trim_padding(tokens, model.pad_id), group, index,
                vectors)

    def loss(model, batch):
        images, tokens, group, index, vectors = batch
        seen, read, logit_scale = model(images, tokens)
        logits = logit_scale * seen @ read[:len(seen)].T  # (images, texts)
        same = (group[:, None] == group[None]).float()
        total = contrastive_loss(logits, same)
        right = same.gather(1, logits.argmax(1, keepdim=True)).mean()
        if targets:
            classes = targets.classes.to(seen.device)
            teacher = targets.teacher[index.cpu()].to(seen.device)
            total = total + args.teacher * F.cross_entropy(scale * seen @ classes.T, teacher)
        if vectors is not None:
            total = total + args.words * F.cross_entropy(
                scale * read[len(seen):] @ classes.T, (scale * vectors @ classes.T).softmax(1))
        return total, {"accuracy": right.item()}

    groups = parameter_groups(model, recipe.weight_decay, {"vision.": args.encoder_lr})
    return Task(pairs, groups, prepare, loss, lambda model, accelerator: {}, save, select=None)


def contrastive_loss(logits: Tensor, same: Tensor) -> Tensor:
    """The mean of the cross-entropies from images to texts and from texts to images.

    ``logits`` (B, B); ``same`` (B, B) is 1 where image and text belong together, else 0. Several
    right answers share the target evenly.
    """
    targets = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


# --- training -----------------------------------------------------------------------------------


def train_pairs(args) -> list[dict]:
    """``clip_zeroshot.py train``: train both towers, and return the history."""
    check_files(args)
    check_out(args.out, args.resume)
    check_options(args)
    named = [read_pairs(file, args.limit) for file in args.pairs]
    captioned = captioned_sources(args.images, args.captions, args.limit)
    if not any(named) and not any(captioned):
        raise UserError("there is nothing to learn from: give --pairs, or --images with --captions")
    paths = [path for source in [*named, *captioned] for path in source]
    texts = [[phrase.format(name) for phrase in PHOTO_PHRASES]
             for source in named for name in source.values()]
    texts += [captions for source in captioned for captions in source.values()]
    lexicon = read_lexicon(args.wordnet, args.name_vectors) if args.wordnet else None
    model = load_clip(args.checkpoint)
    if args.crop_pct:
        model.preprocessing = model.preprocessing | {"crop_pct": args.crop_pct}
    check_images(paths)

    recipe = Recipe.from_args(args)
    torch.manual_seed(recipe.seed)
    if not model.metadata.get("centered"):  # a checkpoint of ``words``; those of ``train`` are
        center(model, paths[::max(len(paths) // CENTERED_ON, 1)], recipe.compute)
    targets = None
    if args.weights or args.pretrained:
        targets = make_targets(model, named, paths, texts, lexicon, recipe, args)
    model.requires_grad_(True)
    freeze_blocks(model.vision, args.freeze)
    about = describe_training(args, recipe, {"images": len(paths)})

    def save(path, model, row):
        save_clip(path, model, **about, metrics=row, centered=True)

    augment = augmentation(args.augment, model.transform)
    pairs = Pairs(model, paths, texts, Shrunk(augment, args.shrink_to, args.shrink), recipe.seed)
    task = contrastive_task(model, pairs, targets, save, recipe, args)
    task.settings = {"photos and texts": photos_digest(paths, texts)}
    if targets:
        task.settings |= targets.settings
    task.what = f"{len(paths):,} photos with texts"
    return fit_recipe(model, task, recipe, args)


def check_options(args) -> None:
    """UserError for options that need another one."""
    if args.name_vectors and not args.wordnet:
        raise UserError("--name-vectors needs --wordnet DIR, which has the ImageNet classes' nouns")
    if args.wordnet and not (args.weights or args.pretrained):
        raise UserError("--wordnet needs the head of an ImageNet classifier, which gives names "
                        "their vectors: give --weights FILE or --pretrained")


def center(model: DualEncoder, paths: Sequence[Path], compute: Compute) -> None:
    """Move the origin of the image features to their mean over photos. Before, all images have
    nearly the same direction, and the cosines to texts hardly differ."""
    model.to(compute.device).eval()
    unreadable = []  # there are none: the photos were checked
    with torch.inference_mode():
        features = [model.image_features(images) for _, images in normalized_batches(
            model.transform, paths, compute, unreadable, "center features")]
    with torch.no_grad():
        model.image_proj.bias.sub_(torch.cat(features).mean(0))


def make_targets(
    model: DualEncoder, named: Sequence[dict[Path, str]], paths: Sequence[Path],
    texts: Sequence[Sequence[str]], lexicon: Lexicon | None, recipe: Recipe, args,
) -> Targets:
    """The targets of the photos ``paths`` and, with a ``lexicon``, of names; the first photos are
    those of ``named``, the others have captions for texts."""
    classes = centered_class_vectors(args.vit, args.pretrained, args.weights)
    features = tower_features(model, paths, recipe.compute)
    teacher = (args.word_scale * torch.from_numpy(features @ classes.T)).softmax(1)
    names = phrases = None
    if lexicon:
        ends = np.cumsum([len(source) for source in named])
        *parts, rest = np.split(features, ends)
        captions = texts[len(paths) - len(rest):]
        pairs = pair_vectors([(part, list(source.values()))
                              for part, source in zip(parts, named, strict=True)])
        names = names_to_learn(lexicon, classes, photo_vectors(rest, captions, lexicon.names),
                               pairs, [text for each in captions for text in each],
                               args.name_scale)
        phrases = NamePhrases(model, names, args.texts, recipe.seed)
    return Targets(torch.from_numpy(classes), teacher, phrases,
                   target_settings(classes, lexicon, names))


def freeze_blocks(vision: nn.Module, count: int) -> None:
    """Keep the first ``count`` blocks of a timm ViT, and what is before them, as they are: without
    their backward pass, half a frozen ViT saves a third of the time."""
    if not count:
        return
    for part in (vision.patch_embed, vision.blocks[:count], vision.pos_embed, vision.cls_token):
        if part is not None:
            part.requires_grad_(False)
