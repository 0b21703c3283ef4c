"""What reading attention costs; prints one JSON. Compared are the class token's row of the last
layer and all layers, as ``models.attention`` captures them, and all layers in the usual way (fused
attention off, a hook on every layer).

    python3 benchmarks/attention.py [--model vit_base_patch16_224] [--batch 16] [--rounds 15]

These and a plain forward pass run in turn within each round, on the same images, in float32. A
ratio is the median over the rounds of the time divided by that of the round's plain forward pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import timm
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def usual(model, images):
    """Fused attention off everywhere, the probabilities of every layer kept by a hook."""
    kept, handles = [], []
    for block in model.blocks:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_hook(
            lambda module, inputs, output: kept.append(output.cpu())))
    model(images)
    for handle in handles:
        handle.remove()
    for block in model.blocks:
        block.attn.fused_attn = True
    assert len(kept) == len(model.blocks)


def ours(layers, queries):
    """A function that captures these layers and queries."""
    from models.attention import capture_attention

    def run(model, images):
        with capture_attention(model, layers, queries):
            model(images)
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model(options.model).eval()
    images = torch.randn(options.batch, 3, *model.patch_embed.img_size)
    ways = {
        "plain": lambda model, images: model(images),
        "cls_row_of_last_layer": ours([-1], slice(1)),
        "all_layers": ours(range(len(model.blocks)), slice(None)),
        "usual_all_layers_unfused": usual,
    }
    seconds = {name: [] for name in ways}
    with torch.inference_mode():
        for number in range(options.rounds + 2):
            for name, way in ways.items():
                started = time.perf_counter()
                way(model, images)
                if number >= 2:  # the first two rounds warm up
                    seconds[name].append(time.perf_counter() - started)
    ratios = {name: round(statistics.median(
        a / b for a, b in zip(values, seconds["plain"], strict=True)), 3)
        for name, values in seconds.items()}
    print(json.dumps({
        "model": options.model, "batch": options.batch,
        "plain_images_per_s": round(options.batch / statistics.median(seconds["plain"]), 1),
        "time_over_plain": ratios}, indent=2))


if __name__ == "__main__":
    main()
