"""The questions about captions: the best captioner, and captioners with few trained parameters."""

from __future__ import annotations

import shutil
from pathlib import Path

from utils import read_text

from data.files import read_csv, read_table
from report import observations as of
from report.inputs import Inputs
from report.section import (
    Answer,
    Figure,
    Measured,
    Section,
    Table,
    Words,
    count,
    names_of_models,
    plain,
    with_interval,
)
from report.words import best_worst_section, captions_lack, words_section

RESAMPLES = "1000"  # behind the intervals of the metrics
METRICS = ("CIDEr", "CLIPScore", "BLEU-4", "ROUGE-L")
BEAMS = ("1", "3")  # searches that the best captioner's own is compared with
MOST_DIFFERENT = "6"  # photos on which several captioners are shown side by side
MOST_PARAMETERS = 35_000_000  # the course's limit
COURSE = ("The course's thresholds, CIDEr and CLIPScore: 0.72 and 0.67 (simple), 0.87 and 0.70 "
          "(strong) in 2022; 0.80 and 0.68, 0.89 and 0.71 in 2023.")
SCORES = (
    "CIDEr gives weight to the words that tell photos apart; it goes from 0 to about 10 and "
    "depends on the set of photos, so compare it only on the same references. CLIPScore compares a "
    "caption with its photo, without references. The intervals come from 1,000 resamples of the "
    "photos.")

# --- scores -------------------------------------------------------------------------------------


def scored(inputs: Inputs, script: str, *words: str) -> Words:
    """The command that scores captioners, which ``words`` name, on the captioned photos."""
    clip = ["--clip", inputs.checkpoints["clip"][0]] if inputs.own_clip else []
    return [script, *words, "--images", str(inputs.captioned.folder), "--captions",
            str(inputs.captioned.truth), *clip, "--bootstrap", RESAMPLES, *inputs.run,
            *inputs.limit]


def score_table(names: list[str], results: list[dict], best: int | None, first: str) -> Table:
    """A row for each result with its metrics and intervals."""
    metrics = [name for name in METRICS if name in results[0]["metrics"]]
    return Table([first, *(f"{name} (95 %)" for name in metrics)],
                 [[name, *(with_interval(result["metrics"][metric], result["intervals_95"][metric])
                           for metric in metrics)]
                  for name, result in zip(names, results, strict=True)], best)


def ciders(names: list[str], results: list[dict]) -> list[Measured]:
    return [Measured(name, result["metrics"]["CIDEr"], *result["intervals_95"]["CIDEr"])
            for name, result in zip(names, results, strict=True)]


def headline(result: dict) -> str:
    """CIDEr with its interval, and CLIPScore."""
    text = "CIDEr " + with_interval(result["metrics"]["CIDEr"], result["intervals_95"]["CIDEr"])
    if "CLIPScore" in result["metrics"]:
        text += f", CLIPScore {plain(result['metrics']['CLIPScore'])}"
    return f"{text} on {count(result['images'], 'photo')}"


def about_clipscore(result: dict) -> list[str]:
    """With which model CLIPScore is computed, and what it can be compared with."""
    if "clipscore" not in result:
        return ["There is no CLIPScore: no CLIP was at hand."]
    about = result["clipscore"]
    return [f"CLIPScore is computed with {about['model']}: compare it {about['comparable']}."]


# --- the best captioner -------------------------------------------------------------------------


def captions_commands(inputs: Inputs, folder: Path) -> list[Words]:
    first, *others = inputs.checkpoints["captioner"]
    runs = [(first, []), *((first, ["--beam", beams]) for beams in BEAMS),
            *((other, []) for other in others)]
    commands = [scored(inputs, "p2_caption.py", "eval", "--checkpoint", checkpoint, *words,
                       "--per-image", str(folder / f"{number}.csv"))
                for number, (checkpoint, words) in enumerate(runs, 1)]
    if others:
        commands.append(scored(inputs, "p2_caption.py", "compare", first, *others, "--output",
                               str(folder), "--show", MOST_DIFFERENT))
    return commands


