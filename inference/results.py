"""What a command says of its result: a short summary for people, the whole as JSON for programs.

Every summary is made of the result alone. Needs no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from utils import CONTROLS, printable, write_json

HARDEST = 3  # classes that a summary names
BEST = 3  # names that a summary gives of a photo's likeliest


def write_result(result: dict, summary: Sequence[str], file: str | Path | None = None) -> None:
    """Write ``result`` as JSON into ``file``. On a terminal, print the lines of ``summary``.

    Without ``file``, a stdout that is no terminal (a pipe or a file) gets the JSON.
    """
    terminal = sys.stdout.isatty()
    if file is not None or not terminal:
        write_json(result, file)
    if terminal:
        for line in summary:
            print(printable(line).translate(CONTROLS))  # a file name may hold a terminal's codes


# --- numbers ------------------------------------------------------------------------------------


def with_interval(value: float, interval: Sequence[float] | None, digits: int = 3) -> str:
    """0.575, [0.541, 0.609] -> "0.575 (95 %: 0.541 to 0.609)"."""
    text = f"{value:.{digits}f}"
    return text if interval is None else \
        f"{text} (95 %: {interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def share_of_right(row: dict) -> str:
    """"409 of 447 right, 91.5 % (95 %: 88.5-93.7)" of what ``metrics.accuracy.summarize`` says."""
    low, high = (100 * bound for bound in row["accuracy_95"])
    return (f"{row['correct']} of {row['total']} right, {100 * row['accuracy']:.1f} % "
            f"(95 %: {low:.1f}-{high:.1f})")


# --- summaries ----------------------------------------------------------------------------------


def of_classifier(result: dict) -> list[str]:
    """Of ``p1_vit_classify.py eval``."""
    lines = [share_of_right(result), f"loss {result['loss']:.3f}"]
    lines += [f"{row['checkpoint']} alone: {share_of_right(row)}"
              for row in result.get("members", ())]
    return lines + fewest_right(result["per_class"])


def fewest_right(per_class: dict) -> list[str]:
    """A line with the classes of the lowest accuracy; none where all answers are right."""
    classes = [row for row in per_class.values() if row["correct"] < row["total"]]
    classes.sort(key=lambda row: row["correct"] / row["total"])
    return ["fewest right: " + ", ".join(f"{row['name']} {row['correct']} of {row['total']}"
                                         for row in classes[:HARDEST])] if classes else []


def of_templates(result: dict) -> list[str]:
    """Of ``clip_zeroshot.py eval``, below its table."""
    best = result["best"]
    return [f"highest accuracy: {best['template']}", *fewest_right(best["per_class"])]


def of_two_classifiers(result: dict) -> list[str]:
    """Of ``p1_vit_classify.py compare``."""
    first, second = result["classifiers"]
    low, high = (100 * bound for bound in result["difference_95"])
    return [*(f"{row['checkpoint']}: {share_of_right(row)}" for row in (first, second)),
            f"first - second: {100 * result['difference']:+.1f} points "
            f"(95 %: {low:+.1f} to {high:+.1f}), McNemar's exact p = {result['mcnemar_p']:.2g}",
            f"right: both {result['both_right']}, only the first {result['only_first_right']}, "
            f"only the second {result['only_second_right']}, neither {result['neither_right']}"]


def of_prompts(result: dict) -> list[str]:
    """Of ``clip_zeroshot.py prompts``, below its table."""
    chosen = result["chosen"]
    return [f"chosen: {chosen['template']}", *(
        f"{share_of_right(chosen[part])} of the photos {what}" for part, what in (
            ("choosing", "to choose by"), ("others", "that had no part in the choice")))]


def of_searches(result: dict) -> list[str]:
    """Of ``p2_caption.py eval --vary``, below its table."""
    return [f"{result['images']:,} images; highest CIDEr: {result['best']}"]


def of_captions(result: dict) -> list[str]:
    """Of ``p2_caption.py eval`` and ``score``, and ``peft_caption.py eval``."""
    intervals = result.get("intervals_95", {})
    lines = [f"{result['images']:,} images"]
    lines += [f"{name:10}{with_interval(value, intervals.get(name))}"
              for name, value in result["metrics"].items()]
    return lines + about_clipscore(result)


def about_clipscore(result: dict) -> list[str]:
    """The line that says with which CLIP a result's CLIPScore is computed, where it has one."""
    about = result.get("clipscore")
    return [f"CLIPScore is that of {about['model']}: {about['comparable']}"] if about else []


