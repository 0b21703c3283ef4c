"""The scripts in odd situations: outputs that are inputs, pipes, closed streams, odd names.

Every refusal comes before any work, so it takes no model; what needs one runs a tiny classifier.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys

import pytest
from conftest import ROOT, bash, error_lines, finished, make_folder, make_photo, run_script

P1, CLIP, P2, PEFT = "p1_vit_classify.py", "clip_zeroshot.py", "p2_caption.py", "peft_caption.py"
MAPS, TILES, WORDS = "p1_attn_map.py", "p1_pos_embed_vis.py", "p2_attn_vis.py"
CPU = ["--device", "cpu", "--precision", "fp32", "--batch-size", "4"]


def labels_of(path) -> dict[str, str]:
    with open(path, newline="") as file:
        return {row["filename"]: row["label"] for row in csv.DictReader(file)}


# --- an output that is also an input ------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, checkpoint):
    """Every kind of file that a command reads, by the names that the commands below have."""
    folder = tmp_path_factory.mktemp("inputs")
    make_folder(folder / "photos", 1)
    names = [path.name for path in sorted((folder / "photos").iterdir())]
    for name in ("errors.png", "curves.png"):  # as figures of ours are called
        make_photo(folder / "photos" / name)
    (folder / "id2label.json").write_text('{"0": "a cat", "1": "a dog", "2": "a bird"}')
    (folder / "labels.csv").write_text("filename,label\nerrors.png,0\ncurves.png,0\n" + "".join(
        f"{name},{name[0]}\n" for name in names))
    (folder / "templates.txt").write_text("a photo of a {}\n")
    (folder / "predictions.json").write_text(json.dumps({name: "a dog" for name in names}))
    (folder / "captions.json").write_text(json.dumps({
        "images": [{"file_name": name, "id": name} for name in names],
        "annotations": [{"image_id": name, "caption": "a dog", "id": name} for name in names]}))
    (folder / "pairs.csv").write_text("image,text\nphotos/0_000.png,a cat\n")
    shutil.copy(checkpoint, folder / "model.safetensors")
    (folder / "run").mkdir()
    shutil.copy(checkpoint, folder / "run" / "best.safetensors")
    os.link(folder / "labels.csv", folder / "hard.csv")
    os.symlink("captions.json", folder / "link.json")
    return folder


PHOTOS = ["--images", "photos"]
TABLE = ["--labels", "labels.csv"]
NAMES = ["--labels", "id2label.json"]
MODEL = ["--checkpoint", "model.safetensors"]
REFS = ["--captions", "captions.json"]
TRUTH = ["--truth", "labels.csv"]
STAGE = ["--checkpoint", "run/best.safetensors"]  # of a training whose folder is written into again


@pytest.mark.parametrize("script, words, options", [
    (P1, ["predict", *PHOTOS, *MODEL, "--output", "model.safetensors"], "--output --checkpoint"),
    (P1, ["predict", *PHOTOS, *MODEL, "--output", "photos/0_000.png"], "--output --images"),
    (P1, ["eval", *PHOTOS, *MODEL, *TABLE, "--output", "labels.csv"], "--json --labels"),
    (P1, ["eval", *PHOTOS, *MODEL, *TABLE, "--output", "hard.csv"], "--json --labels"),
    (P1, ["eval", *PHOTOS, *MODEL, *TABLE, "--figures", "photos"], "--figures --images"),
    (P1, ["average", *MODEL, "--output", "model.safetensors"], "--output --checkpoint"),
    (MAPS, [*PHOTOS, *MODEL, "--output", "out", "--npz", "model.safetensors"],
     "--npz --checkpoint"),
    (TILES, [*MODEL, "--output", "model.safetensors"], "--output --checkpoint"),
    (TILES, [*MODEL, "--output", "o.png", "--npz", "o.png"], "--npz --output"),
    (CLIP, ["predict", *PHOTOS, *NAMES, "--output", "id2label.json"], "--output --labels"),
    (CLIP, ["predict", *PHOTOS, *NAMES, "--template", "templates.txt", "--output",
            "templates.txt"], "--output --template"),
    (CLIP, ["eval", *PHOTOS, *NAMES, *TRUTH, "--table", "labels.csv"], "--table --truth"),
    (CLIP, ["eval", *PHOTOS, *NAMES, *TRUTH, "--table", "o", "--output", "o"], "--json --table"),
    (CLIP, ["top5", *PHOTOS, *NAMES, "--output", "photos/0_000.png"], "--output --images"),
    (CLIP, ["retrieval", *PHOTOS, *REFS, "--output", "link.json"], "--json --captions"),
    (P2, ["predict", *PHOTOS, *MODEL, "--output", "model.safetensors"], "--output --checkpoint"),
    (P2, ["eval", *PHOTOS, *MODEL, *REFS, "--output", "captions.json"], "--json --captions"),
    (P2, ["score", "--predictions", "predictions.json", *REFS, "--output", "predictions.json"],
     "--json --predictions"),
    (P2, ["score", "--predictions", "predictions.json", *REFS, "--per-image", "link.json"],
     "--per-image --captions"),
    (P2, ["blend", "--checkpoint", "model.safetensors", "model.safetensors", "--output",
          "model.safetensors"], "--output --checkpoint"),
    (P2, ["convert", "--weights", "model.safetensors", "--vocab", "templates.txt", "--output",
          "templates.txt"], "--output --vocab"),
    (WORDS, [*PHOTOS, *MODEL, "--captions", "predictions.json", "--npz", "predictions.json",
             "--output", "out"], "--npz --captions"),
    (PEFT, ["predict", *PHOTOS, *MODEL, "--output", "model.safetensors"], "--output --checkpoint"),
    (PEFT, ["eval", *PHOTOS, *MODEL, *REFS, "--output", "captions.json"], "--json --captions"),
    (P1, ["train", "--train", "photos", *TABLE, "--model", "test_vit", "--out", "photos"],
     "--out --train"),
    (P2, ["train", *PHOTOS, *REFS, "--hold-out", "1", *STAGE, "--out", "run"],
     "--out --checkpoint"),
    (CLIP, ["train", "--pairs", "pairs.csv", *STAGE, "--out", "run"], "--out --checkpoint"),
    (PEFT, ["train", "--method", "cross", *PHOTOS, *REFS, "--base", "run/best.safetensors",
            "--out", "run"], "--out --base"),
])
def test_an_output_that_is_an_input_is_refused_before_any_work(inputs, script, words, options):
    before = {path: path.read_bytes() for path in inputs.rglob("*") if path.is_file()}
    result = run_script(script, *words, cwd=inputs)
    line, = error_lines(result)
    assert result.returncode == 1 and "would replace a file that" in line, line
    assert all(option in line for option in options.split()), line
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_third_argument_forgotten(inputs):
    before = (inputs / "id2label.json").read_bytes()
    result = bash(ROOT / "hw3_1.sh", "photos", "id2label.json", cwd=inputs)
    assert result.returncode == 2 and ".csv" in result.stderr
    assert (inputs / "id2label.json").read_bytes() == before


# --- where a result goes ------------------------------------------------------------------------


def test_results_go_into_pipes_and_after_what_a_file_held(tmp_path, photos, checkpoint):
    command = (f"{sys.executable} {ROOT / P1} predict --images {photos} --checkpoint {checkpoint} "
               f"{' '.join(CPU)} --output")
    kept, got = tmp_path / "kept.csv", tmp_path / "got.csv"
    kept.write_text("what was there\n")
    result = finished("bash", "-c", f"{command} /dev/stdout >> {kept}")
    assert result.returncode == 0, result.stderr
    lines = kept.read_text().splitlines()
    assert lines[:2] == ["what was there", "filename,label"] and lines[2].startswith("0_000.png,")
    result = finished("bash", "-c", f"{command} >(cat > {got}) > /dev/null; wait $!")
    assert result.returncode == 0 and len(labels_of(got)) == 12, result.stderr


@pytest.mark.parametrize("redirection", ["2>&-", ">&-", "2>/dev/full", ""])
def test_a_folder_is_labelled_whatever_becomes_of_the_streams(
        tmp_path, photos, checkpoint, redirection):
    folder = shutil.copytree(photos, tmp_path / "photos")
    for number in range(10):  # more than are printed
        make_photo(folder / f"0_é{number}.png")
    result = finished(
        "bash", "-c", f"{sys.executable} {ROOT / P1} predict --images {folder} --checkpoint "
        f"{checkpoint} {' '.join(CPU)} --output {tmp_path / 'o.csv'} {redirection}",
        PYTHONIOENCODING="ascii")
    assert result.returncode == 0 and len(labels_of(tmp_path / "o.csv")) == 22, result.stderr
    assert "Traceback" not in result.stderr


def test_a_loop_of_links_as_an_output_is_one_line(inputs, tmp_path):
    os.symlink("loop.csv", tmp_path / "loop.csv")
    result = run_script(P1, "predict", *PHOTOS, "--output", tmp_path / "loop.csv", cwd=inputs)
    line, = error_lines(result)
    assert result.returncode == 1 and "Too many levels of symbolic links" in line


# --- folders ------------------------------------------------------------------------------------


def test_dead_links_and_other_kinds_are_told(tmp_path, photos, checkpoint):
    folder = shutil.copytree(photos, tmp_path / "photos")
    os.symlink("nowhere.jpg", folder / "1_dead.jpg")
    (folder / "2_x.jxl").write_bytes(b"")
    result = run_script(P1, "predict", "--images", folder, "--checkpoint", checkpoint, *CPU,
                        "--output", tmp_path / "o.csv")
    lines = error_lines(result)
    assert result.returncode == 3 and len(labels_of(tmp_path / "o.csv")) == 12
    assert "1 images of other kinds are left out (2_x.jxl)" in lines[0]
    assert lines[1:] == [f"unreadable: {folder / '1_dead.jpg'}: a link to nowhere.jpg, which is "
                         "not there"]


def test_embeddings_are_kept_of_a_folder_with_a_dead_link(tmp_path):
    folder = make_folder(tmp_path / "photos", 1)
    os.symlink("nowhere.jpg", folder / "1_dead.jpg")
    (tmp_path / "names.json").write_text('{"0": "a cat", "1": "a dog"}')
    for _ in range(2):
        result = run_script(CLIP, "predict", "--images", folder, "--labels",
                            tmp_path / "names.json", "--output", tmp_path / "o.csv",
                            "--embeddings", tmp_path / "e.npz", *CPU)
        assert result.returncode == 3, result.stderr
        assert len(labels_of(tmp_path / "o.csv")) == 3
    assert "embeddings of 4 images from" in result.stderr


def test_a_photo_called_sheet_keeps_its_figure(tmp_path, photos, checkpoint):
    shutil.copy(photos / "0_000.png", tmp_path / "sheet.png")
    shutil.copy(photos / "1_000.png", tmp_path / "other.png")
    out = tmp_path / "out"
    result = run_script(MAPS, "--images", tmp_path / "sheet.png", tmp_path / "other.png",
                        "--checkpoint", checkpoint, *CPU, "--output", out)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == ["_sheet.png", "other.png", "sheet.png"]
    assert str(out / "_sheet.png") in result.stderr


def test_two_photos_of_one_name_from_two_folders(tmp_path, photos):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(photos / "0_000.png", tmp_path / name / "x.png")
    (tmp_path / "names.json").write_text('{"0": "a cat", "1": "a dog"}')
    images = [tmp_path / name / "x.png" for name in ("a", "b")]
    result = run_script(CLIP, "top5", "--images", *images, "--labels", tmp_path / "names.json",
                        "--output", tmp_path / "o.png")
    assert result.returncode == 1 and "one name" in error_lines(result)[0]


# --- labels -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder as the Oxford-IIIT Pets come, and a classifier that was trained on their names."""
    folder = tmp_path_factory.mktemp("pets")
    for label, name in enumerate(("american_bulldog", "american_pit_bull_terrier", "Abyssinian")):
        for number in range(4):
            make_photo(folder / "photos" / f"{name}_{number}.png", label, seed=number)
    result = run_script(P1, "train", "--train", folder / "photos", "--val", folder / "photos",
                        "--out", folder / "out", "--model", "test_vit", "--image-size", "32",
                        "--epochs", "1", "--workers", "0", *CPU)
    return folder, result


