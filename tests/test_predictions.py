"""Predictions of many photos: lists, rows that stream into a file, and what stops them."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

from utils import UserError

import pytest
from conftest import ROOT, inside, make_folder, make_photo, write_classifier
from makers_training import CPU

import p1_vit_classify
from data import transform
from data.folders import PhotoList, names_of, read_list
from data.photos import image_paths, list_images, refuse_equal_stems

SCRIPT = ROOT / "p1_vit_classify.py"


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "photos", 4)


def words(folder, output, checkpoint) -> list[str]:
    return [str(word) for word in ("predict", "--images", folder, "--output", output,
                                   "--checkpoint", checkpoint, "--batch-size", "2", *CPU)]


@pytest.fixture
def predict(checkpoint, capsys):
    """A function (images, output, *words) -> (status, stdout, lines of stderr)."""
    return lambda images, output, *more, checkpoint=checkpoint: inside(
        p1_vit_classify, *words(images, output, checkpoint), *more, capsys=capsys)


# --- folders and lists --------------------------------------------------------------------------


def test_paths_are_made_when_they_are_asked_for(folder):
    photos = list_images(folder)
    assert isinstance(photos, PhotoList) and len(photos) == 12 and photos[0] in photos
    assert photos[1] == folder / "0_001.png" and list(photos[10:]) == list(photos)[10:]
    assert list(photos.subset([3, 1])) == [photos[3], photos[1]]
    assert names_of(photos[:2]) == ["0_000.png", "0_001.png"] == names_of([photos[0], photos[1]])


def test_a_list_names_photos_of_many_folders(folder, tmp_path, predict, monkeypatch):
    make_photo(tmp_path / "b" / "0_000.png", 1)
    monkeypatch.chdir(tmp_path)
    lines = ["photos/1_002.png", "", "./b/0_000.png", "b/gone.png", "photos/0_000.png"]
    (tmp_path / "list.TXT").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    status, _, errors = predict("list.TXT", "o.csv")
    assert status == 3 and len(errors) == 1 and "unreadable: b/gone.png: No such file" in errors[0]
    rows = [line.split(",")[0] for line in (tmp_path / "o.csv").read_text().splitlines()]
    assert rows == ["filename", "photos/1_002.png", "./b/0_000.png", "photos/0_000.png"]
    assert image_paths(["list.TXT"], 1)[0].name == "1_002.png"


def test_a_list_is_read_from_stdin(folder, checkpoint, tmp_path):
    result = subprocess.run(
        [sys.executable, SCRIPT, *words("-", tmp_path / "o.csv", checkpoint)], cwd=folder,
        input="2_001.png\n0_003.png\n", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert [line[:9] for line in (tmp_path / "o.csv").read_text().splitlines()[1:]] == [
        "2_001.png", "0_003.png"]


def test_what_is_no_list_says_so(folder, tmp_path, predict):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="no path in the list"):
        read_list(tmp_path / "empty.txt")
    with pytest.raises(UserError, match="is a file, not a folder, and a list of photos must end"):
        list_images(folder / "0_000.png")
    shutil.copy(tmp_path / "empty.txt", tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text(str(folder / "0_000.png"))
    status, _, (error,) = predict(tmp_path / "list.txt", tmp_path / "list.txt")
    assert status == 1 and "would replace the list" in error
    photos = PhotoList(None, ["a/x.b.png", "b/x.b.png", "a/x.b.jpg"])
    with pytest.raises(UserError, match="a/x.b.png and a/x.b.jpg would both be a/x.b; rename"):
        refuse_equal_stems(photos)


# --- a prediction that was stopped --------------------------------------------------------------


@pytest.fixture
def stop(monkeypatch):
    """A function after which decoding the photo ``name`` raises ``error``, where that is one."""
    load = transform.load_image

    def arrange(name, error):
        def load_or_stop(path, at_least=None):
            if error and path.name == name:
                raise error
            return load(path, at_least)

        monkeypatch.setattr(transform, "load_image", load_or_stop)

    return arrange


def test_a_stopped_prediction_goes_on(folder, tmp_path, predict, stop, monkeypatch):
    assert predict(folder, tmp_path / "whole.csv")[0] == 0
    out, part = tmp_path / "o.csv", tmp_path / "o.csv.part"
    stop("2_000.png", OSError(28, "No space left on device"))
    status, _, errors = predict(folder, out)
    assert status == 1 and not out.exists() and "--resume goes on" in errors[0]
    assert errors[1] == "error: No space left on device"
    kept = part.read_bytes()
    assert kept.count(b"\n") == 9  # the first line, and four batches
    part.write_bytes(kept + b'["2_000.png", 12')  # the process was killed while it wrote a line
    make_photo(folder / "0_001.png", 2)  # changed since
    (folder / "0_002.png").unlink()  # and gone
    make_photo(folder / "0_0015.png", 0)  # and new
    read = []
    stop("", None)
    count = transform.load_image
    monkeypatch.setattr(transform, "load_image",
                                 lambda path, *rest: read.append(path.name) or count(path, *rest))
    status, _, errors = predict(folder, out, "--resume")
    assert status == 0 and errors[0] == "6 of 12 photos are left to do"
    assert sorted(read) == ["0_001.png", "0_0015.png", "2_000.png", "2_001.png", "2_002.png",
                            "2_003.png"]
    rows = out.read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == sorted(os.listdir(folder))
    whole = dict(row.split(",") for row in (tmp_path / "whole.csv").read_text().splitlines())
    assert all(whole.get(name, label) == label for name, label in (
        row.split(",") for row in rows) if name != "0_001.png")
    assert not part.exists()


def test_rows_of_another_run_are_not_kept(folder, tmp_path, predict, stop):
    out, part = tmp_path / "o.csv", tmp_path / "o.csv.part"
    status, _, errors = predict(folder, out, "--resume")
    assert status == 0 and errors == [f"no rows are left in {part}: all photos are computed"]
    stop("1_000.png", OSError(5, "Input/output error"))
    assert predict(folder, out)[0] == 1
    stop("", None)
    other = write_classifier(tmp_path / "other.safetensors", seed=1)
    status, _, (error,) = predict(folder, out, "--resume", checkpoint=other)
    assert status == 1 and "were made with another --checkpoint; give the same" in error
    status, _, (error,) = predict(folder, out, "--resume", "--seed", "3")
    assert status == 1 and "with another --seed" in error and part.exists()
    status, _, (line,) = predict(folder, out)
    assert status == 0 and "they are computed anew; --resume keeps them" in line
    assert not part.exists()
    part.write_text("mine\n")
    status, _, (error,) = predict(folder, out)
    assert status == 1 and "is in the way" in error and part.read_text() == "mine\n"
    status, _, (error,) = predict(folder, "/dev/null", "--resume")
    assert status == 1 and "--resume needs a file as --output" in error


def test_two_predictions_do_not_write_one_file(folder, tmp_path, predict, stop):
    import fcntl

    stop("2_000.png", OSError(5, "Input/output error"))
    assert predict(folder, tmp_path / "o.csv")[0] == 1
    with open(tmp_path / "o.csv.part", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, _, (error,) = predict(folder, tmp_path / "o.csv", "--resume")
    assert status == 1 and "another process is writing" in error


def test_a_file_that_vanishes_or_changes_while_others_are_read(
        folder, tmp_path, predict, monkeypatch):
    load = transform.load_image

    def changing(path, at_least=None):
        if path.name == "0_000.png":
            (folder / "2_002.png").unlink()
            (folder / "2_003.png").write_bytes(b"half a fi")
        return load(path, at_least)

    monkeypatch.setattr(transform, "load_image", changing)
    status, _, errors = predict(folder, tmp_path / "o.csv")
    assert status == 3 and [error.split(": ")[1:] for error in errors] == [
        [str(folder / "2_002.png"), "No such file or directory"],
        [str(folder / "2_003.png"), "not an image"]]
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 11


# --- signals and a full disk --------------------------------------------------------------------

SLOW = """
import sys, time
from data import transform
load = transform.load_image
def slow(path, at_least=None):  # as on a file system that answers late, or hangs
    if path.name >= "2":
        time.sleep(600)
    return load(path, at_least)
