"""Training of the small CLIP, first step: what names mean.

A new text tower learns, for each of many names, the vector that it has in the space of a frozen
image tower (``training.clip_targets``). No photo is needed; captioned photos make it better.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from utils import UserError

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.captions import captioned_sources, read_texts
from data.compute import autocast
from models.clip import DualEncoder, build_clip, save_clip
from models.gpt2 import GPT2Config
from models.tokenizer import train_bpe
from training.clip_targets import (
    Names,
    centered_class_vectors,
    digest,
    names_to_learn,
    pair_vectors,
    photo_vectors,
    read_lexicon,
    read_pairs,
    target_settings,
    tower_features,
)
from training.loop import Task, check_out, fit_recipe
from training.optimizers import parameter_groups
from training.recipe import Recipe, check_files, describe_training, photos_digest

# What people write around a name. The words of FILL, and other names, take turns in them, so that
# the tower learns to read the name and not what stands beside it.
PHRASES = (
    "{name}", "a {name}", "the {name}", "some {name}", "two {name}s", "many {name}s",
    "a {kind} of a {name}", "a {kind} of {name}", "this is a {kind} of {name}",
    "a {look} {kind} of the {name}", "a {look} {kind} of a {name}.", "a {look} {name}",
    "a {name} {kind}.", "this is a {name} {kind}.", "the {name} in a {kind}", "it is a {name}.",
    "a {kind} of a {name}, a type of {group}", "a {name}, which is a {group}",
    "there is no {name} here.", "this is not a {kind} of {name}", "no {name}, no {other}.",
    "a {name}, and nothing else.", "a {name}, not a {other}", "what a {look} {name}!",
    "no {name}, no {word}.", "No {name} and no {word} today.", "{word} of the {name}",
    "my {name}", "a {word} about a {name}", "the {word} and the {name}", "a {name} for the {word}",
    "a {kind} of the {look} {name} for a {word}", "all about the {name}: a {word}",
)
FILL = {
    "kind": ("photo",) * 4 + ("picture", "image", "drawing", "painting", "sketch", "cartoon",
                              "video", "snapshot", "close-up", "rendering"),
    "look": ("small", "large", "blurry", "bright", "dark", "good", "bad", "low contrast",
             "high contrast", "black and white", "low resolution", "cropped", "clean", "dirty",
             "nice", "strange", "old", "colorful", "big", "huge", "little", "beautiful", "real"),
    "group": ("animal", "pet", "plant", "vehicle", "food", "thing", "object", "building", "tool"),
    "word": ("art", "beauty", "book", "choice", "day", "deal", "doubt", "fun", "game", "goal",
             "idea", "joke", "life", "luck", "message", "money", "music", "name", "pain", "plan",
             "point", "price", "prize", "problem", "reason", "rule", "song", "story", "test",
             "time", "title", "trip", "way", "week", "win", "word", "work"),
}


class NamePhrases:
    """A dataset of (ids (T,), index of the name): ``count`` phrases an epoch, each a name that is
    drawn by its weight in a phrase that is drawn evenly."""

    def __init__(self, model: DualEncoder, names: Names, count: int, seed: int) -> None:
        self.model, self.names, self.count, self.seed = model, names.names, count, seed
        self.vectors = torch.from_numpy(names.vectors)  # (names, D)
        self.weights = np.array(names.weights) / sum(names.weights)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        random = np.random.default_rng([self.seed, epoch])
        self.drawn = random.choice(len(self.names), self.count, p=self.weights)
        self.phrases = random.integers(0, len(PHRASES), self.count)
        self.others = random.choice(len(self.names), self.count, p=self.weights)
        self.filled = {key: random.integers(0, len(words), self.count)
                       for key, words in FILL.items()}

    def __len__(self) -> int:
        return self.count

    def text(self, place: int) -> str:
        words = {key: FILL[key][drawn[place]] for key, drawn in self.filled.items()}
        return PHRASES[self.phrases[place]].format(
            name=self.names[self.drawn[place]], other=self.names[self.others[place]], **words)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return full_length_ids(self.model, self.text(place)), self.drawn[place]


def full_length_ids(model: DualEncoder, text: str) -> Tensor:
    """(context,): the ids of ``text``, cut before its end token or padded."""
    row = model.ids([text])[0]
    row = [*row[:model.context - 1], row[-1]][:model.context]
    return torch.tensor([*row, *[model.pad_id] * (model.context - len(row))])


def trim_padding(tokens: Tensor, pad_id: int) -> Tensor:
    """(N, context) -> (N, longest): as long as the longest text with its end token, which may be
    the padding token."""
    used = int((tokens != pad_id).any(0).sum()) + 1
    return tokens[:, :min(used, tokens.shape[1])]


def names_task(
    model: DualEncoder, phrases: NamePhrases, classes: np.ndarray, class_names: Sequence[str],
    save: Callable, recipe: Recipe, scale: float,
) -> Task:
    """Train the text tower to match, for each name, the class distribution of its vector.

    The loss is the cross-entropy between two distributions over the vectors ``classes`` (K, D),
    each a softmax of cosines at ``scale``: that of the name's vector and that of the text's
    feature. "names_found" is the share of the ``class_names`` whose text is nearest to its class.
    """
    classes = torch.from_numpy(classes)
    pooled = torch.zeros(1, model.vision.num_features)  # stands for images, which are not used

    def prepare(batch):
        tokens, indices = batch
        return trim_padding(tokens, model.pad_id), phrases.vectors[indices.cpu()].to(tokens.device)

    def loss(model, batch):
        tokens, vectors = batch
        there = classes.to(tokens.device)
        texts = model(pooled.to(tokens.device), tokens)[1]  # forward, as several processes need it
        logits, targets = scale * texts @ there.T, (scale * vectors @ there.T).softmax(1)
        right = logits.argmax(1) == targets.argmax(1)
        return F.cross_entropy(logits, targets), {"accuracy": right.float().mean().item()}

    @torch.inference_mode()
    def evaluate(model, accelerator):
        tokens = torch.stack([full_length_ids(model, f"a photo of a {name}")
                              for name in class_names])
        tokens = trim_padding(tokens, model.pad_id).to(accelerator.device)
        with autocast(accelerator.device.type, recipe.precision):
            texts = F.normalize(model.text_features(tokens).float(), dim=1)
        nearest = (texts @ classes.to(tokens.device).T).argmax(1).cpu()
        return {"names_found": (nearest == torch.arange(len(classes))).float().mean().item()}

    groups = parameter_groups(model, recipe.weight_decay)
    return Task(phrases, groups, prepare, loss, evaluate, save, select=None)


def train_words(args) -> list[dict]:
    """``clip_zeroshot.py words``: train a new text tower, and return the history."""
    check_files(args)
    check_out(args.out, args.resume)
    sources = captioned_sources(args.images, args.captions[:len(args.images)], args.limit)
    photos = {path: captions for source in sources for path, captions in source.items()}
    texts = [text for file in args.captions for text in read_texts(file)]
    named = [read_pairs(file, args.limit) for file in args.pairs]
    if named and not args.name_vectors:
        raise UserError("--pairs needs --name-vectors FILE.npz, which tells how similar the names "
                        "of the photos are to others")
    lexicon = read_lexicon(args.wordnet, args.name_vectors)

    recipe = Recipe.from_args(args)
    torch.manual_seed(recipe.seed)
    classes = centered_class_vectors(args.vit, args.pretrained, args.weights)
    model = new_text_tower(texts + lexicon.names, classes.shape[1], args)
    shown = {}
    if photos:
        features = tower_features(model, list(photos), recipe.compute)
        shown = photo_vectors(features, list(photos.values()), lexicon.names)
    pairs = pair_vectors([(tower_features(model, list(source), recipe.compute),
                           list(source.values())) for source in named])
    names = names_to_learn(lexicon, classes, shown, pairs, texts, args.name_scale)
    about = describe_training(args, recipe, {
        "names": len(names.names), "images": len(photos) + sum(map(len, named))})

    def save(path, model, row):
        save_clip(path, model, **about, metrics=row, centered=False)

    phrases = NamePhrases(model, names, args.texts, recipe.seed)
    task = names_task(model, phrases, classes, lexicon.class_names, save, recipe, args.word_scale)
    vocabulary = json.dumps(model.tokenizer.to_json()).encode()
    task.settings = target_settings(classes, lexicon, names) | {
        "photos and captions": photos_digest(list(photos), list(photos.values())),
        "pairs": photos_digest([path for source in named for path in source],
                               [[name] for source in named for name in source.values()]),
        "tokenizer's vocabulary": digest(vocabulary)}
    task.what = f"{len(names.names):,} names"
    return fit_recipe(model, task, recipe, args)


def new_text_tower(texts: Sequence[str], width: int, args) -> DualEncoder:
    """A new text tower, whose tokenizer learns from ``texts``, beside a frozen image tower.

    The common space is the image tower's own (``width`` features), where the class vectors are.
    """
    tokenizer = train_bpe(texts, args.vocab_size)
    config = GPT2Config(tokenizer.vocab_size, args.context, args.width, args.layers, args.heads,
                        cross_width=None, dropout=0.0)
    model = build_clip(args.vit, config, tokenizer, width=width, pretrained=args.pretrained,
                       weights=args.weights)
    torch.nn.init.eye_(model.image_proj.weight)
    torch.nn.init.zeros_(model.image_proj.bias)
    for part in (model.vision, model.image_proj, model.logit_scale):
        part.requires_grad_(False)
    return model
