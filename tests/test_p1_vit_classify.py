"""p1_vit_classify.py and hw3_1.sh as a user runs them, good input and bad."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from conftest import (
    CLASSES,
    ROOT,
    TINY,
    bash,
    error_lines,
    make_folder,
    make_photo,
    run_inside,
    run_script,
    write_classifier,
)
from PIL import Image

import p1_vit_classify
from data.files import print_some
from data.photos import list_images
from metrics import accuracy
from models.classifier import load_classifier

SCRIPT = "p1_vit_classify.py"
CPU = ["--device", "cpu", "--precision", "fp32"]


@pytest.fixture
def here(capsys):
    """As ``run_script(SCRIPT, …)``, in this process."""
    return partial(run_inside, p1_vit_classify, capsys=capsys)


def read_csv(path):
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file))


def reference_probabilities(checkpoint, paths):
    """Photo by photo, without the project's batches."""
    classifier = load_classifier(checkpoint)
    transform = classifier.transform
    rows = []
    for path in paths:
        pixels = torch.from_numpy(transform(Image.open(path).convert("RGB")).copy())
        with torch.no_grad():
            images = transform.normalize(pixels[None])
            rows.append(classifier.model(images).softmax(1)[0].numpy())
    return np.stack(rows)


# --- predict ------------------------------------------------------------------------------------


def test_predict_writes_the_contracts_csv(tmp_path, checkpoint, here):
    # PEERS: header image_id,label; int(name.split('_')[0]) at prediction time; split('.')[0];
    # results appended to yesterday's file
    folder = tmp_path / "my photos"
    paths = [make_photo(folder / name, label=n) for n, name in enumerate(
        ["a.b.JPG", "no label.png", "0_0.webp", "été 犬.bmp"])]
    output = tmp_path / "made" / "by us" / "out.csv"
    for run in (here, partial(run_script, SCRIPT)):
        result = run("predict", "--images", folder, "--output", output, "--checkpoint", checkpoint,
                     "--batch-size", "3", *CPU)
        assert result.returncode == 0, result.stderr
    rows = read_csv(output)
    assert rows[0] == ["filename", "label"]
    paths = sorted(paths)
    assert [row[0] for row in rows[1:]] == [path.name for path in paths]
    expected = reference_probabilities(checkpoint, paths).argmax(1)
    assert [row[1] for row in rows[1:]] == [CLASSES[i] for i in expected]
    assert sorted(path.name for path in output.parent.iterdir()) == ["out.csv"]
    assert "name 0" in result.stdout or "name 1" in result.stdout or "name 2" in result.stdout


def test_file_names_that_are_not_utf8_survive(tmp_path, checkpoint, here):
    folder = tmp_path / "photos"
    whole = make_photo(folder / "x.png").read_bytes()
    name = b"caf\xe9.png"
    with open(os.path.join(os.fsencode(folder), name), "wb") as file:
        file.write(whole)
    result = here("predict", "--images", folder, "--output", tmp_path / "o.csv", "--checkpoint",
                  checkpoint, *CPU)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "o.csv").read_bytes().splitlines()[1].split(b",")[0] == name


def test_a_long_list_is_printed_in_part(capsys):
    print_some([f"line {number}" for number in range(20)], 20, "out.csv")
    assert capsys.readouterr().out.splitlines() == [f"line {number}" for number in range(20)]
    print_some((f"caf\udce9 {number}" for number in range(23)), 23, "out.csv")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "caf\ufffd 0" and lines[19:] == [
        "caf\ufffd 19", "… and 3 more in out.csv"]


