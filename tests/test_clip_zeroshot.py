"""clip_zeroshot.py, and hw3_1.sh's form with names, as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from utils import UserError

import numpy as np
import pytest
from conftest import (
    ROOT,
    bash,
    copy_project,
    error_lines,
    inside,
    make_folder,
    make_photo,
    run_script,
)
from makers_clip import LONG, read_csv, write_clip
from makers_files import coco, write
from PIL import Image

import clip_zeroshot as script
from data.compute import Compute
from data.photos import list_images
from figures import charts
from inference.clip import image_features
from inference.zeroshot import (
    TEMPLATE,
    TEMPLATES,
    ZeroShot,
    classifiers,
    ensemble,
    fill,
    read_templates,
    softmax,
    unique,
)
from metrics import accuracy
from models.clip import Clip, open_clip

pytestmark = pytest.mark.usefixtures("text_cache")

SCRIPT = "clip_zeroshot.py"
CPU = ["--device", "cpu", "--precision", "fp32"]
NAMES = {"0": "red_thing", "1": "dog", "2": "palm tree"}


def by_hand(source, paths, names, templates):
    """Photo by photo, text by text, template by template -> (photos, classes) probabilities."""
    import torch

    clip = open_clip(source)
    transform = clip.transform
    classes = []
    for name in names:
        total = 0
        for template in templates:
            text = template.replace("{object}", name).replace("{}", name)
            feature = clip.encode_text([text])[0]
            total = total + feature / feature.norm()
        mean = total / len(templates)
        classes.append(mean / mean.norm())
    rows = []
    for path in paths:
        pixels = torch.from_numpy(transform(Image.open(path).convert("RGB")).copy())
        image = clip.encode_image(transform.normalize(pixels[None]))[0]
        rows.append((clip.logit_scale * torch.stack(classes) @ image).softmax(0).numpy())
    return np.stack(rows)


# --- templates and probabilities ----------------------------------------------------------------


def test_templates_are_the_published_ones(tmp_path):
    assert [len(group) for group in TEMPLATES.values()] == [5, 18]
    cifar = TEMPLATES["cifar"]
    assert "a photo of the small {}." in cifar and "a low contrast photo of a {}." in cifar
    file = tmp_path / "my templates.txt"
    file.write_text("a {} on {object}\n\n  the {}  \n")
    groups = read_templates(["cifar", str(file), "my {}", "our {object}", "my {}"])
    assert groups == {"cifar": list(cifar), file.name: ["a {} on {object}", "the {}"],
                      "given": ["my {}", "our {object}"]}
    assert len(unique(groups)) == 22
    assert fill("a {} on {object}", "cat") == "a cat on cat"


def test_the_ensemble_is_normalize_mean_normalize():
    random = np.random.default_rng(0)
    features = random.normal(size=(4, 3, 6))
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    result = ensemble(features)
    for number in range(3):
        total = np.zeros(6)
        for template in range(4):
            total += features[template, number]
        np.testing.assert_allclose(result[number], total / np.linalg.norm(total), atol=1e-6)
    np.testing.assert_allclose(ensemble(features[:1]), features[0], atol=1e-6)


def test_probabilities_are_transformers_pipelines(tmp_path, hub_clip):
    from transformers import pipeline

    paths = [make_photo(tmp_path / f"{n}.png", n, size=(32, 32)) for n in range(3)]
    names = ["dog", "palm tree", "cat"]
    classify = pipeline("zero-shot-image-classification", model=str(hub_clip))
    clip = open_clip(hub_clip)
    _, images, _ = image_features(clip, paths, Compute("cpu", "fp32", 2))
    ours = ZeroShot(clip, dict(enumerate(names)), ["a photo of {}"]).probabilities(images)
    for path, row in zip(paths, ours, strict=True):
        theirs = {found["label"]: found["score"] for found in classify(
            str(path), candidate_labels=names, hypothesis_template="a photo of {}")}
        np.testing.assert_allclose(row, [theirs[name] for name in names], atol=1e-5)


def test_probabilities_of_large_logits_and_of_one_class():
    logits = np.eye(2, dtype=np.float32)
    np.testing.assert_allclose(softmax(1e5 * logits), np.eye(2))
    np.testing.assert_allclose(softmax(100 * logits[:, :1]), 1)


# --- predict ------------------------------------------------------------------------------------


def test_predict_writes_keys_whatever_their_order(tmp_path, clip_file, capsys):
    # PEERS: class index = position in the JSON; header image_id,label
    folder = tmp_path / "my photos"
    for number, name in enumerate(["a.b.JPG", "no label.png", "0_0.webp", "été 犬.bmp"]):
        make_photo(folder / name, number, seed=number)
    Image.fromarray(np.full((20, 30), 90, np.uint8)).save(folder / "grey.png")
    names = {"17": "dog", "x": "palm tree", "0": "red_thing", "3": "woman"}
    written = []
    for order in (list(names), sorted(names), sorted(names, reverse=True)):
        output = tmp_path / "made by us" / "out.csv"
        labels = write(tmp_path / "n.json", {key: names[key] for key in order})
        status, printed, errors = inside(
            script, "predict", "--images", folder, "--labels", labels, "--output", output,
            "--model", clip_file, *CPU, capsys=capsys)
        assert status == 0 and not errors
        written.append(output.read_bytes())
    assert written[0] == written[1] == written[2]
    paths = list_images(folder)
    expected = by_hand(clip_file, paths, ["dog", "palm tree", "red thing", "woman"],
                       ["a photo of a {}"])
    rows = read_csv(output)
    assert rows == [["filename", "label"], *([path.name, list(names)[row.argmax()]] for path, row
                                             in zip(paths, expected, strict=True))]
    assert len(printed.splitlines()) == 5 and "été 犬.bmp" in printed


def test_text_is_encoded_once_a_run(tmp_path, photos, clip_file, capsys, monkeypatch):
    calls = []
    encode = Clip.encode_text
    monkeypatch.setattr(Clip, "encode_text",
                        lambda self, texts: calls.append(len(texts)) or encode(self, texts))
    labels = write(tmp_path / "n.json", NAMES)
    for _ in range(2):
        status, _, _ = inside(script, "predict", "--images", photos, "--labels", labels, "--model",
                              clip_file, "--output", tmp_path / "o.csv", "--template", "cifar",
                              "--batch-size", "1", *CPU, capsys=capsys)
        assert status == 0
    assert calls == [18 * 3]  # the second run reads the cache


def test_unreadable_among_good_ones(tmp_path, clip_file, capsys):
    folder = make_folder(tmp_path / "photos", 1)
    (folder / "text.jpg").write_text("hello")
    words = ["predict", "--images", folder, "--labels", write(tmp_path / "n.json", NAMES),
             "--model", clip_file, "--output", tmp_path / "o.csv", *CPU, "--embeddings",
             tmp_path / "e.npz"]
    for _ in range(2):  # the second time from the embeddings
        status, _, errors = inside(script, *words, capsys=capsys)
        assert status == 3 and len(read_csv(tmp_path / "o.csv")) == 4
        assert sum("text.jpg: not an image" in line for line in errors) == 1
    assert "read the embeddings" in errors[0]
    for path in folder.glob("*.png"):
        path.unlink()
    (tmp_path / "o.csv").unlink()
    status, _, errors = inside(script, *words, capsys=capsys)
    assert status == 1 and len(errors) == 1 and "none of 1 images" in errors[0]
    assert not (tmp_path / "o.csv").exists()


def test_one_photo_and_one_class(tmp_path, clip_file, capsys):
    make_photo(tmp_path / "photos" / "x.png")
    status, printed, _ = inside(
        script, "predict", "--images", tmp_path / "photos", "--output", tmp_path / "o.csv",
        "--labels", write(tmp_path / "n.json", {"7": "dog"}), "--model", clip_file, *CPU,
        capsys=capsys)
    assert status == 0 and printed.split()[-1] == "100%"
    assert read_csv(tmp_path / "o.csv") == [["filename", "label"], ["x.png", "7"]]


def test_twenty_predictions_are_printed_and_the_others_counted(tmp_path, clip_file, capsys):
    folder, output = make_folder(tmp_path / "photos", 7), tmp_path / "o.csv"
    status, printed, _ = inside(
        script, "predict", "--images", folder, "--output", output, "--labels",
        write(tmp_path / "n.json", NAMES), "--model", clip_file, *CPU, capsys=capsys)
    lines = printed.splitlines()
    assert status == 0 and len(lines) == 21 and len(read_csv(output)) == 22
    assert lines[0].startswith("0_000.png") and lines[-1] == f"… and 1 more in {output}"


# --- eval ---------------------------------------------------------------------------------------


def test_eval_is_a_row_a_template_and_ensembles(tmp_path, photos, hub_clip, capsys):
    names = {"2": "palm tree", "1": "mountain_bike", "0": "red thing"}
    templates = ["a {}", "no {object}, no score", "{}"]
    status, printed, errors = inside(
        script, "eval", "--images", photos, "--labels", write(tmp_path / "n.json", names),
        "--model", hub_clip, "--template", *templates[:2], "course", templates[2], *CPU, "--table",
        tmp_path / "t" / "table.md", capsys=capsys)
    assert status == 0
    result = json.loads(printed)
    rows = {row["template"]: row for row in result["rows"]}
    groups = {**{text: [text] for text in [*templates, *TEMPLATES["course"]]},
              "ensemble of given (3)": templates,
              "ensemble of course (5)": TEMPLATES["course"],
              "ensemble of all (8)": [*templates, *TEMPLATES["course"]]}
    assert set(rows) == set(groups)
    paths = list_images(photos)
    targets = np.array([int(path.name[0]) for path in paths])
    for title in [*templates, "ensemble of given (3)", "ensemble of all (8)"]:
        expected = by_hand(hub_clip, paths, ["red thing", "mountain bike", "palm tree"],
                           groups[title])
        summary = accuracy.summarize(expected, targets)
        row = rows[title]
        assert row["templates"] == len(groups[title]) and row["total"] == 12
        assert row["correct"] == summary["correct"]
        assert row["accuracy_95"] == list(accuracy.wilson_interval(row["correct"], 12))
        assert row["loss"] == pytest.approx(summary["loss"], abs=1e-5)
        bikes = int((expected.argmax(1) == 1)[targets == 1].sum())
        assert row["inside_imagenet"]["total"] == 4 and row["outside_imagenet"]["total"] == 8
        assert row["inside_imagenet"]["correct"] == bikes
        assert row["outside_imagenet"]["correct"] == row["correct"] - bikes
    table = (tmp_path / "t" / "table.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        f"| {title}" for title in rows]
    assert not any(line.startswith("|") for line in errors)  # a terminal shows it on stdout
    assert table.count("\n") == 2 + len(groups)
    assert f"| a {{}} | {100 * rows['a {}']['accuracy']:.1f} % |" in table
    assert "| names in ImageNet | names in ImageNet, 95 % | other names |" in table
    assert result["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-3)
    assert result["classes"] == 3 and result["model"] == str(hub_clip)


def test_eval_takes_truth_from_a_csv_and_records(tmp_path, photos, capsys):
    file = write_clip(tmp_path / "c.safetensors")
    truth = tmp_path / "truth.csv"
    truth.write_text("filename,label\n"
                     + "".join(f"{path.name},1\n" for path in list_images(photos)))
    status, printed, _ = inside(
        script, "eval", "--images", photos, "--labels", write(tmp_path / "n.json", NAMES),
        "--model", file, "--truth", truth, "--record", "random photos", "--template", "a {}",
        *CPU, capsys=capsys)
    assert status == 0
    rows = json.loads(printed)["rows"]
    assert len(rows) == 1 and "inside_imagenet" not in rows[0]  # "dog" is no class of its own there
    measured = open_clip(file).towers.metadata["measured"]
    assert measured["random photos"]["rows"] == rows


# --- top5 ---------------------------------------------------------------------------------------


def test_top5_draws_and_prints(tmp_path, photos, clip_file, capsys, monkeypatch):
    drawn = []
    draw = charts.top_classes
    monkeypatch.setattr(charts, "top_classes",
                        lambda *words: drawn.append(words) or draw(*words))
    names = {**NAMES, **{str(n): f"thing {n}" for n in range(3, 9)}}
    words = ["--labels", write(tmp_path / "n.json", names), "--model", clip_file, "--output",
             tmp_path / "f" / "top5.png", *CPU]
    results = []
    for seed in (1, 1, 2):
        status, printed, _ = inside(script, "top5", "--images", photos, "--sample", 3, "--seed",
                                    seed, *words, capsys=capsys)
        assert status == 0
        results.append(json.loads(printed))
    assert list(results[0]["images"]) == list(results[1]["images"]) != list(results[2]["images"])
    assert min(Image.open(tmp_path / "f" / "top5.png").size) > 400
    paths = [photos / name for name in results[0]["images"]]
    expected = by_hand(clip_file, paths, [names[key].replace("_", " ") for key in sorted(names)],
                       ["a photo of a {}"])
    panels, quantity = drawn[0][:2]
    assert quantity == ("probability (%) of “a photo of a {object}”\nsoftmax over 9 classes, logit "
                        f"scale 14.3 · {clip_file.name}")
    for path, row, panel in zip(paths, expected, panels, strict=True):
        best = np.argsort(-row)[:5]
        found = results[0]["images"][path.name]
        assert [place["label"] for place in found] == [str(i) for i in best]
        np.testing.assert_allclose([place["probability"] for place in found], row[best], atol=1e-5)
        _, title, shown, shares, true = panel
        assert shown == [place["name"] for place in found]
        np.testing.assert_allclose(shares, row[best], atol=1e-5)
        assert true == [place["label"] == path.name[0] for place in found]
        assert title.startswith(f"{path.name}\ntrue: {names[path.name[0]].replace('_', ' ')}, "
                                f"{row[int(path.name[0])]:.1%}")
        assert ("(rank" in title) == (not any(true))


def test_template_files_of_one_name_both_have_their_ensemble(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/t.txt", "b/t.txt", "given"):
        Path(name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, f"{name[0]} {{}}\nthe {{}}\n")
    groups = read_templates(["a/t.txt", "b/t.txt", "typed {}", "given"])
    assert groups == {"./a/t.txt": ["a {}", "the {}"], "./b/t.txt": ["b {}", "the {}"],
                      "./given": ["g {}", "the {}"], "given": ["typed {}"]}
    assert [title for title in classifiers(groups) if title.startswith("ensemble")] == [
        "ensemble of ./a/t.txt (2)", "ensemble of ./b/t.txt (2)", "ensemble of ./given (2)",
        "ensemble of all (5)"]
    assert read_templates(["a " + "very " * 60 + "nice {}"])  # no name of a file


def test_top5_of_files_and_of_awkward_photos(tmp_path, clip_file, capsys):
    photos = [make_photo(tmp_path / "no label.png", size=(1, 500)),
              make_photo(tmp_path / "9_x.png", size=(500, 1)), make_photo(tmp_path / "犬.jpg")]
    names = {"0": "犬 " * 30, "1": "a $cat$"}
    words = ["--labels", write(tmp_path / "n.json", names), "--model", clip_file, "--output",
             tmp_path / "o.png", *CPU]
    status, printed, errors = inside(script, "top5", "--images", *photos, *words, capsys=capsys)
    assert status == 0 and len(json.loads(printed)["images"]) == 3
    assert all("was cut" in line for line in errors)
    folder = make_folder(tmp_path / "many", 9)
    status, _, errors = inside(script, "top5", "--images", folder, *words, capsys=capsys)
    assert status == 1 and "27 images are too many" in errors[0] and "--sample" in errors[0]


# --- retrieval ----------------------------------------------------------------------------------


def test_retrieval_finds_captions_and_photos(tmp_path, photos, capsys):
    photos = shutil.copytree(photos, tmp_path / "photos")
    file = write_clip(tmp_path / "c.safetensors")
    paths = list_images(photos)
    told = {path.name: [f"thing {path.stem}", f"another {row}"] for row, path in enumerate(paths)}
    write(tmp_path / "v.json", coco(told))
    words = ["retrieval", "--images", photos, "--captions", tmp_path / "v.json", "--model", file]
    status, printed, _ = inside(script, *words, "--record", "random photos", *CPU, capsys=capsys)
    result = json.loads(printed)
    assert status == 0 and (result["images"], result["captions"]) == (12, 24)
    clip = open_clip(file)
    _, images, _ = image_features(clip, paths, Compute("cpu", "fp32", 4))
    texts = clip.encode_text([text for each in told.values() for text in each]).numpy()
    ranks = np.argsort(-(texts @ images.T), axis=1)
    hits = [row // 2 in ranks[row, :5] for row in range(24)]
    assert result["recall"]["text_to_image"]["5"] == pytest.approx(np.mean(hits), abs=0.05)
    measured = open_clip(file).towers.metadata["measured"]["random photos"]
    assert measured["recall"] == result["recall"]
    (photos / paths[0].name).write_bytes(b"no photo")
    status, printed, errors = inside(script, *words, *CPU, capsys=capsys)
    assert status == 3 and json.loads(printed)["captions"] == 22 and paths[0].name in errors[0]


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("names, message", [
    ('["bicycle", "chair"]', "must be a JSON object"),
    ("{}", "names no class"),
    ('{"0": "dog", "0": "cat"}', "the key 0 stands twice"),
    ('{"0": "dog", "1": "cat", "2": "Dog"}', "classes 0 and 2 have one name, Dog"),
    ('{"0": "palm_tree", "1": "palm  tree"}', "classes 0 and 1 have one name"),
    ('{"0": "dog", "1": "_ "}', "lacks a label or a name"),
    ('{"0": "dog", "": "cat"}', "lacks a label or a name"),
    ('{"0": 7}', "must be a JSON object"),
    ("{", "not valid JSON"),
])
def test_bad_names_get_one_line(tmp_path, photos, capsys, names, message):
    labels = write(tmp_path / "n.json", names)
    status, _, errors = inside(script, "predict", "--images", photos, "--labels", labels,
                               "--output", tmp_path / "o.csv", capsys=capsys)
    assert status == 1 and not (tmp_path / "o.csv").exists()
    assert len(errors) == 1 and message in errors[0]


@pytest.mark.parametrize("words, status, message", [
    ([], 2, "COMMAND"),
    (["predict", "--images", "photos", "--output", "o.csv"], 2, "--labels"),
    (["top5", "--labels", "n.json"], 2, "--output"),
    (["top5", "--labels", "n.json", "--output", "o.csv", "--sample", "0"], 2, "--sample"),
    (["predict", "--images", "photos", "--template", "a photo"], 1,
     'template "a photo" has no {object} (or {})'),
    (["predict", "--images", "photos", "--template", "empty.txt"], 1, "holds no template"),
    (["predict", "--images", "photos", "--template", "bad.txt"], 1, 'template "dogs" has no'),
    (["predict", "--images", "nowhere"], 1, "nowhere does not exist"),
    (["predict", "--images", "photos", "--output", "folder"], 1, "folder is a folder"),
    (["predict", "--images", "photos", "--model", "no.safetensors"], 1, "does not exist"),
    (["predict", "--images", "photos", "--model", "n.json"], 1, "n.json"),
    (["predict", "--images", "photos", "--embeddings", "e.csv"], 2, "must end in .npz"),
    (["predict", "--images", "photos", "--embeddings", "e.npz", "--resume"], 1,
     "--resume does not go with --embeddings"),
    (["predict", "--images", "photos", "--embeddings", "folder/x.npz/e.npz"], 1, "cannot write"),
    (["eval", "--images", "odd"], 1, "label 99 in odd is none of n.json's 3 labels"),
    (["eval", "--images", "unlabelled"], 1, "photo.png carries no label"),
    (["eval", "--images", "photos", "--model", "folder", "--record", "x"], 1,
     "folder is not a checkpoint of this project"),
    (["top5", "--images", "photos/0_000.png", "nowhere.png"], 1, "nowhere.png is no file"),
])
def test_bad_input_gets_one_line(
        tmp_path, clip_file, capsys, monkeypatch, words, status, message):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "photos", 1)
    make_photo(tmp_path / "odd" / "99_x.png")
    make_photo(tmp_path / "unlabelled" / "photo.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.npz").write_text("")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bad.txt").write_text("a {}\ndogs\n")
    write(tmp_path / "n.json", NAMES)
    if status == 1:
        given = {"--labels": "n.json", "--model": clip_file}
        given |= {"--output": "o.csv"} if words[0] != "eval" else {}
        words = words + [str(word) for option, value in given.items() if option not in words
                         for word in (option, value)] + CPU
    found, _, errors = inside(script, *words, capsys=capsys)
    assert found == status and len(errors) == 1 and message in errors[0], errors
    assert status != 2 or "--help" in errors[0]
    assert not (tmp_path / "o.csv").exists()


def test_input_is_checked_before_torch_is_loaded(tmp_path, photos):
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    result = run_script(SCRIPT, "predict", "--images", photos, "--output", tmp_path / "o.csv",
                        "--labels", write(tmp_path / "n.json", NAMES), "--template", "a photo",
                        PYTHONPATH=str(tmp_path))
    assert result.returncode == 1 and 'template "a photo" has no' in result.stderr


def test_a_model_that_only_the_network_has(tmp_path, photos):
    result = run_script(SCRIPT, "predict", "--images", photos, "--output", tmp_path / "o.csv",
                        "--labels", write(tmp_path / "n.json", NAMES), "--model",
                        "openai/clip-vit-base-patch32", HF_HOME=str(tmp_path / "hub"))
    assert result.returncode == 1 and not (tmp_path / "o.csv").exists()
    assert len(error_lines(result)) == 1 and "openai/clip-vit-base-patch32" in result.stderr
    assert "hub" in result.stderr


@pytest.mark.parametrize("command", ["predict", "eval", "top5"])
def test_help_shows_every_option_with_its_default(command, capsys):
    status, printed, _ = inside(script, command, "--help", capsys=capsys)
    text = " ".join(printed.split())
    assert status == 0 and "choice (default: 0)" in text and "clip_vit_tiny.safetensors" in text
    for option in ("--template", "--labels", "--model", "--images", "--batch-size"):
        assert option in text


# --- hw3_1.sh -----------------------------------------------------------------------------------


def test_hw3_1_labels_by_names(tmp_path):
    project = copy_project(tmp_path / "the project")
    file = write_clip(project / "ckpt" / "clip_vit_tiny.safetensors")
    folder = make_folder(tmp_path / "my photos", 2)
    names = write(tmp_path / "id 2 label.json", {"9": "palm tree", "4": "red_thing"})
    result = bash(project / "hw3_1.sh", "my photos", names.name, "new folder/out.csv", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    paths = list_images(folder)
    from data.compute import resolve_precision

    rows = read_csv(tmp_path / "new folder" / "out.csv")
    assert [row[0] for row in rows] == ["filename", *(path.name for path in paths)]
    expected = by_hand(file, paths, ["red thing", "palm tree"], [TEMPLATE])
    for row, chances in zip(rows[1:], expected, strict=True):
        near = abs(chances[0] - 0.5) < 0.02 and resolve_precision("auto", "cpu") == "bf16"
        assert near or row[1] == ["4", "9"][chances.argmax()]


def test_the_shipped_clip_names_the_sample_photos(tmp_path):
    scenes = ROOT / "samples" / "scenes"
    result = bash(ROOT / "hw3_1.sh", scenes, scenes / "id2label.json", "o.csv", cwd=tmp_path,
                  XDG_CACHE_HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    named = dict(read_csv(tmp_path / "o.csv")[1:])
    names = json.loads((scenes / "id2label.json").read_text())
    right = [names[label] in path for path, label in named.items()]
    assert len(right) == 5 and sum(right) >= 3, named


def test_one_warning_however_many_templates(tmp_path, photos, clip_file, capsys):
    names = {**NAMES, "3": LONG}
    status, printed, errors = inside(
        script, "eval", "--images", photos, "--labels", write(tmp_path / "n.json", names),
        "--model", clip_file, *CPU, capsys=capsys)
    assert status == 0
    assert len([line for line in errors if "were cut" in line]) == 1
    assert len(json.loads(printed)["rows"]) == 23 + 3  # ensembles of course, of cifar, of all


def test_a_template_without_a_place_for_the_name_is_refused():
    with pytest.raises(UserError, match="nor one of the sets course, cifar"):
        read_templates(["a photo of a dog"])
