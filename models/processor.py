"""How other libraries' files say that photos are prepared -> the fields of ``data.Transform``.

transformers keeps it in ``preprocessor_config.json``, under the name of a class that decides what
the file leaves out; open_clip in ``open_clip_config.json``. Photos come out as from transformers'
Pillow classes, value for value, or where they are cropped, to within two levels of 255 in a few
pixels (0.06 in the mean); its torchvision classes differ from those by as much.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from utils import UserError, one_line, warn

from PIL import Image
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from data.transform import Transform
from models.hub import beside

WRONG = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError)

# What transformers' classes do where the file is silent (models/*/image_processing_*.py in 5.24).
COMMON = {
    "do_resize": True, "default_to_square": True, "do_center_crop": False, "crop_size": 224,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_pad": False,
    "image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
PROCESSORS = {
    "ViT": {"size": 224, "resample": 2},
    "DeiT": {"size": 256, "resample": 3, "do_center_crop": True},
    "Beit": {"size": 224, "resample": 3},
    "CLIP": {"size": 224, "resample": 3, "do_center_crop": True, "default_to_square": False,
             "image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD},
}


def described_processor(path: Path) -> dict:
    """The image processor beside a file of transformers; {} where there is none. A
    ``processor_config.json``, of models with texts, holds it among others and goes first."""
    return (beside(path, "processor_config.json").get("image_processor")
            or beside(path, "preprocessor_config.json"))


def processor_fields(described: dict, kind: str, source: object) -> dict:
    """An image processor of transformers (``kind`` where it does not name its class) -> fields.

    Raises UserError for a class that is not known here, and for what ``data.Transform`` does not
    do: photos that keep their shape, or are padded.
    """
    title = described.get("image_processor_type") or described.get(
        "feature_extractor_type") or f"{kind}ImageProcessor"
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(title))
    if kind not in PROCESSORS:
        raise UserError(f"{source} has photos prepared by {title}, which is not known here; known "
                        f"are those of {', '.join(PROCESSORS)}")
    told = COMMON | PROCESSORS[kind] | {
        key: value for key, value in described.items() if value is not None}
    try:
        fields = _geometry(told, source) | _colours(told)
        Transform(**fields)  # refuses sizes and colours that no photo can have
    except WRONG as error:
        raise UserError(f"{source} has an image processor that cannot be read: {one_line(error)}"
                        ) from None
    return fields


def _geometry(told: dict, source: object) -> dict:
    """Size, resize and interpolation; crop_pct and floor_crop of what is cropped."""
    size = _sides(told["size"], told["default_to_square"])
    crop = _sides(told["crop_size"], True) if told["do_center_crop"] else None
    fields = {"interpolation": Image.Resampling(told["resample"]).name.lower()}
    edge = size.get("shortest_edge")
    whole = (size["height"], size["width"]) if set(size) == {"height", "width"} else (edge, edge)
    target = (crop["height"], crop["width"]) if crop else whole
    if told["do_resize"] and not told["do_pad"]:
        if set(size) == {"height", "width"} and target == whole:
            return fields | {"size": target, "resize": "squash"}
        share = _share(target, whole) if crop and None not in whole else None
        if share and set(size) == {"height", "width"}:
            return fields | {"size": target, "resize": "squash-crop", "crop_pct": share,
                             "floor_crop": True}
        if share and set(size) == {"shortest_edge"} and target[0] == target[1]:
            return fields | {"size": target, "resize": "crop", "crop_pct": share,
                             "floor_crop": True}
    raise UserError(
        f"{source} has photos prepared in a way that is not known here: "
        f"{f'resized to {size}' if told['do_resize'] else 'not resized'}, "
        f"{f'cropped to {crop}' if crop else 'not cropped'}{', padded' * bool(told['do_pad'])}")


def _sides(size: object, square: bool) -> dict[str, int]:
    """A size as old files have it, a number or [height, width], in the form of new ones."""
    if isinstance(size, dict):
        return {key: side for key, side in size.items() if side is not None}
    if isinstance(size, (list, tuple)):
        return {"height": size[0], "width": size[1]}
    return {"height": size, "width": size} if square else {"shortest_edge": size}


def _share(target: tuple[int, int], whole: tuple[int, int]) -> float | None:
    """``crop_pct``: what share of ``whole`` is ``target``, so that dividing by it and rounding down
    gives ``whole`` again; None where the sides differ in it, or a photo would be padded."""
    share = min(1.0, target[0] / whole[0])
    while math.floor(target[0] / share) < whole[0]:  # off by a rounding error
        share = math.nextafter(share, 0)
    fits = all(math.floor(part / share) == side >= part
               for part, side in zip(target, whole, strict=True))
    return share if fits else None


def _colours(told: dict) -> dict:
    """Mean and deviation of pixels from 0 to 1; another factor than 1 / 255 becomes part of them.
    """
    factor = 255 * told["rescale_factor"] if told["do_rescale"] else 255.0
    if math.isclose(factor, 1):
        factor = 1.0
    mean, std = ((told["image_mean"], told["image_std"]) if told["do_normalize"] else (0.0, 1.0))
    return {name: tuple(number / factor for number in (
        values if isinstance(values, (list, tuple)) else [values] * 3))
        for name, values in (("mean", mean), ("std", std))}


def sized(fields: dict, size: tuple[int, int], source: object) -> dict:
    """The fields, for a model that takes ``size``; a line where the processor has another."""
    if tuple(fields.get("size", size)) != tuple(size):
        warn(f"{source}: photos are made {size[0]} × {size[1]}, which the model takes, not "
             f"{fields['size'][0]} × {fields['size'][1]} as its image processor says")
    return fields | {"size": tuple(size)}


# --- open_clip ----------------------------------------------------------------------------------

OPENAI = {"mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD, "resize_mode": "shortest",
          "interpolation": "bicubic"}


def open_clip_fields(described: dict, size: tuple[int, int], source: object) -> dict:
    """``preprocess_cfg`` of open_clip for a model that takes ``size`` -> fields; what it leaves out
    is as OpenAI's. UserError for photos that are padded; one of WRONG for what describes none."""
    told = OPENAI | {key: value for key, value in described.items() if value is not None}
    modes = {"shortest": "crop", "squash": "squash"}
    if told["resize_mode"] not in modes:
        raise UserError(f"{source} has photos prepared in a way that is not known here: "
                        f"resize_mode {told['resize_mode']}; known are {' and '.join(modes)}")
    # "random" is of training; open_clip evaluates such models with bicubic
    interpolation = "bilinear" if told["interpolation"] == "bilinear" else "bicubic"
    side = told.get("size", size)
    fields = {"size": tuple(side) if isinstance(side, (list, tuple)) else (side, side),
              "resize": modes[told["resize_mode"]], "crop_pct": 1.0,
              "interpolation": interpolation, "mean": tuple(told["mean"]),
              "std": tuple(told["std"])}
    Transform(**fields)
    return sized(fields, size, source)
