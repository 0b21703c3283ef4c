"""The shell scripts: which command they start, with which Python, from any folder and any shell.

The Python scripts are replaced by one that prints its arguments, so no model is loaded here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import OFFLINE, ROOT

NAMES = sorted(path.name for path in ROOT.glob("*.sh"))
STARTING_PYTHON = [name for name in NAMES if "exec python3" in (ROOT / name).read_text()]
COMMANDS = ("p1_vit_classify", "clip_zeroshot", "p2_caption", "peft_caption", "p2_attn_vis")
# As the real scripts do, it needs the utils.py beside it.
ECHO = """import json, os, sys
import utils
print(json.dumps([os.path.basename(sys.argv[0]), utils.HOME, *sys.argv[1:]]))
sys.exit(3)
"""
SHELLS = ["bash", pytest.param("dash", marks=pytest.mark.skipif(
    not shutil.which("dash"), reason="dash is not installed"))]


def write_python(path: Path, site_packages: bool, started: Path | None = None) -> Path:
    """A ``python3`` that is this Python, with its installed packages or without them; each start
    appends a line to ``started``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n"
                    + f'echo "{path}" >> "{started}"\n' * (started is not None)
                    + f'exec "{sys.executable}" {"" if site_packages else "-S"} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def project(tmp_path) -> Path:
    """The shell scripts, beside Python scripts that print what they were called with."""
    folder = tmp_path / "my project"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(ROOT / name, folder)
    for name in COMMANDS:
        (folder / f"{name}.py").write_text(ECHO)
    (folder / "utils.py").write_text(
        "import os\nHOME = os.path.basename(os.path.dirname(os.path.abspath(__file__)))\n")
    return folder


def start(shell, script, *words, cwd, python=None, **environment):
    """Run a shell script; ``python`` is the python3 on the PATH, by default one with torch."""
    python = python or write_python(cwd / "with torch" / "python3", True)
    path = os.pathsep.join([str(python.parent), "/usr/bin", "/bin"])
    return subprocess.run([shell, str(script), *map(str, words)], cwd=cwd, capture_output=True,
                          text=True, timeout=60,
                          env={**os.environ, **OFFLINE, "PATH": path, **environment})


# --- the files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_shell_script_is_executable(name):
    assert os.access(ROOT / name, os.X_OK)
    assert (ROOT / name).read_text().startswith("#!/usr/bin/env bash\n")


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"),
                    reason="not a checkout of git")
def test_git_keeps_every_shell_script_executable():
    listed = subprocess.run(["git", "ls-files", "-s", "*.sh", ".ci/run"], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout
    modes = {line.split("\t")[1]: line.split()[0] for line in listed.splitlines()}
    assert set(NAMES) <= set(modes) and set(modes.values()) == {"100755"}


@pytest.mark.parametrize("name", NAMES)
def test_the_shell_scripts_keep_the_rules_of_the_course(name):
    words = set(re.findall(r"\w+", (ROOT / name).read_text()))
    assert not words & {"rm", "sudo", "cp", "mv", "mkdir", "cd", "pip", "pip3",
                        "CUDA_VISIBLE_DEVICES"}
    assert words & {"python3", "bash"}


def test_the_scripts_choose_their_python_with_the_same_lines():
    chosen = {re.search(r"# Where the python3.*?\nfi\n", (ROOT / name).read_text(), re.S)[0]
              for name in STARTING_PYTHON}
    assert len(STARTING_PYTHON) == 4 and len(chosen) == 1


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("script, words, expected", [
    ("hw3_1.sh", ["my photos", "new dir/out.csv"],
     ["p1_vit_classify.py", "predict", "--images=my photos", "--output=new dir/out.csv"]),
    ("hw3_1.sh", ["-a b", "OUT.CSV"],
     ["p1_vit_classify.py", "predict", "--images=-a b", "--output=OUT.CSV"]),
    ("hw3_1.sh", ["a", "id 2.json", "-o.csv"],
     ["clip_zeroshot.py", "predict", "--images=a", "--labels=id 2.json", "--output=-o.csv"]),
    ("hw3_1.sh", ["a", "/dev/stdout"],
     ["p1_vit_classify.py", "predict", "--images=a", "--output=/dev/stdout"]),
    ("hw3_2.sh", ["a", "/dev/fd/1"],
     ["p2_caption.py", "predict", "--images=a", "--output=/dev/fd/1"]),
    ("hw3_2.sh", ["my photos", "new dir/out.json"],
     ["p2_caption.py", "predict", "--images=my photos", "--output=new dir/out.json"]),
    ("hw3_2.sh", ["a", "OUT.JSON"],
     ["p2_caption.py", "predict", "--images=a", "--output=OUT.JSON"]),
    ("hw3_2.sh", ["a", "o.Json", "my gpt2/decoder_model.bin"],
     ["peft_caption.py", "predict", "--images=a", "--output=o.Json",
      "--decoder=my gpt2/decoder_model.bin"]),
    ("hw3_2.sh", ["a", "out.json.d"],
     ["p2_attn_vis.py", "--images=a", "--output=out.json.d"]),
    ("hw3_2.sh", ["a b", "a folder", "my gpt2/decoder_model.bin"],
     ["p2_attn_vis.py", "--images=a b", "--output=a folder",
      "--decoder=my gpt2/decoder_model.bin"]),
])
def test_arguments_choose_the_command(project, tmp_path, shell, script, words, expected):
    result = start(shell, project / script, *words, cwd=tmp_path)
    assert result.returncode == 3, result.stderr  # the script's own exit status
    name, home, *rest = json.loads(result.stdout)
    assert [name, *rest] == expected and home == "my project"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("script, words, message", [
    ("hw3_1.sh", [], "expected IMAGES OUT.csv"),
    ("hw3_1.sh", ["a"], "expected IMAGES OUT.csv"),
    ("hw3_1.sh", ["a", "b.json", "c.csv", "d.csv"], "arguments given: 4"),
    ("hw3_1.sh", ["a", "out"], "must end in .csv, not out;"),
    ("hw3_1.sh", ["a", "names.csv", r"out.csv\n.txt"], r"must end in .csv, not out.csv\n.txt;"),
    ("hw3_1.sh", ["a", "o.json"], "must end in .csv, not o.json;"),
    ("hw3_1.sh", ["a", ""], "must end in .csv"),
    ("hw3_2.sh", [], "expected IMAGES OUT.json"),
    ("hw3_2.sh", ["a"], "expected IMAGES OUT.json"),
    ("hw3_2.sh", ["a", "o.json", "decoder_model.bin", "more"], "arguments given: 4"),
])
def test_wrong_usage_is_one_line_and_status_2(project, tmp_path, shell, script, words, message):
    started = tmp_path / "started"
    python = write_python(tmp_path / "bin" / "python3", True, started)
    result = start(shell, project / script, *words, cwd=tmp_path, python=python)
    assert result.returncode == 2 and message in result.stderr
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith(f"{script}: ")
    assert not started.exists() and not result.stdout


def test_a_link_to_a_script_works(project, tmp_path):
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "label").symlink_to(project / "hw3_1.sh")
    result = start("sh", elsewhere / "label", "a", "o.csv", cwd=elsewhere)
    assert json.loads(result.stdout)[:2] == ["p1_vit_classify.py", "my project"]


