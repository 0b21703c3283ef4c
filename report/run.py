"""Runs the commands of a section as a user would, and keeps what they printed.

A section is not run again while its commands, the files that they name, the shipped checkpoints,
the code and the versions of the packages are as they were, and its figures are as it left them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils import (
    EXIT_INTERRUPTED,
    EXIT_SOME_UNREADABLE,
    UserError,
    printable,
    read_json,
    write_text,
)

from data.files import file_stamp
from report.inputs import ROOT, Inputs
from report.section import Answer, Section, Words

PACKAGES = ("torch", "torchvision", "timm", "transformers", "peft", "tokenizers", "safetensors",
            "numpy", "matplotlib", "pillow")
# Lines on stderr that say nothing about a problem: progress bars, files written, tables.
UNIMPORTANT = re.compile(r"\d+%\||\d+(img|it)/s|^wrote |^\|")


@dataclass(frozen=True)
class Outcome:
    """What has become of a section."""

    section: Section
    commands: Sequence[str] = ()  # as they can be typed in the project's folder
    answer: Answer | None = None  # None: it lacks something, or failed
    about: str = ""  # which photos the answer is about
    lacks: str = ""  # which option would give what it needs
    problem: str = ""  # why it failed
    warnings: Sequence[str] = ()  # files that could not be read
    kept: bool = False  # whether it was taken from an earlier run


class Failed(Exception):
    """A command that did not end well; its text says which and how."""


def run_section(section: Section, inputs: Inputs, fresh: bool) -> Outcome:
    """Answer one question, from what an earlier run kept where nothing has changed and ``fresh``
    does not ask for all anew. A failure is an outcome; only an interruption is raised."""
    if lacks := section.lacks(inputs):
        return Outcome(section, lacks=lacks)
    folder, shown = inputs.out / "figures" / section.key, []
    try:
        commands = [[as_typed(word) for word in words]
                    for words in section.commands(inputs, folder)]
        shown = [shell_line(["python3", *words]) for words in commands]
        printed, warnings, kept = results_of(section.key, commands, inputs.out, fresh)
        answer = section.answer(inputs, folder, [parsed(text) for text in printed])
    except Exception as error:  # whatever goes wrong in one section, the others are made
        known = isinstance(error, (Failed, UserError))
        text = str(error) if known else f"unexpected {type(error).__name__}: {error}"
        return Outcome(section, shown, problem=printable(text))
    return Outcome(section, shown, answer, section.data(inputs), warnings=warnings, kept=kept)


def results_of(
    key: str, commands: list[Words], out: Path, fresh: bool
) -> tuple[list[str], list[str], bool]:
    """(what each command printed, lines about unreadable files, whether both were kept from an
    earlier run) of the section ``key``."""
    kept, folder = out / "results" / f"{key}.json", out / "figures" / key
    follows_from = digest([commands, [inputs_of(words, folder) for words in commands],
                           surroundings()])
    if commands and not fresh and kept.is_file():
        before = read_json(kept)
        if before["follows_from"] == follows_from and before["files"] == stamps(folder):
            return before["printed"], before["warnings"], True
    kept.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # figures of photos that are no longer asked for
    ended = [run_command(words) for words in commands]
    printed, warnings = [text for text, _ in ended], [line for _, lines in ended for line in lines]
    if commands:
        write_text(kept, json.dumps({"follows_from": follows_from, "files": stamps(folder),
                                     "printed": printed, "warnings": warnings}, indent=1))
    return printed, warnings, False


def run_command(words: Words) -> tuple[str, list[str]]:
    """(what a command printed, what it said about files that it could not read)."""
    ended = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True,
                           encoding="utf-8", errors="surrogateescape", stdin=subprocess.DEVNULL)
    lines = [printable(line) for line in ended.stderr.replace("\r", "\n").splitlines()
             if line.strip() and not UNIMPORTANT.search(line)]
    if ended.returncode == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if ended.returncode not in (0, EXIT_SOME_UNREADABLE):
        raise Failed(f"{words[0]} ended with status {ended.returncode}: "
                     f"{lines[-1] if lines else 'it said nothing'}")
    return ended.stdout, lines if ended.returncode else []


def parsed(text: str) -> object:
    """What a command printed: the JSON object, or the text where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


# --- command lines ------------------------------------------------------------------------------


def as_typed(word: str) -> str:
    """A path inside the project's folder as it is typed there; any other word as it is."""
    path = Path(word)
    if not path.is_absolute() or not path.is_relative_to(ROOT) or path == ROOT:
        return word
    word = str(path.relative_to(ROOT))
    return f"./{word}" if word.startswith("-") else word


def shell_line(words: Iterable[str]) -> str:
    """The words as bash reads them; what cannot be printed is written as bash's $'\\xff'."""
    return " ".join(word_for_bash(word) for word in words)


def word_for_bash(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    escaped = word.encode("utf-8", "surrogateescape").decode("latin-1")
    return "$'" + "".join(
        letter if letter.isascii() and letter.isprintable() and letter not in "\\'"
        else f"\\x{ord(letter):02x}" for letter in escaped) + "'"


# --- what a result follows from -----------------------------------------------------------------


def inputs_of(words: Words, folder: Path) -> list:
    """Size and time of each file that a command's words name, and of those in the folders that they
    name; what it writes, into ``folder``, is left out."""
    found = []
    for word in words:
        path = ROOT / word
        if path.is_relative_to(folder):
            continue
        if os.path.isfile(path):  # a word may be too long for the name of a file
            found.append([word, *file_stamp(path)])
        elif os.path.isdir(path):
            found.append([word, stamps(path, inside=False)])
    return found


def stamps(folder: Path, inside: bool = True) -> list:
    """[name, size, time] of the files in a folder, and in its folders if ``inside``."""
    paths = folder.rglob("*") if inside else folder.iterdir()
    return sorted([str(path.relative_to(folder)), *file_stamp(path)]
                  for path in paths if path.is_file()) if folder.is_dir() else []


def surroundings() -> list:
    """The code (this package apart, which computes nothing), the shipped checkpoints, and the
    versions of Python and of the packages."""
    code = [[str(path.relative_to(ROOT)), hashlib.sha256(path.read_bytes()).hexdigest()]
            for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/*.py")])
            if path.parent.name not in ("report", "tests", "benchmarks", "runs")]
    versions = []
    for name in PACKAGES:
        try:
            versions.append(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            versions.append(None)
    checkpoints = [row for row in stamps(ROOT / "ckpt", inside=False)
                   if row[0].endswith((".safetensors", ".json"))]
    return [code, checkpoints, platform.python_version(), versions]


def digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode("utf-8", "surrogateescape")).hexdigest()
