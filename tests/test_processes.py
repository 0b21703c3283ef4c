"""Several processes share the photos of one command: who takes what, and what comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

from utils import UserError

import numpy as np
import pytest
from conftest import CLASSES, ROOT, make_photo, run_inside
from makers_files import coco, write
from makers_training import CPU, captions_of, write_base, write_captioner, write_clip

import clip_zeroshot
import p1_vit_classify
import p2_attn_vis
import p2_caption
import peft_caption
from data import processes
from data.processes import Team, pack, unpack
from inference.peft import BaseSource
from models.peft import identity_of, insert, method_of, save_peft

# --- in one process, with threads in the place of processes ------------------------------------


def run_team(count: int, work) -> list:
    """What ``work(team)`` returns, or raises, for each of ``count`` members of one team."""
    from torch.distributed import HashStore

    store, results = HashStore(), [None] * count

    def member(rank: int) -> None:
        team = Team(rank, count)
        team._store = store
        try:
            results[rank] = work(team)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=member, args=[rank]) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 11])
def test_results_come_in_order_and_each_number_is_computed_once(members, count):
    taken = []

    def compute(numbers):
        for number in numbers:
            taken.append(number)
            yield number, [number, np.full((2, 3), number, np.float16)]

    first, *others = run_team(members, lambda team: list(team.share(count, compute)))
    assert [number for number, _ in first] == list(range(count)) == sorted(taken)
    assert all((values == number).all() and values.dtype == np.float16 and values.shape == (2, 3)
               for number, values in first)
    assert others == [[]] * (members - 1)


def test_a_slow_process_takes_less():
    done, may_go_on = {0: [], 1: []}, threading.Event()

    def work(team):
        def compute(numbers):
            for number in numbers:
                if team.rank == 1 and not may_go_on.wait(30):
                    raise TimeoutError
                done[team.rank].append(number)
                if len(done[0]) == 9:
                    may_go_on.set()
                yield number, number

        return list(team.share(10, compute))

    assert run_team(2, work)[0] == list(range(10))
    assert done == {0: [0, 2, 3, 4, 5, 6, 7, 8, 9], 1: [1]}


def test_everyone_gets_what_the_first_has(monkeypatch):
    monkeypatch.setattr(processes, "PART", 100)  # in many messages
    value = {"a": [1, 2.5, None, "caf\udce9"], "b": np.arange(200).reshape(4, 50), "c": np.zeros(0)}
    for found in run_team(3, lambda team: team.everyone(None if team.rank else value)):
        assert found["a"] == value["a"] and np.array_equal(found["b"], value["b"])
        assert found["c"].shape == (0,)
    assert unpack(pack([("x", "y"), {"array": 3}])) == [["x", "y"], {"array": 3}]


def test_an_error_of_another_process_reaches_the_first_in_one_line():
    def work(team):
        def compute(numbers):
            for number in numbers:
                if team.rank:
                    raise UserError("weights are nan")
                yield number, number

        return list(team.share(5, compute))

    first, second = run_team(2, work)
    assert isinstance(first, UserError) and str(first) == "process 1: weights are nan"
    assert str(second) == "weights are nan"


def test_a_process_that_sends_nothing_is_not_waited_for_forever(monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.05)
    first, _ = run_team(2, lambda team: team.rank or list(
        team.share(2, lambda numbers: ((number, 0) for number in numbers))))
    assert "has sent nothing for 0.05 s" in str(first)


def test_processes_that_see_other_photos_are_refused():
    first, second = run_team(2, lambda team: team.require_equal([f"{team.rank}.jpg"], "photos"))
    assert first is None and "process 1 sees other photos than the first" in str(second)


# --- under torchrun ------------------------------------------------------------------------------

# Runs commands one after the other, since to start torch takes longer than they do.
DRIVER = """
import importlib, json, sys
from utils import run

def main():
    for script, *words in json.load(open(sys.argv[1])):
        sys.argv[1:] = words
        try:
            importlib.import_module(script).main()
        except SystemExit as end:  # where a prediction ends for all processes but the first
            assert end.code == 0

