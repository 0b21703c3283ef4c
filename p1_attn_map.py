"""Report question: where does a vision transformer look when it classifies a photo?

  python3 p1_attn_map.py                                    the photos in samples/
  python3 p1_attn_map.py --images a.jpg b.jpg --output out/
  python3 p1_attn_map.py --images DIR --method relevance --output out/
  python3 p1_attn_map.py --images DIR --faithfulness        which method is the most faithful?
  python3 p1_attn_map.py --images DIR --boxes boxes.json    which method points at the thing?

Writes one PNG for each photo (photo, map, overlay) and sheet.png of all; --json FILE, or a pipe,
gets all numbers as JSON. Names of figures end in what is not the default, such as
photo_relevance.png. Without --checkpoint or --model it explains the default classifier, which knows
37 pet breeds.

  last       attention of the class token to each patch in the last layer, mean over heads
             (--heads each: one overlay for each head): what the model reads out
  rollout    attention of all layers multiplied, with the residuals (Abnar & Zuidema 2020)
  relevance  attention times gradient, through all layers (Chefer et al., ICCV 2021): the evidence
             for the predicted class, or for the class that --class names; of several classes
             one panel each, and the first one's map minus each of the others

What to expect: seconds for a few photos; docs/attention.md shows and explains examples. Maps are
computed in float32; --precision and --seed are used by --faithfulness alone.
How to read the figure: dark blue is 0, yellow the map's 97th percentile and all above it; a line
runs where the map reaches half of that. Grey was cut off before the model saw the photo. The colour
bar gives the share of the class token's attention that falls on one patch. Attention says from
where the model gathers information, not why it decides: bright corners on plain background are
often registers of global information (Darcet et al. 2024). "entropy_bits" is small where few
patches get most of the attention (at most log2 of the number of patches); "mean_attention_distance"
is how far apart, in input pixels, a patch and those that it attends to are, for each head of
--layer (Dosovitskiy et al. 2021, Fig. 7).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out
from utils import EXIT_SOME_UNREADABLE, UserError, run, warn

import numpy as np

from ckpt import registry
from data.batches import normalized_batches
from data.boxes import boxes_of
from data.compute import Compute
from data.files import check_outputs
from data.photos import (
    figure_files,
    free_stem,
    image_paths,
    is_png,
    load_image,
    refuse_to_replace,
    report_unreadable,
)
from figures import charts, maps
from figures.page import check_count
from figures.style import layer_name
from inference.arrays import npz_writer
from inference.options import (
    BATCH_SIZES,
    add_fine_tuned_options,
    add_json_option,
    add_names_option,
    add_run_options,
)
from inference.parser import Parser
from inference.patch_page import write_patch_page
from inference.results import of_maps, write_result

HERE = Path(__file__).resolve().parent
QUANTITIES = {"last": maps.SHARE, "rollout": "share of rollout, per patch",
              "relevance": "relevance, per patch"}
SHEET = 40  # photos on a sheet
# Options about one method's figures, by the name of their argument.
OF_FIGURES = {"method": "--method", "heads": "--heads", "layer": "--layer", "targets": "--class",
              "npz": "--npz", "html": "--html"}


def readable(classifier, label):
    """The name of a class that was given by its label or its name."""
    index = classifier.index_of(label, "--class")
    return classifier.name_of(classifier.classes[index]).replace("_", " ")


def target_classes(classifier, labels):
    """The logits of the classes that --class names; UserError for a class that it names twice."""
    targets = [classifier.index_of(label, "--class") for label in labels]
    if len(set(targets)) < len(targets):
        raise UserError(f"--class {' '.join(labels)} names one class twice; give each class once")
    return targets


# --- figures ------------------------------------------------------------------------------------


def ending(args):
    """What the names of figures end in, so that those of other options are not overwritten."""
    parts = [args.method] * (args.method != "last") + ["heads"] * (args.heads == "each")
    parts += [f"layer{args.layer}"] * (args.layer != -1) + list(args.targets)
    return "".join("_" + re.sub(r"[^\w-]+", "-", part) for part in parts)[:100]


def sheet_files(args, paths):
    """The sheets of all figures; none where --output is a single figure."""
    if is_png(args.output):
        return []
    stem = f"{free_stem('sheet', paths)}{ending(args)}"
    count = -(-len(paths) // SHEET)
    numbers = [""] if count == 1 else [f"_{number}" for number in range(1, count + 1)]
    return [Path(args.output) / f"{stem}{number}.png" for number in numbers]


def described(classifier, args):
    """What every figure shows: the map, its layer, and the model."""
    from models.attention import has_class_token

    model, layers = classifier.model, len(classifier.model.blocks)
    if args.method == "last":
        query = "the class token" if has_class_token(model) else "the mean patch (no class token)"
        text = f"attention of {query}, {layer_name(args.layer, layers)}, " + (
            "each head" if args.heads == "each" else "mean over heads")
    else:
        text = f"{args.method} through all {layers} layers"
    return f"{text} · {Path(args.weights or args.model or args.checkpoint).name}"


def draw_photo(classifier, path, grids, prediction, args, figure):
    """Write one photo's ``figure``; returns its overlay and title for the sheet."""
    photo, title, about = load_image(path, (480, 480)), path.name, described(classifier, args)
    targets = [readable(classifier, label) for label in args.targets]
    if prediction["label"] is not None:
        name = prediction["name"].replace("_", " ")
        title = f"{path.name}: {name} ({prediction['probability']:.0%})"
        if args.method == "relevance":
            about = about.replace("relevance", f"relevance for {', '.join(targets) or name}", 1)
    names = targets or [f"head {head}" for head in range(len(grids))]
    overlay = maps.attention_panel(photo, grids, classifier.transform.box(*photo.size),
                                   [title, about], QUANTITIES[args.method], figure, names,
                                   differences=len(targets) > 1)
    return overlay, title


