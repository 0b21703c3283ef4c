"""The small CLIP's training: what names mean, then photos with texts."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import timm
import torch
from conftest import TINY, inside, make_folder, run_script
from makers_clip import class_names, write_name_vectors, write_wordnet
from makers_files import coco, write
from PIL import Image

import clip_zeroshot as script
from data.compute import Compute
from models.clip import build_clip, load_clip
from models.gpt2 import GPT2Config
from models.tokenizer import train_bpe
from training.clip_pairs import (
    Pairs,
    Shrunk,
    Targets,
    center,
    contrastive_loss,
    contrastive_task,
)
from training.clip_targets import (
    Names,
    names_to_learn,
    pair_vectors,
    photo_vectors,
    read_lexicon,
    read_pairs,
    sentence_means,
)
from training.clip_words import NamePhrases, names_task, trim_padding
from training.loop import fit
from training.recipe import Recipe

SCRIPT = "clip_zeroshot.py"
FEW = ["--epochs", "1", "--workers", "0", "--device", "cpu", "--precision", "fp32"]
SMALL = ["--width", "16", "--layers", "1", "--heads", "2", "--vocab-size", "400"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    tokenizer = train_bpe(["a photo of a bear", "a crane"] * 3, 300)
    return build_clip(TINY, GPT2Config(tokenizer.vocab_size, 32, 16, 1, 2, None),
                      tokenizer, width=8)


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    return write_wordnet(tmp_path_factory.mktemp("wordnet") / "dict")


@pytest.fixture(scope="module")
def head(tmp_path_factory, wordnet):
    """The options that name the image tower and WordNet."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("vit") / "vit.pth"
    torch.save(timm.create_model(TINY).state_dict(), file)
    return ["--vit", TINY, "--weights", file, "--wordnet", wordnet, "--texts", "64"]


def phrases_of(model, count=3000):
    names = Names(["bear", "bruin", "crane"], np.eye(8, dtype=np.float32)[:3], [1, 1, 0.1])
    return NamePhrases(model, names, count, 0)


# --- what names mean ----------------------------------------------------------------------------


def test_names_are_drawn_by_their_weights(model):
    phrases = phrases_of(model)
    counts = np.bincount(phrases.drawn, minlength=3) / 3000
    assert counts == pytest.approx(np.array([1, 1, 0.1]) / 2.1, abs=0.03)
    first = phrases.drawn.copy()
    phrases.set_epoch(1)
    assert (phrases.drawn != first).any()
    phrases.set_epoch(0)
    assert (phrases.drawn == first).all()
    ids, index = phrases[0]
    assert ids.shape == (32,) and phrases.names[index] in phrases.text(0)
    assert phrases.vectors[index].sum() == 1
    many = phrases_of(model, 20_000)
    texts = {many.text(place) for place in range(len(many))}
    assert len(texts) > 500 and not any("{" in text for text in texts)
    for words in ("low contrast", "a type of", "no bear, no", "black and white drawing",
                  "no bear, no luck."):
        assert any(words in text for text in texts)


def test_a_name_means_what_photos_show_whose_captions_mention_it(wordnet):
    features = np.repeat(np.eye(3, 4), 4, axis=0)
    texts = [["a tench swims", "two tenches"]] * 4 + [["goldfish", "fish"]] * 4 + [["a thing"]] * 4
    found = photo_vectors(features, texts, read_lexicon(wordnet).names)
    assert set(found) == {"thing"}  # half of 4 photos' captions is less than 3 photos
    apart = np.array([-1, -1, 2, 0]) / 6**0.5
    np.testing.assert_allclose(found["thing"], apart, atol=1e-6)


