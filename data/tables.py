"""Tables of what was measured: a CSV that holds numbers, and Markdown for readers.

A row is a dict from the name of a column to a value; a column that a row lacks stays empty. Values
are numbers, intervals (low, high), ``Gap``, and texts, which both forms show as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from utils import warn, write_text

from data.files import markdown_table, write_csv

# The name of each column, in order, and how a reader sees its values.
Columns = Mapping[str, Callable[[object], str]]


class Gap(NamedTuple):
    """How far a row is from the one that all are compared with."""

    difference: float  # its value minus that one's
    told_apart: bool  # whether this is more than chance, by the test that the table names


def write_table(
    csv: str | Path, markdown: str | Path, columns: Columns, rows: Sequence[Mapping],
    note: str = "",
) -> None:
    """Both forms of one table; ``note`` stands above the Markdown."""
    write_numbers(csv, columns, rows)
    write_text(markdown, f"{note}\n\n" * bool(note) + for_readers(columns, rows))


def write_numbers(csv: str | Path, columns: Columns, rows: Sequence[Mapping]) -> None:
    """The CSV: 0.176, and an interval as "0.1295 - 0.2347"."""
    write_csv(csv, list(columns), [[as_number(row.get(name, "")) for name in columns]
                                   for row in rows])


def for_readers(columns: Columns, rows: Sequence[Mapping]) -> str:
    """The Markdown: 17.6 %, and "none" for a gap that may be chance."""
    return markdown_table(list(columns), [[text.replace("|", "\\|") for text in texts]
                                          for texts in shown(columns, rows)])


def for_terminal(columns: Columns, rows: Sequence[Mapping]) -> list[str]:
    """The lines of the same table with columns that stand one below the other."""
    lines = [list(columns), *shown(columns, rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in lines]


def write_form(path: str | Path, columns: Columns, rows: Sequence[Mapping]) -> None:
    """The CSV where the name of the file ends in .csv, else the Markdown."""
    if Path(path).suffix.lower() == ".csv":
        write_numbers(path, columns, rows)
    else:
        write_text(path, for_readers(columns, rows))
        warn(f"wrote {path}")


def shown(columns: Columns, rows: Sequence[Mapping]) -> list[list[str]]:
    """The text of each value as a reader sees it."""
    cells = [[(show, row.get(name, "")) for name, show in columns.items()] for row in rows]
    return [[value if isinstance(value, str) else show(value) for show, value in line]
            for line in cells]


def as_number(value: object) -> object:
    """What the CSV has of a value, with four digits."""
    if isinstance(value, Gap):
        return as_number(value.difference)
    if isinstance(value, (tuple, list)):
        return " - ".join(f"{bound:.4g}" for bound in value)
    return f"{value:.4g}" if isinstance(value, float) else value


# --- how readers see values ---------------------------------------------------------------------


def percent(value: float | Sequence[float]) -> str:
    """0.176 -> "17.6 %"; an interval -> "12.9 % - 23.5 %"."""
    if isinstance(value, (tuple, list)):
        return " - ".join(map(percent, value))
    return f"{value:.1%}".replace("%", " %")


def points(value: float | Gap) -> str:
    """-0.624, a difference of shares -> "-62.4 points"; "none" for a gap that may be chance."""
    if isinstance(value, Gap):
        return points(value.difference) if value.told_apart else "none"
    return f"{100 * value:.1f} points"


def decimals(value: float | Sequence[float] | Gap) -> str:
    """0.5754 -> "0.575"; an interval -> "0.541 - 0.609"; "none" as in ``points``."""
    if isinstance(value, Gap):
        return decimals(value.difference) if value.told_apart else "none"
    if isinstance(value, (tuple, list)):
        return " - ".join(map(decimals, value))
    return f"{value:.3f}"


def thousands(value: int) -> str:
    """619008 -> "619,008"."""
    return f"{value:,}"
