"""The questions about naming photos with CLIP, without training on their classes."""

from __future__ import annotations

from pathlib import Path

from data.files import read_mapping
from data.labels import labels_in_names, read_classes
from report import observations as of
from report.inputs import Inputs
from report.section import (
    Answer,
    Figure,
    Measured,
    Section,
    Table,
    Words,
    answer_figures,
    count,
    percent,
    with_interval,
)

YEARS = (2022, 2023)
TOP5_PHOTOS = "3"

# --- prompts ------------------------------------------------------------------------------------


def prompts_commands(inputs: Inputs, folder: Path) -> list[Words]:
    truth = ["--truth", str(inputs.scenes.truth)] if inputs.scenes.truth else []
    return [["clip_zeroshot.py", "eval", "--images", str(inputs.scenes.folder), "--labels",
             str(inputs.scenes.names), *truth, "--model", inputs.checkpoints["clip"][0],
             "--template", *inputs.templates, "--figures", str(folder), *inputs.run,
             *inputs.limit]]


def prompts_answer(inputs: Inputs, folder: Path, results: list[dict]) -> Answer:
    rows, classes = results[0]["rows"], results[0]["classes"]
    measured = [Measured(f'"{row["template"]}"', row["accuracy"], *row["accuracy_95"])
                for row in rows]
    single = [row for row in measured if not row.name.startswith('"ensemble of ')]
    best = of.best_of(measured) or 0
    top = rows[best]
    return Answer(
        f"{with_interval(top['accuracy'], top['accuracy_95'], percent)} of "
        f"{count(top['total'], 'photo')} with {measured[best].name}",
        tables=[Table(["template", "right", "accuracy", "95 % interval"],
                      [[row["template"], f"{row['correct']} of {row['total']}",
                        percent(row["accuracy"]), " - ".join(map(percent, row["accuracy_95"]))]
                       for row in rows], best if len(rows) > 1 else None)],
        figures=answer_figures(folder, measured[best].name, top["total"]),
        observations=of.said(
            of.few_photos(top["correct"], top["total"], top["accuracy_95"]),
            of.told_apart(measured, percent), of.negation(single, classes), of.known_names(top),
            of.classes(results[0]["best"]["per_class"])),
        notes=[f"{classes} classes, so chance is {percent(1 / classes)}.", *(
            [f"The best of {len(rows)} templates was found on these very photos, so its accuracy "
             "is a little too high. clip_zeroshot.py prompts chooses on one part of the photos and "
             "tests on the other."] if len(rows) > 1 and not inputs.scenes.sample else [])])


# --- the five likeliest names -------------------------------------------------------------------


def top5_commands(inputs: Inputs, folder: Path) -> list[Words]:
    return [["clip_zeroshot.py", "top5", "--images", str(inputs.scenes.folder), "--limit",
             TOP5_PHOTOS, "--labels", str(inputs.scenes.names), "--model",
             inputs.checkpoints["clip"][0], "--output", str(folder / "top5.png"), *inputs.run]]


def top5_answer(inputs: Inputs, folder: Path, results: list[dict]) -> Answer:
    found, classes = results[0]["images"], read_classes(inputs.scenes.names)
    paths = [inputs.scenes.folder / name for name in found]
    if inputs.scenes.truth:
        table = read_mapping(inputs.scenes.truth, "filename", "label")
        true = [table.get(path.name, "") for path in paths]
    else:
        true = labels_in_names(paths, classes)
    known = [(name, label, rows) for (name, rows), label in zip(found.items(), true, strict=True)
             if label in classes]
    ranks = [next((rank for rank, row in enumerate(rows, 1) if row["label"] == label), None)
             for _, label, rows in known]
    first = sum(rank == 1 for rank in ranks)
    return Answer(
        f"the likeliest name is right on {first} of {count(len(known), 'photo')}" if known else
        f"{len(found)} photos, whose true classes are not known",
        tables=[Table(["photo", *map(str, range(1, 6))],
                      [[name, *(f"{row['name']} ({percent(row['probability'])})" for row in rows),
                        *[""] * (5 - len(rows))] for name, rows in found.items()])],
        figures=[Figure(folder / "top5.png", "Each photo beside its five likeliest names.")],
        observations=of.said(
            of.ranks(ranks),
            of.sure_and_wrong([(name, classes[label], rows[0]["name"], rows[0]["probability"])
                               for name, label, rows in known]),
            of.surest([(name, rows[0]["name"], rows[0]["probability"])
                       for name, rows in found.items()])))


# --- the sections -------------------------------------------------------------------------------

SECTIONS = (
    Section(
        "prompts", YEARS, "Naming photos without training, and the prompts compared",
        "How well does CLIP name photos of classes that it was never trained on, and how much "
        "does the sentence matter into which the class name is put?",
        prompts_commands, prompts_answer, lambda inputs: inputs.scenes.about,
        "Photo and sentence are encoded into one space, and the nearest sentence gives the class: "
        "nothing is learned from photos of these classes. An ensemble is the mean of the "
        "sentences' normalized features. Two templates differ only where their intervals do not "
        "overlap.",
        references=(
            'Students of the course, ViT-B/32: "This is a photo of {}" 60.8 %, "This is a {} '
            'image." 67.8 %, "No {}, no score." 55 %. ViT-L/14 with three templates: 67.8 %, 69.5 '
            '% ("This is not a photo of {}") and 45.7 %; 18 templates for CIFAR averaged 82.5 %.',
            "The course's thresholds: 60 % (2022) and 65 % (2023).")),
    Section(
        "top5", YEARS, "The five likeliest names",
        "Which five names does CLIP find the likeliest for three photos, and how sure is it?",
        top5_commands, top5_answer, lambda inputs: inputs.scenes.about,
        "A bar is the probability of a name among the given ones only: a softmax says which name "
        "fits best, not whether any of them fits. The true class has another colour."),
)
