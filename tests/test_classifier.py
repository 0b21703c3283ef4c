"""Classifiers on any of timm's models, against timm itself; frozen parts, and other files."""

from __future__ import annotations

import csv
import json
import sys

from utils import UserError

import numpy as np
import pytest
import timm
import torch
from conftest import (
    CLASSES,
    ROOT,
    TINY,
    error_lines,
    finished,
    make_folder,
    run_inside,
    write_classifier,
)
from safetensors.torch import save_file
from timm.models.maxxvit import checkpoint_filter_fn

import p1_attn_map
import p1_pos_embed_vis
import p1_vit_classify
from data.photos import list_images, load_image
from data.transform import Transform
from models.checkpoint import read_tensors, save_checkpoint
from models.classifier import (
    average_classifiers,
    build_classifier,
    load_classifier,
    open_classifier,
    save_classifier,
)
from models.timm_models import (
    accepted_arguments,
    described_model,
    head_names,
    preprocessing_of,
    probe,
)
from training.batch_norm import training_mode

CPU = ["--device", "cpu", "--precision", "fp32"]
TINY_RUN = ["--image-size", "64", "--epochs", "2", "--batch-size", "8", "--lr", "1e-3", "--augment",
            "flip", "--workers", "0", *CPU]
FAMILIES = ["test_resnet", "test_efficientnet", "test_convnext", "test_vit_relpos", "test_coatnet",
            "test_nfnet"]


@pytest.fixture
def here(capsys):
    """``p1_vit_classify.py`` as a user runs it, in this process; it must succeed."""
    def run(*words):
        result = run_inside(p1_vit_classify, *words, capsys=capsys)
        assert result.returncode == 0, result.stderr
        return result
    return run


# --- the models of timm ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_gives_the_logits_of_timms_model(tmp_path, name):
    path = write_classifier(tmp_path / "a.safetensors", model=name, image_size=64)
    loaded, tensors = load_classifier(path), read_tensors(path)[0]
    sized = {"img_size": 64} if "img_size" in accepted_arguments(probe(name)) else {}
    reference = timm.create_model(name, num_classes=3, **sized).eval()
    reference.load_state_dict({key: tensor.float() if tensor.is_floating_point() else tensor
                               for key, tensor in tensors.items()})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), reference(images))
    assert list(loaded.preprocessing["size"]) == [64, 64] and not loaded.model.training


