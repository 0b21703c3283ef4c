"""Report question: which part of the photo did the captioner look at as it wrote each word?

  python3 p2_attn_vis.py                                    the photos in samples/scenes/
  python3 p2_attn_vis.py --images a.jpg b.jpg --output out/
  python3 p2_attn_vis.py --images DIR --captions mine.json  maps of captions that you give
  python3 p2_attn_vis.py --images DIR --best-worst --refs val.json
  python3 p2_attn_vis.py --model catr --weights FILE --vocab vocab.txt

Writes <stem>.png for each photo: the photo titled <start>, then an overlay for each word of its
caption, the last for <end>; and numbers to stdout, as JSON. About a second for a photo.

A word's map is the cross-attention of the query that produced it, the one that stands at the token
before, in the last decoder layer (--layer): the mean over its heads, or a row of panels for each
(--heads each). A word of several tokens has the mean of their maps. --captions draws any captions
as if the model had written them, so that a wrong one can be inspected too. A caption that fills all
the places of the decoder has no <end>; a given one that is longer is cut there, with a warning.
--best-worst draws the captions of highest and lowest CLIPScore beside their references, and writes
ranking.csv of all. --npz keeps for each image the array <stem> (words, rows, cols), with --heads
each (heads, words, rows, cols), and the words, <end> included, in <stem>.words.

How to read the figure: dark blue is 0, yellow the 97th percentile of all its maps and all above it,
one scale for all words; grey was cut off before the model saw the photo. Words such as "of" follow
from the words before them, and their maps say little. Attention says where the decoder gathers
from, not why it chose the word; and as the encoder has mixed all patches, what it gathers there may
be of elsewhere. "entropy_bits" is small for a pointed map, "entropy_share" is it over log2 of the
number of patches, its most; "peak" is the patch that draws most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils import (
    EXIT_SOME_UNREADABLE,
    ArgumentParser,
    UserError,
    check_writable,
    printable,
    run,
    warn,
    write_csv,
    write_json,
)

import numpy as np

from ckpt import registry
from data.captions import of_images, read_captions, read_predictions
from data.photos import (
    image_paths,
    load_image,
    refuse_equal_stems,
    refuse_to_replace,
    report_unreadable,
)
from data.transform import Transform
from figures import maps
from inference.arrays import npz_writer
from inference.options import add_captioner_options, add_run_options, add_search_options

HERE = Path(__file__).resolve().parent
END = "<end>"
Texts = dict[Path, tuple[str, list[int]]]  # each image's caption, and its ids with the end token

# --- compute ------------------------------------------------------------------------------------


def written_captions(captioner, memory, search) -> list[tuple[str, list[int]]]:
    """The captioner's own captions and their ids, the end token included where it was written."""
    from models.decoding import generate

    limit = min(search.max_length or captioner.max_length, captioner.max_length)
    return [(captioner.tokenizer.decode(ids), [*ids, captioner.tokenizer.end_id][:limit])
            for ids in generate(captioner, memory, search)]


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


