"""Sentences about position embeddings, attention maps and the maps of words. Each rule has a
condition; where it does not hold, the rule says something else that does, or nothing (None). Pure
functions of numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from metrics.clipscore import mean_interval
from report.observations import FUNCTION_WORDS, RESAMPLES
from report.section import count, listed, percent, with_interval

# --- position embeddings ------------------------------------------------------------------------


def rows_and_columns(numbers: Mapping) -> str | None:
    """Whether patches of one row or column are more similar than others, by at least 0.1."""
    row, column, elsewhere = (numbers[key] for key in ("same_row", "same_column", "elsewhere"))
    if None in (row, column, elsewhere):
        return None
    shown = (f"The mean cosine similarity is {row:.2f} in the same row, {column:.2f} in the same "
             f"column and {elsewhere:.2f} elsewhere")
    known = [name for name, value in (("rows", row), ("columns", column))
             if value - elsewhere >= 0.1]
    if known:
        return f"{shown}: the embedding tells {listed(known)} apart."
    return f"{shown}: neither rows nor columns stand out by 0.1."


def by_distance(table: Mapping[str, float]) -> str | None:
    """How the similarity changes with the distance between patches."""
    steps = {int(step): value for step, value in table.items() if value is not None}
    if len(steps) < 3:
        return None
    first, last = min(steps), max(steps)
    lowest = min(steps, key=steps.get)
    text = (f"The mean similarity is {steps[first]:.2f} for patches at a distance of {first}, and "
            f"{steps[lowest]:.2f}, its lowest value, at a distance of {lowest}")
    if steps[last] - steps[lowest] >= 0.05:
        return f"{text}; at the largest distance, {last}, it is {steps[last]:.2f} again."
    return f"{text}."


# --- maps ---------------------------------------------------------------------------------------


def corners(maps: np.ndarray) -> str:
    """Maps (photos, rows, cols): the share of the four corner patches beside that of any four."""
    shares = maps / maps.sum((1, 2), keepdims=True)
    share = float(shares[:, [0, 0, -1, -1], [0, -1, 0, -1]].sum(1).mean())
    chance = 4 / shares[0].size
    shown = (f"The four corner patches get {percent(share)} of the map on average; any four "
             f"patches of {shares[0].size} would get {percent(chance)}")
    if share >= 2 * chance:
        return f"{shown}. The corners are bright whatever the photo shows."
    return f"{shown}, so the corners do not stand out."


def peaks_inside(maps: np.ndarray, method: str) -> str:
    """On how many photos the peak of the ``method``'s map lies in the middle half of the height and
    of the width."""
    row, col = (abs(2 * np.arange(size) + 1 - size) <= size / 2 for size in maps.shape[1:])
    middle = np.outer(row, col)
    inside = sum(middle.flat[grid.argmax()] for grid in maps)
    return (f"On {inside} of {count(len(maps), 'photo')} the peak of {method} lies in the middle "
            f"half of the height and of the width, which has {percent(middle.mean())} of the "
            "patches.")


def pointing(rows: Sequence[Mapping]) -> str:
    """The kind of map that peaks inside a box most often, beside chance and the other kinds."""
    best = max(rows, key=lambda row: row["share"])
    low, high = best["share_95"]
    verdict = ("more often than by chance" if low > best["chance"] else
               "less often than by chance" if high < best["chance"] else
               "the interval contains chance")
    text = (f"{best['map']} peaks inside a box most often, on {best['hits']} of {best['maps']} "
            f"maps, {with_interval(best['share'], best['share_95'], percent)}; by chance it would "
            f"be {percent(best['chance'])}: {verdict}.")
    near = [row["map"] for row in rows if row is not best and row["share_95"][1] >= low]
    if near:
        text += (f" Its interval overlaps with {'that' if len(near) == 1 else 'those'} of "
                 f"{listed(near)}.")
    return text


def spread_of_maps(bits: Sequence[float], patches: int) -> str:
    """Mean entropy of maps over ``patches``, as the number of equal patches that would have it."""
    mean = float(np.mean(bits))
    return (f"The entropy of the maps is {mean:.1f} bits on average, as if the attention were "
            f"shared evenly by {2 ** mean:.0f} of the {patches} patches.")


def agreement(first: str, second: str, maps: tuple[np.ndarray, np.ndarray]) -> str:
    """How many of the brightest tenth of the patches two kinds of maps have in common."""
    flat = [part.reshape(len(part), -1) for part in maps]
    tenth = max(flat[0].shape[1] // 10, 1)
    tops = [np.argsort(-part, axis=1, kind="stable")[:, :tenth] for part in flat]
    common = float(np.mean([len(np.intersect1d(*pair)) / tenth
                            for pair in zip(*tops, strict=True)]))
    chance = tenth / flat[0].shape[1]
    verdict = "the two show much the same" if common >= 0.5 else "the two show different things"
    return (f"Of the brightest tenth of the patches, {first} and {second} have {percent(common)} "
            f"in common ({percent(chance)} by chance): {verdict}.")


# --- words --------------------------------------------------------------------------------------


def sharpest(words: Sequence[Mapping]) -> str | None:
    """Words with their "entropy_share": those of the sharpest and of the most even map."""
    if len(words) < 2:
        return None
    low, high = (pick(words, key=lambda word: word["entropy_share"]) for pick in (min, max))
    return (f'The sharpest map is that of "{low["word"]}" ({percent(low["entropy_share"])} of the '
            f'largest possible entropy), the most even one that of "{high["word"]}" '
            f'({percent(high["entropy_share"])}).')


def function_words(words: Sequence[Mapping]) -> str | None:
    """Mean entropy of words such as "a" and "of" beside that of the others, with intervals; at
    least five words of each kind are needed."""
    kinds: dict[bool, list[float]] = {True: [], False: []}
    for word in words:
        if word["word"].isalpha():
            kinds[word["word"].lower() in FUNCTION_WORDS].append(word["entropy_share"])
    if min(map(len, kinds.values())) < 5:
        return None
    parts = {kind: (float(np.mean(values)), mean_interval(np.array(values), RESAMPLES))
             for kind, values in kinds.items()}
    (ours, our_interval), (theirs, their_interval) = parts[True], parts[False]
    shown = (f'The maps of {len(kinds[True])} words such as "a" and "of" have '
             f"{with_interval(ours, our_interval, percent)} of the largest entropy, those of the "
             f"{len(kinds[False])} others {with_interval(theirs, their_interval, percent)}")
    if our_interval[0] > their_interval[1]:
        return f"{shown}: the maps of the others are sharper."
    if our_interval[1] < their_interval[0]:
        return f"{shown}: the maps of the others are more even."
    return f"{shown}: the intervals overlap, so the two kinds cannot be told apart."


def shared_peak(captions: Sequence[Sequence[Mapping]]) -> str | None:
    """For each caption, its words with their "peak": how many of them peak at one and the same
    patch, which then says little about the word."""
    peaks = [Counter((word["peak"]["row"], word["peak"]["col"]) for word in words)
             for words in captions if words]
    tops = [count_of.most_common(1)[0][1] for count_of in peaks]
    total = sum(map(len, captions))
    if total < 2:
        return None
    share = sum(tops) / total
    verdict = ("such a peak does not tell words apart" if share >= 0.5
               else "the peak moves from word to word")
    return (f"{percent(share)} of the words have their peak at the patch that is the most frequent "
            f"peak of their caption: {verdict}.")


def sharper(best: Sequence[float], worst: Sequence[float]) -> str | None:
    """Shares of the largest entropy of the words of the best and of the worst caption."""
    if not best or not worst:
        return None
    ours, theirs = float(np.mean(best)), float(np.mean(worst))
    kind = "sharper than" if ours < theirs else "more even than"
    if abs(ours - theirs) < 0.01:
        kind = "about as sharp as"
    return (f"The maps of the best caption are {kind} those of the worst: {percent(ours)} and "
            f"{percent(theirs)} of the largest entropy.")