@pytest.mark.parametrize("name", [
    "tf_efficientnet_lite2", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224",
    "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "beit_base_patch16_224"])
def test_photos_are_prepared_as_timm_prepares_them(photos, name):
    model = probe(name)
    config = timm.data.resolve_model_data_config(model)
    transform = Transform.from_fields(preprocessing_of(model, config))
    theirs = timm.data.create_transform(**config)
    for photo in map(load_image, list_images(photos)[:3]):
        ours = transform.normalize(torch.from_numpy(transform(photo).copy())[None])[0]
        assert (ours - theirs(photo)).abs().max() < 3 / 255 / min(config["std"])


@pytest.mark.parametrize("name, heads", [
    ("test_resnet", {"fc"}), ("tf_efficientnet_lite2", {"classifier"}),
    ("convnext_atto", {"head.fc"}), ("swin_tiny_patch4_window7_224", {"head.fc"}),
    ("deit_tiny_distilled_patch16_224", {"head", "head_dist"}),
    ("volo_d1_224", {"head", "aux_head"}), ("levit_128", {"head.linear", "head_dist.linear"})])
def test_the_head_is_what_depends_on_the_number_of_classes(name, heads):
    names = head_names({"name": name, "args": {}}, 7)
    assert names == {f"{head}.{kind}" for head in heads for kind in ("weight", "bias")}


@pytest.mark.parametrize("name", ["test_resnet", "test_coatnet"])
def test_a_head_is_kept_only_over_the_same_classes(tmp_path, name):
    path = write_classifier(tmp_path / "a.safetensors", model=name, image_size=64)
    trained = load_classifier(path).model.state_dict()
    heads = head_names(load_classifier(path).architecture, 3)
    for classes, kept in ((CLASSES, True), (["a", "b", "c"], False), (["a", "b"], False)):
        for source, weights in ((name, path), (str(path), None)):
            built = build_classifier(source, classes, image_size=64, weights=weights)
            state = built.model.state_dict()
            assert all(torch.equal(state[key], trained[key]) for key in trained.keys() - heads)
            same = [state[key].shape == trained[key].shape and torch.equal(state[key], trained[key])
                    for key in heads if key.endswith("weight")]
            assert all(same) == kept


@pytest.mark.filterwarnings("ignore")  # of timm's resampling
def test_tables_that_depend_on_the_image_size_are_resampled(tmp_path):
    source = timm.create_model("test_coatnet", img_size=64)
    save_file(source.state_dict(), tmp_path / "plain.safetensors")
    built = build_classifier("test_coatnet", CLASSES, image_size=96,
                             weights=tmp_path / "plain.safetensors")
    theirs = checkpoint_filter_fn(dict(source.state_dict()), built.model)
    tables = [key for key in theirs if "relative_position_bias_table" in key]
    assert all(theirs[key].shape != source.state_dict()[key].shape for key in tables) and tables
    for key in tables:
        torch.testing.assert_close(built.model.state_dict()[key], theirs[key])
    assert built.preprocessing["size"] == (96, 96)


@pytest.mark.parametrize("name, options, message", [
    ("resnet1", {}, "timm knows no model of this name; the nearest names are resnet18"),
    ("resnet18.nobody", {}, "resnet18.nobody: Invalid pretrained tag"),
    ("test_resnet", {"num_heads": 2}, "--num-heads: test_resnet is a ResNet; only the heads of"),
    ("densenet121", {"drop_path": 0.1}, "--drop-path: densenet121 is a DenseNet, which has no"),
    ("test_coatnet", {"image_size": 50}, "test_coatnet cannot take photos of 50 × 50 pixels: "),
    ("nest_tiny", {"image_size": 100}, "does not take these arguments, {'img_size': 100}: First"),
    ("test_resnet", {"image_size": 5000}, "--image-size 5000 is too large"),
    ("test_resnet", {"weights": "nowhere.pth"}, "nowhere.pth does not exist"),
    ("mobilenetv5_300m_enc", {}, "is a MobileNetV5Encoder, which classifies no images"),
])
def test_what_does_not_fit_is_named(name, options, message):
    with pytest.raises(UserError, match=message):
        build_classifier(name, CLASSES, **options)


def test_weights_of_another_family_do_not_fit(tmp_path):
    resnet = write_classifier(tmp_path / "a.safetensors", model="test_resnet")
    for name in (TINY, "test_efficientnet", "test_convnext"):
        with pytest.raises(UserError, match="a.safetensors does not fit the model"):
            build_classifier(name, CLASSES, image_size=32, weights=resnet)


@pytest.mark.parametrize("args, size, message", [
    ({"checkpoint_path": "x.pth"}, [64, 64], "checkpoint_path"),
    ({"pretrained": True}, [64, 64], "pretrained"), ({"layers": [10**9]}, [64, 64], "layers"),
    ({"img_size": 64}, [64, 64], "img_size"),  # a ResNet takes any size, and is not told of it
    ({}, [10**6, 10**6], "1000000"), ({}, [0, 64], "cannot take photos"),
])
def test_a_description_reaches_no_other_argument_of_timm(args, size, message):
    with pytest.raises(UserError, match=message):
        described_model({"name": "test_resnet", "args": args}, {"size": size}, 3)


def test_a_model_of_timms_hub_is_known_by_the_config_beside_it(tmp_path):
    source = timm.create_model("test_resnet", num_classes=4).eval()
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "test_resnet", "num_classes": 4, "pretrained_cfg": {
        "input_size": [3, 64, 64], "mean": [0.1] * 3, "std": [0.2] * 3, "crop_pct": 0.9,
        "interpolation": "bilinear"}}
    with pytest.raises(UserError, match="needs timm's config.json beside it"):
        load_classifier(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = open_classifier(tmp_path)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded.model(images), source(images))
    assert loaded.classes == list("0123") and loaded.preprocessing["mean"] == [0.1] * 3
    assert loaded.preprocessing["size"] == (64, 64)
    assert loaded.architecture == {"name": "test_resnet", "args": {}}


# --- running statistics ---------------------------------------------------------------------------


def test_the_mean_of_checkpoints_keeps_whole_numbers(tmp_path):
    files = []
    for count in (3, 8):
        classifier = build_classifier("test_resnet", CLASSES, image_size=32)
        for buffer in classifier.model.buffers():
            buffer.fill_(count)
        files.append(tmp_path / f"{count}.safetensors")
        save_classifier(files[-1], classifier)
    for name, buffer in average_classifiers(files).model.named_buffers():
        assert (buffer == (8 if name.endswith("num_batches_tracked") else 5.5)).all()


def test_numbers_that_float16_cannot_hold_are_kept(tmp_path):
    tensors = {"variance": torch.tensor([1e6, 1.0]), "weight": torch.tensor([0.5])}
    save_checkpoint(tmp_path / "a.safetensors", tensors, {"kind": "classifier"})
    stored = read_tensors(tmp_path / "a.safetensors")[0]
    assert torch.equal(stored["variance"], tensors["variance"])
    assert stored["weight"].dtype == torch.float16


def test_a_frozen_part_keeps_its_running_statistics():
    model = build_classifier("test_resnet", CLASSES, image_size=64).model
    model.requires_grad_(False)
    for parameter in [*model.layer4.parameters(), *model.fc.parameters()]:
        parameter.requires_grad_(True)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training_mode(model)
    model(torch.randn(4, 3, 64, 64))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]) != name.startswith("layer4"), name


SHARED = """
import torch
from training.batch_norm import share_running_statistics

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2))
for buffer in model.buffers():
    buffer.fill_(5 + rank)
share_running_statistics(model)
assert all((buffer == 5).all() for buffer in model.buffers()), list(model.buffers())
torch.distributed.destroy_process_group()
"""


