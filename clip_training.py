"""Training tasks of the small CLIP: names without pictures, then pictures with texts. Between the
script and the rooms, as ``captioning`` is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from utils import (
    UserError,
    autocast,
    read_csv,
    resolve_run_options,
    warn,
)

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import captions
import data
import training
import wordnet
from clip_features import image_features
from models.clip import Clip, DualEncoder, build_clip, load_clip, padded, save_clip
from models.gpt2 import GPT2Config
from models.tokenizer import train_bpe
from models.vit import open_vit
from training import Task

PHRASES = ("{}", "a {}", "a photo of a {}", "this is a photo of {}", "the {}", "a picture of a {}",
           "a small photo of the {}", "a blurry photo of a {}", "two {}s", "some {}")

PHOTO_PHRASES = ("a photo of a {}", "this is a photo of {}", "a picture of a {}",
                 "a blurry photo of a {}", "a small photo of the {}", "a {}")

# --- names without pictures ---------------------------------------------------------------------


class Words:
    """A dataset of (ids (T,), index of the noun): names in changing phrases.

    Names of what the ``vectors`` are about come most often, then words that tagged text uses, then
    the rest up to ``furthest`` steps away. Where a name has several meanings, a picture most likely
    shows the one that ImageNet knows.
    """

    def __init__(
        self, model: DualEncoder, nouns: dict[int, wordnet.Noun],
        frequencies: dict[tuple[str, int], int], vectors: dict[int, tuple[np.ndarray, int]],
        count: int, seed: int, furthest: int = 3,
    ) -> None:
        kept = [offset for offset, (_, steps) in vectors.items() if steps <= furthest]
        self.vectors = torch.tensor(np.stack([vectors[offset][0] for offset in kept])).float()
        seen = {name for offset in kept if not vectors[offset][1] for name in nouns[offset].names}
        self.names, self.indices, weights = [], [], []
        for index, offset in enumerate(kept):
            steps = vectors[offset][1]
            for name in nouns[offset].names:
                used = frequencies.get((name, offset), 0) > 0
                weight = 1.0 if not steps else 0.5 if used else 0.1 / 2 ** (steps - 1)
                self.names.append(name)
                self.indices.append(index)
                weights.append(weight * (0.2 if steps and name in seen else 1.0))
        self.weights = np.array(weights) / sum(weights)
        self.model, self.count, self.seed = model, count, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        random = np.random.default_rng([self.seed, epoch])
        self.drawn = random.choice(len(self.names), self.count, p=self.weights)
        self.phrases = random.integers(0, len(PHRASES), self.count)

    def __len__(self) -> int:
        return self.count

    def text(self, place: int) -> str:
        return PHRASES[self.phrases[place]].format(self.names[self.drawn[place]])

    def __getitem__(self, place: int):
        ids = _fixed(self.model, self.text(place))
        return ids, self.indices[self.drawn[place]]


def _fixed(model: DualEncoder, text: str) -> Tensor:
    """The ids of ``text`` at the full context, padded."""
    row = model.ids([text])[0]
    row = [*row[:model.context - 1], row[-1]][:model.context]
    return torch.tensor([*row, *[model.pad_id] * (model.context - len(row))])


def words_task(
    model: DualEncoder, words: Words, classes: Tensor, names: Sequence[str], groups: list[dict],
    save: Callable, args,
) -> Task:
    """Teach the text tower to say of each name what the vectors of ``classes`` (K, D) say.

    The loss is the cross-entropy between two distributions over the classes: that of the noun's own
    vector and that of the text. Judged by the share of class ``names`` that find their class.
    """
    scale = args.word_scale

    def prepare(batch):
        tokens, indices = batch
        return trim(tokens, model.pad_id), words.vectors[indices.cpu()].to(tokens.device)

    def loss(model, batch):
        tokens, vectors = batch
        written = F.normalize(unwrap(model).text_features(tokens).float(), dim=1)
        meant = (scale * vectors @ classes.to(tokens.device).T).softmax(1)
        said = (scale * written @ classes.to(tokens.device).T)
        right = (said.argmax(1) == meant.argmax(1)).sum().item()
        return F.cross_entropy(said, meant), right

    @torch.inference_mode()
    def validate(model, accelerator):
        rows = padded([row[:model.context] for row in
                       model.ids([f"a photo of a {name}" for name in names])], model.pad_id)
        with autocast(args.device, args.precision):
            written = F.normalize(model.text_features(rows.to(args.device)).float(), dim=1)
        nearest = (written @ classes.to(args.device).T).argmax(1).cpu()
        return {"names_found": (nearest == torch.arange(len(classes))).float().mean().item()}

    return Task(words, groups, prepare, loss, validate, save, select=None)


def trim(tokens: Tensor, pad_id: int) -> Tensor:
    """(N, context) -> (N, longest): as much as the longest text needs, its end token included."""
    used = (tokens != pad_id).any(0).sum() + 1
    return tokens[:, :min(int(used), tokens.shape[1])]


def unwrap(model) -> DualEncoder:
    return getattr(model, "module", model)


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
        self.images = data.LabelledImages(paths, list(range(len(paths))), augment, seed)
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


def class_shares(
    model: DualEncoder, paths: Sequence[Path], classes: Tensor, scale: float, args
) -> Tensor:
    """(images, classes): what the image tower makes of undamaged images before training, as a
    distribution over the ``classes`` (K, D): the teacher of what it shall make of damaged ones."""
    clip = Clip(model.to(args.device).eval(), model.preprocessing, "the teacher")
    _, seen, unreadable = image_features(clip, paths, args, "teacher")
    if unreadable:
        raise UserError("{}: {}; mend or remove it, then train".format(*unreadable[0]))
    return (scale * torch.from_numpy(seen) @ classes.T).softmax(1)


def contrastive_task(
    model: DualEncoder, pairs: Pairs, words: Words | None, classes: Tensor | None,
    teacher: Tensor | None, groups: list[dict], validate: Callable, save: Callable, args,
) -> Task:
    """CLIP's symmetric loss over a batch (Radford et al. 2021, Sec. 2.3), with two reminders: the
    ``teacher``'s shares (images, K) of the ``classes`` (K, D), and ``words`` beside the texts."""
    transform = data.Transform.from_fields(model.preprocessing)
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


