"""Other libraries' files against those libraries: the same logits and the same attention."""

from __future__ import annotations

import json
import time
from collections import OrderedDict

from utils import UserError

import numpy as np
import pytest
import timm
import torch
from conftest import CLASSES, TINY, error_lines, run_script
from makers_clip import write_hub_clip
from makers_files import in_cache
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from data.transform import Transform
from models.attention import capture_attention
from models.checkpoint import load_strict, read_tensors, record_result
from models.classifier import build_classifier, load_classifier, save_classifier
from models.clip import open_clip
from models.gpt2 import GPT2, from_gpt2, gpt2_config
from models.vit import build_vit, open_vit

# image, patch, width, heads, layers, hidden: heads of 64 need no config.json
SIZES = [(32, 8, 64, 1, 2, 100), (48, 16, 128, 2, 3, 128)]
CLOSE = {"atol": 1e-5, "rtol": 0}


def shuffled(model, seed=0):
    """No parameter is left at 0 or 1, and what enters the first norm is so small that its epsilon
    matters."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            small = any(word in name.lower() for word in ("embed", "token"))
            parameter.normal_(std=1e-4 if small else 0.2)
    return model.eval()


def transformers_vit(size, headless=False, **config):
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    image, patch, width, heads, layers, hidden = size
    config = ViTConfig(**{
        "image_size": image, "patch_size": patch, "hidden_size": width, "num_labels": 5,
        "num_attention_heads": heads, "num_hidden_layers": layers, "intermediate_size": hidden,
        "attn_implementation": "eager"} | config)
    return shuffled((ViTModel if headless else ViTForImageClassification)(config))


def pretrained_vit(size, monkeypatch):
    from pytorch_pretrained_vit import ViT, model

    image, patch, width, heads, layers, hidden = size
    config = {"patches": (patch, patch), "dim": width, "ff_dim": hidden, "num_heads": heads,
              "num_layers": layers, "attention_dropout_rate": 0.0, "dropout_rate": 0.1,
              "representation_size": None, "classifier": "token"}
    # Sizes of one's own raise a NameError in its version 0.0.7, unless they have a name.
    monkeypatch.setitem(model.PRETRAINED_MODELS, "small", {
        "config": config, "num_classes": 5, "image_size": (image, image)})
    return shuffled(ViT("small"))


def assert_equal(classifier, pixels, logits, attentions):
    layers = range(len(attentions))
    with torch.no_grad(), capture_attention(classifier.model, layers) as ours:
        torch.testing.assert_close(classifier.model(pixels), logits, **CLOSE)
    for layer, theirs in enumerate(attentions):
        torch.testing.assert_close(ours[layer], theirs, **CLOSE)


# --- vision transformers ------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_vit_of_transformers(tmp_path, size):
    # PEERS: keys in memory are not those in files
    theirs, pixels = transformers_vit(size), torch.randn(3, 3, size[0], size[0])
    theirs.save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    assert set(load_file(file)) != set(theirs.state_dict())
    (tmp_path / "alone").mkdir()
    in_file = {f"model.module.{key}": tensor for key, tensor in load_file(file).items()}
    torch.save({"model": in_file, "epoch": 3}, tmp_path / "alone" / "wrapped.pth")
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "alone" / "memory.bin")
    with torch.no_grad():
        expected = theirs(pixels, output_attentions=True)
    for source in (file, file.parent, tmp_path / "alone" / "wrapped.pth",
                   tmp_path / "alone" / "memory.bin"):
        classifier = open_vit(source)
        assert_equal(classifier, pixels, expected.logits, expected.attentions)
    save_classifier(tmp_path / "ours.safetensors", classifier)  # in float16
    again = load_classifier(tmp_path / "ours.safetensors").model
    again.load_state_dict(classifier.model.state_dict())
    torch.testing.assert_close(again(pixels), expected.logits, **CLOSE)
    assert again.blocks[0].norm1.eps == 1e-12


@pytest.mark.parametrize("size", SIZES)
def test_a_vit_of_pytorch_pretrained_vit(tmp_path, size, monkeypatch):
    theirs, pixels = pretrained_vit(size, monkeypatch), torch.randn(3, 3, size[0], size[0])
    torch.save(theirs.state_dict(), tmp_path / "plain.pth")
    save_file({f"module.{key}": tensor for key, tensor in theirs.state_dict().items()},
              tmp_path / "parallel.safetensors")
    with torch.no_grad():
        logits = theirs(pixels)
    attentions = [block.attn.scores for block in theirs.transformer.blocks]
    for name in ("plain.pth", "parallel.safetensors"):
        classifier = open_vit(tmp_path / name)
        assert_equal(classifier, pixels, logits, attentions)
    assert classifier.preprocessing == {
        "size": (size[0],) * 2, "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize": "squash",
        "crop_pct": 1.0, "interpolation": "bilinear"}


def test_a_vit_without_a_head_and_with_everything_unusual(tmp_path):
    theirs = transformers_vit((24, 8, 40, 5, 2, 33), True, image_size=[24, 40], qkv_bias=False,
                              layer_norm_eps=1e-3)
    theirs.save_pretrained(tmp_path)
    classifier, pixels = open_vit(tmp_path), torch.randn(2, 3, 24, 40)
    with torch.no_grad():
        expected = theirs(pixels, output_attentions=True)
    features = classifier.model.forward_features(pixels).detach()
    torch.testing.assert_close(features, expected.last_hidden_state, **CLOSE)
    assert_equal(classifier, pixels, features[:, 0], expected.attentions)
    assert not classifier.classes
    model, preprocessing, architecture = build_vit(str(tmp_path))  # as encoders are built
    torch.testing.assert_close(model(pixels), features[:, 0], **CLOSE)
    rebuilt = build_vit(architecture["name"], **json.loads(json.dumps(architecture["args"]))).model
    load_strict(rebuilt, model.state_dict(), "itself")
    torch.testing.assert_close(rebuilt(pixels), features[:, 0], **CLOSE)
    assert preprocessing["resize"] == "squash" and preprocessing["size"] == (24, 40)


def test_timms_own_folder(tmp_path):
    from timm.models import save_for_hf

    theirs = shuffled(timm.create_model(TINY, num_classes=7, img_size=48, depth=2, reg_tokens=3))
    save_for_hf(theirs, tmp_path, model_args={"depth": 2, "img_size": 48, "reg_tokens": 3},
                safe_serialization=True)
    classifier, pixels = open_vit(tmp_path), torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(classifier.model(pixels), theirs(pixels))
    assert classifier.preprocessing["size"] == (48, 48) and len(classifier.classes) == 7
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="not its name: give --model NAME --weights FILE"):
        open_vit(tmp_path)


def test_photos_and_names_are_those_of_the_processor_and_the_config(tmp_path, capsys):
    from transformers import ViTImageProcessor

    names = {number: f"thing {number}" for number in range(5)}
    transformers_vit(SIZES[0], id2label=names).save_pretrained(tmp_path)
    classifier = open_vit(tmp_path)
    assert classifier.classes == list("01234") and classifier.name_of("3") == "thing 3"
    assert "no preprocessor_config.json" in capsys.readouterr().err
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 50, 3), np.uint8))
    for options in ({"image_mean": [0.1, 0.2, 0.3], "resample": 3}, {"do_normalize": False}):
        processor = ViTImageProcessor(size={"height": 32, "width": 32}, **options)
        processor.save_pretrained(tmp_path)
        transform = Transform.from_fields(open_vit(tmp_path).preprocessing)
        ours = transform.normalize(torch.from_numpy(transform(photo).copy())[None])
        theirs = processor(photo, return_tensors="pt").pixel_values
        assert (ours - theirs).abs().max() < 0.02  # a level of 255, of numbers up to 2
    assert not capsys.readouterr().err
    cropped = {"do_center_crop": True, "size": {"shortest_edge": 40}, "crop_size": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(cropped))
    preprocessing = open_vit(tmp_path).preprocessing
    assert preprocessing["resize"] == "crop" and preprocessing["crop_pct"] == 0.8


def test_a_vit_with_deits_processor_in_the_old_form(tmp_path, capsys):
    transformers_vit(SIZES[0]).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({
        "feature_extractor_type": "DeiTFeatureExtractor", "size": 36, "crop_size": 32,
        "do_resize": True, "do_center_crop": True, "do_normalize": True, "resample": 3,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}))
    classifier = open_vit(tmp_path)
    assert classifier.preprocessing == {
        "size": (32, 32), "resize": "squash-crop", "crop_pct": 32 / 36, "floor_crop": True,
        "interpolation": "bicubic", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    save_classifier(tmp_path / "ours.safetensors", classifier)
    again = load_classifier(tmp_path / "ours.safetensors").transform
    assert again == classifier.transform and again.box(90, 180) == (5, 10, 85, 170)
    (tmp_path / "processor_config.json").write_text('{"image_processor": {"size": 48}}')
    assert open_vit(tmp_path).preprocessing["resize"] == "squash"
    assert "photos are made 32 × 32, which the model takes, not 48 × 48" in capsys.readouterr().err
    built = build_classifier(str(tmp_path), CLASSES)
    assert built.preprocessing["size"] == (32, 32)


def test_photos_are_squashed_where_timm_squashes_them(tmp_path):
    from timm.data import create_transform, resolve_model_data_config
    from timm.models import save_for_hf

    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 50, 3), np.uint8))
    for crop_pct, resize in ((1.0, "squash"), (0.9, "squash-crop")):
        cfg = {"crop_mode": "squash", "crop_pct": crop_pct, "input_size": (3, 48, 48)}
        theirs = timm.create_model(TINY, num_classes=2, img_size=48, depth=1,
                                   pretrained_cfg_overlay=cfg)
        names = {"cat": "a small cat", "dog": "a large dog"}
        save_for_hf(theirs, tmp_path, safe_serialization=True, model_args={
            "depth": 1, "img_size": 48}, model_config={
            "label_names": list(names), "label_descriptions": names, "global_pool": "token"})
        classifier = open_vit(tmp_path)
        assert classifier.preprocessing["resize"] == resize
        assert classifier.name_of("1") == "a large dog"
        expected = create_transform(**resolve_model_data_config(theirs))(photo)
        ours = classifier.transform.normalize(
            torch.from_numpy(classifier.transform(photo).copy())[None])[0]
        assert (ours - expected).abs().max() < 2.01 / 255 / 0.5
    known = build_classifier("vit_base_patch16_siglip_256", CLASSES, resize="crop")
    assert known.preprocessing["resize"] == "crop"  # as the option says


def test_training_starts_from_any_file(tmp_path, monkeypatch):
    theirs = pretrained_vit((160, 16, 64, 2, 6, 192), monkeypatch)  # TINY's own size
    body, file = theirs.transformer.blocks[1].pwff.fc1.weight, tmp_path / "file.pth"
    torch.save(theirs.state_dict(), file)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2}')
    named = build_classifier(str(file), CLASSES, image_size=96)
    assert named.preprocessing["interpolation"] == "bilinear" and named.model.num_classes == 3
    assert not torch.equal(build_classifier(str(file), CLASSES, pretrained=False)
                           .model.blocks[1].mlp.fc1.weight, body)
    theirs.pre_logits = nn.Linear(64, 64)  # part of the head in the public ImageNet-21k files
    torch.save(theirs.state_dict(), file)
    beside = build_classifier(TINY, CLASSES, image_size=96, weights=file)
    assert open_vit(file).classes == []
    for built in (named, beside):
        torch.testing.assert_close(built.model.blocks[1].mlp.fc1.weight, body)
        assert built.preprocessing["size"] == (96, 96)
    torch.testing.assert_close(named.model.forward_features(torch.ones(1, 3, 96, 96)),
                               beside.model.forward_features(torch.ones(1, 3, 96, 96)), **CLOSE)
    with pytest.raises(UserError, match="--num-heads 5 does not divide .*file.pth's width of 64"):
        build_classifier(str(tmp_path / "file.pth"), CLASSES, num_heads=5)


def test_a_config_that_does_not_belong_or_is_missing(tmp_path, monkeypatch):
    torch.save(pretrained_vit((32, 8, 40, 5, 2, 64), monkeypatch).state_dict(), tmp_path / "a.pth")
    for config, message in [
            (None, "does not say how many heads its width of 40"), ("[]", "must hold a JSON"),
            ('{"num_attention_heads": 3}', "how many heads"), ('{"model_type": "bert"}', "'bert'"),
            ('{"hidden_size": 768}', "do not belong together"), ("{", "not valid JSON"),
            ('{"num_attention_heads": "5"}', "describes no ViT"),
            ('{"image_size": 64}', "16 positions, which do not make a 64 × 64 image")]:
        if config:
            (tmp_path / "config.json").write_text(config)
        with pytest.raises(UserError, match=message):
            open_vit(tmp_path / "a.pth")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 5}')
    assert open_vit(tmp_path / "a.pth").model.blocks[0].attn.num_heads == 5


@pytest.fixture(scope="session")
def saved_tensors(tmp_path_factory):
    transformers_vit(SIZES[0]).save_pretrained(tmp_path_factory.mktemp("saved"))
    return load_file(next(tmp_path_factory.getbasetemp().glob("saved*/model.safetensors")))


def mix(tensors):
    tensors["transformer.blocks.0.norm1.weight"] = torch.zeros(64)
    tensors["vit.encoder.layer.7.layernorm_after.bias"] = torch.zeros(64)
    del tensors["vit.encoder.layer.1.attention.attention.value.bias"]


def without(tensors, word):
    for key in [key for key in tensors if word in key]:
        del tensors[key]


@pytest.mark.parametrize("change, message", [
    (mix, r"does not fit transformers' ViT: \d+ missing \(encoder.layer.1.attention.attention."
          r"value.bias, .*left over \(.*transformer.blocks.0.norm1.weight"),
    ({"criterion.weight": (1,)}, r"1 left over \(criterion.weight\)"),
    ({"embeddings.cls_token": (1, 1, 64)}, "tensors twice, .*vit.embeddings.cls_token"),
    ({"classifier.weight": (5, 9)}, r"head.weight \(5, 9\) instead"),
    ({"vit.embeddings.position_embeddings": (1, 8, 64)}, "has 7 positions"),
    ({"vit.embeddings.position_embeddings": (3,)}, "describes no ViT"),
    ("query", "nor a ViT in a layout known"),
    ("layer.0.attention.attention",
     r"6 missing \(encoder.layer.0.attention.attention.query.weight, .*, …\)"),
])
def test_wrong_and_mixed_files_are_named_with_their_keys(tmp_path, saved_tensors, change, message):
    tensors = dict(saved_tensors)
    if isinstance(change, dict):
        tensors |= {key: torch.zeros(shape) for key, shape in change.items()}
    elif isinstance(change, str):
        without(tensors, change)
    else:
        change(tensors)
    torch.save(tensors, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=message) as caught:
        load_classifier(tmp_path / "odd.pth")
    assert "odd.pth" in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_is_recorded_in_a_file_of_others(tmp_path, saved_tensors):
    save_file(saved_tensors, tmp_path / "theirs.safetensors")
    with pytest.raises(UserError, match="not a checkpoint of this project"):
        record_result(tmp_path / "theirs.safetensors", "photos", {"accuracy": 1.0}, ["accuracy"])


# --- CLIP ---------------------------------------------------------------------------------------


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class OpenAIBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(OrderedDict(
            c_fc=nn.Linear(width, 4 * width), gelu=QuickGELU(), c_proj=nn.Linear(4 * width, width)))

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class OpenAITower(nn.Module):
    """What both towers have; the image tower's names stand under ``visual``."""

    def __init__(self, places, width, layers):
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(OpenAIBlock(width) for _ in range(layers))
        self.positional_embedding = nn.Parameter(torch.zeros(places, width))

    def run(self, x, mask=None):
        for block in self.transformer.resblocks:
            x = block(x, mask)
        return x


