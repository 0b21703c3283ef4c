"""CATR against what the public one computes, and as a captioner behind the scripts."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

from utils import UserError

import numpy as np
import pytest
import torch
from conftest import error_lines, make_photo, run_inside
from fixtures.deterministic_fill import fill
from makers_clip import write_clip
from makers_files import coco, write
from PIL import Image

from data.batches import normalized_batches
from data.compute import Compute
from data.photos import list_images
from data.transform import Transform
from figures import maps
from inference.caption import encode
from models import catr as catr_module
from models.captioner_files import load_captioner, save_captioner
from models.catr import CATR, CATRConfig, open_catr
from models.checkpoint import load_strict, read_tensors
from models.decoding import Search, generate
from models.detr import resnet_features
from models.tokenizer import Tokenizer, wordpiece_tokenizer

FIXTURES = Path(__file__).parent / "fixtures"
LETTERS = "abcdefghijklmnopqrstuvwxyz'."
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS),
          "ski", "man", "red", "green", "blue", "square"]
TINY = CATRConfig(blocks=(1, 1, 1, 1), width=32, heads=4, encoder_layers=2, decoder_layers=2,
                  hidden=48, mlp=24, vocab_size=len(PIECES), max_length=128)
CPU = ["--device", "cpu", "--precision", "fp32"]


def filled(catr: CATR) -> CATR:
    load_strict(catr, {name: fill(name, tuple(tensor.shape))
                       for name, tensor in catr.state_dict().items()}, "the fixture")
    return catr.eval()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with photos of several shapes, the vocabulary, and a tiny CATR: as a checkpoint,
    and as the public file is."""
    folder = tmp_path_factory.mktemp("catr")
    for number, size in enumerate([(90, 40), (40, 90), (64, 64), (30, 50), (90, 40), (300, 20)]):
        make_photo(folder / "photos" / f"{number}.png", number % 3, size, seed=number)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    catr = filled(CATR(TINY, wordpiece_tokenizer(folder / "vocab.txt"),
                       catr_module.PREPROCESSING | {"size": (64, 64)}))
    with torch.no_grad():  # or all photos would get one caption, without an end
        for name, parameter in catr.named_parameters():
            if parameter.ndim > 1 and not name.startswith("backbone."):
                parameter *= 3
        catr.mlp["layers"][2].bias[3] += 5
    catr.half().float()  # what a checkpoint keeps
    save_captioner(folder / "catr.safetensors", catr)
    torch.save({"model": catr.state_dict(), "epoch": 3}, folder / "public.pth")
    return folder


@pytest.fixture(scope="module")
def catr(files) -> CATR:
    return load_captioner(files / "catr.safetensors").requires_grad_(False)


@pytest.fixture(scope="module")
def paths(files):
    return list_images(files / "photos")


def encoded(catr, paths):
    """The memory of photos in one batch."""
    compute = Compute("cpu", "fp32", len(paths))
    (_, images), = normalized_batches(catr.transform, paths, compute, [], "encode")
    memory = encode(catr.eval(), images, compute)
    return memory


# --- what it computes ---------------------------------------------------------------------------


def test_it_computes_what_the_public_v3_computes():
    tokenizer = SimpleNamespace(start_id=101, end_id=102, pad_id=0, vocab_size=30522)
    with torch.device("meta"):  # to draw random weights takes seconds
        catr = catr_module.CATR(CATRConfig(), tokenizer)
    catr.to_empty(device="cpu").eval()
    keys = json.loads((FIXTURES / "catr_v3_keys.json").read_text())
    assert {name: list(t.shape) for name, t in catr.state_dict().items()} == keys
    filled(catr)
    expected = np.load(FIXTURES / "catr_v3.npz")
    image = torch.randn(1, 3, 224, 299, generator=torch.Generator().manual_seed(7)).clamp(-1, 1)
    tokens, greedy = (torch.from_numpy(expected[name])[None]
                      for name in ("input_ids", "greedy_tokens"))
    with torch.inference_mode():
        memory = catr.encode(image)
        logits = catr(memory, tokens)[0].numpy()
        # the fixture's rows are the queries of its greedy loop: of the start and what follows
        attention = catr.cross_attention(memory, greedy)[0, :, :10].mean(0).numpy()
    assert memory.grids == [(14, 19)] and memory.mask is None
    np.testing.assert_allclose(logits[:, :64], expected["logits_first64"], atol=1e-4)
    np.testing.assert_allclose(logits.max(1), expected["logits_max"], atol=1e-4)
    np.testing.assert_allclose(logits.sum(1), expected["logits_sum"], atol=1e-2)
    assert np.array_equal(logits.argmax(1), expected["logits_argmax"])
    np.testing.assert_allclose(attention, expected["last_cross_attention"], atol=1e-6)
    assert generate(catr, memory, Search(max_length=12)) == greedy.tolist()


