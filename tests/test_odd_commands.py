"""The scripts as people call them: other spellings, several processes, models of their own."""

from __future__ import annotations

import json
import os
import sys
from functools import partial

from utils import UserError

import numpy as np
import pytest
import timm
import torch
from conftest import (
    ROOT,
    TINY,
    error_lines,
    finished,
    make_photo,
    run_inside,
    run_script,
    write_classifier,
)
from makers_training import read_csv
from PIL import Image
from torch import nn

import clip_zeroshot
import p1_attn_map
import p1_pos_embed_vis
import p1_vit_classify
import p2_caption
from data.labels import read_labels
from data.photos import list_images
from figures import charts
from inference.parser import understood
from inference.settings import combinations
from inference.zeroshot import TEMPLATES, read_templates
from metrics import accuracy
from models.classifier import load_classifier
from training.options import AUGMENTATIONS

P1, CLIP, P2, PEFT = "p1_vit_classify.py", "clip_zeroshot.py", "p2_caption.py", "peft_caption.py"
MAPS, TILES, WORDS = "p1_attn_map.py", "p1_pos_embed_vis.py", "p2_attn_vis.py"
CPU = ["--device", "cpu", "--precision", "fp32", "--batch-size", "4"]
TRAIN = ["train", "--model", "test_vit", "--image-size", "32", "--epochs", "1", "--workers", "0"]


# --- names that people type ---------------------------------------------------------------------


@pytest.mark.parametrize("word, names, meant", [
    ("colorjitter", AUGMENTATIONS, "jitter"), ("Color-Jitter", AUGMENTATIONS, "jitter"),
    ("FLIP", AUGMENTATIONS, "flip"), ("RandAugment", AUGMENTATIONS, "rand"),
    ("adam_w", ("adam", "adamw"), "adamw"), ("CosineAnnealingLR", ("cosine",), "cosine"),
    ("prefix-tuning", ("prefix",), "prefix"), ("LoRA", ("lora",), "lora"),
    ("gpu", ("auto", "cpu"), "gpu"), ("blur", AUGMENTATIONS, "blur"),
])
def test_other_spellings_of_a_choice(word, names, meant):
    assert understood(word, names) == meant


def test_a_training_by_other_spellings():
    args = p1_vit_classify.make_parser().parse_args(
        [*TRAIN, "--train", "Train", "--out", "o", "--augment", "flip,colorjitter", "--optimizer",
         "Adam-W", "--schedule", "Cosine", "--precision", "float32"])
    assert (args.train, args.augment, args.optimizer, args.schedule, args.precision) == (
        "Train", ["flip", "jitter"], "adamw", "cosine", "fp32")


@pytest.mark.parametrize("words, message", [
    ([P1, *TRAIN, "--train", "x", "--out", "o", "--augment", "flipp"], "(did you mean flip?)"),
    ([P1, *TRAIN, "--train", "x", "--out", "o", "--optimizer", "lion"], "choose from adam, adamw"),
    ([P1, *TRAIN, "--train", "x", "--out", "o", "--learning-rate", "1"], "(did you mean --lr?)"),
    ([P1, *TRAIN, "--train", "x", "--out", "o", "--epoch=2"], "(did you mean --epochs?)"),
    ([P1, "pred"], "(did you mean predict?)"),
    ([CLIP, "top6"], "(did you mean top5?)"),
    ([MAPS, "--method", "roll-out", "--metod", "last"], "(did you mean --method?)"),
    ([PEFT, "train", "--method", "prefx"], "(did you mean prefix?)"),
    ([P1, "sweep", "--train", ".", "--out", "o", "--hold-out", "--vary", "optimiser=Adam"],
     "(did you mean --optimizer?)"),
])
def test_what_is_not_understood_is_answered_with_the_right_spelling(tmp_path, words, message):
    result = run_script(*words, cwd=tmp_path)
    line, = error_lines(result)
    assert result.returncode == 2 and message in line and not list(tmp_path.iterdir()), line


