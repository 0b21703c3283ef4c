"""The questions about problem 1: a vision transformer that classifies photos."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import numpy as np

from data.files import read_table
from report import map_observations as of_maps
from report import observations as of
from report.inputs import SMALL, Inputs
from report.pointing import NOTE, pointing_command, pointing_table
from report.section import (
    Answer,
    Figure,
    Measured,
    Section,
    Table,
    Words,
    answer_figures,
    count,
    names_of_models,
    percent,
    with_interval,
)

SHOWN_SETTINGS = 40  # rows of a sweep's table
THRESHOLDS = (0.90, 0.94)  # the course's, simple and strong

# --- accuracy -----------------------------------------------------------------------------------


def accuracy_commands(inputs: Inputs, folder: Path) -> list[Words]:
    labels = ["--labels", str(inputs.breeds.truth)] if inputs.breeds.truth else []
    models = inputs.checkpoints["classifier"]
    measured = [models] if inputs.ensemble else [[model] for model in models]
    others = [] if inputs.ensemble else models[1:]
    photos = ["--images", str(inputs.breeds.folder), *labels, *inputs.run, *inputs.limit]
    return [*(["p1_vit_classify.py", "eval", *photos, "--checkpoint", *checkpoints, "--figures",
               str(folder / str(number))] for number, checkpoints in enumerate(measured, 1)),
            *(["p1_vit_classify.py", "compare", models[0], other, *photos, "--output",
               str(folder / f"compared_{number}")] for number, other in enumerate(others, 2))]


def accuracy_answer(inputs: Inputs, folder: Path, printed: list[dict]) -> Answer:
    results, pairs = ([part for part in printed if ("difference" in part) == compared]
                      for compared in (False, True))
    called = iter(names_of_models([source for result in results
                                   for source in result["checkpoints"]]))
    names = [" + ".join(islice(called, len(result["checkpoints"]))) for result in results]
    measured = [Measured(name, result["accuracy"], *result["accuracy_95"])
                for name, result in zip(names, results, strict=True)]
    best = of.best_of(measured) or 0
    result, figures = results[best], folder / str(best + 1)
    return Answer(
        f"{with_interval(result['accuracy'], result['accuracy_95'], percent)} of "
        f"{count(result['total'], 'photo')}",
        tables=[Table(
            ["model", "right", "accuracy", "95 % interval", "mean over classes", "loss"],
            [[row.name, f"{result['correct']} of {result['total']}", percent(row.value),
              f"{percent(row.low)} - {percent(row.high)}", percent(result["balanced_accuracy"]),
              f"{result['loss']:.3f}"] for row, result in zip(measured, results, strict=True)],
            best if len(results) > 1 else None)],
        figures=answer_figures(figures, names[best], result["total"]),
        observations=of.said(
            of.few_photos(result["correct"], result["total"], result["accuracy_95"]),
            *(of.same_photos(names[0], other, pair)
              for other, pair in zip(names[1:], pairs, strict=True)),
            None if inputs.breeds.sample else of.threshold(measured[best], THRESHOLDS, percent),
            of.balance(result["accuracy"], result["balanced_accuracy"], result["per_class"]),
            of.classes(result["per_class"]), of.true_probability(result["loss"])))


# --- settings -----------------------------------------------------------------------------------


def settings_lack(inputs: Inputs) -> str:
    if inputs.sweep is None:
        return ("A table of settings needs a sweep: --sweep DIR gives the folder of one that you "
                "ran (p1_vit_classify.py sweep), --sweep small with --p1-train DIR runs a small "
                "one.")
    if inputs.sweep == SMALL and inputs.train is None:
        return "--sweep small needs photos to train on: --p1-train DIR."
    return ""


def settings_commands(inputs: Inputs, folder: Path) -> list[Words]:
    if inputs.sweep != SMALL:
        return []
    start = (["--weights", str(inputs.sweep_weights)] if inputs.sweep_weights
             else ["--pretrained"])
    return [["p1_vit_classify.py", "sweep", "--train", str(inputs.train), "--hold-out", *start,
             "--image-size", "96", "--warmup", "0.5", "--epochs", "2", "--vary",
             "lr=1e-3,1e-4", "--vary", "optimizer=adamw,sgd", "--out", str(folder),
             *inputs.run, *inputs.limit]]


def settings_answer(inputs: Inputs, folder: Path, results: list) -> Answer:
    source = folder if inputs.sweep == SMALL else inputs.sweep
    header, *rows = read_table(source / "sweep.csv")
    figures = []
    if (source / "curves.png").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        if source != folder:
            shutil.copy2(source / "curves.png", folder / "curves.png")
        figures = [Figure(folder / "curves.png", "Loss and accuracy of each epoch; dashed: "
                                                 "training photos.")]
    val, train, interval = (header.index(name) for name in (
        "val accuracy", "train accuracy", "95 % interval"))
    finished = [row for row in rows if row[val]]
    names = [", ".join(f"{key} {value}" for key, value in zip(header[:train], row, strict=False)
                       if value)  # settings may give different options
             for row in finished]
    measured = [Measured(name, share(row[val]), *map(share, row[interval].split(" - ")))
                for name, row in zip(names, finished, strict=True)]
    best = of.best_of(measured)
    return Answer(
        f"{percent(measured[best or 0].value)} ({names[best or 0]})" if measured else "none ended",
        tables=[Table(header, [for_readers(header, row) for row in rows[:SHOWN_SETTINGS]],
                      None if best is None else rows.index(finished[best]))],
        figures=figures,
        observations=of.said(
            of.told_apart(measured, percent),
            of.overfitting([(name, share(row[train]), share(row[val]))
                            for name, row in zip(names, finished, strict=True)])),
        notes=[f"{len(rows)} settings are in {source / 'sweep.csv'}."]
        if len(rows) > SHOWN_SETTINGS else [])


def for_readers(header: list[str], row: list[str]) -> list[str]:
    """A row of sweep.csv with its shares in per cent: 0.427 -> "42.7 %"."""
    return [" - ".join(map(percent, map(share, cell.split(" - "))))
            if name.endswith(("accuracy", "95 % interval")) and cell[:1].isdigit()
            and "diverged" not in cell
            else f"{100 * float(cell):.1f} points"
            if name in ("against the best", "spread") and cell[-1:].isdigit() else cell
            for name, cell in zip(header, row, strict=False)]


def share(text: str) -> float:
    """"42.7%" or "0.427" -> 0.427."""
    text = text.strip()
    return float(text.rstrip("% ")) / 100 if text.endswith("%") else float(text)


# --- position embeddings ------------------------------------------------------------------------


def positions_commands(inputs: Inputs, folder: Path) -> list[Words]:
    return [["p1_pos_embed_vis.py", "--checkpoint",
             inputs.checkpoints["classifier"][0],
             "--output", str(folder / "positions.png")]]


def positions_answer(inputs: Inputs, folder: Path, results: list[dict]) -> Answer:
    (name, numbers), = results[0].items()
    row, column, elsewhere = (numbers[key] for key in ("same_row", "same_column", "elsewhere"))
    shown = [str(value) if value is None else f"{value:.2f}" for value in (row, column, elsewhere)]
    return Answer(
        f"cosine similarity {shown[0]} in the same row, {shown[1]} in the same column, "
        f"{shown[2]} elsewhere",
        tables=[Table(["pairs of patches", "mean cosine similarity"],
                      list(zip(["same row", "same column", "elsewhere"], shown, strict=True)))],
        figures=[Figure(folder / "positions.png", f"Position embeddings of {name}, a grid of "
                                                  f"{numbers['grid'][0]} x {numbers['grid'][1]}.")],
        observations=of.said(of_maps.rows_and_columns(numbers),
                             of_maps.by_distance(numbers["by_distance"])))


# --- attention ----------------------------------------------------------------------------------

METHODS = ("last", "relevance")


def attention_commands(inputs: Inputs, folder: Path) -> list[Words]:
    return [["p1_attn_map.py", "--images", *map(str, inputs.breeds.shown), "--method", method,
             "--checkpoint", inputs.checkpoints["classifier"][0],
             "--output", str(folder / method), "--npz", str(folder / f"{method}.npz"),
             *inputs.run] for method in METHODS] + pointing_command(
                 "p1_attn_map.py", inputs, inputs.breeds, inputs.checkpoints["classifier"][0])


def attention_answer(inputs: Inputs, folder: Path, printed: list[dict]) -> Answer:
    results, pointing = printed[:len(METHODS)], printed[len(METHODS):]
    rows, patches = results[0]["images"], int(np.prod(results[0]["grid"]))
    maps = [np.load(folder / f"{method}.npz")["maps"][:, 0] for method in METHODS]
    bits = [row["entropy_bits"][0] for row in rows]
    figures = [Figure(Path(row["figure"]), f"{method}: {row['filename']}"
                      + (f", predicted: {row['name'].replace('_', ' ')} "
                         f"({row['probability']:.0%})" if row["probability"] else "") + ".")
               for method, result in zip(METHODS, results, strict=True)
               for row in result["images"]]
    return Answer(
        f"entropy {np.mean(bits):.1f} of at most {np.log2(patches):.1f} bits",
        tables=[Table(
            ["photo", "predicted", "probability", "entropy of last (bits)",
             "mean distance of each head (pixels)"],
            [[row["filename"], row["name"].replace("_", " "),
              percent(row["probability"]) if row["probability"] else "-",
              f"{row['entropy_bits'][0]:.2f}",
              ", ".join(f"{value:.0f}" for value in row["mean_attention_distance"])]
             for row in rows]), *(pointing_table(part["maps"]) for part in pointing)],
        figures=figures,
        observations=of.said(*(of_maps.pointing(part["maps"]) for part in pointing),
                             of_maps.spread_of_maps(bits, patches), of_maps.corners(maps[0]),
                             of_maps.peaks_inside(maps[1], METHODS[1]),
                             of_maps.agreement(*METHODS, maps)),
        notes=[NOTE] * len(pointing))


# --- the sections -------------------------------------------------------------------------------

SECTIONS = (
    Section(
        "accuracy", (2021,), "Accuracy of the classifier",
        "How many photos does the best vision transformer label correctly, and how sure is that "
        "number?",
        accuracy_commands, accuracy_answer, lambda inputs: inputs.breeds.about,
        "The interval is Wilson's: if many test sets of this size were drawn, 95 % of such "
        "intervals would contain the true accuracy. In the confusion matrix a row is the true "
        "class and a column the predicted one, so errors stand beside the diagonal. The mean over "
        "classes counts each class alike, however many photos it has. Two models that have seen "
        "the same photos are compared photo by photo, which tells more than their intervals.",
        references=(
            "Students of the course, val, with ImageNet-21k weights: ViT-L/16 95.7 %, ViT-B/16 at "
            "384 pixels 94.5 - 95.3 %, ViT-B with SAM 94.2 %; not pretrained 7.5 - 21 %.",
            "The course's thresholds on val: 90 % (simple) and 94 % (strong).")),
    Section(
        "settings", (2021,), "Settings compared",
        "How do training settings, such as the learning rate or the optimizer, change the "
        "accuracy on validation photos?",
        settings_commands, settings_answer,
        lambda inputs: (f"Read from the sweep in {inputs.sweep}." if inputs.sweep != SMALL else
                        f"Trained on {inputs.train}; a tenth of it was held out for validation."),
        "Each row is one training. A setting is behind another only where their intervals do not "
        "overlap. Training accuracy is measured on augmented photos while the weights change.",
        references=("Students of the course: SGD with 1e-3 or Adam with 1e-5, 5 - 20 epochs, for "
                    "94.5 - 95.3 % with ViT-B/16 at 384 pixels.",),
        lacks=settings_lack),
    Section(
        "positions", (2021,), "Position embeddings",
        "What does the position embedding know about where a patch lies in the photo?",
        positions_commands, positions_answer,
        lambda inputs: "Computed from the model's weights alone.",
        "Each tile belongs to the patch at its place in the grid, and shows the cosine similarity "
        "of its position embedding to that of every patch. A bright cross means that the patch is "
        "similar to those of its own row and column."),
    Section(
        "attention", (2021,), "Attention maps",
        "Where does the classifier look in a photo before it decides?",
        attention_commands, attention_answer, lambda inputs: inputs.breeds.about,
        "Yellow is the 97th percentile of the map and all above it, dark blue is 0; grey was cut "
        "off before the model saw the photo. \"last\" is the attention of the class token in the "
        "last layer: from where information is gathered, not why the model decides. \"relevance\" "
        "multiplies attention by its gradient through all layers: what speaks for the predicted "
        "class. The mean distance is how far apart a patch and those it attends to are."),
)