def test_sentence_vectors_weight_the_class_vectors(tmp_path, wordnet):
    random, classes = np.random.default_rng(1), np.eye(1000)
    vector = random.normal(size=8)
    file = write_name_vectors(tmp_path / "v.npz", {"Sea_Monster": vector})
    lexicon = read_lexicon(wordnet, file)
    assert "sea monster" in lexicon.names and lexicon.names.count("tench") == 1
    found = sentence_means(lexicon, classes, {}, scale=5)
    arrays = dict(zip(*np.load(file).values(), strict=True))
    cosines = [arrays[name] @ vector / np.linalg.norm(arrays[name]) / np.linalg.norm(vector)
               for name in class_names()]
    weights = np.exp(5 * np.array(cosines))
    np.testing.assert_allclose(found["sea monster"], weights / np.linalg.norm(weights), rtol=1e-4)
    assert found["tench"].argmax() == 0 and set(found) == {*class_names(), "sea monster"}
    assert sentence_means(read_lexicon(wordnet), classes, {}, 5) == {}
    shown = {"sea monster": classes[500], "unknown": classes[501]}
    found = sentence_means(lexicon, classes, shown, scale=5)["sea monster"]
    assert found.argmax() == 500  # its own photo: the cosine is 1
    others = np.delete(np.arange(1000), 500)
    np.testing.assert_allclose(found[others] / found[0], (weights / weights[0])[others], rtol=1e-3)


def test_pairs_are_centered_in_their_source():
    features = np.array([[1.0, 0, 5], [0, 1, 5], [0, 1, 5], [0, 1, 5]])
    found = pair_vectors([(features, ["bear", "crane", "crane", "crane"]),
                          (features[:2, ::-1], ["bear", "crane"])])
    first, second = np.array([0.75, -0.75, 0]), np.array([0, -0.5, 0.5])
    np.testing.assert_allclose(found["bear"], (first + second) / np.linalg.norm(first + second))


def test_a_names_vector_is_the_mean_of_its_sources(tmp_path, wordnet):
    classes = np.eye(1000)
    file = write_name_vectors(tmp_path / "v.npz", {"sea monster": np.ones(8)})
    lexicon = read_lexicon(wordnet, file)
    sentences, photos = sentence_means(lexicon, classes, {}, 16), {"tench": classes[7]}
    names = names_to_learn(lexicon, classes, photos, {}, ["goldfish", "A sea monster"] * 3, 16)
    place = {name: row for row, name in enumerate(names.names)}
    total = classes[0] + classes[7] + sentences["tench"]
    np.testing.assert_allclose(names.vectors[place["tench"]], total / np.linalg.norm(total),
                               atol=1e-6)
    np.testing.assert_allclose(names.vectors[place["sea monster"]], sentences["sea monster"],
                               atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(names.vectors, axis=1), 1, atol=1e-6)
    assert names.weights[place["tench"]] == 1 and names.weights[place["sea monster"]] == 0.5
    without = names_to_learn(read_lexicon(wordnet), classes, photos, {}, [], 16)
    total = classes[0] + classes[7]
    np.testing.assert_allclose(without.vectors[0], total / 2**0.5, atol=1e-6)
    assert "sea monster" not in without.names


def test_only_padding_is_trimmed(model):
    end = model.pad_id
    tokens = torch.tensor([[5, 6, end, end, end], [5, end, end, end, end]])
    assert trim_padding(tokens, end).tolist() == [[5, 6, end], [5, end, end]]


def test_the_text_tower_learns_the_class_distribution_of_each_name(model, tmp_path):
    model = copy.deepcopy(model)
    for part in (model.vision, model.image_proj, model.logit_scale):
        part.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    recipe = Recipe(epochs=20, batch_size=16, workers=0, lr=1e-2, warmup=0, weight_decay=0)
    task = names_task(model, phrases_of(model, 64), np.eye(8, dtype=np.float32)[:3],
                      ["bear", "bruin", "crane"], lambda path, model, row: None, recipe, 12.0)
    history = fit(model, task, recipe, tmp_path / "out")
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    assert history[-1]["train_accuracy"] > 0.9 and history[-1]["names_found"] >= 2 / 3
    changed = {key.split(".")[0] for key, value in model.state_dict().items()
               if not value.equal(before[key])}
    assert changed == {"text", "text_proj"}


