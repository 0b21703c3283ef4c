"""Report question: which part of the photo did the captioner look at as it wrote each word?

  python3 p2_attn_vis.py                                    the photos in samples/scenes/
  python3 p2_attn_vis.py --images a.jpg b.jpg --output out/
  python3 p2_attn_vis.py --images DIR --captions mine.json  maps of captions that you give
  python3 p2_attn_vis.py --images DIR --best-worst --refs val.json
  python3 p2_attn_vis.py --images DIR --boxes boxes.json    do the maps point at the thing?
  python3 p2_attn_vis.py --model catr --weights FILE --vocab vocab.txt
  python3 p2_attn_vis.py --checkpoint PEFT --decoder decoder_model.bin   as peft_caption.py predict

Writes <stem>.png for each photo: the photo titled <start>, then an overlay for each word of its
caption, the last one titled <end>. Prints a line for each photo on a terminal, else all numbers as
JSON (--json FILE writes them in either case). Takes about a second a photo.

A word's map is the cross-attention of the query that produced it, which stands at the token before
it, in the last decoder layer (--layer): the mean over its heads, or a row of panels for each head
(--heads each). A word of several tokens has the mean of their maps. --captions draws any captions
as if the model had written them, so that you can also inspect a wrong one. A caption that fills all
positions of the decoder has no <end>; a given caption that is longer is cut there, with a warning.
--best-worst draws the captions of highest and lowest CLIPScore beside their references, and writes
ranking.csv of all captions. --npz keeps two arrays for each image: <stem> (words, rows, cols), with
--heads each (heads, words, rows, cols), and <stem>.words, the words with <end>.

How to read the figure: dark blue is 0; yellow is the 97th percentile of all maps in the figure, and
everything above it; all words share this scale. A line runs where a map reaches half of that value.
Grey was cut off before the model saw the photo. Words such as "of" follow from the words before
them, and their maps say little. Attention says from where the decoder takes information, not why it
chose the word; and since the encoder has mixed all patches, the information at a patch may come
from another one. "entropy_bits" is small for a map with a sharp peak; "entropy_share" is its share
of the largest possible entropy, log2 of the number of patches; "peak" is the patch with the most
attention.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out
from utils import EXIT_SOME_UNREADABLE, UserError, printable, run, warn

import numpy as np

from ckpt import registry
from data.boxes import boxes_of
from data.captions import of_images, read_captions
from data.compute import Compute
from data.files import check_outputs, write_csv
from data.photos import figure_files, is_png, load_image, refuse_to_replace, report_unreadable
from data.processes import team
from figures import maps
from figures.page import check_count
from figures.style import layer_name
from inference.arrays import npz_writer
from inference.options import (
    BATCH_SIZES,
    add_captioner_options,
    add_json_option,
    add_run_options,
    add_search_options,
    complete_captioner_options,
    complete_rerank,
    typed_search_options,
)
from inference.parser import Parser
from inference.results import of_words, write_result
from inference.word_page import word_page, word_records
from inference.words import END, captioned_rows, chosen_photos, given_captions, numbers, word_maps

HERE = Path(__file__).resolve().parent

# --- compute ------------------------------------------------------------------------------------


def clip_scorer(source: str, compute: Compute):
    """A function (paths, captions) -> CLIPScore of each photo with its caption, (N,), computed with
    the CLIP ``source`` (Hessel et al. 2021)."""
    from inference.scoring import caption_scores
    from models.clip import open_clip

    clip = open_clip(source).to(compute.device)
    return lambda paths, texts: caption_scores(clip, paths, texts, compute, prefix="")[0]


# --- commands -----------------------------------------------------------------------------------


def ending(args) -> str:
    """What the names of figures end in, so that those of other options are not overwritten."""
    parts = ["given"] * bool(args.captions) + ["heads"] * (args.heads == "each")
    return "".join(f"_{part}" for part in parts + [f"layer{args.layer}"] * (args.layer != -1))


def draw_batch(captioner, args, figures, notes, batch, memory) -> list[list]:
    """Write the figure of each image of a batch, with ``notes`` under its title. Returns, for each,
    its row for stdout, the maps in the figure, and what belongs onto the page of all."""
    source = Path(captioner.source).name
    layer = layer_name(args.layer, captioner.num_layers)
    rows, each = [], args.heads == "each"
    found = word_maps(captioner, memory, [ids for *_, ids in batch], args.layer)
    for (path, text, ids), (words, heads) in zip(batch, found, strict=True):
        mean = heads.mean(0)
        photo = load_image(path, (480, 480))
        read = captioner.tokenizer.decode(ids) or "(an empty caption)"
        about = (f"{path.name}: cross-attention, {layer}, "
                 + ("each head" if each else f"mean of {len(heads)} heads") + f" · {source}")
        headline = read + " …" * (words[-1] != END)
        if args.captions:
            headline = f"given caption: “{headline}”"
        maps.word_panels(photo, heads if each else mean[None],
                         captioner.transform.box(*photo.size), words,
                         [headline, about, *notes], figures[path], bool(args.captions))
        described = [{"word": word, **row} for word, row in zip(words, numbers(mean), strict=True)]
        if each:
            for row, *parts in zip(described, *map(numbers, heads), strict=True):
                row["heads"] = parts
        rows.append([{"filename": path.name, "caption": text, "grid": list(mean.shape[1:]),
                      "words": described, "figure": str(figures[path])}, heads if each else mean])
    records = word_records(args, captioner, batch, memory, len(figures)) or [None] * len(rows)
    return [[*row, record] for row, record in zip(rows, records, strict=True)]


def draw_all(captioner, paths, texts, args, compute, unreadable, figures, notes=()) -> list[dict]:
    """Write each image's figure, the page of all, and --npz; returns the rows for stdout."""
    from models.decoding import Search

    rows = []
    with npz_writer(args.npz) as keep, word_page(args, captioner) as add_to_page:
        for found in captioned_rows(captioner, paths, texts, Search.from_args(args), compute,
                                    partial(draw_batch, captioner, args, figures, notes),
                                    unreadable):
            for row, grids, record in found:
                stem = Path(row["filename"]).stem
                keep(stem, grids)
                keep(f"{stem}.words", np.array([word["word"] for word in row["words"]]))
                if record:
                    add_to_page(*record)
                rows.append(row)
    return team().everyone(rows)


