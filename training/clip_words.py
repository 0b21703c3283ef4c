"""Training tasks of the small CLIP: what names mean, then pictures with texts. Between the
script and the rooms, as ``captioning`` is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from utils import UserError, autocast, resolve_run_options, warn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data import wordnet
from data.captions import captioned_images, read_texts
from inference.clip import image_features
from models.checkpoint import unwrap
from models.clip import Clip, DualEncoder, build_clip, padded, save_clip
from models.gpt2 import GPT2Config
from models.tokenizer import train_bpe
from models.vit import open_vit
from training.loop import Recipe, Task, check_out, fit, parameter_groups

PHRASES = ("{}", "a {}", "a photo of a {}", "this is a photo of {}", "the {}", "a picture of a {}",
           "a small photo of the {}", "a blurry photo of a {}.", "two {}s", "some {}",
           "a {} picture.", "the {} in a photo", "there is no {} here.", "a {}, and nothing else.")
LEAST_MENTIONS = 3  # of a name, for what captions say of it to count


# --- what names mean ----------------------------------------------------------------------------


class Words:
    """A dataset of (ids (T,), index of the name): names in changing phrases, drawn by ``weights``.

    ``vectors`` (names, C), rows of length 1, say what each of ``names`` means.
    """

    def __init__(
        self, model: DualEncoder, names: Sequence[str], vectors: np.ndarray,
        weights: Sequence[float], count: int, seed: int,
    ) -> None:
        self.model, self.names, self.count, self.seed = model, names, count, seed
        self.vectors = torch.from_numpy(vectors).float()
        self.weights = np.array(weights) / sum(weights)
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
        return ids, self.drawn[place]


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


def make_words(
    model: DualEncoder, classes: Tensor, texts: Sequence[str], photos: dict[str, np.ndarray], args
) -> Words:
    """The names of WordNet, with what the head's ``classes`` and the ``photos`` that go by a name
    (``photo_meanings``) say about each; those that ``texts`` use are drawn more often."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    nouns = wordnet.read_nouns(args.wordnet)
    known = wordnet.imagenet_nouns(
        nouns, [info.index_to_description(index, detailed=True) for index in range(1000)])
    meanings = wordnet.name_meanings(nouns, wordnet.read_frequencies(args.wordnet),
                                     wordnet.noun_vectors(nouns, known, classes.numpy()))
    said = Counter(name for text in texts for name in wordnet.mentioned(text, meanings))
    vectors, weights = [], []
    for name, meaning in meanings.items():
        vector = meaning.vector + photos.get(name, 0)
        vectors.append(vector / np.linalg.norm(vector))
        weights.append(1.0 if not meaning.steps else 0.5 if said[name] >= LEAST_MENTIONS
                       else 0.15 if meaning.used else 0.02)
    return Words(model, list(meanings), np.stack(vectors), weights, args.limit or args.texts,
                 args.seed)


def photo_meanings(
    features: np.ndarray, texts: Sequence[Sequence[str]], args
) -> dict[str, np.ndarray]:
    """Name -> unit vector: where the photos whose captions say it lie, as seen from the middle of
    all; for names that ``LEAST_MENTIONS`` photos or more are known to show.

    ``features`` (N, C) and ``texts`` are those of N photos.
    """
    names = frozenset(name for noun in wordnet.read_nouns(args.wordnet).values()
                      for name in noun.names)
    total, shares = defaultdict(float), Counter()
    for feature, captions_of_it in zip(features - features.mean(0), texts, strict=True):
        for text in captions_of_it:
            for name in wordnet.mentioned(text, names):
                total[name] += feature
                shares[name] += 1 / len(captions_of_it)
    return {name: vector / np.linalg.norm(vector) for name, vector in total.items()
            if shares[name] >= LEAST_MENTIONS}


def untrained_features(model: DualEncoder, paths: Sequence[Path], args) -> np.ndarray:
    """(N, C): what the image tower makes of undamaged photos before it is trained."""
    clip = Clip(model.to(args.device).eval(), model.preprocessing, "the image tower")
    _, features, unreadable = image_features(clip, paths, args, "look at photos")
    if unreadable:
        raise UserError("{}: {}; mend or remove it, then train".format(*unreadable[0]))
    return features


def words(args) -> list[dict]:
    """Teach a fresh text tower names while the image tower stays as it is; returns the history."""
    check_out(args.out, args.resume)
    if args.images and not args.captions:
        raise UserError(f"--images {args.images} needs --captions: what is said of the photos")
    resolve_run_options(args)
    torch.manual_seed(args.seed)
    classes, names, _ = head_directions(args)
    nouns = wordnet.read_nouns(args.wordnet)
    texts = [text for file in args.captions for text in read_texts(file)]
    names_too = [name for noun in nouns.values() for name in noun.names]
    tokenizer = train_bpe(texts + names_too, args.vocab_size)
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
    photos = {}
    if args.images:
        images = captioned_images(args.images, args.captions[0])
        photos = photo_meanings(untrained_features(model, list(images), args),
                                list(images.values()), args)
    drawn = make_words(model, classes, texts, photos, args)
    task = words_task(model, drawn, classes, names, groups_of(model, args), saver(args, len(drawn)),
                      args)
    return fit_clip(model, task, args)


def groups_of(model: DualEncoder, args) -> list[dict]:
    return parameter_groups(model, args.weight_decay, {"vision.": args.encoder_lr})


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


def fit_clip(model: DualEncoder, task: Task, args) -> list[dict]:
    recipe = Recipe(**{name: getattr(args, name) for name in Recipe.__dataclass_fields__})
    history = fit(model, task, recipe, Path(args.out), args.resume)
    warn(f"wrote best.safetensors, last.safetensors and history.csv into {args.out}")
    return history