# --- photos with texts --------------------------------------------------------------------------


def test_pairs_come_from_several_files_and_a_limit_spreads_over_each(tmp_path):
    for name, count in (("a", 5), ("b", 2)):
        (tmp_path / name).mkdir()
        rows = [f"{number}.png,{name} thing" for number in range(count)]
        (tmp_path / name / "pairs.csv").write_text("\n".join(["image,text", *rows]) + "\n")
    few = [read_pairs(tmp_path / name / "pairs.csv", 3) for name in "ab"]
    assert [(path.parent.name, path.stem) for source in few for path in source] == [
        ("a", "0"), ("a", "1"), ("a", "3"), ("b", "0"), ("b", "1")]
    assert few[0][tmp_path / "a" / "0.png"] == "a thing"


def test_images_with_equal_texts_are_one_group(model, tmp_path):
    paths = sorted(make_folder(tmp_path, 2).iterdir())
    texts = [["a bear"], ["a bear"], ["a crane"], ["a crane"], ["a bear"], ["two", "three"]]
    pairs = Pairs(model, paths, texts, lambda image: image, 0)
    assert pairs.group == [0, 0, 1, 1, 0, 2]
    drawn = set()
    for epoch in range(20):
        pairs.set_epoch(epoch)
        drawn.add(pairs.drawn[5])
    assert drawn == {"two", "three"}
    pixels, ids, group, index = pairs[2]
    assert pixels.shape == (40, 48, 3) and (group, index) == (1, 2)


def test_texts_of_one_group_are_all_right_answers():
    torch.manual_seed(0)
    logits, same = torch.randn(3, 3), torch.tensor([[1., 1, 0], [1, 1, 0], [0, 0, 1]])
    total = 0
    for scores in (logits, logits.T):
        logs = scores.log_softmax(1)
        total += -(logs[0, :2].mean() + logs[1, :2].mean() + logs[2, 2]) / 3
    torch.testing.assert_close(contrastive_loss(logits, same), total / 2)


def test_shrunk_photos_keep_their_size_and_lose_detail():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    always = Shrunk(lambda image: image, 8, 1.0)(noise)
    assert always.size == noise.size and np.std(always) < 0.5 * np.std(noise)
    assert Shrunk(lambda image: image, 8, 0.0)(noise) is noise


def test_centering_moves_the_mean_feature_to_the_origin(model, tmp_path):
    model = copy.deepcopy(model).eval()
    paths = sorted(make_folder(tmp_path, 3).iterdir())
    center(model, paths, Compute("cpu", "fp32", 4))
    pixels = torch.from_numpy(np.stack([model.transform.load(path) for path in paths]))
    with torch.inference_mode():
        features = model.image_features(model.transform.normalize(pixels))
    assert features.mean(0).abs().max() < 1e-4 * features.abs().max() + 1e-5
    assert "centered" not in model.metadata


def test_an_interrupted_training_ends_with_the_same_weights(model, tmp_path):
    paths = sorted(make_folder(tmp_path / "photos", 2).iterdir())
    texts = [["a bear", "bears"], ["a crane"]] * 3
    args = script.make_parser().parse_args(["train", "--out", "x", "--checkpoint", "x"])
    recipe = Recipe(epochs=2, batch_size=3, workers=0, lr=1e-2, warmup=0)

    def train(out, resume=False, after_epoch=lambda history: None):
        trained = copy.deepcopy(model)
        pairs = Pairs(trained, paths, texts, trained.transform, 0)
        targets = Targets(torch.eye(8), torch.eye(8)[:6], phrases_of(trained, 50), {})
        task = contrastive_task(trained, pairs, targets, lambda path, model, row: None, recipe,
                                args)
        task.after_epoch = after_epoch
        fit(trained, task, recipe, tmp_path / out, resume)
        return trained.state_dict()

    def interrupt(history):
        raise KeyboardInterrupt

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("parts", after_epoch=interrupt)
    for key, value in train("parts", resume=True).items():
        assert value.equal(whole[key]), key
    assert not whole["text_proj.weight"].equal(model.text_proj.weight)