def test_the_name_of_a_set_of_templates_in_any_case():
    assert read_templates(["Course", "CIFAR"]) == {
        name: list(TEMPLATES[name]) for name in ("course", "cifar")}


# --- environments, and several processes --------------------------------------------------------


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("p*_*.py")) + [CLIP])
def test_a_script_finds_its_modules_where_python_does_not_look(tmp_path, script):
    result = run_script(script, "--help", cwd=tmp_path, PYTHONSAFEPATH="1")
    assert result.returncode == 0 and "usage:" in result.stdout, result.stderr


SPEAKS = f"""import sys; sys.path.insert(0, {str(ROOT)!r})
import utils
from data import processes
processes.BEFORE_SPEAKING = 0
def main():
    utils.write_json(dict(a=1))
    utils.warn("a line")
    utils.write_text(sys.argv[1], "result")
    if len(sys.argv) > 2:
        raise utils.UserError("this process failed")
utils.run(main)
"""


def test_of_several_processes_one_prints_and_any_tells_its_error(tmp_path):
    def process(rank, *words):
        command = [sys.executable, "-c", SPEAKS, "/dev/stdout", *words]
        return finished(*command, RANK=rank, WORLD_SIZE="2", TORCHELASTIC_RUN_ID="x")

    first, second, failed = process("0"), process("1"), process("1", "fail")
    assert json.loads(first.stdout.removesuffix("result")) == {"a": 1}
    assert first.stderr == "a line\n"
    assert second.returncode == 0 and not second.stdout and not second.stderr
    assert failed.returncode == 1 and failed.stderr == "error: this process failed\n"
    left_over = finished(sys.executable, "-c", SPEAKS, tmp_path / "o", RANK="1", WORLD_SIZE="2")
    assert json.loads(left_over.stdout) == {"a": 1}  # torchrun did not start this one


# --- a model that someone fine-tuned ------------------------------------------------------------


def fine_tuned(name=TINY, seed=0, **options) -> nn.Module:
    """What a student trained: one of timm's small models with 3 classes of their own."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **{"num_classes": 3} | options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A folder with best.pth, which holds a model and its moving average, and names.json."""
    folder = tmp_path_factory.mktemp("student")
    torch.save({"epoch": 3, "model": {f"module.{key}": tensor for key, tensor
                                      in fine_tuned().state_dict().items()},
                "state_dict_ema": fine_tuned(seed=1).state_dict()}, folder / "best.pth")
    (folder / "names.txt").write_text("red square\r\ngreen square\r\nblue square\r\n\r\n")
    return folder


def expected(model: nn.Module, photos) -> list[str]:
    """The label of each photo by timm's own preprocessing."""
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    batch = torch.stack([transform(Image.open(path).convert("RGB"))
                         for path in list_images(photos)])
    with torch.inference_mode():
        return [str(index) for index in model(batch).argmax(1).tolist()]


@pytest.fixture
def here(capsys):
    return partial(run_inside, p1_vit_classify, capsys=capsys)


def test_predict_and_eval_with_a_models_own_weights_and_names(tmp_path, photos, student, here):
    model = ["--model", TINY, "--weights", student / "best.pth"]
    result = here("predict", "--images", photos, *model, "--output", tmp_path / "o.csv", *CPU,
                  "--names", student / "names.txt")
    assert result.returncode == 0, result.stderr
    assert [row["label"] for row in read_csv(tmp_path / "o.csv")] == expected(fine_tuned(), photos)
    line, = error_lines(result)
    assert "averaged (EMA) weights, state_dict_ema, which are not used" in line
    assert "--ema-weights" in line and " square" in result.stdout

    result = here("eval", "--images", photos, *model, "--ema-weights", *CPU)
    assert result.returncode == 0 and not error_lines(result), result.stderr
    averaged = expected(fine_tuned(seed=1), photos)
    assert json.loads(result.stdout)["correct"] == sum(
        label == path.name[0] for label, path in zip(averaged, list_images(photos), strict=True))


