"""p1_vit_classify.py sweep: settings, seeds, what is refused before any training, and the table."""

from __future__ import annotations

import csv
from functools import partial

import pytest
from conftest import TINY, error_lines, run_inside, write_classifier

import p1_vit_classify

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
    (["--setting", "about=a/b", "--setting", "about=a-b"], 1, "would both be written into"),
])
def test_wrong_settings_are_refused_in_one_line(tmp_path, sweep, words, status, message):
    result = sweep("--model", TINY, *words)
    line, = error_lines(result)
    assert result.returncode == status and message in line, line
    assert not (tmp_path / "out").exists()
