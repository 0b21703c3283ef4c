"""Classification: the usual script against this project's, interleaved in one run; prints one JSON.

    python3 benchmarks/classify.py --runs 5 [--images DIR] [--photos 128]
        [--checkpoint FILE | --model vit_base_patch16_224] [--device cuda]

usual_fp32  PIL, timm's own transform, a DataLoader with a worker process for each core, batches of
            32, eager mode under inference_mode
usual_bf16  the same under autocast to bfloat16
ours        what ``p1_vit_classify.py predict`` does, with the defaults of this machine
compiled    the same with --compile

Each side is a process of its own, which loads its model once and then measures when it is told to:
the sides take turns, so all see the machine equally busy, and every figure is the median of --runs.
"end_to_end" is images/s from the list of files to the written CSV. "alone" is the model on photos
that are in memory already. "share" is the rate of a model's multiplications (FLOPs of its matrix
products, attention included, in images/s) as a share of the fastest matrix product of this machine
in the precision of ``ours``. "first_run" is end to end in a process that has computed nothing yet;
for "compiled" the compilation is left out of it and stands in "compile_s". "equal_labels" is the
share of photos that get the label of usual_fp32. "our_decoding" reads the photos and nothing else.
Peak memory is that of the process and of its largest worker where it has any.

The folder's photos are linked under new names until there are --photos of them.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
MODELS = ("usual_fp32", "usual_bf16", "ours", "compiled")
IN_MEMORY = 32  # photos on which a model is measured alone


def build(options):
    """The shipped (or given) checkpoint, or a model with random weights."""
    import torch

    from models.classifier import build_classifier, load_classifier

    if not options.model:
        return load_classifier(options.checkpoint)
    torch.manual_seed(0)
    classifier = build_classifier(options.model, [str(label) for label in range(37)])
    torch.nn.init.normal_(classifier.model.get_classifier().weight, std=0.5)  # zeros would tie
    return classifier


# --- the sides ----------------------------------------------------------------------------------


class Usual:
    """The script that people write."""

    def __init__(self, options):
        import timm.data

        self.options, self.classifier = options, build(options)
        self.model = self.classifier.model.eval().to(options.device)
        fields = self.classifier.preprocessing
        self.transform = timm.data.create_transform(
            (3, *fields["size"]), interpolation=fields["interpolation"], mean=fields["mean"],
            std=fields["std"], crop_pct=fields["crop_pct"])

    def labels_of(self, batches):
        """Class indices of each of ``batches``, which are on the CPU."""
        import torch

        with torch.inference_mode(), torch.autocast(
                self.options.device, torch.bfloat16, self.options.side == "usual_bf16"):
            for images in batches:
                yield self.model(images.to(self.options.device)).argmax(1).tolist()

    def run(self, output):
        """Label the folder."""
        import torch

        paths = sorted(Path(self.options.images).iterdir())
        loader = torch.utils.data.DataLoader(
            Photos(paths, self.transform), batch_size=32,
            num_workers=len(os.sched_getaffinity(0)))
        labels = [label for batch in self.labels_of(loader) for label in batch]
        with open(output, "w", newline="") as file:
            csv.writer(file).writerows([("filename", "label"), *(
                (path.name, self.classifier.classes[label])
                for path, label in zip(paths, labels, strict=True))])

    def alone(self, images):
        list(self.labels_of(images.split(32)))


class Photos:
    """The dataset of the usual script."""

    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        from PIL import Image

        return self.transform(Image.open(self.paths[index]).convert("RGB"))


class Ours:
    """What ``p1_vit_classify.py predict`` does once its model is loaded."""

    def __init__(self, options):
        from data.compute import Compute, resolve_precision
        from inference.classify import Probabilities
        from inference.options import BATCH_SIZES

        self.options, self.classifier = options, build(options)
        self.compute = Compute(options.device, resolve_precision("auto", options.device),
                               BATCH_SIZES["classifier"][options.device],
                               compile=options.side == "compiled")
        self.work = Probabilities([self.classifier], self.compute)

    def run(self, output):
        from data.files import write_csv
        from data.photos import list_images
        from inference.classify import classify_with_each

        paths = list_images(self.options.images)
        readable, (probabilities,), _ = classify_with_each(self.work, paths, self.compute)
        write_csv(output, ["filename", "label"], [
            [path.name, self.classifier.classes[label]]
            for path, label in zip(readable, probabilities.argmax(1), strict=True)])

    def alone(self, images):
        for batch in images.split(self.compute.batch_size):
            self.work([batch.to(self.options.device)])


class Machine:
    """What bounds the others: this machine's matrix products, and our reading of photos."""

    def __init__(self, options):
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from data.compute import resolve_precision

        self.options, self.classifier = options, build(options)
        precision = resolve_precision("auto", options.device)
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.classifier.model.eval()(torch.ones(1, 3, *self.classifier.preprocessing["size"]))
        self.flops = counter.get_total_flops()

    def run(self, output):
        """Read the photos."""
        from data.batches import read_batches
        from data.photos import list_images

        paths = list_images(self.options.images)
        for _ in read_batches(paths, self.classifier.transform, 32, lambda path, reason: None):
            pass

    def photos_per_s(self):
        """Images/s of a model that multiplies as fast as the fastest matrix product."""
        import torch

        best = 0.0
        for side in (1024, 2048, 4096) if self.options.device == "cpu" else (4096, 8192):
            left, right = torch.randn(2, side, side, device=self.options.device).to(self.dtype)
            for _ in range(4):
                started = time.perf_counter()
                (left @ right)[0, 0].item()  # waits for the result
                best = max(best, 2 * side**3 / (time.perf_counter() - started))
        return best / self.flops


