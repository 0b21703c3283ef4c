"""clip_zeroshot.py prompts: a template chosen on one part of the photos, measured on the others."""

from __future__ import annotations

import csv
import json

from utils import UserError

import numpy as np
import pytest
from conftest import inside, make_folder
from makers_files import write

import clip_zeroshot
from data.compute import Compute
from data.photos import list_images
from inference.clip import image_features
from inference.prompts import measured, split_classes
from inference.results import of_prompts
from inference.zeroshot import ZeroShot
from metrics.accuracy import summarize, wilson_interval
from metrics.paired import accuracy_gap, mcnemar
from models.clip import open_clip
from models.forward import Forward

CPU = ["--device", "cpu", "--precision", "fp32"]
NAMES = {"0": "red thing", "1": "dog", "2": "palm tree"}
CANDIDATES = ["a {}", "no {object}", "{}", "{} | two"]

pytestmark = pytest.mark.usefixtures("text_cache")


@pytest.fixture
def prompts(tmp_path, photos, clip_file, capsys):
    """Run the command with other words: (status, result or None, lines of stderr)."""
    labels, file = write(tmp_path / "n.json", NAMES), tmp_path / "candidates.txt"

    def run(*words, candidates=None, images=photos):
        file.write_text("\n".join(CANDIDATES) if candidates is None else candidates)
        status, out, errors = inside(
            clip_zeroshot, "prompts", "--images", images, "--labels", labels, "--model", clip_file,
            "--candidates", file, *CPU, *words, capsys=capsys)
        return status, out and json.loads(out), errors

    return run


