"""p2_attn_vis.py: its maps against other computations, its figures pixel by pixel, its command line
as a user runs it."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from conftest import (
    TINY,
    bash,
    copy_project,
    error_lines,
    make_photo,
    run_inside,
    run_script,
    write_classifier,
)
from makers_caption import END, biased, memory_of, random_gpt2, write_captioner
from makers_files import coco, write
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import p2_attn_vis
from data.compute import Compute
from data.photos import list_images
from data.transform import Transform
from figures import maps as figure_maps
from figures import style
from inference import words as words_of
from models.captioner_files import load_captioner
from models.clip import build_clip, save_clip
from models.decoding import Search, generate
from models.gpt2 import GPT2Config
from models.tokenizer import END_OF_TEXT, Tokenizer, gpt2_tokenizer, train_bpe

pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # pytest undoes what figures.py ignores
SCRIPT = "p2_attn_vis.py"
CPU = ["--device", "cpu", "--precision", "fp32"]
LENGTH = 12  # tokens that the captioner here can write
TEXTS = ["a red square", "a green square", "the man's tri-colored dog", "un café"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_captioner(tmp_path_factory.mktemp("captioner") / "tiny.safetensors", TEXTS, LENGTH)


@pytest.fixture(scope="module")
def captioner(checkpoint):
    return load_captioner(checkpoint)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A red, a green and a blue photo, each of another shape."""
    folder = tmp_path_factory.mktemp("my photos")
    for label, (name, size) in enumerate([("0.png", (300, 100)), ("1.b.JPG", (90, 240)),
                                          ("2 犬 $x$.webp", (120, 120))]):
        make_photo(folder / name, label, size)
    return folder


@pytest.fixture
def here(capsys, checkpoint):
    """As ``run_script(SCRIPT, …)`` with the captioner above, in this process."""
    def run(*words):
        given = [] if "--checkpoint" in words else ["--checkpoint", checkpoint]
        return run_inside(p2_attn_vis, *words, *given, *CPU, capsys=capsys)

    return run


def one_word_a_token(ids):
    return [(str(token), [place]) for place, token in enumerate(ids) if token != 0]


def encoded(captioner, paths):
    transform = captioner.transform
    pixels = np.stack([transform.load(path) for path in paths])
    with torch.no_grad():
        return captioner.encode(transform.normalize(torch.from_numpy(pixels)))


# --- maps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_maps_equal_transformers_eager_attention(layer):
    theirs, captioner = random_gpt2(5)
    theirs.set_attn_implementation("eager")
    captioner.tokenizer.words = one_word_a_token
    memory = memory_of(3, seed=5)
    rows = [[4, 9, 9, 17, 0], [3, 0], [8, 21, 4, 0]]  # they end at different steps
    for image, (words, maps) in enumerate(words_of.word_maps(captioner, memory, rows, layer)):
        alone = theirs(torch.tensor([[0, *rows[image][:-1]]]), output_attentions=True,
                       encoder_hidden_states=memory.features[image:image + 1])
        expected = alone.cross_attentions[layer][0]  # (heads, tokens, patches)
        assert words == [*map(str, rows[image][:-1]), "<end>"]
        np.testing.assert_allclose(maps[:, :, 0], expected, atol=1e-6)
        np.testing.assert_allclose(maps.sum((-1, -2)), 1, atol=1e-5)