class OpenAIClip(OpenAITower):
    """OpenAI's CLIP written again from the paper and the names in its files, on torch's own
    attention: no package of it works with current versions of what it needs."""

    def __init__(self, image, patch, width, text_width, layers, vocabulary, context, joint=24):
        super().__init__(context, text_width, layers)
        self.visual = OpenAITower((image // patch) ** 2 + 1, width, layers + 1)
        self.visual.class_embedding = nn.Parameter(torch.zeros(width))
        self.visual.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.visual.proj = nn.Parameter(torch.zeros(width, joint))
        self.token_embedding = nn.Embedding(vocabulary, text_width)
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(torch.zeros(text_width, joint))
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self, images, tokens):
        visual = self.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1)
        x = visual.run(visual.ln_pre(x + visual.positional_embedding))
        seen = visual.ln_post(x[:, 0]) @ visual.proj
        length = tokens.shape[1]
        causal = torch.full((length, length), float("-inf")).triu(1)
        x = self.run(self.token_embedding(tokens) + self.positional_embedding[:length], causal)
        read = self.ln_final(x)[torch.arange(len(x)), tokens.argmax(1)] @ self.text_projection
        seen, read = (features / features.norm(dim=1, keepdim=True) for features in (seen, read))
        return self.logit_scale.exp() * seen @ read.T


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """A folder with a small CLIPTokenizer; the end of a text is its highest id."""
    return write_hub_clip(tmp_path_factory.mktemp("vocabulary")) / "tokenizer.json"


