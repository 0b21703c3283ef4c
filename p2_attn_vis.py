"""Report question: which part of the photo did the captioner look at as it wrote each word?

  python3 p2_attn_vis.py                                    the photos in samples/scenes/
  python3 p2_attn_vis.py --images a.jpg b.jpg --output out/
  python3 p2_attn_vis.py --images DIR --captions mine.json  maps of captions that you give
  python3 p2_attn_vis.py --images DIR --best-worst --refs val.json
  python3 p2_attn_vis.py --model catr --weights FILE --vocab vocab.txt

Writes <stem>.png for each photo: the photo titled <start>, then an overlay for each word of its
caption, the last one titled <end>. Prints numbers to stdout, as JSON. Takes about a second a photo.

A word's map is the cross-attention of the query that produced it, which stands at the token before
it, in the last decoder layer (--layer): the mean over its heads, or a row of panels for each head
(--heads each). A word of several tokens has the mean of their maps. --captions draws any captions
as if the model had written them, so that you can also inspect a wrong one. A caption that fills all
positions of the decoder has no <end>; a given caption that is longer is cut there, with a warning.
--best-worst draws the captions of highest and lowest CLIPScore beside their references, and writes
ranking.csv of all captions. --npz keeps two arrays for each image: <stem> (words, rows, cols), with
--heads each (heads, words, rows, cols), and <stem>.words, the words with <end>.

How to read the figure: dark blue is 0; yellow is the 97th percentile of all maps in the figure, and
everything above it; all words share this scale. Grey was cut off before the model saw the photo.
Words such as "of" follow from the words before them, and their maps say little. Attention says from
where the decoder takes information, not why it chose the word; and since the encoder has mixed all
patches, the information at a patch may come from another one. "entropy_bits" is small for a map
with a sharp peak; "entropy_share" is its share of the largest possible entropy, log2 of the number
of patches; "peak" is the patch with the most attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from utils import EXIT_SOME_UNREADABLE, ArgumentParser, UserError, printable, run, warn, write_json

import numpy as np

from ckpt import registry
from data.captions import of_images, read_captions, read_predictions
from data.compute import Compute
from data.files import check_outputs, write_csv
from data.photos import (
    image_paths,
    load_image,
    refuse_equal_stems,
    refuse_to_replace,
    report_unreadable,
)
from data.processes import team
from figures import maps
from inference.arrays import npz_writer
from inference.options import (
    BATCH_SIZES,
    add_captioner_options,
    add_run_options,
    add_search_options,
)

HERE = Path(__file__).resolve().parent
END = "<end>"
Texts = dict[Path, tuple[str, list[int]]]  # each image's caption, and its ids with the end token

# --- compute ------------------------------------------------------------------------------------


def given_captions(captioner, paths: Sequence[Path], file: str | Path) -> Texts:
    """The captions in ``file``, and their ids as the captioner would have written them."""
    texts: Texts = {}
    named = read_predictions(file)
    for path, text in of_images(named, paths, file).items():
        ids, limit = captioner.tokenizer.encode(text), captioner.max_length
        if len(ids) >= limit:
            warn(f"{path.name}: of the caption's {len(ids)} tokens and its end, the {limit} that "
                 "the captioner can write are drawn")
        texts[path] = text, [*ids, captioner.tokenizer.end_id][:limit]
    return texts


def word_maps(
    captioner, memory, rows: Sequence[Sequence[int]], layer: int
) -> list[tuple[list[str], np.ndarray]]:
    """For each image's ids: its words, and their maps (heads, words, grid rows, grid cols) float32.

    A word's map is the cross-attention of the queries that produced its tokens, computed in float32
    whatever the precision of ``memory``. Raises RuntimeError for a map that is not finite or does
    not sum to 1.
    """
    import torch

    tokenizer, device = captioner.tokenizer, memory.features.device
    tokens = torch.full((len(rows), max(map(len, rows))), tokenizer.end_id)
    for row, ids in zip(tokens, rows, strict=True):
        row[:len(ids)] = torch.tensor(ids)
    memory = replace(memory, features=memory.features.float())
    with torch.inference_mode():
        weights = captioner.cross_attention(memory, tokens.to(device), layer).cpu()
    off = (weights.sum(-1) - 1).abs().max().item()
    if not off < 1e-4:
        raise RuntimeError(f"attention rows of layer {layer} miss a sum of 1 by {off:.1e}")
    found = []
    for ids, heads, grid in zip(rows, weights, memory.grids, strict=True):
        words = tokenizer.words(ids)
        if ids[-1] == tokenizer.end_id:
            words.append((END, [len(ids) - 1]))
        words = words or [("", list(range(len(ids))))]  # a caption of spaces only
        each = torch.stack([heads[:, positions].mean(1) for _, positions in words], 1)
        each = each[..., :grid[0] * grid[1]]  # without the padding of a smaller grid
        found.append(([word for word, _ in words], each.unflatten(-1, grid).numpy()))
    return found


def numbers(grids: np.ndarray) -> list[dict]:
    """Maps (words, rows, cols) -> each word's entropy and the peak of its map."""
    import torch

    from models.attention import entropy

    cells = max(grids[0].size, 2)
    peaks = [np.unravel_index(grid.argmax(), grid.shape) for grid in grids]
    return [{"entropy_bits": round(bits, 4), "entropy_share": round(bits / np.log2(cells), 4),
             "peak": {"row": int(row), "col": int(col), "share": round(float(grid[row, col]), 4)}}
            for grid, bits, (row, col) in zip(
                grids, entropy(torch.from_numpy(grids)).tolist(), peaks, strict=True)]


