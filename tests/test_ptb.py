"""The tokenizer against recorded output of Stanford's, its own slow path, and Java where it is.

`ptb_cases.json` holds [caption, tokens joined by a space]: captions written for this test, and
what `pycocoevalcap` makes of each when another caption follows it.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from pathlib import Path

import pytest

from metrics.ptb import PUNCTUATION, _scan, tokenize, tokenize_all
from metrics.ptb_rules import NUMERIC, rules_for

CASES = json.loads((Path(__file__).parent / "ptb_cases.json").read_text(encoding="utf-8"))
CAPTIONS = [caption for caption, _ in CASES]


def differences(captions, expected, found) -> str:
    """Every difference, one a line; empty where there is none."""
    rows = zip(captions, expected, found, strict=True)
    return "\n".join(f"{c!r}: expected {e!r}, found {f!r}" for c, e, f in rows if e != f)


def recombined(count: int, seed: int) -> list[str]:
    """Captions spliced from the cases, with and without spaces at the seams."""
    chance = random.Random(seed)
    chunks = [chunk for caption in CAPTIONS for chunk in caption.split(" ")]
    captions = []
    for _ in range(count):
        words = [chance.choice(chunks) for _ in range(chance.randint(1, 8))]
        words += chance.choice(CAPTIONS).split(" ")
        chance.shuffle(words)
        captions.append("".join(w + chance.choice(["", " ", " ", " ", "  "]) for w in words))
    return captions


def test_recorded_output_of_java():
    assert len(CASES) > 300
    found = [" ".join(tokenize(caption)) for caption in CAPTIONS]
    assert not (report := differences(CAPTIONS, [tokens for _, tokens in CASES], found)), report


def test_numerals_of_all_scripts_are_in_the_table():
    """The table is a constant because building it at every start would take time."""
    numerals = [c for c in map(chr, range(0x80, 0x10000))
                if c.isalnum() and not (c.isalpha() or c.isdecimal())]
    assert re.fullmatch(f"[{NUMERIC}]+", "".join(numerals))
    assert len(re.findall(f"[{NUMERIC}]", "".join(map(chr, range(0x10000))))) == len(numerals)


def test_many_captions_give_what_each_gives_alone():
    assert tokenize_all(iter(CAPTIONS)) == [tokenize(caption) for caption in CAPTIONS]
    assert tokenize_all([]) == []


def test_the_fast_path_equals_the_slow_path():
    captions = CAPTIONS + recombined(1500, seed=1)
    slow = [[token for token in _scan(c) if token not in PUNCTUATION] for c in captions]
    assert not (report := differences(captions, slow, tokenize_all(captions))), report


def test_the_rules_for_ascii_equal_all_rules(monkeypatch):
    captions = [c for c in CAPTIONS + recombined(1000, seed=4) if c.isascii()]
    fast = [_scan(c) for c in captions]
    monkeypatch.setattr("metrics.ptb.rules_for", lambda ascii_alone: rules_for(False))
    assert not (report := differences(captions, [_scan(c) for c in captions], fast)), report


@pytest.mark.parametrize("caption", ["", " ", "\n", " \t \n ", ".", "...", "\U0001F600", "\u200b"])
def test_nothing_to_say_gives_no_token(caption):
    assert tokenize(caption) == []


def test_a_line_break_is_a_space():
    assert tokenize("two dogs\nrun\n") == tokenize("two dogs run") == ["two", "dogs", "run"]
    assert tokenize("he had 1\n1/2 cups") == tokenize("he had 1 1/2 cups")


def test_the_result_may_be_changed_by_the_caller():
    tokenize("a dog .").append("changed")
    assert tokenize("a dog .") == ["a", "dog"]


def test_ten_thousand_captions_take_a_fraction_of_a_second():
    words = [f"{a}{b}ing" for a in "bcdfghklmnprst" for b in ("a", "e", "i", "o", "u", "at", "om")]
    chance = random.Random(2)
    captions = [" ".join(chance.choices(words, k=11)) + " ." for _ in range(10_000)]
    start = time.perf_counter()
    tokenize_all(captions)
    assert time.perf_counter() - start < 1.0  # 0.05 s when the machine is idle


def test_java_agrees_on_recombined_cases():
    module = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer", reason="no pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("no java on PATH")
    captions = recombined(600, seed=3)
    # A plain caption between them: the program looks past the end of the line (see metrics/ptb.py).
    listed = {i: [{"caption": c}, {"caption": "x"}] for i, c in enumerate(captions)}
    expected = [tokens for tokens, _ in module.PTBTokenizer().tokenize(listed).values()]
    found = [" ".join(tokens) for tokens in tokenize_all(captions)]
    report = differences(captions, expected, found)
    assert len(report.splitlines()) <= len(captions) // 100, report
