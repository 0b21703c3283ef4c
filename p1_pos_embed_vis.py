"""Report question: what does a vision transformer's position embedding know about the image grid?

  python3 p1_pos_embed_vis.py                                        the shipped classifier
  python3 p1_pos_embed_vis.py --model vit_base_patch16_224 --pretrained --output pos.png
  python3 p1_pos_embed_vis.py --checkpoint a.safetensors --model sincos2d     side by side

Draws the figure of the ViT paper (Dosovitskiy et al. 2021, Fig. 7, centre) and prints its numbers
as JSON. "sincos2d" is the fixed two-dimensional sine-cosine embedding, on the grid and in the width
of the first model.

What to expect: a few seconds; docs/attention.md shows and explains an example.
How to read the figure: each tile belongs to the patch at its place in the grid. It shows the cosine
similarity (-1 to 1) of that patch's embedding to those of all patches, each at its own place. The
bright spot is the patch itself. A cross around it means that patches of the same row and column are
more similar: the model learned the grid from data, since nothing else tells it about rows and
columns. The curve at the right says how fast the similarity falls with distance. "same_row" and
"same_column" are the means over pairs of patches in one row or column, "elsewhere" over all other
pairs: where the first two are clearly larger, the cross is there, even if it is hard to see.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out
from utils import UserError, run, warn

import numpy as np

from ckpt import registry
from data.files import check_outputs
from data.photos import figure_file
from figures import maps
from inference.arrays import npz_writer
from inference.options import add_fine_tuned_options, add_json_option
from inference.parser import Parser
from inference.results import of_positions, write_result

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


def names_apart(sources: list[str]) -> list[str]:
    """A name of its own for each source: of a file its stem, and as much of its path as tells it
    from the others."""
    paths = [Path(source).absolute() if Path(source).is_file() else None for source in sources]
    names = [path.stem if path else source for path, source in zip(paths, sources, strict=True)]
    for length in range(1, max(len(path.parts) if path else 1 for path in paths)):
        count = Counter(names)
        names = ["/".join(path.parts[-length:]) if path and count[name] > 1 else name
                 for path, name in zip(paths, names, strict=True)]
    return names


def read_embeddings(sources, pretrained, weights, averaged):
    """{name of each source: ((patches, C), (rows, cols))}; ``weights`` are for timm's names."""
    from models.hub import local_file  # these import torch
    from models.positions import position_embedding, sincos2d

    embeddings = {}
    for source, name in zip(sources, names_apart(sources), strict=True):
        if source == "sincos2d":
            first, grid = next(iter(embeddings.values()), (np.zeros((196, 192)), (14, 14)))
            embeddings[name] = sincos2d(first.shape[1], grid), grid
        else:
            named = local_file(source) is None
            embeddings[name] = position_embedding(
                source, pretrained, weights if named else None, averaged)
    return embeddings


def make_parser():
    parser = Parser(prog="p1_pos_embed_vis.py", description=__doc__)
    parser.add_argument("--model", action="append", default=[], metavar="NAME|FILE",
                        help="timm's name, hf:owner/name, a file, or sincos2d; may be repeated")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="FILE",
                        help="a classifier, of this project or another library's layout; may be "
                             "repeated")
    parser.add_argument("--pretrained", action="store_true",
                        help="timm's weights for each NAME (network)")
    add_fine_tuned_options(parser)
    parser.add_argument("--output", default="runs/pos_embed.png", metavar="PNG|DIR",
                        help="the figure; pos_embed.png in a folder")
    parser.add_argument("--npz", metavar="FILE",
                        help="keep similarity (patches, patches) and grid of the one model here")
    add_json_option(parser)
    return parser


def main():
    args = make_parser().parse_args()
    sources = [*dict.fromkeys([*args.checkpoint, *args.model])] or [str(registry.default("p1"))]
    if args.weights and not args.model:
        raise UserError("--weights goes with a model's name; give --model NAME")
    if args.npz and len(sources) > 1:
        raise UserError("--npz keeps one model's similarity; give one --model or --checkpoint")
    figure = figure_file(args.output, "pos_embed")
    check_outputs({"--output": figure, "--npz": args.npz, "--json": args.json},
                  {"--checkpoint": sources, "--weights": args.weights})
    embeddings = read_embeddings(sources, args.pretrained, args.weights, args.ema_weights)
    similarities = {name: (cosine_similarity(embedding), grid)
                    for name, (embedding, grid) in embeddings.items()}
    numbers = {name: {"grid": list(grid), **structure(similarity, grid)}
               for name, (similarity, grid) in similarities.items()}
    maps.position_tiles(similarities, {name: row["by_distance"] for name, row in numbers.items()},
                        figure)
    warn(f"wrote {figure}")
    if args.npz:
        (similarity, grid), = similarities.values()
        with npz_writer(args.npz) as keep:
            keep("similarity", similarity)
            keep("grid", np.array(grid))
    write_result(numbers, of_positions(numbers), args.json)


if __name__ == "__main__":
    run(main)
