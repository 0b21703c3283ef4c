"""The training loop: SAM, schedules and accumulation against formulas; resume and two processes
as a user runs them."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict

from utils import UserError

import pytest
import torch
from conftest import (
    ROOT,
    TINY,
    error_lines,
    finished,
    make_folder,
    make_photo,
    run_inside,
    run_script,
    write_classifier,
)

import p1_vit_classify
from training import loop
from training.classify import train_classifier
from training.loop import Diverged, EpochSampler, Task
from training.optimizers import lr_factor
from training.recipe import Recipe


class Points:
    """A regression problem as a dataset."""

    def __init__(self, size=8):
        generator = torch.Generator().manual_seed(3)
        self.x, self.y = (torch.randn(size, n, generator=generator) for n in (3, 1))

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


def linear():
    torch.manual_seed(1)
    return torch.nn.Linear(3, 1)


def squared_error(model, batch):
    errors = model(batch[0]) - batch[1]
    return (errors ** 2).mean(), {"error": errors.abs().mean().item()}


def fit(tmp_path, model, points=None, resume=False, **options):
    recipe = Recipe(**{"epochs": 1, "batch_size": 4, "schedule": "constant", "warmup": 0,
                       "clip_norm": 0, "workers": 0, "lr": 0.1, **options})
    task = Task(
        dataset=points or Points(), groups=[{"params": list(model.parameters())}],
        prepare=tuple, loss=squared_error, evaluate=lambda model, accelerator: {},
        save=lambda path, model, row: path.write_text(str(row["epoch"])), select=None)
    args = argparse.Namespace(**asdict(recipe), out=tmp_path / "out", resume=resume)
    return loop.fit_recipe(model, task, recipe, args)


def batches_of(points, recipe_seed=0, batch_size=4, epoch=0):
    recipe = Recipe(batch_size=batch_size, seed=recipe_seed)
    sampler = EpochSampler(len(points), recipe, 0, 1)
    sampler.epoch = epoch
    return [(points.x[indices], points.y[indices]) for indices in sampler]


def test_sam_is_two_true_steps(tmp_path):
    """Foret et al. 2021, Eq. 2-3 by hand: climb by rho g/|g|, take the gradient there, step."""
    model, points = linear(), Points()
    w, b = model.weight.detach().clone(), model.bias.detach().clone()
    momentum = [torch.zeros_like(w), torch.zeros_like(b)]
    for x, y in batches_of(points):
        def gradient(w, b, x=x, y=y):
            error = 2 * (x @ w.T + b - y) / len(x)
            return [error.T @ x, error.sum(0)]

        climb = gradient(w, b)
        length = math.sqrt(sum(float((g ** 2).sum()) for g in climb))
        at_top = gradient(w + 0.3 * climb[0] / length, b + 0.3 * climb[1] / length)
        momentum = [0.9 * m + g for m, g in zip(momentum, at_top, strict=True)]
        w, b = w - 0.1 * momentum[0], b - 0.1 * momentum[1]
    fit(tmp_path, model, points, optimizer="sam", sam_base="sgd", sam_rho=0.3, momentum=0.9)
    torch.testing.assert_close(model.weight, w)
    torch.testing.assert_close(model.bias, b)


@pytest.mark.parametrize("name, reference", [
    ("adam", lambda p: torch.optim.Adam(p, lr=0.1)),
    ("adamw", lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01)),
    ("sgd", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
])
def test_the_plain_optimizers_are_torchs(tmp_path, name, reference):
    model, other, points = linear(), linear(), Points()
    optimizer = reference(other.parameters())
    for batch in batches_of(points):
        optimizer.zero_grad()
        squared_error(other, batch)[0].backward()
        optimizer.step()
    fit(tmp_path, model, points, optimizer=name)
    torch.testing.assert_close(model.weight, other.weight)


def test_each_optimizer_has_its_own_defaults(tmp_path, capsys):
    assert [(Recipe(optimizer=name).lr, Recipe(optimizer=name).weight_decay)
            for name in ("adamw", "adam", "sgd")] == [(1e-4, 0.05), (1e-4, 0), (1e-2, 5e-4)]
    assert Recipe(optimizer="sam", sam_base="adamw").weight_decay == 0.05  # that of its base
    assert Recipe(optimizer="sgd", lr=1e-3, weight_decay=0).weight_decay == 0
    fit(tmp_path, linear(), optimizer="sgd", lr=None)
    assert "optimizer sgd: lr 0.01, weight decay 0.0005, momentum 0.9" in capsys.readouterr().err
    # What a resume compares is the value in use: one that is typed equals the default.
    fit(tmp_path, linear(), resume=True, optimizer="sgd", lr=0.01, weight_decay=5e-4)


def test_accumulation_changes_memory_not_the_result(tmp_path):
    whole, parts = linear(), linear()
    fit(tmp_path / "a", whole, batch_size=4)
    fit(tmp_path / "b", parts, batch_size=4, accumulate=2)
    torch.testing.assert_close(whole.weight, parts.weight)


def test_ema_is_the_average_that_is_kept(tmp_path):
    model, other, points = linear(), linear(), Points()
    average = other.weight.detach().clone()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    for step, batch in enumerate(batches_of(points), 1):
        optimizer.zero_grad()
        squared_error(other, batch)[0].backward()
        optimizer.step()
        decay = min(0.5, 1 - step ** (-2 / 3)) if step > 1 else 0
        average = decay * average + (1 - decay) * other.weight.detach()
    fit(tmp_path, model, points, optimizer="sgd", ema=0.5)
    torch.testing.assert_close(model.weight, average)


def test_clipping_bounds_the_step(tmp_path):
    model = linear()
    before = model.weight.detach().clone()
    fit(tmp_path, model, Points(4), optimizer="sgd", momentum=0.0, clip_norm=0.01)
    assert (model.weight - before).norm() <= 0.1 * 0.01 + 1e-7


@pytest.mark.parametrize("schedule, expected", [
    ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1]),
    ("linear", [0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]),
    ("cosine", [0.25, 0.5, 0.75, 1, (1 + math.cos(math.pi / 4)) / 2, 0.5,
                (1 + math.cos(3 * math.pi / 4)) / 2]),
])
def test_schedules_warm_up_and_end_at_zero(schedule, expected):
    recipe = Recipe(epochs=7, warmup=3, schedule=schedule)
    assert [lr_factor(recipe, 1, step) for step in range(7)] == pytest.approx(expected)
    if schedule != "constant":
        assert lr_factor(recipe, 1, 7) == pytest.approx(0)


@pytest.mark.parametrize("size", [12, 13])
def test_processes_share_each_batch(size):
    recipe = Recipe(batch_size=4, seed=5)
    alone = list(EpochSampler(size, recipe, 0, 1))
    shares = [list(EpochSampler(size, recipe, rank, 2)) for rank in range(2)]
    assert sorted(index for batch in alone for index in batch) == list(range(size))
    for batch, first, second in zip(alone, *shares, strict=True):
        assert len(first) == len(second)
        assert set(batch) <= set(first + second)
    other = EpochSampler(size, recipe, 0, 1)
    other.epoch = 1
    assert list(other) != alone


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path):
    with pytest.raises(Diverged, match="lower --lr"):
        fit(tmp_path, linear(), optimizer="sgd", lr=1e30, epochs=9)


def test_a_finished_training_is_neither_overwritten_nor_mixed_with_another(tmp_path):
    fit(tmp_path, linear())
    with pytest.raises(UserError, match="holds a training already: give --resume"):
        fit(tmp_path, linear())
    with pytest.raises(UserError, match="trained with --lr 0.1, not 0.2"):
        fit(tmp_path, linear(), resume=True, lr=0.2)
    (tmp_path / "out" / "last.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot resume from"):
        fit(tmp_path, linear(), resume=True)


# --- as a user runs it --------------------------------------------------------------------------

SCRIPT, CPU = "p1_vit_classify.py", ["--device", "cpu", "--precision", "fp32"]
HARD = ["--model", TINY, "--image-size", "32", "--epochs", "2", "--batch-size", "8",
        "--augment", "rand", "flip", "--mixup", "0.4", "--ema", "0.9", "--optimizer", "sam",
        "--sam-base", "adamw", "--drop-path", "0.1", "--device", "cpu"]


def test_a_killed_run_resumes_to_exactly_the_same_weights(tmp_path, capsys):
    folder = make_folder(tmp_path / "photos", 24)
    words = ["train", "--train", folder, "--val", folder, *HARD, "--out"]
    whole = run_inside(p1_vit_classify, *words, tmp_path / "whole", "--workers", "0", capsys=capsys)
    assert whole.returncode == 0, whole.stderr

    words += [tmp_path / "killed", "--workers", "2"]
    process = subprocess.Popen([sys.executable, str(ROOT / SCRIPT), *map(str, words)],
                               stderr=subprocess.PIPE, start_new_session=True)
    seen = b""
    while b"epoch 2/2" not in seen:  # the bar of the second epoch has appeared
        read = os.read(process.stderr.fileno(), 4096)
        assert read, seen.decode()
        seen += read
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    with open(tmp_path / "killed" / "history.csv") as file:
        assert len(list(csv.DictReader(file))) == 1, "it was killed in its second epoch"

    resumed = run_script(SCRIPT, *words, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "after epoch 1" in resumed.stderr
    states = [torch.load(tmp_path / name / "last.pt", weights_only=True)
              for name in ("whole", "killed")]
    for part in ("model", "ema"):
        first, second = (state[part] for state in states)
        assert first.keys() == second.keys() and len(first) > 50
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert [row["val_accuracy"] for row in states[0]["history"]] == [
        row["val_accuracy"] for row in states[1]["history"]]
    for name in ("best.safetensors", "last.safetensors", "history.csv", "curves.png"):
        assert (tmp_path / "killed" / name).stat().st_size > 50


SPY = """
import os, sys, torch
import p1_vit_classify
from training import loop
fit = loop.fit
def spy(model, *rest):
    history = fit(model, *rest)
    torch.save(model.state_dict(), os.path.join(os.environ["SPY_OUT"], os.environ["RANK"] + ".pt"))
    return history
