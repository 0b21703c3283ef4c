"""p2_caption.py compare, and the sheet of photos on which captions differ, as a user runs them."""

from __future__ import annotations

import json
import shutil
from functools import partial
from itertools import pairwise
from pathlib import Path

from utils import UserError

import numpy as np
import pytest
import torch
from conftest import inside
from makers_caption import TEXTS
from makers_caption import write_captioner as write_other
from makers_files import coco, write
from makers_training import (
    CPU,
    captions_of,
    read_csv,
    write_base,
    write_captioner,
    write_clip,
    write_gpt2,
)
from PIL import Image

import p2_caption
from ckpt import registry
from data.compute import Compute
from data.files import refuse_equal_files, short_names
from data.photos import list_images
from figures import captions as figure
from figures.captions import Card, caption_sheet
from inference import caption_compare, results
from inference.caption import caption_images
from inference.caption_compare import Written, write_sheet
from inference.peft import BaseSource
from models.captioner_files import load_captioner
from models.decoding import Search
from models.peft import identity_of, insert, method_of, save_peft

SEARCH = ["--beam", "2", "--length-penalty", "1", "--no-repeat-ngram", "0"]


@pytest.fixture
def here(capsys):
    return partial(inside, p2_caption, capsys=capsys)


@pytest.fixture(scope="module")
def files(tmp_path_factory, photos):
    """A folder with two random captioners, a copy of the first one, a CLIP, and references among
    which are some captions of each: else every CIDEr would be 0."""
    folder = tmp_path_factory.mktemp("files")
    write_captioner(folder / "a.safetensors")
    write_other(folder / "b.safetensors", TEXTS * 20, 12)
    shutil.copy(folder / "a.safetensors", folder / "copy.safetensors")
    write_clip(folder / "clip.safetensors")
    references = captions_of(photos)
    for letter, part in (("a", slice(0, 3)), ("b", slice(3, 10))):
        captioner = load_captioner(folder / f"{letter}.safetensors")
        paths, written, _ = caption_images(captioner, list_images(photos), Search(2),
                                           Compute("cpu", "fp32", 12))
        for path, caption in list(zip(paths, written, strict=True))[part]:
            references[path.name].append(caption)
    write(folder / "c.json", coco(references))
    return folder


def words(files, photos, *checkpoints) -> list:
    return ["compare", *(files / f"{name}.safetensors" for name in checkpoints), "--images",
            photos, "--captions", files / "c.json", "--clip", files / "clip.safetensors",
            "--bootstrap", "50", *CPU, *SEARCH]


# --- the comparison -----------------------------------------------------------------------------