def test_photos_may_be_labelled_with_the_names(tmp_path, student, here):
    for label, name in enumerate(("red square", "GREEN_square", "blue square")):
        make_photo(tmp_path / "photos" / f"{name}_1.png", label)
    torch.save(fine_tuned().state_dict(), tmp_path / "best.pth")
    (tmp_path / "id2label.json").write_text(
        '{"red square": 0, "green square": 1, "blue square": 2}')
    result = here("eval", "--images", tmp_path / "photos", "--model", TINY, "--weights",
                  tmp_path / "best.pth", *CPU)
    assert result.returncode == 0, result.stderr
    assert f"the names of the classes are from {tmp_path / 'id2label.json'}" in result.stderr
    assert {row["name"] for row in json.loads(result.stdout)["per_class"].values()} == {
        "red square", "green square", "blue square"}


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_a_convolutional_network_inside_a_module(tmp_path, photos, name, here):
    model = fine_tuned(name)
    torch.save({"state_dict": {f"model.net.{key}": tensor for key, tensor
                               in model.state_dict().items()}}, tmp_path / "last.ckpt")
    result = here("predict", "--images", photos, "--model", name, "--weights",
                  tmp_path / "last.ckpt", "--output", tmp_path / "o.csv", *CPU)
    assert result.returncode == 0, result.stderr
    assert [row["label"] for row in read_csv(tmp_path / "o.csv")] == expected(model, photos)
    result = here(*TRAIN, "--train", photos, "--model", name, "--image-size", "64", "--weights",
                  tmp_path / "last.ckpt", "--out", tmp_path / "out", "--lr", "0", *CPU)
    assert result.returncode == 0, result.stderr
    stem = next(iter(dict(model.named_parameters())))
    trained = load_classifier(tmp_path / "out" / "last.safetensors").model.state_dict()
    torch.testing.assert_close(trained[stem], model.state_dict()[stem], atol=1e-3, rtol=1e-2)


def test_several_files_of_one_architecture_are_an_ensemble(tmp_path, photos, here):
    files = [tmp_path / f"{seed}.pth" for seed in (0, 1)]
    for seed, file in enumerate(files):
        torch.save(fine_tuned(seed=seed).state_dict(), file)
    words = ["eval", "--images", photos, "--model", TINY, *CPU, "--weights"]
    both, first, second = (json.loads(here(*words, *chosen).stdout)
                           for chosen in (files, files[:1], files[1:]))
    assert len({result["loss"] for result in (both, first, second)}) == 3


@pytest.mark.parametrize("pooling", [{}, {"global_pool": "avg"}])
def test_a_training_starts_from_averaged_weights(tmp_path, photos, here, pooling):
    averaged = fine_tuned(seed=1, **pooling)
    torch.save({"state_dict": fine_tuned(**pooling).state_dict(),
                "state_dict_ema": averaged.state_dict()}, tmp_path / "best.pth")
    result = here(*TRAIN, "--train", photos, "--weights", tmp_path / "best.pth", "--ema-weights",
                  "--out", tmp_path / "out", "--lr", "0", *CPU)
    assert result.returncode == 0, result.stderr
    trained = load_classifier(tmp_path / "out" / "last.safetensors").model.state_dict()
    for name in ("blocks.0.mlp.fc1.weight", "fc_norm.weight" if pooling else "norm.weight"):
        torch.testing.assert_close(trained[name], averaged.state_dict()[name], atol=1e-3, rtol=0.01)


def test_figures_of_a_models_own_weights(tmp_path, photos, student, capsys):
    words = ["--images", photos, "--limit", "2", "--model", TINY, "--weights",
             student / "best.pth", "--ema-weights"]
    result = run_inside(p1_attn_map, *words, "--names", student / "names.txt", "--method",
                        "relevance", "--class", "Blue_Square", "--output", tmp_path, *CPU,
                        capsys=capsys)
    assert result.returncode == 0, result.stderr
    assert all(row["name"].endswith(" square") for row in json.loads(result.stdout)["images"])
    other = write_classifier(tmp_path / "other.safetensors")
    for option in ([], ["--ema-weights"]):
        result = run_inside(p1_pos_embed_vis, "--model", TINY, "--weights", student / "best.pth",
                            "--output", tmp_path / "p.png", "--npz", tmp_path / "p.npz", *option,
                            capsys=capsys)
        assert result.returncode == 0, result.stderr
        positions = fine_tuned(seed=len(option)).pos_embed[0, 1:]
        similarity = torch.nn.functional.cosine_similarity(positions[:, None], positions, dim=-1)
        np.testing.assert_allclose(np.load(tmp_path / "p.npz")["similarity"],
                                   similarity.detach(), atol=1e-5)
    result = run_inside(p1_pos_embed_vis, "--checkpoint", other, "--model", TINY, "--weights",
                        student / "best.pth", "--output", tmp_path / "p.png", capsys=capsys)
    assert list(json.loads(result.stdout)) == ["other", TINY], result.stderr


