"""Folders, labels, photos and the geometry of a transform."""

from __future__ import annotations

import tracemalloc

from utils import UserError

import numpy as np
import pytest
import torch
from conftest import make_photo
from PIL import Image

from data.augmentation import AUGMENTATIONS, augmentation
from data.batches import LabelledImages, read_batches
from data.files import read_csv, read_table
from data.folders import spread
from data.labels import (
    hold_out_tenth,
    labelled_folders,
    read_labels,
    sort_labels,
)
from data.photos import list_images, load_image, refuse_unreadable
from data.transform import Transform

HALF = (0.5, 0.5, 0.5)


def transform(size=(32, 32), **options):
    return Transform(size, HALF, HALF, **options)


def test_listing_is_sorted_and_takes_every_kind_in_any_case(tmp_path):
    # PEERS: glob('*.png') dropping other types
    names = ["b.PNG", "a.b.JPG", "c.webp", "d.bmp", "e.gif", "f.tif", "g.TIFF", "h.jpeg", "é ü.jpg"]
    for name in names:
        make_photo(tmp_path / name)
    for name in (".hidden.jpg", "._resource.jpg", "note.txt"):
        (tmp_path / name).write_text("no image")
    make_photo(tmp_path / "folder.jpg" / "inner.jpg")
    assert [path.name for path in list_images(tmp_path)] == sorted(names)


