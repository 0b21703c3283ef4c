"""Caption files, tiny captioners and their parts, for tests of captioning and PEFT."""

from __future__ import annotations

import csv
import functools
import os
from pathlib import Path

import pytest
import torch
from conftest import TINY

from data.photos import list_images
from models.captioner import Captioner
from models.captioner_files import save_captioner
from models.checkpoint import digest, read_tensors
from models.clip import build_clip, save_clip
from models.gpt2 import GPT2Config
from models.tokenizer import train_bpe
from models.vit_gpt2 import add_cross_attention, build_captioner
from training.loop import Task

CPU = ["--device", "cpu", "--precision", "fp32"]
LENGTH = 12  # tokens that the captioners here can write
SQUARES = ["a red square", "a green square", "a blue square"]


# --- files --------------------------------------------------------------------------------------


def read_csv(path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def captions_of(folder) -> dict[str, list[str]]:
    """Three captions of each photo of ``conftest.make_folder``."""
    texts = [[f"a {colour} square", f"noise in {colour}", f"this photo is {colour} ."]
             for colour in ("red", "green", "blue")]
    return {path.name: list(texts[int(path.name[0])]) for path in list_images(folder)}


def weights(path, part: str = "") -> str:
    """A digest of a checkpoint's tensors whose names begin with ``part``."""
    return digest({key: value for key, value in read_tensors(path)[0].items()
                   if key.startswith(part)})


# --- models -------------------------------------------------------------------------------------


def tiny_base(seed: int = 0) -> Captioner:
    """A random language model on a random ViT."""
    torch.manual_seed(seed)
    tokenizer = train_bpe(SQUARES, 300)
    return build_captioner(TINY, GPT2Config(tokenizer.vocab_size, LENGTH, 16, 2, 2, None),
                           tokenizer)


def write_base(path: Path, seed: int = 0) -> Path:
    save_captioner(path, tiny_base(seed))
    return path


def write_captioner(path: Path) -> Path:
    """A random captioner whose captions differ from photo to photo."""
    model = add_cross_attention(tiny_base(seed=1))
    for name, parameter in model.named_parameters():  # larger than at the start of a training
        if parameter.ndim > 1 and not name.startswith("encoder.") and "wte" not in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.decoder.wte.weight.data[model.tokenizer.end_id] *= 1.5  # so that captions end
    save_captioner(path, model)
    return path


def write_clip(path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = train_bpe(SQUARES, 300)
    text = GPT2Config(tokenizer.vocab_size, 16, 16, 2, 2, cross_width=None)
    save_clip(path, build_clip(TINY, text, tokenizer, width=12, img_size=32).eval())
    return path


def write_gpt2(folder: Path, change=lambda tensors: None):
    """A tiny GPT-2 in the course's layout: decoder_model.bin, encoder.json and vocab.bpe.

    Returns transformers' model and tokenizer; ``change`` may change the file's tensors.
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    folder.mkdir()
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(["a red square"] * 2, vocab_size=262, show_progress=False,
                                  special_tokens=["<|endoftext|>"])
    for theirs, ours in zip(tokenizer.save_model(str(folder)), ("encoder.json", "vocab.bpe"),
                            strict=True):
        os.rename(theirs, folder / ours)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=262, n_positions=LENGTH, n_embd=64, n_head=1,
                                       n_layer=1)).half().float()
    tensors = dict(model.transformer.state_dict())
    tensors["h.0.attn.bias"] = torch.ones(1, 1, LENGTH, LENGTH).tril()
    change(tensors)
    torch.save(tensors, folder / "decoder_model.bin")
    return model.eval(), tokenizer


# --- trainings ----------------------------------------------------------------------------------


def interrupt_after_first_epoch(patch: pytest.MonkeyPatch, module) -> None:
    """Make trainings whose Task ``module`` builds end as by Ctrl-C once an epoch is saved."""
    def interrupt(history):
        raise KeyboardInterrupt

    patch.setattr(module, "Task", functools.partial(Task, after_epoch=interrupt))