# --- the commands -------------------------------------------------------------------------------


def head_directions(args) -> tuple[Tensor, list[str], Tensor]:
    """((1000, D) unit rows, the classes' first names, the head's mean row): which way ImageNet's
    classes lie from their common middle, in the features of the image tower."""
    vit = open_vit(args.vit, args.pretrained, args.weights)
    weight = vit.model.get_classifier().weight.detach()
    if len(weight) != 1000:
        raise UserError(f"{args.weights or args.vit} has {len(weight)} classes; the words are "
                        "taught by a head over ImageNet's 1,000")
    names = [vit.name_of(label).split(",")[0].lower() for label in vit.classes]
    return F.normalize(weight - weight.mean(0), dim=1), names, weight.mean(0)


def make_words(model: DualEncoder, classes: Tensor, args) -> Words:
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    nouns = wordnet.read_nouns(args.wordnet)
    known = wordnet.imagenet_nouns(
        nouns, [info.index_to_description(index, detailed=True) for index in range(1000)])
    vectors = wordnet.noun_vectors(nouns, known, classes.numpy())
    return Words(model, nouns, wordnet.read_frequencies(args.wordnet), vectors,
                 args.limit or args.texts, args.seed)


def read_pairs(args) -> tuple[list[Path], list[list[str]]]:
    """Images and the texts of each, from --pairs and from --images with --captions."""
    paths, texts = [], []
    for file in args.pairs:
        for row in read_csv(file, "image", "text"):
            paths.append(Path(file).parent / row["image"])
            texts.append([phrase.format(row["text"]) for phrase in PHOTO_PHRASES])
    if args.captions:
        images = captions.captioned_images(args.images, args.captions)
        paths += images
        texts += images.values()
    if not paths:
        raise UserError("nothing to learn from: give --pairs, or --images with --captions")
    return paths, texts


