"""Boxes of the things in photos. Needs no torch to import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils import UserError, read_json

import numpy as np

Boxes = dict[str, list[tuple[float, float, float, float]]]  # by the name of the thing


def read_boxes(path: str | Path) -> dict[str, Boxes]:
    """File name -> name of a thing -> its boxes (left, top, right, bottom) as shares of the photo's
    width and height.

    The file has COCO's format (``images`` with width and height, ``annotations`` with ``bbox``,
    ``categories``), or is ``{"<file name>": {"name": "dog", "boxes": [[left, top, right, bottom],
    …]}, …}`` with shares. Raises UserError for any other format, and for a box that is not one.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} where an object with boxes "
                        "belongs")
    coco = {"images", "annotations"} <= content.keys()
    try:
        found = _from_coco(content) if coco else {
            name: {entry["name"]: [tuple(box) for box in entry["boxes"]]}
            for name, entry in content.items()}
        for name, kinds in found.items():
            for kind, boxes in kinds.items():
                _check(path, name, kind, boxes)
    except KeyError as error:
        what = (f"{error} in one of its entries" if isinstance(error.args[0], str) else
                f"the image or the category {error}, which an annotation names")
        raise UserError(f"{path} lacks {what}; add it") from None
    except (TypeError, ValueError, AttributeError, ZeroDivisionError):
        raise UserError(f"{path} must be a COCO instances file, or "
                        '{"<file name>": {"name": "dog", "boxes": [[left, top, right, bottom], '
                        "…]}, …} with shares from 0 to 1") from None
    return {name: kinds for name, kinds in found.items() if kinds}


def _from_coco(content: dict) -> dict[str, Boxes]:
    images = {image["id"]: image for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    found: dict[str, Boxes] = {image["file_name"]: {} for image in images.values()}
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        left, top, width, height = annotation["bbox"]  # pixels
        box = (left / image["width"], top / image["height"],
               (left + width) / image["width"], (top + height) / image["height"])
        kinds = found[image["file_name"]]
        kinds.setdefault(names[annotation["category_id"]], []).append(box)
    return found


def _check(path: str | Path, name: str, kind: str, boxes: list[tuple]) -> None:
    """UserError, or ValueError, for what is no list of boxes inside a photo."""
    if not (isinstance(name, str) and isinstance(kind, str) and kind.strip() and boxes):
        raise ValueError
    for left, top, right, bottom in boxes:
        sides = np.array([left, top, right, bottom], dtype=float)
        if not (np.isfinite(sides).all() and sides.min() >= -0.01 and sides.max() <= 1.01
                and left <= right and top <= bottom):
            raise UserError(f"{path}: {name} has the box {[left, top, right, bottom]}; a box is "
                            "left, top, right, bottom inside the photo, as shares from 0 to 1 "
                            "(in COCO's format: pixels, with the photo's width and height)")


def boxes_of(paths: Sequence[Path], path: str | Path) -> dict[Path, Boxes]:
    """The boxes of those of ``paths`` that the file ``path`` has boxes for, by their file names;
    UserError where it has none for any of them."""
    named = read_boxes(path)
    found = {photo: named[photo.name] for photo in paths if photo.name in named}
    if not found:
        raise UserError(f"{path} has boxes for none of the {len(paths)} images; its file names, "
                        f"such as {next(iter(named), 'none')}, must be theirs")
    return found
