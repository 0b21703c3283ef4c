"""What a section of the report is made of, and how numbers are written in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data.files import short_names

if TYPE_CHECKING:
    from report.inputs import Inputs

Words = list[str]  # one command: a script and its arguments
FEWEST_DRAWN = 20  # photos behind a confusion matrix


class Measured(NamedTuple):
    """A number with its 95 % interval, and the name of the setting that it belongs to."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: int | None = None  # the row that is marked as the best


@dataclass(frozen=True)
class Figure:
    path: Path  # a PNG inside the report's folder
    caption: str


@dataclass(frozen=True)
class Answer:
    """What the commands of a section have measured and drawn."""

    result: str  # the main number, for the overview
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    observations: Sequence[str] = ()
    notes: Sequence[str] = ()  # what must be known to read the numbers


@dataclass(frozen=True)
class Section:
    """One question of a report.

    ``commands`` gives the words of the commands that answer it, which write into the folder;
    ``answer`` makes the answer of what each of them printed as JSON (its text where it is none).
    ``lacks`` says in a sentence which option would give what the section needs and has not; "" if
    it has all. ``data`` says in a sentence which photos the section is about.
    """

    key: str
    years: tuple[int, ...]
    title: str
    question: str
    commands: Callable[[Inputs, Path], list[Words]]
    answer: Callable[[Inputs, Path, list], Answer]
    data: Callable[[Inputs], str]
    reading: str  # how to read the figure or table
    references: tuple[str, ...] = ()  # figures that others reached
    lacks: Callable[[Inputs], str] = field(default=lambda inputs: "")


def names_of_models(sources: Sequence[str]) -> list[str]:
    """The file names of models, after as many folders as tell different ones apart; the name of a
    model that is no file, such as hf:owner/name, as it is."""
    different = list(dict.fromkeys(sources))
    names = [Path(source).name for source in different]
    if len(set(names)) < len(names):
        names = short_names(different)
    called = dict(zip(different, names, strict=True))
    return [called[source] for source in sources]


def answer_figures(folder: Path, name: str, photos: int) -> list[Figure]:
    """The confusions and the errors of what is called ``name``; of few photos they show nothing
    that a table does not."""
    return [Figure(folder / "confusion.png", f"Confusion matrix of {name}."),
            Figure(folder / "errors.png", f"The most confident errors of {name}.")
            ] if photos >= FEWEST_DRAWN else []


def percent(share: float) -> str:
    """0.9153 -> "91.5 %"."""
    return f"{100 * share:.1f} %"


def plain(value: float) -> str:
    """0.58431 -> "0.584"."""
    return f"{value:.3f}"


def with_interval(
    value: float, interval: Sequence[float], write: Callable[[float], str] = plain
) -> str:
    """0.584, (0.544, 0.624) -> "0.584 (0.544 - 0.624)"."""
    low, high = map(write, interval)
    return f"{write(value)} ({low.removesuffix(' %')} - {high})"


def count(number: int, noun: str) -> str:
    """1, "photo" -> "1 photo"; 3, "photo" -> "3 photos"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def listed(names: Sequence[str], most: int = 6) -> str:
    """["a", "b", "c"] -> "a, b and c"; after ``most`` names, how many more there are."""
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
