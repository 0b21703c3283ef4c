"""--rerank: of a beam search's captions, the one that a CLIP finds to fit the photo best."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import error_lines, run_inside
from makers_files import coco, write
from makers_training import CPU, captions_of, read_csv, write_captioner, write_clip

import p2_attn_vis
import p2_caption
from ckpt import registry
from data.compute import Compute
from inference.caption import caption_images, encode, open_captioner
from inference.options import RERANK, complete_rerank
from models.clip import open_clip
from models.decoding import Search, beam_search


@pytest.fixture(scope="module")
def world(tmp_path_factory, photos) -> Path:
    world = tmp_path_factory.mktemp("world")
    write_captioner(world / "tiny.safetensors")
    write_clip(world / "clip.safetensors")
    write(world / "v.json", coco(captions_of(photos)))
    return world


@pytest.fixture
def words(world, photos):
    return ["--images", photos, "--checkpoint", world / "tiny.safetensors", "--beam", "4", *CPU]


@pytest.fixture
def captions(words, tmp_path, capsys):
    """What predict writes with some options."""
    def run(*options) -> list[str]:
        result = run_inside(p2_caption, "predict", *words, *options, "--output",
                            tmp_path / "o.json", capsys=capsys)
        assert result.returncode == 0, result.stderr
        return list(json.loads((tmp_path / "o.json").read_text()).values())

    return run


def opened(world: Path, compute: Compute):
    return open_captioner(Namespace(
        model=None, checkpoint=world / "tiny.safetensors", base=str(registry.BASE), decoder=None,
        encoder=None, pretrained=False, weights=None, vocab=None, rerank=1.0,
        rerank_clip=world / "clip.safetensors"), compute)


def test_the_caption_of_the_highest_sum_is_chosen(world, photos):
    compute, paths = Compute("cpu", "fp32", 4), sorted(photos.iterdir())
    captioner, clip = opened(world, compute), open_clip(world / "clip.safetensors")
    changed = 0
    for weight in (0.0, 3.0, 1000.0):
        search = Search(beams=4, rerank=weight)
        readable, written, _ = caption_images(captioner, paths, search, compute)
        assert readable == paths
        for path, text in zip(paths, written, strict=True):  # one photo at a time
            images = captioner.views.tensor([captioner.views.load(path)], "cpu")
            found, = beam_search(captioner, encode(captioner, images, compute), search)
            texts = [captioner.tokenizer.decode(tokens) for _, tokens in found]
            look = clip.encode_image(
                clip.transform.tensor([clip.transform.load(path)], "cpu"))[0]
            sums = [score + weight * float(clip.encode_text([text])[0] @ look)
                    for (score, _), text in zip(found, texts, strict=True)]
            assert text == texts[sums.index(max(sums))]
            changed += text != texts[0]
            assert weight or text == texts[0]
    assert changed > 2  # the judge had something to say


def test_every_command_chooses_the_same(world, words, captions, photos, tmp_path, capsys):
    judge = ["--rerank-clip", world / "clip.safetensors"]
    plain, chosen = captions(), captions("--rerank", "1000", *judge)
    assert plain == captions("--rerank", "0") != chosen
    result = run_inside(p2_caption, "eval", *words, "--captions", world / "v.json", "--clip",
                        world / "clip.safetensors", "--vary", "rerank=0,1000", *judge, "--out",
                        tmp_path / "out", capsys=capsys)
    assert result.returncode == 0, result.stderr
    for weight, expected in (("0", plain), ("1000", chosen)):
        rows = read_csv(tmp_path / "out" / f"rerank-{weight}.csv")
        assert [row["caption"] for row in rows] == expected
    result = run_inside(p2_attn_vis, *words, "--rerank", "1000", *judge, "--output",
                        tmp_path / "maps", capsys=capsys)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert [row["caption"] for row in found["images"]] == chosen
    assert found["captions"] == "the captioner's, 4 beams, rerank 1000"


def test_only_the_shipped_captioner_is_reranked_by_default(world, tmp_path):
    def weight(checkpoint, model=None, rerank=None, beam=5):
        args, = complete_rerank(Namespace(checkpoint=checkpoint, model=model, rerank=rerank,
                                          beam=beam, rerank_clip=None))
        return args.rerank

    shipped = str(registry.FOLDER / "captioner.safetensors")
    shutil.copy(shipped, tmp_path / "copy")
    assert weight(shipped) == weight(tmp_path / "copy") == RERANK > 0
    with (tmp_path / "copy").open("r+b") as file:  # as large, but another file
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    assert weight(tmp_path / "copy") == 0
    assert weight(shipped, rerank=0.0) == weight(shipped, beam=1) == 0
    assert weight(world / "tiny.safetensors") == weight(None, model="catr") == 0
    assert weight(world / "tiny.safetensors", rerank=2.0) == 2


@pytest.mark.parametrize("options, message", [
    (["--rerank", "4", "--beam", "1"], "give --beam 2 or more, or --rerank 0"),
    (["--rerank-clip", "clip.safetensors"], "--rerank-clip has no effect without"),
    (["--rerank", "0", "--rerank-clip", "clip.safetensors"], "--rerank-clip has no effect"),
    (["--rerank", "4", "--rerank-clip", "no.safetensors"], "no.safetensors"),
    (["--rerank", "4", "--rerank-clip", "tiny.safetensors"], "tiny.safetensors"),
    (["--rerank", "4", "--rerank-clip", "o.json", "--output", "o.json"], "--rerank-clip"),
])
def test_wrong_options_are_one_line(world, words, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(world)
    output = [] if "--output" in options else ["--output", tmp_path / "o.json"]
    result = run_inside(p2_caption, "predict", *words, *output, *options, capsys=capsys)
    assert result.returncode == 1 and message in error_lines(result)[-1], result.stderr
    assert not (tmp_path / "o.json").exists()


def test_long_captions_are_cut_without_a_word(world, capsys):
    clip = open_clip(world / "clip.safetensors")
    long = ["a red square " * 60]
    assert torch.equal(clip.encode_text(long, quiet=True), clip.encode_text(long))
    assert capsys.readouterr().err.count("longer than") == 1
