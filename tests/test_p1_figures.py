"""p1_attn_map.py and p1_pos_embed_vis.py as a user runs them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from conftest import (
    TINY,
    error_lines,
    make_folder,
    make_photo,
    run_inside,
    run_script,
    write_classifier,
)
from PIL import Image

import p1_attn_map
import p1_pos_embed_vis as positions
from data.photos import list_images
from figures import maps
from inference.arrays import npz_writer
from metrics import faithfulness
from models import attention
from models.classifier import load_classifier
from models.positions import position_embedding, sincos2d

MAP, POSITIONS = "p1_attn_map.py", "p1_pos_embed_vis.py"
CPU = ["--device", "cpu", "--precision", "fp32"]


@pytest.fixture
def here(capsys):
    """As ``run_script(MAP, …)``, in this process."""
    return partial(run_inside, p1_attn_map, capsys=capsys)


# --- attention maps -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["last", "rollout", "relevance"])
def test_each_photo_has_its_own_map_and_figure(tmp_path, photos, checkpoint, here, method):
    run = partial(run_script, MAP) if method == "last" else here
    result = run("--images", photos, "--limit", "3", "--output", tmp_path, "--checkpoint",
                 checkpoint, "--method", method, "--npz", tmp_path / "maps.npz", "--batch-size",
                 "2", *CPU)
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    kept = np.load(tmp_path / "maps.npz")
    paths = list_images(photos, 3)
    assert kept["filenames"].tolist() == [path.name for path in paths]
    assert kept["maps"].shape == (3, 1, 2, 2) and printed["grid"] == [2, 2]
    classifier = load_classifier(checkpoint)
    transform = classifier.transform
    for path, ours, row in zip(paths, kept["maps"], printed["images"], strict=True):
        pixels = torch.from_numpy(transform.load(path).copy())[None]
        alone, logits = attention.attention_maps(
            classifier.model, transform.normalize(pixels), method)
        np.testing.assert_allclose(ours, alone[0].numpy(), atol=1e-5)
        assert row["filename"] == path.name and row["label"] == str(logits.argmax().item())
        assert row["probability"] == pytest.approx(logits.softmax(-1).max().item(), abs=1e-4)
        assert 0 <= row["entropy_bits"][0] <= 2.0001
        figure = path.stem if method == "last" else f"{path.stem}_{method}"
        assert (tmp_path / f"{figure}.png").exists() and Path(row["figure"]).stem == figure
    sheet = "sheet" if method == "last" else f"sheet_{method}"
    assert min(Image.open(tmp_path / f"{sheet}.png").size) > 300


def test_heads_layers_and_files(tmp_path, photos, checkpoint, here):
    paths = list_images(photos)[:2]
    result = here("--images", *paths, "--output", tmp_path / "new" / "folder", "--checkpoint",
                  checkpoint, "--heads", "each", "--layer", "0", "--npz", tmp_path / "maps.npz",
                  *CPU)
    assert result.returncode == 0, result.stderr
    heads = load_classifier(checkpoint).model.blocks[0].attn.num_heads
    assert np.load(tmp_path / "maps.npz")["maps"].shape == (2, heads, 2, 2)
    assert len(json.loads(result.stdout)["images"][0]["entropy_bits"]) == heads


def test_any_vit_of_timms_by_name(tmp_path, photos, here):
    result = here("--images", photos, "--limit", "1", "--output", tmp_path, "--model", TINY, *CPU)
    assert result.returncode == 0, result.stderr
    assert "random weights" in result.stderr
    printed = json.loads(result.stdout)
    assert printed["grid"] == [10, 10] and printed["images"][0]["name"]


def test_relevance_for_a_chosen_class(tmp_path, photos, checkpoint, here):
    found = []
    for name in ("0", "Name_1"):
        result = here("--images", photos, "--limit", "1", "--output", tmp_path, "--checkpoint",
                      checkpoint, "--method", "relevance", "--class", name, "--npz",
                      tmp_path / "maps.npz", *CPU)
        assert result.returncode == 0, result.stderr
        found.append(np.load(tmp_path / "maps.npz")["maps"])
    assert np.abs(found[0] - found[1]).max() > 1e-4


def test_several_classes_have_one_panel_each_and_their_difference(
        tmp_path, photos, checkpoint, here, monkeypatch):
    drawn = []
    monkeypatch.setattr(maps, "panel_sheet", lambda *parts: drawn.append(parts))
    result = here("--images", photos, "--limit", "1", "--output", tmp_path, "--checkpoint",
                  checkpoint, "--method", "relevance", "--class", "0", "name 1", "2", "--npz",
                  tmp_path / "maps.npz", *CPU)
    assert result.returncode == 0, result.stderr
    assert np.load(tmp_path / "maps.npz")["maps"].shape == (1, 3, 2, 2)
    (strip,), title = drawn[0][:2]
    names = [name for name, _ in strip]
    assert len(names) == 6 and names[0] == "photo"
    assert names[4:] == [f"{names[1]} - {names[2]}", f"{names[1]} - {names[3]}"]
    assert f"relevance for {', '.join(names[1:4])}" in title[1] and checkpoint.name in title[1]
    assert Path(json.loads(result.stdout)["images"][0]["figure"]).stem.endswith(
        "_relevance_0_name-1_2")


def test_one_photo_into_one_file(tmp_path, photos, checkpoint, here):
    result = here("--images", photos, "--limit", "1", "--output", tmp_path / "new" / "one.PNG",
                  "--checkpoint", checkpoint, *CPU)
    assert result.returncode == 0, result.stderr
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["one.PNG"]


def test_faithfulness_compares_every_method_with_chance(tmp_path, photos, checkpoint, here):
    result = here("--images", photos, "--limit", "3", "--output", tmp_path, "--checkpoint",
                  checkpoint, "--faithfulness", *CPU)
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert set(printed["area_under_curve"]) == {"last", "rollout", "relevance", "random"}
    for row in printed["area_under_curve"].values():
        assert 0 <= row["deletion"]["mean"] <= 1 and 0 <= row["insertion"]["mean"] <= 1


def test_faithfulness_of_one_photo_has_no_interval(tmp_path, photos, checkpoint, here):
    result = here("--images", photos / "0_000.png", "--output", tmp_path, "--checkpoint",
                  checkpoint, "--faithfulness", *CPU)
    table = json.loads(result.stdout, parse_constant=pytest.fail)  # NaN is no JSON
    assert table["area_under_curve"]["last"]["deletion"]["plus_minus"] is None


def test_a_random_order_is_the_same_in_every_batch():
    whole = faithfulness.random_order(4, 9, seed=1)
    parts = [faithfulness.random_order(2, 9, 1, first) for first in (0, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len({tuple(order) for order in whole}) == 4


def test_deletion_of_a_model_that_uses_one_patch():
    """The true patch first is the best order for deletion and for insertion alike."""
    photo, grey = np.ones((1, 3, 8, 8)), np.zeros((1, 3, 8, 8))
    right, wrong = (np.eye(4)[[patch]].reshape(1, 2, 2) for patch in (2, 1))

    def score(images):
        return images[:, 0, 4:, :4].mean((1, 2))  # patch 2 of a 2 × 2 grid

    areas = {}
    for name, one_hot in (("right", right), ("wrong", wrong)):
        order = faithfulness.most_important_first(one_hot)
        assert order[0, 0] == (2 if name == "right" else 1)
        curves = [faithfulness.curve(score, before, after, order, (2, 2), steps=4)
                  for before, after in ((photo, grey), (grey, photo))]
        areas[name] = [faithfulness.area_under(curve)[0] for curve in curves]
    assert areas["right"] == [0.125, 0.875]
    assert areas["wrong"][0] > 0.125 and areas["wrong"][1] < 0.875


@pytest.mark.parametrize("words, status, message", [
    (["--images", "nowhere"], 1, "nowhere does not exist"),
    (["--images", "photos/0_000.png", "gone.png"], 1, "gone.png is no file"),
    (["--images", "photos", "--layer", "9"], 1, "layer 9 does not exist"),
    (["--images", "photos", "--heads", "each", "--method", "rollout"], 1, "mixes the heads"),
    (["--images", "photos", "--method", "relevance", "--class", "nam 1"], 1,
     "did you mean name 1?"),
    (["--images", "photos", "--class", "0"], 1, "--class goes with --method relevance"),
    (["--images", "photos", "--method", "relevance", "--class", "0", "name 0"], 1,
     "--class 0 name 0 names one class twice; give each class once"),
    (["--images", "photos", "--html", "out", "--output", "out"], 1,
     "--html out would be the folder of --output out"),
    (["--images", "photos", "--layer", "0", "--method", "rollout"], 1, "goes with --method last"),
    (["--images", "photos", "--output", "x.png"], 1, "give a folder"),
    (["--images", "photos", "--faithfulness", "--npz", "x.npz"], 1, "--npz has no effect with"),
    (["--images", "photos", "--faithfulness", "--layer", "0"], 1, "--layer has no effect with"),
    (["--images", "photos", "--method", "magic"], 2, "--method"),
    (["--images", "twins"], 1, "would both be a"),
    (["--images", "photos", "--output", "photos"], 1, "would replace a photo"),
    (["--images", "photos", "--output", "file"], 1, "cannot write"),
    (["--images", "photos", "--model", "vit_small_patch16_dinov3"], 1, "rotary positions"),
])
def test_bad_input_gets_one_line(
        tmp_path, checkpoint, here, monkeypatch, words, status, message):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "photos", 1)
    for name in ("a.png", "a.jpg"):
        make_photo(tmp_path / "twins" / name)
    (tmp_path / "file").write_text("")
    if "--model" not in words:
        words = [*words, "--checkpoint", str(checkpoint)]
    result = here(*words)
    assert result.returncode == status, result.stderr
    lines = error_lines(result)
    assert len(lines) == 1 and message in lines[0], result.stderr


def test_weights_that_only_the_network_has(tmp_path, photos):
    result = run_script(MAP, "--images", photos, "--model", TINY, "--pretrained", cwd=tmp_path,
                        HF_HUB_CACHE=str(tmp_path / "cache"))
    assert result.returncode == 1, result.stderr
    assert len(error_lines(result)) == 1 and "could not fetch" in result.stderr


def test_unreadable_photos_are_named(tmp_path, checkpoint, here):
    folder = make_folder(tmp_path / "photos", 1)
    (folder / "bad.jpg").write_text("text")
    result = here("--images", folder, "--output", tmp_path / "out", "--checkpoint", checkpoint,
                  *CPU)
    assert result.returncode == 3 and "bad.jpg: not an image" in result.stderr
    assert len(json.loads(result.stdout)["images"]) == 3


def test_many_photos_are_on_several_sheets(tmp_path, checkpoint, here, monkeypatch):
    monkeypatch.setattr(p1_attn_map, "SHEET", 2)
    folder = make_folder(tmp_path / "photos", 1)
    result = here("--images", folder, "--output", tmp_path / "out", "--checkpoint", checkpoint,
                  *CPU)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "out").glob("sheet*")} == {
        "sheet_1.png", "sheet_2.png"}


def test_arrays_are_written_whole_or_not_at_all(tmp_path, capsys):
    arrays = {"a": np.eye(2), "names": np.array(["x", "é"]), "one": np.array(7)}
    with npz_writer(tmp_path / "new" / "x.npz") as keep:
        for name, array in arrays.items():
            keep(name, array)
        assert not (tmp_path / "new" / "x.npz").exists()
    assert "x.npz" in capsys.readouterr().err
    with np.load(tmp_path / "new" / "x.npz") as kept:
        assert kept.files == list(arrays)
        assert all(np.array_equal(kept[name], array) for name, array in arrays.items())
    with pytest.raises(KeyError), npz_writer(tmp_path / "y.npz") as keep:
        keep("a", arrays["a"])
        raise KeyError("in the middle")
    with npz_writer(None) as keep:
        keep("a", arrays["a"])
    with npz_writer(tmp_path / "quiet.npz", quiet=True) as keep:
        keep("a", arrays["a"])
    assert not capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "quiet.npz"]


# --- position embeddings ------------------------------------------------------------------------


@pytest.mark.parametrize("name, prefix, count", [
    ("vit_base_patch16_224", 1, 196), ("deit3_small_patch16_224", 0, 196),
    ("vit_base_patch16_siglip_224", 0, 196), ("deit_tiny_distilled_patch16_224", 2, 196),
    ("vit_small_patch14_reg4_dinov2", 0, 1369), ("vit_small_patch14_dinov2", 1, 1369)])
def test_prefix_tokens_are_left_out_in_every_layout(name, prefix, count):
    from models.vit import open_vit

    torch.manual_seed(0)
    model = open_vit(name).model
    torch.manual_seed(0)
    embedding, grid = position_embedding(name)
    assert len(embedding) == count == grid[0] * grid[1]
    assert model.pos_embed.shape[1] == count + prefix
    np.testing.assert_array_equal(embedding, model.pos_embed[0, prefix:].detach().numpy())


def test_similarity_and_structure_equal_a_loop():
    random = np.random.default_rng(0)
    grid = (3, 4)
    embedding = random.normal(size=(12, 5))
    similarity = positions.cosine_similarity(embedding)
    sums = {"same_row": [], "same_column": [], "elsewhere": []}
    distances = {}
    for i in range(12):
        for j in range(12):
            cosine = embedding[i] @ embedding[j] / (
                np.linalg.norm(embedding[i]) * np.linalg.norm(embedding[j]))
            assert similarity[i, j] == pytest.approx(cosine)
            if i == j:
                continue
            (r, c), (s, d) = divmod(i, 4), divmod(j, 4)
            kind = "same_row" if r == s else "same_column" if c == d else "elsewhere"
            sums[kind].append(cosine)
            distances.setdefault(round(np.hypot(r - s, c - d)), []).append(cosine)
    numbers = positions.structure(similarity, grid)
    for kind, values in sums.items():
        assert numbers[kind] == pytest.approx(np.mean(values), abs=1e-4)
    assert numbers["by_distance"] == pytest.approx(
        {step: np.mean(values) for step, values in distances.items()}, abs=1e-4)
    assert positions.cosine_similarity(np.zeros((2, 3))).tolist() == [[0, 0], [0, 0]]


def test_a_fixed_sine_cosine_embedding_has_the_cross():
    embedding = sincos2d(190, (14, 14))
    numbers = positions.structure(positions.cosine_similarity(embedding), (14, 14))
    assert embedding.shape == (196, 192)
    assert numbers["same_row"] > numbers["elsewhere"] < numbers["same_column"]


def test_tiles_of_one_model_and_of_several(tmp_path, checkpoint, capsys):
    wide = write_classifier(tmp_path / "wide.safetensors", image_size=48)
    result = run_script(POSITIONS, "--checkpoint", checkpoint, "--checkpoint", wide, "--model",
                        "sincos2d", "--output", tmp_path / "three.png")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert {name: row["grid"] for name, row in printed.items()} == {
        "tiny": [2, 2], "wide": [3, 3], "sincos2d": [2, 2]}
    three = Image.open(tmp_path / "three.png")
    run_inside(positions, "--checkpoint", wide, "--npz", tmp_path / "s.npz", "--output",
               tmp_path / "one.png", capsys=capsys)
    assert three.width > Image.open(tmp_path / "one.png").width
    kept = np.load(tmp_path / "s.npz")
    assert kept["grid"].tolist() == [3, 3]
    np.testing.assert_allclose(kept["similarity"],
                               positions.cosine_similarity(position_embedding(wide)[0]))


def test_the_tile_of_a_patch_is_at_its_place_with_one_scale(tmp_path, monkeypatch):
    from figures import maps

    seen = {}
    monkeypatch.setattr(maps, "save", lambda figure, path: seen.update(axes=figure.axes))
    grid = (2, 3)
    similarity = np.eye(6)
    maps.position_tiles({"m": (similarity, grid)}, {"m": {1: 0.0}}, "unused.png")
    picture = seen["axes"][0].images[0]
    assert picture.get_clim() == (-1, 1)
    tiles = np.asarray(picture.get_array())
    for patch in range(6):
        row, col = divmod(patch, 3)
        tile = tiles[row * 3:row * 3 + 2, col * 4:col * 4 + 3]
        np.testing.assert_array_equal(tile, similarity[patch].reshape(2, 3))
    assert "row" in seen["axes"][0].get_ylabel() and "column" in seen["axes"][0].get_xlabel()
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("words, status, message", [
    (["--model", "vit_small_patch16_dinov3"], 1,
     "vit_small_patch16_dinov3 is of the class Eva with rotary"),
    (["--checkpoint", "gone.safetensors"], 1, "gone.safetensors does not exist"),
    (["--model", "nobody"], 1, "nobody is no file, and timm knows no model"),
    (["--tiles"], 2, "--tiles"),
    *[([option, "cpu"], 2, option) for option in (
        "--device", "--precision", "--batch-size", "--limit", "--seed")],
])
def test_positions_bad_input_gets_one_line(tmp_path, capsys, monkeypatch, words, status, message):
    monkeypatch.chdir(tmp_path)
    result = run_inside(positions, *words, "--output", "o.png", capsys=capsys)
    assert result.returncode == status, result.stderr
    assert len(error_lines(result)) == 1 and message in result.stderr
    assert not list(tmp_path.iterdir())


def test_one_model_at_a_time_has_its_arrays_kept(tmp_path):
    result = run_script(POSITIONS, "--model", "sincos2d", "--model", TINY, "--npz", "x.npz",
                        cwd=tmp_path)
    assert result.returncode == 1 and not list(tmp_path.iterdir())
    assert len(error_lines(result)) == 1 and "one model" in result.stderr
