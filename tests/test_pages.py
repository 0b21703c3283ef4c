"""The pages to explore, in a real browser: what they show is compared with the arrays that the
models compute."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import shutil
import sys
import zlib
from pathlib import Path

from utils import UserError

import matplotlib
import numpy as np
import pytest
import torch
from conftest import make_folder, make_photo, write_classifier
from makers_caption import write_captioner
from makers_clip import write_clip
from makers_files import write
from PIL import Image

import clip_zeroshot
import p1_attn_map
import p2_attn_vis
from figures import page as pages
from figures.maps import scale_top
from models import attention
from models.classifier import load_classifier

CPU = ["--device", "cpu", "--precision", "fp32"]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         "--disable-component-update", "--disable-sync"]
EVIL = "<script>document.title='changed'"  # a file name cannot hold "/"
CAPTION = "a dog</script><script>document.title='changed'</script> & <b>it</b>"
PHOTOS = {"a wide.png": (300, 100), "b tall.png": (90, 240), f"c {EVIL}.png": (120, 120)}
VIRIDIS = matplotlib.colormaps["viridis"](np.arange(256))[:, :3] * 255
KINDS = ("words", "patches", "table")


# --- pages of tiny models -----------------------------------------------------------------------


def written(module, *words) -> str:
    """Run a script in this process; returns its stdout."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(sys, "argv", [module.__file__, *map(str, words), *CPU])
        assert not module.main()
    return out.getvalue()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with the three pages, and what they were made from."""
    world = tmp_path_factory.mktemp("pages")
    for label, (name, size) in enumerate(PHOTOS.items()):
        make_photo(world / "photos" / name, label, size)
    texts = ["a red square", "a green square", "the man's tri-colored dog"]
    captioner = write_captioner(world / "captioner.safetensors", texts, 40)
    given = write(world / "given.json", {Path(name).stem: CAPTION for name in PHOTOS})
    words = ["--images", world / "photos", "--checkpoint", captioner, "--captions", given]
    written(p2_attn_vis, *words, "--output", world / "words", "--html", world / "words.html",
            "--npz", world / "words.npz")
    written(p2_attn_vis, *words, "--output", world / "heads", "--layer", "0", "--heads", "each",
            "--npz", world / "heads.npz")
    classifier = write_classifier(world / "classifier.safetensors", list("01234567"),
                                  image_size=96)
    written(p1_attn_map, "--images", world / "photos", "--checkpoint", classifier, "--output",
            world / "maps", "--html", world / "patches.html")
    make_folder(world / "labelled", 40)
    names = write(world / "names.json", {"0": "red", "1": f"{EVIL}</script>", "2": "blue"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(world / "cache"))
        written(clip_zeroshot, "eval", "--images", world / "labelled", "--labels", names, "--model",
                write_clip(world / "clip.safetensors"), "--template", "course", "--output",
                world / "rows.json", "--html", world / "table.html")
    return world


def data_of(file: Path, name: str) -> dict:
    """A block of JSON in a page."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>',
                      file.read_text(encoding="utf-8"))
    return json.loads(found[1])


