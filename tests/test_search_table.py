"""p2_caption.py eval --vary: one captioner with several searches, as a table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import error_lines, make_folder, run_inside
from makers_files import coco, write
from makers_training import CPU, captions_of, read_csv, write_captioner, write_clip

import p2_caption
from inference.options import SEARCH_KEYS
from inference.results import of_searches
from inference.settings import option_words
from metrics.clipscore import mean_interval
from models.vit_gpt2 import ViTGPT2


@pytest.fixture(scope="module")
def world(tmp_path_factory, photos) -> Path:
    """A folder with a tiny captioner, a CLIP, and references that repeat some of its captions."""
    world = tmp_path_factory.mktemp("world")
    write_captioner(world / "tiny.safetensors")
    write_clip(world / "clip.safetensors")
    write(world / "t.json", {"x": ["a red square", "a square"]})
    write(world / "v.json", coco(captions_of(photos)))
    return world


@pytest.fixture
def evaluate(world, photos, capsys):
    def run(*words, images=photos, captions=world / "v.json"):
        return run_inside(p2_caption, "eval", "--images", images, "--captions", captions,
                          "--checkpoint", world / "tiny.safetensors", "--clip",
                          world / "clip.safetensors", "--bootstrap", "50", *CPU, *words,
                          capsys=capsys)

    return run


def test_each_row_is_what_eval_says_of_this_search(world, evaluate, tmp_path, monkeypatch):
    calls = []
    encode = ViTGPT2.encode
    monkeypatch.setattr(ViTGPT2, "encode",
                        lambda self, images: calls.append(len(images)) or encode(self, images))
    train = ["--train-captions", world / "t.json"]
    result = evaluate("--vary", "beam=1,3", "--vary", "max_length=3,12,3", "--length-penalty", "1",
                      "--out", tmp_path / "out", *train)
    assert result.returncode == 0, result.stderr
    assert sum(calls) == 12  # each photo once for all searches
    found = json.loads(result.stdout)
    table = read_csv(tmp_path / "out" / "varied.csv")
    shown = [(row["beam"], row["max-length"]) for row in table]
    assert shown == [("1", "3"), ("1", "12"), ("3", "3"), ("3", "12")]
    best = max(row["metrics"]["CIDEr"] for row in found["settings"])
    cider = {}
    for (beam, length), row, setting in zip(shown, table, found["settings"], strict=True):
        alone = tmp_path / "alone.csv"
        single = evaluate("--beam", beam, "--max-length", length, "--length-penalty", "1",
                          "--per-image", alone, *train)
        expected = json.loads(single.stdout)
        for key in ("metrics", "intervals_95", "search", "reads"):
            assert setting[key] == expected[key]
        for key in ("images", "tokenizer", "clipscore", "bootstrap", "unreadable"):
            assert found[key] == expected[key]
        file = tmp_path / "out" / f"beam-{beam}_max-length-{length}.csv"
        assert file.read_text() == alone.read_text()
        cider[beam, length] = np.array([float(line["CIDEr"]) for line in read_csv(file)])
        for name in ("CIDEr", "BLEU-4", "ROUGE-L", "CLIPScore"):
            assert float(row[name]) == pytest.approx(expected["metrics"][name], rel=1e-3)
        assert row["95 % interval"] == " - ".join(
            f"{bound:.4g}" for bound in expected["intervals_95"]["CIDEr"])
        assert float(row["against the best"]) == pytest.approx(
            expected["metrics"]["CIDEr"] - best, rel=1e-3)
        assert float(row["copied from training"]) == pytest.approx(
            expected["reads"]["copied_from_training"], abs=1e-3)
    top = max(cider, key=lambda key: cider[key].mean())
    assert found["best"] == "beam {}, max-length {}".format(*top)
    lines = (tmp_path / "out" / "varied.md").read_text().splitlines()
    assert lines[0].startswith('"Against the best"') and len(lines) == 4 + len(table)
    for key, line in zip(shown, lines[4:], strict=True):
        gap = cider[key] - cider[top]
        low, high = mean_interval(gap, 50, 0)
        assert line.split(" | ")[4] == ("none" if low <= 0 <= high else f"{gap.mean():.3f}")
    assert of_searches(found) == [f"12 images; highest CIDEr: {found['best']}"]


def test_unreadable_photos_are_left_out_of_every_row(world, evaluate, tmp_path):
    folder = make_folder(tmp_path / "photos", 2)
    references = write(tmp_path / "v.json", coco(captions_of(folder)))
    (folder / "0_000.png").write_text("no photo")
    result = evaluate("--vary", "no-repeat-ngram=0,2", "--out", tmp_path / "out", "--json",
                      tmp_path / "r.json", images=folder, captions=references)
    assert result.returncode == 3 and "0_000.png" in error_lines(result)[0]
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["images"] == 5 and found["unreadable"] == 1 and not result.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "varied.csv", "varied.md", "no-repeat-ngram-0.csv", "no-repeat-ngram-2.csv"}


def test_what_can_be_varied_is_what_the_search_has():
    parser = p2_caption.make_parser()
    evaluating = next(action for action in parser._actions if action.choices).choices["eval"]
    search = next(group for group in evaluating._action_groups if group.title == "search")
    assert [f"--{key}" for key in SEARCH_KEYS] == [
        action.option_strings[0] for action in search._group_actions]


@pytest.mark.parametrize("words, status, message", [
    (["--vary", "beam=1,3"], 1, "--vary KEY=V1,V2 and --out DIR go together"),
    (["--out", "out"], 1, "--vary KEY=V1,V2 and --out DIR go together"),
    (["--vary", "beam", "--out", "out"], 1, "write KEY=VALUE,VALUE"),
    (["--vary", "beam=", "--out", "out"], 1, "write KEY=VALUE,VALUE"),
    (["--vary", "beam=1,0", "--out", "out"], 2, "setting beam 0: argument --beam"),
    (["--vary", "beam=1,", "--out", "out"], 2, "setting beam : argument --beam"),
    (["--vary", "beam=1,3+5", "--out", "out"], 2, "setting beam 3+5: unrecognized arguments: 5"),
    (["--vary", "length-penalty=1,x", "--vary", "beam=1,3", "--out", "out"], 2,
     "setting length-penalty x, beam 1: argument --length-penalty"),
    (["--vary", "beam=1", "--vary", "beam=3", "--out", "out"], 1, "--vary gives beam twice"),
    (["--vary", "beam=1,3", "--beam", "7", "--out", "out"], 1, "--beam and --vary beam both give"),
    (["--vary", "beams=1,3", "--out", "out"], 1, "--vary beams: only the options of the search can "
     "be varied: beam, length-penalty, min-length, max-length, no-repeat-ngram"),
    (["--vary", "checkpoint=a,b", "--out", "out"], 1, "only the options of the search"),
    (["--vary", "beam=1,3", "--out", "out", "--record", "x"], 1, "--record is for a single search"),
    (["--vary", "beam=1,3", "--out", "out", "--per-image", "x.csv"], 1, "--per-image is for a"),
    (["--vary", "beam=1,3", "--out", "taken"], 1, "cannot write taken/varied.csv"),
    (["--vary", "beam=1,3", "--out", "out", "--json", "out/varied.csv"], 1,
     "--json names; give another"),
    (["--vary", "beam=1,3", "--out", "out", "--captions", "out/beam-3.csv"], 1, "beam-3.csv"),
])
def test_bad_input_gets_one_line(
        evaluate, tmp_path, monkeypatch, words, status, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    result = evaluate(*words)
    line, = error_lines(result)
    assert result.returncode == status and message in line, line
    assert not (tmp_path / "out").exists() and (tmp_path / "taken").read_text() == "a file"


def test_a_number_with_a_plus_is_one_value():
    assert option_words({"length-penalty": "1e+0", "augment": "flip+crop", "freeze": "true"}) == [
        "--length-penalty=1e+0", "--augment", "flip", "crop", "--freeze"]
