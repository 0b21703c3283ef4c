"""Sentences that follow from measured numbers. Each rule has a condition; where it does not hold,
the rule says something else that does, or nothing (None). Pure functions of numbers and names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from metrics.clipscore import mean_interval
from report.section import Measured, count, listed, percent, plain, with_interval

MOST = 4  # observations of a section
WIDE = 0.2  # an accuracy's interval from which on it is called wide
FEWEST = 20  # photos from which on a resampled interval can be trusted
RESAMPLES = 1000  # behind the intervals that are computed here
FUNCTION_WORDS = frozenset("a an the of in on at to and with is are for by from".split())


def said(*sentences: str | None) -> list[str]:
    """The first of the sentences that rules have said."""
    return [sentence for sentence in sentences if sentence][:MOST]


# --- settings that are compared -----------------------------------------------------------------


def best_of(rows: Sequence[Measured]) -> int | None:
    """The index of the highest value; None where there is nothing to compare."""
    return max(range(len(rows)), key=lambda i: rows[i].value) if len(rows) > 1 else None


def told_apart(
    rows: Sequence[Measured], write: Callable[[float], str] = plain
) -> str | None:
    """Which settings the best one can be told apart from: those whose interval ends below its."""
    if len(rows) < 2:
        return None
    best = rows[best_of(rows)]
    others = [row for row in rows if row is not best]
    near = [row.name for row in others if row.high >= best.low]
    far = [row.name for row in others if row.high < best.low]
    shown = f"{best.name} has the highest value, {with_interval(best.value, best[2:], write)}."
    if not near:
        return (f"{shown} Its interval lies above {'that' if len(far) == 1 else 'those'} of "
                f"{listed(far)}.")
    text = (f"{shown} Its interval overlaps with {'that' if len(near) == 1 else 'those'} of "
            f"{listed(near)}: the intervals alone do not tell them apart.")
    return text + (f" It lies above {'that' if len(far) == 1 else 'those'} of {listed(far)}."
                   if far else "")


def paired(first: str, second: str, values: tuple[Sequence[float], Sequence[float]],
           quantity: str) -> str | None:
    """The mean difference of two settings on the same photos, with its bootstrap interval; nothing
    on fewer than ``FEWEST`` photos, on which such an interval is too narrow."""
    differences = np.subtract(*values)
    differences = differences[np.isfinite(differences)]
    if len(differences) < FEWEST:
        return None
    low, high = mean_interval(differences, RESAMPLES)
    mean = float(differences.mean())
    verdict = ("contains 0: the difference may be chance" if low <= 0 <= high
               else "does not contain 0: the difference is more than chance")
    return (f"Photo by photo, the {quantity} of {first} minus that of {second} is {mean:+.3f} on "
            f"average; the interval ({low:+.3f} to {high:+.3f}) {verdict}.")


def same_photos(first: str, second: str, compared: Mapping) -> str:
    """What ``p1_vit_classify.py compare`` says of two classifiers on the same photos."""
    gap, interval = (100 * np.array(compared[key]) for key in ("difference", "difference_95"))
    p = compared["mcnemar_p"]
    verdict = ("the difference is more than chance explains" if p < 0.05
               else "the difference may be chance")
    return (f"{first} alone is right on {count(compared['only_first_right'], 'photo')}, {second} "
            f"alone on {compared['only_second_right']}. The first minus the second is {gap:+.1f} "
            f"points ({interval[0]:+.1f} to {interval[1]:+.1f}), and McNemar's exact test gives "
            f"p = {p:.2g}: {verdict}.")


def few_photos(correct: int, total: int, interval: Sequence[float]) -> str | None:
    """Whether the test is so small that only large differences could be seen."""
    width = interval[1] - interval[0]
    if width < WIDE:
        return None
    return (f"{correct} of {count(total, 'photo')} right: the interval is {100 * width:.0f} points "
            "wide. So few photos tell two settings apart only where they differ very much.")


def wide_interval(row: Measured, quantity: str, images: int) -> str | None:
    """The same for a score: an interval that is wider than half of the value."""
    if row.high - row.low < 0.5 * abs(row.value):
        return None
    return (f"On {count(images, 'photo')}, the interval of {quantity} goes from {plain(row.low)} "
            f"to {plain(row.high)}: so few photos say little about how good the captions are.")


def threshold(row: Measured, limits: Sequence[float], write: Callable[[float], str]) -> str | None:
    """Where the interval lies beside the highest limit that the value reaches, or the lowest."""
    reached = [limit for limit in limits if row.value >= limit]
    limit = max(reached) if reached else min(limits)
    if row.low >= limit:
        place = "lies above"
    elif row.high < limit:
        place = "lies below"
    else:
        place = "contains"
    return (f"The interval {with_interval(row.value, row[2:], write)} {place} the course's "
            f"threshold of {write(limit)}.")


def classes(per_class: Mapping[str, Mapping]) -> str | None:
    """How many classes have no error, and the class with the lowest accuracy; for tests with at
    least five photos of some class."""
    rows = [row for row in per_class.values() if row["total"] >= 5]
    if len(rows) < 2:
        return None
    whole = sum(row["correct"] == row["total"] for row in rows)
    worst = min(rows, key=lambda row: (row["correct"] / row["total"], row["name"]))
    if whole == len(rows):
        return f"All {len(rows)} classes have no error."
    return (f"{whole} of {len(rows)} classes have no error; the lowest accuracy is that of "
            f"{worst['name']}, {worst['correct']} of {worst['total']}.")


def balance(accuracy: float, balanced: float, per_class: Mapping[str, Mapping]) -> str | None:
    """The accuracy over photos beside the mean over classes; they are the same where all classes
    have equally many photos."""
    number_of_classes = len(per_class)
    if len({row["total"] for row in per_class.values()}) < 2:
        return None
    if abs(accuracy - balanced) < 0.01:
        return (f"Counting each of the {number_of_classes} classes alike gives "
                f"{percent(balanced)}, less than a point away: no large class decides the "
                "accuracy.")
    return (f"Counting each of the {number_of_classes} classes alike gives {percent(balanced)} "
            f"instead of {percent(accuracy)}: classes with "
            f"{'few' if balanced < accuracy else 'many'} photos do worse.")


def true_probability(loss: float) -> str:
    """What a mean cross-entropy in nats says about the probability of the true class."""
    return (f"The loss of {loss:.3f} nats means that the true class has a probability of "
            f"{percent(math.exp(-loss))} in the geometric mean over the photos.")


def overfitting(rows: Sequence[tuple[str, float, float]]) -> str | None:
    """Settings (name, train accuracy, val accuracy): where the two differ most."""
    if not rows:
        return None
    name, train, val = max(rows, key=lambda row: row[1] - row[2])
    if train - val < 0.1:
        return (f"In no setting is the accuracy on the training photos 10 points above that on the "
                f"validation photos; the largest gap is {100 * (train - val):.1f} points ({name}).")
    return (f"The gap between training and validation is largest for {name}: {percent(train)} "
            f"against {percent(val)}.")


# --- zero-shot ----------------------------------------------------------------------------------


def negation(rows: Sequence[Measured], number_of_classes: int) -> str | None:
    """A negated template that still names the class: its interval beside chance."""
    negated = [row for row in rows
               if " not " in f" {row.name} " or row.name.lstrip('"').startswith("No ")]
    if not negated:
        return None
    row, chance = max(negated, key=lambda row: row.value), 1 / number_of_classes
    shown = (f"{row.name} says that the photo does not show the class, and reaches "
             f"{with_interval(row.value, row[2:], percent)}")
    if row.low > chance:
        return f"{shown}, more than chance ({percent(chance)}): the negation is hardly noticed."
    if row.high < chance:
        return f"{shown}, less than chance ({percent(chance)}): the negation is noticed."
    return f"{shown}; the interval reaches down to chance ({percent(chance)})."


def known_names(row: Mapping) -> str | None:
    """Accuracy on names that ImageNet has, and on others."""
    if "inside_imagenet" not in row or "outside_imagenet" not in row:
        return None
    inside, outside = (row[part] for part in ("inside_imagenet", "outside_imagenet"))
    apart = (inside["accuracy_95"][0] > outside["accuracy_95"][1]
             or outside["accuracy_95"][0] > inside["accuracy_95"][1])
    verdict = "the intervals do not overlap" if apart else "the intervals overlap"
    return ("With the best template, photos whose class name ImageNet has: "
            f"{with_interval(inside['accuracy'], inside['accuracy_95'], percent)}; others: "
            f"{with_interval(outside['accuracy'], outside['accuracy_95'], percent)}; {verdict}.")


def ranks(found: Sequence[int | None]) -> str | None:
    """Ranks of the true classes from 1; None where it is not among the five."""
    if not found:
        return None
    first, five = sum(rank == 1 for rank in found), sum(rank is not None for rank in found)
    return (f"The true class is the likeliest one on {first} of {count(len(found), 'photo')}, and "
            f"among the five likeliest on {five}.")


def sure_and_wrong(rows: Sequence[tuple[str, str, str, float]]) -> str | None:
    """(photo, its true name, likeliest name, probability): the wrong answer of the highest one."""
    wrong = [row for row in rows if row[1] != row[2]]
    if not wrong:
        return None
    photo, true, name, probability = max(wrong, key=lambda row: row[3])
    return (f'The surest wrong answer is "{name}" with {percent(probability)} on {photo}, which '
            f'shows "{true}": the probability is a share among the given names.')


def surest(rows: Sequence[tuple[str, str, float]]) -> str | None:
    """(photo, likeliest name, its probability): the least and the most certain answers."""
    if len(rows) < 2:
        return None
    least, most = (pick(rows, key=lambda row: row[2]) for pick in (min, max))
    return (f'CLIP is most certain on {most[0]} ("{most[1]}", {percent(most[2])}) and least '
            f'certain on {least[0]} ("{least[1]}", {percent(least[2])}).')


# --- captions -----------------------------------------------------------------------------------


def variety(reads: Mapping[str, float], images: int) -> str:
    """What ``metrics.captions.describe`` says of the captions."""
    broken = reads["broken_off"]
    return (f"The captions have {reads['mean_words']:.1f} words on average; "
            f"{reads['distinct_captions']:.0f} of {images} are different from each other, with "
            f"{reads['distinct_words']:.0f} different words; "
            + ("none breaks off." if broken == 0 else f"{percent(broken)} break off."))


def ranking(scores: Sequence[float]) -> str | None:
    """CLIPScores of all captions, the highest first."""
    if len(scores) < 3:
        return None
    return (f"Over {len(scores)} captions, CLIPScore goes from {plain(scores[-1])} to "
            f"{plain(scores[0])}, with a median of {plain(float(np.median(scores)))}.")


def words_of_references(name: str, caption: Sequence[str], references: Sequence[Sequence[str]]
                        ) -> str | None:
    """How many content words of a tokenized caption stand in a reference."""
    content = [word for word in caption if word not in FUNCTION_WORDS]
    if not content:
        return None
    known = {word for reference in references for word in reference}
    found = [word for word in content if word in known]
    missing = [f'"{word}"' for word in dict.fromkeys(content) if word not in known]
    text = (f"Of the {count(len(content), 'content word')} of the {name} caption, {len(found)} "
            f"{'stands' if len(found) == 1 else 'stand'} in a reference")
    if not missing:
        return f"{text}."
    return f"{text}; {listed(missing)} {'does' if len(missing) == 1 else 'do'} not."


def trained(parameters: Sequence[tuple[str, int]], limit: int) -> str | None:
    """(setting, trained parameters): the most, beside what the course allows."""
    if not parameters:
        return None
    name, most = max(parameters, key=lambda row: row[1])
    if most < limit:
        return (f"At most {most:,} parameters are trained ({name}), fewer than the {limit:,} that "
                "the course allows.")
    return (f"{name} trains {most:,} parameters, not fewer than the {limit:,} that the course "
            "allows.")
