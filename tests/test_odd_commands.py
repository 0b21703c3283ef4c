"""The scripts as people call them: other spellings, several processes, models of their own."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import ROOT, error_lines, finished, run_script

import p1_vit_classify
from inference.parser import understood
from inference.zeroshot import TEMPLATES, read_templates
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


def test_a_training_of_two_processes_says_everything_once(tmp_path, photos):
    result = finished(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
                      "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", ROOT / P1,
                      *TRAIN, "--train", photos, "--val", photos, "--out", tmp_path / "out", *CPU)
    assert result.returncode == 0, result.stderr
    wrote = [line for line in result.stderr.splitlines() if line.startswith("wrote ")]
    assert len(wrote) == len(set(wrote)) == 3, wrote
