"""Folders, photos and labels as people have them, which other programs were seen to get wrong."""

from __future__ import annotations

import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import zlib
from pathlib import Path

from utils import UserError

import numpy as np
import pytest
from conftest import ROOT, make_photo
from PIL import Image, PngImagePlugin

from data import formats, jpeg, photos
from data.batches import read_batches
from data.captions import match_predictions, read_captions, read_predictions
from data.labels import class_indices, labels_in_names, read_labels
from data.photos import free_stem, image_paths, list_images, load_image, refuse_to_replace
from data.transform import Transform
from data.wordnet import read_frequencies, read_nouns
from training.processes import RANKS, explained_workers, forget_ranks

HALF = (0.5, 0.5, 0.5)


def names_of(paths):
    return [path.name for path in paths]


# --- which files are images ---------------------------------------------------------------------


def test_a_link_that_leads_nowhere_is_an_unreadable_file(tmp_path):
    make_photo(tmp_path / "a.png")
    os.symlink("nowhere.jpg", tmp_path / "b.jpg")
    os.symlink("c.jpg", tmp_path / "c.jpg")
    os.symlink("a.png", tmp_path / "d.png")
    paths, bad = list_images(tmp_path), []
    assert names_of(paths) == ["a.png", "b.jpg", "c.jpg", "d.png"]
    batches = list(read_batches(paths, Transform((8, 8), HALF, HALF), 4,
                                lambda path, why: bad.append((path.name, why))))
    assert names_of(batches[0][0]) == ["a.png", "d.png"]
    assert bad == [("b.jpg", "a link to nowhere.jpg, which is not there"),
                   ("c.jpg", "a link to c.jpg, which is not there")]


def test_images_that_are_not_read_are_counted_in_one_line(tmp_path, capsys):
    make_photo(tmp_path / "a.png")
    for name in ("b.svg", "C.JXL", "d.jp2", ".hidden.svg", "notes.txt", "BMW.txt"):
        (tmp_path / name).write_text("BM is not always a bitmap")
    shutil.copy(tmp_path / "a.png", tmp_path / "IMG_0001")
    shutil.copy(tmp_path / "a.png", tmp_path / "e.jpg_large")
    assert names_of(list_images(tmp_path)) == ["a.png"]
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}: 5 images of other kinds are left out (C.JXL, IMG_0001, ")
    assert "convert them to one of the kinds that are read: " in line and " jpg " in line
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="no image in .*; 5 images of other kinds are left out"):
        list_images(tmp_path)
    assert not capsys.readouterr().err


def test_avif_and_jfif_are_read(tmp_path, capsys):
    photo = Image.open(make_photo(tmp_path / "a.png"))
    photo.save(tmp_path / "b.jpg")
    (tmp_path / "b.jpg").rename(tmp_path / "b.jfif")
    photo.save(tmp_path / "c.AVIF", "AVIF")
    paths = list_images(tmp_path)
    assert names_of(paths) == ["a.png", "b.jfif", "c.AVIF"] and not capsys.readouterr().err
    for path in paths[1:]:
        difference = np.asarray(load_image(path)).astype(int) - np.asarray(photo)
        assert np.abs(difference).mean() < 25


def test_heif_is_read_where_its_reader_is_installed(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(UserError, match="other kinds are left out .a.heic.; convert"):
        list_images(tmp_path)
    with pytest.raises(ValueError, match="a HEIF file.*pip install pillow-heif"):
        load_image(tmp_path / "a.heic")
    # A reader that takes the place of pillow-heif, which is no requirement.
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', lambda file, name: Image.new('RGB', (3, 2), 'red'),\n"
        "                        lambda head: head[4:12] == b'ftypheic')\n")
    monkeypatch.syspath_prepend(tmp_path)
    formats.readable_extensions.cache_clear()
    try:
        path, = list_images(tmp_path)
        assert load_image(path).getpixel((0, 0)) == (255, 0, 0)
    finally:
        formats.readable_extensions.cache_clear()
        sys.modules.pop("pillow_heif", None)
        Image.ID.remove("HEIF")
        del Image.OPEN["HEIF"]


