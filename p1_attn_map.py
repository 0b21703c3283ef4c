"""Report question: where does a vision transformer look when it classifies a photo?

  python3 p1_attn_map.py                                    the photos in samples/
  python3 p1_attn_map.py --images a.jpg b.jpg --output out/
  python3 p1_attn_map.py --images DIR --method relevance --output out/
  python3 p1_attn_map.py --images DIR --faithfulness        which map can be believed?

Writes one PNG for each photo (photo, map, overlay), sheet.png of all, and JSON to stdout. Without
--checkpoint or --model the shipped pet classifier is explained; seconds for a few photos.

  last       attention of the class token to each patch in the last layer, mean over heads
             (--heads each: one overlay for each head): what the model reads out
  rollout    attention of all layers multiplied through, with the residuals (Abnar & Zuidema 2020)
  relevance  attention times gradient, through all layers (Chefer et al., ICCV 2021): what speaks
             for the predicted class, or for that of --class

How to read the figure: dark blue is 0, yellow the map's 97th percentile and all above it; grey was
cut off before the model saw the photo. The colour bar gives the share of the class token's
attention that falls on one patch. Attention says where the model gathers from, not why it decides:
bright corners on plain background are often registers of global information (Darcet et al. 2024).
"entropy_bits" is small for a pointed map (at most log2 of the number of patches);
"mean_attention_distance" is how many input pixels away the patches of that layer look, head by head
(Dosovitskiy et al. 2021, Fig. 7).
"""

from __future__ import annotations

from pathlib import Path

from utils import (
    EXIT_SOME_UNREADABLE,
    ArgumentParser,
    check_writable,
    resolve_run_options,
    run,
    warn,
    whole_file,
    write_json,
)

import numpy as np

from ckpt import registry
from data.batches import normalized_batches
from data.photos import (
    image_paths,
    load_image,
    refuse_equal_stems,
    refuse_to_replace,
    report_unreadable,
)
from data.transform import Transform
from figures import charts, maps
from inference.options import add_run_options
from metrics import faithfulness

HERE = Path(__file__).resolve().parent
QUANTITIES = {"last": "share of attention, per patch", "rollout": "share of rollout, per patch",
              "relevance": "relevance, per patch"}
SHEET = 40  # photos on a sheet


# --- compute ------------------------------------------------------------------------------------


def explain(classifier, images, args, targets=None):
    """(maps (B, heads or 1, rows, cols), probabilities (B, classes), mean attention distances
    (B, heads)) of normalized images, all numpy."""
    from models import attention as A

    model = classifier.model
    with A.capture_attention(model, [args.layer]) as full:
        maps, logits = A.attention_maps(model, images, args.method, layer=args.layer,
                                        heads=args.heads, targets=targets)
    distances = A.mean_attention_distance(
        full[args.layer], A.patch_grid(model, images), image_size=images.shape[-2:],
        prefix=model.num_prefix_tokens)
    return maps.numpy(), logits.softmax(-1).numpy(), distances.numpy()


def measure_faithfulness(classifier, images, args):
    """{method: (deletion areas (N,), insertion areas (N,))} of a batch, a random order included."""
    from utils import autocast

    import torch
    from torchvision.transforms.functional import gaussian_blur

    from models import attention as A

    model = classifier.model
    sigma = images.shape[-1] / 20
    blurred = gaussian_blur(images, 2 * int(2 * sigma) + 1, sigma).cpu().numpy()
    photos, grey = images.cpu().numpy(), np.zeros_like(blurred)
    grid = A.patch_grid(model, images)
    targets = None

    def probability(pixels):
        batch = torch.from_numpy(pixels).to(args.device)
        with torch.inference_mode(), autocast(args.device, args.precision):
            return model(batch).float().softmax(1).cpu().numpy()[np.arange(len(batch)), targets]

    areas = {}
    for method in (*A.METHODS, "random"):
        if method == "random":
            order = faithfulness.random_order(len(photos), grid[0] * grid[1], args.seed)
        else:
            maps, logits = A.attention_maps(model, images, method)
            order = faithfulness.most_important_first(maps[:, 0].numpy())
            targets = logits.argmax(1).numpy()
        areas[method] = tuple(
            faithfulness.area_under(faithfulness.curve(probability, before, after, order, grid))
            for before, after in ((photos, grey), (blurred, photos)))
    return areas


# --- commands -----------------------------------------------------------------------------------


def batches(classifier, paths, args, unreadable, title):
    """Yield (paths, normalized images on the device) with a progress bar."""
    yield from normalized_batches(classifier.preprocessing, paths, args, unreadable, title)
    if len(unreadable) == len(paths):
        report_unreadable((), unreadable)