# --- which Python -------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("torch_on_path, venv, started", [
    (True, None, ["path"]),            # the usual case starts Python once
    (True, True, ["path", "path"]),    # the first start only looks for torch
    (False, True, ["path", "venv"]),
    (False, None, ["path"]),
    (None, True, ["venv"]),            # no python3 on the PATH
])
def test_the_venv_is_used_where_python3_has_no_torch(
    project, tmp_path, shell, torch_on_path, venv, started
):
    log, path = tmp_path / "started", tmp_path / "empty" / "python3"
    if torch_on_path is not None:
        path = write_python(tmp_path / "on path" / "python3", torch_on_path, log)
    of_venv = project / ".venv" / "bin" / "python3"
    if venv:
        write_python(of_venv, True, log)
    (tmp_path / "torch").mkdir()  # in the current folder, so not the installed one
    environment = {}
    if torch_on_path is None:  # a PATH that holds what the script itself needs, but no python3
        path.parent.mkdir()
        for tool in ("dirname", "readlink", shell):
            (path.parent / tool).symlink_to(shutil.which(tool))
        environment["PATH"] = str(path.parent)
    result = start(shutil.which(shell), project / "hw3_1.sh", "a", "o.csv", cwd=tmp_path,
                   python=path, **environment)
    assert result.returncode == 3 and not result.stderr
    names = {str(path): "path", str(of_venv): "venv"}
    assert [names[line] for line in log.read_text().splitlines()] == started


@pytest.mark.parametrize("script, words", [
    ("hw3_1.sh", ["a", "o.csv"]), ("hw3_1.sh", ["a", "n.json", "o.csv"]),
    ("hw3_2.sh", ["a", "o.json"]), ("hw3_2.sh", ["a", "o"]), ("hw3_2.sh", ["a", "o.json", "d"])])
def test_modules_are_found_under_pythonsafepath(project, tmp_path, script, words):
    (tmp_path / "utils.py").write_text("HOME = 'the current folder'\n")
    result = start("bash", project / script, *words, cwd=tmp_path, PYTHONSAFEPATH="1")
    assert result.returncode == 3, result.stderr
    assert json.loads(result.stdout)[1] == "my project"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("script", ["download_ckpt.sh", "hw3_download.sh"])
@pytest.mark.parametrize("environment", [{}, {"PYTHONSAFEPATH": "1"}])
def test_the_current_folder_does_not_shadow_ours(tmp_path, shell, script, environment):
    for name in ("utils.py", "json.py", "ckpt.py", "ckpt/__init__.py", "importlib/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('the module of the current folder')\n")
    result = start(shell, ROOT / script, "--list", "pets_vit_tiny", cwd=tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("pets_vit_tiny (")


def test_download_passes_arguments_on_as_they_are(tmp_path):
    result = start("sh", ROOT / "download_ckpt.sh", "--list", "no such * name", cwd=tmp_path)
    assert result.returncode == 1 and "lists no no such * name;" in result.stderr


def test_a_missing_package_is_explained_as_in_the_readme(tmp_path):
    python = write_python(tmp_path / "bin" / "python3", False)
    result = subprocess.run([python, ROOT / "p1_pos_embed_vis.py"], cwd=tmp_path,
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert "package numpy is missing" in result.stderr
    readme = (ROOT / "README.md").read_text()
    for command in re.findall("`(.+?)`", result.stderr):
        assert command in readme