def test_a_file_that_is_named_must_be_there(tmp_path):
    os.symlink("nowhere", tmp_path / "a.jpg")
    with pytest.raises(UserError, match="is no file"):
        image_paths([tmp_path / "a.jpg", make_photo(tmp_path / "b.png")])


# --- large and damaged photos -------------------------------------------------------------------


def test_a_photo_of_200_megapixels_is_read_in_bounded_memory(tmp_path):
    Image.new("L", (16320, 12240), 130).save(tmp_path / "a.jpg", quality=30)
    Image.new("L", (16320, 12240), 130).save(tmp_path / "b.png", compress_level=1)
    code = ("import re, sys\nfrom data.transform import Transform\n"
            "transform = Transform((224, 224), (.5,) * 3, (.5,) * 3, crop_pct=0.9)\n"
            "pixels = transform.load(sys.argv[1])\n"
            "assert pixels.shape == (224, 224, 3) and abs(pixels.mean() - 130) < 3\n"
            "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) >> 10)")
    for name, megabytes in (("a.jpg", 150), ("b.png", 400)):
        result = subprocess.run([sys.executable, "-c", code, tmp_path / name], cwd=ROOT,
                                capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert int(result.stdout) < megabytes, name


@pytest.mark.parametrize("mode, name", [
    ("RGB", "a.jpg"), ("RGB", "a.png"), ("RGBA", "a.png"), ("P", "a.png"), ("1", "a.png"),
    ("I;16", "a.png"), ("CMYK", "a.tif"), ("LA", "a.png")])
def test_a_large_photo_is_the_same_made_smaller(tmp_path, monkeypatch, mode, name):
    y, x = np.mgrid[0:310, 0:417]
    waves = 127 + 60 * np.sin(x / 40) + 60 * np.cos(y / 55)
    image = Image.fromarray(np.stack([waves, waves[::-1], waves], -1).astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray((waves * 250).astype(np.uint16))
    elif mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray((x / 2).astype(np.uint8)))
        image = image.convert(mode)
    else:
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    image.save(tmp_path / name, exif=exif)
    transform = Transform((32, 32), HALF, HALF)
    whole, expected = load_image(tmp_path / name), transform.load(tmp_path / name)
    monkeypatch.setattr(photos, "LARGE", 10_000)
    assert np.abs(transform.load(tmp_path / name).astype(int) - expected).mean() < 3
    monkeypatch.setattr(photos, "LARGE_KEPT", (50, 60))
    small = load_image(tmp_path / name)
    assert small.mode == "RGB" and small.size < whole.size and min(small.size) >= 50
    assert small.width / small.height == pytest.approx(whole.width / whole.height, rel=0.03)


def test_absurd_sizes_are_refused(tmp_path, monkeypatch):
    def chunk(kind, content):
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    for side in (20_000, 2_000_000):
        size = side.to_bytes(4, "big") * 2
        (tmp_path / "a.png").write_bytes(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\0\0\0")
            + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))
        with pytest.raises(ValueError, match="too many pixels"):
            load_image(tmp_path / "a.png", (8, 8))
    image = Image.new("RGB", (400, 400))
    image.save(tmp_path / "a.jpg", progressive=True)
    monkeypatch.setattr(photos, "MOST", 100_000)
    with pytest.raises(ValueError, match="too many pixels"):  # is held whole before it is reduced
        load_image(tmp_path / "a.jpg", (8, 8))
    image.save(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg", (8, 8)).size == (50, 50)


def test_large_photos_are_read_one_at_a_time(tmp_path, monkeypatch):
    path = make_photo(tmp_path / "a.png", size=(300, 300))
    monkeypatch.setattr(photos, "LARGE", 10_000)
    inside, most, decode = [0], [0], photos._decoded

    def counted(*rest):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        result = decode(*rest)
        inside[0] -= 1
        return result

    monkeypatch.setattr(photos, "_decoded", counted)
    threads = [threading.Thread(target=load_image, args=(path,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_text_and_colour_profiles_of_megabytes_do_no_harm(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "a workflow " * 300_000, zip=True)
    info.add_itxt("parameters", "x" * 3_000_000, zip=True)
    image = Image.new("RGB", (9, 6), "red")
    image.save(tmp_path / "text.png", pnginfo=info)
    image.save(tmp_path / "profile.png", icc_profile=bytes(3_000_000))
    for name in ("text.png", "profile.png"):
        assert load_image(tmp_path / name).size == (9, 6)


def noisy_jpeg(size=(320, 1600), **options):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0},
                                     {"restart_marker_rows": 1}])
def test_a_jpeg_without_its_last_bytes_is_whole(tmp_path, capsys, options):
    content = noisy_jpeg(**options)
    (tmp_path / "whole.jpg").write_bytes(content)
    expected = np.asarray(load_image(tmp_path / "whole.jpg"))
    for missing in (1, 2):
        path = tmp_path / f"{missing}.jpg"
        path.write_bytes(content[:-missing])
        for _ in range(2):
            np.testing.assert_array_equal(load_image(path), expected)
        load_image(path, (8, 8))
        assert capsys.readouterr().err == (
            f"{path}: the end of the file is missing, and with it 0.0% of the rows\n")


def test_how_much_of_a_cut_jpeg_is_accepted(tmp_path, capsys):
    content = noisy_jpeg((1600, 3200))
    path = tmp_path / "cut.jpg"
    path.write_bytes(content[:-200])  # part of the last 16 of 3,200 rows
    kept = np.asarray(load_image(path))
    assert "and with it 0.5% of the rows" in capsys.readouterr().err
    whole = np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(kept[:3180], whole[:3180])
    path.write_bytes(content[:-len(content) // 50])
    for at_least in (None, (224, 224), (1, 1)):
        with pytest.raises(ValueError, match="cut off: [23]% of the rows are missing"):
            load_image(path, at_least)


def test_scans_that_are_missing_count_as_all_rows(tmp_path):
    """A progressive photo that ends between two scans has all its rows, but few details."""
    content = noisy_jpeg(progressive=True)
    scans = [place for place in range(len(content)) if content[place:place + 2] == b"\xff\xda"]
    assert len(scans) > 4
    for cut in (9, scans[2], scans[-1], scans[-1] + 5):
        with pytest.raises(ValueError, match="100% of the rows are missing"):
            jpeg.decode_cut(content[:cut], None)
    assert jpeg.decode_cut(content[:-2], None)[1] == 0


def test_other_threads_do_not_accept_what_is_cut(tmp_path):
    """Pillow's own switch for such files, LOAD_TRUNCATED_IMAGES, is for all threads and kinds."""
    content = noisy_jpeg()
    (tmp_path / "a.jpg").write_bytes(content[:-2])
    (tmp_path / "b.jpg").write_bytes(content[:len(content) // 2])
    png = make_photo(tmp_path / "c.png", size=(200, 200)).read_bytes()
    (tmp_path / "c.png").write_bytes(png[:len(png) // 2])
    for name in "abc" * 3:
        path, = tmp_path.glob(f"{name}.*")
        if name == "a":
            load_image(path)
        else:
            with pytest.raises(ValueError):
                load_image(path)


@pytest.mark.parametrize("content, reason", [
    (b"<html>not found</html>", "not an image"), (b"", "empty file"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL file that Pillow cannot read"),
])
def test_why_a_file_is_no_photo(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=f"^{reason}$"):
        load_image(tmp_path / "a.jpg")


# --- names of figures ---------------------------------------------------------------------------


def test_a_figure_of_the_scripts_own_gets_a_free_name():
    def free(*names):
        return free_stem("sheet", [Path("photos", name) for name in names])

    assert free("a.jpg", "sheets.jpg", "sheet_a.jpg", "my_sheet.jpg") == "sheet"
    assert free("sheet.jpg") == free("Sheet.PNG") == free("sheet_2.png") == "_sheet"
    assert free("sheet.jpg", "_sheet.jpg") == "__sheet"


def test_no_figure_replaces_a_photo_under_any_of_its_names(tmp_path):
    photo = make_photo(tmp_path / "a.png")
    os.link(photo, tmp_path / "hard.png")
    os.symlink(photo, tmp_path / "link.png")
    for name in ("a.png", "hard.png", "link.png"):
        with pytest.raises(UserError, match="would replace a photo"):
            refuse_to_replace([photo], [tmp_path / "new.png", tmp_path / name])
    refuse_to_replace([photo], [tmp_path / "new.png"])


# --- labels -------------------------------------------------------------------------------------

PETS = ["american_bulldog_1.jpg", "american_pit_bull_terrier_1.jpg", "Abyssinian_12.jpg",
        "american_bulldog_203.jpg"]
NAMES = {"0": "Abyssinian", "1": "American Bulldog", "2": "american_pit_bull_terrier"}


@pytest.mark.parametrize("names, known, labels, rule", [
    (PETS, None, ["american_bulldog", "american_pit_bull_terrier", "Abyssinian",
                  "american_bulldog"], "last"),
    (["26_5064.jpg", "3_1.jpg"], None, ["26", "3"], None),
    (["0_cat_2.jpg", "11_dog_30.jpg", "1_x.jpg"], None, ["0", "11", "1"], "first"),
    (["cat_a.jpg", "dog_b_c.jpg", "dog_3.jpg"], None, ["cat", "dog", "dog"], "first"),
    (PETS, ["american", "Abyssinian"], ["american", "american", "Abyssinian", "american"],
     "first"),
    (PETS, NAMES, ["1", "2", "0", "1"], "last"),
    (["0_cat_2.jpg", "1_dog_1.jpg"], ["0_cat", "1_dog"], ["0_cat", "1_dog"], "last"),
    (["0_cat_2.jpg", "1_dog_1.jpg"], ["0", "1"], ["0", "1"], "first"),
    (["a_b_1.jpg", "c_d_2.jpg"], ["x", "y"], ["a_b", "c_d"], "last"),  # neither is known
    (["shiba_inu_x.jpg"], {"7": "shiba inu"}, ["7"], "last"),
    (["cat_1.jpg", "dog_IMG.jpg"], None, ["cat", "dog"], None),
])
def test_which_part_of_a_name_is_the_label(capsys, names, known, labels, rule):
    paths = [Path("folder", name) for name in names]
    assert read_labels(paths, known_classes=known) == labels == labels_in_names(paths, known)
    said = (f"the labels are what stands before the {rule} _ of each file name: "
            f"{len(set(labels))} classes in {len(names)} images\n")
    assert capsys.readouterr().err == (said if rule else "")  # nothing where there is no choice


def test_names_without_a_label(tmp_path):
    paths = [tmp_path / "a_1.jpg", tmp_path / "x.jpg", tmp_path / "_1.jpg"]
    assert labels_in_names(paths) == ["a", "", ""]
    with pytest.raises(UserError, match="x.jpg carries no label"):
        read_labels(paths)


@pytest.mark.parametrize("written, known, labels", [
    ("11.0 3.0", NAMES | {"11": "pug", "3": "boxer"}, ["11", "3"]),
    ("11.0 3.0", None, ["11", "3"]), ("11.0 3", None, ["11", "3"]),
    ("11.0 cat", None, ["11.0", "cat"]), ("1.5 2.0", None, ["1.5", "2.0"]),
    ("ABYSSINIAN American_Bulldog", NAMES, ["0", "1"]), ("0 2.0", ["0", "2"], ["0", "2"]),
    ("11.0 3", ["11.0", "3"], ["11.0", "3"]),  # trained with such labels
])
def test_labels_of_a_table_as_a_checkpoint_calls_them(tmp_path, written, known, labels):
    paths = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    first, second = written.split()
    (tmp_path / "t.csv").write_text(f"filename,label\na.jpg,{first}\nb.jpg,{second}\n")
    assert read_labels(paths, tmp_path / "t.csv", known) == labels


def test_two_labels_of_one_photo_are_refused(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("filename,label\na.jpg,1\nb.jpg,1\na.jpg,2\n")
    with pytest.raises(UserError, match="t.csv gives a.jpg twice, with label 1 and with label 2"):
        read_labels([tmp_path / "b.jpg"], table)


def test_an_unknown_label_is_told_with_what_is_near_to_it():
    with pytest.raises(UserError) as problem:
        class_indices(["0", "Abysinian"], NAMES, "t.csv")
    assert str(problem.value) == (
        "label Abysinian (did you mean Abyssinian?) in t.csv is none of the model's 3 labels "
        "(0 Abyssinian … 2 american_pit_bull_terrier); correct it, or use a checkpoint that was "
        "trained with this label")
    with pytest.raises(UserError, match=r"label 7 in t.csv is none of the model's 1 labels \(0 …"):
        class_indices(["7"], ["0"], "t.csv")
    assert class_indices(["2", "0"], NAMES, "t.csv").tolist() == [2, 0]


# --- captions -----------------------------------------------------------------------------------


def test_an_image_twice_in_caption_files_is_refused(tmp_path):
    file = tmp_path / "c.json"
    image = '{"file_name": "a.jpg", "id": 1}'
    for images in (f"{image}, {image}", f'{image}, {{"file_name": "a.jpg", "id": 2}}'):
        file.write_text(f'{{"images": [{images}], "annotations": []}}')
        with pytest.raises(UserError, match="lists an image twice"):
            read_captions(file)
    file.write_text('{"a.jpg": "a dog", "a.jpg": "a cat"}')
    with pytest.raises(UserError, match="stands twice"):
        read_predictions(file)
    for other in ("a", "a.png", "a.heic"):
        with pytest.raises(UserError, match=f"predictions a.jpg and {other} are of one image"):
            match_predictions({"a.jpg": "a dog", other: "a cat"}, {"a.jpg": ["a dog"]})


# --- WordNet ------------------------------------------------------------------------------------


def test_wordnet_with_a_byte_order_mark(tmp_path):
    line = "00001740 03 n 01 entity 0 000 | that which is"
    (tmp_path / "data.noun").write_bytes(f"\ufeff  1 licence\r\n{line}\r\n".encode())
    (tmp_path / "index.sense").write_bytes("\ufeffentity%1:03:00:: 00001740 1 11\n".encode())
    assert read_nouns(tmp_path)[1740].names == ("entity",)
    assert read_frequencies(tmp_path) == {("entity", 1740): 11}
    for name, read in (("data.noun", read_nouns), ("index.sense", read_frequencies)):
        (tmp_path / name).write_text("<html>\n")
        with pytest.raises(UserError, match=f"{name} is damaged, or not WordNet's: <html>"):
            read(tmp_path)


# --- processes of a training --------------------------------------------------------------------


def test_ranks_that_something_left_in_the_environment(monkeypatch):
    for name in RANKS:
        monkeypatch.setenv(name, "1")
    forget_ranks()
    assert not set(RANKS) & set(os.environ)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE=2 is set, but torchrun did not start.*unset "):
        forget_ranks()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    forget_ranks()
    assert os.environ["WORLD_SIZE"] == "2"


class Killed:
    """A dataset that the system kills its reader for, as it does where /dev/shm is full."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), signal.SIGBUS)


def test_a_reading_process_that_is_killed_is_told_with_what_helps():
    from torch.utils.data import DataLoader

    with pytest.raises(UserError, match="failed: DataLoader worker.*; give --workers 0"), \
            explained_workers(1):
        list(DataLoader(Killed(), num_workers=1))
    for text in ("unable to write to file </torch_1_2_3>: No space left on device (28)",
                 "unable to open shared memory object", "received 0 items of ancdata"):
        with pytest.raises(UserError, match="give --workers 0"), explained_workers(2):
            raise RuntimeError(text)
    for count, text in ((0, "shared memory"), (2, "mat1 and mat2 shapes cannot be multiplied")):
        with pytest.raises(RuntimeError), explained_workers(count):
            raise RuntimeError(text)


# --- vocabularies -------------------------------------------------------------------------------


def test_vocabularies_as_other_systems_save_them(tmp_path):
    from models.tokenizer import gpt2_tokenizer, wordpiece_tokenizer

    vocabulary = '{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}'
    for encoding, line_end in (("utf-8", "\n"), ("utf-8-sig", "\r\n")):
        def save(name, *lines, encoding=encoding, line_end=line_end):
            (tmp_path / name).write_bytes(line_end.join([*lines, ""]).encode(encoding))
            return tmp_path / name

        pieces = wordpiece_tokenizer(save("vocab.txt", "dog", "[PAD]", "[UNK]", "[CLS]", "[SEP]"))
        assert pieces.encode("dog cat") == [0, 2]
        for first in ([], ["#version: 0.2"]):
            letters = gpt2_tokenizer(save("encoder.json", vocabulary),
                                     save("vocab.bpe", *first, "a b"))
            assert letters.encode("aba") == [2, 0]