def write_openai(folder, vocabulary, size=(32, 8, 64, 64), **extra):
    tokens = 517  # the tokenizer's
    model = shuffled(OpenAIClip(*size, layers=2, vocabulary=tokens, context=20))
    (folder / "tokenizer.json").write_bytes(vocabulary.read_bytes())
    torch.save(model.state_dict() | extra, folder / "ViT.pt")
    return model, folder / "ViT.pt"


@pytest.mark.parametrize("size", [(32, 8, 64, 64), (48, 16, 128, 64)])
def test_openais_clip(tmp_path, vocabulary, size):
    archive = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(20)}
    theirs, file = write_openai(tmp_path, vocabulary, size, **archive)
    clip, pixels = open_clip(file), torch.randn(3, 3, size[0], size[0])
    texts = ["a dog", "a photo of a dog", ""]
    rows = clip.token_rows(texts)
    tokens = torch.tensor([row + [0] * (20 - len(row)) for row in rows])  # as OpenAI pads them
    with torch.no_grad():
        expected = theirs(pixels, tokens)
    ours = clip.logit_scale * clip.encode_image(pixels) @ clip.encode_text(texts).T
    torch.testing.assert_close(ours, expected, **CLOSE)
    assert clip.preprocessing["size"] == (size[0],) * 2 and clip.identity
    assert clip.identity == open_clip(file).identity