def test_folded_norms_change_nothing(catr):
    body, x = catr.backbone[0]["body"], torch.randn(2, 3, 40, 27)
    expected = body(x)
    assert expected.shape == (2, 2048, 3, 2)
    torch.testing.assert_close(resnet_features(body, x), expected, rtol=1e-4, atol=1e-4)


def test_cached_steps_equal_the_full_pass_over_all_positions(catr, paths):
    memory = encoded(catr, paths[:2])
    tokens = torch.randint(4, TINY.vocab_size, (6, TINY.max_length))
    tokens[:, 0] = catr.tokenizer.start_id
    full = catr(memory, tokens)
    logits, state = catr.step(tokens[::3, 0], catr.start(memory))  # one row an image
    torch.testing.assert_close(logits, full[::3, 0], atol=1e-4, rtol=1e-4)
    state = catr.reorder(state, torch.tensor([[0] * 3, [1] * 3]))
    for place in range(1, TINY.max_length):
        logits, state = catr.step(tokens[:, place], state)
        torch.testing.assert_close(logits, full[:, place], atol=1e-4, rtol=1e-4)
    tokens[:, 7:] = catr.tokenizer.pad_id  # what follows is never seen
    torch.testing.assert_close(catr(memory, tokens)[:, :7], full[:, :7], atol=1e-4, rtol=1e-4)


def test_a_photo_is_seen_alone_whatever_its_batch(catr, paths):
    # PEERS: padding that leaks into the photo; caption state shared between images
    memory = encoded(catr, paths)
    assert memory.grids == [(2, 4), (4, 2), (4, 4), (4, 3), (2, 4), (1, 4)]
    tokens = torch.randint(4, TINY.vocab_size, (len(paths), 6))
    logits, attention = catr(memory, tokens), catr.cross_attention(memory, tokens)
    for search in (Search(max_length=12), Search(beams=3, max_length=12)):
        captions = generate(catr, memory, search)
        assert captions == [generate(catr, encoded(catr, [path]), search)[0] for path in paths]
        assert len(set(map(tuple, captions))) >= 3
    for number, path in enumerate(paths):
        alone, (rows, cols) = encoded(catr, [path]), memory.grids[number]
        assert alone.mask is None and alone.features.shape[1] == rows * cols
        row = tokens[number:number + 1]
        torch.testing.assert_close(logits[number], catr(alone, row)[0], atol=1e-4, rtol=1e-4)
        seen = attention[number]
        torch.testing.assert_close(seen[..., :rows * cols], catr.cross_attention(alone, row)[0])
        assert (seen[..., rows * cols:] == 0).all() and seen.dtype == torch.float32
        torch.testing.assert_close(seen.sum(-1), torch.ones(seen.shape[:2]))


