"""Files that people have: left by other trainings, not what their name says, with NaN in them, or
typed under another library's name."""

from __future__ import annotations

import argparse
import gzip
import io
import pathlib
import tarfile
import zipfile

from utils import UserError

import numpy as np
import pytest
import timm
import torch
from conftest import CLASSES, ROOT, TINY, write_classifier
from makers_clip import write_hub_clip
from makers_files import in_cache
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from models.attention import mean_attention_distance, patch_grid
from models.captioner_files import load_captioner, save_captioner
from models.checkpoint import check_output, check_weights, read_tensors, save_checkpoint
from models.classifier import build_classifier, load_classifier
from models.clip import build_clip, open_clip, save_clip
from models.gpt2 import GPT2, GPT2Config
from models.hub import hub_name, local_file
from models.tokenizer import train_bpe
from models.vit import build_vit, open_vit
from models.vit_gpt2 import add_cross_attention, build_captioner, gpt2_base

PIXELS = torch.linspace(-1, 1, 2 * 3 * 160 * 160).view(2, 3, 160, 160)


def fine_tuned(seed=0, **options) -> nn.Module:
    """What a student trained: timm's small ViT with 5 classes of their own."""
    torch.manual_seed(seed)
    model = timm.create_model(TINY, **{"num_classes": 5} | options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def prefixed(model: nn.Module, prefix: str) -> dict:
    return {prefix + key: tensor for key, tensor in model.state_dict().items()}


def opened(path, **options) -> nn.Module:
    return open_vit(TINY, weights=path, **options).model


# --- a model that someone fine-tuned ------------------------------------------------------------


def optimizer_of(model: nn.Module) -> dict:
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    return optimizer.state_dict()


WRAPPERS = {
    "plain": lambda model: model.state_dict(),
    "state_dict": lambda model: {"state_dict": model.state_dict(), "epoch": 3, "best": 0.9},
    "model": lambda model: {"model": model.state_dict(), "scaler": {"scale": 65536.0}},
    "model_state_dict": lambda model: {
        "epoch": 3, "model_state_dict": model.state_dict(), "loss": torch.tensor(0.3),
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{}]}},
    "net": lambda model: {"net": model.state_dict(), "acc": 91.2},
    "two deep": lambda model: {"checkpoint": {"model": prefixed(model, "module.")}},
    "DataParallel": lambda model: {"state_dict": prefixed(model, "module.")},
    "compiled": lambda model: prefixed(model, "_orig_mod."),
    "compiled and parallel": lambda model: {"model": prefixed(model, "module._orig_mod.")},
    "Lightning": lambda model: {
        "state_dict": prefixed(model, "model."), "pytorch-lightning_version": "2.5.0",
        "hyper_parameters": {"lr": 1e-3}, "optimizer_states": [{"state": {}, "param_groups": []}],
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}}},
    "net of a module": lambda model: {"state_dict": prefixed(model, "net.")},
    "backbone": lambda model: {
        **{key.replace("backbone.head.", "head."): tensor
           for key, tensor in prefixed(model, "backbone.").items()}},
    "a layer called fc": lambda model: {
        key.replace("backbone.head.", "fc."): tensor
        for key, tensor in prefixed(model, "backbone.").items()},
    "averaged by torch": lambda model: {
        "n_averaged": torch.tensor(7), **prefixed(model, "module.")},
    "timm's train.py": lambda model: {
        "arch": TINY, "args": argparse.Namespace(lr=1e-3, data_dir=pathlib.Path("x")),
        "state_dict": model.state_dict(), "metric": np.float64(91.25), "version": 2},
    "numbers of numpy": lambda model: {
        "model": model.state_dict(), "curve": np.arange(3.0), "best": np.float32(0.5)},
    "a name of one's own": lambda model: {"my_vit": model.state_dict(), "epoch": 1},
}


@pytest.mark.parametrize("how", WRAPPERS)
def test_a_fine_tuned_model_opens_whatever_is_around_it(tmp_path, how):
    theirs = fine_tuned()
    torch.save(WRAPPERS[how](theirs), tmp_path / "best.pth")
    classifier = open_vit(TINY, weights=tmp_path / "best.pth")
    assert classifier.classes == list("01234") and not classifier.names
    torch.testing.assert_close(classifier.model(PIXELS), theirs(PIXELS))
    built = build_classifier(TINY, CLASSES, weights=tmp_path / "best.pth").model
    torch.testing.assert_close(built.blocks[1].mlp.fc1.weight, theirs.blocks[1].mlp.fc1.weight)