SIDES = {"usual_fp32": Usual, "usual_bf16": Usual, "ours": Ours, "compiled": Ours,
         "machine": Machine}

# --- in the process of a side -------------------------------------------------------------------


def serve(options):
    """Build the side, then measure it once for each line on stdin; answer each with a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print stays out of the answers
    side = SIDES[options.side](options)
    with tempfile.TemporaryDirectory() as folder:
        for _ in sys.stdin:
            with contextlib.redirect_stdout(sys.stderr):
                answer = measure(side, Path(folder) / "out.csv")
            print(json.dumps(answer), file=answers, flush=True)


def measure(side, output):
    import torch

    started = time.perf_counter()
    side.run(output)
    seconds = time.perf_counter() - started
    answer = {"photos_per_s": side.options.photos / seconds}
    if isinstance(side, Machine):
        return answer | {"alone": side.photos_per_s()}
    size = side.classifier.preprocessing["size"]
    images = torch.randn(IN_MEMORY, *size, 3).permute(0, 3, 1, 2)  # laid out as ours reads photos
    started = time.perf_counter()
    side.alone(images)
    answer["alone"] = IN_MEMORY / (time.perf_counter() - started)
    if side.options.side == "compiled":
        answer["compile_s"] = side.work.compile_seconds
        answer["first_run"] = side.options.photos / (seconds - side.work.compile_seconds)
    with open(output, newline="") as file:
        answer["labels"] = dict(list(csv.reader(file))[1:])
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if isinstance(side, Usual):  # the largest worker too; both share torch's libraries
        kilobytes += resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return answer | {"megabytes": kilobytes / 1024}


# --- in the main process ------------------------------------------------------------------------


def ask(processes, side):
    """One measurement of a side, whose process starts with the first one."""
    if side not in processes:
        processes[side] = subprocess.Popen([sys.executable, *sys.argv, "--side", side], text=True,
                                           stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    print(file=processes[side].stdin, flush=True)
    answer = processes[side].stdout.readline()
    if not answer:
        sys.exit(f"{side} has failed")
    return json.loads(answer)


def link_photos(folder, source, count):
    """Fill ``folder`` with ``count`` links to the photos in ``source``."""
    photos = [path for path in sorted(Path(source).resolve().iterdir())
              if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")]
    for number, path in enumerate(islice(cycle(photos), count)):
        (Path(folder) / f"{number:06}{path.suffix}").symlink_to(path)


def report(options, first, answers):
    """The JSON of all ``answers``, {side: those of its runs}, the first one apart in ``first``."""
    def median(side, key):
        return statistics.median(answer[key] for answer in answers[side])

    best = median("machine", "alone")
    rates = {side: median(side, "photos_per_s") for side in MODELS}
    alone = {side: median(side, "alone") for side in MODELS}
    labels = {side: answers[side][-1]["labels"] for side in MODELS}

    def rounded(values, digits=1):
        return {key: round(value, digits) for key, value in values.items()}

    return {
        "photos": options.photos, "runs": options.runs, "device": options.device,
        "model": options.model or str(options.checkpoint),
        "end_to_end": rounded(rates), "alone": rounded(alone),
        "our_decoding": round(median("machine", "photos_per_s"), 1),
        "best_matrix_product": round(best, 1),
        "share": {"alone": rounded({side: rate / best for side, rate in alone.items()}, 3),
                  "end_to_end": rounded({side: rate / best for side, rate in rates.items()}, 3)},
        "ours_over": rounded({side: rates["ours"] / rates[side] for side in MODELS[:2]}, 2),
        "compiled_over": rounded({side: rates["compiled"] / rates[side] for side in MODELS[:3]}, 2),
        "first_run": rounded({side: first[side].get("first_run", first[side]["photos_per_s"])
                              for side in MODELS}),
        "compile_s": round(first["compiled"]["compile_s"], 1),
        "equal_labels": rounded({side: statistics.mean(
            labels[side].get(name) == label for name, label in labels["usual_fp32"].items())
            for side in MODELS[1:]}, 4),
        "peak_memory_mb": rounded({side: answers[side][-1]["megabytes"] for side in MODELS}, 0),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default=ROOT / "samples", help="default: the samples")
    parser.add_argument("--photos", type=int, default=128)
    parser.add_argument("--checkpoint", default=ROOT / "ckpt" / "pets_vit_tiny.safetensors")
    parser.add_argument("--model", help="a timm name with random weights instead of a checkpoint")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return serve(options)
    processes = {}
    with tempfile.TemporaryDirectory() as folder:
        link_photos(folder, options.images, options.photos)
        sys.argv += ["--images", folder]
        first = {side: ask(processes, side) for side in SIDES}
        rounds = [{side: ask(processes, side) for side in SIDES} for _ in range(options.runs)]
        for process in processes.values():
            process.stdin.close()
            process.wait()
    print(json.dumps(report(options, first, {side: [answers[side] for answers in rounds]
                                             for side in SIDES}), indent=2))


if __name__ == "__main__":
    main()