@pytest.fixture(scope="module")
def browser():
    """Chromium; where there is none, or no playwright, the tests are skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium on the PATH")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, file: Path, width: int = 1200):
    """The page in the browser; at the end nothing was requested and nothing complained."""
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        page.goto(file.as_uri())
        # A function: an expression is evaluated anew at each try, which the page's policy forbids.
        page.wait_for_function("() => document.querySelector('#reading, #count').textContent")
        yield page
        assert not complaints
        assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    finally:
        context.close()


def choose(page, photo: int) -> None:
    """Show another photo, as a user does."""
    page.locator("#photos button").nth(photo).click()
    name = page.locator("#photos img").nth(photo).get_attribute("alt")
    page.wait_for_function("name => find('canvas').getAttribute('aria-label').startsWith(name)",
                           arg=name)


def shown(place, text="", count=None) -> None:
    """Wait until ``place`` is so, since a page may follow an action a moment later."""
    from playwright.sync_api import expect

    if count is not None:
        expect(place).to_have_count(count)
    expect(place.first).to_contain_text(text)


def shown_levels(page) -> np.ndarray:
    """The map that the canvas shows with opacity 100, (rows, cols) from 0 to 255, read from the
    colours in the middle of the cells."""
    page.locator("#opacity").fill("100")
    colours = np.array(page.evaluate("""() => {
        const context = find("canvas").getContext("2d");
        const {width, height} = find("canvas");
        const [[rows, columns], [left, top, right, bottom]] = [photo.grid, photo.box];
        return Array.from({length: rows}, (_, row) => Array.from({length: columns}, (_, column) => {
            const x = width * (left + (column + 0.5) / columns * (right - left));
            const y = height * (top + (row + 0.5) / rows * (bottom - top));
            return [...context.getImageData(Math.floor(x), Math.floor(y), 1, 1).data].slice(0, 3);
        }));
    }"""), dtype=float)
    distances = ((colours[..., None, :] - VIRIDIS) ** 2).sum(-1)
    assert distances.min(-1).max() < 12  # they are colours of the scale
    return distances.argmin(-1)


def assert_shows(page, grid: np.ndarray, top: float) -> None:
    """The canvas shows ``grid`` with the scale up to ``top``, and is brightest at its peak.

    The middle of a cell lies up to half a pixel beside the pixel that is read, where the neighbour
    has its share; colours are told apart to 3 levels."""
    cell = page.evaluate("""() => {
        const [[rows, columns], [left, top, right, bottom]] = [photo.grid, photo.box];
        const {width, height} = find("canvas");
        return [width * (right - left) / columns, height * (bottom - top) / rows];
    }""")
    tolerance = 255 * sum(0.5 / side for side in cell) + 3
    levels, expected = shown_levels(page), np.clip(grid / top, 0, 1) * 255
    assert abs(levels - expected).max() < tolerance
    assert expected.flat[levels.argmax()] > expected.max() - tolerance


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize("photo", range(3), ids=["wide", "tall", "square"])
def test_the_map_of_the_word_that_is_pointed_at_lies_over_the_photo(world, browser, photo):
    stem = Path(list(PHOTOS)[photo]).stem
    kept, heads = np.load(world / "words.npz"), np.load(world / "heads.npz")[stem]
    with opened(browser, world / "words.html") as page:
        choose(page, photo)
        box = page.evaluate("photo.box")
        assert (box[0] > 0.2, box[1] > 0.2, max(box[:2]) < 0.1)[photo]  # what was cut off
        words = page.locator(".words").first.locator(".word")
        assert words.count() == len(kept[stem]) + 1  # with <start>
        for number in (1, 3, len(kept[stem]) - 1):
            words.nth(number + 1).hover()
            assert_shows(page, kept[stem][number], scale_top(kept[stem]))
            assert f"“{kept[stem + '.words'][number]}”" in page.inner_text("#reading")
        page.select_option("#layer", "0")
        page.select_option("#head", "1")
        words.nth(3).hover()
        assert_shows(page, heads[1, 2], scale_top(heads))
        page.mouse.move(1, 1)  # away from the words: the chosen one, the first, is shown again
        assert_shows(page, heads[1, 0], scale_top(heads))
        page.select_option("#head", "mean")
        assert_shows(page, heads.mean(0)[0], scale_top(heads.mean(0)))


def test_words_by_keyboard_and_by_tap(world, browser):
    with opened(browser, world / "words.html") as page:
        words = page.locator(".words").first.locator(".word")
        words.nth(1).focus()
        page.keyboard.press("ArrowRight")
        assert words.nth(2).evaluate("word => word === document.activeElement")
        assert words.nth(2).get_attribute("aria-pressed") == "true"
        page.keyboard.press("Tab")
        assert words.nth(3).get_attribute("aria-pressed") == "true"
        page.keyboard.press("Home")
        assert "alone" in page.get_attribute("#canvas", "aria-label")
        assert page.locator("#peak").is_hidden()
        page.keyboard.press("End")  # the last word of the last caption
        last = page.locator(".word").last
        assert last.get_attribute("aria-pressed") == "true"
        page.locator(".word").nth(4).click()
        assert page.locator(".word").nth(4).get_attribute("aria-pressed") == "true"
        shown(page.locator(".word[aria-pressed=true]"), count=1)


def test_a_word_is_named_with_its_numbers(world, browser):
    with opened(browser, world / "words.html") as page:
        word = page.locator(".words").first.get_by_role("button").nth(1)
        assert re.search(r"most attention at row \d+, column \d+ \(.+\u00a0%\); entropy .+ bits",
                         word.text_content())
        assert page.get_by_role("group", name="Caption, given").count() == 1
        width = word.locator(".fill").evaluate("fill => parseFloat(fill.style.width)")
        grid = np.load(world / "words.npz")[Path(list(PHOTOS)[0]).stem][0].astype(float)
        entropy = -(grid / grid.sum() * np.log2(grid / grid.sum())).sum()
        assert width == pytest.approx(100 * entropy / np.log2(grid.size), abs=0.1)


def test_given_captions_stand_beside_the_models_own(world, browser):
    with opened(browser, world / "words.html") as page:
        assert page.locator("#captions h2").all_inner_texts() == [
            "Caption, given", "Caption, written by the model"]
        own = page.locator(".words").nth(1).locator(".word")
        own.first.hover()
        levels = shown_levels(page)
        assert levels.max() > levels.min()
        scales = []
        for caption in (0, 1):  # each caption has a scale of its own
            page.locator(".words").nth(caption).locator(".word").last.hover()
            top = page.evaluate(f"mapsOf(photo.captions[{caption}]).tops[0]")
            shown(page.locator("#scale-top"), page.evaluate(f"percent({top})"))
            scales.append(page.inner_text("#scale-top"))
        assert scales[0] != scales[1]


# --- patches ------------------------------------------------------------------------------------


def attentions(world, photo: int):
    """(classifier, its normalized image (1, 3, H, W), the attention of each layer)."""
    classifier = load_classifier(world / "classifier.safetensors")
    path = world / "photos" / list(PHOTOS)[photo]
    pixels = torch.from_numpy(classifier.transform.load(path).copy())[None]
    image = classifier.transform.normalize(pixels)
    layers = range(len(classifier.model.blocks))
    with torch.no_grad(), attention.capture_attention(classifier.model, layers) as captured:
        logits = classifier.model(image)
    return classifier, image, [captured[layer][0] for layer in layers], logits[0]


@pytest.mark.parametrize("photo", range(3), ids=["wide", "tall", "square"])
def test_a_patch_shows_what_it_attends_to(world, browser, photo):
    classifier, image, layers, _ = attentions(world, photo)
    prefix = classifier.model.num_prefix_tokens

    def grid(rows):
        return rows[prefix:].reshape(6, 6).numpy()

    with opened(browser, world / "patches.html") as page:
        choose(page, photo)
        assert_shows(page, start := grid(layers[-1].mean(0)[0]), scale_top(start))
        box, frame = page.evaluate("photo.box"), page.locator("#canvas").bounding_box()
        x = frame["width"] * (box[0] + 4.5 / 6 * (box[2] - box[0]))  # row 2, column 4
        y = frame["height"] * (box[1] + 2.5 / 6 * (box[3] - box[1]))
        page.locator("#canvas").hover(position={"x": x, "y": y})
        own = grid(layers[-1].mean(0)[prefix + 2 * 6 + 4])
        assert_shows(page, own, scale_top(own))
        assert "row 3, column 5" in page.inner_text("#reading")
        page.locator("#canvas").click(position={"x": x, "y": y})
        page.select_option("#layer", "1")
        page.select_option("#head", "0")
        page.mouse.move(1, 1)
        own = grid(layers[1][0][prefix + 2 * 6 + 4])
        assert_shows(page, own, scale_top(own))
        page.click("#start")
        assert_shows(page, start := grid(layers[1][0][0]), scale_top(start))


def test_rollout_and_the_relevance_of_the_likeliest_classes(world, browser):
    classifier, image, _, logits = attentions(world, 0)
    with opened(browser, world / "patches.html") as page:
        page.get_by_role("button", name="rollout").click()
        rollout = attention.attention_maps(classifier.model, image, "rollout")[0][0, 0].numpy()
        assert_shows(page, rollout, scale_top(rollout))
        best = logits.argsort(descending=True)[:5].tolist()
        classes = page.locator(".class")
        assert [text.split("name")[1].strip()[:1] for text in classes.all_inner_texts()] == [
            str(index) for index in best]
        for place in (0, 3):
            classes.nth(place).click()
            grid = attention.attention_maps(classifier.model, image, "relevance",
                                            targets=torch.tensor([best[place]]))[0][0, 0].numpy()
            assert_shows(page, grid, scale_top(grid))
        assert page.locator("#layer").is_disabled()


def test_patches_by_keyboard(world, browser):
    with opened(browser, world / "patches.html") as page:
        page.focus("#canvas")
        page.keyboard.press("ArrowDown")  # the patch in the middle
        page.keyboard.press("ArrowRight")
        assert "The patch at row 4, column 5" in page.inner_text("#reading")
        page.keyboard.press("Escape")
        assert "The class token" in page.inner_text("#reading")


# --- tables -------------------------------------------------------------------------------------


def test_a_table_is_sorted_and_filtered(world, browser):
    entries = data_of(world / "table.html", "page")["entries"]
    differ = [entry for entry in entries if len({a["text"] for a in entry["answers"]}) > 1]
    with opened(browser, world / "table.html") as page:
        rows = page.locator("#rows tr")
        shown(page.locator("#count"), "120 of 120 photos, the first 100 are shown")
        # Pictures that are still loading move the button, and a click would miss it.
        page.wait_for_function("() => [...document.images].every(image => image.complete)")
        page.click("#more")
        shown(rows, count=120)
        assert page.locator("#more").is_hidden()
        page.check("#differ")
        shown(page.locator("#count"), f"{len(differ)} of 120 photos")
        page.uncheck("#differ")
        page.select_option("#method", "0")
        page.check("#wrong")
        wrong = [entry for entry in entries if not entry["answers"][0]["right"]]
        assert 0 < len(wrong) < 120
        shown(page.locator("#count"), f"{len(wrong)} of 120 photos")
        page.get_by_role("button", name="This is a photo of").click()  # the surest ones first
        most = max(wrong, key=lambda entry: entry["answers"][0]["score"])
        shown(rows.first, most["name"])
        shown(page.locator("th[aria-sort=descending]"), count=1)
        page.fill("#words", most["name"])
        shown(rows, count=1)


def test_the_answers_of_a_table_are_those_of_the_result(world):
    rows = json.loads((world / "rows.json").read_text())["rows"]
    data = data_of(world / "table.html", "page")
    for number, row in enumerate(rows):
        right = sum(entry["answers"][number]["right"] for entry in data["entries"])
        assert right == row["correct"] and data["methods"][number]["name"] == row["template"]
        assert f"{100 * row['accuracy']:.1f} % right" in data["methods"][number]["note"]


# --- every page ---------------------------------------------------------------------------------

CONTRASTS = """() => {
    const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (value) => (value /= 255) <= 0.03928
        ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
    const behind = (element) => {
        for (; element; element = element.parentElement) {
            const colour = channels(getComputedStyle(element).backgroundColor);
            if (colour.length < 4 || colour[3] === 1) return colour;
        }
        return null;
    };
    return [...document.querySelectorAll("body *")].filter((element) =>
        element.offsetParent && [...element.childNodes].some((node) =>
            node.nodeType === 3 && node.textContent.trim())).map((element) => {
        const one = luminance(channels(getComputedStyle(element).color));
        const other = luminance(behind(element));
        const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        return [ratio, element.tagName + " " + element.textContent.slice(0, 40)];
    });
}"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_telephones_width_and_legible_text(world, browser, kind):
    with opened(browser, world / f"{kind}.html", 390) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (np.mean([int(part) for part in re.findall(r"\d+", background)]) < 60) == (
                scheme == "dark")
            contrasts = page.evaluate(CONTRASTS)
            assert len(contrasts) > 10
            assert not [row for row in contrasts if row[0] < 4.5]  # WCAG 2.2, level AA


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_captions_are_text(world, browser, kind):
    with opened(browser, world / f"{kind}.html") as page:
        assert page.title() != "changed"
        assert page.locator("script:not([type])").count() == 1
        assert page.locator("b:has-text('it')").count() == 0
        if kind == "table":
            assert f"{EVIL}</script>" in page.inner_text("#rows")
        else:
            assert page.locator("#photos img").nth(2).get_attribute("alt") == list(PHOTOS)[2]