@pytest.mark.parametrize("change, message", [
    ({"visual.layer1.0.conv1.weight": (1,)}, r"1 left over \(visual.layer1.0.conv1.weight\)"),
    ({"visual.proj": (7, 9)}, "is no CLIP of OpenAI's"), ({"text_projection": ()}, "is no CLIP"),
    ({"token_embedding.weight": (9, 64)}, "517 tokens, the model 9"),
    ("ln_final", r"2 missing \(ln_final.weight, ln_final.bias\)"),
    ("token_embedding", r"1 missing \(token_embedding.weight\)"),
], ids=str)
def test_a_clip_that_does_not_fit(tmp_path, vocabulary, change, message):
    file = write_openai(tmp_path, vocabulary)[1]
    tensors = read_tensors(file)[0]
    if isinstance(change, str):
        without(tensors, change)
    else:
        tensors |= {key: torch.zeros(shape) for key, shape in change.items()}
    torch.save(tensors, file)
    with pytest.raises(UserError, match=message) as caught:
        open_clip(file)
    assert "ViT.pt" in str(caught.value) and "\n" not in str(caught.value)


def write_open_clip(folder, model_cfg, preprocess_cfg=None):
    described = {"model_cfg": {"embed_dim": 24, "vision_cfg": {}, "text_cfg": {}} | model_cfg,
                 "preprocess_cfg": preprocess_cfg or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))


