"""hw3_report.sh: the page from tiny models, what is run again, failures, and text as data."""

from __future__ import annotations

import html
import html.parser
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

from utils import UserError

import pytest
from conftest import ROOT, finished, make_folder, make_photo, run_inside, write_classifier
from makers_caption import TEXTS, write_captioner
from makers_files import coco, write

from report import command, inputs, run
from report.html import html_page, prose
from report.inputs import sort_checkpoints
from report.markdown import escape, fenced, markdown_page
from report.page import Page, discussions
from report.section import Answer, Figure, Section, Table
from report.sections import SECTIONS, of_year

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def scripts_inside(monkeypatch, capsys):
    """The commands that the report runs, in this process; a list of them."""
    started = []

    def run_command(words):
        started.append(words)
        module = importlib.import_module(words[0].removesuffix(".py"))
        result = run_inside(module, *words[1:], capsys=capsys)
        if result.returncode not in (0, 3):
            raise run.Failed(f"{words[0]}: {result.stderr}")
        return result.stdout, []

    monkeypatch.setattr(run, "run_command", run_command)
    monkeypatch.chdir(ROOT)  # where the real commands are started
    return started


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, checkpoint, clip_file) -> list[str]:
    """Options that name tiny models of three kinds and small photos."""
    folder = tmp_path_factory.mktemp("report inputs")
    photos = make_folder(folder / "val", 1)
    captions = write(folder / "val.json", coco(
        {path.name: ["a red square", "a square"] for path in sorted(photos.iterdir())}))
    names = write(folder / "names.json", {"0": "red", "1": "green", "2": "blue"})
    captioner = write_captioner(folder / "captioner.safetensors", TEXTS, 16)
    return ["--p1-val", photos, "--clip-val", photos, "--labels", names, "--p2-val", photos,
            "--captions", captions, "--show", "1", "--checkpoint", checkpoint, clip_file, captioner]


def make_report(out: Path, *words, capsys) -> tuple[int, str]:
    result = run_inside(sys.modules["report.command"], out, *words, capsys=capsys)
    return result.returncode, result.stderr


