"""The report as Markdown, with its figures beside it."""

from __future__ import annotations

import re
from urllib.parse import quote

from utils import one_line, printable

from data.files import markdown_table
from report.page import HINT, Page, file_of, paragraphs, problem_of, result_of, years_of
from report.run import Outcome
from report.section import Table


def markdown_page(page: Page) -> str:
    """The text of report.md."""
    overview = markdown_table(
        ["", "question", "year", "result"],
        [[number, f"[{escape(outcome.section.title)}](#{outcome.section.key})", years_of(outcome),
          escape(result_of(outcome))] for number, outcome in enumerate(page.outcomes, 1)])
    parts = [f"# {escape(page.title)}", escape(page.introduction), overview.rstrip()]
    for number, outcome in enumerate(page.outcomes, 1):
        parts += section_parts(page, outcome, number)
    return "\n\n".join(parts) + "\n"


def section_parts(page: Page, outcome: Outcome, number: int) -> list[str]:
    """The paragraphs of one section."""
    section, answer = outcome.section, outcome.answer
    parts = [f'<a id="{section.key}"></a>', f"## {number}. {escape(section.title)}",
             f"**{escape(section.question)}**"]
    parts += [fenced(command) for command in outcome.commands]
    if outcome.problem:
        parts.append(f"**{escape(problem_of(outcome))}**")
    elif answer is None:
        parts.append(f"**{escape(outcome.lacks)}**")
    else:
        parts.append(escape(outcome.about))
        parts += [f"Not read: {escape(line)}" for line in outcome.warnings]
        parts += [table(part) for part in answer.tables]
        parts += [escape(note) for note in answer.notes]
        parts += [f"![{escape(figure.caption)}]({quote(file_of(page, figure.path).as_posix())})"
                  f"\n\n*{escape(figure.caption)}*" for figure in answer.figures]
        parts += block("What was observed", answer.observations)
        parts += ["### How to read it", escape(section.reading)]
    parts += block("What others reached", section.references)
    own = [escape(text) for text in paragraphs(page.discussions[section.key])]
    return parts + ["### Your discussion", *(own or [f"*{escape(HINT.format(section.key))}*"])]


def block(title: str, sentences) -> list[str]:
    """A heading with a list, or nothing."""
    if not sentences:
        return []
    return [f"### {title}", "\n".join(f"- {escape(sentence)}" for sentence in sentences)]


def table(content: Table) -> str:
    rows = [[bold(escape(cell), number == content.best) for cell in row]
            for number, row in enumerate(content.rows)]
    return markdown_table([escape(cell) for cell in content.header], rows).rstrip()


def bold(text: str, wanted: bool) -> str:
    return f"**{text}**" if wanted and text else text


def fenced(command: str) -> str:
    """A block of code that no run of backticks in it can end."""
    longest = max(map(len, re.findall("`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{command}\n{fence}"


def escape(text: str) -> str:
    """Any text as one line that Markdown shows as it is, in a paragraph or in a table's cell."""
    text = one_line(printable(text))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", text)
    # What would begin a list or underline a heading; a number such as 0.5 begins neither.
    text = re.sub(r"^([-+=])(?=[-+=\s]|$)", r"\\\1", text)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)