def test_the_scores_are_those_of_eval_and_the_difference_is_photo_by_photo(
    tmp_path, files, photos, here
):
    status, out, lines = here(*words(files, photos, "a", "b"), "--output", tmp_path / "out",
                              "--show", "3")
    assert status == 0, lines
    result = json.loads(out)
    each = []
    for row in result["captioners"]:
        status, out, _ = here(
            "eval", "--checkpoint", row["checkpoint"], *words(files, photos)[1:], "--per-image",
            tmp_path / "each.csv")
        alone = json.loads(out)
        assert (row["metrics"], row["intervals_95"]) == (alone["metrics"], alone["intervals_95"])
        assert row["search"] == alone["search"]
        for key in ("images", "clipscore", "bootstrap", "tokenizer"):
            assert result[key] == alone[key]
        each.append(read_csv(tmp_path / "each.csv"))
    first, second = (np.array([float(row["CIDEr"]) for row in rows]) for rows in each)
    assert first.any() and second.any()  # else this test says nothing
    gap = result["captioners"][1]["minus_first"]
    assert gap["CIDEr"] == pytest.approx((second - first).mean())
    draws = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), 50)
    assert gap["CIDEr_95"] == pytest.approx(
        np.percentile([np.average(second - first, weights=draw) for draw in draws], [2.5, 97.5]))
    assert [gap["higher_on"], gap["lower_on"]] == [(second > first).sum(), (second < first).sum()]
    assert "minus_first" not in result["captioners"][0]

    table = read_csv(tmp_path / "out" / "compared.csv")
    assert [row["filename"] for row in table] == [row["filename"] for row in each[0]]
    for letter, rows in zip("ab", each, strict=True):
        assert [row[f"{letter} caption"] for row in table] == [row["caption"] for row in rows]
        for metric in ("CIDEr", "CLIPScore"):
            assert [float(row[f"{letter} {metric}"]) for row in table] == pytest.approx(
                [float(row[metric]) for row in rows], abs=6e-5)
    assert [float(row["CIDEr spread"]) for row in table] == pytest.approx(
        abs(first - second), abs=6e-5)
    text = (tmp_path / "out" / "compared.md").read_text()
    low, high = gap["CIDEr_95"]
    assert f"| {gap['CIDEr']:+.3f} ({low:+.3f} to {high:+.3f}) |" in text
    assert "CIDEr minus that of a (95 %)" in text and "12 photos, 2 beams" in text
    assert Image.open(tmp_path / "out" / "most_different.png").width > 500
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_the_sheet_has_the_photos_on_which_the_captioners_differ_most(
    tmp_path, files, photos, here, monkeypatch
):
    sheets = []
    monkeypatch.setattr(caption_compare, "caption_sheet", lambda *parts: sheets.append(parts))
    for count in (4, 50):  # of 12 photos
        status, _, lines = here(*words(files, photos, "a", "b"), "--output", tmp_path, "--show",
                                count)
        assert status == 0, lines
    rows = sorted(read_csv(tmp_path / "compared.csv"), key=lambda row: -float(row["CIDEr spread"]))
    for (cards, names, _title, path), count in zip(sheets, (4, 12), strict=True):
        assert [card.name for card in cards] == [row["filename"] for row in rows[:count]]
        assert names == ["a", "b"] and path == tmp_path / "most_different.png"
        for card, row in zip(cards, rows, strict=False):
            assert card.captions == [row["a caption"], row["b caption"]]
            assert [f"{score['CIDEr']:.4f}" for score in card.scores] == [
                row["a CIDEr"], row["b CIDEr"]]
            assert card.references[:3] == captions_of(photos)[card.name]
    assert sheets[0][2][0] == "The 4 of 12 photos on which the captioners differ most"
    assert sheets[1][2][0] == "All 12 photos, first those on which the captioners differ most"
    assert "2 beams" in sheets[0][2][1]


def test_a_captioner_does_not_differ_from_its_copy_and_there_may_be_three(
    tmp_path, files, photos, here
):
    status, out, lines = here(*words(files, photos, "a", "copy", "b"), "--output", tmp_path)
    assert status == 0, lines
    _, copy, other = json.loads(out)["captioners"]
    assert copy["minus_first"] == {"CIDEr": 0, "CIDEr_95": [0, 0], "higher_on": 0, "lower_on": 0}
    assert other["minus_first"]["CIDEr"] != 0


def test_a_photo_that_cannot_be_read_is_left_out_for_all(tmp_path, files, photos, here):
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    (folder / "0_000.png").write_bytes(b"no photo")
    status, out, lines = here(*words(files, folder, "a", "b"), "--output", tmp_path / "o",
                              "--json", tmp_path / "result.json")
    assert status == 3 and out == ""
    line, = (line for line in lines if "0_000.png" in line)  # named once, not by each captioner
    assert line.startswith("unreadable: ")
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["images"], result["unreadable"]) == (11, 1)
    assert len(read_csv(tmp_path / "o" / "compared.csv")) == 11


def test_photos_none_of_which_can_be_read_are_an_error(tmp_path, files, photos, here):
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    for path in folder.iterdir():
        path.write_bytes(b"no photo")
    status, out, lines = here(*words(files, folder, "a", "b"), "--output", tmp_path / "o")
    assert status == 1 and out == "" and not (tmp_path / "o").exists()
    assert "none of 12 images could be read" in lines[-1]


def test_a_peft_file_over_the_courses_decoder_and_a_whole_captioner(
    tmp_path, files, photos, here, monkeypatch
):
    write_base(tmp_path / "base.safetensors")
    monkeypatch.setattr(registry, "BASE", tmp_path / "base.safetensors")
    write_gpt2(tmp_path / "gpt2")
    decoder = tmp_path / "gpt2" / "decoder_model.bin"
    method, base = method_of("adapter", bottleneck=4), BaseSource(registry.BASE, decoder).open()
    torch.manual_seed(0)
    save_peft(tmp_path / "peft.safetensors", insert(base, method), method, identity_of(base))
    common = words(files, photos, "a")
    common.insert(2, tmp_path / "peft.safetensors")
    status, out, lines = here(*common, "--decoder", decoder, "--output", tmp_path / "o")
    assert status == 0, lines
    assert [row["name"] for row in json.loads(out)["captioners"]] == ["a", "peft"]
    status, out, lines = here(*common, "--output", tmp_path / "o")
    assert status == 1 and "belongs to another base" in lines[-1]