def test_maps_of_beam_search_are_those_of_the_winning_beam():
    from transformers import VisionEncoderDecoderModel, ViTConfig, ViTModel
    from transformers.modeling_outputs import BaseModelOutput

    encoder = ViTModel(ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3,
                                 intermediate_size=24, image_size=32))
    changed_beams = 0
    for seed in range(8):
        theirs, captioner = random_gpt2(seed)
        captioner.tokenizer.words, captioner.tokenizer.decode = one_word_a_token, str
        theirs.set_attn_implementation("eager")
        plain = theirs.forward

        def forward(*args, plain=plain, **kwargs):
            output = plain(*args, **kwargs)
            output.logits[..., END] += 1.5
            return output

        theirs.forward = forward
        model = VisionEncoderDecoderModel(encoder=encoder, decoder=theirs).eval()
        for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
            setattr(model.generation_config, name, END)
        memory = memory_of(4, seed)
        result = model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=memory.features), num_beams=3,
            do_sample=False, max_new_tokens=10, early_stopping=False, length_penalty=1.0,
            output_attentions=True, return_dict_in_generate=True)
        written = words_of.written_captions(biased(captioner, 1.5), memory,
                                               Search(beams=3, max_length=10))
        rows = [ids for _, ids in written]
        for image, (_, maps) in enumerate(words_of.word_maps(captioner, memory, rows, -1)):
            assert rows[image] == result.sequences[image, 1:len(rows[image]) + 1].tolist()
            beams = result.beam_indices[image, :len(rows[image])].tolist()
            changed_beams += len(set(beams)) > 1
            for step, beam in enumerate(beams):
                expected = result.cross_attentions[step][-1][beam, :, 0]
                np.testing.assert_allclose(maps[:, step, 0], expected, atol=1e-5)
    assert changed_beams >= 4, "in too few captions did the winning beam change its place"


def test_two_photos_in_either_order_have_the_maps_they_have_alone(captioner, folder):
    # PEERS: hooks that make every figure show the first image; batch index 0 only
    paths = list_images(folder)[:2]
    end = captioner.tokenizer.end_id
    rows = [[*captioner.tokenizer.encode(text), end] for text in TEXTS[1:3]]
    alone = [words_of.word_maps(captioner, encoded(captioner, [path]), [row], -1)[0][1]
             for path, row in zip(paths, rows, strict=True)]
    for order in ([0, 1], [1, 0]):
        memory = encoded(captioner, [paths[i] for i in order])
        found = words_of.word_maps(captioner, memory, [rows[i] for i in order], -1)
        for place, image in enumerate(order):
            np.testing.assert_allclose(found[place][1], alone[image], atol=1e-6)
    same = words_of.word_maps(captioner, encoded(captioner, paths), [rows[0]] * 2, -1)
    assert np.abs(same[0][1] - same[1][1]).max() > 1e-3  # the photos do matter


def test_a_word_of_several_tokens_has_the_mean_of_their_maps(captioner, folder):
    memory = encoded(captioner, list_images(folder)[:1])
    ids = [*captioner.tokenizer.encode("a 猫 dog"), captioner.tokenizer.end_id]
    (words, maps), = words_of.word_maps(captioner, memory, [ids], -1)
    every = captioner.cross_attention(memory, torch.tensor([ids]))[0].detach()
    assert words == ["a", "猫", "dog", "<end>"] and len(ids) > 4
    merged = dict(captioner.tokenizer.words(ids))["猫"]
    assert len(merged) > 1
    expected = every[:, merged].mean(1).unflatten(-1, (10, 10))
    np.testing.assert_allclose(maps[:, 1], expected, atol=1e-6)
    np.testing.assert_allclose(maps[:, -1], every[:, -1].unflatten(-1, (10, 10)), atol=1e-6)


def test_raw_scores_are_never_drawn_as_attention(captioner, folder, monkeypatch):
    # PEERS: raw scores drawn as attention
    memory, plain = encoded(captioner, list_images(folder)[:1]), captioner.cross_attention
    for spoil in (torch.log, lambda weights: weights * 0, lambda weights: weights / 0):
        monkeypatch.setattr(captioner, "cross_attention",
                            lambda *args, spoil=spoil: spoil(plain(*args)))
        with pytest.raises(RuntimeError, match="miss a sum of 1"):
            words_of.word_maps(captioner, memory, [[5, 6]], -1)


def test_numbers_of_known_maps():
    one_hot, even = np.zeros((2, 4), np.float32), np.full((2, 4), 1 / 8, np.float32)
    one_hot[1, 2] = 1
    pointed, spread = words_of.numbers(np.stack([one_hot, even]))
    assert pointed == {"entropy_bits": 0, "entropy_share": 0,
                       "peak": {"row": 1, "col": 2, "share": 1}}
    assert spread["entropy_bits"] == 3 and spread["entropy_share"] == 1
    assert spread["peak"]["share"] == 0.125


