"""peft_caption.py, and hw3_2.sh with three arguments, as a user runs them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import TINY, bash, copy_project, error_lines, make_photo, run_inside, run_script
from makers_files import coco, write
from makers_training import (
    CPU,
    captions_of,
    interrupt_after_first_epoch,
    read_csv,
    weights,
    write_base,
    write_clip,
    write_gpt2,
)

import p2_attn_vis
import peft_caption
from ckpt import registry
from data.compute import Compute
from data.photos import list_images
from data.transform import Transform
from inference import caption_compare
from inference import peft as inference_peft
from inference.caption import caption_images
from inference.peft import BaseSource, open_checkpoint
from inference.scoring import Scoring, measure
from models.captioner_files import load_captioner, save_captioner
from models.checkpoint import read_tensors
from models.decoding import Search, generate
from models.peft import identity_of, load_peft
from models.vit_gpt2 import add_cross_attention
from training import caption, peft_compare
from training import peft as training_peft
from training.loop import Diverged
from training.options import PEFT_LR

SCRIPT = "peft_caption.py"
RUN = ["--hold-out", "3", "--epochs", "2", "--batch-size", "8", "--lr", "0.01", *CPU]


def here(capsys, *words) -> subprocess.CompletedProcess:
    """As ``run_script(SCRIPT, …)``, in this process."""
    return run_inside(peft_caption, *words, capsys=capsys)


def varying_words(world, photos) -> list:
    """``compare_words`` without --rank and --lr, which --vary gives."""
    words = compare_words(world, photos)
    for option in ("--rank", "--lr"):
        place = words.index(option)
        del words[place:place + 2]
    return words


def compare_words(world, photos) -> list:
    words = ["--images", photos, "--captions", world / "c.json"]
    return ["compare", *words, *(f"--eval-{word[2:]}" if str(word).startswith("--") else word
                                 for word in words), "--base", world / "base.safetensors", "--out",
            world / "runs", "--bootstrap", "20", "--clip", world / "clip.safetensors", "--rank",
            "2", "--bottleneck", "4", "--lr-of", "full=0.003", "--html", world / "page.html",
            "--show", "3", *RUN]


@pytest.fixture(scope="module")
def world(tmp_path_factory, photos) -> Path:
    """A folder with a base, captions, a CLIP, and ``runs``, a comparison of every method."""
    world = tmp_path_factory.mktemp("world")
    write_base(world / "base.safetensors")
    write(world / "c.json", coco(captions_of(photos)))
    write_clip(world / "clip.safetensors")
    result = run_script(SCRIPT, *compare_words(world, photos))
    assert result.returncode == 0, result.stderr
    (world / "photos").symlink_to(photos)
    (world / "lora.safetensors").symlink_to(world / "runs" / "lora" / "best.safetensors")
    write_base(world / "other.safetensors", seed=1)
    return world


def trained_over_gpt2(world, photos, folder: Path, capsys, *words) -> Path:
    """The folder of a lora run over a random decoder_model.bin, which is in it."""
    write_gpt2(folder)
    result = here(capsys, "train", "--method", "lora", "--rank", "2", "--images", photos,
                  "--captions", world / "c.json", "--decoder", folder / "decoder_model.bin",
                  "--out", folder / "out", *words, *RUN, "--epochs", "1")
    assert result.returncode == 0, result.stderr
    return folder


# --- compare ------------------------------------------------------------------------------------


def test_a_comparison_is_one_table_of_every_method(world):
    rows = read_csv(world / "runs" / "compared.csv")
    assert [row["method"] for row in rows] == list(PEFT_LR)
    for row in rows:
        folder = world / "runs" / row["method"]
        tensors, metadata = read_tensors(folder / "best.safetensors")
        count = sum(tensor.numel() for tensor in tensors.values())
        assert int(row["trained parameters"]) == count and metadata["kind"] == "peft"
        result = json.loads((folder / "result.json").read_text())
        for search in ("greedy", "beam 3"):
            for metric in ("CIDEr", "CLIPScore"):
                low, high = result[search]["intervals_95"][metric]
                assert row[f"{metric}, {search}"] == f"{result[search]['metrics'][metric]:.4g}"
                assert row[f"{metric}, {search}, 95 %"] == f"{low:.4g} - {high:.4g}"
        best = max(read_csv(folder / "history.csv"), key=lambda epoch: float(epoch["val_CIDEr"]))
        assert row["best epoch"] == best["epoch"] == str(metadata["metrics"]["epoch"])
        assert metadata["recipe"]["lr"] == (0.003 if row["method"] == "full" else 0.01)
        assert str(world.parent) not in json.dumps(metadata)  # no path of this machine
    text = (world / "runs" / "compared.md").read_text()
    assert text.count("\n") == 9 and text.startswith('"Against the best" is') and all(
        f"| {int(row['trained parameters']):,} |" in text for row in rows)
    scores = [float(row["CIDEr, beam 3"]) for row in rows]
    assert [float(row["against the best"]) for row in rows] == pytest.approx(
        [score - max(scores) for score in scores], abs=1e-3)
    assert (world / "runs" / "curves.png").stat().st_size > 10000
    assert (world / "runs" / "most_different.png").stat().st_size > 10000
    assert len(list((world / "runs" / "features").iterdir())) == 3  # one encoding for all


def check_sheet(cards, names, title, path, runs) -> None:
    """The sheet has the three photos whose CIDEr, as the files of the methods have it, differs most
    between the methods, with all captions."""
    tables = [read_csv(runs / name / "per_image_beam3.csv") for name in names]
    spread = [max(scores) - min(scores) for scores in
              ([float(row["CIDEr"]) for row in rows] for rows in zip(*tables, strict=True))]
    most = sorted(range(12), key=lambda photo: -spread[photo])[:3]
    assert path == runs / "most_different.png" and "beam 3" in title[1]
    assert title[0] == "The 3 of 12 photos on which the methods differ most"
    assert [card.name for card in cards] == [tables[0][photo]["filename"] for photo in most]
    for card, photo in zip(cards, most, strict=True):
        rows = [table[photo] for table in tables]
        assert card.captions == [row["caption"] for row in rows] and len(card.references) == 3
        assert card.scores == [{metric: float(row[metric]) for metric in ("CIDEr", "CLIPScore")}
                               for row in rows]


def test_each_method_is_trained_with_each_value_that_concerns_it(
        world, photos, tmp_path, capsys):
    words = varying_words(world, photos)
    words[words.index("--out") + 1] = tmp_path / "runs"
    words[words.index("--html") + 1] = tmp_path / "page.html"
    result = here(capsys, *words, "--methods", "cross", "lora", "--vary", "rank=1,2", "--vary",
                  "lr=0.01,0.003", "--epochs", "1", "--hold-out", "6")
    assert result.returncode == 0, result.stderr
    rows = read_csv(tmp_path / "runs" / "compared.csv")
    assert [(row["method"], row["rank"], row["lr"]) for row in rows] == [
        ("cross", "", "0.01"), ("cross", "", "0.003"), ("lora", "1", "0.01"),
        ("lora", "1", "0.003"), ("lora", "2", "0.01"), ("lora", "2", "0.003")]
    folders = ["cross_lr-0.01", "cross_lr-0.003", "lora_rank-1_lr-0.01", "lora_rank-1_lr-0.003",
               "lora_rank-2_lr-0.01", "lora_rank-2_lr-0.003"]
    for row, name in zip(rows, folders, strict=True):
        tensors, metadata = read_tensors(tmp_path / "runs" / name / "best.safetensors")
        assert metadata["recipe"]["lr"] == float(row["lr"])
        assert metadata["method"] == {"name": row["method"], "cross_width": None,
                                      "options": metadata["method"]["options"]}
        assert metadata["method"]["options"].get("rank") == (int(row["rank"] or 0) or None)
        assert int(row["trained parameters"]) == sum(map(torch.numel, tensors.values()))
    assert len(list((tmp_path / "runs" / "features").iterdir())) == 3  # one encoding for all
    text = (tmp_path / "page.html").read_text()
    assert '"lora, rank 2, lr 0.003"' in text
    assert (tmp_path / "runs" / "most_different.png").is_file()
    result = here(capsys, *words, "--methods", "lora", "--vary", "rank=1,2", "--vary", "lr=0.003",
                  "--epochs", "1", "--hold-out", "6")  # done already
    assert result.returncode == 0 and "epoch 1 " not in result.stderr, result.stderr


@pytest.mark.parametrize("words, status, message", [
    (["rank"], 1, "write KEY=VALUE,VALUE"),
    (["rank=2,x"], 2, "setting rank x: argument --rank"),
    (["rank=2,0"], 2, "setting rank 0: argument --rank"),
    (["ranks=2,4"], 1, "--vary ranks: only sizes and options of the recipe can be varied"),
    (["images=a,b"], 1, "--vary images: only sizes and options of the recipe"),
    (["rank=2,4", "--methods", "cross", "prefix"], 1,
     "--vary rank: none of the methods cross, prefix has this size"),
    (["cross-width=16,17"], 1, "cross-width 17 is no multiple"),
    (["targets=attn.c_attn,nowhere", "--methods", "lora"], 1, "nowhere"),
    (["rank=1", "--vary", "rank=2"], 1, "--vary gives rank twice"),
    (["rank=1,2", "--rank", "3"], 1, "--rank and --vary rank both give this option"),
    (["lr=1,2", "--methods", "full"], 1, "--lr-of and --vary lr both give the learning rate"),
])
def test_wrong_settings_are_refused_before_any_training(
        world, photos, tmp_path, capsys, words, status, message):
    compared = varying_words(world, photos)
    compared[compared.index("--out") + 1] = tmp_path / "runs"
    result = here(capsys, *compared, "--vary", *words)
    assert result.returncode == status and message in error_lines(result)[-1], result.stderr
    assert not list((tmp_path / "runs").glob("*/*.safetensors"))


def test_a_row_that_diverges_does_not_end_the_comparison(
        world, photos, tmp_path, capsys, monkeypatch):
    train = peft_compare.train_over

    def diverging(base, method, images, val, recipe, args):
        if recipe.lr > 1:
            raise Diverged("the loss is nan; lower --lr")
        return train(base, method, images, val, recipe, args)

    monkeypatch.setattr(peft_compare, "train_over", diverging)
    words = varying_words(world, photos)
    words[words.index("--out") + 1] = tmp_path / "runs"
    words[words.index("--html") + 1] = tmp_path / "page.html"
    # the first, and the last, after which no other row is written
    result = here(capsys, *words, "--methods", "cross", "--vary", "lr=9,0.01,8", "--epochs", "1")
    assert result.returncode == 0, result.stderr
    assert [row["lr"] for row in read_csv(tmp_path / "runs" / "compared.csv")] == ["0.01"]
    text = (tmp_path / "runs" / "compared.md").read_text()
    assert all(f"cross, lr {lr}: the training diverged." in text for lr in (9, 8))
    result = here(capsys, *words, "--methods", "cross", "--vary", "lr=9,8")
    assert result.returncode == 1 and "every training diverged" in error_lines(result)[-1]


def test_the_page_of_a_comparison_has_every_caption(world, photos):
    text = (world / "page.html").read_text()
    data = json.loads(re.search(r'id="page">(.*?)</script>', text)[1])
    assert [method["name"] for method in data["methods"]] == list(PEFT_LR)
    assert [entry["name"] for entry in data["entries"]] == [
        path.name for path in list_images(photos)]
    for number, method in enumerate(PEFT_LR):
        rows = read_csv(world / "runs" / method / "per_image_beam3.csv")
        result = json.loads((world / "runs" / method / "result.json").read_text())["beam 3"]
        assert f"CIDEr {result['metrics']['CIDEr']:.3f}" in data["methods"][number]["note"]
        for row, entry in zip(rows, data["entries"], strict=True):
            answer = entry["answers"][number]
            assert (row["caption"], float(row["CIDEr"])) == (answer["text"], answer["score"])
            assert len(entry["truth"]) == 3


def test_a_comparison_goes_on_where_it_was_stopped(world, photos, capsys, tmp_path, monkeypatch):
    sheets = []
    monkeypatch.setattr(caption_compare, "caption_sheet", lambda *parts: sheets.append(parts))
    for part in ("base.safetensors", "c.json", "clip.safetensors"):
        shutil.copy(world / part, tmp_path)
    for part in ("features", "cross", "adapter"):
        shutil.copytree(world / "runs" / part, tmp_path / "runs" / part)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    words = [*compare_words(tmp_path, photos), "--methods", "cross", "adapter", "prefix"]
    with monkeypatch.context() as patch:  # prefix is the first that is still to be trained
        interrupt_after_first_epoch(patch, caption)
        assert here(capsys, *words).returncode == 130
    result = here(capsys, *words)
    assert result.returncode == 0, result.stderr
    check_sheet(*sheets[0], tmp_path / "runs")
    assert "epoch 2" in result.stderr and "epoch 1 " not in result.stderr
    for path, time in before.items():
        assert path.stat().st_mtime_ns == time
    for name in ("cross", "prefix"):
        assert weights(tmp_path / "runs" / name / "last.safetensors") == weights(
            world / "runs" / name / "last.safetensors")
    # a run of another method in a method's place
    shutil.rmtree(tmp_path / "runs" / "prefix")
    shutil.copytree(tmp_path / "runs" / "cross", tmp_path / "runs" / "prefix")
    result = here(capsys, *words)
    assert result.returncode == 1 and "trained with --method cross, not prefix" in (
        error_lines(result)[-1])


def test_every_method_is_a_captioner_like_any_other(world, photos, monkeypatch):
    monkeypatch.setattr(registry, "BASE", world / "base.safetensors")
    base = load_captioner(world / "base.safetensors", "base")
    transform = Transform.from_fields(base.preprocessing)
    pixels = torch.from_numpy(transform.load(list_images(photos)[0]).copy())
    for name in PEFT_LR:
        captioner = open_checkpoint(world / "runs" / name / "best.safetensors")
        memory = captioner.encode(transform.normalize(pixels[None]))
        (_, maps), = p2_attn_vis.word_maps(captioner, memory, [[5, 6, 7]], -1)
        assert maps.shape[2:] == (10, 10) and len(generate(captioner, memory)) == 1
    plain = add_cross_attention(base)
    save_captioner(world / "plain.safetensors", plain)
    assert open_checkpoint(world / "plain.safetensors").decoder.config.cross_width == 16


# --- predict, eval, params ----------------------------------------------------------------------


def test_predict_and_eval_agree_with_the_captioner_itself(world, photos, capsys, tmp_path):
    file = shutil.copy(world / "runs" / "adapter" / "best.safetensors", tmp_path)
    common = ["--checkpoint", file, "--base", world / "base.safetensors", "--beam", "1", *CPU]
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "a.b.jpg").write_text("no photo")
    result = here(capsys, "predict", "--images", tmp_path / "photos", "--output",
                  tmp_path / "o.json", *common)
    assert result.returncode == 3 and "unreadable: " in result.stderr
    written = json.loads((tmp_path / "o.json").read_text())
    assert [line.split(maxsplit=1)[0] for line in result.stdout.splitlines()] == [
        path.name for path in list_images(photos)]
    assert result.stdout.splitlines()[0].endswith(" " + next(iter(written.values())))

    base = load_captioner(world / "base.safetensors", "base")
    paths, texts, _ = caption_images(load_peft(file, base, ""), list_images(photos),
                                     Search(no_repeat_ngram=3), Compute("cpu", "fp32", 5))
    assert written == {path.stem: text for path, text in zip(paths, texts, strict=True)}
    references = captions_of(photos)
    for name, text in list(zip(references, texts, strict=True))[:5]:
        references[name].append(text)  # or every score would be 0
    result = here(capsys, "eval", "--images", photos, "--captions",
                  write(tmp_path / "v.json", coco(references)), "--bootstrap", "20", "--record",
                  "random photos", *common)
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    measured = read_tensors(file)[1]["measured"]["random photos"]
    assert measured["metrics"] == printed["metrics"]
    expected, _ = measure(texts, list(references.values()), Scoring(bootstrap=20))
    for part in ("metrics", "intervals_95"):
        assert printed[part].pop("CLIPScore")  # by the CLIP that ships
    assert printed["metrics"] == expected["metrics"] and printed["images"] == 12
    assert printed["intervals_95"] == expected["intervals_95"]
    assert printed["method"]["options"] == {"bottleneck": 4}


def test_params_counts_a_file_and_the_course_s_size(world, capsys, monkeypatch):
    file = world / "runs" / "lora" / "best.safetensors"
    result = here(capsys, "params", file)
    printed, tensors = json.loads(result.stdout), read_tensors(file)[0]
    assert printed["trained_parameters"] == sum(map(torch.numel, tensors.values()))
    assert printed["bytes"] == file.stat().st_size and printed["fewer_than_the_course_allows"]
    assert set(printed["parts"]) == {"cross_attention", "memory_projection", "lora"}
    assert printed["base"] == identity_of(load_captioner(world / "base.safetensors", "base"))
    monkeypatch.setattr(inference_peft, "COURSE_ENCODER", TINY)
    lines = here(capsys, "params", "--sizes", "--rank", "4").stdout.splitlines()
    assert len(lines) == 7 and "| lora | rank 4 |" in lines[5] and "28,366,848" in lines[2]


# --- the course's decoder_model.bin -------------------------------------------------------------


def test_hw3_2_captions_over_the_courses_gpt2_file(world, photos, tmp_path, monkeypatch, capsys):
    folder = trained_over_gpt2(world, photos, tmp_path / "my gpt2", capsys, "--base",
                               world / "base.safetensors")
    project = copy_project(tmp_path / "my project")  # whose base is the tiny one
    shutil.copy(world / "base.safetensors", project / "ckpt" / "captioner_base.safetensors")
    for label, name in enumerate(["a.b.jpg", "é 1.PNG"]):
        make_photo(tmp_path / "my photos" / name, label)
    result = bash(project / "hw3_2.sh", "my photos", "new/o.json", "my gpt2/decoder_model.bin",
                  cwd=tmp_path, HW3_P2_CKPT=str(folder / "out" / "best.safetensors"))
    assert result.returncode == 0, result.stderr
    assert set(json.loads((tmp_path / "new" / "o.json").read_text())) == {"a.b", "é 1"}
    assert result.stdout.startswith("a.b.jpg ") and "é 1.PNG" in result.stdout
    # a PEFT file of another base
    monkeypatch.setenv("HW3_P2_CKPT", str(world / "runs" / "lora" / "best.safetensors"))
    result = here(capsys, "predict", f"--images={tmp_path / 'my photos'}", "--output",
                  tmp_path / "other.json", "--base", world / "base.safetensors",
                  f"--decoder={folder / 'decoder_model.bin'}", *CPU)
    line = error_lines(result)[-1]
    assert result.returncode == 1 and not (tmp_path / "other.json").exists()
    assert "belongs to another base (its decoder differs); train one for this base" in line
    assert f"--method lora --decoder '{folder / 'decoder_model.bin'}' --base" in line


def test_an_encoder_from_a_file_is_found_beside_the_checkpoint_or_where_it_is_fetched(
    world, photos, tmp_path, capsys, monkeypatch
):
    base = load_captioner(world / "base.safetensors", "base")
    torch.save(base.encoder.state_dict(), tmp_path / "vit.bin")
    folder = trained_over_gpt2(world, photos, tmp_path / "gpt2", capsys, "--encoder", TINY,
                               "--weights", tmp_path / "vit.bin")
    words = ["predict", "--images", photos, "--output", tmp_path / "o.json", "--checkpoint",
             folder / "out" / "best.safetensors", "--decoder", folder / "decoder_model.bin", *CPU]
    result = here(capsys, *words)
    assert result.returncode == 1 and "out/vit.bin does not exist" in error_lines(result)[-1]
    (tmp_path / "ckpt" / "fetched").mkdir(parents=True)
    monkeypatch.setattr(registry, "FOLDER", tmp_path / "ckpt")
    for place in (tmp_path / "ckpt" / "fetched", folder / "out"):
        shutil.copy(tmp_path / "vit.bin", place)
        assert here(capsys, *words).returncode == 0
        (place / "vit.bin").unlink()
    assert len(json.loads((tmp_path / "o.json").read_text())) == 12


def test_a_base_is_named_as_on_the_command_line(tmp_path):
    assert BaseSource("my base").words() == "--base 'my base'"
    assert BaseSource(str(registry.BASE), "d.bin").words() == "--decoder d.bin"
    assert BaseSource("b", "d.bin", "vit", "w.bin").words() == (
        "--decoder d.bin --base b --encoder vit --weights w.bin")
    assert BaseSource(registry.BASE, "d.bin", "vit", None, True).words() == (
        "--decoder d.bin --encoder vit --pretrained")


# --- bad input ----------------------------------------------------------------------------------

PREDICT = "predict --output new.json --images photos "
LORA = PREDICT + "--checkpoint lora.safetensors "
TRAIN = "train --images photos --captions c.json --base base.safetensors --out new --hold-out 3 "
COMPARE = TRAIN.replace("train", "compare", 1) + "--eval-images a --eval-captions b "


@pytest.mark.parametrize("words, message", [
    (PREDICT + "--checkpoint gone.safetensors", "checkpoint gone.safetensors does not exist"),
    (PREDICT + "--checkpoint gone.safetensors --decoder d.bin",
     "gone.safetensors does not exist: give a PEFT"),
    (PREDICT + "--checkpoint base.safetensors", "is a base checkpoint, a captioner is needed"),
    (PREDICT + "--model catr --decoder d.bin", "--decoder names the base of a PEFT file"),
    (LORA + "--vocab v.txt", "--vocab go with --model catr"),
    (LORA + "--base nowhere", "checkpoint nowhere does not exist"),
    (LORA + "--base other.safetensors",
     "train --method lora --base other.safetensors --images DIR --captions JSON --out DIR"),
    (LORA + "--base lora.safetensors", "is a peft checkpoint, a base is needed"),
    (LORA + "--encoder vit_tiny_patch16_224", "--encoder goes with --decoder"),
    (LORA + "--decoder d.bin --pretrained", "goes with --weights FILE or"),
    ("eval --images photos --captions c.json --limit 1 "
     "--checkpoint lora.safetensors --base base.safetensors", "two images"),
    ("params base.safetensors", "is a base checkpoint, a peft is needed"),
    (TRAIN + "--method adapter --rank 4", "--rank has no effect on adapter"),
    (TRAIN + "--method cross --cross-width 7", "--cross-width 7 is no multiple"),
    (TRAIN + "--method lora --targets c_attn", "no linear layer c_attn; its blocks"),
    (TRAIN + "--method adapter --bottleneck 99", "adapter would train 16,"),
    (TRAIN + "--method cross --out runs/cross", "give --resume to continue"),
    (TRAIN + "--method full --hold-out 400", "12 photos are too few to hold out 400"),
    (COMPARE + "--methods lora --show 3", "--show draws where methods differ; give two or more"),
    (TRAIN, "--method"),  # from here on, wrong usage
    ("params", "one of the arguments FILE --sizes is required"),
    ("params lora.safetensors --sizes", "not allowed with"),
    (TRAIN + "--method lora --rank 0", "--rank"),
    (TRAIN + "--method prefix --prefix-length -1", "--prefix-length"),
    (COMPARE + "--lr-of lora:1", "--lr-of"),
    (COMPARE + "--show 0", "--show: must be a whole number from 1"),
    (COMPARE + "--show 61", "--show: must be at most 60"),
])
def test_bad_input_gets_one_line_and_no_output(world, capsys, monkeypatch, words, message):
    monkeypatch.chdir(world)
    monkeypatch.setattr(training_peft, "LIMIT", 14_000)
    result = here(capsys, *words.split())
    lines = error_lines(result)
    assert len(lines) == 1 and message in lines[0] and "unexpected" not in lines[0], result.stderr
    assert result.returncode == (2 if "--help" in lines[0] else 1) and not result.stdout
    assert not (world / "new").exists() and not (world / "new.json").exists()


def test_what_does_not_ship_yet_is_said(photos, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "BASE", tmp_path / "captioner_base.safetensors")
    result = here(capsys, "train", "--method", "cross", "--images", photos, "--captions",
                  write(tmp_path / "c.json", coco(captions_of(photos))), "--out", tmp_path / "o",
                  "--hold-out", "3")
    line, = error_lines(result)
    assert result.returncode == 1
    assert "captioner_base.safetensors does not exist: give --base" in line