def test_every_awkward_photo_is_labelled(tmp_path, checkpoint):
    folder = tmp_path / "photos"
    make_photo(folder / "plain.jpg")
    noise = np.random.default_rng(0).integers(0, 255, (30, 20), dtype=np.uint8)
    grey = Image.fromarray(noise)
    grey.convert("RGB").convert("CMYK").save(folder / "cmyk.jpg")
    grey.quantize(8).save(folder / "palette.png")
    grey.save(folder / "grey.png")
    Image.fromarray(noise.astype(np.uint16) * 257).save(folder / "deep.png")
    grey.convert("RGBA").save(folder / "alpha.png")
    grey.resize((1, 5000)).save(folder / "thin.png")
    grey.resize((5000, 1)).save(folder / "flat.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    grey.save(folder / "turned.jpg", exif=exif)
    result = run_script(SCRIPT, "predict", "--images", folder, "--output", tmp_path / "o.csv",
                        "--checkpoint", checkpoint, *CPU)
    assert result.returncode == 0 and not error_lines(result), result.stderr
    assert len(read_csv(tmp_path / "o.csv")) == 1 + 9


def test_unreadable_among_good_ones(tmp_path, checkpoint, here):
    folder = make_folder(tmp_path / "photos", 2)
    whole = make_photo(tmp_path / "whole.jpg", size=(200, 200)).read_bytes()
    (folder / "text.jpg").write_text("hello")
    (folder / "cut.jpg").write_bytes(whole[:500])
    (folder / "zero.png").write_bytes(b"")
    result = here("predict", "--images", folder, "--output", tmp_path / "o.csv", "--checkpoint",
                  checkpoint, *CPU)
    assert result.returncode == 3
    assert len(read_csv(tmp_path / "o.csv")) == 1 + 6
    lines = error_lines(result)
    assert len(lines) == 3 and all(line.startswith("unreadable: ") for line in lines)
    for name, line in zip(("cut.jpg", "text.jpg", "zero.png"), lines, strict=True):
        assert name in line


def test_an_ensemble_is_the_mean_probability(tmp_path, photos, here):
    files = [write_classifier(tmp_path / f"{n}.safetensors", seed=n, image_size=16 * (n + 1))
             for n in range(3)]
    result = here("eval", "--images", photos, "--checkpoint", *files, *CPU)
    assert result.returncode == 0, result.stderr
    paths = list_images(photos)
    mean = np.mean([reference_probabilities(file, paths) for file in files], axis=0)
    expected = accuracy.summarize(mean, np.array([int(path.name[0]) for path in paths]))
    printed = json.loads(result.stdout)
    assert printed["correct"] == expected["correct"] and printed["total"] == 12
    assert printed["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_a_member_that_does_not_fit_is_an_error(tmp_path, photos, checkpoint):
    # PEERS: a failed ensemble member swallowed
    other = write_classifier(tmp_path / "other.safetensors", classes=["2", "1", "0"])
    result = run_script(SCRIPT, "predict", "--images", photos, "--output", tmp_path / "o.csv",
                        "--checkpoint", checkpoint, other, *CPU)
    assert result.returncode == 1 and not (tmp_path / "o.csv").exists()
    assert len(error_lines(result)) == 1 and "different labels" in result.stderr


# --- eval ---------------------------------------------------------------------------------------


def test_eval_reports_and_draws(tmp_path, photos, checkpoint):
    result = run_script(SCRIPT, "eval", "--images", photos, "--checkpoint", checkpoint, *CPU,
                        "--figures", tmp_path / "figures", "--output", tmp_path / "r.json")
    assert result.returncode == 0, result.stderr
    printed = json.loads((tmp_path / "r.json").read_text())
    assert printed["total"] == 12 and printed["accuracy"] == printed["correct"] / 12
    low, high = printed["accuracy_95"]
    assert 0 <= low <= printed["accuracy"] <= high <= 1
    assert {label: (row["name"], row["total"]) for label, row in printed["per_class"].items()} == {
        label: (f"name {label}", 4) for label in CLASSES}
    with open(tmp_path / "figures" / "confusion.csv", newline="") as file:
        confused = list(csv.DictReader(file))
    assert sum(int(row["count"]) for row in confused) == 12
    assert sum(int(row["count"]) for row in confused
               if row["true"] == row["predicted"]) == printed["correct"]
    for name in ("confusion.png", "errors.png"):
        assert min(Image.open(tmp_path / "figures" / name).size) > 300
        assert name in result.stderr
    with open(tmp_path / "figures" / "classes.csv", newline="") as file:
        assert [int(row["correct"]) for row in csv.DictReader(file)] == [
            row["correct"] for row in printed["per_class"].values()]


def test_average_is_the_mean_of_the_weights(tmp_path, here):
    files = [write_classifier(tmp_path / f"{n}.safetensors", seed=n) for n in range(2)]
    result = run_script(SCRIPT, "average", "--checkpoint", *files, "--output",
                        tmp_path / "m.safetensors")
    assert result.returncode == 0, result.stderr
    first, second, mean = (load_classifier(path).model.state_dict()
                           for path in (*files, tmp_path / "m.safetensors"))
    for key, value in mean.items():
        torch.testing.assert_close(value, (first[key] + second[key]) / 2, atol=1e-3, rtol=1e-3)
    other = write_classifier(tmp_path / "other.safetensors", image_size=48)
    result = here("average", "--checkpoint", files[0], other, "--output",
                  tmp_path / "no.safetensors")
    assert result.returncode == 1 and "differ in architecture" in result.stderr
    assert not (tmp_path / "no.safetensors").exists()


def test_eval_records_its_result_in_the_checkpoint(tmp_path, photos, here):
    file = write_classifier(tmp_path / "a.safetensors")
    before = load_classifier(file).model.state_dict()
    result = here("eval", "--images", photos, "--checkpoint", file, "--record", "random photos",
                  *CPU)
    after = load_classifier(file)
    printed, measured = json.loads(result.stdout), after.metadata["measured"]["random photos"]
    assert measured == {key: printed[key] for key in p1_vit_classify.RECORDED}
    assert all(torch.equal(before[key], value) for key, value in after.model.state_dict().items())


def test_labels_may_come_from_a_csv(tmp_path, photos, checkpoint, here):
    table = tmp_path / "labels.csv"
    names = [path.name for path in list_images(photos)]
    table.write_text("filename,label\n" + "".join(f"{name},1\n" for name in names))
    result = here("eval", "--images", photos, "--labels", table, "--checkpoint", checkpoint, *CPU)
    assert list(json.loads(result.stdout)["per_class"]) == ["1"]


def test_the_interval_is_wilsons():
    # Newcombe 1998, Table I, method 3: 81 of 263
    assert accuracy.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert accuracy.wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    with pytest.raises(ValueError):
        accuracy.wilson_interval(1, 0)


def test_confusions_and_confident_errors():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
    targets = np.array([1, 1, 0, 0])
    confused = accuracy.confusions(targets, probabilities.argmax(1))
    assert confused.tolist() == [[0, 1, 2], [1, 0, 1], [1, 1, 1]]
    np.testing.assert_array_equal(
        accuracy.confusion_matrix(confused, np.arange(2)), [[0, 2], [1, 1]])
    assert accuracy.confident_errors(probabilities, targets).tolist() == [0, 3, 2]


def test_a_difference_inside_the_interval_is_called_none():
    rows = accuracy.compare([(90, 100), (85, 100), None, (50, 100)])
    assert rows[2] is None and [row.worse for row in rows if row] == [False, False, True]
    assert [round(row.behind, 9) for row in rows if row] == [0, -0.05, -0.4]
    assert rows[0].share == 0.9 and not accuracy.compare([(24, 24)])[0].worse
    np.testing.assert_allclose(rows[0].interval, (0.826, 0.945), atol=5e-4)


# --- train and sweep ----------------------------------------------------------------------------

TINY_RUN = ["--model", TINY, "--image-size", "32", "--epochs", "6", "--batch-size", "8", "--lr",
            "1e-3", "--augment", "flip", "--workers", "0", *CPU]


def test_training_learns_and_the_checkpoint_describes_itself(tmp_path, here):
    train, val = make_folder(tmp_path / "train", 12), make_folder(tmp_path / "val", 4, seed=1)
    (tmp_path / "id2label.json").write_text('{"0": "red", "1": "green", "2": "blue"}')
    out = tmp_path / "out"
    result = run_script(SCRIPT, "train", "--train", train, "--val", val, "--out", out, *TINY_RUN,
                        "--about", "random photos, CC0")
    assert result.returncode == 0, result.stderr
    best = load_classifier(out / "best.safetensors")
    assert best.names["2"] == "blue" and best.metadata["about"] == "random photos, CC0"
    assert best.metadata["trained_on"] == {"folder": "train", "images": 36}
    assert best.metadata["recipe"]["lr"] == 1e-3 and best.metadata["metrics"]["val_accuracy"] == 1
    assert str(tmp_path) not in json.dumps(best.metadata)
    assert "best.safetensors" in result.stderr and "curves.png" in result.stderr
    assert min(Image.open(out / "curves.png").size) > 300
    evaluated = here("eval", "--images", val, "--checkpoint", out / "best.safetensors", *CPU)
    assert json.loads(evaluated.stdout)["accuracy"] == 1


def test_freeze_trains_the_head_alone(tmp_path, here):
    folder = make_folder(tmp_path / "train", 4)
    source = write_classifier(tmp_path / "source.safetensors")
    result = here("train", "--train", folder, "--hold-out", "--out", tmp_path / "out", "--weights",
                  source, "--freeze", *TINY_RUN, "--epochs", "1")
    assert result.returncode == 0, result.stderr
    before, after = (load_classifier(path).model.state_dict()
                     for path in (source, tmp_path / "out" / "last.safetensors"))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"head.weight", "head.bias"}


# Gradient descent on all photos at once, which comes to rest where the loss is least.
PLAIN = ["--batch-size", "24", "--optimizer", "sgd", "--momentum", "0", "--clip-norm", "0",
         "--schedule", "constant", "--warmup", "0", "--augment", "none", "--label-smoothing", "0"]


@pytest.mark.parametrize("balance", [False, True])
def test_balance_unlearns_how_frequent_a_label_is(tmp_path, here, balance):
    folder = tmp_path / "photos"
    for number in range(24):  # all alike: nothing but the frequency can be learned
        make_photo(folder / f"{0 if number < 16 else 1 if number < 20 else 2}_{number}.png")
    result = here("train", "--train", folder, "--out", tmp_path / "out", "--freeze", *TINY_RUN,
                  *PLAIN, "--lr", "0.05", *["--balance"] * balance)
    assert result.returncode == 0, result.stderr
    photo = list_images(folder)[:1]
    learned = reference_probabilities(tmp_path / "out" / "last.safetensors", photo)[0]
    expected = [1 / 3] * 3 if balance else [4 / 6, 1 / 6, 1 / 6]
    np.testing.assert_allclose(learned, expected, atol=0.01)


def test_no_decay_on_norms_biases_and_position_embedding():
    from timm.optim import param_groups_layer_decay

    from models.classifier import build_classifier

    model = build_classifier(TINY, CLASSES, image_size=32).model
    groups = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim == 1 or name in ("pos_embed", "cls_token")
        assert decay[id(parameter)] == (0 if exempt else 0.05), name
    assert scale[id(model.head.weight)] == 1
    assert scale[id(model.blocks[-1].attn.qkv.weight)] == 2 * scale[
        id(model.blocks[-2].attn.qkv.weight)]


def test_sweep_makes_one_table_and_one_figure(tmp_path):
    folder = make_folder(tmp_path / "photos", 4)
    out = tmp_path / "out"
    result = run_script(SCRIPT, "sweep", "--train", folder, "--val", folder, "--out", out,
                        "--vary", "lr=1e-3,1e30", "--vary", "pretrained=true,false",
                        "--weights", write_classifier(tmp_path / "w.safetensors"),
                        "--model", TINY, "--image-size", "32", "--epochs", "1", "--batch-size", "8",
                        "--optimizer", "sgd", *CPU)
    assert result.returncode == 0, result.stderr
    rows = read_csv(out / "sweep.csv")
    assert rows[0] == ["lr", "pretrained", "train accuracy", "val accuracy", "95 % interval",
                       "against the best", "epoch", "best val accuracy", "best epoch"]
    assert [row[:2] for row in rows[1:]] == [
        ["1e-3", "true"], ["1e-3", "false"], ["1e30", "true"], ["1e30", "false"]]
    assert [row[2] == "diverged" for row in rows[1:]] == [False, False, True, True]
    assert (out / "sweep.md").read_text().count("\n| 1e") == 4
    assert min(Image.open(out / "curves.png").size) > 300


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("words, status, message", [
    ([], 2, "COMMAND"),
    (["predict"], 2, "--output"),
    (["predict", "--output", "o.csv", "--vary", "lr=1"], 2, "--vary"),
    (["predict", "--output", "o.csv", "--batch-size", "0"], 2,
     "--batch-size: must be a whole number"),
    (["train", "--train", "x"], 2, "--out"),
    (["train", "--train", "x", "--out", "y", "--label-smoothing", "2"], 2, "--label-smoothing"),
    (["train", "--train", "x", "--out", "y", "--augment", "twirl"], 2, "--augment"),
    (["sweep", "--train", "x", "--out", "y", "--vary", "lr=1,x"], 2, "--lr"),
    (["sweep", "--train", "x", "--out", "y", "--vary", "lr"], 1, "KEY=VALUE"),
    (["predict", "--images", "nowhere", "--output", "o.csv"], 1, "nowhere does not exist"),
    (["predict", "--images", "empty", "--output", "o.csv"], 1, "no image in empty"),
    (["predict", "--images", "photos", "--output", "file/o.csv"], 1, "cannot write file/o.csv"),
    (["predict", "--images", "photos", "--output", "empty"], 1, "empty is a folder"),
    (["predict", "--images", "photos", "--output", "o.csv", "--checkpoint", "no.safetensors"], 1,
     "no.safetensors does not exist"),
    (["predict", "--images", "bad", "--output", "o.csv", "--checkpoint", "ok.safetensors"], 1,
     "none of 1 images could be read (the first, bad/0_x.jpg"),
    (["predict", "--images", "photos", "--output", "o.csv", "--checkpoint", "code.pth"], 1,
     "holds code or objects"),
    (["predict", "--images", "photos", "--output", "o.csv", "--checkpoint", "cut.safetensors"], 1,
     "cut.safetensors"),
    (["eval", "--images", "odd", "--checkpoint", "ok.safetensors"], 1, "label 99 in odd is none"),
    (["eval", "--images", "unlabelled"], 1, "photo.png carries no label"),
    (["eval", "--images", "photos", "--labels", "no.csv"], 1, "cannot read no.csv"),
    (["eval", "--images", "photos", "--record", "photos", "--model", "test_vit"], 1,
     "test_vit is not a checkpoint of this project"),
    (["eval", "--images", "photos", "--record", "photos", "--checkpoint", "a", "b"], 1,
     "--record takes one checkpoint"),
    (["sweep", "--train", "photos", "--out", "y", "--vary", "lr=1"], 1, "give --val DIR"),
    (["train", "--train", "photos", "--val", "odd", "--out", "y"], 1, "label 99 in odd is none"),
    (["train", "--train", "bad2", "--out", "y"], 1,
     "bad2/0_x.jpg cannot be read: not an image; repair or remove it"),
    (["train", "--train", "photos", "--names", "broken.json", "--out", "y"], 1, "not valid JSON"),
    (["train", "--train", "photos", "--names", "list.json", "--out", "y"], 1, "JSON object"),
])
def test_bad_input_gets_one_line(
        tmp_path, checkpoint, here, monkeypatch, words, status, message):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "photos", 1)
    make_photo(tmp_path / "odd" / "99_x.png")
    make_photo(tmp_path / "unlabelled" / "photo.png")
    (tmp_path / "empty").mkdir()
    for name in ("bad/0_x.jpg", "bad2/0_x.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("text")
    make_photo(tmp_path / "bad2" / "1_x.png")
    (tmp_path / "file").write_text("")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "ok.safetensors").write_bytes(checkpoint.read_bytes())
    (tmp_path / "cut.safetensors").write_bytes(checkpoint.read_bytes()[:9000])
    torch.save({"w": Marker()}, tmp_path / "code.pth")
    result = here(*words)
    assert result.returncode == status, result.stderr
    lines = error_lines(result)
    assert len(lines) == 1 and message in lines[0], result.stderr
    assert status != 2 or "--help" in lines[0]
    assert not (tmp_path / "o.csv").exists() and not (tmp_path / "marker").exists()


