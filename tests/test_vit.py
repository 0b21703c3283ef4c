"""The ViT builder and its checkpoints, against timm itself."""

from __future__ import annotations

import json
import pickle

from utils import UserError

import pytest
import timm
import torch
from conftest import CLASSES, TINY, write_classifier
from safetensors.torch import save_file

from models.checkpoint import (
    check_recordable,
    load_strict,
    read_tensors,
    record_result,
    save_checkpoint,
)
from models.classifier import build_classifier, load_classifier
from models.vit import build_vit, open_vit


def test_a_checkpoint_gives_the_logits_of_the_model_that_was_saved(checkpoint):
    loaded = load_classifier(checkpoint)
    reference = timm.create_model(TINY, num_classes=3, img_size=32).eval()
    reference.load_state_dict({k: v.float() for k, v in read_tensors(checkpoint)[0].items()})
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.model(images), reference(images))
    assert loaded.classes == CLASSES and loaded.name_of("1") == "name 1"
    assert loaded.preprocessing["size"] == [32, 32] and not loaded.model.training


def test_num_heads_changes_the_number_of_heads():  # PEERS: num_heads silently ignored
    torch.manual_seed(0)
    four = build_classifier(TINY, CLASSES, image_size=32, num_heads=4)
    assert {block.attn.num_heads for block in four.model.blocks} == {4}
    two = build_classifier(TINY, CLASSES, image_size=32, num_heads=2)
    two.model.load_state_dict(four.model.state_dict())
    images = torch.randn(1, 3, 32, 32)
    apart = four.model.forward_features(images) - two.model.forward_features(images)
    assert apart.abs().max() > 1e-3, "the same weights with other heads compute something else"


def test_image_size_resamples_the_position_embedding(tmp_path):
    torch.manual_seed(0)
    source = timm.create_model(TINY, num_classes=5)  # 160 pixels: 10 × 10 patches
    save_file(source.state_dict(), tmp_path / "plain.safetensors")
    built = build_classifier(TINY, CLASSES, image_size=96, weights=tmp_path / "plain.safetensors")
    prefix = source.num_prefix_tokens
    theirs = timm.layers.resample_abs_pos_embed(
        source.pos_embed, new_size=[6, 6], num_prefix_tokens=prefix)
    torch.testing.assert_close(built.model.pos_embed, theirs)
    torch.testing.assert_close(built.model.blocks[0].attn.qkv.weight,
                               source.blocks[0].attn.qkv.weight)
    assert built.model.head.weight.shape[0] == 3 and built.preprocessing["size"] == (96, 96)


def test_a_head_is_kept_only_over_the_same_classes(checkpoint):
    trained = load_classifier(checkpoint).model.head.weight
    same = build_classifier(TINY, CLASSES, image_size=32, weights=checkpoint)
    torch.testing.assert_close(same.model.head.weight, trained)
    other = build_classifier(TINY, ["a", "b", "c"], image_size=32, weights=checkpoint)
    assert not torch.allclose(other.model.head.weight, trained)


@pytest.mark.parametrize("name, options, message", [
    ("vit_of_nobody", {}, "vit_of_nobody is no file, .* no model .*; the nearest .* vit_"),
    (TINY, {"num_heads": 5}, "--num-heads 5 does not divide test_vit's width of 64"),
    (TINY, {"image_size": 50}, "--image-size 50 is not a multiple .* try 48"),
    (TINY, {"weights": "nowhere.pth"}, "nowhere.pth does not exist"),
])
def test_what_does_not_fit_is_named(name, options, message):
    with pytest.raises(UserError, match=message):
        build_classifier(name, CLASSES, **options)


@pytest.mark.parametrize("name, kind", [
    ("resnet18", "ResNet"), ("swin_tiny_patch4_window7_224", "SwinTransformer"),
    ("beit_base_patch16_224", "Beit"), ("vit_small_patch16_dinov3", "Eva with rotary"),
])
def test_what_needs_a_vit_names_what_it_got(name, kind):
    for build in (build_vit, open_vit):
        with pytest.raises(UserError, match=f"{name} is of the class {kind}.*, not of timm's "
                                            "VisionTransformer"):
            build(name)


def test_pretrained_without_a_network_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="could not fetch the pretrained weights of vit_tiny"):
        build_classifier("vit_tiny_patch16_224", CLASSES, pretrained=True)


def test_keys_are_missing_left_over_or_misshapen():
    model = torch.nn.Linear(2, 3)
    with pytest.raises(UserError, match=r"x does not fit the model: 1 missing \(bias\); "
                                        r"1 left over \(extra\); 1 of another shape \(weight"):
        load_strict(model, {"weight": torch.zeros(2, 2), "extra": torch.zeros(1)}, "x")


