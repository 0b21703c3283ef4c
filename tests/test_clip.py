"""Both kinds of towers against transformers and plain loops; what is kept on disk; CLIPScore."""

from __future__ import annotations

import json

from utils import UserError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, make_photo, write_classifier
from makers_clip import LONG, TEXTS, tiny_encoder, write_clip, write_hub_clip
from PIL import Image

from data.compute import Compute
from data.photos import list_images
from inference.clip import kept_image_features, text_features
from inference.zeroshot import ZeroShot, inside_imagenet
from metrics.clipscore import clipscore, mean_interval
from models import clip as clip_module
from models.clip import load_clip, open_clip, padded, save_clip
from models.gpt2 import GPT2Config

pytestmark = pytest.mark.usefixtures("text_cache")
CPU = Compute("cpu", "fp32", 2)


# --- transformers' towers -----------------------------------------------------------------------


def test_features_logits_and_probabilities_are_transformers(hub_clip):
    # PEERS: get_image_features returns an output object, not a tensor
    from transformers import CLIPModel, CLIPTokenizer

    clip, model = open_clip(hub_clip), CLIPModel.from_pretrained(hub_clip).eval()
    inputs = CLIPTokenizer.from_pretrained(hub_clip)(TEXTS, padding=True, return_tensors="pt")
    pixels = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        theirs = model(**inputs, pixel_values=pixels)
    images, texts = clip.encode_image(pixels), clip.encode_text(TEXTS, batch_size=3)
    torch.testing.assert_close(images, theirs.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(texts, theirs.text_embeds, atol=1e-5, rtol=0)
    logits = clip.logit_scale * images @ texts.T
    torch.testing.assert_close(logits, theirs.logits_per_image, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.softmax(1), theirs.logits_per_image.softmax(1), atol=1e-5,
                               rtol=0)


@pytest.mark.parametrize("size", [(50, 40), (32, 32), (20, 90)])
def test_photos_are_prepared_as_the_image_processor_does(hub_clip, size):
    # PEERS: no normalization for the CLIP encoder
    from transformers import CLIPImageProcessor

    noise = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    transform = open_clip(hub_clip).transform
    ours = transform.normalize(torch.from_numpy(transform(photo).copy())[None])
    theirs = CLIPImageProcessor.from_pretrained(hub_clip)(photo, return_tensors="pt").pixel_values
    # Resampling in whole numbers here and there: a level of 255 is 0.015 after normalization.
    assert (ours - theirs).abs().max() < (1e-5 if size == (32, 32) else 0.04)


def test_other_ways_to_prepare_photos(tmp_path):
    edge = write_hub_clip(tmp_path / "a", size={"shortest_edge": 93}, crop_size=32)
    transform = open_clip(edge).transform
    assert transform.box(93, 93) == (30, 30, 62, 62)  # 32 / (32 / 93) is below 93
    square = write_hub_clip(tmp_path / "b", size={"height": 32, "width": 32}, do_center_crop=False,
                            resample=2, image_mean=[0, 0, 0.5])
    preprocessing = open_clip(square).preprocessing
    assert preprocessing == {"size": (32, 32), "resize": "squash", "interpolation": "bilinear",
                             "mean": (0, 0, 0.5), "std": preprocessing["std"]}
    (square / "preprocessor_config.json").unlink()
    assert open_clip(square).preprocessing["crop_pct"] == 1
    odd = write_hub_clip(tmp_path / "c", size={"shortest_edge": 20}, crop_size=32)
    with pytest.raises(UserError, match="in a way that is not known here"):
        open_clip(odd)


@pytest.mark.parametrize("kind", ["hub", "ours"])
def test_long_texts_are_cut_before_the_end_token_with_one_warning(
        kind, hub_clip, clip_file, capsys):
    clip = open_clip(hub_clip if kind == "hub" else clip_file)
    longer = [LONG, "short", LONG.replace("dog", "bird")]
    rows = clip.token_rows(longer)
    whole = clip.towers.ids(longer)
    context = clip.towers.context
    assert rows[1] == whole[1] and len(rows[0]) == context
    assert rows[0] == [*whole[0][:context - 1], whole[0][-1]]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "2 texts are longer" in lines[0]
    assert '"a dog and' in lines[0] and '"a bird and' in lines[0] and "short" not in lines[0]
    clip.encode_text(longer)
    assert len(capsys.readouterr().err.splitlines()) == 1
    if kind == "hub":
        assert rows[0] == clip.towers.tokenizer(LONG, truncation=True).input_ids


def damage(folder, what):
    """A folder that looks like a CLIP's and is none."""
    if what == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif what == "no weights":
        (folder / "model.safetensors").unlink()
    elif what == "cut weights":
        (folder / "model.safetensors").write_bytes(b"x" * 99)
    elif what == "no config":
        (folder / "config.json").unlink()
    elif what == "another model":
        (folder / "config.json").write_text('{"model_type": "bert"}')
    else:
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["num_hidden_layers"] = 3
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("what, message", [
    ("no tokenizer", "has no tokenizer of its own"), ("no weights", "as a CLIP"),
    ("cut weights", "as a CLIP"), ("no config", "as a CLIP"), ("another model", "is a bert model"),
    ("another depth", "tensors missing")])
def test_a_folder_that_does_not_fit_is_one_line(tmp_path, what, message):
    folder = write_hub_clip(tmp_path / "broken")
    damage(folder, what)
    with pytest.raises(UserError, match=message) as caught:
        open_clip(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


# --- our towers ---------------------------------------------------------------------------------


def test_a_texts_feature_is_the_state_at_its_end_token():
    model = tiny_encoder()
    rows = model.ids(TEXTS)
    tokens = padded(rows, model.pad_id)
    with torch.no_grad():
        together = model.text_features(tokens)
        for row, feature in zip(rows, together, strict=True):
            states, _ = model.text.hidden(torch.tensor([row]))
            torch.testing.assert_close(model.text_proj(states[0, -1]), feature, atol=1e-5, rtol=0)
        states, _ = model.text.hidden(tokens)
        torch.testing.assert_close(model.text(tokens)[0], states @ model.text.wte.weight.T,
                                   atol=1e-5, rtol=0)


def test_features_do_not_depend_on_the_batch(clip_file, hub_clip):
    pixels = torch.randn(5, 3, 32, 32)
    for source in (clip_file, hub_clip):
        clip = open_clip(source)
        single = torch.cat([clip.encode_image(image[None]) for image in pixels])
        torch.testing.assert_close(clip.encode_image(pixels), single, atol=1e-5, rtol=0)
        single = torch.cat([clip.encode_text([text]) for text in TEXTS])
        torch.testing.assert_close(clip.encode_text(TEXTS), single, atol=1e-5, rtol=0)
        for features in (clip.encode_image(pixels), clip.encode_text(TEXTS)):
            assert features.dtype == torch.float32
            torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))


