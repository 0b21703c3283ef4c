"""p1_vit_classify.py sweep: settings, seeds, what is refused before any training, and the table."""

from __future__ import annotations

import csv
from functools import partial

import numpy as np
import pytest
from conftest import TINY, error_lines, run_inside, write_classifier

import p1_vit_classify
from metrics import accuracy
from training.sweep_options import Setting
from training.sweep_table import Done, write_sweep

RUN = ["--image-size", "32", "--epochs", "1", "--batch-size", "12", "--augment", "flip",
       "--workers", "0", "--device", "cpu", "--precision", "fp32"]


@pytest.fixture
def sweep(tmp_path, photos, capsys):
    """Run the command on the small photos, into ``tmp_path / "out"``."""
    return partial(run_inside, p1_vit_classify, "sweep", "--train", photos, "--val", photos,
                   "--out", tmp_path / "out", *RUN, capsys=capsys)


def rows_of(tmp_path) -> list[dict[str, str]]:
    with open(tmp_path / "out" / "sweep.csv") as file:
        return list(csv.DictReader(file))


def test_settings_with_different_options_are_one_table(tmp_path, sweep):
    weights = write_classifier(tmp_path / "my weights.safetensors")
    result = sweep("--setting", f"model={TINY} weights='{weights}' optimizer=sam",
                   "--setting", "model=test_resnet label_smoothing=0", "--vary", "lr=1e-3,1e-4")
    assert result.returncode == 0, result.stderr
    shown = [tuple(row[key] for key in ("model", "optimizer", "label-smoothing", "lr"))
             for row in rows_of(tmp_path)]
    assert shown == [
        (TINY, "sam", "", "1e-3"), (TINY, "sam", "", "1e-4"),
        ("test_resnet", "", "0", "1e-3"), ("test_resnet", "", "0", "1e-4")]
    assert len(list((tmp_path / "out").glob("*/last.safetensors"))) == 4


def history_of(folder, name: str) -> list[float]:
    with open(folder / "history.csv") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def test_seeds_give_mean_spread_and_the_best_epoch(tmp_path, sweep, photos):
    result = sweep("--model", TINY, "--vary", "lr=1e-3,1e-9", "--seeds", "3", "--epochs", "2")
    assert result.returncode == 0, result.stderr
    first, second = rows_of(tmp_path)
    folders = [tmp_path / "out" / "lr-1e-3" / f"seed-{seed}" for seed in range(3)]
    values = np.array([history_of(folder, "val_accuracy") for folder in folders])
    assert len({tuple(history_of(folder, "train_loss")) for folder in folders}) == 3
    expected = {"val accuracy": values[:, -1].mean(), "spread": values[:, -1].std(ddof=1),
                "seeds": 3, "epoch": 2, "best val accuracy": values.mean(0).max(),
                "best epoch": values.mean(0).argmax() + 1}
    assert {key: float(first[key]) for key in expected} == pytest.approx(expected, abs=1e-3)
    assert second["lr"] == "1e-9" and float(second["against the best"]) <= 0
    text = (tmp_path / "out" / "sweep.md").read_text()
    assert f"{values[:, -1].mean():.1%}".replace("%", " %") in text and "standard dev" in text
    assert (tmp_path / "out" / "curves.png").is_file()


def rows(*accuracies: float) -> list[dict]:
    return [{"epoch": number, "train_accuracy": 0.5, "train_loss": 1.0, "val_loss": 1.0,
             "val_accuracy": accuracy, "val_correct": accuracy * 200, "val_images": 200}
            for number, accuracy in enumerate(accuracies, 1)]


def test_the_csv_holds_numbers_and_the_markdown_is_for_readers(tmp_path):
    settings = [Setting({"lr": lr}, []) for lr in ("1e-3", "1e-4", "1")]
    write_sweep([Done(settings[0], [rows(0.9, 0.8)]), Done(settings[1], [rows(0.1, 0.176)]),
                 Done(settings[2], [None])], 1, tmp_path)
    lines = (tmp_path / "sweep.csv").read_text().splitlines()
    assert lines[1] == "1e-3,0.5,0.8,0.7391 - 0.8495,0,2,0.9,1"
    assert lines[2].startswith("1e-4,0.5,0.176,0.1295 - 0.2347,-0.624,2,")
    assert lines[3] == "1,diverged,,,,,,"
    text = (tmp_path / "sweep.md").read_text()
    assert "| 1e-3 | 50.0 % | 80.0 % | 73.9 % - 85.0 % | none | 2 | 90.0 % | 1 |" in text
    assert "| 17.6 % | 12.9 % - 23.5 % | -62.4 points |" in text and "the last one" in text