def draw_best_and_worst(captioner, paths, texts, args, compute, unreadable) -> dict:
    """Rank all captions by CLIPScore, draw the first and the last; returns what goes to stdout."""
    from models.decoding import Search

    references = of_images(read_captions(args.refs), paths, args.refs)
    # A CLIP that cannot be opened is an error before the work, not after it.
    scorer = clip_scorer(args.clip, Compute.from_args(args, BATCH_SIZES["clip"]))
    written = captioned_rows(captioner, paths, texts, Search.from_args(args), compute,
                             lambda batch, _: [(str(path), *text) for path, *text in batch],
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
        figures = best_or_worst(args, [path], kind)
        row, = draw_all(captioner, [path], texts, args, compute, [], figures, notes)
        result[kind] = {"CLIPScore": score, "references": references[path], **row}
    return result


def draw(captioner, paths, args, compute, unreadable) -> dict:
    """Write all figures, or those of --best-worst; returns what goes to stdout."""
    texts = given_captions(captioner, paths, args.captions) if args.captions else None
    result = {"checkpoint": str(captioner.source), "layer": args.layer, "heads": args.heads,
              "captions": args.captions or f"the captioner's, {args.beam} beams, "
                                           f"rerank {args.rerank:g}"}
    if args.best_worst:
        return result | draw_best_and_worst(captioner, paths, texts, args, compute, unreadable)
    figures = figure_files(args.output, paths, ending(args))
    result["images"] = draw_all(captioner, paths, texts, args, compute, unreadable, figures)
    warn(f"wrote {len(result['images'])} figures into {args.output}")
    return result


def pointing_game(captioner, paths, args, compute, unreadable) -> dict:
    """How often each layer's map of a thing's name peaks inside one of its boxes; returns what goes
    to stdout."""
    from inference.pointing import point_words, pointing_table

    boxes = boxes_of(paths, args.boxes)
    points = point_words(captioner, boxes, compute, unreadable)
    report_unreadable([path for each in points.values() for path in each], unreadable)
    rows, table = pointing_table(points)
    print(table, file=sys.stderr)
    return {"checkpoint": str(captioner.source), "boxes": args.boxes,
            "caption": "a <name>", "images": len(boxes) - len(unreadable), "layers": rows}


# --- command line -------------------------------------------------------------------------------


def make_parser():
    parser = Parser(prog="p2_attn_vis.py", description=__doc__)
    parser.add_argument("--images", nargs="+", default=[str(HERE / "samples" / "scenes")],
                        metavar="FILE|DIR", help="image files, or one folder")
    parser.add_argument("--output", default="runs/words", metavar="DIR|PNG",
                        help="folder for the figures; of one photo, the figure itself")
    parser.add_argument("--layer", type=int, default=-1, metavar="N",
                        help="decoder layer, from 0; -1 is the last one. A figure calls 2 layer 3 "
                             "of 4")
    parser.add_argument("--heads", choices=("mean", "each"), default="mean",
                        help="mean over the heads, or a row of panels for each")
    parser.add_argument("--captions", metavar="JSON",
                        help='draw these captions, {"<image name>": "caption", …}, in place of the '
                             "model's own")
    parser.add_argument("--npz", metavar="FILE", help="write the maps and their words here")
    add_json_option(parser)
    parser.add_argument("--boxes", metavar="JSON",
                        help='instead of figures: how often the map of "a <name>" peaks inside one '
                             "of these boxes (COCO's instances, or docs/attention.md's form), for "
                             "each layer")
    parser.add_argument("--html", metavar="FILE",
                        help="also write a page that shows the map of a word when you point at it, "
                             "with all layers and heads")
    add_captioner_options(parser)
    best = parser.add_argument_group("best and worst")
    best.add_argument("--best-worst", action="store_true",
                      help="rank the captions by CLIPScore, draw the first and the last")
    best.add_argument("--refs", metavar="JSON",
                      help="references in COCO's format, shown in the two figures")
    best.add_argument("--clip", default=str(registry.CLIP), metavar="NAME|FILE",
                      help="the CLIP that computes CLIPScore")
    add_search_options(parser, rerank=True)
    add_run_options(parser, None)
    return parser


def check_options(args, parser):
    """Wrong usage where options do not go together."""
    if args.best_worst != bool(args.refs):
        parser.error("--best-worst and --refs JSON go together")
    for option, value in (("--npz", args.npz), ("--html", args.html)):
        if args.best_worst and value:
            parser.error(f"{option} keeps the maps of all images, --best-worst draws two; give one "
                         "of them")
    if args.best_worst and is_png(args.output):
        parser.error("--best-worst writes two figures and a table; give --output a folder")
    unused = [option for option, given in (
        ("--captions", args.captions), ("--npz", args.npz), ("--html", args.html),
        ("--best-worst", args.best_worst),
        ("--layer", args.layer != -1), ("--heads", args.heads != "mean")) if given]
    unused += (searching := typed_search_options(args, parser))
    if args.captions and searching:
        parser.error(f"{searching[0]} has no effect on the captions of --captions; leave it out")
    if args.boxes and unused:
        parser.error(f"{unused[0]} has no effect with --boxes, which measures every layer and "
                     "draws nothing; leave it out")


def best_or_worst(args, paths, kind) -> dict:
    """{photo: its figure, were it the best or the worst}"""
    return {path: figure.with_name(f"{kind}_{figure.name}")
            for path, figure in figure_files(args.output, paths, ending(args)).items()}


def check_files(paths, args):
    """Before any work, refuse outputs of equal names, outputs that cannot be written, and outputs
    that would replace an input."""
    if args.html:
        check_count(len(paths))
    figures, table = [*figure_files(args.output, paths, ending(args)).values()], []
    if args.best_worst:
        figures = [figure for kind in ("best", "worst")
                   for figure in best_or_worst(args, paths, kind).values()]
        table = [Path(args.output) / "ranking.csv"]
    refuse_to_replace(paths, figures)
    check_outputs({"--output": [*figures, *table], "--npz": args.npz, "--html": args.html,
                   "--json": args.json},
                  {"--images": paths, "--captions": args.captions, "--refs": args.refs,
                   "--checkpoint": args.checkpoint, "--weights": args.weights, "--base": args.base,
                   "--decoder": args.decoder, "--vocab": args.vocab, "--clip": args.clip,
                   "--rerank-clip": args.rerank_clip})
    if args.npz:
        stems = {printable(path.stem) for path in paths}
        if len(stems | {f"{stem}.words" for stem in stems}) < 2 * len(paths):
            raise UserError("--npz: two of all <stem> and <stem>.words are equal; rename an image")


def main():
    parser = make_parser()
    args = parser.parse_args()
    check_options(args, parser)
    complete_captioner_options(args)
    args, = complete_rerank(args)
    paths = chosen_photos(args.images, args.refs, args.limit)
    if args.boxes:
        boxes_of(paths, args.boxes)  # an error in the file is one before the model is opened
    else:
        check_files(paths, args)

    from inference.caption import open_captioner

    compute = Compute.from_args(args, BATCH_SIZES["captioner"])
    captioner = open_captioner(args, None if args.boxes or args.captions else compute)
    captioner.check_layer(args.layer)
    unreadable = []
    if args.boxes:
        result = pointing_game(captioner, paths, args, compute, unreadable)
    else:
        result = draw(captioner, paths, args, compute, unreadable)
    report_unreadable(paths, unreadable)
    write_result(result, of_words(result), args.json)
    return EXIT_SOME_UNREADABLE if unreadable else 0


if __name__ == "__main__":
    run(main)
