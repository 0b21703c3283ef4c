"""A folder of very many photos through ``p1_vit_classify.py predict``: speed and memory, as JSON.

    python3 benchmarks/many_files.py --files 1000000 --folder /dev/shm/many

Makes links to a few photos in a temporary folder and a classifier of a few parameters, so that what
is measured is everything but the model. Seconds and peak memory are those of the whole command; the
listing is measured apart, in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PHOTOS = 8  # different ones

LISTING = """
import json, sys, time
from pathlib import Path
from data.photos import list_images
started = time.perf_counter()
count = len(list_images(sys.argv[1]))
seconds = round(time.perf_counter() - started, 2)
peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(json.dumps({"files": count, "seconds": seconds, "process_mb": int(peak) // 1024}))
"""


def peak_memory(process) -> int:
    """Megabytes that a process had at most, when it has ended."""
    status, kilobytes = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        words = status.read_text().split()
        if "VmHWM:" in words:  # it is still running
            kilobytes = int(words[words.index("VmHWM:") + 1])
        time.sleep(0.1)
    return kilobytes // 1024


def make(folder: Path, count: int) -> tuple[Path, Path]:
    """(a folder of ``count`` links to a few photos, a tiny classifier)."""
    import numpy as np
    from PIL import Image

    from models.classifier import build_classifier, save_classifier

    images = folder / "images"
    images.mkdir()
    random = np.random.default_rng(0)
    for number in range(PHOTOS):
        pixels = random.integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    for number in range(count):
        os.symlink(folder / f"{number % PHOTOS}.jpg", images / f"{number:08}.jpg")
    classifier = build_classifier("test_vit", ["0", "1"], {"0": "a", "1": "b"}, image_size=32)
    save_classifier(folder / "tiny.safetensors", classifier)
    return images, folder / "tiny.safetensors"


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("--batch-size", default="64")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        images, checkpoint = make(Path(place), options.files)
        listing = subprocess.run([sys.executable, "-c", LISTING, images], check=True, text=True,
                                 stdout=subprocess.PIPE, env={**os.environ,
                                                              "PYTHONPATH": str(ROOT)})
        output = Path(place) / "out.csv"
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, ROOT / "p1_vit_classify.py", "predict", "--images", images, "--output",
             output, "--checkpoint", checkpoint, "--batch-size", options.batch_size],
            stdout=subprocess.DEVNULL)
        megabytes = peak_memory(process)
        seconds = time.perf_counter() - started
        if process.returncode:
            sys.exit(process.returncode)
        with open(output) as file:
            rows = sum(1 for _ in file) - 1
    print(json.dumps({"files": options.files, "rows": rows, "listing": json.loads(listing.stdout),
                      "seconds": round(seconds, 1),
                      "photos_per_s": round(options.files / seconds, 1),
                      "peak_memory_mb": megabytes}, indent=2))


if __name__ == "__main__":
    main()