def test_a_setting_is_worse_only_where_the_intervals_do_not_overlap():
    # 83 of 100 has the interval 74.5 - 89.1: 90 lies above it, and its own begins at 82.6
    near, far = accuracy.compare([(90, 100), (83, 100), (60, 100)])[1:]
    assert round(near.behind, 2) == -0.07 and not near.worse and far.worse
    assert accuracy.compare([None, (100, 100)])[0] is None and accuracy.compare([None]) == [None]
    assert not accuracy.compare([(100, 100)])[0].worse


def test_a_setting_of_which_one_seed_diverged_has_no_mean(tmp_path):
    write_sweep([Done(Setting({"lr": "1"}, []), [rows(0.5), None, rows(0.5)])], 3, tmp_path)
    assert "1 of 3 diverged,," in (tmp_path / "sweep.csv").read_text()


@pytest.mark.parametrize("words, status, message", [
    ([], 2, "--vary KEY=V1,V2 or --setting"),
    (["--setting", "lr"], 1, "write KEY=VALUE"),
    (["--setting", ""], 1, "write KEY=VALUE"),
    (["--setting", "model='x"], 1, "a quotation mark is not closed"),
    (["--setting", "lr=1 lr=2"], 1, "gives lr twice"),
    (["--setting", "out=x"], 1, "a sweep names the folders"),
    (["--setting", "lr=1", "--setting", "optimiser=sgd"], 2, "did you mean --optimizer"),
    (["--setting", "lr=1", "--setting", "lr=x"], 2, "--lr"),
    (["--setting", "help=true"], 2, "--help"),
    (["--setting", "lr=1", "--vary", "lr=2,3"], 1, "lr is in --vary and in --setting"),
    (["--lr", "1", "--vary", "lr=2,3"], 1, "--lr and --vary lr both give this option"),
    (["--label-smoothing", "0.2", "--setting", "lr=1", "--vary", "label_smoothing=0,0.1"], 1,
     "leave --label-smoothing out"),
    (["--seeds", "2", "--vary", "seed=1,2"], 1, "leave seed out"),
    (["--seeds", "0", "--vary", "lr=1"], 2, "--seeds"),
    (["--setting", "about=a/b", "--setting", "about=a-b"], 1, "would both be written into"),
    (["--vary", "lr=1,x"], 2, "setting lr x: "),
    (["--setting", "freeze=maybe"], 2, "--freeze: must be true or false, not 'maybe'"),
    (["--setting", "weights=-w.safetensors"], 1, "checkpoint -w.safetensors does not exist"),
    (["--vary", "weights=w.safetensors,no.safetensors"], 1,
     "setting weights no.safetensors: checkpoint no.safetensors does not exist"),
    (["--vary", "num-heads=4,5"], 1, "setting num-heads 5: "),
    (["--setting", f"model={TINY}", "--setting", "model=test_vit9"], 1,
     "setting model test_vit9: "),
    (["--vary", "names=no.json"], 1, "setting names no.json: cannot read no.json"),
    (["--vary", "weights=w.safetensors,other.safetensors"], 1,
     "setting weights other.safetensors: other.safetensors"),
    (["--setting", "weights=w.safetensors", "--setting", "lr=1 teacher=three.safetensors"], 1,
     "setting lr 1, teacher three.safetensors: "),
])
def test_wrong_settings_are_refused_in_one_line(
        tmp_path, sweep, monkeypatch, words, status, message):
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path / "w.safetensors")
    write_classifier(tmp_path / "other.safetensors", model="test_resnet")
    write_classifier(tmp_path / "three.safetensors", ["7", "8", "9"])
    result = sweep("--model", TINY, *words)
    *checks, line = error_lines(result)
    assert result.returncode == status and message in line, line
    assert all(check.startswith("checking setting") for check in checks)
    assert not (tmp_path / "out").exists()