def test_training_uses_all_that_is_learned_in_one_forward():
    model = tiny_encoder().train()
    images, tokens = torch.randn(3, 3, 32, 32), padded(model.ids(TEXTS[:3]), model.pad_id)
    seen, read, scale = model(images, tokens)
    F.cross_entropy(scale * seen @ read.T, torch.arange(3)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert scale.item() == pytest.approx(1 / 0.07)
    model.eval()
    torch.testing.assert_close(model(model.pool(images), tokens)[0], model(images, tokens)[0])
    with torch.no_grad():
        model.logit_scale.fill_(9)
    assert model.scale() == 100


def test_a_checkpoint_is_the_clip_again(tmp_path, clip_file):
    model, again = tiny_encoder(), load_clip(clip_file)
    assert again.metadata["about"] == "random weights" and not again.training
    pixels, clip = torch.randn(2, 3, 32, 32), open_clip(clip_file)
    tokens = padded(model.ids(TEXTS), model.pad_id)
    seen, read, scale = model(pixels, tokens)
    torch.testing.assert_close(clip.encode_image(pixels), seen.detach(), atol=1e-2, rtol=0)
    torch.testing.assert_close(clip.encode_text(TEXTS), read.detach(), atol=1e-2, rtol=0)
    assert clip.logit_scale == pytest.approx(scale.item(), rel=1e-3)
    assert clip.preprocessing["size"] == [32, 32]
    other = open_clip(write_clip(tmp_path / "other.safetensors", seed=1))
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(clip_file.read_bytes())
    assert open_clip(copy).identity == clip.identity != other.identity


def test_other_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="does not exist"):
        open_clip(tmp_path / "gone.safetensors")
    with pytest.raises(UserError, match="a classifier checkpoint, a clip is needed"):
        open_clip(write_classifier(tmp_path / "c.safetensors"))
    model = tiny_encoder()
    with pytest.raises(UserError, match="do not belong together"):
        clip_module.DualEncoder(model.vision, GPT2Config(7, 16, 16, 2, 2), model.tokenizer, 12, {},
                                {})
    monkeypatch.setattr(model, "architecture", {"name": TINY})
    save_clip(tmp_path / "odd.safetensors", model)
    with pytest.raises(UserError, match="describes its model wrongly: 'args'"):
        open_clip(tmp_path / "odd.safetensors")


# --- what is kept -------------------------------------------------------------------------------


def class_features(clip, names, templates):
    return ZeroShot(clip, dict(enumerate(names)), templates).text_features