# --- words --------------------------------------------------------------------------------------


def words_by_offsets(tokenizer, text: str) -> list[tuple[str, list[int]]]:
    """By the offsets in ``text`` that the library gives with each token."""
    words, start = [], 0
    for word in text.split():
        start = text.index(word, start)
        words.append((word, range(start, start + len(word)), []))
        start += len(word)
    for place, (_, end) in enumerate(tokenizer.backend.encode(text).offsets):
        last = end if text[end - 1] == " " else end - 1  # a space belongs to what follows it
        next(places for _, span, places in words if last in span).append(place)
    return [(word, places) for word, _, places in words]


@pytest.fixture(scope="module", params=["bpe", "gpt2", "word pieces"])
def tokenizer(request, tmp_path_factory):
    bpe = train_bpe(TEXTS * 3, 320)
    if request.param == "bpe":
        return bpe
    if request.param == "gpt2":  # no normalizer, no space before the first word
        folder = tmp_path_factory.mktemp("gpt2")
        bpe.backend.model.save(str(folder))
        return gpt2_tokenizer(folder / "vocab.json", folder / "merges.txt")
    pieces = ["a", "ski", "##s", "##ing", "caf", "##é", "man", "'", "dog", "-", "tri", "c", "##o",
              "##l", "##r", "##e", "##d", "猫", "the", "s"]
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(
        {piece: i for i, piece in enumerate([*pieces, "[UNK]", END_OF_TEXT])}, unk_token="[UNK]"))
    backend.add_special_tokens([END_OF_TEXT])
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.decoder = tokenizers.decoders.WordPiece(cleanup=False)
    return Tokenizer(backend)


@pytest.mark.parametrize("text", ["a man skis", "the man's tri-colored dog", "a café 猫 dog",
                                  "skiing", "猫", "café café", ""])
def test_pieces_merge_by_the_tokenizers_own_offsets(tokenizer, text):
    if "##s" in tokenizer.backend.get_vocab():
        text = " ".join(word for word in text.split() if "'" not in word and "-" not in word)
    ids = tokenizer.encode(text)
    words = tokenizer.words(ids)
    assert words == words_by_offsets(tokenizer, text)
    assert [word for word, _ in words] == text.split()
    end = tokenizer.end_id  # special tokens belong to no word and shift the rest
    assert tokenizer.words([end, *ids, end]) == [
        (word, [place + 1 for place in places]) for word, places in words]


def test_word_pieces_are_one_word():
    pieces = {"a": 0, "ski": 1, "##s": 2, END_OF_TEXT: 3}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(pieces, unk_token="a"))
    backend.add_special_tokens([END_OF_TEXT])
    backend.decoder = tokenizers.decoders.WordPiece()
    assert Tokenizer(backend).words([0, 1, 2, 1, 3]) == [("a", [0]), ("skis", [1, 2]),
                                                         ("ski", [3])]


def test_whatever_a_captioner_writes_is_split_into_its_words(captioner):
    tokenizer, random = captioner.tokenizer, np.random.default_rng(0)
    for _ in range(200):  # broken characters, lone spaces, end tokens in between
        ids = random.integers(0, tokenizer.vocab_size, random.integers(0, 9)).tolist()
        words = tokenizer.words(ids)
        assert [word for word, _ in words] == tokenizer.decode(ids).split()
        places = sorted(place for _, places in words for place in places)
        assert not words or places == [i for i, token in enumerate(ids)
                                       if token != tokenizer.end_id]
        assert all(places for _, places in words)


# --- figures ------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """{path: figure} of what was saved; each is still written."""
    seen, save = {}, style.save
    monkeypatch.setattr(figure_maps, "save", lambda figure, path: (
        seen.update({Path(path): figure}), save(figure, path)))
    return seen