loop.fit = spy
sys.argv[0] = "p1_vit_classify.py"
p1_vit_classify.run(p1_vit_classify.main)
"""


def test_two_processes_train_one_model(tmp_path, capsys):
    train_folder = make_folder(tmp_path / "train", 4)
    val_folder = make_folder(tmp_path / "val", 3, seed=1)  # 9 photos do not divide by 2
    (tmp_path / "spy.py").write_text(SPY)
    options = ["--model", TINY, "--image-size", "32", "--epochs", "2", "--batch-size", "8",
               "--lr", "1e-3", "--val", val_folder, "--workers", "0", *CPU]
    words = ["train", "--train", train_folder, *options]
    together = finished(
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        tmp_path / "spy.py", *words, "--out", tmp_path / "two", PYTHONPATH=str(ROOT),
        SPY_OUT=str(tmp_path))
    assert together.returncode == 0, together.stderr
    wrote = [line for line in together.stderr.splitlines() if line.startswith("wrote best")]
    assert len(wrote) == 1 and together.stderr.count("epoch 1 lr") == 1  # one process tells it
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(torch.equal(ranks[0][key], ranks[1][key]) for key in ranks[0])

    alone = run_inside(p1_vit_classify, *words, "--out", tmp_path / "one", capsys=capsys)
    assert alone.returncode == 0, alone.stderr
    histories = []
    for name in ("two", "one"):
        with open(tmp_path / name / "history.csv") as file:
            histories.append(list(csv.DictReader(file)))
    for two, one in zip(*histories, strict=True):
        assert int(two["val_images"]) == 9
        for key in ("train_loss", "val_loss"):
            assert float(two[key]) == pytest.approx(float(one[key]), rel=1e-3)

    evaluated = run_inside(p1_vit_classify, "eval", "--images", val_folder, "--checkpoint",
                           tmp_path / "two" / "last.safetensors", *CPU, capsys=capsys)
    result = json.loads(evaluated.stdout)
    assert result["total"] == 9
    assert result["correct"] == int(histories[0][-1]["val_correct"])
    assert result["loss"] == pytest.approx(float(histories[0][-1]["val_loss"]), rel=5e-3)


# --- what a resume must repeat ------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished training in ``out``, and other photos and weights beside it."""
    folder = tmp_path_factory.mktemp("trained")
    make_folder(folder / "photos", 2)
    make_folder(folder / "more", 3)
    make_folder(folder / "val", 1, seed=1)
    make_folder(folder / "more_val", 2, seed=1)
    for label in range(3):
        make_photo(folder / "other" / f"{5 + label}_0.png", label)
    names = sorted(path.name for path in (folder / "photos").iterdir())
    for name, labels in (("same.csv", "001122"), ("moved.csv", "012012")):
        rows = [*zip(names, labels, strict=True), *((f"{n}_000.png", n) for n in range(3))]
        (folder / name).write_text("filename,label\n" + "".join(
            f"{file},{label}\n" for file, label in dict(rows).items()))
    for seed, name in enumerate(("start.safetensors", "elsewhere.safetensors")):
        write_classifier(folder / name, seed=seed)
    train_classifier(p1_vit_classify.make_parser().parse_args(train_words(folder)))
    return folder


