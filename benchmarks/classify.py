"""From photos to the CSV: the usual script against this project's, in one run; prints one JSON.

    python3 benchmarks/classify.py --images DIR [--checkpoint FILE | --model vit_base_patch16_224]

The usual script: PIL, timm's own transform, DataLoader with a worker process for each core, all
threads, inference_mode, batch 32, eager; in float32, and the same in bfloat16 (autocast). Each side
runs in a process of its own, and the best of --repeats counts. Time is measured from the first file
to the written CSV, after the model is loaded. Peak memory is that of the process, with its largest
worker where it has any. "equal_labels" is the share of photos that get the label of the float32
run. "of_best_matmul" is the rate of the model alone (FLOPs of its matrix products) as a share of
the fastest matrix product measured on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def build(options):
    """The shipped (or given) checkpoint, or a model with random weights."""
    import torch

    from models.classifier import build_classifier, load_classifier

    if not options.model:
        return load_classifier(options.checkpoint)
    torch.manual_seed(0)
    classifier = build_classifier(options.model, [str(label) for label in range(37)])
    torch.nn.init.normal_(classifier.model.head.weight, std=0.5)  # timm's zeros: all would tie
    return classifier


def usual(options, output):
    """Seconds of the usual script."""
    import timm.data
    import torch
    from PIL import Image

    class Photos(torch.utils.data.Dataset):
        def __init__(self, paths, transform):
            self.paths, self.transform = paths, transform

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, index):
            return self.transform(Image.open(self.paths[index]).convert("RGB")), index

    classifier = build(options)
    fields = classifier.preprocessing
    transform = timm.data.create_transform(
        (3, *fields["size"]), interpolation=fields["interpolation"], mean=fields["mean"],
        std=fields["std"], crop_pct=fields["crop_pct"])
    model = classifier.model.eval()
    started = time.perf_counter()
    paths = sorted(Path(options.images).iterdir())
    loader = torch.utils.data.DataLoader(
        Photos(paths, transform), batch_size=32, num_workers=os.cpu_count())
    rows = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, options.side == "bf16"):
        for images, indices in loader:
            labels = model(images).argmax(1).tolist()
            rows += [(paths[i].name, classifier.classes[label])
                     for i, label in zip(indices.tolist(), labels, strict=True)]
    with open(output, "w", newline="") as file:
        csv.writer(file).writerows([("filename", "label"), *rows])
    return time.perf_counter() - started


def ours(options, output):
    """Seconds of what ``p1_vit_classify.py predict`` does once its model is loaded."""
    from data.compute import Compute, resolve_precision
    from data.files import write_csv
    from data.photos import list_images
    from inference.classify import classify_with_each
    from inference.options import BATCH_SIZES

    classifier = build(options)
    compute = Compute("cpu", resolve_precision("auto", "cpu"), BATCH_SIZES["classifier"]["cpu"])
    started = time.perf_counter()
    paths = list_images(options.images)
    readable, (probabilities,), _ = classify_with_each([classifier], paths, compute)
    write_csv(output, ["filename", "label"], [
        [path.name, classifier.classes[label]]
        for path, label in zip(readable, probabilities.argmax(1), strict=True)])
    return time.perf_counter() - started


def decode_only(options, output):
    """How fast our threads read the photos when no model competes for the cores."""
    from data.batches import read_batches
    from data.photos import list_images

    transform = build(options).transform
    paths = list_images(options.images)
    started = time.perf_counter()
    for _ in read_batches(paths, transform, 32, lambda path, reason: None):
        pass
    return time.perf_counter() - started


def model_only(options, output):
    """Seconds of the model alone for as many photos as there are files, its rate, and the rate of
    the machine's fastest matrix product."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from data.compute import autocast, resolve_precision

    classifier = build(options)
    precision = resolve_precision("auto", "cpu")
    images = torch.randn(8, 3, *classifier.preprocessing["size"])
    with FlopCounterMode(display=False) as counter:
        classifier.model(images)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best_rate = 0.0
    for side in (1024, 2048, 4096):
        left, right = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
        for _ in range(6):
            started = time.perf_counter()
            left @ right
            best_rate = max(best_rate, 2 * side**3 / (time.perf_counter() - started))
    seconds = []
    with torch.inference_mode(), autocast("cpu", precision):
        for _ in range(24):
            started = time.perf_counter()
            classifier.model(images)
            seconds.append(time.perf_counter() - started)
    photos = len(list(Path(options.images).iterdir()))
    rate = counter.get_total_flops() / min(seconds)
    return {"seconds": min(seconds) / 8 * photos, "tflops": rate / 1e12,
            "best_matmul_tflops": best_rate / 1e12, "of_best_matmul": rate / best_rate}


SIDES = {"fp32": usual, "bf16": usual, "ours": ours, "decode": decode_only, "model": model_only}


def measure(options):
    """In this process: run one side, print what it took as the last line of stdout."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        output = Path(folder) / "out.csv"
        result = SIDES[options.side](options, output)
        labels = {}
        if output.exists():
            with open(output, newline="") as file:
                labels = dict(list(csv.reader(file))[1:])
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if options.side in ("fp32", "bf16"):  # the largest worker too; both share torch's libraries
        kilobytes += resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"result": result, "labels": labels, "megabytes": kilobytes / 1024}))


def measure_apart(side):
    """One side in a process of its own."""
    words = [sys.executable, *sys.argv, "--side", side]
    process = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--checkpoint", default=ROOT / "ckpt" / "pets_vit_tiny.safetensors")
    parser.add_argument("--model", help="a timm name with random weights instead of a checkpoint")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return measure(options)
    photos = len(list(Path(options.images).iterdir()))
    best, labels, memory = {}, {}, {}
    for _ in range(options.repeats):  # in turn, so that all run while the machine is equally busy
        for side in SIDES:
            row = measure_apart(side)
            labels[side], memory[side] = row["labels"], row["megabytes"]
            key = (lambda r: r["seconds"]) if side == "model" else float
            best[side] = min(best.get(side, row["result"]), row["result"], key=key)
    speed = {side: round(photos / best[side], 1) for side in SIDES if side != "model"}
    alone = best["model"]
    print(json.dumps({
        "photos": photos, "model": options.model or str(options.checkpoint),
        "images_per_s": {"usual_fp32": speed["fp32"], "usual_bf16": speed["bf16"],
                         "ours": speed["ours"], "our_decoding_alone": speed["decode"],
                         "model_alone": round(photos / alone["seconds"], 1)},
        "ours_over_usual_fp32": round(best["fp32"] / best["ours"], 2),
        "ours_over_usual_bf16": round(best["bf16"] / best["ours"], 2),
        "peak_memory_mb": {side: round(memory[side]) for side in ("fp32", "bf16", "ours")},
        "equal_labels": {side: sum(labels[side].get(name) == label for name, label
                                   in labels["fp32"].items()) / len(labels["fp32"])
                         for side in ("bf16", "ours")},
        "model_tflops": round(alone["tflops"], 3),
        "best_matmul_tflops": round(alone["best_matmul_tflops"], 3),
        "of_best_matmul": round(alone["of_best_matmul"], 3),
    }, indent=2))


if __name__ == "__main__":
    main()
