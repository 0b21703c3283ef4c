"""Confusions, confident errors and accuracy by class: what eval --figures of two scripts writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import inside, make_folder
from makers_files import write
from PIL import Image

import clip_zeroshot
from data.photos import list_images
from figures import charts
from inference.answers import FIGURES, by_class, write_answers
from inference.zeroshot import TEMPLATES
from metrics.accuracy import wilson_interval

CPU = ["--device", "cpu", "--precision", "fp32"]
NAMES = {"0": "red_thing", "1": "dog", "2": "palm tree"}
PROBABILITIES = np.array([[0.9, 0.1, 0], [0.2, 0.7, 0.1], [0.4, 0.6, 0], [0, 0.2, 0.8]])
TARGETS = np.array([0, 0, 1, 0])

pytestmark = pytest.mark.usefixtures("text_cache")


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def drawn(monkeypatch) -> dict[str, tuple]:
    """What the two charts were asked to draw, by their names."""
    calls = {}
    for name in ("confusion", "gallery"):
        draw = getattr(charts, name)
        monkeypatch.setattr(charts, name, lambda *words, name=name, draw=draw: (
            calls.update({name: words}), draw(*words)))
    return calls


def test_the_files_agree_with_counting(tmp_path, drawn):
    paths = list_images(make_folder(tmp_path / "photos", 2))[:4]
    write_answers(NAMES, paths, PROBABILITIES, TARGETS, tmp_path / "o", "template “a $x$ {}”")
    assert {path.name for path in (tmp_path / "o").iterdir()} == set(FIGURES)
    assert [list(row.values()) for row in rows_of(tmp_path / "o" / "confusion.csv")] == [
        ["0", "0", "1", "red_thing", "red_thing"], ["0", "1", "1", "red_thing", "dog"],
        ["0", "2", "1", "red_thing", "palm tree"], ["1", "1", "1", "dog", "dog"]]
    low, high = wilson_interval(1, 3)
    assert [list(row.values()) for row in rows_of(tmp_path / "o" / "classes.csv")] == [
        ["0", "red_thing", "1", "3", "0.3333", f"{low:.4g} - {high:.4g}"],
        ["1", "dog", "1", "1", "1", "0.2065 - 1"]]
    _, titles, heading, _ = drawn["gallery"]
    assert titles == ["red_thing\ntaken for palm tree (80%)", "red_thing\ntaken for dog (70%)"]
    assert heading == "Most confident errors\ntemplate “a $x$ {}”"
    assert drawn["confusion"][2] == "Confusion: 2 of 4 right\ntemplate “a $x$ {}”"
    for name in ("confusion.png", "errors.png"):
        assert min(Image.open(tmp_path / "o" / name).size) > 300


def test_classes_without_photos_are_left_out():
    assert by_class(NAMES, PROBABILITIES, TARGETS) == {
        "0": {"name": "red_thing", "correct": 1, "total": 3},
        "1": {"name": "dog", "correct": 1, "total": 1}}


def test_eval_of_clip_draws_its_best_template(tmp_path, photos, clip_file, capsys, drawn):
    words = ["eval", "--images", photos, "--labels", write(tmp_path / "n.json", NAMES), "--model",
             clip_file, *CPU, "--figures", tmp_path / "o", "--json", tmp_path / "r.json"]
    status, _, errors = inside(clip_zeroshot, *words, "--template", "a {}", "no {object}",
                               capsys=capsys)
    assert status == 0, errors
    result = json.loads((tmp_path / "r.json").read_text())
    best = max(result["rows"], key=lambda row: row["correct"])
    assert result["best"]["template"] == best["template"]
    per_class = result["best"]["per_class"]
    assert [row["name"] for row in per_class.values()] == ["red thing", "dog", "palm tree"]
    assert sum(row["correct"] for row in per_class.values()) == best["correct"]
    confused = rows_of(tmp_path / "o" / "confusion.csv")
    assert sum(int(row["count"]) for row in confused) == 12
    assert sum(int(row["count"]) for row in confused
               if row["true"] == row["predicted"]) == best["correct"]
    assert drawn["confusion"][2].splitlines()[1] in (
        "template “a {}”", "template “no {object}”", "ensemble of given (2)")


def test_a_figure_that_is_an_input_is_refused(tmp_path, photos, clip_file, capsys):
    truth = tmp_path / "confusion.csv"
    truth.write_text("filename,label\n")
    status, _, errors = inside(
        clip_zeroshot, "eval", "--images", photos, "--labels", write(tmp_path / "n.json", NAMES),
        "--model", clip_file, "--truth", truth, "--figures", tmp_path, capsys=capsys)
    assert status == 1 and len(errors) == 1 and "give another --figures" in errors[0]
    assert truth.read_text() == "filename,label\n"


def test_a_template_is_compared_with_the_best_on_the_same_photos(
        tmp_path, photos, clip_file, capsys):
    files = [tmp_path / "t.md", tmp_path / "t.csv"]
    status, _, errors = inside(
        clip_zeroshot, "eval", "--images", photos, "--labels", write(tmp_path / "n.json", NAMES),
        "--model", clip_file, *CPU, "--table", *files, "--json", tmp_path / "r.json", "--template",
        "course", capsys=capsys)
    assert status == 0, errors
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    best = max(row["accuracy"] for row in rows)
    table = rows_of(files[1])
    assert [row["template"] for row in table] == [row["template"] for row in rows]
    assert list(table[0]) == ["template", "accuracy", "95 % interval", "against the best"]
    for row, shown in zip(rows, table, strict=True):
        assert row["minus_best"] == row["accuracy"] - best and 0 < row["mcnemar_p"] <= 1
        assert float(shown["accuracy"]) == pytest.approx(row["accuracy"], abs=5e-5)
        assert float(shown["against the best"]) == pytest.approx(row["minus_best"], abs=5e-5)
    lines = files[0].read_text().splitlines()
    assert len(lines) == 2 + len(TEMPLATES["course"]) + 1
    assert f"| {rows[0]['accuracy']:.1%}".replace("%", " %") in lines[2]