def words(args) -> list[dict]:
    """Teach a fresh text tower names, without any picture; returns the history."""
    training.check_out(args.out, args.resume)
    resolve_run_options(args)
    torch.manual_seed(args.seed)
    classes, names, _ = head_directions(args)
    nouns = wordnet.read_nouns(args.wordnet)
    texts = [text for file in args.captions for text in captions.read_texts(file)]
    texts += [name for noun in nouns.values() for name in noun.names]
    tokenizer = train_bpe(texts, args.vocab_size)
    config = GPT2Config(tokenizer.vocab_size, args.context, args.width, args.layers, args.heads,
                        None, dropout=0.0)
    model = build_clip(args.vit, config, tokenizer, width=classes.shape[1],
                       pretrained=args.pretrained, weights=args.weights)
    with torch.no_grad():  # the common space is the image tower's own, where the classes lie
        model.image_proj.weight.copy_(torch.eye(classes.shape[1]))
        model.image_proj.bias.zero_()
    model.vision.requires_grad_(False)
    model.image_proj.requires_grad_(False)
    model.logit_scale.requires_grad_(False)
    drawn = make_words(model, classes, args)
    task = words_task(model, drawn, classes, names, groups_of(model, args), saver(args, len(drawn)),
                      args)
    return fit(model, task, args)


def pairs(args) -> list[dict]:
    """Train both towers on images with texts; returns the history."""
    training.check_out(args.out, args.resume)
    paths, texts = read_pairs(args)
    data.check_images(paths)
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
        drawn = make_words(model, classes, args) if args.wordnet else None
        teacher = class_shares(model, paths, classes, args.word_scale, args)
    model.requires_grad_(True)
    if args.freeze:  # what is below needs no backward pass, a third of the time for half a ViT
        vision = model.vision
        for part in (vision.patch_embed, vision.blocks[:args.freeze]):
            part.requires_grad_(False)
        vision.pos_embed.requires_grad_(False)
        vision.cls_token.requires_grad_(False)
    transform = data.Transform.from_fields(model.preprocessing)
    augment = Shrunk(data.augmentation(args.augment, transform), args.shrink_to, args.shrink)
    dataset = Pairs(model, paths, texts, augment, args.seed)
    task = contrastive_task(model, dataset, drawn, classes, teacher, groups_of(model, args),
                            lambda model, accelerator: {}, saver(args, len(paths)), args)
    return fit(model, task, args)


def center(model: DualEncoder, paths: Sequence[Path], args) -> None:
    """Move the origin of the image features to their mean: before, all images point one way."""
    clip = Clip(model.to(args.device).eval(), model.preprocessing, "the untrained tower")
    transform = data.Transform.from_fields(model.preprocessing)
    total = []
    for _, pixels in data.read_batches(paths, transform, 32, lambda path, reason: None):
        with torch.inference_mode():
            total.append(clip.towers.image_features(
                transform.normalize(torch.from_numpy(pixels).to(args.device))).mean(0))
    with torch.no_grad():
        model.image_proj.bias.sub_(torch.stack(total).mean(0))
    model.metadata["centered"] = True


def groups_of(model: DualEncoder, args) -> list[dict]:
    return training.parameter_groups(model, args.weight_decay, {"vision.": args.encoder_lr})


def saver(args, count: int) -> Callable:
    """What writes a checkpoint that says how it was trained."""
    files = ("weights", "checkpoint", "images", "captions", "pairs", "wordnet")

    def bare(value):
        return [bare(word) for word in value] if isinstance(value, list) else Path(value).name

    recipe = {key: bare(value) if key in files and value else value
              for key, value in vars(args).items() if key not in ("run", "out", "about", "resume")}

    def save(path, model, row):
        save_clip(path, model, recipe=recipe, trained_on={"samples": count}, metrics=row,
                  about=args.about, centered=model.metadata.get("centered", False))

    return save


def fit(model: DualEncoder, task: Task, args) -> list[dict]:
    recipe = training.Recipe(**{name: getattr(args, name)
                                for name in training.Recipe.__dataclass_fields__})
    history = training.fit(model, task, recipe, Path(args.out), args.resume)
    warn(f"wrote best.safetensors, last.safetensors and history.csv into {args.out}")
    return history