def train_words(folder, **changes):
    """The words of a training in ``folder``; ``changes`` by option, None to leave one out."""
    words = {"train": folder / "photos", "val": folder / "val", "out": folder / "out",
             "weights": folder / "start.safetensors", "model": TINY, "image-size": 32, "epochs": 1,
             "batch-size": 4, "workers": 0, "device": "cpu", "precision": "fp32"}
    words |= {name.replace("_", "-"): value for name, value in changes.items()}
    return ["train", *(str(word) for name, value in words.items()
                       for word in (f"--{name}", value) if word is not True)]


@pytest.mark.parametrize("changes, option, before, now", [
    ({"mixup": 0.5}, "--mixup", "0.0", "0.5"),
    ({"layer_decay": 0.5}, "--layer-decay", "1.0", "0.5"),
    ({"crop_pct": 0.5}, "--crop-pct", "None", "0.5"),
    ({"balance": True}, "--balance", "False", "True"),
    ({"freeze": True}, "--freeze", "False", "True"),
    ({"no_pretrained": True}, "--pretrained", "None", "False"),
    ({"image_size": 48}, "--image-size", "32", "48"),
    ({"model": "test_vit2", "no_pretrained": True}, "--model", "test_vit", "test_vit2"),
    ({"augment": "none"}, "--augment", "crop flip", "none"),
    ({"label_smoothing": 0}, "--label-smoothing", "0.1", "0.0"),
    ({"resize": "squash"}, "--resize", "crop", "squash"),
    ({"drop_path": 0.1}, "--drop-path", "0.0", "0.1"),
    ({"limit": 3}, "--limit", "None", "3"),
    ({"epochs": 2}, "--epochs", "1", "2"),
    ({"seed": 1}, "--seed", "0", "1"),
    ({"train": "other", "val": "other"}, "classes in order", "0 1 2", "5 6 7"),
    ({"train": "more"}, "training photos", "6 (digest ", "9 (digest "),
    ({"labels": "moved.csv"}, "training photos", "6 (digest ", "6 (digest "),
    ({"val": "more_val"}, "validation photos", "3 (digest ", "6 (digest "),
    ({"weights": "elsewhere.safetensors"}, "starting weights", "", ""),
])
def test_a_resume_that_would_train_differently_is_refused(
        trained, capsys, changes, option, before, now):
    paths = {name: trained / value for name, value in changes.items()
             if name in ("train", "val", "labels", "weights")}
    kept = (trained / "out" / "last.pt").read_bytes()
    result = run_inside(p1_vit_classify, *train_words(trained, **changes | paths), "--resume",
                        capsys=capsys)
    assert result.returncode == 1, result.stderr
    line, = error_lines(result)
    found = line.partition("it was trained with ")[2].partition(";")[0]
    assert found.startswith(f"{option} {before}") and f", not {now}" in found, line
    assert (trained / "out" / "last.pt").read_bytes() == kept


@pytest.mark.parametrize("changes", [
    {}, {"workers": 1}, {"about": "another text"}, {"labels": "same.csv"}])
def test_a_resume_may_differ_in_what_changes_no_weight(trained, tmp_path, capsys, changes):
    shutil.copytree(trained, tmp_path / "moved")
    paths = {name: tmp_path / "moved" / value for name, value in changes.items()
             if name == "labels"}
    words = train_words(tmp_path / "moved", **changes | paths)
    result = run_inside(p1_vit_classify, *words, "--resume", capsys=capsys)
    assert result.returncode == 0, result.stderr
    assert "after epoch 1" in result.stderr
