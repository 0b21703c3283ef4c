"""p2_caption.py pretrain and train as a user runs them: sources, starting points, resume; and the
losses against formulas."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, error_lines, make_folder, run_inside, run_script
from makers_files import coco, write
from makers_training import (
    CPU,
    LENGTH,
    SQUARES,
    captions_of,
    interrupt_after_first_epoch,
    read_csv,
    tiny_base,
    weights,
    write_base,
    write_gpt2,
)

import p2_caption
from data.captions import language_texts, training_photos
from models.captioner_files import load_captioner
from models.checkpoint import read_tensors, save_checkpoint
from training import caption

SCRIPT = "p2_caption.py"
RUN = ["--batch-size", "8", "--lr", "0.01", "--warmup", "0", "--workers", "0", *CPU]
SIZE = ["--model", TINY, "--width", "16", "--layers", "1", "--heads", "2", "--vocab-size", "300"]


def here(capsys, *words) -> subprocess.CompletedProcess:
    """As ``run_script(SCRIPT, …)``, in this process."""
    return run_inside(p2_caption, *words, capsys=capsys)


def training_words(photos, folder, *words) -> list:
    """``folder`` is the one with all trainings of this file, or another one's."""
    captions = write(folder / "c.json", coco(captions_of(photos)))
    return ["train", "--images", photos, "--captions", captions, "--hold-out", "3", "--features",
            folder / "features", *RUN, *words]


def xe_words(photos, folder, out: str) -> list:
    return training_words(photos, folder, "--out", folder / out, "--epochs", "2", "--checkpoint",
                          folder / "base" / "best.safetensors")


def pretrain_words(folder, out: str) -> list:
    return ["pretrain", "--captions", folder / "t.json", "--max-length", LENGTH, "--epochs", "1",
            "--out", folder / out, *SIZE, *RUN]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, photos) -> Path:
    """A folder with ``base``, what pretrain wrote, and ``xe``, what train made of it."""
    folder = tmp_path_factory.mktemp("trained")
    write(folder / "t.json", captions_of(photos))
    for words in (pretrain_words(folder, "base"), xe_words(photos, folder, "xe")):
        result = run_script(SCRIPT, *words)
        assert result.returncode == 0, result.stderr
    return folder


# --- stages of a training -----------------------------------------------------------------------


def test_a_base_is_pretrained_and_then_trained_on_photos(trained):
    base, best = (trained / name / "best.safetensors" for name in ("base", "xe"))
    assert float(read_csv(trained / "base" / "history.csv")[0]["val_perplexity"]) > 1
    first, last = read_csv(trained / "xe" / "history.csv")
    assert float(last["val_CIDEr"]) >= 0 and float(last["train_loss"]) < float(first["train_loss"])
    assert all(0 < float(row["train_accuracy"]) < 1 for row in (first, last))
    assert weights(best, "encoder.") == weights(base, "encoder.")  # it was frozen
    assert weights(best, "decoder.") != weights(base, "decoder.")
    described = [read_tensors(path)[1] for path in (base, best)]
    assert described[1]["started_from"]["recipe"] == described[0]["recipe"]
    assert described[1]["recipe"]["lr"] == 0.01 and described[1]["trained_on"]["images"] == 9
    assert str(trained.parent) not in json.dumps(described)  # no path of this machine


@pytest.mark.parametrize("out, words, tuned", [
    ("cider", ["--objective", "cider", "--samples", "2"], False),
    ("tuned", ["--encoder-lr", "0.1", "--augment", "flip"], True)])
def test_a_captioner_is_trained_further(trained, photos, capsys, out, words, tuned):
    stored = {path: path.stat().st_mtime_ns for path in (trained / "features").iterdir()}
    before, after = (trained / name / "best.safetensors" for name in ("xe", out))
    result = here(capsys, *training_words(photos, trained, "--out", trained / out, "--epochs", "1",
                                          "--checkpoint", before, *words))
    assert result.returncode == 0, result.stderr
    row, = read_csv(trained / out / "history.csv")
    assert "val_CIDEr" in row and ("train_accuracy" if tuned else "train_reward") in row
    assert (weights(before, "encoder.") != weights(after, "encoder.")) == tuned
    assert weights(before, "decoder.") != weights(after, "decoder.")
    assert len(stored) == 2 and stored == {  # those of training and validation are used again
        path: path.stat().st_mtime_ns for path in (trained / "features").iterdir()}


def test_training_starts_from_the_courses_gpt2_file(tmp_path, photos, capsys):
    model, tokenizer = write_gpt2(tmp_path / "gpt2")
    result = here(capsys, *training_words(
        photos, tmp_path, "--out", tmp_path / "out", "--decoder",
        tmp_path / "gpt2" / "decoder_model.bin", "--model", TINY, "--epochs", "1", "--lr", "0"))
    assert result.returncode == 0, result.stderr
    ours = load_captioner(tmp_path / "out" / "best.safetensors")
    tokens = torch.randint(262, (2, LENGTH))
    with torch.no_grad():  # without a memory, it is the GPT-2 that it came from
        torch.testing.assert_close(ours(None, tokens), model(tokens).logits, atol=1e-4, rtol=1e-4)
    assert ours.tokenizer.encode("A red dog") == tokenizer.encode("A red dog").ids