def word_maps(captioner, memory, rows: Sequence[Sequence[int]], layer: int) -> list[tuple]:
    """For each image's ids (words, maps (heads, words, grid rows, grid cols) float32).

    A word's map is what the queries that wrote its tokens saw, in float32 whatever the precision
    of ``memory``. Raises RuntimeError for a map that is not finite or does not sum to 1.
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
        words = words or [("", list(range(len(ids))))]  # spaces alone
        maps = torch.stack([heads[:, places].mean(1) for _, places in words], 1)
        maps = maps[..., :grid[0] * grid[1]]  # without what pads a smaller grid
        found.append(([word for word, _ in words], maps.unflatten(-1, grid).numpy()))
    return found


def numbers(maps: np.ndarray) -> list[dict]:
    """Maps (words, rows, cols) -> for each word how pointed its map is, and where it peaks."""
    import torch

    from models.attention import entropy

    cells = max(maps[0].size, 2)
    peaks = [np.unravel_index(grid.argmax(), grid.shape) for grid in maps]
    return [{"entropy_bits": round(bits, 4), "entropy_share": round(bits / np.log2(cells), 4),
             "peak": {"row": int(row), "col": int(col), "share": round(float(grid[row, col]), 4)}}
            for grid, bits, (row, col) in zip(maps, entropy(torch.from_numpy(maps)).tolist(), peaks,
                                              strict=True)]


def clip_scorer(args):
    """A function (paths, captions) -> CLIPScore of each photo with its caption (N,), by --clip
    (Hessel et al. 2021)."""
    from inference.scoring import caption_scores
    from models.clip import open_clip

    clip = open_clip(args.clip).to(args.device)
    return lambda paths, texts: caption_scores(clip, paths, texts, args, prefix="")[0]


# --- commands -----------------------------------------------------------------------------------


def captioned_batches(captioner, paths, args, texts: Texts | None, unreadable, title="attention"):
    """Yield ([(path, caption, its ids)], memory) batch by batch; ``texts`` None: the captioner's
    own captions."""
    from inference.caption import encoded_batches, search_from

    for names, memory in encoded_batches(captioner, paths, args, unreadable, title):
        batch = ([texts[path] for path in names] if texts is not None
                 else written_captions(captioner, memory, search_from(args)))
        yield [(path, *text) for path, text in zip(names, batch, strict=True)], memory
    if len(unreadable) == len(paths):
        report_unreadable((), unreadable)


def draw_all(captioner, paths, args, texts, unreadable, prefix="", notes=()) -> list[dict]:
    """Write the figures, ``notes`` under their titles; returns their rows for stdout."""
    transform = Transform.from_fields(captioner.preprocessing)
    layer = "last layer" if args.layer == -1 else f"layer {args.layer}"
    rows, each = [], args.heads == "each"
    with npz_writer(args.npz) as keep:
        for batch, memory in captioned_batches(captioner, paths, args, texts, unreadable):
            found = word_maps(captioner, memory, [ids for *_, ids in batch], args.layer)
            for (path, text, ids), (words, heads) in zip(batch, found, strict=True):
                mean = heads.mean(0)
                photo = load_image(path, (480, 480))
                read = captioner.tokenizer.decode(ids) or "(an empty caption)"
                about = (f"{path.name}: cross-attention, {layer}, "
                         + ("each head" if each else f"mean of {len(heads)} heads"))
                figure = Path(args.output) / f"{prefix}{path.stem}.png"
                maps.word_panels(photo, heads if each else mean[None],
                                    transform.box(*photo.size), words,
                                    [read + " …" * (words[-1] != END), about, *notes], figure)
                keep(path.stem, heads if each else mean)
                keep(f"{path.stem}.words", np.array(words))
                described = [{"word": word, **row} for word, row
                             in zip(words, numbers(mean), strict=True)]
                if each:
                    for row, *parts in zip(described, *map(numbers, heads), strict=True):
                        row["heads"] = parts
                rows.append({"filename": path.name, "caption": text, "grid": list(mean.shape[1:]),
                             "words": described, "figure": str(figure)})
    return rows


def draw_best_and_worst(captioner, paths, args, texts, unreadable) -> dict:
    """Rank all captions by CLIPScore, draw the first and the last; returns what goes to stdout."""
    references = of_images(read_captions(args.refs), paths, args.refs)
    scorer = clip_scorer(args)  # fails before the work rather than after it
    texts = {path: (text, ids)
             for batch, _ in captioned_batches(captioner, paths, args, texts, unreadable, "caption")
             for path, text, ids in batch}
    if len(texts) < 2:
        raise UserError("--best-worst compares at least two images that can be read, here is one")
    scores = scorer(list(texts), [text for text, _ in texts.values()])
    ranking = sorted(zip(texts, map(float, scores), strict=True), key=lambda row: -row[1])
    table = Path(args.output) / "ranking.csv"
    write_csv(table, ["rank", "filename", "CLIPScore", "caption"], [
        [place, path.name, repr(score), texts[path][0]]
        for place, (path, score) in enumerate(ranking, start=1)])
    result = {"clip": str(args.clip), "ranking": str(table)}
    for kind, (path, score) in (("best", ranking[0]), ("worst", ranking[-1])):
        notes = [f"CLIPScore {score:.3f}, the {kind} of {len(ranking)} captions",
                 *(f"reference: {text}" for text in references[path])]
        row, = draw_all(captioner, [path], args, texts, [], f"{kind}_", notes)
        result[kind] = {"CLIPScore": score, "references": references[path], **row}
    return result


# --- command line -------------------------------------------------------------------------------


def parse_args():
    parser = ArgumentParser(prog="p2_attn_vis.py", description=__doc__)
    parser.add_argument("--images", nargs="+", default=[str(HERE / "samples" / "scenes")],
                        metavar="FILE|DIR", help="image files, or one folder")
    parser.add_argument("--output", default="runs/words", metavar="DIR", help="folder for figures")
    parser.add_argument("--layer", type=int, default=-1, metavar="N",
                        help="decoder layer, from 0; -1 is the last one")
    parser.add_argument("--heads", choices=("mean", "each"), default="mean",
                        help="mean over the heads, or a row of panels for each")
    parser.add_argument("--captions", metavar="JSON",
                        help='draw these, {"<image name>": "caption", …}, not the model\'s own')
    parser.add_argument("--npz", metavar="FILE", help="keep the maps and their words here")
    add_captioner_options(parser, registry.default("p2"))
    best = parser.add_argument_group("best and worst")
    best.add_argument("--best-worst", action="store_true",
                      help="rank the captions by CLIPScore, draw the first and the last")
    best.add_argument("--refs", metavar="JSON", help="references in COCO's format, to show beside")
    best.add_argument("--clip", default=str(registry.CLIP), metavar="NAME|FILE",
                      help="the CLIP that judges")
    add_search_options(parser)
    add_run_options(parser, None)
    args = parser.parse_args()
    if args.best_worst != bool(args.refs):
        parser.error("--best-worst and --refs JSON go together")
    if args.best_worst and args.npz:
        parser.error("--npz keeps the maps of all images, --best-worst draws two; give one of them")
    return args


def check_outputs(paths, args):
    """Refuse, before any work, outputs that are not distinct, writable, and none of the photos."""
    refuse_equal_stems(paths)
    names = [f"{prefix}{path.stem}" for path in paths
             for prefix in (("best_", "worst_") if args.best_worst else ("",))]
    refuse_to_replace(paths, [Path(args.output) / f"{name}.png" for name in names])
    check_writable(Path(args.output) / f"{names[0]}.png")
    if args.npz:
        stems = {printable(path.stem) for path in paths}
        if len(stems | {f"{stem}.words" for stem in stems}) < 2 * len(paths):
            raise UserError("--npz: two of all <stem> and <stem>.words are equal; rename an image")
        check_writable(args.npz)


def main():
    args = parse_args()
    paths = image_paths(args.images, args.limit)
    check_outputs(paths, args)

    from inference.caption import open_captioner

    captioner = open_captioner(args)
    captioner.check_layer(args.layer)
    texts = given_captions(captioner, paths, args.captions) if args.captions else None
    result = {"checkpoint": str(args.checkpoint), "layer": args.layer, "heads": args.heads,
              "captions": args.captions or f"the captioner's, {args.beam} beams"}
    unreadable = []
    if args.best_worst:
        result |= draw_best_and_worst(captioner, paths, args, texts, unreadable)
    else:
        result["images"] = draw_all(captioner, paths, args, texts, unreadable)
        warn(f"wrote {len(result['images'])} figures into {args.output}")
    report_unreadable(paths, unreadable)
    write_json(result)
    return EXIT_SOME_UNREADABLE if unreadable else 0


if __name__ == "__main__":
    run(main)
