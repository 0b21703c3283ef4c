"""The small CLIP's training: what names mean, then pictures with texts."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from conftest import TINY, make_folder, run_script
from test_p2_score import coco
from timm.data import ImageNetInfo

from data.transform import Transform
from models.clip import Clip, build_clip, load_clip
from models.gpt2 import GPT2Config
from models.tokenizer import train_bpe
from training.clip_pairs import Pairs, Shrunk, center
from training.clip_words import Words, photo_meanings, trim

SCRIPT = "clip_zeroshot.py"
FEW = ["--epochs", "1", "--workers", "0", "--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    tokenizer = train_bpe(["a photo of a bear", "a crane"] * 3, 300)
    return build_clip(TINY, GPT2Config(tokenizer.vocab_size, 12, 16, 1, 2, None),
                      tokenizer, width=8)


def make_words(model):
    return Words(model, ["bear", "bruin", "crane"], np.eye(8)[:3], [1, 1, 0.1],
                               3000, 0)


def test_names_are_drawn_by_their_weights(model):
    words = make_words(model)
    counts = np.bincount(words.drawn, minlength=3) / 3000
    assert counts == pytest.approx(np.array([1, 1, 0.1]) / 2.1, abs=0.03)
    first = words.drawn.copy()
    words.set_epoch(1)
    assert (words.drawn != first).any()
    words.set_epoch(0)
    assert (words.drawn == first).all()
    ids, index = words[0]
    assert ids.shape == (12,) and words.names[index] in words.text(0)
    assert words.vectors[index].sum() == 1


def test_photos_that_go_by_a_name_say_what_it_means(tmp_path):
    write_wordnet(tmp_path / "wordnet")
    args = SimpleNamespace(wordnet=tmp_path / "wordnet")
    features = np.repeat(np.eye(3, 4), 4, axis=0)
    texts = [["a tench swims", "two tenches"]] * 4 + [["goldfish", "fish"]] * 4 + [["a thing"]] * 4
    found = photo_meanings(features, texts, args)
    assert set(found) == {"thing"}  # half of 4 photos' captions is less than 3 photos
    apart = np.array([-1, -1, 2, 0]) / 6**0.5
    np.testing.assert_allclose(found["thing"], apart, atol=1e-6)


def test_only_padding_is_trimmed(model):
    end = model.pad_id
    tokens = torch.tensor([[5, 6, end, end, end], [5, end, end, end, end]])
    assert trim(tokens, end).tolist() == [[5, 6, end], [5, end, end]]


def test_equal_texts_are_no_counter_examples(model, tmp_path):
    paths = sorted(make_folder(tmp_path, 2).iterdir())
    texts = [["a bear"], ["a bear"], ["a crane"], ["a crane"], ["a bear"], ["two", "three"]]
    pairs = Pairs(model, paths, texts, lambda image: image, 0)
    assert pairs.group == [0, 0, 1, 1, 0, 2]
    assert {pairs.set_epoch(epoch) or pairs.drawn[5] for epoch in range(20)} == {"two", "three"}
    pixels, ids, group, index = pairs[2]
    assert pixels.shape == (40, 48, 3) and (group, index) == (1, 2)


def test_shrunk_photos_keep_their_size_and_lose_detail():
    from PIL import Image

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    always = Shrunk(lambda image: image, 8, 1.0)(noise)
    assert always.size == noise.size and np.std(always) < 0.5 * np.std(noise)
    assert Shrunk(lambda image: image, 8, 0.0)(noise) is noise


# --- as a user runs it --------------------------------------------------------------------------


def write_wordnet(folder):
    """A WordNet that knows ImageNet's 1,000 classes, and one noun above them all."""
    info, lines = ImageNetInfo(), ["00000001 03 n 01 thing 0 000 | whatever there is"]
    for index in range(1000):
        names, _, gloss = info.index_to_description(index, detailed=True).partition(": ")
        names = [name.strip().replace(" ", "_") for name in names.split(",")]
        words = " ".join(f"{name} 0" for name in names)
        lines.append(f"{index + 2:08} 03 n {len(names):02x} {words} 001 @ 00000001 n 0000 | "
                     f"{gloss}")
    folder.mkdir()
    (folder / "data.noun").write_text("\n".join(lines) + "\n")
    (folder / "index.sense").write_text("tench%1:05:00:: 00000002 1 3\n")