def write_sheet(sheet, classifier, args, path):
    """Write overlays with their titles as one figure."""
    overlays, titles = zip(*sheet, strict=True)
    about = described(classifier, args)
    if args.method == "relevance":
        spoken_for = readable(classifier, args.targets[0]) if args.targets else "the named class"
        about = about.replace("relevance", f"relevance for {spoken_for}", 1)
    charts.gallery(overlays, [title.replace(": ", "\n") for title in titles], about, path,
                   "share of the brightest value of each photo's figure")
    warn(f"wrote {path}")


# --- commands -----------------------------------------------------------------------------------


def draw_all(classifier, paths, compute, args):
    """Write the figures; returns (result for stdout, unreadable)."""
    from inference.attention import explain, predicted
    from models.attention import has_class_token

    model = classifier.model
    figures, sheets = figure_files(args.output, paths, ending(args)), sheet_files(args, paths)
    targets = target_classes(classifier, args.targets)
    unreadable, rows, kept, sheet = [], [], [], []
    for names, images in normalized_batches(
            classifier.transform, paths, compute, unreadable, "attention"):
        found = explain(model, images, args.method, args.layer, args.heads, targets)
        for path, grids, probabilities, entropies, distances in zip(names, *found, strict=True):
            row = {"filename": path.name, **predicted(classifier, probabilities),
                   "entropy_bits": [round(float(value), 4) for value in entropies],
                   "mean_attention_distance": [round(float(value), 2) for value in distances],
                   "figure": str(figures[path])}
            sheet.append(draw_photo(classifier, path, grids, row, args, figures[path]))
            kept.append(grids)
            rows.append(row)
            if len(sheet) == SHEET and sheets:
                write_sheet(sheet, classifier, args, sheets[len(rows) // SHEET - 1])
                sheet = []
    report_unreadable(rows, unreadable)
    if sheet and sheets:
        write_sheet(sheet, classifier, args, sheets[len(rows) // SHEET])
    warn(f"wrote {len(rows)} figures, such as {rows[0]['figure']}")
    with npz_writer(args.npz) as keep:
        keep("maps", np.stack(kept))
        keep("filenames", np.array([row["filename"] for row in rows]))
    return {"model": args.model or args.checkpoint, "method": args.method, "layer": args.layer,
            "heads": args.heads, "classes": args.targets or "the predicted one",
            "query": "class token" if has_class_token(model) else "mean over patches",
            "grid": list(kept[0].shape[-2:]), "images": rows}, unreadable


def faithfulness_table(classifier, paths, compute, args):
    """How far each method's maps can be believed; returns (result for stdout, unreadable)."""
    from inference.attention import faithfulness_of_methods

    table, unreadable = faithfulness_of_methods(classifier, paths, compute, args.seed)
    return {"model": args.model or args.checkpoint, "images": len(paths) - len(unreadable),
            "deletion": "lower is better", "insertion": "higher is better",
            "area_under_curve": table}, unreadable


def pointing_game(classifier, paths, compute, args):
    """How often every method's map peaks inside a box; returns (result for stdout, unreadable)."""
    from inference.pointing import point_classes, pointing_table

    boxes, unreadable = boxes_of(paths, args.boxes), []
    points, own = point_classes(classifier, boxes, compute, unreadable)
    report_unreadable(list(points), unreadable)
    rows, table = pointing_table(points)
    print(table, file=sys.stderr)
    return {"model": args.model or args.checkpoint, "boxes": args.boxes,
            "images": len(boxes) - len(unreadable), "maps": rows,
            "relevance": {"of the class with the thing's name": own,
                          "of the predicted class": rows[0]["maps"] - own}}, unreadable


# --- command line -------------------------------------------------------------------------------


def make_parser():
    parser = Parser(prog="p1_attn_map.py", description=__doc__)
    parser.add_argument("--images", nargs="+", default=[str(HERE / "samples")], metavar="PATH",
                        help="image files, or one folder")
    parser.add_argument("--output", default="runs/attention", metavar="DIR|PNG",
                        help="folder for the figures; of one photo, the figure itself")
    parser.add_argument("--method", choices=tuple(QUANTITIES), default="last",
                        help="see above")
    parser.add_argument("--heads", choices=("mean", "each"), default="mean",
                        help="mean over the heads, or a sheet of them (with last)")
    parser.add_argument("--layer", type=int, default=-1, metavar="N",
                        help="layer of last and of the numbers, from 0; -1 is the last one, which "
                             "a figure calls the last layer, as it calls 2 layer 3 of 12")
    parser.add_argument("--class", dest="targets", nargs="+", default=[], metavar="LABEL",
                        help="relevance for these labels or names instead of the predicted one")
    parser.add_argument("--npz", metavar="FILE", help="keep the maps and file names here")
    parser.add_argument("--html", metavar="FILE",
                        help="also write a page that shows what any patch attends to, with layers, "
                             "heads, rollout, and relevance for the likeliest classes")
    parser.add_argument("--faithfulness", action="store_true",
                        help="instead of figures: deletion and insertion areas of every method")
    parser.add_argument("--boxes", metavar="JSON",
                        help="instead of figures: how often every method's map peaks inside one of "
                             "these boxes (COCO's instances, or docs/attention.md's form)")
    model = parser.add_argument_group("model")
    model.add_argument("--checkpoint", default=str(registry.default("p1")), metavar="FILE",
                       help="a classifier, of this project or another library's layout")
    model.add_argument("--model", metavar="NAME|FILE",
                       help="timm's name, hf:owner/name, or a file")
    model.add_argument("--pretrained", action="store_true",
                       help="timm's weights for --model (network)")
    add_fine_tuned_options(model)
    add_names_option(model)
    add_json_option(parser)
    add_run_options(parser, batch_size=16)
    return parser


def check_options(args, parser):
    """UserError for an option that has no effect beside the others."""
    unused = [option for name, option in OF_FIGURES.items()
              if getattr(args, name) != parser.get_default(name)]
    measured = "--faithfulness" if args.faithfulness else "--boxes" if args.boxes else None
    if args.faithfulness and args.boxes:
        raise UserError("--faithfulness and --boxes are two measurements; give one of them")
    if measured and unused:
        raise UserError(f"{unused[0]} has no effect with {measured}, which compares all methods "
                        "and draws nothing; leave it out")
    if args.targets and args.method != "relevance":
        raise UserError(f"--class goes with --method relevance; {args.method} is the same for "
                        "every class")
    if args.layer != -1 and args.method != "last":
        raise UserError(f"--layer goes with --method last; {args.method} goes through all layers")


def check_figures(paths, args):
    """UserError for figures that could not be written, or would overwrite a photo."""
    if args.html:
        check_count(len(paths))
    figures = [*figure_files(args.output, paths, ending(args)).values(), *sheet_files(args, paths)]
    refuse_to_replace(paths, figures)
    check_outputs({"--output": figures, "--npz": args.npz, "--html": args.html,
                   "--json": args.json},
                  {"--images": paths, "--checkpoint": args.checkpoint, "--model": args.model,
                   "--weights": args.weights, "--names": args.names})


def main():
    parser = make_parser()
    args = parser.parse_args()
    check_options(args, parser)
    paths = image_paths(args.images, args.limit)
    if args.boxes:
        boxes_of(paths, args.boxes)  # an error in the file is one before the model is opened
    if args.boxes or args.faithfulness:
        check_outputs({"--json": args.json}, {"--images": paths, "--boxes": args.boxes,
                                              "--checkpoint": args.checkpoint})
    else:
        check_figures(paths, args)
    from models.vit import open_vit  # imports torch

    compute = Compute.from_args(args, BATCH_SIZES["classifier"])
    classifier = open_vit(args.model or args.checkpoint, args.pretrained, args.weights,
                          args.ema_weights).named(args.names, args.weights)
    classifier.model.to(compute.device)
    function = (faithfulness_table if args.faithfulness else
                pointing_game if args.boxes else draw_all)
    result, unreadable = function(classifier, paths, compute, args)
    if args.html:
        write_patch_page(classifier, paths, compute, args.layer, args.html)
    write_result(result, of_maps(result), args.json)
    return EXIT_SOME_UNREADABLE if unreadable else 0


if __name__ == "__main__":
    run(main)
