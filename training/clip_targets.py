"""What CLIP's training compares names and photos with: vectors in the space of the image tower.

A name's vector is the mean of up to three vectors of length 1, normalized:

- WordNet: the mean of the ImageNet classes that the name means, or of its nearest hypernym's
  (``data.wordnet``)
- photos: the mean of the centered features of photos whose captions mention the name
- a sentence encoder (``--name-vectors``): the mean of the class vectors and of what named photos
  show (``--pairs``), weighted by a softmax over the cosines between the sentence vectors of the
  name and of their names
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from utils import UserError

import numpy as np
import torch.nn.functional as F
from timm.data import ImageNetInfo

from data import wordnet
from data.compute import Compute
from data.files import read_mapping
from data.folders import spread
from inference.clip import image_features
from inference.zeroshot import softmax
from models.clip import Clip, DualEncoder
from models.vit import open_vit

CLASSES = 1000  # of ImageNet-1k
LEAST_MENTIONS = 3  # captions that mention a name, or photos that show it, before they count

# --- the image tower ----------------------------------------------------------------------------


def centered_class_vectors(vit: str, pretrained: bool, weights: str | Path | None) -> np.ndarray:
    """(1000, D) float32: the rows of an ImageNet classifier's head minus their mean, normalized.

    Raises UserError for a classifier with another number of classes.
    """
    head = open_vit(vit, pretrained, weights).model.get_classifier().weight.detach()
    if len(head) != CLASSES:
        raise UserError(f"{weights or vit} has {len(head)} classes, but names get their vectors "
                        "from the 1,000 of ImageNet: give --weights of such a classifier")
    return F.normalize(head - head.mean(0), dim=1).numpy()


def tower_features(model: DualEncoder, paths: Sequence[Path], compute: Compute) -> np.ndarray:
    """(N, D): features of photos, rows of length 1, before the image tower is trained.

    Raises UserError where a photo cannot be read.
    """
    clip = Clip(model.to(compute.device).eval(), model.preprocessing, "the image tower")
    _, features, unreadable = image_features(clip, paths, compute, "encode photos")
    if unreadable:
        raise UserError("{}: {}; repair or remove it, then train".format(*unreadable[0]))
    return features


# --- names --------------------------------------------------------------------------------------


def read_pairs(file: str | Path, limit: int | None) -> dict[Path, str]:
    """Image file -> the name of what it shows, from a CSV ``image,text`` with paths beside it;
    ``limit`` rows at most, spread evenly. UserError where there are none."""
    rows = spread(list(read_mapping(file, "image", "text").items()), limit)
    if not rows:
        raise UserError(f"{file} lists no image; give a file with rows under its header")
    return {Path(file).parent / image: text for image, text in rows}


@dataclass(frozen=True)
class Lexicon:
    """Names, and what files say about them."""

    nouns: dict[int, wordnet.Noun]
    frequencies: dict[tuple[str, int], int]
    classes: list[int]  # the noun of each ImageNet class
    class_names: list[str]
    sentences: dict[str, np.ndarray]  # vectors of a sentence encoder, length 1

    @cached_property
    def names(self) -> list[str]:
        """Every noun's names, so that some occur several times, and then the encoder's others."""
        names = [name for noun in self.nouns.values() for name in noun.names]
        known = set(names)
        return names + [name for name in self.sentences if name not in known]


def read_lexicon(folder: str | Path, vectors: str | Path | None = None) -> Lexicon:
    """WordNet's ``folder``, and sentence vectors of names (``data.wordnet.read_name_vectors``).

    Raises UserError where WordNet is not complete, and where the vectors lack a class name.
    """
    nouns, frequencies = wordnet.read_nouns(folder), wordnet.read_frequencies(folder)
    info = ImageNetInfo()
    descriptions = [info.index_to_description(index, detailed=True) for index in range(CLASSES)]
    class_names = [text.partition(":")[0].partition(",")[0].lower() for text in descriptions]
    sentences = wordnet.read_name_vectors(vectors) if vectors else {}
    missing = [name for name in dict.fromkeys(class_names) if name not in sentences]
    if vectors and missing:
        raise UserError(f"{vectors} lacks {len(missing)} of ImageNet's class names "
                        f"({', '.join(missing[:3])}{', …' * (len(missing) > 3)}), with which the "
                        "other names are compared: add their vectors")
    return Lexicon(nouns, frequencies, wordnet.imagenet_nouns(nouns, descriptions), class_names,
                   sentences)


@dataclass(frozen=True)
class Names:
    """Names to learn, a vector (D,) of length 1 for each, and how often it is drawn, relative to
    the others."""

    names: list[str]
    vectors: np.ndarray  # (names, D) float32
    weights: list[float]


def names_to_learn(
    lexicon: Lexicon, classes: np.ndarray, photos: dict[str, np.ndarray],
    pairs: dict[str, np.ndarray], texts: Sequence[str], name_scale: float,
) -> Names:
    """The names that WordNet relates to ``classes`` (K, D) and those with sentence vectors.

    ``photos`` (``photo_vectors``) are a third source; ``pairs`` (``pair_vectors``) are compared
    with as the classes are (``sentence_means``). Names are drawn more often where they mean an
    ImageNet class or several, then where ``texts`` mention them, then where they are in use.
    """
    meanings = wordnet.name_meanings(
        lexicon.nouns, lexicon.frequencies,
        wordnet.noun_vectors(lexicon.nouns, lexicon.classes, classes))
    sentences = sentence_means(lexicon, classes, pairs, name_scale)
    names = list(dict.fromkeys([*meanings, *sentences]))
    known = frozenset(names)
    mentions = Counter(name for text in texts for name in wordnet.mentioned(text, known))
    sums = np.zeros((len(names), classes.shape[1]))
    for row, name in zip(sums, names, strict=True):
        if name in meanings:
            row += meanings[name].vector
        row += photos.get(name, 0) + sentences.get(name, 0)
    vectors = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return Names(names, vectors.astype(np.float32),
                 [_draw_weight(meanings.get(name), mentions[name]) for name in names])


def _draw_weight(meaning: wordnet.Meaning | None, mentions: int) -> float:
    if meaning and not meaning.steps:  # an ImageNet class, or a hypernym of several
        return 1.0
    if mentions >= LEAST_MENTIONS:
        return 0.5
    # A name that WordNet does not relate to the classes is there because someone added it.
    return 0.15 if meaning is None or meaning.used else 0.02


def sentence_means(
    lexicon: Lexicon, classes: np.ndarray, pairs: dict[str, np.ndarray], scale: float
) -> dict[str, np.ndarray]:
    """Name -> vector (D,), length 1: the mean of ``classes`` (K, D) and of the vectors of
    ``pairs``, weighted by the softmax of ``scale`` times the cosine between the sentence vectors of
    the name and of each class's and pair's name.

    Empty where there are no sentence vectors; pairs whose name has none do not count.
    """
    if not lexicon.sentences:
        return {}
    known = [name for name in pairs if name in lexicon.sentences]
    of_known = np.stack([lexicon.sentences[name] for name in [*lexicon.class_names, *known]])
    vectors = np.concatenate([classes, *[pairs[name][None] for name in known]])
    names, found = list(lexicon.sentences), {}
    for start in range(0, len(names), 4096):  # bounds the memory of (names, K)
        part = names[start:start + 4096]
        cosines = np.stack([lexicon.sentences[name] for name in part]) @ of_known.T
        means = softmax(scale * cosines) @ vectors
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        found.update(zip(part, means, strict=True))
    return found


def photo_vectors(
    features: np.ndarray, captions: Sequence[Sequence[str]], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Name -> mean of the centered features of photos whose captions mention it, normalized.

    ``features`` (N, D) and ``captions`` are of N photos. A photo counts by the share of its
    captions that mention the name; a name needs ``LEAST_MENTIONS`` photos.
    """
    if not len(features):
        return {}
    known = frozenset(names)
    sums, shares = defaultdict(float), Counter()
    for feature, texts in zip(features - features.mean(0), captions, strict=True):
        for text in texts:
            for name in wordnet.mentioned(text, known):
                sums[name] += feature
                shares[name] += 1 / len(texts)
    return {name: vector / np.linalg.norm(vector) for name, vector in sums.items()
            if shares[name] >= LEAST_MENTIONS}


