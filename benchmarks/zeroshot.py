"""From image files to a CSV: transformers' zero-shot pipeline and ours, compared in one run.

    python3 benchmarks/zeroshot.py --images DIR --labels id2label.json [--model FOLDER]

Every side has the same weights: a CLIPModel in --model, or one of ViT-B/32's shape with random
weights and a tokenizer that knows the classes' names as words, as CLIP's own does. The sides are

pipeline       transformers' ``zero-shot-image-classification`` with all names and its defaults:
               float32, photo by photo, every text encoded again for every photo
pipeline_bf16  the same under autocast to bfloat16
ours_fp32      ``clip_zeroshot.py predict`` in float32
ours           the same at --precision auto: bfloat16 where the CPU has it
shipped        ``hw3_1.sh IMAGES LABELS OUT.csv`` with the shipped CLIP, start of Python included

Each side runs in a process of its own, and its best of --repeats counts. Time is taken from the
first file to the written CSV, after the model is loaded; our cache of texts is empty. The result is
one JSON object: "equal_labels" is the share of photos that get the pipeline's label,
"equal_where_clear" the same among the photos whose two likeliest names differ by more than 1 % in
the pipeline's probabilities (random weights leave near ties).
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
TEMPLATE = "a photo of a {}"


def write_random_clip(folder, names, layers):
    """ViT-B/32's shape, random weights; the tokenizer's words are those of the prompts."""
    import tokenizers
    import torch
    from tokenizers import pre_tokenizers, trainers
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    words = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator([TEMPLATE.format(name) for name in names] * 9, trainers.BpeTrainer(
        vocab_size=4096, end_of_word_suffix="</w>", show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(words.to_str())["model"]
    vocabulary = [*model["vocab"], "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({word: place for place, word in enumerate(vocabulary)},
                              [tuple(pair) for pair in model["merges"]], model_max_length=77)
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    clip = CLIPModel(CLIPConfig(
        text_config={"vocab_size": len(vocabulary), "num_hidden_layers": layers, **ends},
        vision_config={"num_hidden_layers": layers}))
    for part in (clip, tokenizer, CLIPImageProcessor()):
        part.save_pretrained(folder)


def pipeline(options, output):
    import torch
    from transformers import pipeline

    from data.labels import read_classes
    from data.photos import list_images

    names = {name: label for label, name in read_classes(options.labels).items()}
    classify = pipeline("zero-shot-image-classification", model=options.model, device="cpu")
    started = time.perf_counter()
    paths = list_images(options.images)
    rows, clear = [], []
    with torch.autocast("cpu", torch.bfloat16, enabled=options.side == "pipeline_bf16"):
        for path in paths:
            best, second, *_ = classify(str(path), candidate_labels=list(names),
                                        hypothesis_template=TEMPLATE)
            rows.append((path.name, names[best["label"]]))
            if best["score"] > 1.01 * second["score"]:
                clear.append(path.name)
    with open(output, "w", newline="") as file:
        csv.writer(file).writerows([("filename", "label"), *rows])
    return time.perf_counter() - started, clear


def ours(options, output):
    """The steps of ``clip_zeroshot.py predict``, timed from where the model is loaded."""
    from data.compute import Compute, resolve_precision
    from data.files import write_csv
    from data.labels import read_classes
    from data.photos import list_images
    from inference.clip import image_features, open_clip
    from inference.options import BATCH_SIZES
    from inference.zeroshot import ZeroShot

    classes = read_classes(options.labels)
    precision = "fp32" if options.side == "ours_fp32" else resolve_precision("auto", "cpu")
    compute = Compute("cpu", precision, BATCH_SIZES["clip"]["cpu"])
    clip = open_clip(options.model).to(compute.device)
    started = time.perf_counter()
    readable, images, _ = image_features(clip, list_images(options.images), compute)
    probabilities = ZeroShot(clip, classes, [TEMPLATE]).probabilities(images)
    labels = [list(classes)[i] for i in probabilities.argmax(1)]
    write_csv(output, ["filename", "label"],
              [[path.name, label] for path, label in zip(readable, labels, strict=True)])
    return time.perf_counter() - started, []


def shipped(options, output):
    started = time.perf_counter()
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    subprocess.run(["bash", ROOT / "hw3_1.sh", options.images, options.labels, output], check=True,
                   stdout=sys.stderr, env={**os.environ, "PATH": path})
    return time.perf_counter() - started, []


SIDES = {"pipeline": pipeline, "pipeline_bf16": pipeline, "ours_fp32": ours, "ours": ours,
         "shipped": shipped}


def measure(options):
    """Run one side in this process; print its time, memory and labels as stdout's last line."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        os.environ["XDG_CACHE_HOME"] = folder
        output = Path(folder) / "out.csv"
        seconds, clear = SIDES[options.side](options, output)
        with open(output, newline="") as file:
            labels = dict(list(csv.reader(file))[1:])
    who = resource.RUSAGE_CHILDREN if options.side == "shipped" else resource.RUSAGE_SELF
    print(json.dumps({"seconds": seconds, "labels": labels, "clear": clear,
                      "megabytes": resource.getrusage(who).ru_maxrss / 1024}))


