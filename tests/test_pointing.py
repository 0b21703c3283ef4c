"""The pointing game: its maths on boxes and maps made by hand, its files, and both scripts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, error_lines, make_photo, run_inside, write_classifier
from makers_caption import write_captioner
from PIL import Image

import p1_attn_map
import p2_attn_vis
from data.boxes import boxes_of, read_boxes
from data.transform import Transform
from metrics import pointing

CPU = ["--device", "cpu", "--precision", "fp32"]
WHOLE = (0.0, 0.0, 1.0, 1.0)


# --- maths --------------------------------------------------------------------------------------


def one_hot(rows, cols, row, col):
    heat = np.zeros((rows, cols))
    heat[row, col] = 1
    return heat


def test_a_peak_inside_a_box_is_a_hit_and_chance_is_the_share_of_cells():
    boxes = [(0.5, 0.0, 1.0, 0.5)]  # the upper right quarter
    assert pointing.point(one_hot(4, 4, 1, 2), WHOLE, boxes) == (True, 0.25)
    assert pointing.point(one_hot(4, 4, 2, 2), WHOLE, boxes) == (False, 0.25)
    both = [*boxes, (0.4, 0.0, 0.9, 0.5)]  # boxes that overlap count once
    assert pointing.point(one_hot(4, 4, 1, 2), WHOLE, both) == (True, 0.25)
    assert pointing.point(one_hot(4, 4, 3, 0), WHOLE, [*boxes, (0, 0.7, 0.3, 1)])[0]


def test_rows_are_not_taken_for_columns():
    boxes = [(0.0, 0.75, 0.1, 1.0)]  # a narrow box in the lower left corner
    assert pointing.point(one_hot(4, 10, 3, 0), WHOLE, boxes)[0]
    assert not pointing.point(one_hot(4, 10, 0, 3), WHOLE, boxes)[0]


@pytest.mark.parametrize("resize, hits", [("crop", [False, True]), ("squash", [True, True])])
def test_a_crop_sees_the_middle_of_the_photo_and_squashing_all_of_it(resize, hits):
    """A photo twice as wide as high: the box at its left edge is outside of the crop, so that no
    cell of the map lies in it."""
    transform = Transform((224, 224), (0.5,) * 3, (0.5,) * 3, resize=resize)
    left, top, right, bottom = transform.box(800, 400)
    seen = (left / 800, top / 400, right / 800, bottom / 400)
    assert seen == ((0.25, 0, 0.75, 1) if resize == "crop" else WHOLE)
    found = []
    for box in ((0.0, 0.0, 0.2, 1.0), (0.25, 0.0, 0.5, 1.0)):
        inside = pointing.cells_inside((14, 14), seen, [box])
        centre = (box[0] + box[2]) / 2
        col = int((centre - seen[0]) / (seen[2] - seen[0]) * 14)
        heat = one_hot(14, 14, 7, min(max(col, 0), 13))
        found.append(pointing.point(heat, seen, [box])[0])
        assert inside.any() == found[-1]
    assert found == hits


def test_a_photo_that_was_padded_has_cells_outside_of_it():
    centres = pointing.cell_centres((1, 4), (-0.5, 0.0, 1.5, 1.0))
    np.testing.assert_allclose(centres[0, :, 0], [-0.25, 0.25, 0.75, 1.25])
    np.testing.assert_allclose(centres[0, :, 1], 0.5)


def test_the_summary_has_wilsons_interval():
    summary = pointing.summarize([(True, 0.25)] * 8 + [(False, 0.15)] * 2)
    assert (summary["hits"], summary["maps"], summary["share"]) == (8, 10, 0.8)
    assert summary["chance"] == pytest.approx(0.23)
    assert summary["share_95"] == pytest.approx([0.4902, 0.9433], abs=1e-4)  # Wilson's, by hand


# --- files --------------------------------------------------------------------------------------


def coco_instances():
    return {"images": [{"id": 7, "file_name": "a.jpg", "width": 200, "height": 100},
                       {"id": 8, "file_name": "b.jpg", "width": 10, "height": 10}],
            "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
            "annotations": [{"image_id": 7, "category_id": 1, "bbox": [20, 10, 100, 50]},
                            {"image_id": 7, "category_id": 2, "bbox": [0, 0, 200, 100]},
                            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 2, 2]}]}


def test_cocos_boxes_become_shares(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(coco_instances()))
    found = read_boxes(tmp_path / "x.json")
    assert list(found) == ["a.jpg"]  # b.jpg has no box
    assert found["a.jpg"]["dog"] == [(0.1, 0.1, 0.6, 0.6), (0.0, 0.0, 0.01, 0.02)]
    assert found["a.jpg"]["cat"] == [WHOLE]
    assert boxes_of([Path("q/a.jpg"), Path("b.jpg")], tmp_path / "x.json") == {
        Path("q/a.jpg"): found["a.jpg"]}


def broken_coco(**changes):
    return {**coco_instances(), **changes}


@pytest.mark.parametrize("content, message", [
    ([], "holds a list"),
    ({"a.jpg": {"name": "dog"}}, "lacks 'boxes'"),
    ({"a.jpg": {"name": "dog", "boxes": [[0, 0, 1]]}}, "must be a COCO instances file"),
    ({"a.jpg": {"name": "dog", "boxes": []}}, "must be a COCO instances file"),
    ({"a.jpg": {"name": 3, "boxes": [[0, 0, 1, 1]]}}, "must be a COCO instances file"),
    ({"a.jpg": {"name": "dog", "boxes": [[0, 0, 30, 20]]}}, "as shares from 0 to 1"),
    ({"a.jpg": {"name": "dog", "boxes": [[0.9, 0, 0.1, 1]]}}, "left, top, right, bottom"),
    ({"c.jpg": {"name": "dog", "boxes": [[0, 0, 1, 1]]}}, "has boxes for none of the 1 images"),
    (broken_coco(categories=[]), "lacks the image or the category 1, which an annotation names"),
    (broken_coco(images=[{"id": 7, "file_name": "a.jpg"}]), "lacks 'width'"),
    (broken_coco(annotations="x"), "must be a COCO instances file"),
])
def test_a_file_without_boxes_gets_one_line(tmp_path, capsys, content, message):
    make_photo(tmp_path / "a.jpg")
    (tmp_path / "x.json").write_text(json.dumps(content))
    for script in (p1_attn_map, p2_attn_vis):
        result = run_inside(script, "--images", tmp_path / "a.jpg", "--boxes",
                            tmp_path / "x.json", capsys=capsys)
        lines = error_lines(result)
        assert result.returncode == 1 and len(lines) == 1 and message in lines[0], result.stderr


# --- scripts ------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """Two photos with boxes: one thing fills the first, the second has two kinds, of which one box
    lies where no cell of a map is."""
    for name, size in (("a.png", (120, 80)), ("b.png", (80, 80))):
        make_photo(tmp_path / "photos" / name, 0, size)
    Image.new("RGB", (5, 5)).save(tmp_path / "photos" / "c.png")  # no boxes: left out
    boxes = {"images": [{"id": 1, "file_name": "a.png", "width": 120, "height": 80},
                        {"id": 2, "file_name": "b.png", "width": 80, "height": 80}],
             "categories": [{"id": 1, "name": "name 1"}, {"id": 2, "name": "red square"}],
             "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 120, 80]},
                             {"image_id": 2, "category_id": 1, "bbox": [0, 0, 80, 80]},
                             {"image_id": 2, "category_id": 2, "bbox": [0, 0, 1, 1]}]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return ["--images", tmp_path / "photos", "--boxes", tmp_path / "boxes.json"]


def test_every_map_of_a_classifier_is_measured(tmp_path, photos, capsys):
    checkpoint = write_classifier(tmp_path / "tiny.safetensors")
    result = run_inside(p1_attn_map, *photos, "--checkpoint", checkpoint, *CPU, capsys=capsys)
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    names = [row["map"] for row in printed["maps"]]
    assert names[-3:] == ["last, last layer", "rollout", "relevance"]
    assert names[0].startswith("last, layer 1 of ")
    for row in printed["maps"]:
        assert (row["hits"], row["maps"]) == (2, 3) and row["chance"] == pytest.approx(2 / 3)
    assert len(CLASSES) == 3 and printed["images"] == 2
    assert printed["relevance"] == {"of the class with the thing's name": 2,
                                    "of the predicted class": 1}
    assert "| relevance | 2 of 3 | 66.7% |" in result.stderr


def test_every_layer_of_a_captioner_is_measured(tmp_path, photos, capsys):
    checkpoint = write_captioner(tmp_path / "c.safetensors", ["a red square", "a name 1"], 12)
    result = run_inside(p2_attn_vis, *photos, "--checkpoint", checkpoint, *CPU, capsys=capsys)
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["layers"][-1]["map"] == "last layer" and printed["images"] == 2
    for row in printed["layers"]:
        assert (row["hits"], row["maps"]) == (2, 3)


@pytest.mark.parametrize("script, words, status, message", [
    (p1_attn_map, ["--layer", "0"], 1, "--layer has no effect with --boxes"),
    (p1_attn_map, ["--faithfulness"], 1, "two measurements"),
    (p2_attn_vis, ["--heads", "each"], 2, "--heads has no effect with --boxes"),
    (p2_attn_vis, ["--beam", "3"], 2, "--beam has no effect with --boxes"),
    (p2_attn_vis, ["--rerank", "3"], 2, "--rerank has no effect with --boxes"),
    (p2_attn_vis, ["--npz", "x.npz"], 2, "--npz has no effect with --boxes"),
])
def test_options_that_do_not_go_with_boxes(photos, capsys, script, words, status, message):
    result = run_inside(script, *photos, *words, capsys=capsys)
    assert result.returncode == status and message in error_lines(result)[-1], result.stderr