def captions_answer(inputs: Inputs, folder: Path, printed: list[dict]) -> Answer:
    results = [part for part in printed if "captioners" not in part]
    called = names_of_models([result["checkpoint"] for result in results])
    names = [f"{name} with {count(result['search']['beams'], 'beam')}"
             for name, result in zip(called, results, strict=True)]
    measured = ciders(names, results)
    best = of.best_of(measured) or 0
    each = [{row["filename"]: float(row["CIDEr"])
             for row in read_csv(folder / f"{number}.csv", "filename", "CIDEr")}
            for number in range(1, len(results) + 1)]
    others = range(1 + len(BEAMS), len(results)) or [1]  # other captioners, or the first search
    return Answer(
        headline(results[best]),
        tables=[score_table(names, results, best, "captioner and search")],
        figures=[Figure(folder / "most_different.png",
                        "The photos on which the captioners differ most, with their references.")]
        if len(results) < len(printed) else [],
        observations=of.said(
            of.wide_interval(measured[best], "CIDEr", results[best]["images"]),
            of.told_apart(measured),
            *(of.paired(names[0], names[other], on_the_same_photos(each[0], each[other]), "CIDEr")
              for other in others),
            of.variety(results[best]["reads"], results[best]["images"])),
        notes=about_clipscore(results[best]))


def on_the_same_photos(
    first: dict[str, float], second: dict[str, float]
) -> tuple[list[float], list[float]]:
    """The values of both for the photos that both have."""
    both = [name for name in first if name in second]
    return [first[name] for name in both], [second[name] for name in both]


# --- few trained parameters ---------------------------------------------------------------------


def peft_commands(inputs: Inputs, folder: Path) -> list[Words]:
    files = inputs.checkpoints["peft"]
    return [*(scored(inputs, "peft_caption.py", "eval", "--checkpoint", file, *inputs.decoder)
              for file in files),
            *(["peft_caption.py", "params", file] for file in files)]


def peft_answer(inputs: Inputs, folder: Path, results: list[dict]) -> Answer:
    half = len(results) // 2
    scores, parameters = results[:half], [part["trained_parameters"] for part in results[half:]]
    called = names_of_models([part["checkpoint"] for part in results[half:]])
    names = [f"{part['method']['name']} ({name})"
             for part, name in zip(results[half:], called, strict=True)]
    measured = ciders(names, scores)
    best = of.best_of(measured) or 0
    table = score_table(names, scores, best if half > 1 else None, "method")
    rows = [[row[0], f"{number:,}", *row[1:]]
            for row, number in zip(table.rows, parameters, strict=True)]
    return Answer(
        f"{headline(scores[best])}, {parameters[best]:,} trained parameters",
        tables=[Table([table.header[0], "trained parameters", *table.header[1:]], rows,
                      table.best)],
        observations=of.said(
            of.wide_interval(measured[best], "CIDEr", scores[best]["images"]),
            of.told_apart(measured),
            of.trained(list(zip(names, parameters, strict=True)), MOST_PARAMETERS)),
        notes=about_clipscore(scores[best]))


def methods_commands(inputs: Inputs, folder: Path) -> list[Words]:
    return [] if inputs.compared else [["peft_caption.py", "params", "--sizes"]]


def methods_answer(inputs: Inputs, folder: Path, results: list) -> Answer:
    if inputs.compared:
        return compared_answer(inputs.compared, folder)
    header, *rows = markdown_rows(results[0])
    sizes = [(row[0], int(row[2].replace(",", ""))) for row in rows]
    allowed = [row for row in sizes if row[1] < MOST_PARAMETERS]
    return Answer(
        f"{len(allowed)} of {len(sizes)} methods train fewer than {MOST_PARAMETERS:,} parameters",
        tables=[Table(header, rows)],
        observations=of.said(of.trained(allowed, MOST_PARAMETERS),
                             of.trained([row for row in sizes if row not in allowed][:1],
                                        MOST_PARAMETERS)),
        notes=["These are the sizes at the course's scale, GPT-2 small over a ViT-L. For the "
               "scores of trained methods, --compared DIR gives the folder of a comparison that "
               "you ran (peft_caption.py compare), or several PEFT files after --checkpoint are "
               "compared in the question before this one."])