def test_words_that_look_like_markup_are_text(world, browser, tmp_path):
    """A tokenizer may keep what the one of the tiny captioner leaves out."""
    about, record = (data_of(world / "words.html", name) for name in ("page", "record-0"))
    words = record["captions"][0]["words"]
    words[:len(CAPTION.split())] = CAPTION.split()[:len(words)]
    with pages.html_page(tmp_path / "p.html", "words", about) as add:
        add(about["entries"][0], record)
    with opened(browser, tmp_path / "p.html") as page:
        assert page.title() != "changed"
        assert page.locator(".words").first.locator(".word").evaluate_all(
            "words => words.slice(1).map((word) => word.firstChild.textContent)") == words


def test_nothing_but_the_pages_own_script_runs(world, browser):
    context = browser.new_context()
    page = context.new_page()
    page.goto((world / "words.html").as_uri())
    page.evaluate("""() => {
        document.body.append(Object.assign(document.createElement("script"),
            {textContent: "document.title = 'changed'"}));
    }""")
    assert page.title() != "changed"
    refused = page.evaluate("fetch('data:text/plain,a').then(() => false, () => true)")
    assert refused
    context.close()


def test_an_old_browser_is_named(world, browser):
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((world / "words.html").as_uri())
    assert page.inner_text("#reading") == "This page needs a browser from 2023 or later."
    page.close()