def test_breeds_of_several_words_are_classes_of_their_own(pets, tmp_path):
    folder, result = pets
    assert result.returncode == 0, result.stderr
    assert "before the last _ of each file name: 3 classes in 12 images" in result.stderr
    result = run_script(P1, "eval", "--images", folder / "photos", *CPU, "--checkpoint",
                        folder / "out" / "best.safetensors")
    assert set(json.loads(result.stdout)["per_class"]) == {
        "american_bulldog", "american_pit_bull_terrier", "Abyssinian"}


@pytest.mark.parametrize("write", [lambda label: f"{label}.0", lambda label: f"name {label}",
                                   lambda label: f"NAME_{label}"])
def test_a_table_with_numbers_or_names_for_labels(tmp_path, photos, checkpoint, write):
    table = tmp_path / "t.csv"
    table.write_text("\ufefffilename,label\n" + "".join(
        f"{path.name},{write(path.name[0])}\n" for path in photos.iterdir()), encoding="utf-8")
    words = ["eval", "--images", photos, "--checkpoint", checkpoint, *CPU]
    expected, found = (json.loads(run_script(P1, *words, *more).stdout)
                       for more in ([], ["--labels", table]))
    assert found["correct"] == expected["correct"] and found["total"] == 12


def test_a_label_that_is_unknown_or_given_twice(tmp_path, photos, checkpoint):
    table = tmp_path / "t.csv"
    rows = [f"{path.name},name 0\n" for path in photos.iterdir()]
    for row, message in ((f"{rows[0].partition(',')[0]},name 1\n", "twice, with label name 0"),
                         ("", "label nam 0 (did you mean name 0?)")):
        spelled = rows if row else [line.replace("name", "nam") for line in rows]
        table.write_text("".join(["filename,label\n", *spelled, row]))
        result = run_script(P1, "eval", "--images", photos, "--labels", table, "--checkpoint",
                            checkpoint, *CPU)
        line, = error_lines(result)
        assert result.returncode == 1 and message in line, line