@pytest.mark.parametrize("words, message", [
    (["--model", TINY, "--ema-weights"], "give --weights FILE"),
    (["--model", TINY, TINY, TINY, "--weights", "a.pth", "a.pth"], "2 --weights for 3 models"),
    (["--model", TINY, "--weights", "a.pth", "--ema-weights"], "a.pth holds no averaged (EMA)"),
    (["--model", TINY, "--weights", "a.pth", "--names", "two.txt"],
     "two.txt names 2 classes (cat, dog, …), the model has 3 (0, 1, 2, …)"),
    (["--model", TINY, "--weights", "a.pth", "--names", "from1.json"], "the model has 3 (0, 1, 2"),
    (["--model", TINY, "--weights", "a.pth", "--names", "a.pth"], "a.pth is not UTF-8 text"),
    (["--model", TINY, "--weights", "bare.pth"], "bare.pth has no classes; train --model"),
    (["--checkpoint", "a.pth", "--weights", "a.pth"], "goes with a model's name"),
])
def test_weights_and_names_that_do_not_fit(tmp_path, photos, here, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    torch.save(fine_tuned().state_dict(), "a.pth")
    torch.save(fine_tuned(num_classes=0).state_dict(), "bare.pth")
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    (tmp_path / "from1.json").write_text('{"1": "cat", "2": "dog", "3": "bird"}')
    result = here("predict", "--images", photos, "--output", "o.csv", *words, *CPU)
    assert result.returncode == 1 and message in error_lines(result)[-1], result.stderr
    assert not (tmp_path / "o.csv").exists()


def test_two_checkpoints_with_one_stem_are_both_drawn(tmp_path, capsys):
    files = [write_classifier(tmp_path / place, image_size=size) for place, size in (
        ("a/best.safetensors", 32), ("b/best.safetensors", 48), ("b/last.safetensors", 64))]
    words = [word for file in files for word in ("--checkpoint", file)]
    result = run_inside(p1_pos_embed_vis, *words, "--output", tmp_path / "p.png", capsys=capsys)
    assert {name: row["grid"] for name, row in json.loads(result.stdout).items()} == {
        "a/best.safetensors": [2, 2], "b/best.safetensors": [3, 3], "last": [4, 4]}


# --- many classes -------------------------------------------------------------------------------


def test_the_classes_that_are_shown_of_many():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 5000, 3000)
    predictions = np.where(rng.random(3000) < 0.5, targets, rng.integers(0, 5000, 3000))
    confused = accuracy.confusions(targets, predictions)
    assert confused.shape[1] == 3 and confused[:, 2].sum() == 3000
    shown = accuracy.classes_to_show(confused, 60)
    errors = {label: sum((targets == label) & (predictions != label))
              + sum((predictions == label) & (targets != label)) for label in range(5000)}
    assert len(shown) == 60 and shown.tolist() == sorted(shown)
    assert min(errors[label] for label in shown) >= max(
        count for label, count in errors.items() if label not in shown)
    matrix = accuracy.confusion_matrix(confused, shown)
    for row, true in enumerate(shown):
        for column, guess in enumerate(shown):
            assert matrix[row, column] == sum((targets == true) & (predictions == guess))
    few = accuracy.confusions(np.array([7, 7, 90]), np.array([7, 90, 90]))
    assert accuracy.classes_to_show(few, 60).tolist() == [7, 90]
    assert accuracy.classes_to_show(few, 1).tolist() == [7]
    right = accuracy.confusions(np.arange(9), np.arange(9))
    assert accuracy.classes_to_show(right, 4).tolist() == [0, 1, 2, 3]


