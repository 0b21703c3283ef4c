"""Report question: where does a vision transformer look when it classifies a photo?

  python3 p1_attn_map.py                                    the photos in samples/
  python3 p1_attn_map.py --images a.jpg b.jpg --output out/
  python3 p1_attn_map.py --images DIR --method relevance --output out/
  python3 p1_attn_map.py --images DIR --faithfulness        which method is the most faithful?

Writes one PNG for each photo (photo, map, overlay), sheet.png of all, and JSON to stdout. Without
--checkpoint or --model it explains the default classifier, which knows 37 pet breeds.

  last       attention of the class token to each patch in the last layer, mean over heads
             (--heads each: one overlay for each head): what the model reads out
  rollout    attention of all layers multiplied, with the residuals (Abnar & Zuidema 2020)
  relevance  attention times gradient, through all layers (Chefer et al., ICCV 2021): the evidence
             for the predicted class, or for the class that --class names

What to expect: seconds for a few photos; docs/attention.md shows and explains examples. Maps are
computed in float32; --precision and --seed are used by --faithfulness alone.
How to read the figure: dark blue is 0, yellow the map's 97th percentile and all above it; grey was
cut off before the model saw the photo. The colour bar gives the share of the class token's
attention that falls on one patch. Attention says from where the model gathers information, not why
it decides: bright corners on plain background are often registers of global information (Darcet et
al. 2024). "entropy_bits" is small where few patches get most of the attention (at most log2 of the
number of patches); "mean_attention_distance" is how far apart, in input pixels, a patch and those
that it attends to are, for each head of --layer (Dosovitskiy et al. 2021, Fig. 7).
"""

from __future__ import annotations

from pathlib import Path

from utils import EXIT_SOME_UNREADABLE, ArgumentParser, UserError, run, warn, write_json

import numpy as np

from ckpt import registry
from data.batches import normalized_batches
from data.compute import Compute, autocast
from data.files import check_outputs
from data.photos import (
    free_stem,
    image_paths,
    load_image,
    refuse_equal_stems,
    refuse_to_replace,
    report_unreadable,
)
from figures import charts, maps
from figures.page import check_count
from inference.arrays import npz_writer
from inference.options import BATCH_SIZES, add_run_options
from inference.patch_page import write_patch_page
from metrics import faithfulness

HERE = Path(__file__).resolve().parent
QUANTITIES = {"last": "share of attention, per patch", "rollout": "share of rollout, per patch",
              "relevance": "relevance, per patch"}
SHEET = 40  # photos on a sheet
# Options about one method's figures, by the name of their argument.
OF_FIGURES = {"method": "--method", "heads": "--heads", "layer": "--layer", "target": "--class",
              "npz": "--npz", "html": "--html"}


# --- compute ------------------------------------------------------------------------------------


def explain(model, images, method, layer, heads, targets=None):
    """(maps (B, heads or 1, rows, cols), probabilities (B, classes), entropies of the maps
    (B, heads or 1) in bits, mean attention distances (B, heads) in pixels) of normalized images
    (B, 3, H, W), all numpy. ``relevance`` explains the class indices ``targets`` (B,)."""
    from models import attention as A

    with A.capture_attention(model, [layer]) as captured:
        grids, logits = A.attention_maps(model, images, method, layer=layer, heads=heads,
                                         targets=targets)
    distances = A.mean_attention_distance(
        captured[layer], A.patch_grid(model, images), image_size=images.shape[-2:],
        prefix=model.num_prefix_tokens)
    return tuple(part.numpy() for part in (
        grids, logits.softmax(-1), A.entropy(grids), distances))


def measure_faithfulness(model, images, compute, seed):
    """{method: (deletion areas (B,), insertion areas (B,))} of normalized images (B, 3, H, W) by
    every method, and by a random order for comparison."""
    import torch
    from torchvision.transforms.functional import gaussian_blur

    from models import attention as A

    sigma = images.shape[-1] / 20
    blurred = gaussian_blur(images, 2 * int(2 * sigma) + 1, sigma).cpu().numpy()
    photos, grey = images.cpu().numpy(), np.zeros_like(blurred)
    grid, targets = A.patch_grid(model, images), None

    def probability(pixels):
        batch = torch.from_numpy(pixels).to(compute.device)
        with torch.inference_mode(), autocast(compute.device, compute.precision):
            return model(batch).float().softmax(1).cpu().numpy()[np.arange(len(batch)), targets]

    areas = {}
    for method in (*A.METHODS, "random"):
        if method == "random":
            order = faithfulness.random_order(len(photos), grid[0] * grid[1], seed)
        else:
            grids, logits = A.attention_maps(model, images, method)
            order = faithfulness.most_important_first(grids[:, 0].numpy())
            targets = logits.argmax(1).numpy()
        areas[method] = tuple(
            faithfulness.area_under(faithfulness.curve(probability, before, after, order, grid))
            for before, after in ((photos, grey), (blurred, photos)))
    return areas