def test_the_summary_says_the_difference():
    row = {"name": "a", "metrics": {"CIDEr": 0.5, "BLEU-1": 0.2},
           "intervals_95": {"CIDEr": [0.4, 0.6]}}
    gap = {"CIDEr": -0.0125, "CIDEr_95": [-0.03, 0.005], "higher_on": 3, "lower_on": 4}
    assert results.of_captioners({
        "captioners": [row, row | {"name": "b", "minus_first": gap}], "images": 1200}) == [
        "1,200 images", "a: CIDEr 0.500 (95 %: 0.400 to 0.600)",
        "b: CIDEr 0.500 (95 %: 0.400 to 0.600)",
        "b - a: CIDEr -0.013 (95 %: -0.030 to +0.005), higher on 3 of 1,200 photos, "
        "lower on 4"]


# --- names of files -----------------------------------------------------------------------------


@pytest.mark.parametrize("paths, names", [
    (["x/a.safetensors", "y/b.pth"], ["a", "b"]),
    (["runs/a/best.safetensors", "runs/b/best.safetensors", "ckpt/c.safetensors"],
     ["a/best", "b/best", "ckpt/c"]),
    (["a/x/best", "b/x/best"], ["a/x/best", "b/x/best"]),
    (["best.safetensors", "runs/best.safetensors"], ["best", "runs/best"]),
    (["a/best.safetensors", "a/best.pth"], ["a/best.safetensors", "a/best.pth"])])
def test_names_tell_files_apart(paths, names):
    assert short_names(paths) == names