# --- how the data is kept -----------------------------------------------------------------------


def levels_of(packed: dict) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(packed["deflated"])), np.uint8)


def test_a_byte_for_a_cell_loses_less_than_a_255th_of_the_scale():
    maps = np.random.default_rng(0).gamma(0.3, size=(5, 7, 9))
    packed = pages.packed_maps(maps)
    levels = levels_of(packed).reshape(5, 63)
    for grid, level, top, peak, highest in zip(maps.reshape(5, 63), levels, packed["tops"],
                                               packed["peaks"], packed["highest"], strict=True):
        assert top == pytest.approx(scale_top(grid), rel=1e-3)
        below = grid <= scale_top(grid)
        assert abs(level[below] / 128 * scale_top(grid) - grid[below]).max() < top / 255
        assert set(level[~below]) == {128} and peak == grid.argmax()
        assert highest == pytest.approx(grid.max(), rel=1e-3)
    assert set(levels_of(pages.packed_maps(np.zeros((1, 2, 2))))) == {0}


def test_which_maps_a_page_has_room_for(tmp_path):
    noise = np.random.default_rng(0).gamma(0.3, size=(324, 18, 18))  # hardly to be compressed
    maps, record = pages.packed_maps(noise), {"photo": "x" * 100_000}
    counts = {}
    for photos in (1, 2, 5, 20, 100):
        room = pages.Room(photos, record)
        counts[photos] = sum(room.takes(maps) for _ in range(100))
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    assert counts[20] >= 4 and counts[2] == pytest.approx(counts[1] / 2, abs=1)
    with pages.html_page(tmp_path / "page.html", "patches", {}) as add:
        for _ in range(20):
            add({}, record | {"layers": [maps] * counts[20]})
    assert 12_000_000 < (tmp_path / "page.html").stat().st_size < 15_000_000


