"""Photos as transformers' image processors prepare them: every class for ViT, DeiT, BEiT and CLIP,
in the form of old files and of new ones, on wide, tall and small photos."""

from __future__ import annotations

import json

from utils import UserError

import numpy as np
import pytest
import torch
from PIL import Image

from data.transform import Transform
from models.processor import open_clip_fields, processor_fields

CLASSES = ("ViT", "DeiT", "Beit", "CLIP")
SQUARE, EDGE = {"height": 60, "width": 60}, {"shortest_edge": 61}
FORMS = {
    "nothing said": {},
    "old": {"size": 64, "crop_size": 56},
    "old, one size": {"size": 48, "crop_size": 48, "do_center_crop": True},
    "old, cropped": {"size": 64, "crop_size": 56, "do_center_crop": True, "resample": 3},
    "list": {"size": [48, 40], "do_center_crop": False},
    "new, square": {"size": SQUARE, "do_center_crop": False, "crop_size": None},
    "new, square cropped": {"size": SQUARE, "do_center_crop": True,
                            "crop_size": {"height": 49, "width": 49}},  # 5.5 pixels from the edge
    "new, edge": {"size": EDGE, "do_center_crop": True, "crop_size": {"height": 56, "width": 56}},
    "new, odd edge": {"size": EDGE, "do_center_crop": True,
                      "crop_size": {"height": 50, "width": 50}, "default_to_square": False},
    "an edge from a number": {"size": 61, "crop_size": 50, "do_center_crop": True,
                              "default_to_square": False},
    "colours": {"size": SQUARE, "crop_size": SQUARE, "image_mean": [0.1, 0.2, 0.3],
                "image_std": [0.3, 0.2, 0.1]},
    "one colour": {"size": SQUARE, "crop_size": SQUARE, "image_mean": 0.4, "image_std": 0.2},
    "not normalized": {"size": SQUARE, "crop_size": SQUARE, "do_normalize": False},
    "not rescaled": {"size": SQUARE, "crop_size": SQUARE, "do_rescale": False},
    "neither": {"size": SQUARE, "crop_size": SQUARE, "do_rescale": False, "do_normalize": False},
    "from -1 to 1": {"size": SQUARE, "crop_size": SQUARE, "rescale_factor": 1 / 127.5,
                     "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
    **{f"resample {number}": {"size": SQUARE, "crop_size": SQUARE, "resample": number}
       for number in range(6)},
}
PHOTOS = [(301, 100), (91, 240), (23, 37), (61, 61)]  # width, height


def photo(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 255, (9, 13, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def processor(folder, kind: str, form: dict, backend: str):
    from transformers import AutoImageProcessor

    described = {"image_processor_type": f"{kind}ImageProcessor", **form}
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    return AutoImageProcessor.from_pretrained(folder, backend=backend)


def prepared(fields: dict, image: Image.Image) -> torch.Tensor:
    transform = Transform.from_fields(fields)
    return transform.normalize(torch.from_numpy(transform(image).copy())[None])


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_of_transformers(tmp_path, kind, form):
    described = FORMS[form]
    slow = processor(tmp_path, kind, described, "pil")
    fields = processor_fields(
        {"image_processor_type": f"{kind}ImageProcessor", **described}, "ViT", "x")
    level = 1 / 255 / min(fields["std"])  # of the 256 that a pixel has, after normalization
    nearest = described.get("resample") in (0, 4, 5)  # not alike in torchvision, or not there
    fast = None if nearest else processor(tmp_path, kind, described, "torchvision")
    for size in PHOTOS:
        image = photo(*size)
        ours = prepared(fields, image)
        theirs = slow(image, return_tensors="pt").pixel_values.float()
        assert ours.shape == theirs.shape
        if fields["resize"] == "squash":
            torch.testing.assert_close(ours, theirs, atol=level / 1000, rtol=1e-5)
        # Pillow resamples rows or columns first, whichever is less work; for the box that is kept
        # that may differ from the whole photo, and then some pixels are rounded differently.
        assert (ours - theirs).abs().max() < 2.01 * level
        assert (ours - theirs).abs().mean() < 0.06 * level
        if fast:
            difference = (ours - fast(image, return_tensors="pt").pixel_values).abs()
            assert difference.max() < 2.01 * level and difference.mean() < 0.2 * level


@pytest.mark.parametrize("name", [
    "ViTFeatureExtractor", "DeiTFeatureExtractor", "DeiTImageProcessorFast",
    "BeitImageProcessorPil", "CLIPFeatureExtractor"])
def test_classes_of_other_versions_mean_the_same(name):
    kind = next(kind for kind in CLASSES if name.startswith(kind))
    key = "feature_extractor_type" if "Feature" in name else "image_processor_type"
    assert processor_fields({key: name}, "ViT", "x") == processor_fields({}, kind, "x")


@pytest.mark.parametrize("described, message", [
    ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor, which is not"),
    ({"do_resize": False}, "not resized"),
    ({"do_pad": True, "pad_size": 300}, "padded"),
    ({"size": {"shortest_edge": 224}}, "resized to .*shortest_edge.*not cropped"),
    ({"size": {"shortest_edge": 200}, "crop_size": 224, "do_center_crop": True}, "cropped to"),
    ({"size": 200, "crop_size": 224, "do_center_crop": True}, "cropped to"),
    ({"size": {"height": 224, "width": 256}, "crop_size": 200, "do_center_crop": True}, "cropped"),
    ({"size": {"shortest_edge": 224, "longest_edge": 500}, "do_center_crop": True}, "longest_edge"),
    ({"size": {"max_height": 224, "max_width": 224}}, "max_height"),
    ({"size": {"shortest_edge": 224}, "do_center_crop": True,
      "crop_size": {"height": 224, "width": 200}}, "cropped to"),
    ({"size": 224, "resample": 9}, "cannot be read"), ({"size": "large"}, "cannot be read|resized"),
    ({"size": 224, "rescale_factor": "x"}, "cannot be read"),
    ({"size": 0}, "cannot be read|not known"),
    ({"size": 224, "rescale_factor": 0}, "cannot be read"),
])
def test_what_cannot_be_done_alike_is_refused(described, message):
    with pytest.raises(UserError, match=message) as caught:
        processor_fields(described, "ViT", "their folder")
    assert "their folder" in str(caught.value) and "\n" not in str(caught.value)


def test_the_fast_form_of_a_file_with_empty_fields(tmp_path):
    from transformers import DeiTImageProcessor

    DeiTImageProcessor(size=64, crop_size=56).save_pretrained(tmp_path)
    described = json.loads((tmp_path / "preprocessor_config.json").read_text())
    fields = processor_fields({**described, "do_pad": None, "image_mean": None}, "ViT", "x")
    theirs = DeiTImageProcessor.from_pretrained(tmp_path)
    image = photo(301, 100)
    difference = prepared(fields, image) - theirs(image, return_tensors="pt").pixel_values
    assert fields["resize"] == "squash-crop" and fields["size"] == (56, 56)
    assert difference.abs().max() < 2.01 / 127.5


def test_open_clips_own_words(capsys):
    plain = open_clip_fields({}, (224, 224), "x")
    assert (plain["resize"], plain["interpolation"], plain["size"]) == ("crop", "bicubic",
                                                                       (224, 224))
    told = {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash", "size": [224, 224],
            "interpolation": "bilinear", "fill_color": 0, "mode": "RGB"}
    assert open_clip_fields(told, (224, 224), "x") == {
        "mean": (0.5,) * 3, "std": (0.25,) * 3, "resize": "squash", "crop_pct": 1.0,
        "size": (224, 224), "interpolation": "bilinear"}
    assert not capsys.readouterr().err
    open_clip_fields({"size": 336}, (224, 224), "their file")
    assert "their file: photos are made 224 × 224" in capsys.readouterr().err
    with pytest.raises(UserError, match="resize_mode longest"):
        open_clip_fields({"resize_mode": "longest"}, (224, 224), "x")