def test_the_optimizer_beside_the_weights_is_not_taken_for_them(tmp_path):
    theirs = fine_tuned()
    state = optimizer_of(theirs)
    torch.save({"optimizer": state, "model": theirs.state_dict()}, tmp_path / "a.pth")
    torch.testing.assert_close(opened(tmp_path / "a.pth")(PIXELS), theirs(PIXELS))
    for content in ({"optimizer": state, "epoch": 3}, state):
        torch.save(content, tmp_path / "b.pth")
        with pytest.raises(UserError, match="b.pth holds the state of an optimizer and no weights"):
            read_tensors(tmp_path / "b.pth")


@pytest.mark.parametrize("name", ["state_dict_ema", "model_ema", "ema", "model_ema_state_dict"])
def test_averaged_weights_are_mentioned_and_used_when_asked_for(tmp_path, capsys, name):
    plain, mean = fine_tuned(0), fine_tuned(1)
    content = {"state_dict": plain.state_dict(), name: mean.state_dict()}
    torch.save(content, tmp_path / "best.pth")
    torch.testing.assert_close(opened(tmp_path / "best.pth")(PIXELS), plain(PIXELS))
    said = capsys.readouterr().err
    assert f"also holds averaged (EMA) weights, {name}, which are not used" in said
    torch.testing.assert_close(opened(tmp_path / "best.pth", averaged=True)(PIXELS), mean(PIXELS))
    assert not capsys.readouterr().err
    torch.save({"state_dict": plain.state_dict()}, tmp_path / "none.pth")
    with pytest.raises(UserError, match="none.pth holds no averaged .EMA. weights; it holds state"):
        opened(tmp_path / "none.pth", averaged=True)
    torch.save({name: mean.state_dict()}, tmp_path / "alone.pth")
    torch.testing.assert_close(opened(tmp_path / "alone.pth")(PIXELS), mean(PIXELS))
    assert f"taken from {name}" in capsys.readouterr().err


def test_dinos_teacher_goes_before_its_student(tmp_path, capsys):
    teacher, student = fine_tuned(0, num_classes=0), fine_tuned(1, num_classes=0)
    heads = {"head.mlp.0.weight": torch.ones(3, 3), "head.last_layer.weight_v": torch.ones(3, 3)}
    content = {
        "student": {**prefixed(student, "module.backbone."),
                    **{f"module.{key}": tensor for key, tensor in heads.items()}},
        "teacher": {**prefixed(teacher, "backbone."), **heads},
        "dino_loss": {"center": torch.zeros(1, 3)}, "args": argparse.Namespace(arch="vit_tiny")}
    torch.save(content, tmp_path / "checkpoint.pth")
    classifier = open_vit(TINY, weights=tmp_path / "checkpoint.pth")
    torch.testing.assert_close(classifier.model(PIXELS), teacher(PIXELS))
    said = capsys.readouterr().err
    assert not classifier.classes and "has no classification head" in said
    assert "several state dicts, teacher, student: the first is used" in said
    assert "left out: head.mlp.0.weight, head.last_layer.weight_v" in said
    flat = {**prefixed(student, "student."), **prefixed(teacher, "teacher.")}
    torch.save({"state_dict": flat}, tmp_path / "flat.ckpt")
    torch.testing.assert_close(opened(tmp_path / "flat.ckpt")(PIXELS), teacher(PIXELS))
    assert "holds 2 ViTs (student., teacher.): teacher. is used" in capsys.readouterr().err


def test_tensors_tell_image_size_and_pooling(tmp_path, capsys):
    large = fine_tuned(img_size=96)
    torch.save(large.state_dict(), tmp_path / "large.pth")
    classifier = open_vit(TINY, weights=tmp_path / "large.pth")
    assert tuple(classifier.preprocessing["size"]) == (96, 96)
    assert "96 × 96 pixels" in capsys.readouterr().err
    pixels = PIXELS[..., :96, :96]
    torch.testing.assert_close(classifier.model(pixels), large(pixels))
    pooled = fine_tuned(global_pool="avg", fc_norm=True)
    torch.save({"model": pooled.state_dict()}, tmp_path / "mae.pth")
    torch.testing.assert_close(opened(tmp_path / "mae.pth")(PIXELS), pooled(PIXELS))