# --- as a user runs it --------------------------------------------------------------------------


def test_a_clip_is_trained_and_names_photos(tmp_path, head, text_cache, capsys):
    photos = make_folder(tmp_path / "photos", 3)
    more = make_folder(tmp_path / "more", 1, seed=1)
    captions = [write(tmp_path / f"{folder.name}.json", coco(
        {path.name: ["a tench", "a goldfish"] for path in sorted(folder.iterdir())}))
        for folder in (photos, more)]
    vectors = write_name_vectors(tmp_path / "v.npz", {"sea monster": np.ones(8)})
    rows = [f"photos/{path.name},tench" for path in sorted(photos.iterdir())]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,text", *rows]) + "\n")
    words = [*head, "--images", photos, more, "--captions", *captions, "--name-vectors", vectors,
             "--pairs", tmp_path / "pairs.csv", *FEW]
    status, _, errors = inside(script, "words", "--out", tmp_path / "w", *words, *SMALL,
                               "--batch-size", "32", capsys=capsys)
    assert status == 0, errors
    result = run_script(
        SCRIPT, "train", "--out", tmp_path / "t", "--checkpoint", tmp_path / "w/best.safetensors",
        *words, "--batch-size", "5", "--freeze", "2",
        "--shrink", "0.5", "--limit", "4")
    assert result.returncode == 0, result.stderr
    before, after = (load_clip(tmp_path / name / "best.safetensors") for name in "wt")
    blocks = [[value.equal(after.vision.blocks[i].state_dict()[key])
               for key, value in block.state_dict().items()]
              for i, block in enumerate(before.vision.blocks)]
    assert all(blocks[0]) and all(blocks[1]) and not all(blocks[5])
    assert after.image_proj.bias.abs().sum() > 0
    assert after.metadata["centered"] and not before.metadata["centered"]
    assert before.metadata["trained_on"]["images"] == 12 + 9
    assert after.metadata["trained_on"]["images"] == 4 + 4 + 3  # --limit 4 of each source
    recipe = before.metadata["recipe"]
    assert (recipe["name_vectors"], recipe["images"]) == ("v.npz", ["photos", "more"])
    assert "label_smoothing" not in recipe and "encoder_lr" not in recipe
    assert str(tmp_path) not in json.dumps(after.metadata)
    (tmp_path / "names.json").write_text('{"7": "tench", "3": "goldfish"}')
    status, _, errors = inside(
        script, "predict", "--images", photos, "--labels", tmp_path / "names.json", "--model",
        tmp_path / "t/best.safetensors", "--output", tmp_path / "o.csv", capsys=capsys)
    assert status == 0, errors
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 10