class _Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))


@pytest.mark.parametrize("make, message", [
    (lambda folder: folder / "none.safetensors", "does not exist"),
    (lambda folder: _write(folder / "empty.safetensors", b""), "is empty"),
    (lambda folder: _write(folder / "text.safetensors", b"hello, I am no checkpoint"),
     "cannot read checkpoint"),
    (lambda folder: _write(folder / "cut.safetensors",
                           write_classifier(folder / "w.safetensors").read_bytes()[:5000]),
     "cannot read checkpoint"),
    (lambda folder: _other_kind(folder / "clip.safetensors"), "is a clip checkpoint"),
    (lambda folder: _plain(folder / "plain.safetensors"), "not a checkpoint of this project"),
    (lambda folder: _write(folder / "cut.pth", b"PK\x03\x04 no zip"), "cannot read|not loaded"),
])
def test_checkpoints_that_cannot_be_used(tmp_path, make, message):
    with pytest.raises(UserError, match=message) as problem:
        load_classifier(make(tmp_path))
    assert "\n" not in str(problem.value)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "marker"
    for name in ("zip.pth", "legacy.bin"):
        torch.save({"w": _Payload(str(marker))}, tmp_path / name,
                   _use_new_zipfile_serialization=name.startswith("zip"))
        with pytest.raises(UserError, match="holds code or objects besides tensors"):
            read_tensors(tmp_path / name)
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(_Payload(str(marker))))
    with pytest.raises(UserError):
        read_tensors(tmp_path / "raw.pth")
    assert not marker.exists()


def test_metadata_that_lies_gets_one_line(tmp_path, checkpoint):
    tensors, metadata = read_tensors(checkpoint)
    for change in ({"classes": ["0", "1"]}, {"model": {"name": "vit_base_patch16_224", "args": {}}},
                   {"model": None}, {"classes": 7}, {"model": {"name": TINY, "args": {"x": 1}}}):
        save_checkpoint(tmp_path / "lie.safetensors", tensors, {**metadata, **change})
        with pytest.raises(UserError, match="lie.safetensors|does not take these arguments"):
            load_classifier(tmp_path / "lie.safetensors")


def test_an_encoder_is_a_vit_without_its_head(checkpoint):
    encoder = build_vit(TINY, weights=checkpoint, img_size=32)
    theirs = load_classifier(checkpoint).model
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(encoder.model(images), theirs.forward_head(
        theirs.forward_features(images), pre_logits=True))
    assert encoder.architecture == {"name": TINY, "args": {"img_size": 32}}
    assert encoder.preprocessing["size"] == (32, 32)


def test_results_are_recorded_in_checkpoints_of_this_project_alone(tmp_path):
    path = write_classifier(tmp_path / "a.safetensors")
    check_recordable(path)
    for data, correct in (("val", 7), ("test", 8)):
        record_result(path, data, {"correct": correct, "total": 9, "images": "x"},
                      ("correct", "total", "absent"))
    measured = read_tensors(path)[1]["measured"]
    assert measured == {"val": {"correct": 7, "total": 9}, "test": {"correct": 8, "total": 9}}
    torch.save({"w": torch.zeros(1)}, tmp_path / "plain.pth")
    for source, message in (
            (_plain(tmp_path / "plain.safetensors"), "is not a checkpoint of this project"),
            (tmp_path / "plain.pth", "is not a checkpoint of this project"),
            (TINY, "is not a checkpoint of this project"),
            (tmp_path / "none.safetensors", "does not exist"),
            (_write(tmp_path / "cut.safetensors", path.read_bytes()[:5000]), "cannot read")):
        with pytest.raises(UserError, match=message):
            check_recordable(source)
        with pytest.raises(UserError, match=message):
            record_result(source, "val", {"correct": 1}, ["correct"])


def test_other_libraries_can_read_the_file_and_its_description(checkpoint):
    from safetensors import safe_open

    with safe_open(checkpoint, framework="pt") as file:
        metadata = file.metadata()
        assert all(file.get_tensor(key).dtype == torch.float16 for key in file.keys())
    assert metadata["format"] == "pt"
    described = json.loads(metadata["checkpoint"])
    assert described["kind"] == "classifier" and described["model"]["name"] == TINY


def _write(path, content):
    path.write_bytes(content)
    return path


def _other_kind(path):
    save_checkpoint(path, {"w": torch.zeros(1)}, {"kind": "clip"})
    return path


def _plain(path):
    save_file({"w": torch.zeros(1)}, path)
    return path