def draw_all(classifier, paths, args):
    """Write the figures; returns (result for stdout, unreadable)."""
    from models.attention import has_class_token

    out = Path(args.output)
    transform = Transform.from_fields(classifier.preprocessing)
    query = "class token" if has_class_token(classifier.model) else "mean over patches"
    target = classifier.index_of(args.target) if args.target else None
    unreadable, rows, kept, sheet = [], [], [], []
    for names, images in batches(classifier, paths, args, unreadable, "attention"):
        import torch

        targets = None if target is None else torch.full((len(names),), target)
        for path, grid, chances, distance in zip(
                names, *explain(classifier, images, args, targets), strict=True):
            photo = load_image(path, (480, 480))
            predicted = classifier.classes[chances.argmax()] if classifier.classes else None
            name = classifier.name_of(predicted) if predicted is not None else "no classifier head"
            shown_name = f"{name} ({chances.max():.0%})".replace("_", " ")
            title = f"{path.name}: {shown_name}" if predicted else path.name
            about = "" if query == "class token" else ", mean query (no class token)"
            figure = out / f"{path.stem}.png"
            shown = maps.attention_panel(
                photo, grid, transform.box(*photo.size), f"{title}\n{args.method}{about}",
                QUANTITIES[args.method], figure)
            sheet.append((shown, title))
            kept.append(grid)
            rows.append({
                "filename": path.name, "label": predicted, "name": name,
                "probability": float(chances.max()) if predicted else None,
                "entropy_bits": [round(float(value), 4) for value in entropy_of(grid)],
                "mean_attention_distance": [round(float(value), 2) for value in distance],
                "figure": str(figure)})
            if len(sheet) == SHEET:
                write_sheet(sheet, args, out, len(rows) // SHEET)
    if sheet:
        write_sheet(sheet, args, out, len(rows) // SHEET + 1 if len(rows) > SHEET else None)
    if args.npz:
        with whole_file(args.npz) as temporary, open(temporary, "wb") as file:
            np.savez(file, maps=np.stack(kept), filenames=np.array([r["filename"] for r in rows]))
        warn(f"wrote {args.npz}")
    result = {"model": args.model or args.checkpoint, "method": args.method, "layer": args.layer,
              "heads": args.heads, "query": query, "grid": list(kept[0].shape[-2:]),
              "images": rows}
    return result, unreadable


def entropy_of(grids):
    import torch

    from models.attention import entropy

    return entropy(torch.from_numpy(grids))


def write_sheet(sheet, args, out, number):
    path = out / ("sheet.png" if number is None else f"sheet_{number}.png")
    shown, titles = zip(*sheet, strict=True)
    charts.gallery(shown, [title.replace(": ", "\n") for title in titles],
                    f"Attention, {args.method}", path)
    warn(f"wrote {len(sheet)} figures and {path}")
    sheet.clear()


def faithfulness_table(classifier, paths, args):
    unreadable, areas = [], {}
    for _, images in batches(classifier, paths, args, unreadable, "faithfulness"):
        for method, parts in measure_faithfulness(classifier, images, args).items():
            areas.setdefault(method, []).append(parts)
    table = {}
    for method, parts in areas.items():
        deletion, insertion = (np.concatenate(part) for part in zip(*parts, strict=True))
        table[method] = {"deletion": faithfulness.mean_with_interval(deletion),
                         "insertion": faithfulness.mean_with_interval(insertion)}
    result = {"model": args.model or args.checkpoint, "images": len(paths) - len(unreadable),
              "deletion": "lower is better", "insertion": "higher is better",
              "area_under_curve": table}
    return result, unreadable


def parse_args():
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
    return parser.parse_args()


def main():
    args = parse_args()
    paths = image_paths(args.images, args.limit)
    refuse_equal_stems(paths)
    if args.npz:
        check_writable(args.npz)
    figures_of = [Path(args.output) / f"{path.stem}.png" for path in paths]
    refuse_to_replace(paths, [*figures_of, Path(args.output) / "sheet.png"])
    check_writable(Path(args.output) / "sheet.png")
    resolve_run_options(args)

    from models.vit import open_vit

    classifier = open_vit(args.model or args.checkpoint, args.pretrained, args.weights)
    classifier.model.to(args.device)
    function = faithfulness_table if args.faithfulness else draw_all
    result, unreadable = function(classifier, paths, args)
    report_unreadable(paths, unreadable)
    write_json(result)
    return EXIT_SOME_UNREADABLE if unreadable else 0


if __name__ == "__main__":
    run(main)
