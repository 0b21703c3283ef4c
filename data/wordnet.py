"""What nouns mean: WordNet's files, the vectors that nouns get from ImageNet's classes, and vectors
of a sentence encoder.

The head of an ImageNet classifier has a vector for each of 1,000 classes, which are nouns of
WordNet. A hypernym ("bear") gets the mean of its classes' vectors; any other noun ("trout") its
nearest hypernym's. So tens of thousands of names have a vector without any photo of theirs. WordNet
(Fellbaum 1998) is free to use; every distribution of it has ``data.noun`` and ``index.sense``.

Needs no torch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils import UserError

import numpy as np

from data.files import read_lines


@dataclass(frozen=True)
class Noun:
    """One synset: its names, its definition, and the offsets of its direct hypernyms."""

    names: tuple[str, ...]
    gloss: str
    hypernyms: tuple[int, ...]


# --- files --------------------------------------------------------------------------------------


def read_nouns(folder: str | Path) -> dict[int, Noun]:
    """Offset -> noun, from WordNet's ``data.noun`` (format: wndb(5WN)); names are in lower case,
    with spaces for underscores."""
    nouns, path = {}, Path(folder) / "data.noun"
    for line in _lines(path):
        head, _, gloss = line.partition("|")
        fields = head.split()
        try:
            count = int(fields[3], 16)
            names = tuple(_plain(name) for name in fields[4:4 + 2 * count:2])
            pointers = fields[5 + 2 * count:]
            hypernyms = tuple(int(pointers[at + 1]) for at in range(0, len(pointers), 4)
                              if pointers[at] in ("@", "@i"))
            nouns[int(fields[0])] = Noun(names, gloss.strip(), hypernyms)
        except (ValueError, IndexError):
            raise UserError(f"{path} is damaged, or not WordNet's: {line[:60]}") from None
    return nouns


def read_frequencies(folder: str | Path) -> dict[tuple[str, int], int]:
    """(name, offset) -> how often tagged text uses the name for that noun, from ``index.sense``."""
    frequencies, path = {}, Path(folder) / "index.sense"
    for line in _lines(path):
        try:
            key, offset, _, count = line.split()
            name, _, sense = key.partition("%")
            if sense.startswith("1:"):  # a noun
                frequencies[name.replace("_", " "), int(offset)] = int(count)
        except ValueError:
            raise UserError(f"{path} is damaged, or not WordNet's: {line[:60]}") from None
    return frequencies


def _lines(path: Path) -> list[str]:
    try:
        lines = read_lines(path, "replace")
    except UserError as error:
        raise UserError(f"{error}; --wordnet takes WordNet's folder with data.noun and index.sense"
                        ) from None
    return [line for line in lines if not line.startswith("  ")]  # the licence stands on top


def read_name_vectors(path: str | Path) -> dict[str, np.ndarray]:
    """Name -> its sentence vector (D,), length 1, from an .npz file with the arrays ``names`` (N,)
    of strings and ``vectors`` (N, D) of numbers. Names become as in ``read_nouns``.

    Raises UserError for a file that does not have them, and for a name that occurs twice.
    """
    try:
        with np.load(path) as arrays:
            names, vectors = arrays["names"], arrays["vectors"]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception:  # numpy's reader raises many kinds of errors for what it cannot read
        names = vectors = None
    if (names is None or names.ndim != 1 or names.dtype.kind != "U" or vectors.ndim != 2
            or len(names) != len(vectors) or vectors.dtype.kind not in "fiu"
            or not np.isfinite(vectors).all()):
        raise UserError(f"{path} must be an .npz file with the arrays names (N,) of strings and "
                        "vectors (N, D) of finite numbers")
    found = {}
    for name, vector in zip(map(_plain, names.tolist()), vectors, strict=True):
        if name in found:
            raise UserError(f"{path} has two vectors for the name {name} (capital letters and "
                            "underscores make no difference); keep one")
        found[name] = _unit(vector.astype(np.float32))
    return found


def _plain(name: str) -> str:
    return name.replace("_", " ").strip().lower()


# --- vectors from ImageNet's classes ------------------------------------------------------------


def imagenet_nouns(nouns: dict[int, Noun], descriptions: Sequence[str]) -> list[int]:
    """The offset of each class described as "name, name: gloss" (timm's ``ImageNetInfo``).

    Offsets differ between WordNet's versions, so a class is found by its names, and where several
    nouns share a name (two cranes), by its gloss.
    """
    by_name = defaultdict(list)
    for offset, noun in nouns.items():
        for name in noun.names:
            by_name[name].append(offset)
    found = []
    for description in descriptions:
        names, _, gloss = description.partition(": ")
        names = [name.strip().lower() for name in names.split(",")]
        candidates = {offset for name in names for offset in by_name[name]}
        if not candidates:
            raise UserError(f"--wordnet has no noun {names[0]}, which is an ImageNet class: its "
                            "data.noun is not complete; fetch it again")
        found.append(max(sorted(candidates), key=lambda offset: (
            _overlap(names, nouns[offset].names)
            + 3 * _overlap(_words(gloss), _words(nouns[offset].gloss)))))
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _overlap(a: Sequence[str], b: Sequence[str]) -> float:
    return len(set(a) & set(b)) / max(len(set(a) | set(b)), 1)


def noun_vectors(
    nouns: dict[int, Noun], classes: Sequence[int], vectors: np.ndarray, most_classes: int = 600
) -> dict[int, tuple[np.ndarray, int]]:
    """Offset -> (unit vector (C,), steps up to the noun that it was taken from), from the
    ``vectors`` (classes, C) of the nouns at the offsets ``classes``.

    Nouns with more than ``most_classes`` classes below them ("entity") are too general to have a
    vector; a noun with no other hypernym gets none.
    """
    below: dict[int, set[int]] = defaultdict(set)
    for index, offset in enumerate(classes):
        for ancestor in _ancestors(nouns, offset):
            below[ancestor].add(index)
    means = {offset: _unit(vectors[sorted(indices)].mean(0)) for offset, indices in below.items()
             if len(indices) <= most_classes}
    found = {}
    for offset in nouns:
        level, steps = [offset], 0
        while level and not any(place in means for place in level):
            level = [place for lower in level for place in nouns[lower].hypernyms if place in nouns]
            steps += 1
        if level:
            found[offset] = _unit(sum(means[place] for place in level if place in means)), steps
    return found


@dataclass(frozen=True)
class Meaning:
    """What a name means: the weighted mean of the vectors of the nouns that it names."""

    vector: np.ndarray  # (C,), length 1
    steps: int  # from the nearest of these nouns up to one that is above ImageNet classes
    used: bool  # whether tagged text uses the name for one of them


def name_meanings(
    nouns: dict[int, Noun], frequencies: dict[tuple[str, int], int],
    vectors: dict[int, tuple[np.ndarray, int]], most_steps: int = 3,
) -> dict[str, Meaning]:
    """Name -> meaning, from the nouns of that name whose vector (``noun_vectors``) is at most
    ``most_steps`` away.

    Nouns that tagged text uses count more, and nouns that are ImageNet classes or above them count
    most: a photo shows those most likely.
    """
    senses = defaultdict(list)
    for offset, (vector, steps) in vectors.items():
        if steps <= most_steps:
            for name in nouns[offset].names:
                senses[name].append((vector, steps, frequencies.get((name, offset), 0) > 0))
    found = {}
    for name, each in senses.items():
        nearest = min(steps for _, steps, _ in each)
        total = sum(vector * _sense_weight(steps, used, nearest) for vector, steps, used in each)
        found[name] = Meaning(_unit(total), nearest, any(used for *_, used in each))
    return found


def _sense_weight(steps: int, used: bool, nearest: int) -> float:
    if not steps:
        return 1.0
    return (0.5 if used else 0.1 / 2 ** (steps - 1)) * (1.0 if nearest else 0.2)


def mentioned(text: str, names: Container[str]) -> set[str]:
    """Those ``names`` of one or two words that ``text`` contains, with or without a plural s."""
    words = _words(text)
    parts = {*words, *map(" ".join, zip(words, words[1:], strict=False))}
    return {name for part in parts
            if (name := part if part in names else part.removesuffix("s")) in names}


def _ancestors(nouns: dict[int, Noun], offset: int) -> set[int]:
    """The noun itself and all its hypernyms, direct and indirect."""
    seen, rest = set(), [offset]
    while rest:
        place = rest.pop()
        if place in nouns and place not in seen:
            seen.add(place)
            rest += nouns[place].hypernyms
    return seen


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(np.linalg.norm(vector), 1e-12)
