"""All questions of the course's reports, in the order of the page."""

from __future__ import annotations

from report import captioning, classify, naming
from report.section import Section

YEARS = (2021, 2022, 2023)
SECTIONS: tuple[Section, ...] = (*classify.SECTIONS, *naming.SECTIONS, *captioning.SECTIONS)


def of_year(year: str) -> list[Section]:
    """The sections of "2021", "2022" or "2023", or "all"."""
    return [section for section in SECTIONS if year == "all" or int(year) in section.years]