def test_limit_leaves_captions_to_pretrain_on(tmp_path, capsys):
    captions = {str(n): [f"photo {n}"] for n in range(100)}
    result = here(capsys, "pretrain", "--captions", write(tmp_path / "t.json", captions), "--limit",
                  "5", "--out", tmp_path / "o", "--epochs", "1", *SIZE, *RUN)
    assert result.returncode == 0, result.stderr
    assert read_tensors(tmp_path / "o" / "best.safetensors")[1]["trained_on"]["texts"] == 5


# --- what is trained on and what is held out ----------------------------------------------------


def test_several_sources_are_trained_on_and_validated_apart(trained, photos, tmp_path, capsys):
    other = make_folder(tmp_path / "other", 3, seed=1)  # with file names that photos has too
    captions = {name: [f"some {text}" for text in texts]
                for name, texts in captions_of(other).items()}
    assert set(captions) < set(captions_of(photos))
    files = [write(tmp_path / "c.json", coco(captions_of(photos))),
             write(tmp_path / "other.json", coco(captions))]
    result = here(capsys, "train", "--images", photos, other, "--captions", *files, "--hold-out",
                  "3", "--out", tmp_path / "out", "--epochs", "2", "--checkpoint",
                  trained / "base" / "best.safetensors", *RUN)
    assert result.returncode == 0, result.stderr
    history = read_csv(tmp_path / "out" / "history.csv")
    for row in history:
        each = [float(row["val_CIDEr_1"]), float(row["val_CIDEr_2"])]
        assert float(row["val_CIDEr"]) == pytest.approx(np.mean(each))
    metadata = read_tensors(tmp_path / "out" / "best.safetensors")[1]
    assert metadata["trained_on"] == {"captions": ["c.json", "other.json"], "images": 9 + 6}

    images, val = training_photos([photos, other], files, held_out=3)
    assert [len(source) for source in val] == [3, 3] and len(images) == 15
    assert not set(images) & {path for source in val for path in source}
    assert {path.parent for path in val[1]} == {other} and images[other / "0_000.png"] == captions[
        "0_000.png"]
    given, val = training_photos([photos, other], files, [other], files[1:])
    assert len(given) == 21 and val == [{other / name: captions[name] for name in captions}]


@pytest.mark.parametrize("captions", ["", "a dog\n"])
def test_a_language_model_needs_two_captions(captions, tmp_path, capsys):
    file = tmp_path / "few.txt"
    file.write_text(captions)
    result = here(capsys, "pretrain", "--captions", file, "--out", tmp_path / "o")
    assert result.returncode == 1 and "few.txt: too few captions" in error_lines(result)[-1]


def test_captions_of_photos_held_out_are_never_pretrained_on(photos, tmp_path, capsys):
    captions = {name: [f"{text} in {name}" for text in texts]
                for name, texts in captions_of(photos).items()}
    files = [write(tmp_path / "c.json", coco(captions)), tmp_path / "more.txt"]
    _, (val,) = training_photos([photos], files[:1], held_out=3)
    unseen = sorted(text for texts in val.values() for text in texts)
    write(files[1], "\ufeffa caption of no photo\n\n" + "\n".join(f"  {text} " for text in unseen))
    texts, val_texts = language_texts(files, 3)
    assert sorted(val_texts) == unseen and len(unseen) == 9
    assert "a caption of no photo" in texts and not set(texts) & set(unseen)
    assert len(texts) == 9 * 3 + 1
    result = here(capsys, "pretrain", "--captions", *files, "--hold-out", "3", "--epochs", "1",
                  "--out", tmp_path / "o", *SIZE, *RUN)
    assert result.returncode == 0, result.stderr
    trained_on = read_tensors(tmp_path / "o" / "best.safetensors")[1]["trained_on"]
    assert trained_on == {"captions": ["c.json", "more.txt"], "texts": 28}
    result = here(capsys, "pretrain", "--captions", files[1], "--hold-out", "3", "--out",
                  tmp_path / "p")
    assert result.returncode == 1 and "COCO's format" in error_lines(result)[-1]


# --- resume -------------------------------------------------------------------------------------


def test_a_killed_training_is_resumed_exactly(trained, photos, capsys, monkeypatch):
    words = xe_words(photos, trained, "again")
    with monkeypatch.context() as patch:
        interrupt_after_first_epoch(patch, caption)
        result = here(capsys, *words)
    assert result.returncode == 130 and "interrupted" in result.stderr
    assert len(read_csv(trained / "again" / "history.csv")) == 1
    result = here(capsys, *words)
    assert result.returncode == 1 and "give --resume" in error_lines(result)[-1]
    result = run_script(SCRIPT, *words, "--resume")
    assert result.returncode == 0, result.stderr
    for part in ("encoder.", "decoder.", "memory_proj."):
        assert weights(trained / "xe" / "last.safetensors", part) == weights(
            trained / "again" / "last.safetensors", part)


