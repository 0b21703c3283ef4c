"""Several classifiers as the default of hw3_1.sh: by HW3_P1_CKPT, and by ckpt/checkpoints.json."""

from __future__ import annotations

import csv
import json
import shutil

from utils import UserError

import numpy as np
import pytest
from conftest import bash, copy_project, error_lines, inside, write_classifier

import p1_vit_classify
from ckpt import download, registry
from data.compute import Compute
from data.photos import list_images
from inference.classify import classify, load_classifiers

CPU = ["--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """A ViT and a convolutional network of the same labels, with image sizes and processing of
    their own; and a classifier of other labels."""
    folder = tmp_path_factory.mktemp("members")
    write_classifier(folder / "vit.safetensors", image_size=32)
    write_classifier(folder / "net.safetensors", model="test_efficientnet", image_size=40, seed=1,
                     resize="squash")
    write_classifier(folder / "other.safetensors", classes=["3", "4"])
    return folder


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """A list of two entries in an empty ckpt/; a function that sets its defaults."""
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    monkeypatch.delenv("HW3_P1_CKPT", raising=False)
    entries = [{"name": name, "shipped": True, "file": f"{name}.safetensors"} for name in "ab"]

    def write(rows=entries, **defaults):
        (tmp_path / "checkpoints.json").write_text(
            json.dumps({"checkpoints": rows, "defaults": defaults}))

    return write


def rows_of(path) -> dict[str, str]:
    with open(path, newline="") as file:
        return {row["filename"]: row["label"] for row in csv.DictReader(file)}


# --- the TA's command ---------------------------------------------------------------------------


def test_hw3_1_labels_by_the_mean_of_the_variables_and_of_the_lists_files(
    members, photos, tmp_path
):
    project = copy_project(tmp_path / "my project")
    for name in ("vit", "net"):
        shutil.copy(members / f"{name}.safetensors", project / "ckpt" / f"{name}.safetensors")
    files = [project / "ckpt" / f"{name}.safetensors" for name in ("vit", "net")]
    result = bash(project / "download_ckpt.sh", "--record", *files, "--default", "p1")
    assert result.returncode == 0, result.stderr
    assert json.loads((project / "ckpt" / "checkpoints.json").read_text())["defaults"]["p1"] == [
        "vit", "net"]
    classifiers, paths = load_classifiers(files), list_images(photos)
    each = [classify(one, paths, Compute("cpu", "fp32", 4))[1] for one in classifiers]
    expected = {path.name: classifiers[0].classes[label] for path, label
                in zip(paths, np.mean(each, axis=0).argmax(1), strict=True)}
    assert expected != {path.name: classifiers[0].classes[label] for path, label
                        in zip(paths, each[0].argmax(1), strict=True)}
    for name, environment in (("list", {}), ("variable", {
            "HW3_P1_CKPT": f"{members / 'net.safetensors'}:{members / 'vit.safetensors'}"})):
        output = tmp_path / f"{name}.csv"
        result = bash(project / "hw3_1.sh", photos, output, **environment)
        assert result.returncode == 0, result.stderr
        assert rows_of(output) == expected


def test_eval_reports_the_ensemble_and_each_member(members, photos, capsys):
    files = [str(members / f"{name}.safetensors") for name in ("vit", "net")]

    def evaluated(*checkpoints):
        status, out, _ = inside(p1_vit_classify, "eval", "--images", photos, *CPU,
                                "--checkpoint", *checkpoints, capsys=capsys)
        assert status == 0
        return json.loads(out)

    result, alone = evaluated(*files), [evaluated(file) for file in files]
    assert result["image_sizes"] == [[32, 32], [40, 40]] and "members" not in alone[0]
    assert [row.pop("checkpoint") for row in result["members"]] == files
    for row, one in zip(result["members"], alone, strict=True):
        assert row.items() <= one.items() and row["total"] == 12


def test_members_of_other_labels_are_refused(members, photos, tmp_path):
    output = tmp_path / "o.csv"
    result = bash(registry.FOLDER.parent / "hw3_1.sh", photos, output, HW3_P1_CKPT=(
        f"{members / 'vit.safetensors'}:{members / 'other.safetensors'}"))
    line, = error_lines(result)
    assert result.returncode == 1 and "have different labels" in line and not output.exists()


# --- which files --------------------------------------------------------------------------------


@pytest.mark.parametrize("value, expected", [
    ("a:b", ["a", "b"]), ("a", ["a"]), (":a::b:", ["a", "b"]), ("hf:o/n", ["hf:o/n"]),
    ("a:hf:o/n:b", ["a", "hf:o/n", "b"]), ("there:is.bin", ["there:is.bin"])])
def test_a_variable_names_several_files(monkeypatch, tmp_path, value, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there:is.bin").touch()
    monkeypatch.setenv("HW3_P1_CKPT", value)
    monkeypatch.setenv("HW3_P2_CKPT", value)
    assert list(map(str, registry.members("p1"))) == expected
    assert str(registry.default("p1")) == expected[0]
    assert str(registry.default("p2")) == value  # no ensembles of captioners


def test_a_list_names_several_files(listed, tmp_path, monkeypatch):
    listed(p1=["a", "b"], p2="a")
    assert registry.members("p1") == [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    assert registry.default("p2") == tmp_path / "a.safetensors"
    for bad in ({"p2": ["a", "b"]}, {"p1": []}):
        listed(**bad)
        with pytest.raises(UserError, match="only p1 takes several"):
            registry.members("p1")
    monkeypatch.setenv("HW3_P1_CKPT", ":")
    with pytest.raises(UserError, match="HW3_P1_CKPT=: names no file"):
        registry.members("p1")


@pytest.mark.parametrize("words, status, message", [
    (["vit", "net", "--default", "p2"], 1, "the default p2 names 2 checkpoints"),
    (["vit", "net", "--name", "x"], 2, "--name takes as many values as --record has files, 2"),
    (["vit", "net", "--name", "x", "x"], 1, "two entries would have one name"),
    (["vit", "--needs", "nobody"], 1, "lists no nobody")])
def test_what_cannot_be_recorded_changes_nothing(
    listed, members, tmp_path, capsys, words, status, message
):
    listed(p1="a")
    before = (tmp_path / "checkpoints.json").read_text()
    for name in ("vit", "net"):
        shutil.copy(members / f"{name}.safetensors", tmp_path)
    files = [str(tmp_path / f"{word}.safetensors") if word in ("vit", "net") else word
             for word in words]
    if status == 2:
        with pytest.raises(SystemExit):
            download.main(["--record", *files])
        assert message in capsys.readouterr().err
    else:
        with pytest.raises(UserError, match=message):
            download.main(["--record", *files])
    assert (tmp_path / "checkpoints.json").read_text() == before


# --- what an entry needs ------------------------------------------------------------------------


def test_what_an_entry_needs_comes_before_it_and_once(listed, capsys):
    rows = [{"name": "peft", "shipped": True, "file": "p.bin", "needs": ["vit", "gpt2"]},
            {"name": "vit", "shipped": True, "file": "v.bin"},
            {"name": "gpt2", "shipped": True, "file": "g.bin", "needs": ["vit"]}]
    listed(rows, p2_peft="peft")
    entries, _ = registry.read_list()
    assert registry.with_needs(entries, ["peft", "vit"]) == ["vit", "gpt2", "peft"]
    assert download.main([]) == 1  # none of them is here; each is named
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert [line.split(":")[1].strip() for line in lines] == ["vit", "gpt2", "peft"]
    rows[1]["needs"] = ["peft"]
    listed(rows)
    with pytest.raises(UserError, match="needs itself"):
        registry.with_needs(registry.read_list()[0], ["peft"])