def test_pairs_with_two_texts_for_one_image_are_refused(tmp_path, photos):
    table = tmp_path / "pairs.csv"
    table.write_text(f"image,text\n{photos / '0_000.png'},a cat\n{photos / '0_000.png'},a dog\n")
    result = run_script(CLIP, "train", "--checkpoint", ROOT / "ckpt" / "clip_vit_tiny.safetensors",
                        "--pairs", table, "--out", tmp_path / "out", "--epochs", "1", *CPU)
    line, = error_lines(result)
    assert result.returncode == 1 and "twice, with text a cat and with text a dog" in line


def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path):
    (tmp_path / "t.txt").write_text("\ufeffa photo of a {}\r\n", encoding="utf-8")
    (tmp_path / "names.json").write_text('\ufeff{"0": "a cat", "1": "a dog"}', encoding="utf-8")
    make_folder(tmp_path / "photos", 1)
    result = run_script(CLIP, "top5", "--images", tmp_path / "photos", "--labels",
                        tmp_path / "names.json", "--template", tmp_path / "t.txt", *CPU,
                        "--output", tmp_path / "o.png")
    assert json.loads(result.stdout)["templates"] == ["a photo of a {}"], result.stderr


# --- environments, and numbers ------------------------------------------------------------------


def test_ranks_left_in_the_environment_do_not_stop_a_training(tmp_path, photos):
    def train(name, **environment):
        return run_script(P1, "train", "--train", photos, "--out", tmp_path / name, "--model",
                          "test_vit", "--image-size", "32", "--epochs", "1", "--workers", "0",
                          *CPU, **environment)

    result = train("one", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    assert result.returncode == 0, result.stderr
    result = train("two", RANK="1", WORLD_SIZE="2")
    assert result.returncode == 1 and "WORLD_SIZE=2 is set, but torchrun did not" in (
        error_lines(result)[-1])


def test_a_script_finds_its_modules_where_python_does_not_look(tmp_path, photos, checkpoint):
    result = bash(ROOT / "hw3_1.sh", photos, tmp_path / "o.csv", cwd=tmp_path, PYTHONSAFEPATH="1",
                  HW3_P1_CKPT=str(checkpoint))
    assert result.returncode == 0 and len(labels_of(tmp_path / "o.csv")) == 12, result.stderr


@pytest.mark.parametrize("words, option", [
    ([P2, "predict", "--output", "o.json", "--length-penalty", "1e308"], "--length-penalty"),
    ([WORDS, "--length-penalty", "1e308"], "--length-penalty"),
    ([PEFT, "predict", "--output", "o.json", "--length-penalty", "101"], "--length-penalty"),
    ([P1, "predict", "--output", "o.csv", "--seed", "-1"], "--seed"),
    ([P1, "predict", "--output", "o.csv", "--batch-size", "99999999999999999999"], "--batch-size"),
])
def test_numbers_that_cannot_be_used_are_wrong_usage(words, option, tmp_path):
    result = run_script(*words, cwd=tmp_path)
    line, = error_lines(result)
    assert result.returncode == 2 and option in line


def test_a_page_that_was_saved_as_a_photo(tmp_path, photos, checkpoint):
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "0_page.jpg").write_text("<html>not found</html>")
    content = make_photo(tmp_path / "whole.jpg", size=(320, 320)).read_bytes()
    (folder / "0_cut.jpg").write_bytes(content[:-2])
    (folder / "0_half.jpg").write_bytes(content[:len(content) // 2])
    result = run_script(P1, "predict", "--images", folder, "--checkpoint", checkpoint, *CPU,
                        "--output", tmp_path / "o.csv")
    assert result.returncode == 3 and set(labels_of(tmp_path / "o.csv")) == {
        *(path.name for path in photos.iterdir()), "0_cut.jpg"}
    said = "\n".join(error_lines(result))
    assert "0_cut.jpg: the end of the file is missing, and with it 0.0% of the rows" in said
    assert "0_page.jpg: not an image" in said and "0_half.jpg: the file is cut off: " in said