def test_every_process_gets_the_first_ones_running_statistics(tmp_path):
    (tmp_path / "shared.py").write_text(SHARED)
    result = finished(sys.executable, "-m", "torch.distributed.run", "--standalone",
                      "--nproc_per_node", "2", tmp_path / "shared.py", PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr


# --- as a user runs it ----------------------------------------------------------------------------


def test_a_linear_probe_of_a_convolutional_network_changes_its_head_alone(tmp_path, here):
    folder = make_folder(tmp_path / "train", 4)
    source = write_classifier(tmp_path / "source.safetensors", model="test_efficientnet",
                              image_size=64)
    here("train", "--train", folder, "--hold-out", "--out", tmp_path / "out", *TINY_RUN, "--model",
         "test_efficientnet", "--weights", source, "--freeze", "--balance", "--ema", "0.9")
    before, after = (load_classifier(path).model.state_dict()
                     for path in (source, tmp_path / "out" / "last.safetensors"))
    assert {key for key in before if not torch.equal(before[key], after[key])} == {
        "classifier.weight", "classifier.bias"}


def test_every_command_takes_a_convolutional_network(tmp_path, here):
    train, val = make_folder(tmp_path / "train", 8), make_folder(tmp_path / "val", 2, seed=1)
    options = ["--train", train, "--val", val, *TINY_RUN, "--ema", "0.5", "--layer-decay", "0.7"]
    here("sweep", *options, "--out", tmp_path / "sweep", "--vary", f"model=test_resnet,{TINY}")
    with open(tmp_path / "sweep" / "sweep.csv") as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["test_resnet", TINY]
    resnet, vit = (tmp_path / "sweep" / f"model-{name}" / "last.safetensors"
                   for name in ("test_resnet", TINY))
    here("average", "--checkpoint", resnet, resnet.with_name("best.safetensors"), "--output",
         tmp_path / "mean.safetensors")
    results = []
    for files in ([resnet], [vit], [resnet, vit], [tmp_path / "mean.safetensors"]):
        words = "eval", "--images", val, "--checkpoint", *files, *CPU
        results.append(json.loads(here(*words).stdout))
        assert results[-1]["total"] == 6
    assert results[0]["loss"] != results[1]["loss"]
    here("predict", "--images", val, "--checkpoint", resnet, vit, "--output", tmp_path / "o.csv")
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 1 + 6
    history = load_classifier(resnet).metadata["metrics"]
    assert results[0]["correct"] == history["val_correct"]
    assert results[0]["loss"] == pytest.approx(history["val_loss"], rel=1e-2)


def test_a_resumed_training_goes_on_with_the_running_statistics(tmp_path, here):
    folder = make_folder(tmp_path / "train", 4)
    words = ["train", "--train", folder, "--model", "test_resnet", *TINY_RUN, "--ema", "0.9"]
    here(*words, "--out", tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("figures.charts.training_curves", _interrupt)
        p1_vit_classify.train(_parsed(*words, "--out", tmp_path / "cut"))
    here(*words, "--out", tmp_path / "cut", "--resume")
    states = [torch.load(tmp_path / name / "last.pt", weights_only=True)
              for name in ("whole", "cut")]
    for part in ("model", "ema"):
        first, second = (state[part] for state in states)
        assert any(key.endswith("num_batches_tracked") for key in first)
        assert all(torch.equal(first[key], second[key]) for key in first)


def _interrupt(*_):
    raise KeyboardInterrupt


def _parsed(*words):
    return p1_vit_classify.make_parser().parse_args([str(word) for word in words])


@pytest.mark.parametrize("script", [p1_attn_map, p1_pos_embed_vis])
def test_attention_figures_name_the_model_and_the_reason(tmp_path, photos, capsys, script):
    resnet = write_classifier(tmp_path / "a.safetensors", model="test_resnet")
    images = ["--images", photos] if script is p1_attn_map else []
    for option, source, kind in (
            ("--model", "swin_tiny_patch4_window7_224", "SwinTransformer"),
            ("--model", "convnext_atto", "ConvNeXt"), ("--checkpoint", resnet, "ResNet")):
        result = run_inside(script, *images, option, source, "--output", tmp_path / "out",
                            capsys=capsys)
        line, = error_lines(result)
        assert result.returncode == 1 and f"{source} is of the class {kind}, not of timm's" in line
        assert "give a ViT" in line and not (tmp_path / "out").is_file()


def test_probabilities_of_a_photo_are_those_of_timm(tmp_path, photos, here):
    path = write_classifier(tmp_path / "a.safetensors", model="test_resnet", image_size=64)
    result = json.loads(here("eval", "--images", photos, "--checkpoint", path, *CPU).stdout)
    loaded = load_classifier(path)
    losses = []
    for file in list_images(photos):
        pixels = torch.from_numpy(loaded.transform(load_image(file)).copy())[None]
        with torch.no_grad():
            logits = loaded.model(loaded.transform.normalize(pixels))[0]
        losses.append(-logits.log_softmax(0)[CLASSES.index(file.name[0])].item())
    assert result["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
