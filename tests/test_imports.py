"""The import rule of the README: every import goes one way; what must be fast loads no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

ORDER = ["utils", "metrics", "figures", "ckpt", "data", "models", "inference", "training", "report"]
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "utils")
FILES = sorted([*ROOT.glob("*.py"), *(path for package in ORDER[1:]
                                     for path in (ROOT / package).glob("*.py"))])
SLOW = {"torch", "torchvision", "timm", "transformers", "accelerate", "peft", "pytorch_optimizer"}
# Packages and files whose import needs no torch, so that --help and usage errors answer at once.
FAST = ("utils.py", "metrics", "figures", "ckpt", "data", "inference/options.py",
        "training/options.py", "training/recipe.py", "report")
LONGEST = 320  # lines; the layout section of the README names any exception


def package_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(file: Path, inside_functions: bool = True) -> set[str]:
    """The dotted names of the modules that ``file`` imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if inside_functions else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_an_import_goes_to_the_same_package_or_an_earlier_one(file):
    package = package_of(file)
    allowed = [*ORDER, package] if package in SCRIPTS else ORDER[:ORDER.index(package) + 1]
    for name in {name.split(".")[0] for name in imports(file)} & {*ORDER, *SCRIPTS}:
        assert name in allowed, f"{file.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("package", ORDER[1:])
def test_no_circle_inside_a_package(package):
    names = {f"{package}.{path.stem}": path for path in (ROOT / package).glob("*.py")
             if path.stem != "__init__"}
    rest = {name: imports(path) & names.keys() for name, path in names.items()}
    while rest:
        ready = [name for name, needed in rest.items() if not needed & rest.keys()]
        assert ready, f"these import each other in a circle: {sorted(rest)}"
        rest = {name: needed for name, needed in rest.items() if name not in ready}


def test_what_must_be_fast_imports_no_torch():
    fast = [file for file in FILES if package_of(file) in SCRIPTS
            or str(file.relative_to(ROOT)).startswith(FAST)]
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in FILES}
    for file in fast:
        seen, queue = set(), [file]
        while queue:  # also through what it imports of the project
            names = imports(queue.pop(), inside_functions=False)
            slow = {name.split(".")[0] for name in names} & SLOW
            assert not slow, f"importing {file.relative_to(ROOT)} loads {', '.join(slow)}"
            new = {name for name in names & modules.keys() if name not in seen}
            seen |= new
            queue += [modules[name] for name in new]


@pytest.mark.parametrize("script", ["p1_vit_classify", "p2_caption", "clip_zeroshot",
                                    "peft_caption"])
def test_what_predicts_starts_without_matplotlib(script):
    code = f"import sys, {script}; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_scoring_a_file_loads_neither_pillow_nor_the_network():
    code = ("import sys, p2_caption, inference.scoring; "
            "sys.exit(bool({'PIL', 'http.client', 'ssl', 'torch'} & sys.modules.keys()))")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_at_the_top_level_stand_the_questions_alone():
    assert SCRIPTS == ["clip_zeroshot", "p1_attn_map", "p1_pos_embed_vis", "p1_vit_classify",
                       "p2_attn_vis", "p2_caption", "peft_caption"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_can_be_read_in_one_sitting(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_tests_do_not_import_each_other():
    for file in (ROOT / "tests").glob("*.py"):
        others = {name for name in imports(file) if name.startswith("test_")}
        assert not others, f"{file.name} imports {', '.join(others)}"
