"""Makes the report of the homework: every question with the command that answers it, its figures
and tables, and what the measured numbers say.

  bash hw3_report.sh OUT_DIR                        on the sample photos, with the shipped models
  bash hw3_report.sh OUT_DIR --year 2021 --p1-val p1_data/val
  bash hw3_report.sh OUT_DIR --year 2022 --clip-val clip_data/val \\
      --labels clip_data/id2label.json --p2-val images/val --captions val.json
  bash hw3_report.sh OUT_DIR --checkpoint mine.safetensors clip=openai/clip-vit-base-patch32

Writes report.html (one file, with its figures in it), report.md, and figures/ beside it. Write your
discussion of a question into discussion/<question>.txt and call the same line again: what has not
changed is not run again. Where an input is missing, the project's sample photos take its place, or
the section says which option would give it.

What to expect: under two minutes for all three years on the sample photos and two CPU cores.
Exit status 3: a section failed, which the report and the last line on stderr name; all others are
made. docs/report.md shows a page and explains the options.
"""

from __future__ import annotations

import time
from pathlib import Path

from utils import EXIT_SOME_UNREADABLE, ArgumentParser, UserError, warn, write_text

from data.compute import resolve_device, resolve_precision
from data.files import check_writable
from inference.options import add_run_options
from inference.parser import positive_int
from report.html import html_page
from report.inputs import KINDS, SMALL, TEMPLATES, Inputs
from report.markdown import markdown_page
from report.page import Page, discussions
from report.run import Outcome, run_section
from report.sections import YEARS, of_year

MARK = Path("results") / "report.json"  # a folder that holds this file holds a report of ours


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hw3_report.sh", description=__doc__)
    parser.add_argument("output", metavar="OUT_DIR",
                        help="a new or empty folder, or one that holds an earlier report")
    parser.add_argument("--year", choices=(*map(str, YEARS), "all"), default="all",
                        help="whose questions to answer")
    parser.add_argument("--fresh", action="store_true", help="run all sections again")
    parser.add_argument("--show", type=positive_int, default=3, metavar="N",
                        help="photos in the sections that are made of figures")
    parser.add_argument("--checkpoint", nargs="+", default=[], metavar="FILE",
                        help="models of this project, of any kind; several of one kind are "
                             f"compared. For a model of another program write KIND=FILE, of "
                             f"{', '.join(KINDS)}")
    first = parser.add_argument_group("problem 1: classification")
    first.add_argument("--p1-val", metavar="DIR", help="photos with labels in their names")
    first.add_argument("--p1-labels", metavar="CSV", help="their labels, where the names have none")
    first.add_argument("--p1-show", nargs="+", metavar="PATH", help="photos to draw attention maps "
                                                                    "of")
    first.add_argument("--p1-boxes", metavar="JSON",
                       help="boxes of the things in them (COCO's instances, or "
                            "docs/attention.md's form): do the maps peak inside?")
    first.add_argument("--p1-train", metavar="DIR", help="photos to train --sweep small on")
    first.add_argument("--sweep", metavar="DIR|small",
                       help="the folder of a sweep for the table of settings; small runs one")
    first.add_argument("--sweep-weights", metavar="FILE",
                       help="weights that --sweep small starts from (default: timm's, from the "
                            "network)")
    names = parser.add_argument_group("zero-shot with CLIP")
    names.add_argument("--clip-val", metavar="DIR", help="photos with labels in their names")
    names.add_argument("--clip-truth", metavar="CSV",
                       help="their labels, where the names have none")
    names.add_argument("--labels", metavar="JSON", help="id2label.json: the names of the classes")
    names.add_argument("--template", nargs="+", default=list(TEMPLATES), metavar="T",
                       help="the prompts to compare, with {object} where the name goes")
    captions = parser.add_argument_group("captions")
    captions.add_argument("--p2-val", metavar="DIR", help="photos to caption")
    captions.add_argument("--captions", metavar="JSON", help="their references, in COCO's format")
    captions.add_argument("--p2-show", nargs="+", metavar="PATH",
                          help="photos to draw the maps of words of")
    captions.add_argument("--p2-boxes", metavar="JSON",
                          help="boxes of the things in them: do the maps of their names peak "
                               "inside?")
    captions.add_argument("--decoder", metavar="FILE",
                          help="the GPT-2 (decoder_model.bin) under the PEFT files")
    captions.add_argument("--compared", metavar="DIR",
                          help="the folder of a comparison of PEFT methods (peft_caption.py "
                               "compare)")
    add_run_options(parser, None)
    return parser


def check_options(args, parser: ArgumentParser) -> None:
    """Wrong usage where options do not go together."""
    if bool(args.clip_val) != bool(args.labels):
        parser.error("--clip-val DIR and --labels JSON go together")
    for option, needed in (("captions", "p2_val"), ("p1_labels", "p1_val"),
                           ("p1_boxes", "p1_val"), ("p2_boxes", "p2_val"),
                           ("clip_truth", "clip_val")):
        if getattr(args, option) and not getattr(args, needed):
            parser.error(f"--{option.replace('_', '-')} needs --{needed.replace('_', '-')}")
    if (args.p1_train or args.sweep_weights) and args.sweep != SMALL:
        parser.error(f"--p1-train and --sweep-weights go with --sweep {SMALL}")


def check_folder(out: Path) -> None:
    """UserError where the report could not be written, or would stand among other files."""
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise UserError(f"{out} holds other files than a report; give a new or an empty folder")
    check_writable(out / "report.html", "OUT_DIR")


def main() -> int:
    parser = make_parser()
    args = parser.parse_args()
    check_options(args, parser)
    out = Path(args.output)
    check_folder(out)
    resolve_precision(args.precision, resolve_device(args.device))  # once, not in each section
    write_text(out / MARK, '{"made_by": "hw3_report.sh"}\n')  # before any file of ours is there
    inputs = Inputs.from_args(args)
    sections, outcomes = of_year(args.year), []
    for number, section in enumerate(sections, 1):
        started = time.perf_counter()
        outcomes.append(run_section(section, inputs, args.fresh))
        warn(f"{number}/{len(sections)} {section.key}: {state(outcomes[-1])} "
             f"({time.perf_counter() - started:.1f} s)")
    page = Page(args.year, outcomes, discussions(out, sections), out)
    write_text(out / "report.html", html_page(page))
    write_text(out / "report.md", markdown_page(page))
    warn(f"wrote {out / 'report.html'} and {out / 'report.md'}")
    failed = [outcome.section.key for outcome in outcomes if outcome.problem]
    if failed:
        warn(f"failed: {', '.join(failed)}; the report says why")
    return EXIT_SOME_UNREADABLE if failed else 0


def state(outcome: Outcome) -> str:
    """What a progress line says of a section."""
    if outcome.problem:
        return f"failed: {outcome.problem}"
    if outcome.answer is None:
        return "an input is missing"
    return "unchanged" if outcome.kept else "done"
