"""What the report's two forms, HTML and Markdown, have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils import read_text, write_text

from report.inputs import ROOT
from report.run import Outcome
from report.section import Section

HINT = ("Write it into discussion/{}.txt and make the report again; it will stand here.")


@dataclass(frozen=True)
class Page:
    year: str  # of the course, or "all"
    outcomes: Sequence[Outcome]
    discussions: Mapping[str, str]  # the reader's own text for each section
    out: Path  # the report's folder

    @property
    def title(self) -> str:
        return f"Homework 3, report of {'2021, 2022 and 2023' if self.year == 'all' else self.year}"

    @property
    def introduction(self) -> str:
        return ("Every number and figure below comes from the command above it. The commands can "
                "be copied and run again in the project's folder. Intervals in brackets are 95 % "
                "intervals. The observations follow from the measured numbers by fixed rules; the "
                "discussion is yours.")


def discussions(out: Path, sections: Sequence[Section]) -> dict[str, str]:
    """The text that stands in discussion/<key>.txt for each section; files that are not there are
    made, empty, and no file is ever written over."""
    found = {}
    for section in sections:
        path = out / "discussion" / f"{section.key}.txt"
        if not path.exists():
            write_text(path, "")
        found[section.key] = read_text(path, "replace").strip()
    return found


def result_of(outcome: Outcome) -> str:
    """A section's line in the overview."""
    if outcome.problem:
        return "failed"
    return "an input is missing" if outcome.answer is None else outcome.answer.result


def years_of(outcome: Outcome) -> str:
    return ", ".join(map(str, outcome.section.years))


def problem_of(outcome: Outcome) -> str:
    """Why a section has no answer."""
    return f"This section failed: {outcome.problem}"


def file_of(page: Page, path: Path) -> Path:
    """A figure's place inside the report's folder."""
    return (ROOT / path).relative_to(page.out.absolute())


def paragraphs(text: str) -> list[str]:
    """Parts of a text that empty lines separate."""
    parts, lines = [], []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            lines.append(line.strip())
        elif lines:
            parts.append(" ".join(lines))
            lines = []
    return parts