def test_the_choice_is_made_on_one_part_and_measured_on_the_other(
        tmp_path, photos, clip_file, prompts, monkeypatch):
    calls = []
    encode = Forward.__call__
    monkeypatch.setattr(Forward, "__call__",
                        lambda self, images: calls.append(len(images)) or encode(self, images))
    status, result, errors = prompts("--output", tmp_path / "t.csv")
    assert status == 0 and not errors and sum(calls) == 12  # each photo once
    paths = list_images(photos)
    targets = np.array([int(path.name[0]) for path in paths])
    held_out = split_classes(targets, list(NAMES.values()), 0.5, 0)
    clip = open_clip(clip_file)
    _, images, _ = image_features(clip, paths, Compute("cpu", "fp32", 4))
    right, rows = [], result["rows"]
    for template, row in zip(CANDIDATES, rows, strict=True):
        probabilities = ZeroShot(clip, NAMES, [template]).probabilities(images)
        right.append(probabilities.argmax(1) == targets)
        assert row["template"] == template
        for part, places in (("choosing", ~held_out), ("others", held_out)):
            expected = summarize(probabilities[places], targets[places])
            assert row[part]["total"] == 6
            assert row[part]["correct"] == expected["correct"] == right[-1][places].sum()
            assert row[part]["accuracy_95"] == list(wilson_interval(row[part]["correct"], 6))
    best = int(np.argmax([own[~held_out].sum() for own in right]))  # the first of equals
    assert [row["chosen"] for row in rows] == [place == best for place in range(4)]
    assert result["chosen"] == rows[best] and result["hold_out"] == 0.5 and result["seed"] == 0
    for own, row in zip(right, rows, strict=True):
        expected = own[held_out].mean() - right[best][held_out].mean()
        assert row["minus_chosen"] == pytest.approx(expected) and 0 < row["mcnemar_p"] <= 1
    with open(tmp_path / "t.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["template"] for row in table] == CANDIDATES and table[best]["chosen"] == "yes"
    assert [float(row["other photos"]) for row in table] == pytest.approx(
        [row["others"]["accuracy"] for row in rows], abs=5e-5)


def test_seed_and_share_decide_the_parts(prompts, tmp_path):
    _, first, _ = prompts("--hold-out", "0.75", "--seed", "1")
    assert first["rows"][0]["choosing"]["total"] == 3 and first["rows"][0]["others"]["total"] == 9
    assert prompts("--hold-out", "0.75", "--seed", "1")[1] == first
    targets = np.repeat([0, 2], [9, 2])
    splits = [split_classes(targets, ["a", "b", "c"], 0.5, seed) for seed in range(9)]
    assert all(split[:9].sum() == 4 and split[9:].sum() == 1 for split in splits)
    assert len({tuple(split) for split in splits}) > 5
    for share in (0.01, 0.99):  # each class stays in both parts
        split = split_classes(targets, ["a", "b", "c"], share, 0)
        assert 0 < split[:9].sum() < 9 and split[9:].sum() == 1


def test_a_table_and_a_summary_for_people(prompts, tmp_path):
    status, result, _ = prompts("--output", tmp_path / "t.md")
    line = (tmp_path / "t.md").read_text().splitlines()[5]
    assert status == 0 and line.startswith("| {} \\| two | ")
    chosen, choosing, others = of_prompts(result)
    row = result["chosen"]
    assert chosen == f"chosen: {row['template']}" and choosing.endswith("to choose by")
    assert others.startswith(f"{row['others']['correct']} of 6 right, ")


def test_unreadable_photos_have_no_part(prompts, tmp_path):
    folder = make_folder(tmp_path / "photos", 4)
    (folder / "0_009.png").write_text("no photo")
    status, result, errors = prompts(images=folder)
    assert status == 3 and "0_009.png" in errors[0] and result["unreadable"] == 1
    assert sum(result["rows"][0][part]["total"] for part in ("choosing", "others")) == 12


@pytest.mark.parametrize("candidates, message", [
    ("", "holds no template"), (" \n\n", "holds no template"),
    ("a {}\ndogs\n", 'the template "dogs" has no {object} (or {})'),
    ("a {}\nthe {}\n a {object} \n", 'has the template "a {object}" twice'),
    ("a {}\nthe {}\na {}\n", 'has the template "a {}" twice'),
    ("a {}\n", "has one template only"),
])
def test_wrong_candidates_are_refused_in_one_line(prompts, candidates, message):
    status, _, errors = prompts(candidates=candidates)
    assert status == 1 and len(errors) == 1 and message in errors[0], errors


def test_bad_input_gets_one_line(prompts, tmp_path, photos):
    folder = make_folder(tmp_path / "few", 2)
    (folder / "2_001.png").unlink()
    (folder / "1_001.png").unlink()
    status, _, errors = prompts(images=folder)
    assert status == 1 and "2 of the classes (dog, palm tree) have one photo" in errors[0]
    for words, status, message in (
            (["--hold-out", "0"], 2, "--hold-out: must be a number above 0 and below 1, not 0"),
            (["--hold-out", "1"], 2, "--hold-out"), (["--seed", "-1"], 2, "--seed"),
            (["--candidates", tmp_path / "no.txt"], 1, "cannot read"),
            (["--output", tmp_path / "n.json"], 1, "--labels names; give another --output"),
            (["--output", tmp_path / "candidates.txt"], 1, "--candidates names"),
            (["--json", tmp_path / "n.json"], 1, "give another --json"),
            (["--images", tmp_path / "nowhere"], 1, "does not exist"),
            (["--limit", "3", "--images", photos], 1, "have one photo")):
        found, _, errors = prompts(*words)
        assert found == status and len(errors) == 1 and message in errors[0], (words, errors)
    with pytest.raises(UserError, match="all readable photos are in one part"):
        measured(None, None, np.zeros(2, int), np.zeros(2, bool))


def test_the_gap_of_two_classifiers_is_mcnemars():
    first, second = np.array([1, 1, 1, 0, 1], bool), np.array([1, 0, 0, 1, 1], bool)
    assert accuracy_gap(first, second) == (pytest.approx(0.2), mcnemar(2, 1))
    assert accuracy_gap(first, first) == (0, 1)