def test_a_clip_is_trained_and_names_photos(tmp_path):
    write_wordnet(tmp_path / "wordnet")
    torch.manual_seed(0)
    torch.save(timm.create_model(TINY).state_dict(), tmp_path / "vit.pth")
    head = ["--vit", TINY, "--weights", tmp_path / "vit.pth", "--wordnet", tmp_path / "wordnet",
            "--texts", "64"]
    photos = make_folder(tmp_path / "photos", 3)
    told = {path.name: ["a tench", "a goldfish"] for path in sorted(photos.iterdir())}
    (tmp_path / "told.json").write_text(json.dumps(coco(told)))
    head += ["--images", photos, "--captions", tmp_path / "told.json"]
    result = run_script(SCRIPT, "words", "--out", tmp_path / "w", *head, *FEW, "--batch-size", "32",
                        "--width", "16", "--layers", "1", "--heads", "2", "--vocab-size", "400")
    assert result.returncode == 0, result.stderr
    rows = [f"photos/{path.name},tench" for path in sorted(photos.iterdir())]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,text", *rows]) + "\n")
    result = run_script(
        SCRIPT, "train", "--out", tmp_path / "t", "--checkpoint", tmp_path / "w/best.safetensors",
        "--pairs", tmp_path / "pairs.csv", *head, *FEW, "--batch-size", "5", "--freeze", "2",
        "--shrink", "0.5")
    assert result.returncode == 0, result.stderr
    before, after = (load_clip(tmp_path / name / "best.safetensors") for name in "wt")
    blocks = [[value.equal(after.vision.blocks[i].state_dict()[key])
               for key, value in block.state_dict().items()]
              for i, block in enumerate(before.vision.blocks)]
    assert all(blocks[0]) and all(blocks[1]) and not all(blocks[5])
    assert after.image_proj.bias.abs().sum() > 0 and after.metadata["centered"]
    assert str(tmp_path) not in json.dumps(after.metadata)
    (tmp_path / "names.json").write_text('{"7": "tench", "3": "goldfish"}')
    result = run_script(SCRIPT, "predict", "--images", photos, "--labels", tmp_path / "names.json",
                        "--model", tmp_path / "t/best.safetensors", "--output", tmp_path / "o.csv",
                        XDG_CACHE_HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 10


def test_centering_takes_away_what_all_photos_share(model, tmp_path):
    paths = sorted(make_folder(tmp_path, 3).iterdir())
    args = SimpleNamespace(device="cpu", precision="fp32", batch_size=4)
    center(model, paths, args)
    clip = Clip(model, model.preprocessing, "test")
    transform = Transform.from_fields(model.preprocessing)
    pixels = torch.from_numpy(np.stack([transform.load(path) for path in paths]))
    with torch.inference_mode():
        features = clip.towers.image_features(transform.normalize(pixels))
    assert features.mean(0).abs().max() < 1e-4 * features.abs().max() + 1e-5


@pytest.mark.parametrize("words, message", [
    (["train", "--checkpoint", "gone.safetensors"], "nothing to learn from"),
    (["train", "--checkpoint", "gone.safetensors", "--pairs", "gone.csv"], "cannot read gone.csv"),
    (["words", "--wordnet", "gone", "--images", "x"], "--images x needs --captions"),
    (["words", "--wordnet", "gone", "--vit", "nonsense"], "timm knows no model nonsense"),
])
def test_bad_input_gets_one_line(tmp_path, words, message):
    result = run_script(SCRIPT, *words, "--out", "new", cwd=tmp_path)
    assert result.returncode == 1 and message in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "new").exists()