def measure_apart(side, options):
    """One side in a process of its own."""
    words = [sys.executable, __file__, "--side", side, "--images", options.images, "--labels",
             options.labels, "--model", options.model]
    process = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def compare(options):
    """Every side in turn, so that all run on the machine in the same state."""
    from ckpt import registry

    best = {}
    sides = [side for side in SIDES if side != "shipped" or registry.CLIP.is_file()]
    for _ in range(options.repeats):
        for side in sides:
            row = measure_apart(side, options)
            best[side] = min(best.get(side, row), row, key=lambda row: row["seconds"])
    photos, usual = len(best["pipeline"]["labels"]), best["pipeline"]
    same = {side: {name for name, label in usual["labels"].items()
                   if best[side]["labels"].get(name) == label} for side in sides}
    compared = [side for side in sides if side not in ("pipeline", "shipped")]
    clear = set(usual["clear"])
    return {
        "photos": photos,
        "images_per_s": {side: round(photos / best[side]["seconds"], 1) for side in sides},
        "ours_over_pipeline": round(usual["seconds"] / best["ours"]["seconds"], 2),
        "ours_over_pipeline_bf16": round(
            best["pipeline_bf16"]["seconds"] / best["ours"]["seconds"], 2),
        "ours_fp32_over_pipeline": round(usual["seconds"] / best["ours_fp32"]["seconds"], 2),
        "equal_labels": {side: len(same[side]) / photos for side in compared},
        "equal_where_clear": {side: len(same[side] & clear) / max(len(clear), 1)
                              for side in compared},
        "clear": len(clear),
        "seconds": {side: round(best[side]["seconds"], 2) for side in sides},
        "peak_memory_mb": {side: round(best[side]["megabytes"]) for side in sides},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--model", help="a folder that CLIPModel.save_pretrained wrote")
    parser.add_argument("--layers", type=int, default=12, help="of each random tower")
    parser.add_argument("--limit", type=int, help="use only N images, spread over the folder")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return measure(options)
    from data.labels import read_classes
    from data.photos import list_images

    with tempfile.TemporaryDirectory() as folder:
        about = {"model": options.model or f"random, ViT-B/32's shape, {options.layers} layers"}
        if not options.model:
            options.model = str(Path(folder) / "clip")
            write_random_clip(options.model, read_classes(options.labels).values(), options.layers)
        if options.limit:  # a folder of their own, so that every side lists the same files
            chosen = Path(folder) / "photos"
            chosen.mkdir()
            for path in list_images(options.images, options.limit):
                (chosen / path.name).symlink_to(path.resolve())
            options.images = str(chosen)
        report = compare(options)
    classes = len(read_classes(options.labels))
    print(json.dumps({**about, "classes": classes, "cores": os.cpu_count(), **report}, indent=2))


if __name__ == "__main__":
    main()