def compared_answer(source: Path, folder: Path) -> Answer:
    """The table and the curves that ``peft_caption.py compare`` wrote into ``source``."""
    header, *rows = read_table(source / "compared.csv")
    figures, notes = [], []
    if (source / "curves.png").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / "curves.png", folder / "curves.png")
        figures = [Figure(folder / "curves.png", "Training loss, and CIDEr on photos held out, of "
                                                 "each epoch.")]
    column = [i for i, name in enumerate(header) if name.startswith("CIDEr")
              and not name.endswith(", 95 %")][-1]
    trained = header.index("trained parameters")
    names = [", ".join([row[0], *(f"{key} {value}" for key, value in zip(
        header[1:trained], row[1:trained], strict=True) if value)]) for row in rows]
    measured = [measured_cell(name, row[column], row[column + 1] if column + 1 < len(row) else "")
                for name, row in zip(names, rows, strict=True)]
    best = of.best_of(measured)
    top = measured[best or 0]
    table = [header, *rows]
    if (source / "compared.md").is_file():
        text = read_text(source / "compared.md")
        table, notes = markdown_rows(text), [text.partition("\n|")[0].strip()]
    return Answer(
        f"{top.name}: {with_interval(top.value, top[2:])}",
        tables=[Table(table[0], table[1:], best)], figures=figures,
        observations=of.said(
            of.told_apart(measured),
            of.trained([(name, int(row[trained].replace(",", "")))
                        for name, row in zip(names, rows, strict=True)], MOST_PARAMETERS)),
        notes=list(filter(None, notes)))


def markdown_rows(text: str) -> list[list[str]]:
    """The header and the rows of the table in a Markdown text."""
    header, _, *rows = ([cell.strip() for cell in line.strip().strip("|").split("|")]
                        for line in text.splitlines() if line.startswith("|"))
    return [header, *rows]


def measured_cell(name: str, text: str, interval: str) -> Measured:
    """"0.452" and "0.421 - 0.485" -> the number and its interval; also of one cell that has both,
    "0.452 (0.421 - 0.485)"."""
    value, bracket, inside = text.partition("(")
    low, high = (inside.rstrip(")") if bracket else interval).split(" - ")
    return Measured(name, float(value), float(low), float(high))



# --- the sections -------------------------------------------------------------------------------

SECTIONS = (
    Section(
        "captions", (2022,), "The best captioner, and other searches",
        "How well does the captioner describe photos, and how much do the decoder and its search "
        "matter?",
        captions_commands, captions_answer, lambda inputs: inputs.captioned.about, SCORES,
        references=(
            "Students of the course, decoder trained from scratch on CLIP ViT-L, 5 beams: CIDEr "
            "0.988, CLIPScore 0.715. Beams of 3 - 5 added 0.03 - 0.09 CIDEr.", COURSE),
        lacks=captions_lack),
    words_section("words", (2021, 2022), "What each word looked at", "captioner"),
    best_worst_section("best-worst", (2022,), "The best and the worst caption", "captioner"),
    Section(
        "peft", (2023,), "The best captioner with few trained parameters",
        "How well does a frozen language model caption photos when few parameters are trained?",
        peft_commands, peft_answer, lambda inputs: inputs.captioned.about, SCORES,
        references=(
            "Students of the course, over GPT-2 small and a ViT-L, CIDEr and CLIPScore: adapter "
            "0.964 and 0.733 (30.8 M parameters), LoRA of rank 32 with 5 beams 0.923 and 0.719, "
            "prefix 0.884 and 0.710.", COURSE),
        lacks=captions_lack),
    Section(
        "peft-methods", (2023,), "Methods of few parameters compared",
        "How do three such methods differ in the number of parameters and in their scores?",
        methods_commands, methods_answer,
        lambda inputs: (f"Read from the comparison in {inputs.compared}." if inputs.compared
                        else "Counted, without any training."),
        "Adapters are small layers behind those of the frozen model, a prefix is a row of learned "
        "keys and values in each layer, and LoRA adds low-rank changes to weights. All of them "
        "also train the cross-attention that reads the photo.",
        references=(
            "Students of the course, CIDEr and CLIPScore: adapter 0.964 and 0.733, LoRA 0.923 and "
            "0.719, prefix 0.884 and 0.710.",)),
    words_section("peft-words", (2023,), "What each word looked at, with few trained parameters",
                  "peft"),
    best_worst_section("peft-best-worst", (2023,),
                       "The best and the worst caption with few trained parameters", "peft"),
)