def clip_scorer(source: str, compute: Compute):
    """A function (paths, captions) -> CLIPScore of each photo with its caption, (N,), computed with
    the CLIP ``source`` (Hessel et al. 2021)."""
    from inference.scoring import caption_scores
    from models.clip import open_clip

    clip = open_clip(source).to(compute.device)
    return lambda paths, texts: caption_scores(clip, paths, texts, compute, prefix="")[0]


# --- commands -----------------------------------------------------------------------------------


def draw(captioner, batch, memory, args, prefix="", notes=()) -> list[tuple[dict, np.ndarray]]:
    """Write a figure for each image of ``batch``, with ``notes`` under its title; returns, for
    each, its row for stdout and the maps in it."""
    layer = "last layer" if args.layer == -1 else f"layer {args.layer}"
    rows, each = [], args.heads == "each"
    found = word_maps(captioner, memory, [ids for *_, ids in batch], args.layer)
    for (path, text, ids), (words, heads) in zip(batch, found, strict=True):
        mean = heads.mean(0)
        photo = load_image(path, (480, 480))
        read = captioner.tokenizer.decode(ids) or "(an empty caption)"
        about = (f"{path.name}: cross-attention, {layer}, "
                 + ("each head" if each else f"mean of {len(heads)} heads"))
        figure = Path(args.output) / f"{prefix}{path.stem}.png"
        maps.word_panels(photo, heads if each else mean[None],
                         captioner.transform.box(*photo.size), words,
                         [read + " …" * (words[-1] != END), about, *notes], figure)
        described = [{"word": word, **row} for word, row in zip(words, numbers(mean), strict=True)]
        if each:
            for row, *parts in zip(described, *map(numbers, heads), strict=True):
                row["heads"] = parts
        rows.append(({"filename": path.name, "caption": text, "grid": list(mean.shape[1:]),
                      "words": described, "figure": str(figure)}, heads if each else mean))
    return rows


def draw_all(captioner, paths, texts, args, compute, unreadable) -> list[dict]:
    """Write a figure for each image and keep the maps in --npz; returns the rows for stdout."""
    from inference.caption import captioned_rows
    from models.decoding import Search

    rows = []
    with npz_writer(args.npz) as keep:
        for found in captioned_rows(captioner, paths, texts, Search.from_args(args), compute,
                                    partial(draw, captioner, args=args), unreadable):
            for row, grids in found:
                stem = Path(row["filename"]).stem
                keep(stem, grids)
                keep(f"{stem}.words", np.array([word["word"] for word in row["words"]]))
                rows.append(row)
    return rows


def draw_best_and_worst(captioner, paths, texts, args, compute, unreadable) -> dict:
    """Rank all captions by CLIPScore, draw the first and the last; returns what goes to stdout."""
    from inference.caption import captioned_rows
    from models.decoding import Search

    references = of_images(read_captions(args.refs), paths, args.refs)
    # A CLIP that cannot be opened is an error before the work, not after it.
    scorer = clip_scorer(args.clip, Compute.from_args(args, BATCH_SIZES["clip"]))
    search = Search.from_args(args)
    written = captioned_rows(captioner, paths, texts, search, compute,
                             lambda batch, memory: [(str(path), text, ids)
                                                    for path, text, ids in batch],
                             unreadable, "caption")
    texts = {Path(path): (text, ids)
             for path, text, ids in team().everyone(list(chain.from_iterable(written)))}
    if len(texts) < 2:
        raise UserError("--best-worst compares at least two images that can be read, here is one")
    scores = scorer(list(texts), [text for text, _ in texts.values()])
    ranking = sorted(zip(texts, map(float, scores), strict=True), key=lambda row: -row[1])
    table = Path(args.output) / "ranking.csv"
    write_csv(table, ["rank", "filename", "CLIPScore", "caption"], [
        [rank, path.name, repr(score), texts[path][0]]
        for rank, (path, score) in enumerate(ranking, start=1)])
    result = {"clip": str(args.clip), "ranking": str(table)}
    for kind, (path, score) in (("best", ranking[0]), ("worst", ranking[-1])):
        notes = [f"CLIPScore {score:.3f}, the {kind} of {len(ranking)} captions",
                 *(f"reference: {text}" for text in references[path])]
        drawn = captioned_rows(
            captioner, [path], texts, search, compute,
            partial(draw, captioner, args=args, prefix=f"{kind}_", notes=notes), [])
        for (row, _), in drawn:
            result[kind] = {"CLIPScore": score, "references": references[path], **row}
    return result


