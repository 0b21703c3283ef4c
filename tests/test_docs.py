"""The README and docs/: every path and link exists, and every command can be typed as it stands."""

from __future__ import annotations

import argparse
import functools
import importlib
import re
import shlex

import pytest
from conftest import ROOT

from inference.parser import Parser

PAGES = [ROOT / "README.md", ROOT / "samples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "utils")
DOWNLOAD = "ckpt.download"  # what download_ckpt.sh and hw3_download.sh run
REPORT = "report.command"  # what hw3_report.sh runs
FENCED = re.compile(r"^```.*?\n(.*?)^```", re.S | re.M)


def name_of(path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"`[^`]*`", "", FENCED.sub("", text))


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.M)


def anchor(heading: str) -> str:
    """The end of the link that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links(page) -> list[tuple[str, str]]:
    """[(path, anchor)] of the relative links and images of a page; the path is empty for a link
    within the page."""
    found = re.findall(r'(?:\]\(|<img src=")([^)"\s]+)', without_code(page.read_text()))
    return [link.partition("#")[::2] for link in found if "://" not in link]


# --- commands in the text -----------------------------------------------------------------------


def typed_lines(block: str) -> list[list[str]]:
    """The words of each line of a shell block, with the block's own variables filled in."""
    values, lines = {}, []
    for line in block.replace("\\\n", " ").splitlines():
        line = re.sub(r"\$(\w+)", lambda match: values.get(match[1], match[0]), line)
        if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
            values[assigned[1]] = assigned[2]
        else:
            lines.append(shlex.split(line, comments=True))
    return lines


def commands(text: str) -> tuple[list[list[str]], list[list[str]]]:
    """(commands that are whole, other code in the running text), each as a list of words."""
    whole = [words for block in FENCED.findall(text) for words in typed_lines(block)]
    parts = []
    for code in re.findall(r"`([^`]+)`", FENCED.sub("", text)):
        if code.startswith(("python3 ", "bash ")) and "…" not in code:
            whole.append(shlex.split(code))
        else:
            parts.append(code.split())
    return whole, parts


def options_in(code: str) -> set[str]:
    return set(re.findall(r'"(--[\w-]+)"', code))


BENCHMARK_OPTIONS = set().union(*(options_in(path.read_text())
                                  for path in (ROOT / "benchmarks").glob("*.py")))


class Found(Exception):
    """Carries the parser that a script has made out of its ``main``."""


@functools.cache
def parser_of(name: str) -> argparse.ArgumentParser:
    def found(self, args=None, namespace=None):
        raise Found(self)

    module = importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Found) as result:
        patch.setattr(argparse.ArgumentParser, "parse_args", found)
        patch.delattr(Parser, "parse_args")
        module.main()
    return result.value.args[0]


def all_options(parser) -> set[str]:
    """The options of a parser and of its commands."""
    options = set(parser._option_string_actions)
    for action in parser._actions:
        if action.nargs == "A...":  # argparse's mark of commands
            options |= set().union(*map(all_options, action.choices.values()))
    return options


def started(words: list[str]) -> tuple[str | None, list[str]]:
    """(script or module, its arguments) of a command line; None where it starts none of ours."""
    for place, word in enumerate(words):
        if word in ("download_ckpt.sh", "hw3_download.sh"):
            return DOWNLOAD, words[place + 1:]
        if word == "hw3_report.sh":
            return REPORT, words[place + 1:]
        if word.removesuffix(".py") in SCRIPTS and word.endswith(".py"):
            return word.removesuffix(".py"), words[place + 1:]
    return None, []


TYPED = [pytest.param(*started(words), id=f"{name_of(page)}: {' '.join(words)}")
         for page in PAGES for words in commands(page.read_text())[0] if started(words)[0]]


@pytest.mark.parametrize("script, arguments", TYPED)
def test_every_command_parses(script, arguments, capsys):
    try:
        parser_of(script).parse_args(arguments)
    except SystemExit as end:
        assert end.code == 0, capsys.readouterr().err  # --help


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_in_the_text_exists(page):
    for words in commands(page.read_text())[1]:
        script, arguments = started(words)
        used = {word for word in (arguments if script else words) if word.startswith("--")}
        if used:
            scripts = [script] if script else [*SCRIPTS, DOWNLOAD, REPORT]
            known = set().union(*(all_options(parser_of(name)) for name in scripts))
            assert used <= known | (set() if script else BENCHMARK_OPTIONS), " ".join(words)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_shell_script_benchmark_and_target_in_the_text_exists(page):
    whole, parts = commands(page.read_text())
    targets = re.search(r"^\.PHONY: (.+)", (ROOT / "Makefile").read_text(), re.M)[1].split()
    for words in whole + parts:
        for before, word in zip(["", *words], words, strict=False):
            if before == "bash" or word.startswith(("benchmarks/", "tests/test_")):
                assert (ROOT / word).exists(), word
            if before == "make":
                assert word in targets
        if words[:1] == ["python3"] and "".join(words[1:2]).startswith("benchmarks/"):
            options = options_in((ROOT / words[1]).read_text())
            assert {word for word in words if word.startswith("--")} <= options, " ".join(words)


# --- paths and links ----------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_and_image_resolves(page):
    for path, place in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if place:
            assert place in map(anchor, headings(target.read_text())), f"{path}#{place}"


def test_every_file_in_docs_is_linked():
    linked = {(page.parent / path).resolve() for page in PAGES for path, _ in links(page)
              if (page.parent / path).resolve() != page}
    assert {path for path in (ROOT / "docs").iterdir()} <= linked


def test_every_page_and_section_that_the_code_names_exists():
    code = [path for pattern in ("*.py", "[a-z]*/*.py", "*.sh", "Makefile")
            for path in ROOT.glob(pattern) if path.parent.name not in ("tests", "runs")]
    assert len(code) > 40
    for file in [*code, *PAGES]:
        text = " ".join(file.read_text().split())
        for page, section in re.findall(
                r'((?:docs/[\w-]+|README)\.\w+)(?:, (?:section )?"([^"]+)")?', text):
            assert (ROOT / page).exists(), f"{name_of(file)} names {page}"
            assert not section or section in headings((ROOT / page).read_text()), (
                f'{name_of(file)} names "{section}" in {page}')