def test_a_clip_of_open_clip_is_what_its_config_says(tmp_path, vocabulary, capsys):
    theirs, file = write_openai(tmp_path, vocabulary, (32, 8, 128, 128))
    pixels, texts = torch.randn(3, 3, 32, 32), ["a dog", "a photo of a dog", ""]
    plain = open_clip(file)
    assert ("ViT.pt has no open_clip_config.json beside it: quick GELU, and photos prepared as for "
            "OpenAI's CLIP, are assumed") in capsys.readouterr().err
    rows = plain.token_rows(texts)
    tokens = torch.tensor([row + [0] * (20 - len(row)) for row in rows])

    def compare(clip):
        with torch.no_grad():
            expected = theirs(pixels, tokens)
        ours = clip.logit_scale * clip.encode_image(pixels) @ clip.encode_text(texts).T
        torch.testing.assert_close(ours, expected, **CLOSE)

    compare(plain)
    write_open_clip(tmp_path, {"quick_gelu": True, "text_cfg": {"heads": 2}})
    compare(open_clip(file))
    write_open_clip(tmp_path, {"quick_gelu": False, "text_cfg": {"heads": 2}})
    assert open_clip(file).identity != plain.identity  # kept features are of one activation
    write_open_clip(tmp_path, {"quick_gelu": True, "text_cfg": {"heads": 2}})
    for block in (*theirs.transformer.resblocks, *theirs.visual.transformer.resblocks):
        block.mlp.gelu, block.attn.num_heads, block.attn.head_dim = nn.GELU(), 4, 32
    write_open_clip(tmp_path, {"vision_cfg": {"head_width": 32, "layers": 3, "pool_type": "tok"},
                               "text_cfg": {"heads": 4, "pool_type": "argmax"}},
                    {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash", "size": 32,
                     "interpolation": "bilinear"})
    file.rename(tmp_path / "open_clip_pytorch_model.bin")
    clip = open_clip(tmp_path)  # the folder
    compare(clip)
    assert clip.preprocessing == {
        "size": (32, 32), "resize": "squash", "crop_pct": 1.0, "interpolation": "bilinear",
        "mean": (0.5,) * 3, "std": (0.25,) * 3}
    assert not capsys.readouterr().err
    write_open_clip(tmp_path, {})  # open_clip's own default
    for block in theirs.transformer.resblocks:
        block.attn.num_heads, block.attn.head_dim = 8, 16
    for block in theirs.visual.transformer.resblocks:
        block.attn.num_heads, block.attn.head_dim = 2, 64
    compare(open_clip(tmp_path))