# --- command line -------------------------------------------------------------------------------


def make_parser():
    parser = ArgumentParser(prog="p2_attn_vis.py", description=__doc__)
    parser.add_argument("--images", nargs="+", default=[str(HERE / "samples" / "scenes")],
                        metavar="FILE|DIR", help="image files, or one folder")
    parser.add_argument("--output", default="runs/words", metavar="DIR", help="folder for figures")
    parser.add_argument("--layer", type=int, default=-1, metavar="N",
                        help="decoder layer, from 0; -1 is the last one")
    parser.add_argument("--heads", choices=("mean", "each"), default="mean",
                        help="mean over the heads, or a row of panels for each")
    parser.add_argument("--captions", metavar="JSON",
                        help='draw these captions, {"<image name>": "caption", …}, in place of the '
                             "model's own")
    parser.add_argument("--npz", metavar="FILE", help="write the maps and their words here")
    add_captioner_options(parser, registry.default("p2"))
    best = parser.add_argument_group("best and worst")
    best.add_argument("--best-worst", action="store_true",
                      help="rank the captions by CLIPScore, draw the first and the last")
    best.add_argument("--refs", metavar="JSON",
                      help="references in COCO's format, shown in the two figures")
    best.add_argument("--clip", default=str(registry.CLIP), metavar="NAME|FILE",
                      help="the CLIP that computes CLIPScore")
    add_search_options(parser)
    add_run_options(parser, None)
    return parser


def check_options(args, parser):
    """Wrong usage where options do not go together."""
    if args.best_worst != bool(args.refs):
        parser.error("--best-worst and --refs JSON go together")
    if args.best_worst and args.npz:
        parser.error("--npz keeps the maps of all images, --best-worst draws two; give one of them")


def check_files(paths, args):
    """Before any work, refuse outputs of equal names, outputs that cannot be written, and outputs
    that would replace an input."""
    refuse_equal_stems(paths)
    out = Path(args.output)
    figures = [out / f"{prefix}{path.stem}.png" for path in paths
               for prefix in (("best_", "worst_") if args.best_worst else ("",))]
    refuse_to_replace(paths, figures)
    table = [out / "ranking.csv"] if args.best_worst else []
    check_outputs({"--output": [*figures, *table], "--npz": args.npz},
                  {"--images": paths, "--captions": args.captions, "--refs": args.refs,
                   "--checkpoint": args.checkpoint, "--weights": args.weights,
                   "--vocab": args.vocab, "--clip": args.clip})
    if args.npz:
        stems = {printable(path.stem) for path in paths}
        if len(stems | {f"{stem}.words" for stem in stems}) < 2 * len(paths):
            raise UserError("--npz: two of all <stem> and <stem>.words are equal; rename an image")


def main():
    parser = make_parser()
    args = parser.parse_args()
    check_options(args, parser)
    paths = image_paths(args.images, args.limit)
    check_files(paths, args)

    from inference.caption import open_captioner

    compute = Compute.from_args(args, BATCH_SIZES["captioner"])
    captioner = open_captioner(args)
    captioner.check_layer(args.layer)
    texts = given_captions(captioner, paths, args.captions) if args.captions else None
    result = {"checkpoint": str(args.weights or args.checkpoint), "layer": args.layer,
              "heads": args.heads,
              "captions": args.captions or f"the captioner's, {args.beam} beams"}
    unreadable = []
    if args.best_worst:
        result |= draw_best_and_worst(captioner, paths, texts, args, compute, unreadable)
    else:
        result["images"] = draw_all(captioner, paths, texts, args, compute, unreadable)
        warn(f"wrote {len(result['images'])} figures into {args.output}")
    report_unreadable(paths, unreadable)
    write_json(result)
    return EXIT_SOME_UNREADABLE if unreadable else 0


if __name__ == "__main__":
    run(main)
