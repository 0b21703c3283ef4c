"""docs/tour.ipynb: stored without outputs, and every cell runs on the sample photos."""

from __future__ import annotations

import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT, finished
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient

TOUR = ROOT / "docs" / "tour.ipynb"
# Put behind the cell of labels, which starts its script as the notebook says. The other scripts run
# in the notebook's own process, since each would take seconds to import torch: the shell scripts
# find a python3 on the PATH that writes down with which words it was called.
IN_ONE_PROCESS = """
import contextlib, importlib, io

sys.path.insert(0, str(PROJECT))
os.chdir(PROJECT)  # where the report starts its commands

def called(words):
    module = "report.command" if words[0] == "-c" else Path(words[0]).stem
    words = words[2:] if words[0] == "-c" else words
    sys.argv = list(map(str, words))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        if importlib.import_module(module).main():
            raise RuntimeError(words)
    return out.getvalue(), []

def run(script, *options):
    words = [script, *options]
    if script.endswith(".sh"):
        env = {**os.environ, "PATH": os.pathsep.join([PYTHON3, os.environ["PATH"]])}
        ended = subprocess.run(["bash", PROJECT / script, *options], env=env, text=True,
                               stdout=subprocess.PIPE, check=True)
        words = ended.stdout.split("\\0")[:-1]
    called(words)

importlib.import_module("report.run").run_command = called
"""
PICTURES = {"photos": 2, "top5": 1, "words": 5, "last": 1, "relevance": 1, "positions": 1}


@pytest.fixture
def tour():
    return nbformat.read(TOUR, as_version=4)


@pytest.fixture
def kernel(tmp_path, monkeypatch) -> str:
    """The name of a kernel that is this Python; it leaves nothing in the user's folders."""
    write_kernel_spec(tmp_path / "jupyter" / "kernels" / "tour")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("HW3_P1_CKPT", "HW3_P2_CKPT", "HW3_CLIP_CKPT"):
        monkeypatch.delenv(name, raising=False)
    return "tour"


def code_cells(notebook) -> dict:
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def shown(cell) -> list[str]:
    """The kind of each thing that a cell showed: image/png, text/html; not what it printed."""
    return [kind for output in cell.outputs for kind in output.get("data", {})
            if kind != "text/plain"]


def printed(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def test_the_stored_notebook_is_valid_and_has_no_outputs(tour):
    nbformat.validate(tour)
    cells = code_cells(tour)
    assert len(cells) == 15
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells.values())
    assert all(len(cell.source.splitlines()) <= 45 for cell in cells.values())


def test_every_cell_runs_on_the_samples(tour, kernel, tmp_path):
    out = tmp_path / "out of the tour"
    python3 = tmp_path / "bin" / "python3"
    python3.parent.mkdir()
    python3.write_text("#!/bin/sh\n"
                       "case $2 in *find_spec*) exit;; esac  # beside a .venv: is there a torch?\n"
                       "printf '%s\\0' \"$@\"\n")
    python3.chmod(0o755)
    # Photos without references: the report leaves out the sections that take the longest.
    more = {"settings": f"OUT, PYTHON3 = {str(out)!r}, {str(python3.parent)!r}\n"
                        "REPORT = ['--show', '1', '--p2-val', PROJECT / 'samples' / 'scenes']",
            "labels": IN_ONE_PROCESS}
    for name, source in more.items():
        at = next(at for at, cell in enumerate(tour.cells) if cell.id == name)
        tour.cells.insert(at + 1, nbformat.v4.new_code_cell(source))

    NotebookClient(tour, timeout=300, startup_timeout=120, kernel_name=kernel,
                   resources={"metadata": {"path": str(TOUR.parent)}}).execute()

    cells = code_cells(tour)
    assert cells["get-project"].outputs == []
    assert {name: shown(cells[name]).count("image/png") for name in PICTURES} == PICTURES
    for name in ("page", "report"):
        assert "data:text/html;base64," in str(cells[name].outputs)
    assert "siamese.jpg" in printed(cells["labels"])
    assert [line.split() for line in printed(cells["names"]).splitlines()][-1] == [
        "sheep.jpg", "sheep"]
    for name in ("captions", "peft"):
        captioned = [line.split()[0] for line in printed(cells[name]).split("\n")[-6:-1]]
        assert captioned == ["astronaut", "dog", "horses", "photographer", "sheep"]
    assert (out / "report" / "report.html").is_file()


def first_cell(tour, folder, address="") -> subprocess.CompletedProcess:
    """The first code cell, run in ``folder`` as a program; it prints the project's folder."""
    source = code_cells(tour)["get-project"].source
    assert source.count('ADDRESS = ""') == 1
    source = source.replace('ADDRESS = ""', f"ADDRESS = {str(address)!r}") + "\nprint(PROJECT)"
    return finished(sys.executable, "-c", source, cwd=folder)


@pytest.mark.parametrize("folder", [ROOT, ROOT / "docs"], ids=["project", "docs"])
def test_the_first_cell_does_nothing_in_a_checkout(tour, folder):
    result = first_cell(tour, folder)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, str(ROOT), "")


def test_the_first_cell_fetches_the_project_once(tour, tmp_path):
    origin, empty = tmp_path / "origin", tmp_path / "my notebooks"
    origin.mkdir()
    empty.mkdir()
    (origin / "hw3_report.sh").touch()
    (origin / "requirements.txt").write_text("pip\n")  # which is there: nothing is fetched
    name = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*name, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=origin, check=True)
    for address in (origin.as_uri(), ""):  # the second time it is there
        result = first_cell(tour, empty, address)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == str(empty / "vision-homework")
        assert (empty / "vision-homework" / "hw3_report.sh").is_file()


def test_the_first_cell_asks_for_the_address(tour, tmp_path):
    result = first_cell(tour, tmp_path)
    assert result.returncode and "set ADDRESS to the address" in result.stderr