@pytest.mark.parametrize("model_cfg, preprocess_cfg, message", [
    ({"vision_cfg": {"pool_type": "avg"}}, {}, "asks for pool_type avg"),
    ({"text_cfg": {"no_causal_mask": True}}, {}, "asks for no_causal_mask True"),
    ({"vision_cfg": {"norm_kwargs": {"eps": 1e-6}}}, {}, "asks for norm_kwargs"),
    ({"multimodal_cfg": {"layers": 3}}, {}, "asks for multimodal_cfg"),
    ({"text_cfg": None}, {}, "no CLIP of OpenAI's"),
    ({}, {"resize_mode": "longest"}, "resize_mode longest"),
    ({}, {"mean": [0.5]}, "no CLIP of OpenAI's"),
])
def test_a_clip_that_computes_something_else_is_refused(
        tmp_path, vocabulary, model_cfg, preprocess_cfg, message):
    file = write_openai(tmp_path, vocabulary)[1]
    write_open_clip(tmp_path, model_cfg, preprocess_cfg)
    with pytest.raises(UserError, match=message) as caught:
        open_clip(file)
    assert "ViT.pt" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_a_clip_without_its_vocabulary_or_with_code_in_it(tmp_path, vocabulary, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    file = write_openai(tmp_path, vocabulary)[1]
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="vocabulary of .*ViT.pt is missing: put tokenizer.json"):
        open_clip(file)
    in_cache(tmp_path / "cache", "openai/clip-vit-large-patch14", vocabulary)
    assert open_clip(file).towers.context == 20
    torch.jit.trace(nn.Linear(2, 3), torch.zeros(1, 2)).save(tmp_path / "archive.pt")
    with pytest.raises(UserError, match="archive.pt is a TorchScript archive, .* save its weights"):
        open_clip(tmp_path / "archive.pt")


# --- GPT-2 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width, layers", [(64, 2), (128, 3)])
def test_gpt2_files(tmp_path, width, layers):
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = shuffled(GPT2LMHeadModel(GPT2Config(
        vocab_size=50, n_positions=16, n_embd=width, n_layer=layers, n_head=width // 64)))
    theirs.save_pretrained(tmp_path)
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in
                               theirs.transformer.state_dict().items()}}, tmp_path / "course.bin")
    ids = torch.randint(50, (2, 9))
    for name in ("model.safetensors", "course.bin"):
        tensors = from_gpt2(read_tensors(tmp_path / name)[0])
        ours = GPT2(gpt2_config(tensors, name)).eval()
        load_strict(ours, tensors, name)
        torch.testing.assert_close(ours(ids)[0], theirs(ids).logits, **CLOSE)


def tiny_gpt2(folder, **config):
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = shuffled(GPT2LMHeadModel(GPT2Config(**{
        "vocab_size": 50, "n_positions": 16, "n_embd": 64, "n_layer": 2, "n_head": 1} | config)))
    theirs.save_pretrained(folder)
    return theirs, folder / "model.safetensors"


