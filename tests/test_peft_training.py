"""peft_caption.py train: what a resume must repeat, and each method's learning rate."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import error_lines, run_inside
from makers_files import coco, write
from makers_training import CPU, captions_of, read_csv, write_base

import peft_caption
from models.checkpoint import read_tensors
from models.peft import OPTIONS
from training.options import PEFT_LR

TRAIN = ["train", "--method", "adapter", "--images", "photos", "--captions", "c.json", "--base",
         "base.safetensors", "--hold-out", "3", "--epochs", "1", "--batch-size", "8", *CPU]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photos) -> Path:
    """A folder with photos, their captions as they are and changed, and two bases."""
    folder = tmp_path_factory.mktemp("peft")
    (folder / "photos").symlink_to(photos)
    captions = captions_of(photos)
    write(folder / "c.json", coco(captions))
    write(folder / "changed.json", coco(captions | {"0_001.png": ["another caption"]}))
    write_base(folder / "base.safetensors")
    write_base(folder / "other.safetensors", seed=1)
    return folder


@pytest.fixture
def here(folder, capsys, monkeypatch):
    """Run the script in this process, with ``folder`` as the working directory."""
    monkeypatch.chdir(folder)

    def run(*words) -> subprocess.CompletedProcess:
        return run_inside(peft_caption, *words, capsys=capsys)

    return run


def test_another_training_is_not_resumed(here):
    train = [*TRAIN, "--bottleneck", "4", "--out", "runs/adapter"]
    assert here(*train).returncode == 0
    assert here(*train, "--resume").returncode == 0  # nothing is left to do
    for other, before, now in (
            (["--augment", "flip"], "--augment none", "flip"),
            (["--dropout", "0"], "--dropout 0.1", "0.0"),
            (["--captions-each", "2"], "--captions-each None", "2"),
            (["--bottleneck", "5"], "--bottleneck 4", "5"),
            (["--method", "prefix", "--prefix-length", "4"], "--method adapter", "prefix"),
            (["--lr", "0.02"], f"--lr {PEFT_LR['adapter']}", "0.02"),
            (["--captions", "changed.json"], "training photos 9 (digest ", "9 (digest "),
            (["--hold-out", "4", "--epochs", "2"], "--epochs 1", "2"),
            (["--base", "other.safetensors"], "starting weights ", "")):
        words = [*train[:-4], *train[-2:]] if "--method" in other else train
        result = here(*words, "--resume", *other)
        line = error_lines(result)[-1]
        assert result.returncode == 1
        assert f"cannot resume runs/adapter: it was trained with {before}" in line
        assert f", not {now}" in line


@pytest.mark.parametrize("words, lr", [([], PEFT_LR["adapter"]), (["--lr", "0"], 0)])
def test_a_method_has_a_learning_rate_of_its_own(here, words, lr):
    assert here(*TRAIN, "--out", f"runs/{lr}", *words).returncode == 0
    assert read_tensors(f"runs/{lr}/best.safetensors")[1]["recipe"]["lr"] == lr
    assert float(read_csv(f"runs/{lr}/history.csv")[0]["lr"]) <= lr


def test_every_method_has_a_learning_rate():
    assert list(PEFT_LR) == list(OPTIONS)
