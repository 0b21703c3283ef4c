"""CLIPScore of captions on disk, and in p2_caption.py as a user runs it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import TINY, inside, make_photo
from makers_clip import TEXTS, read_csv
from makers_files import coco, write

import p2_caption
from ckpt import registry
from data.compute import Compute
from data.photos import list_images
from inference.clip import image_features, open_clip
from inference.scoring import about_clipscore, caption_scores
from models.captioner_files import save_captioner
from models.gpt2 import GPT2Config
from models.tokenizer import train_bpe
from models.vit_gpt2 import build_captioner

pytestmark = pytest.mark.usefixtures("text_cache")
CPU = ["--device", "cpu", "--precision", "fp32"]
COMPUTE = Compute("cpu", "fp32", 2)


def test_clipscore_of_photos_on_disk(clip_file, tmp_path):
    paths = [make_photo(tmp_path / f"{number}.png", number) for number in range(3)]
    paths.insert(1, tmp_path / "bad.png")
    paths[1].write_text("text")
    clip = open_clip(clip_file)
    scores, unreadable = caption_scores(clip, paths, TEXTS, COMPUTE, "see ")
    assert unreadable == [(paths[1], "not an image")]
    _, images, _ = image_features(clip, paths, COMPUTE)
    texts = clip.encode_text(["see " + TEXTS[n] for n in (0, 2, 3)]).numpy()
    expected = 2.5 * np.maximum((images * texts).sum(1), 0)
    np.testing.assert_allclose(scores, [expected[0], np.nan, *expected[1:]], atol=1e-6)
    about = about_clipscore(clip, "see ")
    assert about["weight"] == 2.5 and about["prefix"] == "see "
    assert "not comparable to ViT-B/32" in about["comparable"]


# --- p2_caption.py ------------------------------------------------------------------------------


@pytest.fixture
def captioned(tmp_path):
    """(folder of three photos, references, predictions)."""
    texts = {"0_a.png": "a dog runs", "1_b.png": "two men", "2_c.png": ""}
    for number, name in enumerate(texts):
        make_photo(tmp_path / "photos" / name, number)
    references = write(tmp_path / "v.json",
                            coco({name: [f"a dog {name}", "a man"] for name in texts}))
    return tmp_path / "photos", references, write(tmp_path / "p.json", texts)


def test_score_reports_clipscore(tmp_path, captioned, clip_file, capsys):
    folder, references, predictions = captioned
    words = ["score", "--predictions", predictions, "--captions", references, "--clip", clip_file,
             "--per-image", tmp_path / "each.csv", "--bootstrap", "50", *CPU]
    texts = list(json.loads(predictions.read_text()).values())
    clip = open_clip(clip_file)
    for prefix_words, prefix in (([], ""), (["--clip-prefix"], "A photo depicts "),
                                 (["--clip-prefix", "see "], "see ")):
        status, printed, _ = inside(p2_caption, *words, "--images", folder, *prefix_words,
                                    capsys=capsys)
        assert status == 0
        result = json.loads(printed)
        _, images, _ = image_features(clip, list_images(folder), COMPUTE)
        encoded = clip.encode_text([prefix + text for text in texts]).numpy()
        expected = 2.5 * np.maximum((images * encoded).sum(1), 0)
        assert result["metrics"]["CLIPScore"] == pytest.approx(expected.mean(), abs=1e-6)
        low, high = result["intervals_95"]["CLIPScore"]
        assert low <= result["metrics"]["CLIPScore"] <= high
        about = result["clipscore"]
        assert (about["model"], about["weight"], about["prefix"]) == (clip_file.name, 2.5, prefix)
        assert "not comparable to ViT-B/32" in about["comparable"]
        rows = read_csv(tmp_path / "each.csv")
        assert rows[0][-2:] == ["CLIPScore", "caption"]
        np.testing.assert_allclose([float(row[-2]) for row in rows[1:]], expected, atol=1e-6)
    status, printed, errors = inside(p2_caption, *words, capsys=capsys)
    assert status == 1 and "--clip needs --images" in errors[0] and not printed


def test_an_unreadable_photo_costs_clipscore_alone(tmp_path, captioned, clip_file, capsys):
    folder, references, predictions = captioned
    (folder / "1_b.png").write_text("text")
    words = ["score", "--predictions", predictions, "--captions", references, "--clip", clip_file,
             "--images", folder, *CPU]
    status, printed, errors = inside(p2_caption, *words, capsys=capsys)
    result = json.loads(printed)
    assert status == 3 and len(errors) == 1 and "1_b.png: not an image" in errors[0]
    assert result["images"] == 3 and result["clipscore"]["images"] == 2
    assert 0 <= result["metrics"]["CLIPScore"] < 2.5 and result["unreadable"] == 1
    (folder / "2_c.png").unlink()
    status, printed, errors = inside(p2_caption, *words, capsys=capsys)
    assert status == 1 and not printed and "2_c.png" in errors[0]


def test_eval_reports_clipscore_where_there_is_a_clip(
        tmp_path, captioned, clip_file, capsys, monkeypatch):
    folder, references, _ = captioned
    tokenizer = train_bpe(TEXTS * 3, 300)
    config = GPT2Config(tokenizer.vocab_size, 8, 16, 1, 2, cross_width=16)
    save_captioner(tmp_path / "c.safetensors", build_captioner(TINY, config, tokenizer))
    words = ["eval", "--images", folder, "--captions", references, "--checkpoint",
             tmp_path / "c.safetensors", "--beam", "1", *CPU]
    monkeypatch.setattr(registry, "CLIP", tmp_path / "gone.safetensors")
    status, printed, _ = inside(p2_caption, *words, capsys=capsys)
    assert status == 0 and "CLIPScore" not in printed
    monkeypatch.setattr(registry, "CLIP", clip_file)
    status, printed, errors = inside(p2_caption, *words, capsys=capsys)
    assert status == 0 and 0 <= json.loads(printed)["metrics"]["CLIPScore"] < 2.5
    assert json.loads(printed)["clipscore"]["model"] == clip_file.name