def opened_gpt2(file):
    tensors = from_gpt2(read_tensors(file)[0], file)
    model = GPT2(gpt2_config(tensors, file)).eval()
    load_strict(model, tensors, file)
    return model


@pytest.mark.parametrize("heads", [2, 4])
def test_gpt2s_heads_are_those_of_its_config(tmp_path, heads, capsys):
    theirs, file = tiny_gpt2(tmp_path, n_head=heads, activation_function="gelu_pytorch_tanh")
    ids = torch.randint(50, (2, 9))
    torch.testing.assert_close(opened_gpt2(file)(ids)[0], theirs(ids).logits, **CLOSE)
    (tmp_path / "config.json").write_text('{"model_type": "vit", "num_attention_heads": 3}')
    assert opened_gpt2(file).config.heads == 1
    assert "config.json beside" in (said := capsys.readouterr().err) and "64 wide" in said
    (tmp_path / "config.json").unlink()
    assert opened_gpt2(file).config.heads == 1


def test_an_output_layer_of_its_own_is_not_dropped(tmp_path):
    theirs, file = tiny_gpt2(tmp_path / "tied")
    repeated = theirs.state_dict()  # with lm_head.weight, which repeats the embedding
    torch.save(repeated, tmp_path / "tied" / "repeated.bin")
    ids = torch.randint(50, (2, 9))
    ours = opened_gpt2(tmp_path / "tied" / "repeated.bin")
    torch.testing.assert_close(ours(ids)[0], theirs(ids).logits, **CLOSE)
    for options in ({}, {"n_head": 2}):
        _, file = tiny_gpt2(tmp_path / "own", tie_word_embeddings=False, **options)
        with pytest.raises(UserError, match="own/model.safetensors has an output layer .lm_head"):
            opened_gpt2(file)


@pytest.mark.parametrize("config, message", [
    ({"n_layer": 3}, "do not belong together"), ({"n_positions": 1024}, "do not belong together"),
    ({"n_embd": 768}, "do not belong together"), ({"vocab_size": 50257}, "do not belong together"),
    ({"n_head": 3}, "3 heads do not divide"), ({"n_head": "4"}, "cannot have the sizes"),
    ({"activation_function": "relu"}, "asks for activation_function relu"),
    ({"layer_norm_epsilon": 1e-3}, "asks for layer_norm_epsilon 0.001"),
    ({"scale_attn_weights": False}, "asks for scale_attn_weights False"),
    ({"scale_attn_by_inverse_layer_idx": True}, "asks for scale_attn_by_inverse_layer_idx True"),
])
def test_a_gpt2_config_of_another_model_is_refused(tmp_path, config, message):
    file = tiny_gpt2(tmp_path)[1]
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | config))
    with pytest.raises(UserError, match=message) as caught:
        opened_gpt2(file)
    assert "\n" not in str(caught.value)


# --- the hub ------------------------------------------------------------------------------------


def test_names_on_the_hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    theirs = transformers_vit(SIZES[0])
    theirs.save_pretrained(tmp_path / "saved")
    in_cache(tmp_path / "cache", "some/vit", *(tmp_path / "saved").iterdir())
    start = time.monotonic()
    classifier = open_vit("hf:some/vit")
    with pytest.raises(UserError, match="could not fetch hf:other/vit .no network"):
        open_vit("hf:other/vit")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for build in (lambda: open_vit(TINY, pretrained=True), lambda: open_clip("hf:some/clip"),
                  lambda: build_classifier(TINY, CLASSES, pretrained=True)):
        with pytest.raises(UserError, match="no network") as caught:
            build()
        assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 30, "the hub's own retries take longer"
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(classifier.model(pixels), theirs(pixels).logits, **CLOSE)
    assert build_vit("hf:some/vit").model.embed_dim == 64


# --- as a user runs it --------------------------------------------------------------------------


def test_a_file_of_others_predicts(tmp_path, photos, saved_tensors):
    save_file(saved_tensors, tmp_path / "theirs.safetensors")
    result = run_script("p1_vit_classify.py", "predict", "--images", photos, "--model",
                        tmp_path / "theirs.safetensors", "--output", tmp_path / "o.csv")
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 13
    assert "photos are made square" in error_lines(result)[0]
