"""p2_caption.py predict, eval and bad input, and hw3_2.sh, as a user runs them."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import (
    ROOT,
    TINY,
    bash,
    copy_project,
    error_lines,
    make_photo,
    run_inside,
    run_script,
)
from makers_files import coco, write
from makers_training import (
    CPU,
    LENGTH,
    captions_of,
    read_csv,
    weights,
    write_base,
    write_captioner,
    write_clip,
    write_gpt2,
)

import p2_caption
from data.captions import write_predictions
from data.transform import Transform
from metrics.captions import describe, score_captions
from models.captioner_files import load_captioner
from models.checkpoint import read_tensors, save_checkpoint
from models.tokenizer import train_bpe

SCRIPT = "p2_caption.py"
SEARCH = ["--beam", "3", "--length-penalty", "1", "--no-repeat-ngram", "0"]


def here(capsys, *words) -> subprocess.CompletedProcess:
    """As ``run_script(SCRIPT, …)``, in this process."""
    return run_inside(p2_caption, *words, capsys=capsys)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory) -> Path:
    """A tiny captioner; beside it, a base."""
    folder = tmp_path_factory.mktemp("captioner")
    write_base(folder / "base.safetensors")
    return write_captioner(folder / "tiny.safetensors")


def predict_words(images, output, checkpoint) -> list:
    return ["predict", "--images", images, "--output", output, "--checkpoint", checkpoint, *CPU,
            *SEARCH]


# --- predict and eval ---------------------------------------------------------------------------


def test_predict_writes_the_contracts_json_whatever_the_batch_size(tmp_path, captioner, capsys):
    # PEERS: split('.')[0] cutting a.b.jpg; glob('*.png'); caption state shared between images
    folder = tmp_path / "my photos"
    for label, name in enumerate(["a.b.jpg", "SHOUT.PNG", "0_0.webp", "été 犬.bmp"]):
        make_photo(folder / name, label, seed=label)
    with open(os.path.join(os.fsencode(folder), b"caf\xe9.png"), "wb") as file:
        file.write((folder / "SHOUT.PNG").read_bytes())
    output = tmp_path / "made" / "by us" / "out.json"
    written = []
    for run, size in ((partial(run_script, SCRIPT, PYTHONUTF8="1"), 1), (partial(here, capsys), 3)):
        result = run(*predict_words(folder, output, captioner), "--batch-size", size)
        assert result.returncode == 0, result.stderr
        written.append(json.loads(output.read_text()))
    assert written[0] == written[1]
    assert set(written[0]) == {"a.b", "SHOUT", "0_0", "été 犬", "caf\udce9"}
    assert written[0]["caf\udce9"] == written[0]["SHOUT"]
    assert len(set(written[0].values())) == 4 and written[0]["a.b"] in result.stdout
    assert [path.name for path in output.parent.iterdir()] == ["out.json"]


def test_one_beam_is_greedy_and_unreadable_photos_are_named(tmp_path, captioner, capsys):
    folder = tmp_path / "photos"
    good = [make_photo(folder / f"{label}.png", label) for label in range(3)]
    (folder / "cut.png").write_bytes(good[0].read_bytes()[:500])
    (folder / "text.jpg").write_text("hello")
    result = here(capsys, *predict_words(folder, tmp_path / "o.json", captioner), "--beam", "1")
    assert result.returncode == 3
    cut, text = error_lines(result)
    assert cut.startswith("unreadable: ") and "cut.png" in cut and "text.jpg" in text

    model, expected = load_captioner(captioner), {}
    transform = Transform.from_fields(model.preprocessing)
    for path in good:  # photo by photo, every token from the start, without beams and caches
        pixels = torch.from_numpy(transform.load(path).copy())
        memory, tokens = model.encode(transform.normalize(pixels[None])), []
        while len(tokens) < LENGTH and tokens[-1:] != [model.tokenizer.end_id]:
            read = torch.tensor([[model.tokenizer.start_id, *tokens]])
            tokens.append(model(memory, read)[0, -1].argmax().item())
        expected[path.stem] = model.tokenizer.decode(tokens)
    assert json.loads((tmp_path / "o.json").read_text()) == expected


def test_eval_scores_what_predict_wrote_and_records_it(tmp_path, photos, captioner, capsys):
    file = shutil.copy(captioner, tmp_path)
    result = here(capsys, *predict_words(photos, tmp_path / "o.json", file))
    assert result.returncode == 0, result.stderr
    texts = list(json.loads((tmp_path / "o.json").read_text()).values())
    references = captions_of(photos)
    known = dict(zip(list(references)[:5], ([text] for text in texts), strict=False))
    for name in known:
        references[name] += known[name]  # or every score would be 0
    result = run_script(
        SCRIPT, "eval", "--images", photos, "--checkpoint", file, "--captions",
        write(tmp_path / "v.json", coco(references)), "--train-captions",
        write(tmp_path / "t.json", known), "--per-image", tmp_path / "each.csv", "--record",
        "random photos", *CPU, *SEARCH)
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    expected, _, per_image = score_captions(texts, list(references.values()))
    metrics = {name: printed["metrics"][name] for name in expected}
    assert metrics == expected and expected["CIDEr"] > 0 and printed["images"] == 12
    assert printed["metrics"]["CLIPScore"] > 0 and "not comparable" in printed["clipscore"][
        "comparable"]  # by the shipped CLIP
    assert printed["reads"] == describe(texts, sum(known.values(), []))
    assert 5 / 12 <= printed["reads"]["copied_from_training"] < 1
    rows = read_csv(tmp_path / "each.csv")
    assert [row["filename"] for row in rows] == list(references)
    assert [row["caption"] for row in rows] == texts
    assert [float(row["CIDEr"]) for row in rows] == per_image[:, 0].tolist()
    measured = load_captioner(file).metadata["measured"]["random photos"]
    assert measured["metrics"] == printed["metrics"] and weights(file) == weights(captioner)
    result = here(capsys, "score", "--predictions", tmp_path / "o.json", "--images", photos,
                  "--captions", tmp_path / "v.json", *CPU)
    scored = json.loads(result.stdout)
    for key in ("metrics", "images", "tokenizer", "clipscore"):
        assert scored[key] == printed[key]


def test_clipscore_is_over_the_photos_that_can_be_read(tmp_path, photos, captioner, capsys):
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    (folder / "0_000.png").write_text("no photo")
    clip = write_clip(tmp_path / "clip.safetensors")
    references = captions_of(photos)
    predictions = {name: texts[0] for name, texts in references.items()}
    result = here(capsys, "score", "--predictions", write(tmp_path / "p.json", predictions),
                  "--captions", write(tmp_path / "v.json", coco(references)), "--images", folder,
                  "--per-image", tmp_path / "each.csv", "--clip", clip,
                  "--clip-prefix", "--bootstrap", "20", *CPU)
    assert result.returncode == 3 and "0_000.png" in error_lines(result)[0]
    printed, rows = json.loads(result.stdout), read_csv(tmp_path / "each.csv")
    assert printed["unreadable"] == 1 and printed["images"] == 12
    assert printed["clipscore"]["images"] == 11
    assert printed["clipscore"]["prefix"] == "A photo depicts "
    scores = [float(row["CLIPScore"]) for row in rows]
    assert math.isnan(scores[0])
    assert printed["metrics"]["CLIPScore"] == pytest.approx(sum(scores[1:]) / 11)
    low, high = printed["intervals_95"]["CLIPScore"]
    assert low <= printed["metrics"]["CLIPScore"] <= high


def test_the_first_twenty_captions_are_printed(tmp_path, capsys):
    captions = {f"{number}.a.png": f"caption {number}" for number in range(23)}
    write_predictions(captions.items, 23, tmp_path / "o.json")
    assert (tmp_path / "o.json").read_text() == json.dumps(
        {name.removesuffix(".png"): text for name, text in captions.items()}, indent=2) + "\n"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21 and lines[19].split(maxsplit=1) == ["19.a.png", "caption 19"]
    assert lines[20] == f"… and 3 more in {tmp_path / 'o.json'}"


# --- bad input ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def yard(tmp_path_factory, photos, captioner, checkpoint) -> Path:
    """A folder with everything that can be wrong."""
    yard = tmp_path_factory.mktemp("yard")
    shutil.copytree(photos, yard / "photos")
    (yard / "bad").mkdir()
    for name in ("twins/x.jpg", "twins/x.PNG", "deep/inner/0.png", "deep/inner/1.png"):
        make_photo(yard / name)
    (yard / "empty").mkdir()
    for name in "xyz":
        write(yard / "bad" / f"{name}.jpg", "hello")
    for name, file in (("ok", captioner), ("base", captioner.with_name("base.safetensors")),
                       ("classifier", checkpoint)):
        shutil.copy(file, yard / f"{name}.safetensors")
    (yard / "cut.safetensors").write_bytes(captioner.read_bytes()[:20000])
    tensors, metadata = read_tensors(captioner)
    other = train_bpe(["a red square"], 260).to_json()
    for name, changes in (("misfit", {"tokenizer": other}), ("hollow", {"encoder": {}})):
        save_checkpoint(yard / f"{name}.safetensors", tensors, {**metadata, **changes})
    references = captions_of(photos)
    for name, content in (
            ("c", coco(references)), ("gone", coco({**references, "gone.png": ["x"]})),
            ("inner", coco({"inner/0.png": ["x"], "inner/1.png": ["y"]})), ("broken", "{"),
            ("x", coco({f"{name}.jpg": ["x"] for name in "xyz"})), ("numbers", {"a": 1, "b": 2}),
            ("predictions", {str(n): "a dog" for n in range(9)})):
        write(yard / f"{name}.json", content)
    for name, change in (
            ("no_key", lambda tensors: tensors.pop("h.0.mlp.c_fc.weight")),
            ("no_wte", lambda tensors: tensors.pop("wte.weight")),
            ("shape", lambda tensors: tensors.update({"ln_f.bias": torch.zeros(63)})),
            ("size", lambda tensors: tensors.update({"wte.weight": torch.zeros(281, 64)})),
            ("no_bpe", len), ("alone", len)):
        write_gpt2(yard / name, change)
    (yard / "no_bpe" / "encoder.json").write_text("hello")
    (yard / "alone" / "vocab.bpe").unlink()
    return yard


PREDICT = "predict --output old.json --images "
EVAL = "eval --output old.json --checkpoint ok.safetensors --images photos --captions "
TRAIN = "train --out new --hold-out 3 --captions c.json --images photos --model " + TINY


@pytest.mark.parametrize("words, message", [
    (PREDICT + "nowhere", "nowhere does not exist"),
    (PREDICT + "empty", "no image in empty"),
    (PREDICT + "bad --checkpoint ok.safetensors", "none of 3 images could be read"),
    (PREDICT + "twins --checkpoint gone", "x.PNG and x.jpg would both be x"),  # before any work
    (PREDICT + "photos --checkpoint gone.safetensors", "gone.safetensors does not exist"),
    (PREDICT + "photos --checkpoint cut.safetensors", "cannot read checkpoint cut.safetensors"),
    (PREDICT + "photos --checkpoint classifier.safetensors", "classifier checkpoint, a captioner"),
    (PREDICT + "photos --checkpoint base.safetensors", "is a base checkpoint, a captioner is"),
    (PREDICT + "photos --checkpoint misfit.safetensors", "they do not belong together"),
    (PREDICT + "photos --checkpoint hollow.safetensors", "describes its model wrongly"),
    # PEERS: one missing caption failing a whole evaluation without naming it
    (EVAL + "gone.json", "1 of 13 images in gone.json are not in photos (gone.png)"),
    (EVAL + "broken.json", "broken.json is not valid JSON"),
    (EVAL + "c.json --limit 1", "two images"),
    (EVAL + "c.json --train-captions predictions.json", "predictions.json must hold captions"),
    ("pretrain --captions numbers.json --out new", "numbers.json must hold captions"),
    ("pretrain --captions c.json --heads 5 --out new", "--heads 5 does not divide"),
    (TRAIN + " --images bad --captions x.json --hold-out 2", ".jpg cannot be read: not an image; "),
    (TRAIN + " --images photos twins", "2 image folders and 1 caption files: give one"),
    (TRAIN + " --images photos photos --captions c.json c.json", "is in two of the caption files"),
    (TRAIN + " --val-images photos twins --val-captions c.json", "2 image folders and 1 caption"),
    (TRAIN + " --hold-out 1 --epochs 1 --workers 0", "two images"),
    (TRAIN + " --hold-out 400", "12 photos are too few to hold out 400"),
    (TRAIN + " --decoder no_key/decoder_model.bin", "1 missing (h.0.mlp.c_fc.weight)"),
    (TRAIN + " --decoder no_wte/decoder_model.bin", "is no GPT-2: wte.weight missing"),
    (TRAIN + " --decoder shape/decoder_model.bin", "ln_f.bias (63,) instead of (64,)"),
    (TRAIN + " --decoder size/decoder_model.bin", "size/encoder.json"),
    (TRAIN + " --decoder no_bpe/decoder_model.bin", "no_bpe/encoder.json and "),
    (TRAIN + " --decoder alone/decoder_model.bin", "is missing: put encoder.json and vocab.bpe"),
    ("describe", "invalid choice: describe"),  # from here on, wrong usage
    ("predict", "--output"),
    (PREDICT + "photos --beam 0", "--beam"),
    (EVAL.replace("--captions", ""), "--captions"),
    ("pretrain --out new", "--captions"),
    (TRAIN + " --checkpoint a --decoder b", "not allowed with"),
    # PEERS: num_heads silently ignored
    (TRAIN + " --checkpoint ok.safetensors --heads 5", "--heads has no effect"),
    (TRAIN + " --checkpoint ok.safetensors --weights w", "--weights has no effect"),
])
def test_bad_input_gets_one_line_and_no_output(yard, capsys, monkeypatch, words, message):
    monkeypatch.chdir(yard)
    # Where GPT-2's tokenizer is looked for, whatever this machine has: ckpt/ and the hub's cache.
    monkeypatch.setattr("ckpt.registry.FOLDER", yard / "ckpt")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *file: None)
    (yard / "old.json").write_text("as it was")
    files = set(yard.rglob("*"))
    result = here(capsys, *words.split(), "--device", "cpu")
    lines = error_lines(result)
    assert len(lines) == 1 and message in lines[0] and "unexpected" not in lines[0], result.stderr
    assert result.returncode == (2 if "--help" in lines[0] else 1) and not result.stdout
    assert (yard / "old.json").read_text() == "as it was" and set(yard.rglob("*")) == files


def test_a_file_name_may_hold_a_folder(yard, capsys, monkeypatch):
    monkeypatch.chdir(yard)
    words = (EVAL + "inner.json --device cpu").replace("--images photos", "--images deep")
    result = here(capsys, *words.split())
    assert result.returncode == 0, result.stderr
    assert json.loads((yard / "old.json").read_text())["images"] == 2


# --- hw3_2.sh -----------------------------------------------------------------------------------


def test_hw3_2_works_from_anywhere(tmp_path, captioner):
    project = copy_project(tmp_path / "my project")
    shutil.copy(captioner, project / "ckpt" / "captioner.safetensors")
    for label, name in enumerate(["a.b.jpg", "é 1.PNG"]):
        make_photo(tmp_path / "my photos" / name, label)
    result = bash(project / "hw3_2.sh", "my photos", "new folder/out.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "new folder" / "out.json").read_text())
    assert set(written) == {"a.b", "é 1"}


@pytest.mark.parametrize("words", ["", "a", "a o.json decoder.bin more"])
def test_hw3_2_says_what_it_expects(tmp_path, words):
    result = bash(ROOT / "hw3_2.sh", *words.split(), cwd=tmp_path)
    assert result.returncode == 2 and "expected IMAGES OUT.json" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_hw3_2_keeps_the_courses_rules():
    words = set(re.findall(r"\w+", (ROOT / "hw3_2.sh").read_text()))
    assert "python3" in words and not words & {
        "rm", "sudo", "cp", "mv", "mkdir", "cd", "pip", "pip3", "CUDA_VISIBLE_DEVICES"}