@pytest.mark.parametrize("content, message", [
    (lambda m: {"generator": m.state_dict(), "critic": m.state_dict()},
     "several state dicts, generator, critic: save the one"),
    (lambda m: {"model": {"encoder": m.state_dict(), "decoder": m.state_dict()}},
     "several state dicts, model.encoder, model.decoder"),
    (lambda m: {**prefixed(m, "left."), **prefixed(m, "right.")}, r"holds 2 ViTs \(left., right."),
    (lambda m: {"epoch": 3, "state_dict": None}, "holds no state dict"),
    (lambda m: {"model": m}, r"besides tensors \(timm.models.vision_transformer.VisionTr"),
    (lambda m: m.state_dict() | {"patch_embed.proj.weight": torch.zeros(64, 3, 32, 32)},
     "its patches have 32 × 32 pixels, the model's 16 × 16"),
    (lambda m: m.state_dict() | {"extra.weight": torch.zeros(1)}, "1 left over .extra.weight"),
])
def test_what_leaves_a_choice_or_does_not_fit_is_refused(tmp_path, content, message):
    torch.save(content(fine_tuned()), tmp_path / "odd.pth")
    with pytest.raises(UserError, match=message) as caught:
        opened(tmp_path / "odd.pth")
    assert "odd.pth" in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_of_ours_is_opened_as_what_it_says(tmp_path, checkpoint, capsys):
    classifier = open_vit(TINY, weights=checkpoint)
    assert classifier.classes == CLASSES and classifier.preprocessing["size"] == [32, 32]
    assert "describes its model itself" in capsys.readouterr().err
    with pytest.raises(UserError, match="brings its own weights; --weights goes with a model's n"):
        open_vit(checkpoint, weights=checkpoint)


# --- what a file is -----------------------------------------------------------------------------


