"""Damaged, lying and harmful checkpoint files: each opens right or is refused in one line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys

from utils import UserError

import pytest
import torch
from conftest import OFFLINE, ROOT, TINY
from corpus import harmful

from data.transform import Transform
from models.checkpoint import check_fit, read_tensors, rebuild
from models.gpt2 import GPT2Config
from models.vit import described_vit


def test_each_file_opens_right_or_is_refused(tmp_path):
    # A process of its own: what crashes or takes the memory must not be pytest.
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "corpus.py"), str(tmp_path)], timeout=500,
        env={**os.environ, **OFFLINE, "PYTHONPATH": path}, capture_output=True, text=True)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, (rows[-1:], result.stderr[-2000:])
    assert not (tmp_path / "marker").exists(), "code in a file was run"
    assert len(rows) >= 200
    assert [row for row in rows if row["outcome"] not in ("opened", "refused")] == []
    for row in rows:
        if row["outcome"] == "refused":
            assert "\n" not in row["message"] and len(row["message"]) < 1000, row
            assert row["file"] in row["message"] or "preprocessing" in row["message"], row
        assert not row.get("wrong_bytes"), row
    opened = {row["file"].split("_", 1)[1] for row in rows if row["outcome"] == "opened"}
    assert {"weights_longer.pth", "gpt2_flipped.pth", "classifier_zeroed.safetensors"} <= opened
    refused = {row["file"].split("_", 1)[1] for row in rows if row["outcome"] == "refused"}
    assert {f"{kind}_nan.safetensors" for kind in ("classifier", "captioner", "clip", "weights")
            } <= refused
    assert not any(word in name for name in opened
                   for word in ("_harm", "_argument", "_cut", "_nan"))
    assert rows[-1]["memory"] < 2000  # MiB, of which importing torch takes most


def test_the_harmful_files_would_do_harm(tmp_path):
    marker = tmp_path / "marker"
    for how, content in harmful({}, marker):
        if how == "harm":
            with contextlib.suppress(Exception):
                torch.load(io.BytesIO(content), weights_only=False)
            assert marker.exists(), content
            marker.rmdir() if marker.is_dir() else marker.unlink()


@pytest.mark.parametrize("args, message", [
    ({"checkpoint_path": "x.pth"}, "checkpoint_path"), ({"pretrained": True}, "pretrained"),
    ({"depth": 10**9}, "depth"), ({"img_size": 48}, "pixels for a ViT that takes"),
])
def test_a_description_reaches_no_other_argument_of_timm(args, message):
    with pytest.raises(UserError, match=message):
        described_vit({"name": TINY, "args": args}, {"size": [32, 32]})


def test_what_a_file_does_not_keep_is_computed():
    class WithTable(torch.nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.register_buffer("table", torch.arange(3.0), persistent=False)

    weights = torch.nn.Linear(2, 2).state_dict()
    model = rebuild(WithTable, weights, "x")
    assert model.table.tolist() == [0, 1, 2] and not model.training
    torch.testing.assert_close(model.weight, weights["weight"])


def test_integers_are_no_weights():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"1 of another type \(weight torch.int16\)"):
        check_fit(model, model.state_dict() | {"weight": torch.zeros(2, 2, dtype=torch.int16)}, "x")


def test_a_tensor_that_claims_more_than_is_stored_is_refused(tmp_path):
    torch.save({"w": torch.zeros(1).expand(10**12)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="a.pth was not loaded: w is .* larger than"):
        read_tensors(tmp_path / "a.pth")
    tied = torch.zeros(4, 4)
    torch.save({"a": tied, "b": tied, "part": tied[1:3].t()}, tmp_path / "b.pth")
    assert read_tensors(tmp_path / "b.pth")[0]["part"].shape == (4, 2)


@pytest.mark.parametrize("field, value", [
    ("width", 0), ("layers", True), ("heads", 5), ("vocab_size", "many"), ("cross_width", 9)])
def test_a_gpt2_that_cannot_be_built_is_refused(field, value):
    sizes = {"vocab_size": 20, "max_length": 8, "width": 16, "layers": 1, "heads": 2}
    with pytest.raises(UserError, match="heads do not divide|cannot have the sizes"):
        GPT2Config(**sizes | {field: value})


@pytest.mark.parametrize("field, value", [
    ("size", [0, 32]), ("size", 32), ("mean", [0.5]), ("std", [0.5, 0.5, 0]), ("crop_pct", 0),
    ("crop_pct", float("nan")), ("resize", "stretch"), ("interpolation", "magic")])
def test_preprocessing_that_prepares_no_photo_is_refused(field, value):
    fields = {"size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    assert Transform.from_fields(fields).resize == "crop"
    with pytest.raises(UserError, match="preprocessing is described wrongly"):
        Transform.from_fields(fields | {field: value})
