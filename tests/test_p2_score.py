"""p2_caption.py score as a TA runs it, good files and bad."""

from __future__ import annotations

import csv
import json
from functools import partial

import pytest
from conftest import ROOT, error_lines, make_photo, run_inside, run_script
from makers_clip import write_clip
from makers_files import coco, write

import p2_caption
from data.captions import match_predictions
from metrics.captions import score_captions

SCRIPT = "p2_caption.py"
SHARED = ROOT.parent / "shared" / "data" / "coco_refs"


REFERENCES = {"a.b.jpg": ["a dog runs on grass", "The dog runs."], "c.JPG": ["two men talk"],
              "d.png": ["a red ball", "the ball is red"]}
PREDICTIONS = {"a.b": "a dog runs", "c": "two men", "d": "a ball."}


@pytest.fixture
def here(capsys):
    """As ``run_script(SCRIPT, …)``, in this process."""
    return partial(run_inside, p2_caption, capsys=capsys)


def score(run, folder, predictions, references, *words):
    return run("score", "--predictions", write(folder / "p.json", predictions), "--captions",
               write(folder / "v.json", references), *words)


@pytest.mark.parametrize("rename", [lambda name: name, lambda name: name + ".jpg"])
def test_names_match_with_and_without_extension(tmp_path, rename):
    # PEERS: split('.')[0] cutting a.b.jpg; the last annotation dropped by [:-1]
    result = score(partial(run_script, SCRIPT), tmp_path,
                   {rename(name): text for name, text in PREDICTIONS.items()}, coco(REFERENCES),
                   "--per-image", tmp_path / "out" / "each.csv", "--bootstrap", "50")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    expected, _, per_image = score_captions(list(PREDICTIONS.values()), list(REFERENCES.values()))
    assert printed["metrics"] == expected and printed["images"] == 3
    assert set(printed["intervals_95"]) == set(expected)
    with open(tmp_path / "out" / "each.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["filename"] for row in rows] == list(REFERENCES)
    assert [float(row["CIDEr"]) for row in rows] == per_image[:, 0].tolist()


def test_a_dot_in_a_name_is_no_extension():
    assert match_predictions({"a": "x", "a.b": "y"}, {"a.b": ["r"], "a": ["s"]}) == [
        ("a.b", "a.b"), ("a", "a")]


def test_an_empty_caption_is_scored(tmp_path, here):
    result = score(here, tmp_path, {**PREDICTIONS, "c": ""}, coco(REFERENCES))
    assert result.returncode == 0 and json.loads(result.stdout)["metrics"]["CIDEr"] >= 0


def test_allow_missing_scores_what_both_have(tmp_path, here):
    result = score(here, tmp_path, {"a.b": "a dog", "c": "men", "other": "x"}, coco(REFERENCES),
                   "--allow-missing")
    assert result.returncode == 0
    printed = json.loads(result.stdout)
    assert printed["images"] == 2 and printed["images_left_out"] == 1


TWICE = coco(REFERENCES)
TWICE["images"][1]["id"] = 0
SAME_ANNOTATION = coco(REFERENCES)
SAME_ANNOTATION["annotations"][1]["id"] = 0
NO_REFERENCE = coco(REFERENCES)
NO_REFERENCE["annotations"] = NO_REFERENCE["annotations"][:-2]
NUMBER = coco(REFERENCES)
NUMBER["annotations"][0]["caption"] = 7


@pytest.mark.parametrize("predictions, references, message", [
    # PEERS: one missing caption failing a whole evaluation without naming it
    ({"a.b": "x", "c": "y"}, coco(REFERENCES), "1 images have no prediction (d.png)"),
    ({**PREDICTIONS, **{str(n): "x" for n in range(7)}}, coco(REFERENCES),
     "7 predictions have no reference (0, 1, 2, 3, 4, …)"),
    ({"d": "x"}, coco({"d.png": ["y"]}), "two images"),
    ({**PREDICTIONS, "d": 3}, coco(REFERENCES), "prediction of d is not a string"),
    ([{"image_id": 1}], coco(REFERENCES), "holds a list where an object"),
    (PREDICTIONS, [], "holds a list where an object"),
    (PREDICTIONS, {"images": []}, "needs the lists images and annotations"),
    ("{not json", coco(REFERENCES), "is not valid JSON"),
    ('{"d": "x", "d": "y"}', coco(REFERENCES), "the key d stands twice"),
    (PREDICTIONS, TWICE, "lists an image twice"),
    (PREDICTIONS, SAME_ANNOTATION, "two annotations with one id"),
    (PREDICTIONS, NO_REFERENCE, "d.png has no reference caption"),
    (PREDICTIONS, NUMBER, "a caption of image a.b.jpg is not a string"),
    (PREDICTIONS, {"images": [1], "annotations": []}, "must hold objects"),
    (PREDICTIONS, {"images": [{"id": 1}], "annotations": []}, "lacks 'file_name'"),
    ({"d": "x", "d.png": "y"}, coco({"d.png": ["y"]}), "are of one image"),
])
def test_bad_files_get_one_line(tmp_path, here, predictions, references, message):
    result = score(here, tmp_path, predictions, references, "--per-image", tmp_path / "each.csv")
    assert result.returncode == 1
    lines = error_lines(result)
    assert len(lines) == 1 and message in lines[0], result.stderr
    assert not result.stdout and not (tmp_path / "each.csv").exists()


def test_a_missing_file_and_wrong_usage(tmp_path):
    result = run_script(SCRIPT, "score", "--predictions", "gone.json", "--captions", "v.json",
                        cwd=tmp_path)
    assert result.returncode == 1 and len(error_lines(result)) == 1
    result = run_script(SCRIPT, "score", "--captions", "v.json")
    assert result.returncode == 2 and "--predictions" in result.stderr


def test_score_needs_neither_torch_nor_transformers(tmp_path):
    for package in ("torch", "transformers", "tokenizers", "matplotlib"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('not for score')")
    result = run_script(SCRIPT, "score", "--predictions", write(tmp_path / "p.json", PREDICTIONS),
                        "--captions", write(tmp_path / "v.json", coco(REFERENCES)),
                        PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the course's data in ../shared")
def test_the_courses_own_figure():
    result = run_script(SCRIPT, "score", "--predictions", SHARED / "prediction.json",
                        "--captions", SHARED / "val.json")
    assert json.loads(result.stdout)["metrics"]["CIDEr"] == pytest.approx(
        0.7733517323228953, abs=1e-9)


def test_only_the_photos_that_are_scored_must_be_there(tmp_path, here):
    folder, table = tmp_path / "photos", tmp_path / "photos" / "scores.csv"
    for name in ("a.b.jpg", "c.JPG"):
        make_photo(folder / name)
    words = ("--allow-missing", "--images", folder, "--per-image", table, "--clip",
             write_clip(tmp_path / "clip.safetensors"))
    for _ in range(2):  # the table may stand beside the photos, also the second time
        result = score(here, tmp_path, {"a.b": "a dog", "c": "men"}, coco(REFERENCES), *words)
        assert result.returncode == 0, result.stderr
    result = score(here, tmp_path, PREDICTIONS, coco(REFERENCES), "--images", folder)
    assert "1 of 3 images are not in" in result.stderr and "(d.png)" in result.stderr
    result = score(here, tmp_path, PREDICTIONS, coco(REFERENCES), "--clip-prefix", "A photo of ")
    assert result.returncode == 1 and "--clip-prefix needs --images" in result.stderr
