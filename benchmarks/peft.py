"""A training epoch over a frozen encoder, with its features kept on disk and without; and the peak
memory of each method. One JSON.

    python3 benchmarks/peft.py --images DIR --captions train.json [--limit N] [option of train …]

Every side is ``peft_caption.py train`` in a process of its own: one caption a photo and epoch, the
same batches and precision, all threads.

features  the encoder's patches come from disk, the step touches the decoder alone
photos    photos are read, flipped at random and encoded in every step, as augmentation needs it

"images_per_s" is of the second epoch, evaluation left out; "encode_once_s" what keeping the
features costs, once for all epochs and methods. "peak_mb" is a process's largest resident memory,
Python and torch included; where a side reads photos, that of its main process.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("cross", "adapter", "prefix", "lora", "full")
SIDES = {"features": ["--workers", "0"], "photos": ["--workers", "2", "--augment", "flip"]}


def train(options, out: Path, method: str, side: str, epochs: int) -> dict:
    """One run: images/s of its last epoch, wall time and peak memory."""
    words = [sys.executable, ROOT / "peft_caption.py", "train", "--method", method, "--images",
             options.images, "--captions", options.captions, "--limit", options.limit + 2,
             "--hold-out", 2, "--captions-each", 1, "--epochs", epochs, "--features",
             out.parent / "features", "--out", out, *SIDES[side]]
    words += options.more
    started = time.perf_counter()
    process = subprocess.Popen([str(word) for word in words], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} failed: run it to see why")
    with open(out / "history.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    return {"images_per_s": float(last["images_per_s"]), "peak_mb": usage.ru_maxrss // 1024,
            "wall_s": time.perf_counter() - started}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--captions", required=True)
    parser.add_argument("--limit", type=int, default=1024, help="photos of an epoch")
    parser.add_argument("--method", choices=METHODS, default="adapter", help="for the speeds")
    parser.add_argument("--repeats", type=int, default=2)
    options, options.more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        first = train(options, folder / "first", options.method, "features", 1)
        again = train(options, folder / "again", options.method, "features", 1)
        speeds = {side: max(train(options, folder / f"{side}{number}", options.method, side, 2)
                            ["images_per_s"] for number in range(options.repeats))
                  for side in SIDES}
        peaks = {method: train(options, folder / method, method, "features", 1)["peak_mb"]
                 for method in METHODS}
    print(json.dumps({
        "photos": options.limit, "cores": os.cpu_count(), "method": options.method,
        "options": options.more, "images_per_s": speeds,
        "ratio": round(speeds["features"] / speeds["photos"], 2),
        "encode_once_s": round(first["wall_s"] - again["wall_s"], 1), "peak_mb": peaks}, indent=2))


if __name__ == "__main__":
    main()