def test_a_thousand_classes_are_a_table_and_a_figure_of_some(tmp_path, here):
    names = [f"a class with a name of its own, number {number}" for number in range(1000)]
    file = write_classifier(tmp_path / "m.safetensors", [str(i) for i in range(1000)])
    (tmp_path / "names.json").write_text(json.dumps(names))
    folder = tmp_path / "photos"
    for label in range(70):
        make_photo(folder / f"{label}_{label}.png", label, seed=label, size=(20, 20))
    result = here("eval", "--images", folder, "--checkpoint", file, "--names",
                  tmp_path / "names.json", "--figures", tmp_path / "out", *CPU)
    assert result.returncode == 0, result.stderr
    assert "confusion.png shows 60 of " in result.stderr
    rows = read_csv(tmp_path / "out" / "confusion.csv")
    assert sum(int(row["count"]) for row in rows) == 70
    assert rows[0]["true name"] == names[int(rows[0]["true"])]
    assert max(Image.open(tmp_path / "out" / "confusion.png").size) < 4000


def test_the_result_is_written_before_the_figures(tmp_path, photos, checkpoint, here, monkeypatch):
    def fail(*words):
        raise MemoryError("no memory for figures")

    monkeypatch.setattr(charts, "confusion", fail)
    result = here("eval", "--images", photos, "--checkpoint", checkpoint, "--figures", tmp_path,
                  *CPU)
    assert result.returncode == 1 and json.loads(result.stdout)["total"] == 12
    assert len(read_csv(tmp_path / "confusion.csv")) > 2


# --- captions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("predictions", [{"other": "a dog", "b": "a cat"}, {}])
def test_predictions_of_other_photos_are_one_line(tmp_path, capsys, predictions):
    (tmp_path / "p.json").write_text(json.dumps(predictions))
    (tmp_path / "c.json").write_text(json.dumps({
        "images": [{"file_name": f"{i}.jpg", "id": i} for i in range(5)],
        "annotations": [{"image_id": i, "caption": "a dog", "id": i} for i in range(5)]}))
    result = run_inside(p2_caption, "score", "--predictions", tmp_path / "p.json", "--captions",
                        tmp_path / "c.json", "--allow-missing", capsys=capsys)
    line, = error_lines(result)
    assert result.returncode == 1 and "no prediction is of an image that has references" in line
    assert "images 0.jpg, 1.jpg, 2.jpg, …" in line


# --- thirty more situations ---------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "filename;label\r\n{0};0\r\n{1};1\r\n", "Filename\tLabel\n{0}\t0\n{1}\t1\n",
    " filename , label \n\nphotos/{0},0\nC:\\pets\\{1},1\n",
])
def test_tables_as_table_programs_write_them(tmp_path, text):
    paths = [make_photo(tmp_path / f"{name}.png") for name in ("a", "b")]
    (tmp_path / "t.csv").write_text(text.format("a.png", "b.png"), encoding="utf-16")
    assert read_labels(paths, tmp_path / "t.csv") == ["0", "1"]