def of_captioners(result: dict) -> list[str]:
    """Of ``p2_caption.py compare``."""
    first, *others = result["captioners"]
    lines = [f"{result['images']:,} images"]
    lines += [f"{row['name']}: " + ", ".join(
        f"{metric} {with_interval(row['metrics'][metric], row['intervals_95'][metric])}"
        for metric in ("CIDEr", "CLIPScore") if metric in row["metrics"])
        for row in (first, *others)]
    for row in others:
        gap = row["minus_first"]
        low, high = gap["CIDEr_95"]
        lines.append(f"{row['name']} - {first['name']}: CIDEr {gap['CIDEr']:+.3f} "
                     f"(95 %: {low:+.3f} to {high:+.3f}), higher on {gap['higher_on']} "
                     f"of {result['images']:,} photos, lower on {gap['lower_on']}")
    return lines + about_clipscore(result)


def of_retrieval(result: dict) -> list[str]:
    """Of ``clip_zeroshot.py retrieval``."""
    return [f"{result['images']:,} images, {result['captions']:,} captions",
            *(f"{direction.replace('_', ' ')}: " + ", ".join(
                f"recall@{k} {share:.1%}" for k, share in row.items())
              for direction, row in result["recall"].items())]


def of_likeliest(result: dict) -> list[str]:
    """Of ``clip_zeroshot.py top5``: a line for each photo."""
    return [f"{name:24} " + ", ".join(f"{row['name']} {row['probability']:.0%}"
                                      for row in rows[:BEST])
            for name, rows in result["images"].items()]


def of_maps(result: dict) -> list[str]:
    """Of ``p1_attn_map.py``: a line for each photo, or for each method with --faithfulness; none
    with --boxes, whose table is on stderr."""
    if "boxes" in result:
        return []
    if "area_under_curve" in result:
        return [f"area under the curves of {result['images']} photos (deletion: lower is better; "
                "insertion: higher is better)",
                *(f"{method:10}" + ", ".join(
                    f"{kind} {area['mean']:.3f}" + (
                        "" if area["plus_minus"] is None else f" ± {area['plus_minus']:.3f}")
                    for kind, area in row.items())
                  for method, row in result["area_under_curve"].items())]
    return [f"{row['filename']:24} " + ("" if row["label"] is None else
                                        f"{row['name']} {row['probability']:.0%}  ")
            + row["figure"] for row in result["images"]]


def of_words(result: dict) -> list[str]:
    """Of ``p2_attn_vis.py``: a line for each photo; none with --boxes, whose table is on stderr."""
    if "boxes" in result:
        return []
    if "images" in result:
        return [f"{row['filename']:24} {row['caption']}  {row['figure']}"
                for row in result["images"]]
    return [f"{kind}: {row['filename']}, CLIPScore {row['CLIPScore']:.3f}: {row['caption']}  "
            f"{row['figure']}" for kind, row in result.items() if kind in ("best", "worst")]


def of_positions(result: dict) -> list[str]:
    """Of ``p1_pos_embed_vis.py``: a line for each model."""
    def shown(value: float | None) -> str:
        return "none" if value is None else f"{value:.2f}"

    return [f"{name}: mean cosine similarity {shown(row['same_row'])} in the same row, "
            f"{shown(row['same_column'])} in the same column, {shown(row['elsewhere'])} elsewhere"
            for name, row in result.items()]


def of_parameters(result: dict) -> list[str]:
    """Of ``peft_caption.py params FILE``."""
    limit = "fewer than" if result["fewer_than_the_course_allows"] else "not fewer than"
    return [f"{result['method']}: {result['trained_parameters']:,} trained parameters, {limit} the "
            f"course allows; {result['bytes'] / 1e6:.1f} MB",
            *(f"{part.replace('_', ' '):20} {count:>12,}"
              for part, count in result["parts"].items())]