def pair_vectors(
    sources: Sequence[tuple[np.ndarray, Sequence[str]]]
) -> dict[str, np.ndarray]:
    """Name -> mean of the features of the photos that show it, normalized, from the features (N, D)
    and the names of each source. Features are centered within their source, because photos of one
    source have more in common than what they show."""
    sums = defaultdict(float)
    for features, names in sources:
        for feature, name in zip(features - features.mean(0), names, strict=True):
            sums[name] += feature
    return {name: vector / np.linalg.norm(vector) for name, vector in sums.items()
            if np.linalg.norm(vector)}


# --- what a resumed training must repeat --------------------------------------------------------


def target_settings(classes: np.ndarray, lexicon: Lexicon | None, names: Names | None) -> dict:
    """Digests of what the targets follow from (``Task.settings``).

    What a model computed is left out: another number of threads changes its last digits.
    """
    settings = {"class vectors": digest(classes.tobytes())}
    if names:
        content = json.dumps([names.names, names.weights]).encode()
        settings["names to learn"] = f"{len(names.names)} (digest {digest(content)})"
        vectors = b"".join(vector.tobytes() for vector in lexicon.sentences.values())
        settings["sentence vectors"] = digest(vectors) if vectors else "none"
    return settings


def digest(content: bytes) -> str:
    """The first 12 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:12]