class Marker:
    def __reduce__(self):
        return (open, ("marker", "w"))


@pytest.mark.parametrize("command", [[], ["predict"], ["eval"], ["train"], ["sweep"]])
def test_help_shows_every_option_with_its_default(here, command):
    result = here(*command, "--help")
    assert result.returncode == 0 and not result.stderr
    if command:
        text = " ".join(result.stdout.split())
        for shown in ("--batch-size N images in a batch (default: ", "choice (default: 0)"):
            assert shown in text


def test_ctrl_c_leaves_nothing_half_written(tmp_path, checkpoint):
    folder = tmp_path / "photos"
    make_photo(folder / "0.png", size=(1500, 1500))
    for number in range(1, 400):
        os.link(folder / "0.png", folder / f"{number}.png")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / SCRIPT), "predict", "--images", str(folder), "--output",
         str(tmp_path / "out" / "o.csv"), "--checkpoint", str(checkpoint), "--batch-size", "1",
         *CPU], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        # Where the tests run in the background, a shell has made them deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    seen = b""
    while b"classify" not in seen:  # the progress bar has appeared
        read = os.read(process.stderr.fileno(), 4096)
        assert read, seen.decode()
        seen += read
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130
    assert "interrupted" in rest and "Traceback" not in rest
    assert not (tmp_path / "out" / "o.csv").exists()


