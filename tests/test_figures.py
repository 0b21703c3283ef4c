"""What is drawn is where it belongs."""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from data.transform import Transform
from figures import charts, maps, style


@pytest.mark.parametrize("size", [(640, 200), (200, 640), (300, 300)])
@pytest.mark.parametrize("cell", [(0, 0), (3, 1), (6, 9)])
@pytest.mark.parametrize("kind", ["crop", "squash", "padded"])
def test_a_one_hot_map_is_brightest_at_its_cell(size, cell, kind):
    """Through the real drawing path: box of the transform, display size, overlay."""
    rows, cols = 7, 10
    width, height = size
    if kind == "padded":  # the photo fills a part of the input only
        box = (-0.2 * width, -0.3 * height, 1.2 * width, 1.3 * height)
    else:
        box = Transform((70, 100), (0.5,) * 3, (0.5,) * 3, resize=kind).box(width, height)
    photo, box = maps.for_display(Image.new("RGB", size, (90, 90, 90)), box)
    grid = np.zeros((rows, cols))
    grid[cell] = 1
    heat = maps.map_onto_photo(grid, box, *photo.size)
    x = box[0] + (cell[1] + 0.5) * (box[2] - box[0]) / cols
    y = box[1] + (cell[0] + 0.5) * (box[3] - box[1]) / rows
    inside = 0 <= x < photo.width and 0 <= y < photo.height
    if not inside:
        assert kind == "padded" and np.nanmax(heat) < 1
        return
    assert heat[int(y), int(x)] > 0.95
    brightest = np.argwhere(heat == np.nanmax(heat)).mean(0)
    assert abs(brightest[0] - y) <= (box[3] - box[1]) / rows / 2 + 1
    assert abs(brightest[1] - x) <= (box[2] - box[0]) / cols / 2 + 1
    drawn = maps.overlay(photo, heat, 1.0).astype(int)
    yellowness = drawn[..., 0] + drawn[..., 1] - drawn[..., 2]  # viridis' top on a grey photo
    without_line = heat < 0.45  # nan is not
    assert yellowness[int(y), int(x)] > yellowness[without_line].max()


def test_what_the_model_never_saw_is_grey():
    photo = Image.new("RGB", (200, 100), (200, 30, 30))
    heat = maps.map_onto_photo(np.ones((4, 4)), (50, 0, 150, 100), 200, 100)
    assert np.isnan(heat[:, :49]).all() and np.isnan(heat[:, 151:]).all()
    assert np.isfinite(heat[:, 51:149]).all()
    grey = maps.overlay(photo, heat)[:, :49]
    assert np.ptp(grey.astype(int), axis=-1).max() == 0


def test_maps_are_not_stretched_or_turned():
    ramp = np.arange(12.0).reshape(3, 4)
    heat = maps.map_onto_photo(ramp, (0, 0, 400, 300), 400, 300)
    np.testing.assert_allclose(heat[50::100, 50::100], ramp, atol=0.3)


