"""What a user sees first: a sign of life, and what a training starts from."""

from __future__ import annotations

import sys

import pytest
from conftest import TINY, inside

import p1_vit_classify
from inference.parser import Parser
from training.classify import starts_at_random

RANDOM = "the weights start at random; --pretrained or --weights FILE starts from others"


def test_a_terminal_sees_at_once_that_the_script_runs(monkeypatch, capsys):
    parser = Parser(prog="x.py")
    parser.parse_args([])
    assert capsys.readouterr().err == ""  # a log has only what matters
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    parser.parse_args([])
    assert capsys.readouterr().err == "x.py: starting …\n"


@pytest.mark.parametrize("words, random", [
    ([], True), (["--pretrained"], False), (["--weights", "w.bin"], False),
    (["--no-pretrained", "--weights", "w.bin"], True), (["--model", "a.safetensors"], False)])
def test_random_weights_are_known_by_the_options(words, random):
    parser = p1_vit_classify.make_parser()
    args = parser.parse_args(["train", "--train", "photos", "--out", "runs", *words])
    assert starts_at_random(args) is random


def test_a_training_says_that_its_weights_are_random(photos, tmp_path, capsys):
    words = ["train", "--train", photos, "--epochs", "1", "--workers", "0", "--model", TINY,
             "--image-size", "32", "--device", "cpu", "--precision", "fp32"]
    for weights, said in ([], True), (["--weights", tmp_path / "a" / "last.safetensors"], False):
        status, _, lines = inside(p1_vit_classify, *words, *weights, "--out",
                                  tmp_path / ("a" if said else "b"), capsys=capsys)
        assert status == 0 and (RANDOM in lines) is said