def test_a_missing_package_is_named_in_one_line(tmp_path):
    (tmp_path / "PIL.py").write_text("raise ModuleNotFoundError('no', name='PIL')")
    result = run_script(SCRIPT, "predict", "--output", "o.csv", PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert len(error_lines(result)) == 1 and "package PIL is missing" in result.stderr


# --- hw3_1.sh -----------------------------------------------------------------------------------


def test_hw3_1_works_from_anywhere_on_the_shipped_checkpoint(tmp_path):
    folder = tmp_path / "my photos"
    folder.mkdir()
    for name in ("persian", "siamese"):
        (folder / f"{name} 1.jpg").write_bytes((ROOT / "samples" / f"{name}.jpg").read_bytes())
    result = bash(ROOT / "hw3_1.sh", "my photos", "new folder/out.csv", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert read_csv(tmp_path / "new folder" / "out.csv") == [
        ["filename", "label"], ["persian 1.jpg", "23"], ["siamese 1.jpg", "32"]]


@pytest.mark.parametrize("words, status, message", [
    (["a", "b.json", "c.csv"], 1, "image folder a does not exist"),
    (["a"], 2, "expected IMAGES OUT.csv"),
    (["nowhere", "o.csv"], 1, "nowhere does not exist"),
])
def test_hw3_1_says_what_is_wrong(tmp_path, words, status, message):
    result = bash(ROOT / "hw3_1.sh", *words, cwd=tmp_path)
    assert result.returncode == status and message in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_the_shell_script_keeps_the_courses_rules():
    text = "\n".join(line.split("#")[0] for line in (ROOT / "hw3_1.sh").read_text().splitlines())
    words = set(text.replace(";", " ").split())
    assert not words & {"rm", "sudo", "cp", "mv", "mkdir", "cd", "pip", "pip3"}
    assert "CUDA_VISIBLE_DEVICES" not in text and "python3" in words
