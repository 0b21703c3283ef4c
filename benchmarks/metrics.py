"""Files to scores: the COCO toolkit (pycocoevalcap, Java for its tokenizer) against ours, each in
a process of its own, start of Python included; one JSON. Needs Java and tests/requirements.txt.

    python3 benchmarks/metrics.py --predictions prediction.json --captions val.json

The sides run in turn; "seconds" are medians of --repeats runs, and "times_faster" is of these.
Both keep compiled modules, as Python does where PYTHONDONTWRITEBYTECODE is not set.
About 15 seconds on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLKIT = """
import json, sys
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
predictions, references = (json.load(open(path)) for path in sys.argv[1:])
names = {image["id"]: image["file_name"].rsplit(".", 1)[0] for image in references["images"]}
gts = {name: [] for name in names.values()}
for row in references["annotations"]:
    gts[names[row["image_id"]]].append({"caption": row["caption"]})
res = {name: [{"caption": predictions[name]}] for name in gts}
tokenizer = PTBTokenizer()
gts, res = tokenizer.tokenize(gts), tokenizer.tokenize(res)
scores = {"CIDEr": Cider().compute_score(gts, res)[0],
          "ROUGE-L": Rouge().compute_score(gts, res)[0]}
bleu = Bleu(4).compute_score(gts, res, verbose=0)[0]
print(json.dumps(scores | {f"BLEU-{n + 1}": value for n, value in enumerate(bleu)}))
"""


def timed(words: list[str]) -> tuple[float, dict]:
    usual = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    output = subprocess.run(words, check=True, capture_output=True, text=True, env=usual).stdout
    return time.perf_counter() - started, json.loads(output[output.index("{"):])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", required=True)
    parser.add_argument("--captions", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    theirs = [sys.executable, "-c", TOOLKIT, options.predictions, options.captions]
    ours = [sys.executable, str(ROOT / "p2_caption.py"), "score",
            "--predictions", options.predictions, "--captions", options.captions]
    seconds = {"toolkit": [], "ours": []}
    for _ in range(options.repeats):  # in turn, so that both see the machine in the same state
        for name, words in (("toolkit", theirs), ("ours", ours)):
            taken, scores = timed(words)
            seconds[name].append(taken)
            if name == "toolkit":
                expected = scores
            else:
                scores = scores["metrics"]
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    print(json.dumps({
        "seconds": {name: round(value, 3) for name, value in middle.items()},
        "times_faster": round(middle["toolkit"] / middle["ours"], 1),
        "largest_difference": max(abs(scores[name] - expected[name]) for name in expected),
        "CIDEr": scores["CIDEr"],
    }, indent=2))


if __name__ == "__main__":
    main()
