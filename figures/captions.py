"""A sheet of photos, each with its references and with the captions of several captioners."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils import CONTROLS, one_line, printable

import matplotlib.pyplot as plt
from PIL import Image

from figures.maps import for_display
from figures.style import FONTS, LINES, save, wrapped

PHOTO, TEXT, GAP = 2.3, 3.7, 0.16  # inches: the widest photo, the text beside it, and between them
NUMBER = 1.05  # inches from one score to the next
LINE, SIZE, NOTE, TITLE = 0.15, 8, 7.5, 11  # a line of text in inches; sizes in points
BOLD = 0.87  # how much of a width a text may take in order to fit it in bold
MOST = {"references": 6, "reference lines": 2, "caption lines": 4}  # what a card shows


@dataclass(frozen=True)
class Card:
    """A photo with all that is written about it."""

    name: str
    photo: Image.Image
    references: Sequence[str]
    captions: Sequence[str]  # one of each captioner
    scores: Sequence[Mapping[str, float]]  # of each caption: metric -> value; the first one counts


@dataclass(frozen=True)
class _Line:
    """A line of text on a card."""

    text: str
    colour: str = "black"
    bold: bool = False
    numbers: Sequence[tuple[str, bool]] = ()  # at the right end, the last one first; which are bold


def caption_sheet(
    cards: Sequence[Card], names: Sequence[str], title: Sequence[str], path: str | Path
) -> None:
    """Draw ``cards`` in one or two columns, all of one height; ``names`` are those of the
    captioners, ``title`` a headline and notes. The highest value of the first metric is bold."""
    columns = 1 if len(cards) < 4 else 2
    rows = math.ceil(len(cards) / columns)
    texts = [_lines(card, names) for card in cards]
    high = max(*(LINE * len(lines) for lines in texts),
               *(min(PHOTO * card.photo.height / card.photo.width, PHOTO) for card in cards))
    row = high + 1.5 * GAP
    card_width = PHOTO + TEXT + 2 * GAP
    width = columns * card_width + GAP
    head = [(line, size) for size, text in zip([TITLE] + [NOTE] * len(title), title, strict=False)
            for line in wrapped(one_line(printable(text)), size, width - 2 * GAP)]
    top = GAP + sum(1.5 * size / 72 for _, size in head)
    height = top + rows * row

    figure = plt.figure(figsize=(width, height), layout="none")
    sheet = figure.add_axes((0, 0, 1, 1))
    sheet.set(xlim=(0, width), ylim=(height, 0))
    sheet.axis("off")
    y = GAP / 2
    for line, size in head:
        sheet.text(GAP, y, line, size=size, va="top", fontfamily=FONTS, parse_math=False,
                   color="black" if size == TITLE else "0.35")
        y += 1.5 * size / 72
    for place, (card, lines) in enumerate(zip(cards, texts, strict=True)):
        left = GAP + place % columns * card_width
        y = top + place // columns * row
        sheet.plot([left, left + card_width - GAP], [y, y], color="0.8", linewidth=0.6)
        _draw(sheet, card.photo, lines, left, y + GAP / 2, high)
    sheet.set(xlim=(0, width), ylim=(height, 0))  # which imshow has changed
    save(figure, path)


def _draw(
    sheet: plt.Axes, photo: Image.Image, lines: Sequence[_Line], left: float, top: float,
    height: float,
) -> None:
    """The photo and beside it its ``lines``, from the corner (left, top) on."""
    photo = for_display(photo, (0, 0, *photo.size), 400)[0]
    scale = min(PHOTO / photo.width, height / photo.height)
    across, down = photo.width * scale, photo.height * scale
    x = left + (PHOTO - across) / 2
    sheet.imshow(photo, extent=(x, x + across, top + down, top), aspect="auto")
    start, end = left + PHOTO + GAP, left + PHOTO + GAP + TEXT
    style = {"size": SIZE, "va": "top", "fontfamily": FONTS, "parse_math": False}
    for number, line in enumerate(lines):
        y = top + number * LINE
        sheet.text(start, y, line.text, color=line.colour,
                   weight="bold" if line.bold else "normal", **style)
        for place, (text, bold) in enumerate(line.numbers):
            sheet.text(end - place * NUMBER, y, text, ha="right",
                       weight="bold" if bold else "normal", **style)


def _lines(card: Card, names: Sequence[str]) -> list[_Line]:
    """The text of a card, line by line."""
    lines = [_Line(_cut(card.name, 1, TEXT * BOLD)[0], bold=True)]
    for reference in card.references[:MOST["references"]]:
        first, *rest = _cut(reference, MOST["reference lines"], TEXT - 0.12)
        lines += [_Line(f"· {first}", colour="0.4"),
                  *(_Line(f"  {line}", colour="0.4") for line in rest)]
    more = len(card.references) - MOST["references"]
    if more > 0:
        lines.append(_Line(f"and {more} more", colour="0.4"))
    firsts = [next(iter(scores.values())) for scores in card.scores]
    best = max(firsts)
    for number, (name, caption, scores) in enumerate(
            zip(names, card.captions, card.scores, strict=True)):
        texts = ["" if math.isnan(value) else f"{metric} {value:.2f}"
                 for metric, value in scores.items()]
        is_best = firsts[number] == best > min(firsts)
        numbers = [(text, is_best and place == 0) for place, text in enumerate(texts)][::-1]
        shown = _cut(name, 1, (TEXT - NUMBER * len(numbers)) * BOLD)[0]
        lines += [_Line(""), _Line(shown, LINES[number % len(LINES)], True, numbers),
                  *map(_Line, _cut(caption or "(no word)", MOST["caption lines"], TEXT))]
    return lines


def _cut(text: str, most: int, width: float) -> list[str]:
    """``text`` in at most ``most`` lines of ``width`` inches; "…" stands for what is left out. The
    space is dropped that tokenized captions have before a full stop, which would begin a line."""
    text = re.sub(r" ([.,;:!?])(?= |$)", r"\1", one_line(printable(text))).translate(CONTROLS)
    lines = wrapped(text or " ", SIZE, 0.97 * width)  # hinting makes drawn text a little wider
    return lines if len(lines) <= most else [*lines[:most - 1], lines[most - 1][:-1] + "…"]
