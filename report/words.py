"""The questions about what a captioner looked at: the map of each word, the best and the worst
caption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data.files import read_csv
from metrics.ptb import tokenize
from report import map_observations as of_maps
from report import observations as of
from report.inputs import ROOT, Inputs
from report.pointing import NOTE, pointing_command, pointing_table
from report.section import Answer, Figure, Section, Table, Words, percent, plain

READING = (
    "A panel shows how the attention of the decoder was shared among the patches while it wrote "
    "that word; all panels of a figure have one scale, from dark blue (0) to yellow. Grey was cut "
    "off before the model saw the photo. A map says from where information was taken, not why the "
    "word was chosen. Words such as \"of\" follow from the words before them.")

# --- the map of each word -----------------------------------------------------------------------


def words_commands(kind: str) -> Callable[[Inputs, Path], list[Words]]:
    """The command for the first checkpoint of ``kind``."""
    def commands(inputs: Inputs, folder: Path) -> list[Words]:
        checkpoint, decoder = inputs.checkpoints[kind][0], decoder_words(inputs, kind)
        return [["p2_attn_vis.py", "--images", *map(str, inputs.captioned.shown), "--checkpoint",
                 checkpoint, *decoder, "--output", str(folder), *inputs.run],
                *([*words, *decoder] for words in pointing_command(
                    "p2_attn_vis.py", inputs, inputs.captioned, checkpoint))]

    return commands


def decoder_words(inputs: Inputs, kind: str) -> tuple[str, ...]:
    """The option that names the GPT-2 which a PEFT file stands on."""
    return inputs.decoder if kind == "peft" else ()


def words_answer(inputs: Inputs, folder: Path, results: list[dict]) -> Answer:
    images, pointing = results[0]["images"], results[1:]
    captions = [[word for word in image["words"] if word["word"] != "<end>"] for image in images]
    words = [word for caption in captions for word in caption]
    mean = sum(word["entropy_share"] for word in words) / max(len(words), 1)
    return Answer(
        f"{len(words)} words; their maps have {percent(mean)} of the largest possible entropy on "
        "average",
        tables=[Table(["photo", "caption", "sharpest word", "most even word"],
                      [[image["filename"], image["caption"], *extremes(caption)]
                       for image, caption in zip(images, captions, strict=True)]),
                *(pointing_table(part["layers"]) for part in pointing)],
        figures=[Figure(Path(image["figure"]), f"{image['filename']}: {image['caption']}")
                 for image in images],
        observations=of.said(*(of_maps.pointing(part["layers"]) for part in pointing),
                             of_maps.sharpest(words), of_maps.function_words(words),
                             of_maps.shared_peak(captions)),
        notes=[NOTE] * len(pointing))


def extremes(caption: list[dict]) -> list[str]:
    """The words of the sharpest and of the most even map, with their share of the entropy."""
    if not caption:
        return ["-", "-"]
    return [f"{word['word']} ({percent(word['entropy_share'])})"
            for word in (pick(caption, key=lambda row: row["entropy_share"])
                         for pick in (min, max))]


# --- the best and the worst caption -------------------------------------------------------------


def best_worst_commands(kind: str) -> Callable[[Inputs, Path], list[Words]]:
    """The command for the first checkpoint of ``kind``."""
    def commands(inputs: Inputs, folder: Path) -> list[Words]:
        clip = ["--clip", inputs.checkpoints["clip"][0]] if inputs.own_clip else []
        return [["p2_attn_vis.py", "--images", str(inputs.captioned.folder), "--best-worst",
                 "--refs", str(inputs.captioned.truth), "--checkpoint",
                 inputs.checkpoints[kind][0], *decoder_words(inputs, kind), *clip, "--output",
                 str(folder), *inputs.run, *inputs.limit]]

    return commands


def best_worst_answer(inputs: Inputs, folder: Path, results: list[dict]) -> Answer:
    parts = {kind: results[0][kind] for kind in ("best", "worst")}
    # The command ran in the project's folder, where its paths begin; this may be another one.
    scores = [float(row["CLIPScore"])
              for row in read_csv(ROOT / results[0]["ranking"], "rank", "filename", "CLIPScore")]
    return Answer(
        f"CLIPScore from {plain(scores[-1])} to {plain(scores[0])}",
        tables=[Table(["", "photo", "CLIPScore", "caption", "first reference"],
                      [[kind, part["filename"], plain(part["CLIPScore"]), part["caption"],
                        (part["references"] or [""])[0]] for kind, part in parts.items()])],
        figures=[Figure(Path(part["figure"]),
                        f"The {kind} of {len(scores)} captions, {part['filename']}.")
                 for kind, part in parts.items()],
        observations=of.said(
            of.ranking(scores),
            *(of.words_of_references(kind, tokenize(part["caption"]),
                                     [tokenize(text) for text in part["references"]])
              for kind, part in parts.items()),
            of_maps.sharper(*([word["entropy_share"] for word in part["words"]]
                              for part in parts.values()))),
        notes=[f"CLIPScore is computed with {Path(results[0]['clip']).name}; compare it only with "
               "scores of the same model."])


def captions_lack(inputs: Inputs) -> str:
    if inputs.captioned.truth is None:
        return ("This needs reference captions of the photos: --captions JSON, in COCO's format, "
                "beside --p2-val DIR.")
    return ""


# --- the sections -------------------------------------------------------------------------------


def words_section(key: str, years: tuple[int, ...], title: str, kind: str) -> Section:
    return Section(
        key, years, title,
        "Which part of the photo did the captioner look at as it wrote each word?",
        words_commands(kind), words_answer, lambda inputs: inputs.captioned.about, READING)


def best_worst_section(key: str, years: tuple[int, ...], title: str, kind: str) -> Section:
    return Section(
        key, years, title,
        "Which captions fit their photos best and worst by CLIPScore, what do their references "
        "say, and where did the model look?",
        best_worst_commands(kind), best_worst_answer, lambda inputs: inputs.captioned.about,
        "CLIPScore is 2.5 times the cosine similarity of photo and caption, at least 0 (Hessel et "
        "al. 2021). It needs no references, so a caption may score high and be wrong: compare it "
        "with the references. " + READING, lacks=captions_lack)