run(main)
"""
SEARCH = ["--beam", "2", "--no-repeat-ngram", "0"]
TRAINED = "trained"  # the gradients of two processes are added in another order


def commands(world, photos, out) -> list[list[str]]:
    small, captioner = [*CPU, "--batch-size", "2"], world / "captioner.safetensors"
    named, clip = world / "names.json", world / "clip.safetensors"
    words = [
        ["p1_vit_classify", "predict", "--images", photos, "--output", out / "p1.csv",
         "--checkpoint", world / "p1.safetensors", *small],
        ["p1_vit_classify", "eval", "--images", photos, "--output", out / "p1.json",
         "--checkpoint", world / "p1.safetensors", *small],
        ["clip_zeroshot", "predict", "--images", photos, "--labels", named, "--model", clip,
         "--output", out / "clip.csv", *small],
        ["clip_zeroshot", "eval", "--images", photos, "--labels", named, "--model", clip,
         "--embeddings", out / "kept.npz", "--output", out / "clip.json", *small],
        ["p2_caption", "predict", "--images", photos, "--output", out / "captions.json",
         "--checkpoint", captioner, *SEARCH, *small],
        ["p2_caption", "eval", "--images", photos, "--captions", world / "refs.json", "--clip",
         clip, "--checkpoint", captioner, "--output", out / "scores.json", "--per-image",
         out / "each.csv", *SEARCH, *small],
        ["p2_caption", "score", "--images", photos, "--predictions", out / "captions.json",
         "--captions", world / "refs.json", "--clip", clip, "--per-image", out / "clip_scores.csv",
         *small],
        ["peft_caption", "predict", "--images", photos, "--output", out / "peft.json",
         "--checkpoint", world / "peft.safetensors", "--base", world / "base.safetensors",
         *SEARCH, *small],
        ["peft_caption", "train", "--method", "prefix", "--images", photos, "--captions",
         world / "refs.json", "--base", world / "base.safetensors", "--hold-out", "2", "--epochs",
         "1", "--features", out / "features", "--out", out / TRAINED, *small],
        ["p2_attn_vis", "--images", photos, "--checkpoint", captioner, "--output", out / "words",
         "--npz", out / "words.npz", "--limit", "3", *SEARCH, *small],
    ]
    return [[str(word) for word in line] for line in words]


@pytest.fixture(scope="module")
def world(tmp_path_factory, photos, checkpoint):
    world = tmp_path_factory.mktemp("world")
    (world / "p1.safetensors").symlink_to(checkpoint)
    base = BaseSource(write_base(world / "base.safetensors")).open()
    method = method_of("prefix")
    save_peft(world / "peft.safetensors", insert(base, method), method, identity_of(base))
    write_captioner(world / "captioner.safetensors")
    write_clip(world / "clip.safetensors")
    write(world / "refs.json", coco(captions_of(photos)))
    write(world / "names.json", {label: f"thing {label}" for label in CLASSES})
    return world


def test_two_processes_write_what_one_writes(world, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    scripts = {"p1_vit_classify": p1_vit_classify, "clip_zeroshot": clip_zeroshot,
               "p2_caption": p2_caption, "p2_attn_vis": p2_attn_vis, "peft_caption": peft_caption}
    for script, *words in commands(world, photos, tmp_path / "one"):
        result = run_inside(scripts[script], *words, capsys=capsys)
        assert result.returncode == 0, result.stderr
    (tmp_path / "driver.py").write_text(DRIVER)
    write(tmp_path / "commands.json", commands(world, photos, tmp_path / "two"))
    result = torchrun(tmp_path / "driver.py", tmp_path / "commands.json")
    assert result.returncode == 0, result.stderr
    one, two = ({str(file.relative_to(tmp_path / side)): file.read_bytes()
                 for file in (tmp_path / side).rglob("*")
                if file.is_file() and file.parent.name != TRAINED}
                for side in ("one", "two"))
    assert sorted(one) == sorted(two) and len(one) == 16
    for name in one:
        if name.endswith(".npz"):
            arrays = [np.load(tmp_path / side / name) for side in ("one", "two")]
            assert arrays[0].files == arrays[1].files
            assert all(np.array_equal(arrays[0][key], arrays[1][key]) for key in arrays[0].files)
        else:
            assert one[name] == two[name], name
    assert result.stdout.count("\"caption\"") == 3  # one process prints
    assert result.stderr.count("wrote ") == sum(line.startswith("wrote ") for line
                                                in result.stderr.splitlines()) > 5


def test_a_process_that_dies_ends_all_in_one_line(world, tmp_path):
    for number in range(12):
        make_photo(tmp_path / "photos" / f"0_{number}.png", seed=number)
    (tmp_path / "driver.py").write_text(
        "import os, signal\nfrom utils import run\nfrom data.processes import team\n"
        "import inference.predictions, p1_vit_classify\n"
        "stamp = inference.predictions.file_stamp\n"
        "def dies(path):\n"
        "    if team().rank == 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return stamp(path)\n"
        "inference.predictions.file_stamp = dies\n"
        "run(p1_vit_classify.main)\n")
    result = torchrun(tmp_path / "driver.py", "predict", "--images", tmp_path / "photos",
                      "--output", tmp_path / "o.csv", "--checkpoint", world / "p1.safetensors",
                      "--batch-size", "2", *CPU)
    assert result.returncode == 1 and not (tmp_path / "o.csv").exists()
    assert result.stderr.count("stopped by SIGTERM; nothing half-written is left") == 1
    assert not list(tmp_path.glob(".tmp-*"))


def torchrun(script, *words) -> subprocess.CompletedProcess:
    """Run a script in two processes."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(script), *map(str, words)], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300)


def test_the_numbers_of_a_result_survive_the_way_through_the_store():
    row = [0.1 + 0.2, 1e-300, -0.0, 2**53 + 1]
    assert json.dumps(unpack(pack(row))) == json.dumps(row)