def test_captions_of_one_photo_share_its_memory(catr, paths):
    memory = encoded(catr, paths[:2])
    tokens = torch.randint(4, TINY.vocab_size, (6, 5))
    for read in (catr, catr.cross_attention):
        both = read(memory, tokens)
        for number in range(6):
            alone = read(encoded(catr, paths[number // 3:number // 3 + 1]), tokens[[number]])
            torch.testing.assert_close(both[number, ..., :alone.shape[-1]], alone[0],
                                       atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="layer 2 does not exist: the decoder has layers 0 to 1"):
        catr.cross_attention(memory, tokens, 2)


def test_photos_keep_their_shape(tmp_path):
    transform = Transform.from_fields(catr_module.PREPROCESSING)
    assert transform.shape(640, 480) == (224, 299) and transform.shape(5000, 1) == (1, 299)
    assert transform.box(640, 480) == (0, 0, 640, 480)
    image = Image.open(make_photo(tmp_path / "a.png", 1, (64, 48)))
    assert np.array_equal(transform(image), np.asarray(image.resize((299, 224), 3)))
    batch = transform.batch([transform(image), transform(image.rotate(90, expand=True))])
    assert batch.shape == (2, 299, 299, 4)
    normalized = transform.normalize(torch.from_numpy(batch))
    assert normalized[0, 3, :224].eq(1).all() and normalized[0, 3, 224:].eq(0).all()
    expected = torch.from_numpy(batch[0, :224, :, :3]).permute(2, 0, 1) / 255 * 2 - 1
    torch.testing.assert_close(normalized[0, :3, :224], expected)


# --- word pieces --------------------------------------------------------------------------------


def test_word_pieces_are_berts(files):
    from transformers import BertTokenizer

    ours = wordpiece_tokenizer(files / "vocab.txt")
    theirs = BertTokenizer.from_pretrained(files, do_lower_case=True)
    for text in ["A man skis .", "the man's red square", "café, don't", "猫 ski"]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True,
                                                 clean_up_tokenization_spaces=True)
    assert (ours.start_id, ours.end_id, ours.pad_id) == (2, 3, 0)
    again = Tokenizer.from_json(ours.to_json())
    ids = again.encode("A man's skis.")
    assert again.decode([2, *ids, 3, 0]) == "a man's skis."
    assert again.words([2, *ids, 3, 0]) == [("a", [1]), ("man's", [2, 3, 4]), ("skis.", [5, 6, 7])]


def test_other_vocabularies_are_refused(files, tmp_path):
    write(tmp_path / "v.json", {})
    with pytest.raises(UserError, match=r"is not BERT's vocabulary: it has no \[UNK\]"):
        wordpiece_tokenizer(tmp_path / "v.json")
    with pytest.raises(UserError, match="is no vocabulary"):
        wordpiece_tokenizer(tmp_path)
    with pytest.raises(UserError, match="66 word pieces, CATR 30522"):
        open_catr(files / "public.pth", files / "vocab.txt")


# --- behind the scripts -------------------------------------------------------------------------


@pytest.fixture
def here(capsys, monkeypatch):
    """Runs the script of a name in this process, in which the public CATR is a tiny one."""
    monkeypatch.setattr(catr_module, "CATRConfig", lambda **config: TINY)
    monkeypatch.setitem(catr_module.PREPROCESSING, "size", (64, 64))

    def run(script, *words):
        return run_inside(importlib.import_module(script), *words, capsys=capsys)

    return run


def public(files, *words):
    return ["--model", "catr", "--weights", files / "public.pth", "--vocab", files / "vocab.txt",
            *words]


def test_public_weights_and_their_checkpoint_caption_alike(files, here, tmp_path):
    converted = tmp_path / "converted.safetensors"
    result = here("p2_caption", "convert", *public(files, "--output", converted)[2:])
    assert result.returncode == 0, result.stderr
    written = []
    for source in (public(files), ["--checkpoint", converted]):
        result = here("p2_caption", "predict", "--images", files / "photos", "--output",
                      tmp_path / "o.json", "--max-length", "12", "--batch-size", "4", *source, *CPU)
        assert result.returncode == 0, result.stderr
        written.append(json.loads((tmp_path / "o.json").read_text()))
    assert written[0] == written[1] and list(written[0]) == list("012345")


def test_weights_are_read_however_they_are_wrapped(files, tmp_path):
    tensors = read_tensors(files / "catr.safetensors")[0]
    for wrapped in (tensors, {"state_dict": tensors, "epoch": 1}, {"model": tensors}):
        torch.save(wrapped, tmp_path / "w.pth")
        again = read_tensors(tmp_path / "w.pth")[0]
        assert again.keys() == tensors.keys()


@pytest.fixture(scope="module")
def captions_file(files, paths):
    return write(files / "captions.json", coco({
        path.name: [f"A {('red', 'green', 'blue')[number % 3]} square.", "the man's ski"]
        for number, path in enumerate(paths)}))


@pytest.mark.parametrize("factor, words", [("0", []), ("1", ["--augment", "flip", "jitter"])])
def test_it_is_fine_tuned(files, here, captions_file, tmp_path, factor, words):
    result = here(
        "p2_caption", "train", *public(files), "--images", files / "photos", "--captions",
        captions_file, "--hold-out", "2", "--out", tmp_path, "--epochs", "1", "--lr", "0.01",
        "--warmup", "0", "--workers", "0", "--encoder-lr", factor, "--max-length", "12", *words,
        *CPU)
    assert result.returncode == 0, result.stderr
    before, after = (read_tensors(path)[0] for path in (files / "catr.safetensors",
                                                        tmp_path / "best.safetensors"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    norms = {name for name in before if name.startswith("backbone.") and (
        "bn" in name or "downsample.1" in name)}
    backbone = {name for name in before if name.startswith("backbone.")} - norms
    assert not moved & norms and moved & backbone == (backbone if factor == "1" else set())
    assert {"input_proj.weight", "transformer.encoder.layers.0.linear1.weight",
            "transformer.decoder.layers.1.multihead_attn.in_proj_weight",
            "transformer.embeddings.word_embeddings.weight", "mlp.layers.0.weight"} <= moved
    again = load_captioner(tmp_path / "best.safetensors")
    assert isinstance(again, CATR) and again.metadata["recipe"]["vocab"] == "vocab.txt"


def test_figures_show_each_words_cells_on_the_whole_photo(
        files, here, paths, catr, tmp_path, monkeypatch):
    boxes = []
    monkeypatch.setattr(maps, "word_panels",
                        lambda photo, maps, box, *rest: boxes.append((photo.size, box)))
    given = write(tmp_path / "given.json", {path.stem: "the man's skis" for path in paths})
    result = here("p2_attn_vis", *public(files), "--images", files / "photos", "--captions", given,
                  "--output", tmp_path, "--npz", tmp_path / "maps.npz", *CPU)
    assert result.returncode == 0, result.stderr
    printed, arrays = json.loads(result.stdout), np.load(tmp_path / "maps.npz")
    images = printed["images"]
    assert printed["checkpoint"] == str(files / "public.pth")
    assert [row["grid"] for row in images] == [[2, 4], [4, 2], [4, 4], [4, 3], [2, 4], [1, 4]]
    ids = torch.tensor([[*catr.tokenizer.encode("the man's skis"), 3]])
    for path, row in zip(paths, images, strict=True):
        assert [word["word"] for word in row["words"]] == ["the", "man's", "skis", "<end>"]
        seen = catr.cross_attention(encoded(catr, [path]), ids)[0].mean(0)
        expected = torch.stack([part.mean(0) for part in seen.split([3, 3, 2, 1])])
        np.testing.assert_allclose(arrays[path.stem].reshape(4, -1), expected, atol=1e-5)
    assert len(boxes) == 6 and all(box == (0, 0, *size) for size, box in boxes)


def test_a_clip_ranks_its_captions_again(files, here, tmp_path):
    write_clip(tmp_path / "clip.safetensors")
    written = []
    for weight in ("0", "1000"):
        result = here("p2_caption", "predict", *public(files), "--images", files / "photos",
                      "--beam", "4", "--max-length", "6", "--rerank", weight, *(
                          ["--rerank-clip", tmp_path / "clip.safetensors"] * (weight != "0")),
                      "--output", tmp_path / f"{weight}.json", *CPU)
        assert result.returncode == 0, result.stderr
        written.append(json.loads((tmp_path / f"{weight}.json").read_text()))
    assert written[0].keys() == written[1].keys() and written[0] != written[1]


@pytest.mark.parametrize("words, status, message", [
    ("--model catr", 1, "--model catr needs --weights FILE and BERT's vocabulary"),
    ("--weights public.pth", 1, "--weights and --vocab go with --model catr"),
    ("--model catr --checkpoint a", 2, "not allowed with argument"),
    ("--model vit", 2, "--model: invalid choice"),
    ("--model catr --weights none.pth --vocab vocab.txt", 1, "none.pth does not exist"),
    ("--model catr --weights vocab.txt --vocab vocab.txt", 1, "vocab.txt: it is a text file"),
    ("--model catr --weights public.pth --vocab none.txt", 1, "none.txt is no vocabulary"),
])
def test_bad_input_gets_one_line(files, here, monkeypatch, words, status, message):
    monkeypatch.chdir(files)
    result = here("p2_attn_vis", "--images", "photos", "--output", "new", *words.split(), *CPU)
    lines = error_lines(result)
    assert result.returncode == status and len(lines) == 1 and message in lines[0], result.stderr


@pytest.mark.parametrize("words, message", [
    ("eval --record x", "--record writes into a checkpoint"),
    ("train --out new --hold-out 2 --heads 2", "--heads has no effect on what --model catr gives"),
    ("train --out new --hold-out 2 --decoder x", "--vocab has no effect on what --decoder gives"),
])
def test_what_has_no_effect_is_refused(files, here, captions_file, words, message):
    result = here("p2_caption", *words.split(), "--images", files / "photos", "--captions",
                  captions_file, *public(files), *CPU)
    assert result.returncode == 1 and message in error_lines(result)[-1], result.stderr
