"""Every captioning script opens a PEFT file over the decoder_model.bin of the course."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import bash, copy_project, error_lines, make_photo, run_inside
from makers_files import coco, write
from makers_training import CPU, captions_of, write_base, write_captioner, write_clip, write_gpt2

import p2_attn_vis
import p2_caption
import peft_caption
from ckpt import registry
from inference.peft import BaseSource
from models.peft import identity_of, insert, method_of, save_peft


@pytest.fixture(scope="module")
def files(tmp_path_factory, photos):
    """A folder with a base, a random decoder_model.bin in gpt2/, and a random PEFT file over them;
    also captions, a CLIP, and a captioner of its own."""
    folder = tmp_path_factory.mktemp("files")
    write_base(folder / "base.safetensors")
    write_gpt2(folder / "gpt2")
    base = BaseSource(folder / "base.safetensors", folder / "gpt2" / "decoder_model.bin").open()
    method = method_of("adapter", bottleneck=4)
    torch.manual_seed(0)
    save_peft(folder / "peft.safetensors", insert(base, method), method, identity_of(base))
    write_captioner(folder / "whole.safetensors")
    write(folder / "c.json", coco(captions_of(photos)))
    write_clip(folder / "clip.safetensors")
    return folder


@pytest.fixture
def over(files, photos, monkeypatch):
    """The options of every script; the checkpoint comes from the environment."""
    monkeypatch.setattr(registry, "BASE", files / "base.safetensors")
    monkeypatch.setenv("HW3_P2_CKPT", str(files / "peft.safetensors"))
    return ["--decoder", files / "gpt2" / "decoder_model.bin", *CPU, "--images", photos]


def test_hw3_2_writes_captions_and_draws_them(files, tmp_path):
    project = copy_project(tmp_path / "my project")
    shutil.copy(files / "base.safetensors", project / "ckpt" / "captioner_base.safetensors")
    for label, name in enumerate(["a.b.jpg", "é 1.PNG"]):
        make_photo(tmp_path / "my photos" / name, label)
    decoder, peft = files / "gpt2" / "decoder_model.bin", str(files / "peft.safetensors")
    for output in ("o.json", "new figures"):
        result = bash(project / "hw3_2.sh", "my photos", output, decoder, cwd=tmp_path,
                      HW3_P2_CKPT=peft)
        assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "o.json").read_text())
    assert {path.name for path in (tmp_path / "new figures").iterdir()} == {"a.b.png", "é 1.png"}
    assert set(written) == {"a.b", "é 1"}


def test_every_script_opens_it_alike(files, over, tmp_path, capsys):
    scores = ["eval", "--captions", files / "c.json", *over, "--clip", files / "clip.safetensors"]
    theirs, ours = (json.loads(run_inside(script, *scores, capsys=capsys).stdout)
                    for script in (peft_caption, p2_caption))
    assert ours["metrics"] == theirs["metrics"] and "CIDEr" in ours["metrics"]
    assert ours["checkpoint"] == theirs["checkpoint"] == str(files / "peft.safetensors")
    output = tmp_path / "o.json"
    assert run_inside(p2_caption, "predict", *over, "--output", output,
                      capsys=capsys).returncode == 0
    result = run_inside(p2_attn_vis, *over, "--output", tmp_path / "all", capsys=capsys)
    drawn = {row["filename"].rpartition(".")[0]: row["caption"]
             for row in json.loads(result.stdout)["images"]}
    assert drawn == json.loads(output.read_text())


def test_best_and_worst_of_a_peft_file(files, over, tmp_path, capsys):
    result = run_inside(p2_attn_vis, *over, "--clip", files / "clip.safetensors", "--best-worst",
                        "--refs", files / "c.json", "--output", tmp_path / "two", capsys=capsys)
    assert result.returncode == 0, result.stderr
    assert {path.name.split("_")[0] for path in (tmp_path / "two").glob("*.png")} == {
        "best", "worst"}


@pytest.mark.parametrize("script", [peft_caption, p2_caption])
def test_a_captioner_of_its_own_needs_no_base(files, over, photos, tmp_path, capsys, script):
    words = ["predict", "--checkpoint", files / "whole.safetensors", "--output",
             tmp_path / "o.json"]
    assert run_inside(script, *words, "--images", photos, *CPU, capsys=capsys).returncode == 0
    (tmp_path / "o.json").unlink()
    result = run_inside(script, *words, *over, capsys=capsys)
    line, = error_lines(result)
    assert result.returncode == 1 and "is a whole captioner, which needs no --decoder" in line
    assert not (tmp_path / "o.json").exists()
