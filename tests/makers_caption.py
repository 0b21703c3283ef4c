"""Tiny captioners, their memories and caption files, for every test that needs them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from conftest import TINY
from torch import nn

from models.captioner import Captioner, Memory
from models.captioner_files import save_captioner
from models.checkpoint import load_strict
from models.gpt2 import GPT2Config, from_gpt2
from models.tokenizer import train_bpe
from models.vit_gpt2 import ViTGPT2, add_cross_attention, build_captioner

END = 0  # the start and end token of toy captioners
TEXTS = ["A dog runs .", "The man 's dog , a tri-colored one , runs !", "two men -- talking",
         "a café"]


# --- captioners ---------------------------------------------------------------------------------


def toy_captioner(vocab_size: int = 30, encoder_width: int = 24, **options) -> ViTGPT2:
    """A random decoder for memories that are given; it has no encoder that could make them."""
    tokenizer = SimpleNamespace(start_id=END, end_id=END, pad_id=END, vocab_size=vocab_size)
    encoder = nn.Module()
    encoder.embed_dim = encoder_width
    config = GPT2Config(vocab_size, **{"max_length": 32, "width": 24, "layers": 2, "heads": 3,
                                       "cross_width": 24, **options})
    captioner = ViTGPT2(encoder, config, tokenizer, {}, {}).eval().requires_grad_(False)
    for parameter in captioner.parameters():
        nn.init.normal_(parameter, std=0.4)
    return captioner


def random_gpt2(seed: int):
    """(transformers' GPT-2 with cross-attention, a ``ViTGPT2`` with the same weights)."""
    from transformers import GPT2Config as TheirConfig
    from transformers import GPT2LMHeadModel

    torch.manual_seed(seed)
    theirs = GPT2LMHeadModel(TheirConfig(
        vocab_size=30, n_positions=32, n_embd=24, n_layer=2, n_head=3, add_cross_attention=True,
        bos_token_id=END, eos_token_id=END, pad_token_id=END)).eval().requires_grad_(False)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    captioner = toy_captioner()
    load_strict(captioner.decoder, from_gpt2(theirs.state_dict()), "transformers")
    return theirs, captioner


def memory_of(count: int, seed: int = 0, width: int = 24) -> Memory:
    """A random memory of ``count`` images of 1 × 5 cells."""
    torch.manual_seed(seed)
    return Memory(torch.randn(count, 5, width), [(1, 5)] * count)


def biased(captioner: Captioner, bias) -> Captioner:
    """The captioner with ``bias`` (scalar or one an image) added to the end token's logit."""
    plain = captioner.step

    def step(tokens, state):
        logits, state = plain(tokens, state)
        logits[:, END] += bias
        return logits, state

    captioner.step = step
    return captioner


# --- files --------------------------------------------------------------------------------------


def write_captioner(path: Path, texts: list[str], max_length: int) -> Path:
    """A checkpoint of two layers and two heads that writes a different nonsense about each photo.
    Its tokenizer is trained on ``texts``."""
    torch.manual_seed(1)
    tokenizer = train_bpe(texts, 300)
    config = GPT2Config(tokenizer.vocab_size, max_length, 16, 2, 2, cross_width=None)
    captioner = add_cross_attention(build_captioner(TINY, config, tokenizer))
    for name, parameter in captioner.named_parameters():  # or all photos would get one caption
        if parameter.ndim > 1 and not name.startswith("encoder.") and "wte" not in name:
            nn.init.normal_(parameter, std=0.5)
    captioner.decoder.wte.weight.data[tokenizer.end_id] *= 1.5  # or no caption would end
    save_captioner(path, captioner)
    return path