def panels(figure, path) -> list[np.ndarray]:
    """The panels of a saved figure, (height, width, 3), cut out of its PNG."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    dpi = len(pixels) / figure.get_figheight()
    cut = []
    for image in figure.axes[0].images:
        left, right, bottom, top = (round(value * dpi) for value in image.get_extent())
        cut.append(pixels[top:bottom, left:right])
    return cut


@pytest.mark.parametrize("size", [(640, 200), (200, 640), (300, 300)])
@pytest.mark.parametrize("kind", ["crop", "squash", "padded"])
def test_a_one_hot_map_is_brightest_at_its_cell(tmp_path, drawn, size, kind):
    """From the arrays to the pixels of the PNG, each word at its own panel."""
    rows, cols, (width, height) = 5, 7, size
    if kind == "padded":  # the photo fills a part of the input only
        box = (-0.3 * width, -0.4 * height, 1.3 * width, 1.4 * height)
    else:
        box = Transform((70, 98), (0.5,) * 3, (0.5,) * 3, resize=kind).box(width, height)
    cells = [(1, 1), (3, 5), (2, 4), (2, 3)]
    maps = np.zeros((2, 4, rows, cols))
    for word, cell in enumerate(cells):
        maps[0, word][cell] = maps[1, 3 - word][cell] = 1  # the second head, the other way round
    path = tmp_path / "one_hot.png"
    figure_maps.word_panels(Image.new("RGB", size, (90, 90, 90)), maps, box, ["w"] * 4, ["t"], path)
    found = panels(drawn[path], path)
    assert len(found) == 2 * 5
    for panel, cell in zip(found[1:5] + found[6:], cells + cells[::-1], strict=True):
        assert panel.shape[1] / panel.shape[0] == pytest.approx(width / height, rel=0.05)
        x = (box[0] + (cell[1] + 0.5) * (box[2] - box[0]) / cols) / width * panel.shape[1]
        y = (box[1] + (cell[0] + 0.5) * (box[3] - box[1]) / rows) / height * panel.shape[0]
        yellow = panel[..., 0] + panel[..., 1] - panel[..., 2]
        bright = np.argwhere(yellow >= yellow.max() - 5).mean(0)
        assert abs(bright[0] - y) < (box[3] - box[1]) / rows / height * panel.shape[0] / 2
        assert abs(bright[1] - x) < (box[2] - box[0]) / cols / width * panel.shape[1] / 2


@pytest.mark.parametrize("size", [(640, 480), (700, 60), (60, 700), (1, 5000)])
@pytest.mark.parametrize("words", [
    ["dog", "<end>"], ["<end>"], [f"word{i}" for i in range(40)] + ["<end>"],
    ["antidisestablishmentarianism", "狗" * 30, "$x^", "\udcff", "W" * 300, "<end>"]])
@pytest.mark.parametrize("heads", [1, 2])
def test_every_label_is_whole_and_beside_its_neighbour(tmp_path, drawn, size, words, heads):
    maps = np.random.default_rng(0).dirichlet(np.ones(4), (heads, len(words)))
    path = tmp_path / "f.png"
    figure_maps.word_panels(
        Image.new("RGB", size), maps.reshape(heads, -1, 2, 2), (0, 0, *size), words,
        [" ".join(words), "犬の写真 " * 30 + "caf\udce9.jpg", "reference: $a_b^"], path)
    figure, renderer = drawn[path], FigureCanvasAgg(drawn[path]).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    for box in boxes:
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1
    for i, box in enumerate(boxes):
        for other in boxes[:i]:
            overlap = (min(box.x1, other.x1) - max(box.x0, other.x0),
                       min(box.y1, other.y1) - max(box.y0, other.y0))
            assert min(overlap) < 1.5, (figure.axes[0].texts[i], overlap)
    pictures = [image.get_window_extent(renderer) for image in figure.axes[0].images]
    assert len(pictures) == heads * (len(words) + 1)
    names = [text.get_text() for text in figure.axes[0].texts]
    assert "<start>" in names and "<end>" in names
    assert min(Image.open(path).size) > 150 and max(Image.open(path).size) < 6000


# --- command line -------------------------------------------------------------------------------


def test_each_photo_has_its_figure_numbers_and_arrays(tmp_path, folder, checkpoint, captioner):
    result = run_script(SCRIPT, "--images", folder, "--output", tmp_path / "new" / "folder",
                        "--checkpoint", checkpoint, "--npz", tmp_path / "maps.npz",
                        "--batch-size", "2", "--beam", "3", "--length-penalty", "1",
                        "--no-repeat-ngram", "0", *CPU)
    assert result.returncode == 0, result.stderr
    assert "maps.npz" in result.stderr and str(tmp_path / "new" / "folder") in result.stderr
    printed, kept = json.loads(result.stdout), np.load(tmp_path / "maps.npz")
    paths = list_images(folder)
    assert set(kept.files) == {name for path in paths for name in (path.stem, f"{path.stem}.words")}
    assert len({row["caption"] for row in printed["images"]}) == 3  # each its own
    for path, row in zip(paths, printed["images"], strict=True):
        memory = encoded(captioner, [path])
        ids, = generate(captioner, memory, Search(beams=3))
        assert row["filename"] == path.name and row["caption"] == captioner.tokenizer.decode(ids)
        ids = [*ids, captioner.tokenizer.end_id][:LENGTH]
        (words, maps), = words_of.word_maps(captioner, memory, [ids], -1)
        assert (words[-1] == "<end>") == (ids[-1] == captioner.tokenizer.end_id)
        assert kept[f"{path.stem}.words"].tolist() == words == [w["word"] for w in row["words"]]
        assert kept[path.stem].shape == (len(words), 10, 10) and row["grid"] == [10, 10]
        np.testing.assert_allclose(kept[path.stem], maps.mean(0), atol=1e-5)
        for shown, numbers in zip(kept[path.stem], row["words"], strict=True):
            bits = -(shown * np.log2(np.maximum(shown, 1e-12))).sum()
            assert numbers["entropy_bits"] == pytest.approx(bits, abs=1e-3)
            assert numbers["entropy_share"] == pytest.approx(bits / np.log2(100), abs=1e-3)
            peak = numbers["peak"]
            assert shown[peak["row"], peak["col"]] == pytest.approx(shown.max(), abs=1e-6)
            assert peak["share"] == pytest.approx(shown.max(), abs=1e-4)
        assert row["figure"] == str(tmp_path / "new" / "folder" / f"{path.stem}.png")
        assert min(Image.open(row["figure"]).size) > 200


def test_every_figure_shows_its_own_photo_and_nothing_leaks_between_runs(
        tmp_path, folder, here, drawn):
    # PEERS: every figure shows the first image; caption state shared between images
    first = here("--images", folder, "--output", tmp_path / "a", "--batch-size", "2")
    figures_of = {path.stem: panels(figure, path) for path, figure in drawn.items()}
    for label, (stem, pictures) in enumerate(sorted(figures_of.items())):
        for picture in pictures:  # red, green, blue, through the overlay too
            colour = picture.mean((0, 1))
            assert label == 0 or colour[label] > colour[0], stem
        assert pictures[0].mean((0, 1)).argmax() == label
        with Image.open(list_images(folder)[label]) as photo:
            assert pictures[1].shape[1] / pictures[1].shape[0] == pytest.approx(
                photo.width / photo.height, rel=0.05)
    one = list_images(folder)[2]
    again = here("--images", folder, "--output", tmp_path / "b")
    alone = here("--images", one, "--output", tmp_path / "c")
    rows = [json.loads(result.stdout)["images"] for result in (first, again, alone)]
    for row in (row for part in rows for row in part):
        row.pop("figure")
    assert rows[0] == rows[1] and rows[0][2:] == rows[2]
    for stem in figures_of:
        assert (tmp_path / "a" / f"{stem}.png").read_bytes() == (
            tmp_path / "b" / f"{stem}.png").read_bytes()


def test_layers_and_heads_are_those_that_were_asked_for(tmp_path, folder, here, captioner):
    # PEERS: layer chosen by i % 11
    path, found = list_images(folder)[0], {}
    for layer in ("0", "1", "-1", "-2"):
        result = here("--images", path, "--output", tmp_path, "--layer", layer, "--heads", "each",
                      "--npz", tmp_path / "maps.npz")
        assert result.returncode == 0, result.stderr
        with np.load(tmp_path / "maps.npz") as kept:
            found[layer] = kept[path.stem]
    words = json.loads(result.stdout)["images"][0]["words"]
    assert found["0"].shape == (2, len(words), 10, 10)
    assert all(len(word["heads"]) == 2 for word in words)
    np.testing.assert_array_equal(found["-1"], found["1"])
    np.testing.assert_array_equal(found["-2"], found["0"])
    assert np.abs(found["0"] - found["1"]).max() > 1e-3
    assert np.abs(found["1"][0] - found["1"][1]).max() > 1e-3
    for layer in ("2", "-3", "12"):
        result = here("--images", path, "--output", tmp_path / "none", "--layer", layer)
        assert result.returncode == 1 and not list((tmp_path / "none").glob("*"))
        assert error_lines(result) == [f"error: layer {layer} does not exist: the decoder has "
                                       "layers 0 to 1 (or -2 to -1)"]


def test_given_captions_are_drawn_whatever_the_captioner_would_write(
        tmp_path, folder, here, captioner):
    paths = list_images(folder)
    texts = ["A red, red square!", "", "a 猫 " + "square " * 20]
    given = write(tmp_path / "mine.json", {
        paths[0].stem: texts[0], paths[1].name: texts[1], paths[2].stem: texts[2], "other": "x"})
    result = here("--images", folder, "--output", tmp_path / "out", "--captions", given,
                  "--npz", tmp_path / "maps.npz")
    assert result.returncode == 0, result.stderr
    rows, kept = json.loads(result.stdout)["images"], np.load(tmp_path / "maps.npz")
    assert [row["caption"] for row in rows] == texts
    words = [[word["word"] for word in row["words"]] for row in rows]
    assert words[:2] == [["a", "red", "red", "square", "<end>"], ["<end>"]]
    assert words[2][:3] == ["a", "猫", "square"] and words[2][-1] != "<end>"
    warning, = error_lines(result)
    assert paths[2].name in warning and f"the {LENGTH} that the captioner can write" in warning
    ids = [*captioner.tokenizer.encode(texts[0]), captioner.tokenizer.end_id]
    (_, maps), = words_of.word_maps(captioner, encoded(captioner, paths[:1]), [ids], -1)
    np.testing.assert_allclose(kept[paths[0].stem], maps.mean(0), atol=1e-5)


def test_a_caption_may_fill_all_positions(tmp_path, folder, here):
    result = here("--images", folder, "--output", tmp_path, "--max-length", "1")
    assert result.returncode == 0, result.stderr
    for row in json.loads(result.stdout)["images"]:
        assert len(row["words"]) == 1


def test_best_and_worst_are_drawn_and_all_are_ranked(tmp_path, folder, here, drawn, monkeypatch):
    paths = list_images(folder)
    asked = []

    def scores(names, texts):
        asked.append(dict(zip(names, texts, strict=True)))
        return np.array([0.5, 0.75, 0.25])

    monkeypatch.setattr(p2_attn_vis, "clip_scorer", lambda source, compute: scores)
    references = write(tmp_path / "val.json", coco(
        {path.name: [f"first of {path.stem}", "second"] for path in paths} | {"x.jpg": ["y"]}))
    (tmp_path / "photos").mkdir()
    for path in paths:
        shutil.copy(path, tmp_path / "photos")
    (tmp_path / "photos" / "broken.jpg").write_text("")
    result = here("--images", *paths, "--output", tmp_path / "out", "--best-worst",
                  "--refs", references)
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    with open(tmp_path / "out" / "ranking.csv", encoding="utf-8", newline="") as file:
        ranking = list(csv.DictReader(file))
    assert [row["filename"] for row in ranking] == [paths[i].name for i in (1, 0, 2)]
    assert [row["CLIPScore"] for row in ranking] == ["0.75", "0.5", "0.25"]
    assert [row["rank"] for row in ranking] == ["1", "2", "3"]
    assert {row["filename"]: row["caption"] for row in ranking} == {
        path.name: text for path, text in asked[0].items()}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["ranking.csv", f"best_{paths[1].stem}.png", f"worst_{paths[2].stem}.png"])
    for kind, path, score in (("best", paths[1], 0.75), ("worst", paths[2], 0.25)):
        row = printed[kind]
        assert row["filename"] == path.name and row["CLIPScore"] == score
        assert row["references"] == [f"first of {path.stem}", "second"]
        assert row["caption"] == asked[0][path] and row["words"]
        texts = [text.get_text() for text in drawn[Path(row["figure"])].axes[0].texts]
        assert f"CLIPScore {score:.3f}, the {kind} of 3 captions" in texts
        assert f"reference: first of {path.stem}" in texts
    # of captions that are given, with a photo that cannot be read
    given = write(tmp_path / "mine.json", {path.stem: f"a {i}" for i, path in enumerate(paths)}
                  | {"broken": "z"})
    references = write(tmp_path / "val.json", coco(
        {path.name: ["r"] for path in [*paths, Path("broken.jpg")]}))
    result = here("--images", tmp_path / "photos", "--output", tmp_path / "again", "--best-worst",
                  "--refs", references, "--captions", given)
    assert result.returncode == 3 and "broken.jpg: empty file" in result.stderr
    assert list(asked[1].values()) == ["a 0", "a 1", "a 2"]
    assert json.loads(result.stdout)["best"]["caption"] == "a 1"


def test_captions_are_scored_by_the_clip_that_is_named(tmp_path, folder):
    tokenizer = train_bpe(TEXTS, 300)
    config = GPT2Config(tokenizer.vocab_size, LENGTH, 16, 1, 2, cross_width=None)
    save_clip(tmp_path / "clip.safetensors",
              build_clip(TINY, config, tokenizer, width=12, img_size=32))
    score = p2_attn_vis.clip_scorer(str(tmp_path / "clip.safetensors"), Compute("cpu", "fp32", 2))
    paths = list_images(folder)
    scores = score(paths, TEXTS[:3])
    assert scores.shape == (3,) and (scores >= 0).all() and (scores <= 2.5).all()
    np.testing.assert_allclose(score(paths[1:2], TEXTS[1:2]), scores[1:2], atol=1e-5)


def test_the_best_and_the_worst_are_sought_where_there_are_references(tmp_path, capsys):
    for number in range(8):
        make_photo(tmp_path / f"{number}.png")
    write(tmp_path / "r.json", coco({f"{number}.png": ["a"] for number in range(0, 8, 2)}))
    kept = words_of.chosen_photos([tmp_path], tmp_path / "r.json", 2)  # of four
    assert [path.name for path in kept] == ["0.png", "4.png"]
    assert "has captions of 4 of 8 images; the others are left out" in capsys.readouterr().err
    assert len(words_of.chosen_photos([tmp_path], None, None)) == 8


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("words, status, message", [
    (["--images", "nowhere"], 1, "nowhere does not exist"),
    (["--images", "photos/0.png", "gone.png"], 1, "gone.png is no file"),
    (["--images", "photos", "--heads", "some"], 2, "--heads"),
    (["--images", "photos", "--layer", "last"], 2, "--layer"),
    (["--images", "photos", "--beam", "0"], 2, "--beam"),
    (["--images", "photos", "--captions", "c.json", "--beam", "3"], 2,
     "--beam has no effect on the captions of --captions"),
    (["--images", "photos", "--captions", "c.json", "--rerank", "3"], 2,
     "--rerank has no effect on the captions of --captions"),
    (["--images", "twins"], 1, "would both be a"),
    (["--images", "photos", "--output", "file"], 1, "cannot write"),
    (["--images", "photos", "--output", "photos"], 1, "would replace a photo"),
    (["--images", "photos", "--npz", "photos"], 1, "photos is a folder"),
    (["--images", "shared", "--npz", "x.npz"], 1, "rename an image"),
    (["--images", "photos", "--checkpoint", "gone.st"], 1, "gone.st does not exist"),
    (["--images", "photos", "--checkpoint", "classifier.safetensors"], 1, "is a classifier"),
    (["--images", "photos", "--captions", "gone.json"], 1, "cannot read gone.json"),
    (["--images", "photos", "--captions", "list.json"], 1, "list.json holds a list"),
    (["--images", "photos", "--captions", "one.json"], 1, "no caption for 2 of 3 images (1.png, "),
    (["--images", "photos", "--captions", "both.json"], 1, "0 and 0.png are of one image"),
    (["--images", "photos", "--best-worst"], 2, "--best-worst and --refs JSON go together"),
    (["--images", "photos", "--refs", "r.json"], 2, "--best-worst and --refs JSON go together"),
    (["--images", "photos", "--best-worst", "--refs", "r.json", "--npz", "x"], 2, "--npz"),
    (["--images", "photos", "--best-worst", "--refs", "one.json"], 1, "needs the lists images"),
    (["--images", "photos/0.png", "--best-worst", "--refs", "r.json"], 1, "at least two images"),
    (["--images", "photos/1.png", "--best-worst", "--refs", "r.json"], 1,
     "r.json has captions of none of the 1 images, such as 1.png; give"),
    (["--images", "broken"], 1, "none of 1 images could be read"),
])
def test_bad_input_gets_one_line(tmp_path, here, monkeypatch, words, status, message):
    for name in ("photos/0.png", "photos/1.png", "photos/2.png", "twins/a.png", "twins/a.jpg",
                 "shared/a.png", "shared/a.words.png"):
        make_photo(tmp_path / name)
    (tmp_path / "broken").mkdir()
    for name in ("file", "broken/a.jpg"):
        (tmp_path / name).write_text("text")
    for name, content in (("list", []), ("one", {"0": "a"}), ("both", {"0": "a", "0.png": "b"}),
                          ("r", coco({"0.png": ["a"]}))):
        write(tmp_path / f"{name}.json", content)
    if "classifier.safetensors" in words:
        write_classifier(tmp_path / "classifier.safetensors")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(p2_attn_vis, "clip_scorer", lambda source, compute: None)
    result = here("--output", "out", *words)
    assert result.returncode == status, result.stderr
    lines = error_lines(result)
    assert len(lines) == 1 and message in lines[0], result.stderr
    assert not result.stdout
    assert [path for path in sorted(tmp_path.rglob("*"))
            if path not in before and path.name != "out"] == []


def test_unreadable_photos_are_named_and_the_others_drawn(tmp_path, here):
    names = ["0.png", os.fsdecode(b"caf\xe9.png"), "2.gif"]
    for label, name in enumerate(names):
        make_photo(tmp_path / "photos" / "x.png", label).rename(tmp_path / "photos" / name)
    (tmp_path / "photos" / "bad.jpg").write_text("text")
    result = here("--images", tmp_path / "photos", "--output", tmp_path / "out",
                  "--npz", tmp_path / "maps.npz")
    assert result.returncode == 3 and "bad.jpg: not an image" in result.stderr
    rows = json.loads(result.stdout)["images"]
    assert [row["filename"] for row in rows] == sorted(names)
    for row in rows:
        assert Path(row["figure"]).exists()
    assert len(np.load(tmp_path / "maps.npz").files) == 6
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_an_interrupted_run_leaves_nothing_half_written(tmp_path, folder, here, monkeypatch):
    plain, drawn = figure_maps.panel_sheet, []

    def interrupted(*args, **kwargs):
        if drawn:
            raise KeyboardInterrupt
        drawn.append(plain(*args, **kwargs))

    monkeypatch.setattr(figure_maps, "panel_sheet", interrupted)
    result = here("--images", folder, "--output", tmp_path / "out", "--npz", tmp_path / "maps.npz")
    assert result.returncode == 130 and not (tmp_path / "maps.npz").exists()
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["out", "0.png"]


# --- hw3_2.sh -----------------------------------------------------------------------------------


def test_hw3_2_draws_into_a_folder(tmp_path, checkpoint):
    project = copy_project(tmp_path / "my project")
    shutil.copy(checkpoint, project / "ckpt" / "captioner.safetensors")
    for label, name in enumerate(["a.b.jpg", "é 1.PNG"]):
        make_photo(tmp_path / "-my photos" / name, label)
    result = bash(project / "hw3_2.sh", "-my photos", "new folder/out.d", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    written = sorted(path.name for path in (tmp_path / "new folder" / "out.d").iterdir())
    assert written == ["a.b.png", "é 1.png"]
    assert len(json.loads(result.stdout)["images"]) == 2