def test_a_resumed_training_must_repeat_its_options_and_data(tmp_path, head, capsys):
    photos = make_folder(tmp_path / "photos", 1)
    for number, text in enumerate(("a tench", "a goldfish")):
        write(tmp_path / f"{number}.json", coco(
            {path.name: [text] for path in sorted(photos.iterdir())}))
    vectors = write_name_vectors(tmp_path / "v.npz", {"sea monster": np.ones(8)})

    def refused(*options):
        status, _, errors = inside(script, *options, "--resume", capsys=capsys)
        assert status == 1, errors
        return errors[-1]

    def captioned(number, folder=photos):
        return ["--images", folder, "--captions", tmp_path / f"{number}.json"]

    words = ["words", "--out", tmp_path / "w", *head, *FEW, *SMALL]
    assert inside(script, *words, *captioned(0), capsys=capsys)[0] == 0
    copied = make_folder(tmp_path / "copy", 1)
    assert inside(script, *words, *captioned(0, copied), "--resume", capsys=capsys)[0] == 0
    assert "photos and captions 3 (digest" in refused(*words, *captioned(1))
    assert "--limit None, not 2" in refused(*words, *captioned(0), "--limit", "2")
    assert "names to learn" in refused(*words, *captioned(0), "--name-vectors", vectors)
    assert "--word-scale 12.0, not 9.0" in refused(*words, *captioned(0), "--word-scale", "9")
    assert "--context 32, not 8" in refused(*words, *captioned(0), "--context", "8")

    pairs = ["train", "--out", tmp_path / "t", *head, *FEW, "--checkpoint",
             tmp_path / "w" / "best.safetensors"]
    assert inside(script, *pairs, *captioned(0), capsys=capsys)[0] == 0
    assert inside(script, *pairs, *captioned(0), "--resume", capsys=capsys)[0] == 0
    assert "photos and texts 3 (digest" in refused(*pairs, *captioned(1))
    assert "--teacher 1.0, not 0.5" in refused(*pairs, *captioned(0), "--teacher", "0.5")
    assert "--freeze 0, not 1" in refused(*pairs, *captioned(0), "--freeze", "1")


@pytest.mark.parametrize("words, message", [
    (["train", "--checkpoint", "gone.safetensors"], "nothing to learn from"),
    (["train", "--checkpoint", "gone.safetensors", "--pairs", "gone.csv"], "cannot read gone.csv"),
    (["train", "--checkpoint", "x", "--wordnet", "x"], "--wordnet needs the head"),
    (["train", "--checkpoint", "x", "--name-vectors", "x"], "--name-vectors needs --wordnet"),
    (["train", "--checkpoint", "x", "--pairs", "none.csv"], "none.csv lists no image"),
    (["words", "--wordnet", "gone"], "cannot read gone/data.noun"),
    (["words", "--wordnet", "gone", "--pairs", "wordnet/data.noun"], "data.noun"),
    (["words", "--wordnet", "gone", "--pairs", "pairs.csv"], "--pairs needs --name-vectors"),
    (["words", "--wordnet", "gone", "--images", "x"], "1 image folders and 0 caption files"),
    (["words", "--wordnet", "wordnet", "--vit", "nonsense"], "timm knows no model"),
    (["words", "--wordnet", "wordnet", "--name-vectors", "gone.npz"], "cannot read gone.npz"),
    (["words", "--wordnet", "wordnet", "--name-vectors", "few.npz"],
     "few.npz lacks 1 of ImageNet's class names (tench)"),
    (["words", "--wordnet", "wordnet", "--name-vectors", "wordnet/data.noun"],
     "must be an .npz file with the arrays names (N,)"),
])
def test_bad_input_gets_one_line(tmp_path, monkeypatch, capsys, wordnet, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wordnet").symlink_to(wordnet)
    write_name_vectors(tmp_path / "few.npz", {}, without="tench")
    (tmp_path / "pairs.csv").write_text("image,text\na.png,bear\n")
    (tmp_path / "none.csv").write_text("image,text\n")
    status, _, errors = inside(script, *words, "--out", "new", *FEW, capsys=capsys)
    assert status == 1 and message in errors[0], errors
    assert len(errors) == 1 and not (tmp_path / "new").exists()


@pytest.mark.parametrize("command, option", [
    ("words", "--label-smoothing"), ("words", "--encoder-lr"), ("train", "--label-smoothing")])
def test_options_that_would_do_nothing_are_not_there(command, option, capsys):
    words = {"words": ["--wordnet", "x"], "train": ["--checkpoint", "x"]}[command]
    status, _, errors = inside(script, command, "--out", "x", *words, option, "0.1", capsys=capsys)
    assert status == 2 and option in errors[0]
