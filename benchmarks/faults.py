"""Predictions and trainings by two processes that are killed at random moments; prints one JSON.

    python3 benchmarks/faults.py --train DIR [--kills 20] [--folder DIR]

SIGKILL goes to one of the two processes, or SIGTERM to torchrun, at a random moment. After each,
there must be no half file; then the command goes on with --resume until it is done, and what it
wrote must be what an uninterrupted run writes. Exit status 1 where anything differs. --folder is
where the results go: a small tmpfs shows what a full disk does.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SMALL = ["--device", "cpu", "--precision", "fp32"]


def predict(options, out):
    return ["predict", "--images", options.train, "--output", str(out / "out.csv"), "--batch-size",
            "4", *SMALL]


def train(options, out):
    return ["train", "--train", options.train, "--out", str(out), "--model", "test_vit", "--epochs",
            "3", "--workers", "0", *SMALL]


COMMANDS = {"predict": (predict, "out.csv"), "train": (train, "last.safetensors")}


def started(words):
    return subprocess.Popen([*LAUNCH, str(ROOT / "p1_vit_classify.py"), *words],
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def members(launcher):
    """The process ids of what a launcher has started."""
    found = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


def kill_at(launcher, seconds, draw):
    """After some seconds, end one of the processes, or all by the launcher."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and launcher.poll() is None:
        time.sleep(0.02)
    targets = members(launcher)
    if draw.random() < 0.5 and targets:
        os.kill(draw.choice(targets), signal.SIGKILL)
    else:
        launcher.terminate()
    return launcher.communicate()[1]


def content(file):
    """What a file holds, but for the times that a checkpoint's description has."""
    if file.suffix != ".safetensors":
        return file.read_bytes()
    return {name: array.tobytes() for name, array in load_file(file).items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="photos named <label>_<anything>")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", help="where the results go")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, report = random.Random(options.seed), {}
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        for name, (words, file) in COMMANDS.items():
            whole, out = Path(place) / f"{name}-whole", Path(place) / name
            begun = time.monotonic()
            if started(words(options, whole)).wait():
                sys.exit(f"{name} fails when nobody stops it")
            seconds = time.monotonic() - begun
            half, tracebacks, ended = 0, 0, 0
            for _ in range(options.kills // len(COMMANDS)):
                resumed = ["--resume"] if out.exists() else []
                launcher = started(words(options, out) + resumed)
                errors = kill_at(launcher, draw.uniform(0, seconds), draw)
                ended += launcher.returncode == 0
                half += name == "predict" and launcher.returncode != 0 and (out / file).exists()
                tracebacks += "p1_vit_classify.py\", line" in errors
                if launcher.returncode == 0:  # it had ended before: the next one starts anew
                    shutil.rmtree(out)
            last = started(words(options, out) + ["--resume"])
            errors = last.communicate()[1]
            if last.returncode:
                sys.exit(f"{name} cannot be resumed: {errors}")
            report[name] = {"kills": options.kills // len(COMMANDS), "ended_before": ended,
                            "half_files": half, "tracebacks": tracebacks,
                            "as_if_never_stopped":
                            content(out / file) == content(whole / file),
                            "left_over": sorted(path.name for path in out.glob(".tmp-*"))}
    print(json.dumps(report, indent=2))
    return any(row["half_files"] or row["tracebacks"] or not row["as_if_never_stopped"]
               for row in report.values())


if __name__ == "__main__":
    sys.exit(main())
