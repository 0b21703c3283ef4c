"""From the shell script to its result on five photos, in fresh processes: how long it takes, and
how much of that is Python and its imports; one JSON.

    python3 benchmarks/start.py

"seconds" is the median of --repeats runs, "imports" the median time of a process that imports the
same modules and ends. All keep compiled modules, as Python does unless PYTHONDONTWRITEBYTECODE is
set. About 2 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = {"hw3_1.sh": "samples", "hw3_2.sh": "samples/scenes"}  # five in each
MODULES = {"hw3_1.sh": "p1_vit_classify, inference.classify",
           "hw3_2.sh": "p2_caption, inference.caption, models.decoding"}
IMPORT = """
from utils import run  # as every script starts and ends
def main():
    import {}
run(main)
"""


def timed(words: list[str]) -> float:
    usual = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    usual["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    started = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True, cwd=ROOT, env=usual)
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    seconds: dict[str, dict[str, list[float]]] = {
        script: {"seconds": [], "imports": []} for script in PHOTOS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):  # in turn, so that all see the machine in the same state
            for script, photos in PHOTOS.items():
                output = Path(folder) / ("o.csv" if script == "hw3_1.sh" else "o.json")
                seconds[script]["seconds"].append(
                    timed(["bash", script, photos, str(output)]))
                seconds[script]["imports"].append(
                    timed([sys.executable, "-c", IMPORT.format(MODULES[script])]))
    print(json.dumps({script: {key: round(statistics.median(times), 2)
                               for key, times in each.items()}
                      for script, each in seconds.items()} | {"repeats": repeats}, indent=2))


if __name__ == "__main__":
    main()