def test_a_flat_map_and_a_zero_map_are_drawn(tmp_path):
    photo = Image.new("RGB", (60, 40))
    for value in (0.0, 0.1):
        maps.attention_panel(photo, np.full((1, 2, 2), value), (0, 0, 60, 40), ["flat"], "share",
                                tmp_path / "flat.png")
        assert min(Image.open(tmp_path / "flat.png").size) > 200


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", ["犬.jpg", "caf\udce9.jpg", "a_$^$_{.jpg"])
@pytest.mark.parametrize("heads", [1, 3])
def test_any_file_name_can_be_a_title(tmp_path, name, heads):
    photo = Image.new("RGB", (60, 40))
    shown = maps.attention_panel(photo, np.ones((heads, 2, 2)), (0, 0, 60, 40),
                                    [f"{name}: cat", "last"], "share", tmp_path / "panel.png",
                                    [f"head {head}" for head in range(heads)])
    charts.gallery([shown], [name], "Attention", tmp_path / "sheet.png")
    assert {path.name for path in tmp_path.iterdir()} == {"panel.png", "sheet.png"}


def test_curves_of_one_run_and_of_many(tmp_path):
    history = [{"epoch": n, "train_loss": 1 / n, "val_loss": 1.1 / n, "train_accuracy": 0.5,
                "val_accuracy": 0.4} for n in (1, 2, 3)]
    no_val = [{"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5}]
    odd = {"weights a$x_{$.pth": history, "_b": history}
    for histories in ({"": history}, {"": no_val}, odd,
                      {f"setting {n}": history for n in range(9)}):
        charts.training_curves(histories, tmp_path / "curves.png")
        assert min(Image.open(tmp_path / "curves.png").size) > 300


LONG = "a_very_long_file_name_" * 11 + ".jpg"  # 246 letters, nearly the most that Linux allows
BREED = "American Staffordshire Terrier of the long-haired northern kind (99%)"
PHOTO = Image.new("RGB", (80, 60), (90, 90, 90))
DRAWN = {
    "gallery": lambda path: charts.gallery(
        [PHOTO] * 6, [f"{LONG}\n{BREED}"] * 6, "Attention, last", path),
    "top classes": lambda path: charts.top_classes(
        [(PHOTO, f"{LONG}\ntrue: {BREED}", [LONG, BREED, "cat"], [0.5, 0.3, 0.1],
          [False, True, False])] * 5, "probability (%)", path),
    "panel": lambda path: maps.attention_panel(
        PHOTO, np.eye(4)[None], (0, 0, 80, 60), [f"{LONG}: {BREED}", "last"], "share", path),
    "confusions": lambda path: charts.confusion(
        np.eye(3, dtype=int), [LONG, BREED, "cat"], "Confusion", path),
    "positions": lambda path: maps.position_tiles(
        {name: (np.eye(4), (2, 2)) for name in (LONG, "b" + LONG)},
        {name: {1: 0.5} for name in (LONG, "b" + LONG)}, path),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_long_names_stay_inside_and_apart(monkeypatch, kind):
    seen = []
    for module in (charts, maps):
        monkeypatch.setattr(module, "save", lambda figure, path: seen.append(figure))
    DRAWN[kind]("unused.png")
    figure, = seen
    figure.canvas.draw()
    texts = [text for text in figure.findobj(plt.Text)
             if any(name in text.get_text() for name in (LONG[:16], BREED[:16]))]
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert -1 <= box.x0 and box.x1 <= figure.bbox.x1 + 1, text
        assert -1 <= box.y0 and box.y1 <= figure.bbox.y1 + 1, text
    titles = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    for number, box in enumerate(titles):
        assert not any(box.overlaps(other) for other in titles[:number])
    assert texts
    plt.close(figure)


def test_the_overlay_keeps_the_spot_visible_and_draws_a_line_around_it():
    """A checkerboard has more contrast left at the peak than far from it."""
    board = np.indices((200, 200)).sum(0) % 2 * 200
    photo = Image.fromarray(np.stack([board] * 3, -1).astype(np.uint8))
    grid = np.zeros((5, 5))
    grid[2, 2] = 1
    heat = maps.map_onto_photo(grid, (0, 0, 200, 200), 200, 200)
    drawn = maps.overlay(photo, heat, top=1.0).astype(int)
    contrast = [np.ptp(drawn[y:y + 2, x:x + 2, 0]) for y, x in ((100, 100), (10, 10))]
    assert contrast[0] > 1.5 * contrast[1]
    top = matplotlib.colormaps[style.SEQUENTIAL](1.0)[:3]
    line = (drawn == np.round(np.array(top) * 255)).all(-1)
    assert heat[line].min() >= 0.5 and heat[line].max() < 0.62
    assert np.argwhere(line).mean(0) == pytest.approx([99.5, 99.5], abs=1)


def test_no_ring_around_a_peak():
    grid = np.full((7, 7), 0.5)
    grid[3, 3] = 1
    heat = maps.map_onto_photo(grid, (0, 0, 140, 140), 140, 140)
    assert heat.min() == 0.5


def test_a_difference_is_red_where_the_first_has_more_and_blue_where_the_other_has():
    photo = Image.new("RGB", (20, 10), (128, 128, 128))
    heat = np.concatenate([np.full((10, 10), 0.3), np.full((10, 10), -0.3)], 1)
    drawn = maps.difference_overlay(photo, heat, 0.3).astype(int)
    assert drawn[5, 5, 0] > drawn[5, 5, 2] + 30 and drawn[5, 15, 2] > drawn[5, 15, 0] + 30


def rows_of_pictures(figure) -> list[list[tuple[float, float, float]]]:
    """(bottom, width, height) in inches of each picture, in rows from the top."""
    width, height = figure.get_size_inches()
    rows: dict[float, list] = {}
    for axes in figure.axes:
        if axes.images:
            place = axes.get_position(original=True)
            rows.setdefault(round(place.y0 * height, 3), []).append(
                (place.y0 * height, place.width * width, place.height * height))
    return [rows[y] for y in sorted(rows, reverse=True)]


@pytest.mark.parametrize("count, expected", [(1, [1]), (4, [4]), (5, [3, 2]), (9, [3, 3, 3])])
def test_rows_of_a_gallery_are_even_and_of_one_height(tmp_path, monkeypatch, count, expected):
    kept = []
    monkeypatch.setattr(charts, "save", lambda figure, path: kept.append(figure))
    photos = [Image.new("RGB", [(90, 60), (60, 90), (900, 10)][n % 3]) for n in range(count)]
    charts.gallery(photos, [f"photo {n}\nwith a long name of a class" for n in range(count)],
                   "Photos", tmp_path / "x.png", scale="share")
    rows = rows_of_pictures(kept[0])
    assert [len(row) for row in rows] == expected
    assert len({round(picture[2], 3) for row in rows for picture in row}) == 1
    bars = [axes for axes in kept[0].axes if axes.get_xlabel() == "share"]
    assert len(bars) == 1


def test_right_answers_of_a_confusion_matrix_are_green(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(charts, "save", lambda figure, path: kept.append(figure))
    charts.confusion(np.array([[5, 1], [0, 0]]), ["a", "b"], "Confusion", tmp_path / "x.png")
    errors, right = kept[0].axes[0].images
    shares = np.ma.getdata(right.get_array())
    assert shares[0, 0] == pytest.approx(5 / 6) and shares[1, 1] == 0
    assert np.isnan(shares[0, 1]) and errors.get_array()[0, 0] == 0
    red, green, blue, _ = right.cmap(right.norm(5 / 6))
    assert green > red and green > blue


def test_layers_are_named_as_people_count_them():
    assert [style.layer_name(layer, 12) for layer in (0, 2, -2, 11, -1)] == [
        "layer 1 of 12", "layer 3 of 12", "layer 11 of 12", "last layer", "last layer"]
