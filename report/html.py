"""The report as one HTML file: style and figures are in it, and it needs neither network nor
scripts, which its Content-Security-Policy forbids."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

from utils import printable

from PIL import Image

from report.inputs import ROOT
from report.page import HINT, Page, paragraphs, problem_of, result_of, years_of
from report.run import Outcome
from report.section import Figure, Table

STYLE = (Path(__file__).resolve().parent / "page.css").read_text(encoding="utf-8")
NUMBER = r"[-+]?\d[\d.,]*(?: %)?"
WHOLE = re.compile(rf"(?<![\w-])--[a-z][\w-]*|{NUMBER} (?:-|to) {NUMBER}|\d[\d.,]* %")
WIDEST = 1600  # pixels of a figure in the page; figures/ has it in full
BROAD = 1.3  # a figure of this width over height keeps a readable size on a narrow screen


def html_page(page: Page) -> str:
    """The text of report.html."""
    style_hash = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = (f"default-src 'none'; img-src data:; style-src 'sha256-{style_hash}'; "
              "base-uri 'none'; form-action 'none'")
    overview = "".join(
        f'<tr><td>{number}</td><td><a href="#{outcome.section.key}">'
        f"{escape(outcome.section.title)}</a></td><td>{years_of(outcome)}</td>"
        f"<td>{prose(result_of(outcome))}</td></tr>"
        for number, outcome in enumerate(page.outcomes, 1))
    body = "".join(section(page, outcome, number)
                   for number, outcome in enumerate(page.outcomes, 1))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(page.title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(page.title)}</h1><p>{prose(page.introduction)}</p>"
        '<table class="overview"><thead><tr><th></th><th>question</th><th>year</th>'
        f"<th>result</th></tr></thead><tbody>{overview}</tbody></table>\n"
        f"{body}</body></html>\n")


def section(page: Page, outcome: Outcome, number: int) -> str:
    """One question with its commands, answer and room for the discussion."""
    about = outcome.section
    parts = [f'<h2>{number}. {prose(about.title)} <span class="years">({years_of(outcome)})'
             "</span></h2>", f'<p class="question">{prose(about.question)}</p>']
    parts += [f"<pre><code>{prose(command)}</code></pre>" for command in outcome.commands]
    if outcome.problem or outcome.lacks:
        text = problem_of(outcome) if outcome.problem else outcome.lacks
        parts.append(f'<p class="missing">{prose(text)}</p>')
    else:
        parts += answer(outcome)
    parts.append(block("What others reached", about.references))
    own = paragraphs(page.discussions[about.key])
    parts.append(f'<div class="discussion{"" if own else " empty"}"><h3>Your discussion</h3>'
                 + "".join(f"<p>{prose(text)}</p>" for text in own)
                 + ("" if own else f'<p class="note">{prose(HINT.format(about.key))}</p>')
                 + "</div>")
    return f'<section id="{about.key}">' + "\n".join(parts) + "</section>\n"


def answer(outcome: Outcome) -> list[str]:
    """Tables, figures and observations."""
    found = outcome.answer
    parts = [f'<p class="about">{prose(outcome.about)}</p>']
    parts += [f'<p class="missing">Not read: {prose(line)}</p>' for line in outcome.warnings]
    parts += [table(content) for content in found.tables]
    parts += [f'<p class="note">{prose(note)}</p>' for note in found.notes]
    parts += [figure(content) for content in found.figures]
    if found.observations:
        observed = block("What was observed", found.observations)
        parts.append(f'<div class="observed">{observed}</div>')
    return [*parts, f"<h3>How to read it</h3><p>{prose(outcome.section.reading)}</p>"]


def block(title: str, sentences: Sequence[str]) -> str:
    """A heading with a list, or nothing."""
    if not sentences:
        return ""
    items = "".join(f"<li>{prose(sentence)}</li>" for sentence in sentences)
    return f"<h3>{title}</h3><ul>{items}</ul>"


def table(content: Table) -> str:
    head = "".join(f"<th>{prose(cell)}</th>" for cell in content.header)
    rows = "".join(
        f"<tr{' class=best' if number == content.best else ''}>"
        + "".join(f"<td>{prose(cell)}</td>" for cell in row) + "</tr>"
        for number, row in enumerate(content.rows))
    return (f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
            "</div>")


def figure(content: Figure) -> str:
    source, (width, height) = embedded(ROOT / content.path)
    broad = ' class="broad"' if width >= BROAD * height else ""
    return (f'<figure><div class="wide"><img{broad} src="{source}" width="{width}" '
            f'height="{height}" alt="{escape(content.caption)}"></div>'
            f"<figcaption>{prose(content.caption)}</figcaption></figure>")


def embedded(path: Path) -> tuple[str, tuple[int, int]]:
    """(a data URI of a figure, its size in pixels). JPEG takes a fifth of PNG's bytes, and goes
    into a printed PDF as it is."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.LANCZOS)
    content = io.BytesIO()
    image.save(content, "jpeg", quality=88, subsampling=0)  # colours in full, for sharp letters
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}", image.size


def escape(text: str) -> str:
    return html.escape(printable(text), quote=True)


def prose(text: str) -> str:
    """As ``escape``; options, intervals, and a number and its sign stay on one line each."""
    return WHOLE.sub(r'<span class="whole">\g<0></span>', escape(text))
