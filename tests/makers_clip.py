"""Tiny CLIP models, captions and a small WordNet for the tests."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from conftest import TINY
from timm.data import ImageNetInfo

from models.clip import build_clip, save_clip
from models.gpt2 import GPT2Config
from models.tokenizer import train_bpe

TEXTS = ["a photo of a dog", "cat", "", "This is a photo of 2 palm trees!"]
LONG = "a dog and " * 30 + "a cat"


def write_hub_clip(folder, seed=0, context=40, **processor):
    """A random CLIPModel with the files that transformers writes for one; 32 pixels a side."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "do", "dog</w>", "ph",
             "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({word: place for place, word in enumerate(words)},
                              [("d", "o"), ("do", "g</w>"), ("p", "h")], model_max_length=context)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config=size | {"image_size": 32, "patch_size": 8},
        text_config=size | {
            "vocab_size": len(words), "max_position_embeddings": context,
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id},
        projection_dim=24)
    torch.manual_seed(seed)
    processor = CLIPImageProcessor(**{"size": {"shortest_edge": 32}, "crop_size": 32} | processor)
    for part in (CLIPModel(config), tokenizer, processor):
        part.save_pretrained(folder)
    return folder


def tiny_encoder(seed=0, context=16):
    """A DualEncoder with random weights; 32 pixels a side, 12 features."""
    tokenizer = train_bpe([*TEXTS, "a bicycle, a palm tree"] * 3, 320)
    torch.manual_seed(seed)
    return build_clip(TINY, GPT2Config(tokenizer.vocab_size, context, 16, 2, 2, cross_width=None),
                      tokenizer, width=12, img_size=32).eval()


def write_clip(path, seed=0, **options):
    """``tiny_encoder`` as a checkpoint."""
    save_clip(path, tiny_encoder(seed, **options), about="random weights")
    return path


def read_csv(path: Path) -> list[list[str]]:
    """The rows of a CSV, the header first."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file))


def write_wordnet(folder: Path) -> Path:
    """A WordNet of ImageNet's 1,000 classes and one hypernym of them all, "thing"."""
    info, lines = ImageNetInfo(), ["00000001 03 n 01 thing 0 000 | whatever there is"]
    for index in range(1000):
        names, _, gloss = info.index_to_description(index, detailed=True).partition(": ")
        names = [name.strip().replace(" ", "_") for name in names.split(",")]
        words = " ".join(f"{name} 0" for name in names)
        lines.append(f"{index + 2:08} 03 n {len(names):02x} {words} 001 @ 00000001 n 0000 | "
                     f"{gloss}")
    folder.mkdir()
    (folder / "data.noun").write_text("\n".join(lines) + "\n")
    (folder / "index.sense").write_text("tench%1:05:00:: 00000002 1 3\n")
    return folder


def class_names() -> list[str]:
    """The first name of each ImageNet class, in lower case; two of them occur twice."""
    info = ImageNetInfo()
    return [info.index_to_description(index).split(",")[0].lower() for index in range(1000)]


def write_name_vectors(path: Path, extra: dict[str, np.ndarray], without: str = "") -> Path:
    """Random sentence vectors (8,) of the class names but ``without``, and those of ``extra``."""
    random = np.random.default_rng(0)
    vectors = {name: random.normal(size=8) for name in class_names()}
    vectors = {name: vector for name, vector in (vectors | extra).items() if name != without}
    np.savez(path, names=np.array(list(vectors)), vectors=np.stack(list(vectors.values())))
    return path
