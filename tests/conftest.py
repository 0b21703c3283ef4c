"""Small photos, a tiny classifier and ways to run a script as a user runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from utils import run

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
TINY = "test_vit"  # timm's own test model: 64 wide, 6 layers, 160 pixels
PACKAGES = ("metrics", "figures", "ckpt", "data", "models", "inference", "training")
CLASSES = ["0", "1", "2"]
# For scripts that run in this process too; one thread, because sums in another order would not be
# equal to the last bit. It counts for nothing once torch is imported.
os.environ.update(OFFLINE)


def finished(*words, cwd=None, **environment) -> subprocess.CompletedProcess:
    """Run a command to its end, offline; stderr as text."""
    return subprocess.run([*map(str, words)], cwd=cwd, env={**os.environ, **environment},
                          capture_output=True, text=True, errors="surrogateescape", timeout=300)


def run_script(script, *words, **options) -> subprocess.CompletedProcess:
    """Run ``python3 SCRIPT …`` in a process of its own."""
    return finished(sys.executable, ROOT / script, *words, **options)


def bash(script, *words, **options) -> subprocess.CompletedProcess:
    """Run ``bash SCRIPT …`` with this Python as its python3."""
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    return finished("bash", script, *words, PATH=path, **options)


def run_inside(module, *words, capsys) -> subprocess.CompletedProcess:
    """As ``run_script``, in this process: to import torch anew takes seconds for each run."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", [module.__file__, *map(str, words)])
        run(module.main)
    return subprocess.CompletedProcess(words, end.value.code, *capsys.readouterr())


def inside(module, *words, capsys) -> tuple[int, str, list[str]]:
    """(status, stdout, lines of stderr) of ``run_inside``."""
    result = run_inside(module, *words, capsys=capsys)
    return result.returncode, result.stdout, error_lines(result)


def copy_project(folder: Path) -> Path:
    """The code, with an empty ckpt/ for tiny checkpoints in the place of the shipped ones."""
    for pattern in ("*.py", "*.sh", *(f"{package}/*.py" for package in PACKAGES)):
        for file in ROOT.glob(pattern):
            (folder / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / file.relative_to(ROOT))
    return folder


def error_lines(result: subprocess.CompletedProcess) -> list[str]:
    """What a user reads on stderr: progress bars and paths of written files left out."""
    lines = result.stderr.replace("\r", "\n").splitlines()
    hidden = ("img/s", "s/img", "wrote")  # a bar turns its rate over where a photo takes a second
    return [line for line in lines if line.strip() and not any(word in line for word in hidden)]


def make_photo(path: Path, label: int = 0, size=(48, 40), seed: int = 0) -> Path:
    """A noisy photo whose colour tells its label, so that a tiny model can learn it."""
    random = np.random.default_rng([label, seed])
    colour = np.eye(3)[label % 3] * 160
    pixels = colour + random.uniform(0, 90, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def make_folder(folder: Path, each: int, seed: int = 0) -> Path:
    for label in range(3):
        for number in range(each):
            make_photo(folder / f"{label}_{number:03}.png", label, seed=100 * seed + number)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Four photos of each of three classes."""
    return make_folder(tmp_path_factory.mktemp("photos"), 4)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained classifier over ``CLASSES``, 32 pixels a side."""
    return write_classifier(tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors")


@pytest.fixture(scope="session")
def hub_clip(tmp_path_factory) -> Path:
    """A folder with a random CLIPModel, as transformers writes it."""
    from makers_clip import write_hub_clip

    return write_hub_clip(tmp_path_factory.mktemp("hub") / "my clip")


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory) -> Path:
    """A CLIP checkpoint of this project with random weights."""
    from makers_clip import write_clip

    return write_clip(tmp_path_factory.mktemp("clip") / "tiny.safetensors")


@pytest.fixture
def text_cache(tmp_path, monkeypatch) -> Path:
    """The folder where features of texts are kept, this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hw3"


def write_classifier(
    path: Path, classes=CLASSES, seed: int = 0, model: str = TINY, **options
) -> Path:
    import torch

    from models.classifier import build_classifier, save_classifier

    torch.manual_seed(seed)
    names = {label: f"name {label}" for label in classes}
    classifier = build_classifier(model, list(classes), names, **{"image_size": 32, **options})
    with torch.no_grad():  # timm starts the head at zero: every class would tie
        for parameter in classifier.head:
            if parameter.ndim == 2:
                parameter.normal_()
        for name, buffer in classifier.model.named_buffers():
            if name.endswith(("running_mean", "running_var")):  # as after a training
                buffer.uniform_(0.5, 2)
    save_classifier(path, classifier)
    return path