def test_one_file_by_two_names_is_refused(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    (tmp_path / "link").symlink_to("a")
    refuse_equal_files([tmp_path / "a", tmp_path / "b", tmp_path / "missing"])
    with pytest.raises(UserError, match="a and .*link are one file"):
        refuse_equal_files([tmp_path / "a", tmp_path / "b", tmp_path / "link"])


# --- the sheet ----------------------------------------------------------------------------------


def card(number: int, width: int, height: int, **changes) -> Card:
    return Card(**{"name": f"{number}.jpg", "photo": Image.new("RGB", (width, height)),
                   "references": ["a dog ."], "captions": ["a cat", "a dog"],
                   "scores": [{"CIDEr": 0.1, "CLIPScore": 0.7}, {"CIDEr": 2.0, "CLIPScore": 0.6}],
                   **changes})


@pytest.fixture
def drawn(monkeypatch):
    """A function that draws a sheet and gives {text: (its box, its weight)} and the photos' boxes,
    in inches from the upper left corner."""
    kept = []
    monkeypatch.setattr(figure, "save", lambda sheet, path: kept.append(sheet))

    def draw(cards, names=("one", "two"), title=("Title", "Note")):
        caption_sheet(cards, names, title, "x.png")
        sheet = kept.pop()
        renderer = sheet.canvas.get_renderer()
        width, height = sheet.get_size_inches()

        def box(thing):
            extent = thing.get_window_extent(renderer)
            return (extent.x0 / sheet.dpi, height - extent.y1 / sheet.dpi, extent.x1 / sheet.dpi,
                    height - extent.y0 / sheet.dpi)

        axes, = sheet.axes
        texts = [(text.get_text(), box(text), text.get_weight()) for text in axes.texts
                 if text.get_text()]
        photos = [box(image) for image in axes.images]
        for left, top, right, bottom in [*(place for _, place, _ in texts), *photos]:
            assert left >= 0 and top >= 0 and right <= width and bottom <= height
        return texts, photos

    return draw


def overlap(one, other) -> bool:
    return (min(one[2], other[2]) - max(one[0], other[0]) > 0.01
            and min(one[3], other[3]) - max(one[1], other[1]) > 0.01)


LONG = {"references": ["word " * 60, "x" * 200, *["short"] * 7], "captions": ["tall " * 90, ""]}


def test_nothing_on_a_sheet_overlaps_and_rows_are_equally_high(drawn):
    cards = [card(0, 300, 200), card(1, 20, 3000), card(2, 3000, 1, **LONG), card(3, 64, 64),
             card(4, 300, 400, name="n" * 200 + ".jpg")]
    texts, photos = drawn(cards, ["a/" + "very-long-name-" * 9 + "best", "é $x^2$ \udce9"])
    boxes = [place for _, place, _ in texts] + photos
    for number, one in enumerate(boxes):
        assert not any(overlap(one, other) for other in boxes[number + 1:])
    tops = sorted({round(place[1], 2) for place in photos})
    steps = [b - a for a, b in pairwise(tops)]
    assert len(tops) == 3 and steps[0] == pytest.approx(steps[1], abs=0.03)
    shown = [text for text, *_ in texts]
    assert "and 3 more" in shown and "(no word)" in shown and any(
        text.endswith("…") for text in shown)


def test_the_highest_cider_alone_is_bold_and_an_unknown_score_is_left_out(drawn):
    equal = [{"CIDEr": 1.0}, {"CIDEr": 1.0}]
    half = [{"CIDEr": 0.5, "CLIPScore": float("nan")}, {"CIDEr": 0.4, "CLIPScore": 0.9}]
    texts, _ = drawn([card(0, 9, 9), card(1, 9, 9, scores=equal), card(2, 9, 9, scores=half)])
    bold = [text for text, _, weight in texts if weight == "bold" and "CIDEr" in text]
    assert bold == ["CIDEr 2.00", "CIDEr 0.50"]
    assert [text for text, *_ in texts if "CLIPScore" in text] == [
        "CLIPScore 0.70", "CLIPScore 0.60", "CLIPScore 0.90"]
    assert "· a dog." in [text for text, *_ in texts]  # "a dog ." would leave a dot alone


def test_a_sheet_of_one_photo(tmp_path, photos):
    path = next(Path(photos).iterdir())
    written = [Written(name, ["a cat"], {"CIDEr": np.zeros(1)}) for name in "ab"]
    write_sheet([path], [["a dog"]], written, 12, "methods", "beam 3", tmp_path / "s.png")
    assert Image.open(tmp_path / "s.png").width < 1100  # one column


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("typed, message", [
    ("a a", "a.safetensors are one file; compare files that differ"),
    ("a missing", "checkpoint missing.safetensors does not exist"),
    ("a clip", "clip.safetensors is a clip checkpoint, a captioner is needed"),
    ("a b --captions none.json", "image 1_000.png has no reference caption"),
    ("a b --captions gone.json", "cannot read gone.json"),
    ("a b --images nowhere", "image folder nowhere does not exist"),
    ("a b --limit 1", "CIDEr needs two images or more"),
    ("a b --clip a.safetensors", "is a captioner checkpoint, a clip is needed"),
    ("a b --decoder d.bin", "--decoder is for PEFT files, and none of the captioners is one"),
    ("a b --weights w.bin", "--weights is for PEFT files, and none of the captioners is one"),
    ("a b --output c.json", "cannot write c.json/compared.md: Not a directory"),
    ("a b --json new/compared.csv", "--json new/compared.csv would replace a file that --output"),
    ("a b --json b.safetensors", "--json b.safetensors would replace a file that the captioners"),
    ("a", "the following arguments are required: FILE"),  # from here on, wrong usage
    ("a b --show 0", "--show: must be a whole number from 1"),
    ("a b --show 61", "--show: must be at most 60, not 61"),
    ("a b --show few", "--show: must be a whole number from 1"),
    ("a b --bootstrap 0", "--bootstrap: must be a whole number from 1"),
])
def test_bad_input_gets_one_line_and_no_output(files, photos, here, monkeypatch, typed, message):
    monkeypatch.chdir(files)
    references = captions_of(photos)
    write(files / "none.json", coco(references | {"1_000.png": []}))
    checkpoints, options = typed.partition(" --")[::2]
    status, out, lines = here(
        *("compare", *(f"{name}.safetensors" for name in checkpoints.split())), "--images", photos,
        "--captions", "c.json", "--output", "new", *CPU, *(f"--{options}".split() * bool(options)))
    assert len(lines) == 1 and message in lines[0] and "unexpected" not in lines[0], lines
    assert status == (2 if "--help" in lines[0] else 1) and out == ""
    assert not (files / "new").exists()
