"""What words mean, for a text tower that has seen few pictures: WordNet and ImageNet's head.

An ImageNet classifier's head holds a vector for each of 1,000 WordNet nouns. A noun above some of
them ("bear") is given the mean of theirs, a noun beside them ("trout") what its nearest ancestor
has. That teaches tens of thousands of names without any image. WordNet (Fellbaum 1998) is free to
use; its ``data.noun`` and ``index.sense`` are in every distribution of it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils import UserError

import numpy as np


@dataclass(frozen=True)
class Noun:
    """One synset: its names, what it means, and the synsets right above it."""

    names: tuple[str, ...]
    gloss: str
    above: tuple[int, ...]


def read_nouns(folder: str | Path) -> dict[int, Noun]:
    """Offset -> noun, from WordNet's ``data.noun`` (format: wndb(5WN))."""
    nouns = {}
    for line in _lines(Path(folder) / "data.noun"):
        head, _, gloss = line.partition("|")
        fields = head.split()
        count = int(fields[3], 16)
        names = tuple(name.replace("_", " ").lower() for name in fields[4:4 + 2 * count:2])
        pointers = fields[5 + 2 * count:]
        above = tuple(int(pointers[at + 1]) for at in range(0, len(pointers), 4)
                      if pointers[at] in ("@", "@i"))
        nouns[int(fields[0])] = Noun(names, gloss.strip(), above)
    return nouns


def read_frequencies(folder: str | Path) -> dict[tuple[str, int], int]:
    """(name, offset) -> how often it has that meaning in tagged text, from ``index.sense``."""
    frequencies = {}
    for line in _lines(Path(folder) / "index.sense"):
        key, offset, _, count = line.split()
        name, _, sense = key.partition("%")
        if sense.startswith("1:"):  # a noun
            frequencies[name.replace("_", " "), int(offset)] = int(count)
    return frequencies


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text("latin-1").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; --wordnet takes WordNet's folder "
                        "with data.noun and index.sense") from None
    return [line for line in lines if not line.startswith("  ")]  # the licence stands on top


def imagenet_nouns(nouns: dict[int, Noun], descriptions: Sequence[str]) -> list[int]:
    """The noun of each class described as "name, name: gloss" (timm's ``ImageNetInfo``).

    Synset offsets differ between WordNet's versions, so names decide, and between nouns of one name
    (two cranes) the gloss.
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
            raise UserError(f"WordNet has no noun {names[0]}; is the file whole?")
        found.append(max(sorted(candidates), key=lambda offset: (
            _overlap(names, nouns[offset].names)
            + 3 * _overlap(_words(gloss), _words(nouns[offset].gloss)))))
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _overlap(a: Sequence[str], b: Sequence[str]) -> float:
    return len(set(a) & set(b)) / max(len(set(a) | set(b)), 1)


def noun_vectors(
    nouns: dict[int, Noun], classes: Sequence[int], vectors: np.ndarray, highest: int = 600
) -> dict[int, tuple[np.ndarray, int]]:
    """Offset -> (unit vector (C,), steps up to the noun that has it), from the ``vectors``
    (classes, C) of some nouns.

    Nouns with more than ``highest`` classes below them ("entity") mean too little to be given
    one, and so do those for which there is nothing else above.
    """
    below: dict[int, set[int]] = defaultdict(set)
    for index, offset in enumerate(classes):
        for ancestor in _closure(nouns, offset):
            below[ancestor].add(index)
    means = {offset: _unit(vectors[sorted(indices)].mean(0)) for offset, indices in below.items()
             if len(indices) <= highest}
    found = {}
    for offset in nouns:
        level, steps = [offset], 0
        while level and not any(place in means for place in level):
            level = [place for lower in level for place in nouns[lower].above if place in nouns]
            steps += 1
        if level:
            found[offset] = _unit(sum(means[place] for place in level if place in means)), steps
    return found


@dataclass(frozen=True)
class Meaning:
    """What a name means: the mean of its senses, those first that a picture most likely shows."""

    vector: np.ndarray  # (C,), length 1
    steps: int  # from the nearest sense up to a noun that has a vector
    used: bool  # in tagged text, in such a sense


def name_meanings(
    nouns: dict[int, Noun], frequencies: dict[tuple[str, int], int],
    vectors: dict[int, tuple[np.ndarray, int]], furthest: int = 3,
) -> dict[str, Meaning]:
    """Name -> meaning, from its senses (``noun_vectors``) that are at most ``furthest`` steps off.

    Senses that tagged text has count more, and most of all those that the vectors are about.
    """
    senses = defaultdict(list)
    for offset, (vector, steps) in vectors.items():
        if steps <= furthest:
            for name in nouns[offset].names:
                senses[name].append((vector, steps, frequencies.get((name, offset), 0) > 0))
    found = {}
    for name, each in senses.items():
        nearest = min(steps for _, steps, _ in each)
        total = sum(vector * _share(steps, used, nearest) for vector, steps, used in each)
        found[name] = Meaning(_unit(total), nearest, any(used for *_, used in each))
    return found


def _share(steps: int, used: bool, nearest: int) -> float:
    if not steps:
        return 1.0
    return (0.5 if used else 0.1 / 2 ** (steps - 1)) * (1.0 if nearest else 0.2)


def mentioned(text: str, names: Container[str]) -> set[str]:
    """Which ``names`` of one or two words, or their plurals in -s, ``text`` says."""
    words = _words(text)
    said = {*words, *map(" ".join, zip(words, words[1:], strict=False))}
    return {name for word in said
            if (name := word if word in names else word.removesuffix("s")) in names}


def _closure(nouns: dict[int, Noun], offset: int) -> set[int]:
    """The noun and everything above it."""
    seen, rest = set(), [offset]
    while rest:
        place = rest.pop()
        if place in nouns and place not in seen:
            seen.add(place)
            rest += nouns[place].above
    return seen


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(np.linalg.norm(vector), 1e-12)