@pytest.mark.parametrize("other, before, now", [
    (["--objective", "cider"], "--objective xe", "cider"),
    (["--encoder-lr", "1"], "--encoder-lr 0.0", "1.0"),
    (["--augment", "flip", "jitter"], "--augment none", "flip jitter"),
    (["--captions-each", "2"], "--captions-each None", "2"),
    (["--dropout", "0"], "--dropout 0.1", "0.0"),
    (["--label-smoothing", "0"], "--label-smoothing 0.1", "0.0"),
    (["--resize", "squash"], "--resize None", "squash"),
    (["--beam", "2"], "--beam 1", "2"),
    (["--hold-out", "4"], "--hold-out 3", "4"),
    (["--epochs", "3"], "--epochs 2", "3")])
def test_other_options_are_not_resumed(trained, photos, capsys, other, before, now):
    result = here(capsys, *xe_words(photos, trained, "xe"), "--resume", *other)
    assert result.returncode == 1
    assert f"cannot resume {trained / 'xe'}: it was trained with {before}, not {now}; " in (
        error_lines(result)[-1])


def test_other_data_and_weights_are_not_resumed(trained, photos, tmp_path, capsys):
    captions = captions_of(photos)
    changed = write(tmp_path / "changed.json", coco({
        name: [*texts[:2], "another caption"] for name, texts in captions.items()}))
    fewer = write(tmp_path / "fewer.json", coco(dict(list(captions.items())[:11])))
    renamed = Path(shutil.copytree(photos, tmp_path / "photos"))
    (renamed / "0_000.png").rename(renamed / "0_900.png")
    names = write(tmp_path / "names.json", coco(captions_of(renamed)))
    tensors, metadata = read_tensors(trained / "base" / "best.safetensors")
    tensors["decoder.ln_f.bias"] += 1
    save_checkpoint(tmp_path / "shifted.safetensors", tensors, metadata)
    for words, fact in (
            (["--captions", changed], "training photos 9 (digest "),
            (["--captions", fewer], "training photos 9 (digest "),
            (["--images", renamed, "--captions", names], "training photos 9 (digest "),
            (["--checkpoint", write_base(tmp_path / "base.safetensors")], "the model "),
            (["--checkpoint", tmp_path / "shifted.safetensors"], "starting weights ")):
        result = here(capsys, *xe_words(photos, trained, "xe"), "--resume", *words)
        assert result.returncode == 1, words
        assert f"it was trained with {fact}" in error_lines(result)[-1], words


def test_other_validation_photos_are_not_resumed(trained, photos, tmp_path, capsys):
    captions = captions_of(photos)
    val = [write(tmp_path / f"{number}.json", coco(dict(list(captions.items())[-number:])))
           for number in (3, 4)]
    words = training_words(photos, tmp_path, "--out", tmp_path / "o", "--epochs", "1",
                           "--checkpoint", trained / "base" / "best.safetensors", "--val-captions")
    assert here(capsys, *words, val[0]).returncode == 0
    result = here(capsys, *words, val[0], "--resume")  # it is done: nothing happens
    assert result.returncode == 0 and len(read_csv(tmp_path / "o" / "history.csv")) == 1
    result = here(capsys, *words, val[1], "--resume")
    assert result.returncode == 1
    line = error_lines(result)[-1]
    assert "trained with validation photos 3 (digest " in line and ", not 4 (digest " in line


@pytest.mark.parametrize("other, fact", [
    (["--dropout", "0"], "--dropout 0.1, not 0.0"),
    (["--label-smoothing", "0"], "--label-smoothing 0.1, not 0.0"),
    (["--width", "32"], "--width 16, not 32"),
    (["--hold-out", "3", "--captions", "other.json"], "--hold-out None, not 3"),
    (["--seed", "1"], "--seed 0, not 1"),
    (["--captions", "other.json"], "training captions 35 (digest "),
    (["--weights", "vit.bin"], "starting weights ")])
def test_another_pretraining_is_not_resumed(trained, photos, capsys, monkeypatch, other, fact):
    monkeypatch.chdir(trained)
    if "vit.bin" in other:
        torch.save(tiny_base(seed=5).encoder.state_dict(), "vit.bin")
    captions = captions_of(photos)
    write(Path("other.json"), coco(captions | {"0_000.png": ["a red circle", *SQUARES[1:]]}))
    result = here(capsys, *pretrain_words(trained, "base"), "--resume", *other)
    assert result.returncode == 1
    assert f"it was trained with {fact}" in error_lines(result)[-1]