def test_texts_are_encoded_once(clip_file, text_cache, monkeypatch):
    # PEERS: the text encoded again for every image
    clip = open_clip(clip_file)
    names, templates = ["dog", "palm tree"], ["a {}", "no {object}", "{}"]
    first = class_features(clip, names, templates)
    assert first.shape == (3, 2, 12)
    expected = clip.encode_text(["a dog", "a palm tree", "no dog", "no palm tree", "dog",
                                 "palm tree"])
    np.testing.assert_allclose(first.reshape(6, 12), expected, atol=1e-6)
    with monkeypatch.context() as patch:
        patch.setattr(type(clip), "encode_text", lambda *words: pytest.fail("encoded again"))
        again = class_features(open_clip(clip_file), names, templates)
        np.testing.assert_array_equal(again, first)
    class_features(clip, names, templates[:2])
    class_features(clip, ["dog", "palm"], templates)
    other = open_clip(write_clip(text_cache.parent / "other.safetensors", seed=1))
    assert not np.allclose(class_features(other, names, templates), first)
    files = list(text_cache.iterdir())
    assert len(files) == 4
    for file in files:  # damaged: made again
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content if file is not files[0] else b"")
    np.testing.assert_array_equal(class_features(clip, names, templates), first)


def test_no_place_for_the_cache_is_no_error(clip_file, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert text_features(open_clip(clip_file), TEXTS).shape == (4, 12)


def test_a_cached_text_that_was_cut_is_still_named(clip_file, capsys):
    clip = open_clip(clip_file)
    for _ in range(2):
        class_features(clip, [LONG], ["a {}", "the {}"])
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and "were cut" in lines[0]


def test_embeddings_follow_model_and_files(clip_file, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "photos"
    for number in range(3):
        make_photo(folder / f"{number}.png", number)
    (folder / "x.jpg").write_text("text")
    clip, file = open_clip(clip_file), tmp_path / "made" / "e.npz"

    def features(clip=clip, precision="fp32"):
        return kept_image_features(clip, list_images(folder), Compute("cpu", precision, 2), file)

    readable, first, unreadable = features()
    assert [path.name for path in readable] == ["0.png", "1.png", "2.png"]
    assert [(path.name, reason) for path, reason in unreadable] == [("x.jpg", "not an image")]
    transform = clip.transform
    pixels = np.stack([transform.load(path) for path in readable])
    torch.testing.assert_close(  # PEERS: no normalization for the CLIP encoder
        torch.from_numpy(first), clip.encode_image(transform.normalize(torch.from_numpy(pixels))),
        atol=1e-5, rtol=0)
    with monkeypatch.context() as patch:
        patch.setattr(type(clip), "unit", lambda *words: pytest.fail("encoded again"))
        again = features()
        np.testing.assert_array_equal(again[1], first)
        assert again[0] == readable and again[2] == unreadable
    assert "read the embeddings" in capsys.readouterr().err
    arrays = np.load(file)
    assert arrays["filenames"].tolist() == ["0.png", "1.png", "2.png"]
    make_photo(folder / "0.png", 2, seed=5)
    changed = features()[1]
    assert not np.allclose(changed[0], first[0]) and np.allclose(changed[1:], first[1:], atol=1e-6)
    other = open_clip(write_clip(tmp_path / "other.safetensors", seed=1))
    assert not np.allclose(features(other)[1], changed)
    assert not np.array_equal(features(other, "bf16")[1], features(other)[1])
    file.write_bytes(file.read_bytes()[:99])
    np.testing.assert_allclose(features()[1], changed, atol=1e-6)
    np.savez(file, table=np.zeros(3))
    with pytest.raises(UserError, match="holds other arrays than embeddings"):
        features()


# --- CLIPScore ----------------------------------------------------------------------------------


def test_clipscore_is_its_definition():
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(7, 5)), random.normal(size=(7, 5))
    table = {f"A photo depicts {n}": row for n, row in enumerate(texts)}
    captions = [str(n) for n in range(7)]
    batches = []

    def encode(words):
        batches.append(len(words))
        return np.stack([table[word] for word in words])

    scores = clipscore(images, captions, encode, batch_size=3)
    expected = [2.5 * max(a @ b / np.linalg.norm(a) / np.linalg.norm(b), 0)
                for a, b in zip(images, texts, strict=True)]
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    assert batches == [3, 3, 1] and min(expected) == 0 < max(expected)
    table = {str(n): -row for n, row in enumerate(images)}
    assert clipscore(images, captions, encode, prefix="").max() == 0
    assert clipscore(np.zeros((0, 5)), [], encode).shape == (0,)
    with pytest.raises(ValueError):
        clipscore(images, captions[1:], encode)


def test_the_interval_of_a_mean():
    values = np.random.default_rng(0).normal(3, 1, 400)
    low, high = mean_interval(values, 2000)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_names_inside_imagenet():
    inside = ["tabby cat", "tench", "Mountain_Bike", "castle", "mushroom"]
    outside = ["bicycle", "cat", "willow tree", "woman", "tab", ""]
    assert all(map(inside_imagenet, inside))
    assert not any(map(inside_imagenet, outside))