def predicted(classifier, probabilities):
    """Label, name and probability of the most probable class."""
    if not classifier.classes:
        return {"label": None, "name": "no classifier head", "probability": None}
    label = classifier.classes[probabilities.argmax()]
    return {"label": label, "name": classifier.name_of(label),
            "probability": float(probabilities.max())}


# --- figures ------------------------------------------------------------------------------------


def figure_files(folder, paths):
    """({path: its figure}, [the sheets of all of them])."""
    figures = {path: folder / f"{path.stem}.png" for path in paths}
    if len(paths) <= SHEET:
        return figures, [folder / f"{free_stem('sheet', paths)}.png"]
    count = -(-len(paths) // SHEET)
    return figures, [folder / f"{free_stem('sheet', paths)}_{number}.png"
                     for number in range(1, count + 1)]


def draw_photo(classifier, path, grids, prediction, args, figure):
    """Write one photo's ``figure``; returns its overlay and title for the sheet."""
    from models.attention import has_class_token

    photo, title = load_image(path, (480, 480)), path.name
    if prediction["label"] is not None:
        name = prediction["name"].replace("_", " ")
        title = f"{path.name}: {name} ({prediction['probability']:.0%})"
    about = "" if has_class_token(classifier.model) else ", mean query (no class token)"
    box = classifier.transform.box(*photo.size)
    overlay = maps.attention_panel(photo, grids, box, f"{title}\n{args.method}{about}",
                                   QUANTITIES[args.method], figure)
    return overlay, title


def write_sheet(sheet, method, path):
    """Write overlays with their titles as one figure."""
    overlays, titles = zip(*sheet, strict=True)
    charts.gallery(overlays, [title.replace(": ", "\n") for title in titles],
                   f"Attention, {method}", path)
    warn(f"wrote {len(sheet)} figures and {path}")


# --- commands -----------------------------------------------------------------------------------


def draw_all(classifier, paths, compute, args):
    """Write the figures; returns (result for stdout, unreadable)."""
    import torch

    from models.attention import has_class_token

    model = classifier.model
    figures, sheets = figure_files(Path(args.output), paths)
    target = classifier.index_of(args.target) if args.target else None
    unreadable, rows, kept, sheet = [], [], [], []
    for names, images in normalized_batches(
            classifier.transform, paths, compute, unreadable, "attention"):
        targets = None if target is None else torch.full((len(names),), target)
        found = explain(model, images, args.method, args.layer, args.heads, targets)
        for path, grids, probabilities, entropies, distances in zip(names, *found, strict=True):
            row = {"filename": path.name, **predicted(classifier, probabilities),
                   "entropy_bits": [round(float(value), 4) for value in entropies],
                   "mean_attention_distance": [round(float(value), 2) for value in distances],
                   "figure": str(figures[path])}
            sheet.append(draw_photo(classifier, path, grids, row, args, figures[path]))
            kept.append(grids)
            rows.append(row)
            if len(sheet) == SHEET:
                write_sheet(sheet, args.method, sheets[len(rows) // SHEET - 1])
                sheet = []
    report_unreadable(rows, unreadable)
    if sheet:
        write_sheet(sheet, args.method, sheets[len(rows) // SHEET])
    with npz_writer(args.npz) as keep:
        keep("maps", np.stack(kept))
        keep("filenames", np.array([row["filename"] for row in rows]))
    return {"model": args.model or args.checkpoint, "method": args.method, "layer": args.layer,
            "heads": args.heads,
            "query": "class token" if has_class_token(model) else "mean over patches",
            "grid": list(kept[0].shape[-2:]), "images": rows}, unreadable


def faithfulness_table(classifier, paths, compute, args):
    """Areas under the deletion and insertion curves of every method; returns (result for stdout,
    unreadable)."""
    unreadable, areas = [], {}
    for _, images in normalized_batches(
            classifier.transform, paths, compute, unreadable, "faithfulness"):
        measured = measure_faithfulness(classifier.model, images, compute, args.seed)
        for method, parts in measured.items():
            areas.setdefault(method, []).append(parts)
    report_unreadable(list(areas), unreadable)
    table = {}
    for method, parts in areas.items():
        deletion, insertion = (np.concatenate(part) for part in zip(*parts, strict=True))
        table[method] = {"deletion": faithfulness.mean_with_interval(deletion),
                         "insertion": faithfulness.mean_with_interval(insertion)}
    return {"model": args.model or args.checkpoint, "images": len(paths) - len(unreadable),
            "deletion": "lower is better", "insertion": "higher is better",
            "area_under_curve": table}, unreadable


# --- command line -------------------------------------------------------------------------------


def make_parser():
    parser = ArgumentParser(prog="p1_attn_map.py", description=__doc__)
    parser.add_argument("--images", nargs="+", default=[str(HERE / "samples")], metavar="PATH",
                        help="image files, or one folder")
    parser.add_argument("--output", default="runs/attention", metavar="DIR",
                        help="folder for the figures")
    parser.add_argument("--method", choices=tuple(QUANTITIES), default="last",
                        help="see above")
    parser.add_argument("--heads", choices=("mean", "each"), default="mean",
                        help="mean over the heads, or a sheet of them (with last)")
    parser.add_argument("--layer", type=int, default=-1, metavar="N",
                        help="layer of last and of the numbers; -1 is the last one")
    parser.add_argument("--class", dest="target", metavar="LABEL",
                        help="relevance for this label or name instead of the predicted one")
    parser.add_argument("--npz", metavar="FILE", help="keep the maps and file names here")
    parser.add_argument("--html", metavar="FILE",
                        help="also write a page that shows what any patch attends to, in every "
                             "layer, rollout, and relevance for the likeliest classes")
    parser.add_argument("--faithfulness", action="store_true",
                        help="instead of figures: deletion and insertion areas of every method")
    model = parser.add_argument_group("model")
    model.add_argument("--checkpoint", default=str(registry.default("p1")), metavar="FILE",
                       help="a classifier, of this project or another library's layout")
    model.add_argument("--model", metavar="NAME|FILE",
                       help="timm's name, hf:owner/name, or a file")
    model.add_argument("--pretrained", action="store_true",
                       help="timm's weights for --model (network)")
    model.add_argument("--weights", metavar="FILE", help="these weights for --model")
    add_run_options(parser, batch_size=16)
    return parser


def check_options(args, parser):
    """UserError for an option that has no effect beside the others."""
    unused = [option for name, option in OF_FIGURES.items()
              if getattr(args, name) != parser.get_default(name)]
    if args.faithfulness and unused:
        raise UserError(f"{unused[0]} has no effect with --faithfulness, which compares all "
                        "methods and draws nothing; leave it out")
    if args.target and args.method != "relevance":
        raise UserError(f"--class goes with --method relevance; {args.method} is the same for "
                        "every class")


def check_figures(paths, args):
    """UserError for figures that could not be written, or would overwrite a photo."""
    refuse_equal_stems(paths)
    if args.html:
        check_count(len(paths))
    figures, sheets = figure_files(Path(args.output), paths)
    refuse_to_replace(paths, [*figures.values(), *sheets])
    check_outputs({"--output": [*figures.values(), *sheets], "--npz": args.npz,
                   "--html": args.html},
                  {"--images": paths, "--checkpoint": args.checkpoint, "--model": args.model,
                   "--weights": args.weights})


def main():
    parser = make_parser()
    args = parser.parse_args()
    check_options(args, parser)
    paths = image_paths(args.images, args.limit)
    if not args.faithfulness:
        check_figures(paths, args)
    from models.vit import open_vit  # imports torch

    compute = Compute.from_args(args, BATCH_SIZES["classifier"])
    classifier = open_vit(args.model or args.checkpoint, args.pretrained, args.weights)
    classifier.model.to(compute.device)
    function = faithfulness_table if args.faithfulness else draw_all
    result, unreadable = function(classifier, paths, compute, args)
    if args.html:
        write_patch_page(classifier, paths, compute, args.layer, args.html)
    write_json(result)
    return EXIT_SOME_UNREADABLE if unreadable else 0


if __name__ == "__main__":
    run(main)
