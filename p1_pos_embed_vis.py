"""Report question: what does a vision transformer's position embedding know about the image grid?

  python3 p1_pos_embed_vis.py                                        the shipped classifier
  python3 p1_pos_embed_vis.py --model vit_base_patch16_224 --pretrained --output pos.png
  python3 p1_pos_embed_vis.py --checkpoint a.safetensors --model sincos2d     side by side

Draws the figure of the ViT paper (Dosovitskiy et al. 2021, Fig. 7, centre) and prints its numbers
as JSON; a few seconds. "sincos2d" is the fixed two-dimensional sine-cosine embedding, on the grid
and in the width of the first model.

How to read the figure: each tile belongs to the patch at its place in the grid and shows how alike
(cosine, -1 to 1) that patch's embedding is to those of all patches, each at its own place. The
bright spot is the patch itself. A cross around it means that patches of the same row and column are
more alike: the model has learned the grid from data, nobody told it. The curve to the right says
how fast likeness falls with distance. "same_row" and "same_column" are the means over pairs of
patches in one row or column, "elsewhere" over all others: if the first two are clearly larger, the
cross is there, whatever the eye sees.
"""

from __future__ import annotations

from pathlib import Path

from utils import ArgumentParser, UserError, check_writable, run, warn, whole_file, write_json

import numpy as np

from ckpt import registry
from figures import maps
from inference.options import add_run_options

# --- compute ------------------------------------------------------------------------------------


def cosine_similarity(embedding: np.ndarray) -> np.ndarray:
    """(patches, C) -> (patches, patches), from -1 to 1; 0 for an embedding of length 0."""
    lengths = np.linalg.norm(embedding, axis=1, keepdims=True)
    unit = embedding / np.where(lengths == 0, 1, lengths)
    return np.clip(unit @ unit.T, -1, 1)


def grid_pairs(grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(same row, same column, distance in patches), each (patches, patches)."""
    rows, cols = (index.ravel() for index in np.indices(grid))
    down, across = rows[:, None] - rows, cols[:, None] - cols
    return down == 0, across == 0, np.hypot(down, across)


def structure(similarity: np.ndarray, grid: tuple[int, int]) -> dict:
    """Mean similarity of pairs of different patches in one row, in one column, elsewhere, and by
    distance, rounded to whole patches."""
    same_row, same_column, distance = grid_pairs(grid)
    pairs = distance > 0
    rounded = np.rint(distance).astype(int)

    def mean(chosen):
        return round(float(similarity[chosen].mean()), 4) if chosen.any() else None

    return {
        "same_row": mean(same_row & pairs),
        "same_column": mean(same_column & pairs),
        "elsewhere": mean(~same_row & ~same_column),
        "by_distance": {int(step): mean((rounded == step) & pairs)
                        for step in np.unique(rounded[pairs])},
    }


# --- commands -----------------------------------------------------------------------------------


def parse_args():
    parser = ArgumentParser(prog="p1_pos_embed_vis.py", description=__doc__)
    parser.add_argument("--model", action="append", default=[], metavar="NAME|FILE",
                        help="timm's name, hf:owner/name, a file, or sincos2d; may be repeated")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="FILE",
                        help="a classifier, of this project or another library's layout; may be "
                             "repeated")
    parser.add_argument("--pretrained", action="store_true",
                        help="timm's weights for each NAME (network)")
    parser.add_argument("--weights", metavar="FILE", help="these weights for NAME")
    parser.add_argument("--output", default="runs/pos_embed.png", metavar="PNG", help="the figure")
    parser.add_argument("--npz", metavar="FILE",
                        help="keep similarity (patches, patches) and grid of the one model here")
    add_run_options(parser, batch_size=1)
    return parser.parse_args()


def main():
    args = parse_args()
    sources = [*args.checkpoint, *args.model] or [str(registry.default("p1"))]
    if args.npz and len(sources) > 1:
        raise UserError("--npz keeps one model's similarity; give one --model or --checkpoint")
    for path in filter(None, (args.output, args.npz)):
        check_writable(path)

    from models.vit import position_embedding, sincos2d

    named = {}
    for source in sources:
        if source == "sincos2d":
            first = next(iter(named.values()), None)
            named[source] = sincos2d(*first) if first else sincos2d(np.zeros((196, 192)), (14, 14))
        else:
            named[Path(source).stem if Path(source).is_file() else source] = position_embedding(
                source, args.pretrained, args.weights)
    similarities = {name: (cosine_similarity(embedding), grid)
                    for name, (embedding, grid) in named.items()}
    numbers = {name: {"grid": list(grid), **structure(similarity, grid)}
               for name, (similarity, grid) in similarities.items()}
    maps.position_tiles(similarities, {n: v["by_distance"] for n, v in numbers.items()},
                           args.output)
    warn(f"wrote {args.output}")
    if args.npz:
        (similarity, grid), = similarities.values()
        with whole_file(args.npz) as temporary, open(temporary, "wb") as file:
            np.savez(file, similarity=similarity, grid=np.array(grid))
        warn(f"wrote {args.npz}")
    write_json(numbers)
    return 0


if __name__ == "__main__":
    run(main)