def archive(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("weights/best.pth", b"x")
    elif kind == "npz":
        np.savez(buffer, a=np.zeros(3))
    else:
        with tarfile.open(fileobj=buffer, mode="w") as file:
            file.addfile(tarfile.TarInfo("best.pth"), io.BytesIO(b""))
    return buffer.getvalue()


POINTER = (b"version https://git-lfs.github.com/spec/v1\n"
           b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 9\n")


@pytest.mark.parametrize("content, message", [
    (POINTER, "a Git LFS pointer, .*run git lfs pull"),
    (b"\n<!DOCTYPE html><html><head><title>Sign in</title>", "a web page, not weights: download"),
    (b"\xef\xbb\xbf<html>", "a web page"), (b"<?xml version='1.0'?><Error>NoSuchKey", "a web page"),
    (b'{"error": "Not Found"}', 'a text file, not weights; it starts with "{"error": "Not Found"}'),
    (archive("zip"), "a zip archive of weights/best.pth: unpack it"),
    (archive("npz"), "an archive of NumPy arrays"), (archive("tar"), "a tar archive: unpack"),
    # A time in it would be in the name of the test, which two processes must agree on.
    (gzip.compress(b"", mtime=0), "a gzip archive"),
    (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5 file, as Keras"),
    (b"\x89PNG\r\n\x1a\n" + bytes(99), "a PNG picture"), (b"GGUF" + bytes(99), "a GGUF file"),
    (b"", "is empty"),
])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, content, message, suffix):
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    for read in (read_tensors, load_classifier, open_clip):
        with pytest.raises(UserError, match=message) as caught:
            read(file)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_the_content_tells_the_format_not_the_name(tmp_path):
    weights = fine_tuned().state_dict()
    save_file(weights, tmp_path / "weights.pth")
    torch.save(weights, tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        assert read_tensors(tmp_path / name)[0].keys() == weights.keys()


def test_folders(tmp_path):
    theirs = fine_tuned()
    (tmp_path / "run").mkdir()
    torch.save(theirs.state_dict(), tmp_path / "run" / "model_best.pth.tar")
    torch.testing.assert_close(opened(tmp_path / "run")(PIXELS), theirs(PIXELS))
    torch.save({}, tmp_path / "run" / "last.pth")
    for use in (lambda: read_tensors(tmp_path / "run"), lambda: open_vit(tmp_path / "run"),
                lambda: build_vit(TINY, weights=tmp_path / "run")):
        with pytest.raises(UserError, match="run is a folder .*it has last.pth, model_best.p"):
            use()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="weights in several parts .model.safetensors.index.json"):
        local_file(tmp_path / "parts")


def test_a_path_that_is_missing_is_no_name_of_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for missing in (str(tmp_path / "nope"), "/nowhere/nope", "runs/nope", "./runs/nope"):
        with pytest.raises(UserError, match="checkpoint .*nope does not exist"):
            open_vit(missing)
    assert local_file("vit_tiny") is None and local_file("ViT-B/32") is None


# --- NaN ----------------------------------------------------------------------------------------


def spoil(path, word: str, value: float = float("nan")) -> None:
    """Put one NaN into the first tensor whose name holds ``word``."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = file.metadata()
    name = next(name for name in tensors if word in name)
    tensors[name].view(-1)[0] = value
    save_file(tensors, path, metadata=metadata)


def write_text_models(folder) -> None:
    tokenizer = train_bpe(["a dog runs", "two men talking"], 300)
    config = GPT2Config(tokenizer.vocab_size, 8, 16, 1, 2, cross_width=None)
    base = build_captioner(TINY, config, tokenizer)
    save_captioner(folder / "captioner.safetensors", add_cross_attention(base))
    save_clip(folder / "clip.safetensors",
              build_clip(TINY, config, tokenizer, width=12, img_size=32))
    decoder = {key: tensor.t().contiguous() if key.startswith("h.") and tensor.ndim == 2
               else tensor for key, tensor in GPT2(config).state_dict().items()}
    save_file(decoder, folder / "gpt2.safetensors")
    tokenizer.backend.model.save(str(folder))
    (folder / "vocab.json").rename(folder / "encoder.json")
    (folder / "merges.txt").rename(folder / "vocab.bpe")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, value):
    write_text_models(tmp_path)
    write_classifier(tmp_path / "classifier.safetensors")
    save_file(fine_tuned().state_dict(), tmp_path / "timm.safetensors")
    write_hub_clip(tmp_path / "hub")
    for file, word, use in (
            ("classifier.safetensors", "head.weight", load_classifier),
            ("classifier.safetensors", "pos_embed",
             lambda file: build_classifier(TINY, CLASSES, image_size=32, weights=file)),
            ("timm.safetensors", "blocks.1.mlp.fc1.weight", opened),
            ("captioner.safetensors", "c_attn.weight", load_captioner),
            ("clip.safetensors", "text_proj.weight", open_clip),
            ("gpt2.safetensors", "wpe.weight",
             lambda file: gpt2_base(build_vit(TINY), file)),
            ("hub/model.safetensors", "visual_projection", lambda file: open_clip(file.parent))):
        spoil(tmp_path / file, word, value)
        with pytest.raises(UserError, match=f"with NaN or infinity in them .*{word}") as caught:
            use(tmp_path / file)
        assert str(tmp_path / file.split("/")[0]) in str(caught.value)


def test_states_with_nan_and_numbers_that_float16_does_not_hold(tmp_path):
    weights = {"a": torch.ones(3), "count": torch.tensor(3), "empty": torch.zeros(0),
               "small": torch.ones(2).to(torch.float8_e4m3fn)}
    check_weights(weights, "last.pt")
    with pytest.raises(UserError, match="last.pt holds 1 tensors with NaN .* .b.: its training"):
        check_weights(weights | {"b": torch.tensor([1.0, float("nan")])}, "last.pt")
    with pytest.raises(UserError, match="x.safetensors was not written: a holds NaN"):
        save_checkpoint(tmp_path / "x.safetensors", {"a": torch.tensor([float("nan")])}, {})
    assert not list(tmp_path.iterdir())
    save_checkpoint(tmp_path / "x.safetensors", {"a": torch.tensor([1e5]), "b": torch.ones(1)}, {})
    tensors = read_tensors(tmp_path / "x.safetensors")[0]
    assert tensors["a"].item() == 1e5 and tensors["b"].dtype == torch.float16


def test_outputs_that_are_no_numbers_name_the_model(tmp_path):
    write_text_models(tmp_path)
    clip = open_clip(tmp_path / "clip.safetensors")
    images = torch.ones(2, 3, 32, 32)
    assert clip.encode_image(images).isfinite().all()
    with torch.no_grad():
        clip.towers.image_proj.weight.fill_(3e38)  # finite, its products are not
        clip.towers.text_proj.weight.fill_(3e38)
    for encode in (lambda: clip.encode_image(images), lambda: clip.encode_text(["a dog"])):
        with pytest.raises(UserError, match="clip.safetensors computes NaN or infinity"):
            encode()
    check_output(torch.ones(3), "x")
    check_output(torch.zeros(0), "x")


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("source, name", [
    ("hf:google/vit-base-patch16-384", "google/vit-base-patch16-384"),
    ("hf-hub:timm/vit_tiny_patch16_224.augreg_in21k", "timm/vit_tiny_patch16_224.augreg_in21k"),
    ("google/vit-base-patch16-384", "google/vit-base-patch16-384"),
    ("https://huggingface.co/google/vit-base-patch16-384", "google/vit-base-patch16-384"),
    ("https://huggingface.co/google/vit-base-patch16-384/tree/main", "google/vit-base-patch16-384"),
    ("vit_tiny_patch16_224", None), ("ViT-B/32", None), ("runs/last.pth", None), ("a/b/c", None),
    ("./google/vit", None), ("/google/vit", None), ("ckpt/none", None),
])
def test_names_of_the_hub(source, name, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert hub_name(source) == name


def test_names_as_users_type_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    from transformers import ViTConfig, ViTForImageClassification

    ViTForImageClassification(ViTConfig(
        hidden_size=64, num_attention_heads=1, num_hidden_layers=1, intermediate_size=64,
        image_size=32)).save_pretrained(tmp_path / "vit")
    in_cache(tmp_path / "cache", "google/vit-base-patch16-384", *(tmp_path / "vit").iterdir())
    write_hub_clip(tmp_path / "clip")
    in_cache(tmp_path / "cache", "openai/clip-vit-base-patch32", *(tmp_path / "clip").iterdir())
    (tmp_path / "cache" / "models--google--vit-base-patch16-384" / "snapshots" / "0"
     / "preprocessor_config.json").write_text('{"size": 32}')
    for name in ("google/vit-base-patch16-384", "hf:google/vit-base-patch16-384"):
        assert open_vit(name).model.embed_dim == 64
    assert "is looked for on the hub, hf:google/vit-base-patch16-384" in capsys.readouterr().err
    for name in ("ViT-B/32", "ViT-B-32.pt", "ViT-B-32", "vit-b-32", "ViT-B-32-quickgelu"):
        assert open_clip(name).towers.context == 40
        assert (f"{name} is OpenAI's name for hf:openai/clip-vit-base-patch32"
                in capsys.readouterr().err)
    (tmp_path / "clip").rename(tmp_path / "ViT-B-32")
    monkeypatch.chdir(tmp_path)
    assert open_clip("ViT-B-32").towers.context == 40  # the folder, not what it is called like
    assert "OpenAI's name" not in capsys.readouterr().err
    with pytest.raises(UserError, match="RN50 is a CLIP with a ResNet; only those with a ViT"):
        open_clip("RN50")
    with pytest.raises(UserError, match="weights/ViT-B-32.pt does not exist"):
        open_clip("weights/ViT-B-32.pt")


@pytest.mark.parametrize("typed, nearest", [
    ("vit_bas_patch16_224", "vit_base_patch16_224"), ("ViT-B/16", "vit_base_patch16_224"),
    ("vit_b_16", "vit_base_patch16_224"), ("B_16_imagenet1k", "vit_base_patch16_224"),
    ("vit-base-patch16-384", "vit_base_patch16_384"), ("ViT-L-32", "vit_large_patch32_224"),
    ("deit-tiny", "deit_tiny_patch16_224"),
])
def test_the_right_spelling_of_timms_names(typed, nearest):
    for use in (open_vit, build_vit, lambda name: build_classifier(name, CLASSES)):
        with pytest.raises(UserError, match=f"{typed} .*; the nearest names are {nearest}"):
            use(typed)


# --- hybrid models ------------------------------------------------------------------------------


def test_pixels_between_patches_behind_a_convolutional_stem():
    model = timm.create_model("vit_tiny_r_s16_p8_224", depth=1, img_size=64)
    images = torch.zeros(1, 3, 64, 64)
    grid = patch_grid(model, images)
    assert grid == (2, 2) and model.patch_embed.patch_size == (8, 8)
    to_the_right = torch.zeros(1, 1, 5, 5)
    to_the_right[..., [1, 3], [2, 4]] = 1.0  # each patch of a row to its neighbour
    to_the_right[..., [2, 4], [1, 3]] = 1.0
    distance = mean_attention_distance(to_the_right, grid, image_size=(64, 64), prefix=1)
    assert distance.item() == 32