def test_limit_spreads_over_the_classes(tmp_path):
    for label in range(4):
        for number in range(5):
            make_photo(tmp_path / f"{label}_{number}.png")
    chosen = list_images(tmp_path, limit=4)
    assert [path.name[0] for path in chosen] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("count, kept", [
    (1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (7, list(range(7))), (8, list(range(7))),
    (None, list(range(7))),
])
def test_a_number_of_items_is_spread_evenly_and_in_order(count, kept):
    assert spread(range(7), count) == kept


@pytest.mark.parametrize("make, message", [
    (lambda folder: folder / "nowhere", "does not exist"),
    (lambda folder: make_photo(folder / "x.png"), "is a file"),
    (lambda folder: folder, "no image in"),
])
def test_folders_that_cannot_be_listed(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        list_images(make(tmp_path))


def test_labels_from_csv_and_from_names(tmp_path):
    paths = [tmp_path / "3_a_b.jpg", tmp_path / "x.jpg"]
    assert read_labels(paths[:1]) == ["3"]
    with pytest.raises(UserError, match="x.jpg carries no label"):
        read_labels(paths)
    table = tmp_path / "labels.csv"
    table.write_text("filename,label\n3_a_b.jpg,7\nx.jpg,8\n")
    assert read_labels(paths, table) == ["7", "8"]
    table.write_text("filename,label\nx.jpg,8\n")
    with pytest.raises(UserError, match="no label for 1 of 2 images, the first is 3_a_b.jpg"):
        read_labels(paths, table)
    table.write_text("image_id,label\nx.jpg,8\n")
    with pytest.raises(UserError, match="header filename,label"):
        read_labels(paths, table)


def test_columns_of_tables_are_found_in_any_case(tmp_path):
    table = tmp_path / "scores.csv"
    table.write_text("File,CIDEr\nx.jpg,0.5\n")
    assert read_csv(table, "file", "CIDEr") == [{"file": "x.jpg", "CIDEr": "0.5"}]
    assert read_table(table) == [["File", "CIDEr"], ["x.jpg", "0.5"]]
    table.write_text("")
    with pytest.raises(UserError, match="is empty"):
        read_table(table)


def test_labels_sort_by_number_or_by_text():
    assert sort_labels(["10", "2", "2", "0"]) == ["0", "2", "10"]
    assert sort_labels(["10", "cat", "2"]) == ["10", "2", "cat"]


def test_the_held_out_tenth_is_fixed_and_balanced(tmp_path):
    labels = ["0"] * 100 + ["1"] * 20 + ["2"] * 4
    paths = [tmp_path / f"{label}_{number:03}.jpg" for number, label in enumerate(labels)]
    train, held_out = hold_out_tenth(paths, labels)
    assert sorted(train + held_out) == list(range(124))
    counts = {label: sum(labels[i] == label for i in held_out) for label in "012"}
    assert counts == {"0": 4, "1": 4, "2": 1}
    assert [i for i in held_out if i < 100] == [12, 37, 62, 87]
    backwards = hold_out_tenth(paths[::-1], labels[::-1])[1]
    assert {paths[::-1][i] for i in backwards} == {paths[i] for i in held_out}
    with pytest.raises(UserError, match="too few"):
        hold_out_tenth(paths[:1], labels[:1])


def test_labelled_folders_validate_on_a_folder_on_a_tenth_or_on_nothing(tmp_path):
    for number in range(12):
        make_photo(tmp_path / "train" / f"{number % 2}_{number}.png")
    make_photo(tmp_path / "val" / "1_x.png")
    names, labels = labelled_folders(tmp_path / "train", tmp_path / "val", False)[1]
    assert [path.name for path in names] == ["1_x.png"] and labels == ["1"]
    (paths, labels), (val_paths, val_labels) = labelled_folders(tmp_path / "train", None, True)
    assert sorted(val_labels) == ["0", "1"] and len(paths) == len(labels) == 10
    assert {*paths, *val_paths} == set(list_images(tmp_path / "train"))
    (paths, _), val = labelled_folders(tmp_path / "train", None, False, limit=4)
    assert len(paths) == 4 and val == ([], [])


def test_a_limit_keeps_an_image_of_each_label(tmp_path):
    # spread evenly over 2,111 photos of 37 kinds, 64 would miss the rare ones, and --val has them
    for number in range(20):
        make_photo(tmp_path / "train" / f"{'cat' if number else 'dog'}_{number}.png")
    make_photo(tmp_path / "val" / "dog_x.png")
    (paths, labels), _ = labelled_folders(tmp_path / "train", tmp_path / "val", False, limit=6)
    assert len({*paths}) == 6 and labels.count("dog") == 1
    assert paths == sorted(paths, key=list(list_images(tmp_path / "train")).index)
    assert len(labelled_folders(tmp_path / "train", None, False, limit=99)[0][0]) == 20
    with pytest.raises(UserError, match="--limit 1 is less than an image of each of the 2 labels"):
        labelled_folders(tmp_path / "train", None, False, limit=1)


# --- photos -------------------------------------------------------------------------------------


def test_sixteen_bits_are_rescaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        grey = np.asarray(load_image(tmp_path / name))[..., 0]
        assert np.abs(grey.astype(float) - ramp / 257).max() <= 1
    Image.fromarray(ramp.astype(np.float32) / 65535).save(tmp_path / "float.tif")
    grey = np.asarray(load_image(tmp_path / "float.tif"))[..., 0]
    assert np.abs(grey.astype(float) - ramp / 257).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "RGB"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    grey = Image.fromarray(np.full((6, 9), 200, np.uint8)).convert("RGB")
    grey = grey.quantize(4) if mode == "P" else grey.convert(mode)
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    grey.save(path)
    image = load_image(path)
    assert image.mode == "RGB" and image.size == (9, 6)
    assert mode == "1" or np.abs(np.asarray(image).astype(int) - 200).max() <= 3


def test_transparency_is_laid_over_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(load_image(tmp_path / "clear.png")).min() == 255


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (0, 0, 20, 20))  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise: the white half comes on top
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    pixels = np.asarray(load_image(tmp_path / "turned.jpg"))
    assert pixels.shape == (40, 20, 3) and pixels[:15].min() > 200 and pixels[25:].max() < 50


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(load_image(tmp_path / "two.gif"))[0, 0].tolist() == [255, 0, 0]


def test_work_that_needs_every_photo_stops_at_the_first_unreadable_one(tmp_path):
    refuse_unreadable([])
    with pytest.raises(UserError, match="a.png cannot be read: empty file; repair or remove it"):
        refuse_unreadable([(tmp_path / "a.png", "empty file"), (tmp_path / "b.png", "text")])


def test_unreadable_files_have_a_short_reason(tmp_path):
    whole = make_photo(tmp_path / "whole.jpg", size=(200, 200)).read_bytes()
    cases = {"text.jpg": b"hello", "zero.png": b"", "cut.jpg": whole[: len(whole) // 2]}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError) as problem:
            load_image(tmp_path / name)
        assert 0 < len(str(problem.value)) < 120 and "\n" not in str(problem.value)


# --- transform ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(341, 256), (256, 384), (300, 225), (97, 1013), (224, 224)])
@pytest.mark.parametrize("crop_pct", [0.9, 0.95, 1.0])
def test_crop_equals_timms_evaluation_transform(size, crop_pct):
    from timm.data import create_transform

    photo = Image.effect_noise(size, 30).convert("RGB")
    theirs = create_transform((3, 224, 224), interpolation="bicubic", crop_pct=crop_pct,
                              mean=HALF, std=HALF)(photo)
    ours = transform((224, 224), crop_pct=crop_pct)
    batch = torch.from_numpy(ours(photo).copy())[None]
    difference = 127.5 * (ours.normalize(batch)[0] - theirs).abs()  # in grey levels
    assert difference.max() <= 2.01 and difference.mean() < 0.3


@pytest.mark.parametrize("photo_size, size", [((400, 200), (32, 64)), ((200, 400), (64, 32)),
                                              ((300, 300), (32, 64))])
def test_the_box_is_inside_the_photo_and_has_the_shape_of_the_input(photo_size, size):
    left, top, right, bottom = transform(size, crop_pct=0.9).box(*photo_size)
    assert 0 <= left < right <= photo_size[0] and 0 <= top < bottom <= photo_size[1]
    assert (right - left) / (bottom - top) == pytest.approx(size[1] / size[0], rel=0.03)


def test_squash_sees_the_whole_photo():
    assert transform(resize="squash").box(300, 100) == (0, 0, 300, 100)


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1)])
def test_extreme_shapes_stay_small(tmp_path, shape):
    Image.new("RGB", shape, "red").save(tmp_path / "thin.png")
    tracemalloc.start()
    pixels = transform((224, 224), crop_pct=0.9).load(tmp_path / "thin.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels.shape == (224, 224, 3) and pixels[..., 0].min() == 255
    assert peak < 20e6


def test_skipping_jpeg_detail_changes_next_to_nothing(tmp_path):
    y, x = np.mgrid[0:1500, 0:2000]
    waves = 127 + 60 * np.sin(x / 40) + 60 * np.cos(y / 55)
    Image.fromarray(np.stack([waves] * 3, -1).astype(np.uint8)).save(tmp_path / "big.jpg")
    chosen = transform((224, 224), crop_pct=0.9)
    whole = chosen(load_image(tmp_path / "big.jpg")).astype(int)
    assert np.abs(chosen.load(tmp_path / "big.jpg").astype(int) - whole).mean() < 1


# --- batches ------------------------------------------------------------------------------------


def test_batches_keep_order_and_leave_out_the_unreadable(tmp_path):
    for number in range(11):
        make_photo(tmp_path / f"{number:02}.png", seed=number)
    (tmp_path / "04.png").write_bytes(b"")
    (tmp_path / "10.png").write_text("text")
    paths = list_images(tmp_path)
    bad = []
    batches = list(read_batches(paths, transform(), 4, lambda p, why: bad.append((p, why))))
    assert [path.name for names, _ in batches for path in names] == [
        f"{n:02}.png" for n in range(10) if n != 4]
    assert [len(pixels) for _, pixels in batches] == [4, 3, 2]
    assert [path.name for path, _ in bad] == ["04.png", "10.png"]
    np.testing.assert_array_equal(batches[1][1][0], transform().load(batches[1][0][0]))


def test_batches_of_nothing_readable(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    assert not list(read_batches([tmp_path / "a.png"], transform(), 4, lambda *_: None))


def test_a_sample_depends_on_seed_epoch_and_index_alone(tmp_path):
    paths = [make_photo(tmp_path / f"0_{n}.png", seed=n) for n in range(3)]
    augment = augmentation(["crop", "flip", "jitter", "rand"], transform())

    def sample(seed, epoch, index):
        images = LabelledImages(paths, [0, 1, 2], augment, seed)
        images.set_epoch(epoch)
        return images[index]

    state = torch.random.get_rng_state()
    first = sample(1, 2, 0)[0]
    assert torch.equal(torch.random.get_rng_state(), state), "the global state is left as it was"
    torch.rand(5)  # whatever was drawn before must not matter
    assert torch.equal(sample(1, 2, 0)[0], first)
    assert not torch.equal(sample(1, 2, 0)[0], sample(1, 3, 0)[0])
    assert not torch.equal(sample(1, 2, 0)[0], sample(2, 2, 0)[0])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_keeps_the_shape(tmp_path, name):
    image = load_image(make_photo(tmp_path / "a.png"))
    assert augmentation([name], transform((16, 24)))(image).size == (24, 16)
