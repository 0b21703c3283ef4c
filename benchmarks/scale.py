"""Classification by several processes against one, on the same cores; prints one JSON.

    python3 benchmarks/scale.py --images DIR [--checkpoint FILE] [--repeats 5]

Interleaved: one process with two threads; two processes with one thread each; and the same two as
two "machines" of one process, which meet on the loopback address (--nnodes 2). Seconds are those
of the whole command with its start, of which --images must be large enough not to notice. Says
whether all wrote the same file in float32.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def command(options, output):
    return [str(ROOT / "p1_vit_classify.py"), "predict", "--images", options.images, "--output",
            str(output), "--checkpoint", str(options.checkpoint), "--precision", "fp32",
            "--device", "cpu"]


def launches(side, words):
    """[(command line, threads)] of the launchers of a side."""
    if side == "1 process x 2 threads":
        return [([sys.executable, *words], 2)]
    if side == "2 processes x 1 thread":
        return [([*TORCHRUN, "--standalone", "--nproc_per_node", "2", *words], 1)]
    where = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1",
             "--master_port", str(free_port())]
    return [([*TORCHRUN, *where, "--node_rank", str(node), *words], 1) for node in range(2)]


SIDES = ("1 process x 2 threads", "2 processes x 1 thread", "2 machines x 1 process x 1 thread")


def measure(side, words):
    started = time.perf_counter()
    running = [subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                env={**os.environ, "OMP_NUM_THREADS": str(threads)})
               for line, threads in launches(side, words)]
    for process in running:
        _, errors = process.communicate()
        if process.returncode:
            sys.exit(f"{side}: {errors}")
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--checkpoint", default=ROOT / "ckpt" / "pets_vit_tiny.safetensors")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    photos = len(list(Path(options.images).iterdir()))
    seconds, written = {side: [] for side in SIDES}, {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repeats):
            for side in SIDES:
                output = Path(folder) / "out.csv"
                seconds[side].append(measure(side, command(options, output)))
                written.setdefault(side, output.read_bytes())
    median = {side: statistics.median(values) for side, values in seconds.items()}
    print(json.dumps({"photos": photos, "cores": len(os.sched_getaffinity(0)),
                      "seconds": {side: round(value, 1) for side, value in median.items()},
                      "photos_per_s": {side: round(photos / value, 1)
                                       for side, value in median.items()},
                      "ratio": {side: round(median[SIDES[0]] / value, 2)
                                for side, value in median.items()},
                      "same_file": len(set(written.values())) == 1}, indent=2))


if __name__ == "__main__":
    main()
