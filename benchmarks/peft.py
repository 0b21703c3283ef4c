"""A training epoch over a frozen encoder, with its features kept on disk and without; and the peak
memory of each method. One JSON.

    python3 benchmarks/peft.py --images DIR --captions train.json [--limit N] [option of train …]

Each side is ``peft_caption.py train`` in a process of its own: one caption a photo and epoch, the
same batches and precision, all threads.

features  patch features come from disk, a step computes the decoder only
photos    photos are read, flipped at random and encoded in every step, as with augmentation

The sides run in turn; "images_per_s" is the median of the second epochs of --repeats runs, without
validation, and "ratio" is of these medians. "encode_once_s" is the time in which the features are
computed and written, once for all epochs and methods, measured by itself. "peak_mb" is a process's
largest resident memory, Python and torch included; where photos are read, that of its main process.

About 3 minutes on two cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SIDES = {"features": ["--workers", "0"], "photos": ["--workers", "2", "--augment", "flip"]}


def train_words(options, out: Path, method: str, side: str, epochs: int) -> list[str]:
    """The arguments of ``peft_caption.py`` for one run."""
    words = ["train", "--method", method, "--images", options.images, "--captions",
             options.captions, "--limit", options.limit + 2, "--hold-out", 2, "--captions-each", 1,
             "--epochs", epochs, "--features", out.parent / "features", "--out", out]
    return [str(word) for word in [*words, *SIDES[side], *options.more]]


def train(options, out: Path, method: str, side: str, epochs: int) -> dict:
    """One run: images/s of its last epoch and peak memory."""
    words = [sys.executable, str(ROOT / "peft_caption.py"),
             *train_words(options, out, method, side, epochs)]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed: run it to see why")
    with open(out / "history.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    return {"images_per_s": float(last["images_per_s"]), "peak_mb": usage.ru_maxrss // 1024}


def encode_seconds(options, folder: Path) -> float:
    """The time in which the features of the photos are computed and written into ``folder``."""
    import peft_caption
    from inference.caption import patch_features
    from training.caption import photos_from
    from training.peft import recipe_from, training_base

    words = train_words(options, folder / "out", options.method, "features", 1)
    args = peft_caption.make_parser().parse_args(words)
    images, _ = photos_from(args)
    base, compute = training_base(args), recipe_from(args).compute
    started = time.perf_counter()
    patch_features(base, list(images), compute, folder)
    return time.perf_counter() - started


def main():
    from training.options import PEFT_LR

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--captions", required=True)
    parser.add_argument("--limit", type=int, default=512, help="photos of an epoch")
    parser.add_argument("--method", choices=PEFT_LR, default="adapter", help="for the speeds")
    parser.add_argument("--repeats", type=int, default=3)
    options, options.more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        runs: dict[str, list[float]] = {side: [] for side in SIDES}
        for number in range(options.repeats):  # in turn, so that both see the machine alike
            for side, speeds in runs.items():
                out = folder / f"{side}{number}"
                speeds.append(train(options, out, options.method, side, 2)["images_per_s"])
        speeds = {side: statistics.median(each) for side, each in runs.items()}
        peaks = {method: train(options, folder / method, method, "features", 1)["peak_mb"]
                 for method in PEFT_LR}
        # In this process, and after the others, whose peak memory would include it.
        seconds = encode_seconds(options, folder / "encoded")
    print(json.dumps({
        "photos": options.limit, "cores": os.cpu_count(), "method": options.method,
        "options": options.more, "images_per_s": speeds,
        "ratio": round(speeds["features"] / speeds["photos"], 2),
        "encode_once_s": round(seconds, 1), "peak_mb": peaks}, indent=2))


if __name__ == "__main__":
    main()