transform.load_image = slow
import p1_vit_classify
from utils import run
run(p1_vit_classify.main)
"""


@pytest.mark.parametrize("how, status", [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_process_leaves_its_rows_for_resume(
        folder, tmp_path, checkpoint, predict, how, status):
    """While a photo is read from a file system that hangs, too."""
    out, part = tmp_path / "o.csv", tmp_path / "o.csv.part"
    process = subprocess.Popen([sys.executable, "-c", SLOW, *words(folder, out, checkpoint)],
                               env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not part.exists() or part.read_bytes().count(b"\n") < 9:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(how)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == status and not out.exists()
    assert ("stopped by SIGTERM; nothing half-written is left" in errors) == (status == 143)
    assert "Traceback" not in errors
    assert predict(folder, out, "--resume")[2] == ["4 of 12 photos are left to do"]
    assert len(out.read_text().splitlines()) == 13 and not part.exists()


def test_a_disk_that_fills_up(folder, tmp_path, checkpoint, predict):
    out = tmp_path / "o.csv"
    limit = 800  # bytes of a file; some rows, not all
    process = subprocess.run(
        [sys.executable, SCRIPT, *words(folder, out, checkpoint)], capture_output=True, text=True,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)))
    assert process.returncode == 1 and not out.exists(), process.stderr
    assert f"error: cannot write {out}.part: File too large; make room" in process.stderr
    assert "Traceback" not in process.stderr
    assert not list(tmp_path.glob(".tmp-*"))
    first = json.loads((tmp_path / "o.csv.part").read_bytes().splitlines()[0])
    assert first["settings"]["checkpoint"][0][0] == checkpoint.name
    status, _, (line,) = predict(folder, out, "--resume")
    assert status == 0 and line.endswith("photos are left to do")
    assert len(out.read_text().splitlines()) == 13


def test_a_prediction_may_stand_in_its_folder_of_photos(folder, predict):
    for _ in range(2):
        status, _, lines = predict(folder, folder / "out.csv")
        assert status == 0 and "replace" not in " ".join(lines)