@pytest.mark.parametrize("count, order", [
    (0, []), (1, [0]), (2, [1, 0]), (6, [5, 0, 2, 1, 3, 4]), (12, [11, 0, 5, 8, 2])])
def test_layers_far_from_each_other_come_first(count, order):
    found = pages.farthest_first(count)
    assert sorted(found) == list(range(count)) and found[:len(order)] == order


def test_a_page_with_little_room_has_fewer_maps(world, browser, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "PAGE_BYTES", 0)
    written(p1_attn_map, "--images", world / "photos", "--checkpoint",
            world / "classifier.safetensors", "--output", tmp_path, "--html", tmp_path / "p.html")
    written(p2_attn_vis, "--images", world / "photos", "--checkpoint",
            world / "captioner.safetensors", "--output", tmp_path, "--html", tmp_path / "w.html")
    with opened(browser, tmp_path / "p.html") as page:
        assert "only the map of the class token" in page.inner_text("#missing")
        page.locator("#canvas").hover()
        assert "The class token" in page.inner_text("#reading")
    with opened(browser, tmp_path / "w.html") as page:
        assert page.locator("#head option").count() == 1
        assert "only the mean of the heads" in page.inner_text("#missing")


def test_too_many_photos_and_options_that_do_not_go_together(tmp_path, capsys, monkeypatch):
    with pytest.raises(UserError, match="101 photos are too many .* --limit"):
        pages.check_count(101)
    photo = make_photo(tmp_path / "a.png")
    for module, words, message in (
        (p2_attn_vis, ["--best-worst", "--refs", "a.json", "--html", "p.html"], "--html keeps"),
        (p1_attn_map, ["--faithfulness", "--html", "p.html"], "--html has no effect"),
    ):
        monkeypatch.setattr(sys, "argv", [module.__file__, "--images", str(photo), *words])
        with pytest.raises((SystemExit, UserError)) as error:
            module.main()
        assert message in str(error.value) + capsys.readouterr().err


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "page.html"
    with pytest.raises(RuntimeError), pages.html_page(file, "table", {}) as add:
        add({}, {"photo": pages.picture(Image.new("RGB", (9, 9)), 9)})
        raise RuntimeError
    assert not list(tmp_path.iterdir())
