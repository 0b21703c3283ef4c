"""data/tables.py: a CSV that holds numbers, Markdown and lines for readers."""

from __future__ import annotations

import pytest

from data.tables import (
    Gap,
    decimals,
    for_readers,
    for_terminal,
    percent,
    points,
    thousands,
    write_form,
    write_table,
)

COLUMNS = {"setting": str, "count": thousands, "accuracy": percent, "95 %": percent,
           "CIDEr": decimals, "against the best": points}
ROWS = [{"setting": "a|b", "count": 619008, "accuracy": 0.17649, "95 %": (0.1295, 0.23474),
         "CIDEr": 0.5754, "against the best": Gap(0.0, False)},
        {"setting": "c", "accuracy": "diverged", "against the best": Gap(-0.624, True)}]


def test_one_table_in_each_of_its_forms(tmp_path):
    write_table(tmp_path / "t.csv", tmp_path / "t.md", COLUMNS, ROWS, "A note.")
    assert (tmp_path / "t.csv").read_text().splitlines() == [
        "setting,count,accuracy,95 %,CIDEr,against the best",
        "a|b,619008,0.1765,0.1295 - 0.2347,0.5754,0", "c,,diverged,,,-0.624"]
    text = (tmp_path / "t.md").read_text()
    assert text.startswith("A note.\n\n| setting |") and text.splitlines()[4:] == [
        "| a\\|b | 619,008 | 17.6 % | 13.0 % - 23.5 % | 0.575 | none |",
        "| c |  | diverged |  |  | -62.4 points |"]
    lines = for_terminal(COLUMNS, ROWS)
    assert lines[1].split("  ")[0] == "a|b" and lines[2].rstrip() == lines[2]
    assert len({line.find(word) for line, word in zip(lines, ("accuracy", "17.6", "diverged"),
                                                      strict=True)}) == 1


@pytest.mark.parametrize("name, form", [("t.CSV", "a|b,619008"), ("t.md", "| a\\|b |"),
                                        ("t", "| a\\|b |")])
def test_the_name_of_a_file_says_which_form_it_gets(tmp_path, name, form, capsys):
    write_form(tmp_path / name, COLUMNS, ROWS)
    assert form in (tmp_path / name).read_text() and f"wrote {tmp_path / name}" in (
        capsys.readouterr().err)


def test_without_a_note_and_without_rows():
    assert for_readers({"a": str}, []) == "| a |\n| --- |\n"
    assert for_terminal({"a": str, "b": str}, []) == ["a  b"]


@pytest.mark.parametrize("show, value, text", [
    (decimals, (0.541, 0.6094), "0.541 - 0.609"), (decimals, Gap(-0.05, True), "-0.050"),
    (decimals, Gap(-0.05, False), "none"), (points, 0.0123, "1.2 points"),
    (percent, 1, "100.0 %"),
])
def test_how_readers_see_a_value(show, value, text):
    assert show(value) == text
