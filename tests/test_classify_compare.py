"""p1_vit_classify.py compare as a user runs it."""

from __future__ import annotations

import csv
import json
from functools import partial

import numpy as np
import pytest
from conftest import CLASSES, inside, make_folder, run_script, write_classifier
from PIL import Image

import p1_vit_classify
from data.compute import Compute
from data.photos import list_images
from inference import classify_compare, results
from inference.classify import classify
from inference.classify_compare import two_names
from metrics.paired import mcnemar
from models.classifier import load_classifier

CPU = ["--device", "cpu", "--precision", "fp32"]
ON_CPU = Compute("cpu", "fp32", 8)


@pytest.fixture
def here(capsys):
    return partial(inside, p1_vit_classify, "compare", capsys=capsys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos"), 8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two random classifiers; the second one has its classes in another order."""
    place = tmp_path_factory.mktemp("pair")
    return [write_classifier(place / "a.safetensors", seed=2),
            write_classifier(place / "b.safetensors", CLASSES[::-1], seed=5)]


def rows_of(file):
    with open(file, encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def test_the_comparison_is_that_of_the_answers_photo_by_photo(tmp_path, folder, pair, here):
    status, out, lines = here(*pair, "--images", folder, "--output", tmp_path, *CPU)
    assert status == 0, lines
    result = json.loads(out)
    right = []
    for file in pair:
        classifier = load_classifier(file)
        paths, probabilities, _ = classify(classifier, list_images(folder), ON_CPU)
        labels = [classifier.classes[i] for i in probabilities.argmax(1)]
        right.append(np.array([label == path.name[0]
                               for label, path in zip(labels, paths, strict=True)]))
    first, second = right
    assert [row["correct"] for row in result["classifiers"]] == [first.sum(), second.sum()]
    assert result["difference"] == pytest.approx(first.mean() - second.mean())
    low, high = result["difference_95"]
    assert low <= result["difference"] <= high
    only = [int((first & ~second).sum()), int((second & ~first).sum())]
    assert sum(only) > 0
    assert [result["only_first_right"], result["only_second_right"]] == only
    assert result["both_right"] + result["neither_right"] + sum(only) == len(first)
    assert result["mcnemar_p"] == mcnemar(*only)
    table = rows_of(tmp_path / "compared.csv")
    assert [row["filename"] for row in table] == [path.name for path in paths]
    assert [row["right"] in ("both", "first") for row in table] == first.tolist()
    assert [row["right"] in ("both", "second") for row in table] == second.tolist()
    assert [row["second"] for row in table] == labels
    assert {path.name for path in tmp_path.iterdir()} == {
        "only_first.png", "only_second.png", "compared.csv"}


def test_the_sheet_has_the_photos_that_one_alone_gets_right(
    tmp_path, folder, pair, here, monkeypatch
):
    sheets = []
    monkeypatch.setattr(classify_compare.charts, "gallery", lambda *words: sheets.append(words))
    monkeypatch.setattr(classify_compare, "MOST", 2)
    assert here(*pair, "--images", folder, "--output", tmp_path, "--maps", *CPU)[0] == 0
    for place, (images, titles, heading, file, _, columns) in enumerate(sheets):
        name = ("first", "second")[place]
        alone = [row for row in rows_of(tmp_path / "compared.csv") if row["right"] == name]
        other = ("second", "first")[place]
        alone.sort(key=lambda row: -float(row[f"{other} probability"]))
        assert file.name == f"only_{name}.png"
        assert heading.startswith(f"Only {'ab'[place]} is right: {len(alone)} of 24 photos")
        assert alone  # else this test says nothing
        assert len(images) == len(titles) == 3 * min(len(alone), 2) and columns == 3
        assert {title.split("\n")[0] for title in titles[::3]} == {
            row["filename"] for row in alone[:2]}
        assert [title.split("\n")[:2] for title in titles[1:3]] == [
            ["a", "relevance"], ["b", "relevance"]][:len(titles[1:3])]


def test_a_sheet_without_photos_is_drawn_too(tmp_path, folder, pair, here, monkeypatch):
    headings = []
    monkeypatch.setattr(classify_compare.charts, "gallery",
                        lambda images, titles, heading, *rest: headings.append(heading))
    assert here(pair[0], pair[0], "--images", folder, "--output", tmp_path, *CPU)[0] == 0
    assert headings == ["Only first is right", "Only second is right"]


@pytest.mark.parametrize("method", ["last", "rollout", "relevance"])
def test_maps_are_drawn_by_each_method(tmp_path, folder, pair, here, method):
    plain, with_maps = tmp_path / "plain", tmp_path / "maps"
    assert here(*pair, "--images", folder, "--output", plain, *CPU)[0] == 0
    assert here(*pair, "--images", folder, "--output", with_maps, "--maps", method, *CPU)[0] == 0
    sizes = [Image.open(place / "only_first.png").size for place in (plain, with_maps)]
    assert sizes[1][1] > sizes[0][1]


def test_a_classifier_does_not_differ_from_itself(tmp_path, folder, pair):
    result = run_script("p1_vit_classify.py", "compare", pair[0], pair[0], "--images", folder,
                        "--output", tmp_path, *CPU)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["difference"], found["difference_95"], found["mcnemar_p"]) == (0, [0, 0], 1)


def test_labels_from_a_table_and_unreadable_photos(tmp_path, pair, here):
    folder = make_folder(tmp_path / "photos", 2)
    (folder / "1_broken.png").write_bytes(b"no photo")
    table = tmp_path / "labels.csv"
    table.write_text("filename,label\n" + "".join(
        f"{path.name},0\n" for path in sorted(folder.iterdir())))
    status, out, lines = here(*pair, "--images", folder, "--labels", table, "--output",
                              tmp_path / "out", "--json", tmp_path / "result.json", *CPU)
    assert status == 3 and out == "" and any("1_broken.png" in line for line in lines)
    assert json.loads((tmp_path / "result.json").read_text())["unreadable"] == 1
    assert {row["true"] for row in rows_of(tmp_path / "out" / "compared.csv")} == {"0"}


def test_the_summary_says_the_difference_in_points():
    row = {"checkpoint": "a", "correct": 3, "total": 4, "accuracy": 0.75, "accuracy_95": [0.3, 1]}
    lines = results.of_two_classifiers({
        "classifiers": [row, row | {"checkpoint": "b"}], "difference": -0.0125,
        "difference_95": [-0.03, 0.005], "both_right": 2, "only_first_right": 1,
        "only_second_right": 1, "neither_right": 0, "mcnemar_p": 0.125})
    assert lines[1:] == ["b: 3 of 4 right, 75.0 % (95 %: 30.0-100.0)",
                         "first - second: -1.2 points (95 %: -3.0 to +0.5), "
                         "McNemar's exact p = 0.12",
                         "right: both 2, only the first 1, only the second 1, neither 0"]


@pytest.mark.parametrize("sources, names", [
    (["x/a.safetensors", "y/b.safetensors"], ["a", "b"]),
    (["runs/a/best.safetensors", "runs/b/best.safetensors"], ["a/best", "b/best"]),
    (["a/best.safetensors", "a/best.safetensors"], ["first", "second"])])
def test_names_tell_the_two_apart(sources, names):
    assert two_names(sources) == names


def test_bad_input_says_what_is_wrong(tmp_path, folder, pair, here):
    def problem(*words):
        status, out, lines = here(*words, "--images", folder, "--output", tmp_path / "o", *CPU)
        assert status != 0 and out == "" and not (tmp_path / "o").exists()
        return lines[-1]

    fewer = write_classifier(tmp_path / "fewer.safetensors", CLASSES[:2])
    assert "none of " in (line := problem(pair[0], fewer)) and "fewer.safetensors" in line
    assert "missing.safetensors" in problem(pair[0], tmp_path / "missing.safetensors")
    convolutional = write_classifier(tmp_path / "cnn.safetensors", model="resnet10t")
    assert "give a ViT" in problem(pair[0], convolutional, "--maps")
    assert "--output" in problem(pair[0], pair[1], "--json", tmp_path / "o" / "compared.csv")