class Links(html.parser.HTMLParser):
    """What a page refers to: ids, links inside it, and everything that is loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids, self.inside, self.loaded, self.tags = set(), [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.add(tag)
        self.ids.add(values.get("id"))
        self.inside += [values["href"][1:]] if values.get("href", "").startswith("#") else []
        self.loaded += [values[key] for key in ("src", "srcset") if key in values]


# --- the page -----------------------------------------------------------------------------------


def test_the_report_of_tiny_models(tmp_path, scripts_inside, tiny, checkpoint, capsys):
    out = tmp_path / "my report"
    boxes = write(tmp_path / "boxes.json", {
        path.name: {"name": "square", "boxes": [[0, 0, 0.5, 1]]} for path in tiny[1].iterdir()})
    second = write_classifier(tmp_path / "second.safetensors", seed=1)
    captioner = write_captioner(tmp_path / "b.safetensors", TEXTS, 12)
    tiny = ["--p1-boxes", boxes, "--p2-boxes", boxes, *tiny, second, captioner]
    status, said = make_report(out, *tiny, capsys=capsys)
    assert status == 0, said
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    links = Links(page)
    assert set(links.inside) <= links.ids and len(links.inside) == len(SECTIONS)
    assert links.loaded and all(value.startswith("data:image/") for value in links.loaded)
    assert "script" not in links.tags and "default-src 'none'" in page.replace("&#x27;", "'")
    images = re.findall(r"!\[.*?\]\((.+?)\)", text)
    assert len(images) == len(links.loaded)
    assert all((out / unquote(image)).is_file() for image in images)
    assert set(re.findall(r"\]\(#(.+?)\)", text)) == set(re.findall(r'<a id="(.+?)">', text))
    for section in SECTIONS:
        assert section.question in text and (out / "discussion" / f"{section.key}.txt").exists()
    assert "McNemar" in text and text.count("inside a box most often") == 3
    assert "captions/most_different.png" in text and "captioner.safetensors with 5 beams" in text
    assert "What was observed" in text and "\\-\\-sweep DIR" not in text and "--sweep DIR" in text
    # Each command in the page is the one that was run.
    typed = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("python3 ")]
    assert typed == scripts_inside

    # Nothing has changed: nothing is run, and the report is the same, with one's own discussion.
    scripts_inside.clear()
    (out / "discussion" / "positions.txt").write_text(f"Rows *matter*. {EVIL}\n\nSo do columns.")
    assert make_report(out, *tiny, capsys=capsys)[0] == 0 and not scripts_inside
    again = (out / "report.md").read_text()
    assert [line for line in again.splitlines() if line not in text.splitlines()] == [
        "Rows \\*matter\\*. &lt;script&gt;alert(1)&lt;/script&gt;", "So do columns."]
    assert EVIL not in (out / "report.html").read_text()
    # A photo that changes runs what depends on it; --fresh runs all.
    figure = out / "figures" / "positions" / "positions.png"
    figure.unlink()
    assert make_report(out, "--year", "2021", *tiny, capsys=capsys)[0] == 0
    assert [words[0] for words in scripts_inside] == ["p1_pos_embed_vis.py"] and figure.exists()


def test_a_report_that_was_killed_goes_on(tmp_path, monkeypatch, scripts_inside, tiny, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert make_report(whole, "--year", "2021", *tiny, capsys=capsys)[0] == 0
    plain, left = run.run_command, [2]

    def killed(words):
        if not left[0]:
            (broken / "figures" / "attention").mkdir(parents=True)
            (broken / "figures" / "attention" / "half").write_text("of a figure")
            raise KeyboardInterrupt
        left[0] -= 1
        return plain(words)

    monkeypatch.setattr(run, "run_command", killed)
    assert make_report(broken, "--year", "2021", *tiny, capsys=capsys)[0] == 130
    assert not (broken / "report.md").exists()
    monkeypatch.setattr(run, "run_command", plain)
    scripts_inside.clear()
    assert make_report(broken, "--year", "2021", *tiny, capsys=capsys)[0] == 0
    assert "accuracy" not in str([words[:2] for words in scripts_inside])
    expected = (whole / "report.md").read_text().replace(str(whole), str(broken))
    assert (broken / "report.md").read_text() == expected
    assert not (broken / "figures" / "attention" / "half").exists()


def test_a_section_that_fails_is_named(tmp_path, monkeypatch, scripts_inside, tiny, capsys):
    plain = run.run_command

    def failing(words):
        if words[0] == "p1_attn_map.py":
            raise run.Failed(f"p1_attn_map.py ended with status 1: no {EVIL}")
        return plain(words)

    monkeypatch.setattr(run, "run_command", failing)
    status, said = make_report(tmp_path / "out", "--year", "2021", *tiny, capsys=capsys)
    assert status == 3 and "failed: attention; the report says why" in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "This section failed: p1_attn_map.py ended with status 1" in page and EVIL not in page
    assert "Position embeddings of tiny" in page  # the others are made


def test_enough_photos_have_their_confusions_drawn(tmp_path, scripts_inside, clip_file, capsys):
    photos = make_folder(tmp_path / "val", 7)
    names = write(tmp_path / "names.json", {"0": "red", "1": "green", "2": "blue"})
    given = inputs.Inputs.from_args(command.make_parser().parse_args(
        [str(tmp_path / "out"), "--clip-val", str(photos), "--labels", str(names), "--checkpoint",
         str(clip_file)]))
    prompts = next(section for section in SECTIONS if section.key == "prompts")
    outcome = run.run_section(prompts, given, False)
    assert [figure.path.name for figure in outcome.answer.figures] == [
        "confusion.png", "errors.png"]
    assert all(figure.path.is_file() for figure in outcome.answer.figures)
    assert "3 classes have no error" in outcome.answer.observations[-1]
    assert "found on these very photos" in outcome.answer.notes[-1]


def test_sweeps_and_comparisons_that_were_run_before(tmp_path, scripts_inside, capsys):
    sweep, compared = tmp_path / "sweep", tmp_path / "compared"
    for folder in (sweep, compared):
        make_photo(folder / "curves.png")
    write(sweep / "sweep.csv",
          "lr,train accuracy,val accuracy,95 % interval,against the best\n"
          "1e-3,64.1%,42.7%,35.8% - 49.9%,none\n1e-5,20.0%,15.7%,11.1% - 21.6%,-27.0 points\n"
          "1,diverged,,,\n")
    write(compared / "compared.csv",
          'method,trained parameters,"CIDEr, beam 3 (95 %)"\n'
          'lora,"754,176",0.419 (0.387 - 0.452)\nfull,"3,166,848",0.496 (0.463 - 0.529)\n')
    given = inputs.Inputs.from_args(command.make_parser().parse_args(
        [str(tmp_path / "out"), "--sweep", str(sweep), "--compared", str(compared)]))
    found = {section.key: run.run_section(section, given, False) for section in SECTIONS
             if section.key in ("settings", "peft-methods")}
    assert not scripts_inside and not any(outcome.problem for outcome in found.values())
    settings, methods = (found[key].answer for key in ("settings", "peft-methods"))
    assert settings.result == "42.7 % (lr 1e-3)" and settings.tables[0].best == 0
    assert "Its interval lies above that of lr 1e-5." in settings.observations[0]
    assert methods.tables[0].best == 1 and "above that of lora" in methods.observations[0]
    for answer, key in ((settings, "settings"), (methods, "peft-methods")):
        assert answer.figures[0].path == given.out / "figures" / key / "curves.png"
        assert answer.figures[0].path.is_file()


def test_a_comparison_of_numbers_is_shown_as_its_markdown_has_it(tmp_path):
    write(tmp_path / "compared.csv",
          'method,rank,trained parameters,"CIDEr, beam 3","CIDEr, beam 3, 95 %",against the best\n'
          "lora,4,754176,0.4189,0.387 - 0.4521,-0.077\nfull,,3166848,0.4961,0.463 - 0.529,0\n")
    write(tmp_path / "compared.md", "A note.\n\n| method | rank | trained parameters |\n"
          "| --- | --- | --- |\n| lora | 4 | 754,176 |\n| full |  | 3,166,848 |\n")
    given = inputs.Inputs.from_args(command.make_parser().parse_args(
        [str(tmp_path / "out"), "--compared", str(tmp_path)]))
    methods = next(section for section in SECTIONS if section.key == "peft-methods")
    answer = methods.answer(given, tmp_path / "figures", [])
    assert answer.result == "full: 0.496 (0.463 - 0.529)"
    table, = answer.tables
    assert (table.header, table.rows, table.best) == (
        ["method", "rank", "trained parameters"],
        [["lora", "4", "754,176"], ["full", "", "3,166,848"]], 1)
    assert "above that of lora, rank 4" in answer.observations[0]


def test_a_sweep_of_numbers_is_shown_in_per_cent(tmp_path):
    write(tmp_path / "sweep.csv",
          "lr,model,train accuracy,val accuracy,spread,95 % interval,against the best,epoch\n"
          "1e-3,,0.641,0.427,0.012,0.358 - 0.499,0,3\n,a,0.2,0.157,,0.111 - 0.216,-0.27,3\n"
          "1,b,1 of 3 diverged,,,,,\n")
    given = inputs.Inputs.from_args(command.make_parser().parse_args(
        [str(tmp_path / "out"), "--sweep", str(tmp_path)]))
    settings = next(section for section in SECTIONS if section.key == "settings")
    answer = settings.answer(given, tmp_path / "figures", [])
    assert answer.result == "42.7 % (lr 1e-3)" and answer.tables[0].rows == [
        ["1e-3", "", "64.1 %", "42.7 %", "1.2 points", "35.8 % - 49.9 %", "0.0 points", "3"],
        ["", "a", "20.0 %", "15.7 %", "", "11.1 % - 21.6 %", "-27.0 points", "3"],
        ["1", "b", "1 of 3 diverged", "", "", "", "", ""]]
    assert "that of model a" in answer.observations[0]


def test_a_small_sweep_is_a_command_of_the_script(tmp_path, photos):
    script = importlib.import_module("p1_vit_classify")
    given = inputs.Inputs.from_args(command.make_parser().parse_args(
        [str(tmp_path / "out"), "--sweep", "small", "--p1-train", str(photos)]))
    settings = next(section for section in SECTIONS if section.key == "settings")
    words, = settings.commands(given, tmp_path / "out" / "figures" / "settings")
    args = script.make_parser().parse_args(words[1:])
    assert args.hold_out and args.pretrained and args.train == str(photos)
    without = inputs.Inputs.from_args(command.make_parser().parse_args([str(tmp_path / "out")]))
    assert "--sweep DIR" in settings.lacks(without) and not settings.lacks(given)


# --- commands -----------------------------------------------------------------------------------


def test_a_command_is_run_as_a_user_would(tmp_path, checkpoint):
    printed, lines = run.run_command(
        ["p1_pos_embed_vis.py", "--checkpoint", str(checkpoint), "--output",
         str(tmp_path / "a b.png")])
    assert "tiny" in json.loads(printed) and lines == [] and (tmp_path / "a b.png").is_file()
    with pytest.raises(run.Failed, match="p1_attn_map.py ended with status 1: error: .*none"):
        run.run_command(["p1_attn_map.py", "--images", "none"])


@pytest.mark.parametrize("name", ["a b.jpg", "it's.jpg", "$(touch x)`id`", "ü.jpg", "a\nb",
                                  os.fsdecode(b"caf\xe9 'x\\.jpg")])
def test_commands_can_be_copied_into_bash(name):
    line = run.shell_line(["printf", "%s", name])
    assert "\n" not in line and line.isprintable()
    assert finished("bash", "-c", line).stdout == name


def test_paths_in_the_project_are_typed_from_there():
    assert run.as_typed(str(ROOT / "samples" / "a.jpg")) == "samples/a.jpg"
    assert run.as_typed(str(ROOT / "-x")) == "./-x" and run.as_typed("/tmp/x") == "/tmp/x"
    assert run.as_typed("--seed") == "--seed"


# --- text is data -------------------------------------------------------------------------------


def odd_page(tmp_path) -> Page:
    make_photo(tmp_path / "figures" / "odd [1](x).png")
    answer = Answer(EVIL, [Table([EVIL, "b|c"], [["*a*", "`b` | c"]])],
                    [Figure(tmp_path / "figures" / "odd [1](x).png", f"{EVIL} [x](http://x)")],
                    [f"{EVIL} _b_"], [EVIL])
    section = Section("odd", (2021,), EVIL, EVIL, None, None, None, EVIL, (EVIL,))
    outcome = run.Outcome(section, ["python3 '```\n" + EVIL], answer, EVIL, warnings=[EVIL])
    (tmp_path / "discussion").mkdir()
    write(tmp_path / "discussion" / "odd.txt", f"# {EVIL}\n")
    return Page("2021", [outcome], discussions(tmp_path, [section]), tmp_path)


def test_no_text_becomes_markup(tmp_path):
    page = odd_page(tmp_path)
    links, text = Links(html_page(page)), markdown_page(page)
    assert "script" not in links.tags and "http" not in str(links.loaded + links.inside)
    without_code = re.sub(r"^(`{3,})$.*?^\1$", "", text, flags=re.S | re.M)
    assert "<script" not in without_code and not re.search(r"[^\\]\]\(http", without_code)
    assert "(figures/odd%20%5B1%5D%28x%29.png)" in text


@pytest.mark.parametrize("text, whole", [
    ("give --p1-val DIR, not pre--fix", ["--p1-val"]), ("91.5 % of 447", ["91.5 %"]),
    ("0.662 (0.275 - 1.131), -2.5 points (-4.0 to -1.0)", ["0.275 - 1.131", "-4.0 to -1.0"]),
    ("56.6 % - 100.0 %", ["56.6 % - 100.0 %"]), ("a <b> - c", [])])
def test_numbers_and_options_stay_on_one_line(text, whole):
    found = prose(text)
    assert re.findall(r'<span class="whole">(.*?)</span>', found) == whole
    assert html.unescape(re.sub("</?span.*?>", "", found)) == text


def test_markdown_shows_text_as_it_is():
    assert escape("a|b *c* _d_ [e] <f> & `g`") == (
        r"a\|b \*c\* \_d\_ \[e\] &lt;f&gt; &amp; \`g\`")
    assert [escape(text) for text in ("1. a", "- a", "# a", "0.5", "-0.5", "a\nb")] == [
        r"1\. a", r"\- a", r"\# a", "0.5", "-0.5", "a b"]
    assert fenced("a ```` b").splitlines()[0] == "`````"


# --- options ------------------------------------------------------------------------------------


def test_the_years_have_their_questions():
    keys = {year: [section.key for section in of_year(year)] for year in ("2021", "2022", "2023")}
    assert keys["2021"] == ["accuracy", "settings", "positions", "attention", "words"]
    assert keys["2022"] == ["prompts", "top5", "captions", "words", "best-worst"]
    assert keys["2023"] == ["prompts", "top5", "peft", "peft-methods", "peft-words",
                            "peft-best-worst"]
    assert len(of_year("all")) == len({section.key for section in SECTIONS})


def test_checkpoints_are_sorted_by_what_they_say_of_themselves(tmp_path, checkpoint, clip_file):
    words = [str(checkpoint), str(clip_file), "clip=openai/x", "captioner=y"]
    assert sort_checkpoints(words) == {"classifier": [str(checkpoint)], "captioner": ["y"],
                                       "clip": [str(clip_file), "openai/x"]}
    with pytest.raises(UserError, match="--checkpoint names openai/x twice"):
        sort_checkpoints([*words, "clip=openai/x"])
    for odd, said in ((tmp_path / "none", "does not exist"),
                      (write(tmp_path / "model.pth", "x"), "is no classifier")):
        with pytest.raises(UserError, match=said):
            sort_checkpoints([str(odd)])


@pytest.mark.parametrize("words, status, said", [
    (["--year", "2020"], 2, "--year"),
    (["--clip-val", "x"], 2, "--clip-val DIR and --labels JSON go together"),
    (["--captions", "x"], 2, "--captions needs --p2-val"),
    (["--p1-boxes", "x"], 2, "--p1-boxes needs --p1-val"),
    (["--p2-val", ROOT / "samples/scenes", "--p2-boxes", "x"], 1, "x"),
    (["--p1-val", "nowhere"], 1, "image folder"),
    (["--sweep", "nowhere"], 1, "nowhere has no sweep.csv"),
    (["--p1-show", "nowhere.jpg", "b.jpg"], 1, "nowhere.jpg is no file"),
])
def test_wrong_options(tmp_path, words, status, said, capsys):
    got, lines = make_report(tmp_path / "out", *words, capsys=capsys)
    assert got == status and said in lines and len(lines.splitlines()) == 1
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_device_that_is_not_there_is_told_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, said = make_report(tmp_path / "out", "--device", "cuda", capsys=capsys)
    assert status == 1 and "no CUDA device is visible" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_files_is_left_alone(tmp_path, capsys):
    write(tmp_path / "thesis.txt", "x")
    status, said = make_report(tmp_path, capsys=capsys)
    assert status == 1 and "holds other files than a report" in said
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_shell_script_starts_it_from_any_folder(tmp_path):
    write(tmp_path / "utils.py", "raise SystemExit('the module of the current folder')")
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    result = subprocess.run(["bash", ROOT / "hw3_report.sh", "--help"], cwd=tmp_path, text=True,
                            capture_output=True, env={**os.environ, "PATH": path}, timeout=60)
    assert result.returncode == 0 and "OUT_DIR" in result.stdout, result.stderr
