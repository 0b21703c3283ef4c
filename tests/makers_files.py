"""Files that other libraries would write, small and random."""

from __future__ import annotations

import torch


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


def in_cache(cache, name, *files):
    """``files`` as the hub's cache holds a repository's."""
    folder = cache / f"models--{name.replace('/', '--')}"
    for file in files:
        (folder / "snapshots" / "0").mkdir(parents=True, exist_ok=True)
        (folder / "snapshots" / "0" / file.name).write_bytes(file.read_bytes())
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text("0")
