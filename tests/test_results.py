"""What a command prints of its result: a summary on a terminal, JSON in a pipe or a file."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, inside

import p1_vit_classify
from inference import results
from metrics.accuracy import summarize

RESULT, SUMMARY = {"correct": 3}, ["3 of 4 right", "loss 0.1"]


class Terminal(io.StringIO):
    """A stdout that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("file", [None, "result.json"])
def test_a_terminal_shows_the_summary(monkeypatch, tmp_path, file):
    monkeypatch.setattr(sys, "stdout", Terminal())
    results.write_result(RESULT, SUMMARY, file and tmp_path / file)
    shown = sys.stdout.getvalue()
    assert shown == "3 of 4 right\nloss 0.1\n"
    if file:
        assert json.loads((tmp_path / file).read_text()) == RESULT


def test_a_pipe_gets_the_json_unless_a_file_does(capsys, tmp_path):
    results.write_result(RESULT, SUMMARY)
    assert json.loads(capsys.readouterr().out) == RESULT
    results.write_result(RESULT, SUMMARY, tmp_path / "result.json")
    assert capsys.readouterr().out == ""


def test_a_script_on_a_real_terminal_prints_no_json(checkpoint, photos, tmp_path):
    reader, writer = os.openpty()
    file = tmp_path / "result.json"
    status = subprocess.run(
        [sys.executable, ROOT / "p1_vit_classify.py", "eval", "--images", photos, "--checkpoint",
         checkpoint, "--json", file], stdout=writer, stderr=subprocess.DEVNULL, timeout=120)
    os.close(writer)
    shown = os.read(reader, 10_000).decode()
    os.close(reader)
    result = json.loads(file.read_text())
    assert status.returncode == 0 and "{" not in shown
    assert f"{result['correct']} of 12 right, {100 * result['accuracy']:.1f} % (95 %: " in shown


def test_json_and_output_are_one_option(checkpoint, photos, tmp_path, capsys):
    words = ["eval", "--images", photos, "--checkpoint", checkpoint]
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for option, file in zip(("--json", "--output"), files, strict=True):
        status, out, _ = inside(p1_vit_classify, *words, option, file, capsys=capsys)
        assert (status, out) == (0, "")
    assert files[0].read_text() == files[1].read_text()


# --- summaries ----------------------------------------------------------------------------------


def test_the_line_of_a_classifier():
    probabilities = np.eye(2)[[0] * 447]
    targets = np.array([0] * 409 + [1] * 38)
    line = results.share_of_right(summarize(probabilities, targets))
    assert line == "409 of 447 right, 91.5 % (95 %: 88.5-93.7)"


def test_the_classes_with_the_fewest_right_answers_are_named():
    per_class = {str(i): {"name": f"class {i}", "correct": i, "total": 5} for i in range(6)}
    result = summarize(np.eye(2)[[0, 1]], np.array([0, 0])) | {"per_class": per_class}
    assert results.of_classifier(result)[-1] == (
        "fewest right: class 0 0 of 5, class 1 1 of 5, class 2 2 of 5")


def test_the_lines_of_captions():
    result = {"images": 1000, "metrics": {"CIDEr": 0.5754, "CLIPScore": 0.71},
              "intervals_95": {"CIDEr": [0.5414, 0.6094]},
              "clipscore": {"model": "tiny", "comparable": "nowhere"}}
    assert results.of_captions(result) == [
        "1,000 images", "CIDEr     0.575 (95 %: 0.541 to 0.609)", "CLIPScore 0.710",
        "CLIPScore is that of tiny: nowhere"]


def test_a_line_for_each_photo():
    row = {"filename": "a.png", "caption": "a cat", "figure": "out/a.png"}
    assert results.of_words({"images": [row]}) == [f"{'a.png':24} a cat  out/a.png"]
    best = row | {"CLIPScore": 0.8}
    assert results.of_words({"clip": "c", "best": best, "worst": best})[1] == (
        "worst: a.png, CLIPScore 0.800: a cat  out/a.png")
    row |= {"label": "0", "name": "cat", "probability": 0.5}
    assert results.of_maps({"images": [row]}) == [f"{'a.png':24} cat 50%  out/a.png"]
    row |= {"label": None, "name": "no head", "probability": None}
    assert results.of_maps({"images": [row]}) == [f"{'a.png':24} out/a.png"]


def test_a_file_name_cannot_command_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    results.write_result(RESULT, ["x\x1b[2Jy.jpg right"])
    assert sys.stdout.getvalue() == "x?[2Jy.jpg right\n"