def test_one_name_in_two_folders_of_a_table_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("filename,label\na/x.png,0\nb/x.png,1\n")
    with pytest.raises(UserError, match="x.png in several folders, with label 0 and with label 1"):
        read_labels([tmp_path / "x.png"], tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("filename,label\nX.PNG,0\n")
    with pytest.raises(UserError, match="first is x.png; it has X.PNG"):
        read_labels([tmp_path / "x.png"], tmp_path / "t.csv")


def test_subfolders_and_pipes_called_like_photos_are_told(tmp_path, capsys):
    folder = tmp_path / "photos"
    make_photo(folder / "cat" / "1.png")
    (folder / "notes").mkdir()
    os.mkfifo(folder / "0_pipe.jpg")
    with pytest.raises(UserError, match="no image in .*left out .0_pipe.jpg, cat.: give a folder"):
        list_images(folder)
    make_photo(folder / "a.png")
    assert [path.name for path in list_images(folder)] == ["a.png"]
    assert "left out (0_pipe.jpg, cat)" in capsys.readouterr().err


@pytest.mark.parametrize("words, message", [
    (["predict", "--output", "new/"], '"new/" is no name of a file; give a file as --output'),
    (["predict", "--output", ""], '"" is no name of a file; give a file as --output'),
])
def test_outputs_that_name_no_file(photos, checkpoint, here, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    result = here(*words, "--images", photos, "--checkpoint", checkpoint, *CPU)
    assert result.returncode == 1 and message in result.stderr and not list(tmp_path.iterdir())


def test_an_empty_option_is_not_taken_for_the_current_folder(tmp_path, photos, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o.csv").write_text("of an earlier run\n")
    (tmp_path / "names.json").write_text('{"0": "a cat", "1": "a dog"}')
    result = run_inside(clip_zeroshot, "predict", "--images", photos, "--labels", "names.json",
                        "--output", "o.csv", "--template", "", *CPU, capsys=capsys)
    assert result.returncode == 1 and 'template "" has no {object}' in result.stderr


def test_an_empty_class_is_none_of_the_models(tmp_path, photos, checkpoint, capsys):
    words = ["--images", photos, "--checkpoint", checkpoint, "--output", tmp_path, "--class", ""]
    for more, message in (([], "--class goes with --method relevance"),
                          (["--method", "relevance"], "none of the model's 3 labels")):
        result = run_inside(p1_attn_map, *words, *more, *CPU, capsys=capsys)
        assert result.returncode == 1 and message in result.stderr


def test_file_names_cannot_command_a_terminal(tmp_path, checkpoint, here):
    make_photo(tmp_path / "photos" / "0_\x1b[2J\nx\x9b.png")
    result = here("predict", "--images", tmp_path / "photos", "--checkpoint", checkpoint,
                  "--output", tmp_path / "o.csv", *CPU)
    assert result.returncode == 0 and "0_?[2J?x?.png" in result.stdout
    assert read_csv(tmp_path / "o.csv")[0]["filename"] == "0_\x1b[2J\nx\x9b.png"


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_weights_without_a_state_are_not_replaced(tmp_path, photos, here, resume):
    (tmp_path / "best.safetensors").write_bytes(b"of hours")
    result = here(*TRAIN, "--train", photos, "--out", tmp_path, *CPU, *resume)
    assert result.returncode == 1 and "no last.pt to continue from" in error_lines(result)[-1]
    assert (tmp_path / "best.safetensors").read_bytes() == b"of hours"


@pytest.mark.parametrize("vary, message", [
    ("out=a,b", "a sweep names the folders of its trainings itself"),
    ("about=" + "x" * 300, "File name too long"),
])
def test_a_sweep_is_refused_before_its_first_training(tmp_path, photos, here, vary, message):
    result = here("sweep", "--train", photos, "--hold-out", "--model", TINY, "--out",
                  tmp_path / "o", "--vary", vary, *CPU)
    assert result.returncode == 1 and message in result.stderr and not list(tmp_path.iterdir())


def test_a_value_given_twice_is_one_setting():
    assert combinations(["lr=1,1,2"]) == [{"lr": "1"}, {"lr": "2"}]


def test_a_file_that_holds_no_embeddings_is_kept(tmp_path, photos, capsys):
    (tmp_path / "names.json").write_text('{"0": "a cat", "1": "a dog"}')
    (tmp_path / "e.npz").write_text("notes")
    result = run_inside(clip_zeroshot, "predict", "--images", photos, "--labels",
                        tmp_path / "names.json", "--output", tmp_path / "o.csv", "--embeddings",
                        tmp_path / "e.npz", *CPU, capsys=capsys)
    assert result.returncode == 1 and "other arrays than embeddings" in result.stderr
    assert (tmp_path / "e.npz").read_text() == "notes"
