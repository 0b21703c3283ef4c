"""Caption files: references in COCO's format, predictions, and which belongs to which image."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from utils import UserError, printable, read_json, warn, whole_file

from data.files import print_some, read_lines
from data.folders import spread, stem_of
from data.formats import IMAGE_EXTENSIONS

# --- references ---------------------------------------------------------------------------------


def read_captions(path: str | Path) -> dict[str, list[str]]:
    """File name -> its reference captions, from COCO's format (``images`` and ``annotations``).

    Raises UserError for any other format, for duplicate ids and for images without captions.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} where an object with images and "
                        "annotations belongs")
    images, annotations = content.get("images"), content.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise UserError(f"{path} needs the lists images and annotations (COCO's caption format)")
    try:
        names = {image["id"]: image["file_name"] for image in images}
        if len(names) < len(images) or len(set(names.values())) < len(images):
            raise UserError(f"{path} lists an image twice (by id or by file_name); keep one")
        captions: dict[object, list[str]] = {identity: [] for identity in names}
        for annotation in annotations:
            captions[annotation["image_id"]].append(annotation["caption"])
        annotation_ids = {annotation.get("id", index) for index, annotation
                          in enumerate(annotations)}
    except KeyError as error:
        raise UserError(f"{path}: an image or annotation lacks {error}, or an annotation names an "
                        "image that is not in images") from None
    except (TypeError, AttributeError):
        raise UserError(f"{path}: images and annotations must hold objects like "
                        '{"file_name", "id"} and {"caption", "id", "image_id"}') from None
    if len(annotation_ids) < len(annotations):
        raise UserError(f"{path} holds two annotations with one id; give each its own")
    for identity, name in names.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: file_name of image {identity} is not a string")
        if not captions[identity]:
            raise UserError(f"{path}: image {name} has no reference caption; add one, or remove "
                            "the image")
        if not all(isinstance(caption, str) for caption in captions[identity]):
            raise UserError(f"{path}: a caption of image {name} is not a string")
    return {name: captions[identity] for identity, name in names.items()}


def captioned_images(
    folder: str | Path, source: str | Path, limit: int | None = None
) -> dict[Path, list[str]]:
    """Image file in ``folder`` -> its captions in ``source`` (COCO's format); ``limit`` keeps that
    many, spread evenly. Raises UserError that names files which are not there."""
    captions = read_captions(source)
    images = dict(zip(photos_called(captions, folder, f" in {source}"), captions.values(),
                      strict=True))
    return {path: images[path] for path in spread(list(images), limit)}


def photos_called(names: Iterable[str], folder: str | Path, where: str = "") -> list[Path]:
    """The images in ``folder`` called ``names``, which stand ``where``; UserError that names those
    which are not there."""
    if not Path(folder).is_dir():
        raise UserError(f"image folder {folder} does not exist")
    paths = [Path(folder) / name for name in names]
    missing = [str(path.relative_to(folder)) for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(paths)} images{where} are not in {folder} "
                        f"({', '.join(missing[:5])}{', …' * (len(missing) > 5)})")
    return paths


# --- training -----------------------------------------------------------------------------------


def captioned_sources(
    folders: Sequence[str | Path], files: Sequence[str | Path], limit: int | None = None
) -> list[dict[Path, list[str]]]:
    """``captioned_images`` of each pair of a folder and its caption file, ``limit`` of each.

    Raises UserError where the counts differ or one photo is in two pairs.
    """
    if len(folders) != len(files):
        raise UserError(f"{len(folders)} image folders and {len(files)} caption files: give one "
                        "caption file for each folder, in the same order")
    sources = [captioned_images(folder, file, limit)
               for folder, file in zip(folders, files, strict=True)]
    seen: set[Path] = set()
    for source in sources:
        for path in source:
            if path.resolve() in seen:
                raise UserError(f"{path} is in two of the caption files; keep it in one")
        seen.update(path.resolve() for path in source)
    return sources


def training_photos(
    folders: Sequence[str | Path], files: Sequence[str | Path],
    val_folders: Sequence[str | Path] | None = None,
    val_files: Sequence[str | Path] | None = None, held_out: int = 400, limit: int | None = None,
) -> tuple[dict[Path, list[str]], list[dict[Path, list[str]]]]:
    """(photos to train on, the validation photos of each source), each photo with its captions.

    A source is a folder with its caption file, and ``limit`` photos of each training source are
    used. Without ``val_files``, ``held_out`` photos of each source are not trained on but validate.
    Raises UserError where a source has fewer than two validation photos, too few for CIDEr.
    """
    sources = captioned_sources(folders, files, limit)
    if val_files:
        val = captioned_sources(val_folders or folders, val_files)
    else:
        parts = [hold_out(list(source.items()), held_out) for source in sources]
        sources, val = ([dict(part) for part in side] for side in zip(*parts, strict=True))
    if any(len(part) < 2 for part in val):
        raise UserError("CIDEr needs at least two images of each source to validate on; hold out "
                        "more, or give larger --val-captions")
    return {path: texts for source in sources for path, texts in source.items()}, val


def hold_out(items: Sequence, count: int) -> tuple[list, list]:
    """(the other items, ``count`` of ``items`` spread evenly over them), the same ones every time.

    Raises UserError where no other item would be left.
    """
    if count >= len(items):
        raise UserError(f"{len(items)} photos are too few to hold out {count} of them for "
                        "validation; give a smaller --hold-out")
    places = {(2 * i + 1) * len(items) // (2 * count) for i in range(count)}
    return ([item for place, item in enumerate(items) if place not in places],
            [item for place, item in enumerate(items) if place in places])


def language_texts(
    files: Sequence[str | Path], count: int | None = None
) -> tuple[list[str], list[str]]:
    """(captions to train on, captions to validate on) of caption files.

    With ``count`` the second are those of the photos that ``training_photos`` holds out of each
    file in COCO's format, and none of them is trained on, whichever file repeats it; without it
    they are a twentieth of all captions.
    """
    texts = [text for path in files for text in read_texts(path)]
    if not count:
        if len(texts) < 2:
            raise UserError(f"{', '.join(map(str, files))}: too few captions, at least two are "
                            "needed; give a file with more")
        return hold_out(texts, max(len(texts) // 20, 1))
    val = [text for path in files if _has_images(path)
           for _, captions in hold_out(list(read_captions(path).items()), count)[1]
           for text in captions]
    if not val:
        raise UserError("--hold-out holds out photos of files in COCO's format, and no such file "
                        "is given; add one, or leave --hold-out out")
    unseen = {text.strip() for text in val}
    return [text for text in texts if text.strip() not in unseen], val


def _has_images(path: str | Path) -> bool:
    return Path(path).suffix.lower() != ".txt" and "annotations" in read_json(path)


def read_texts(path: str | Path) -> list[str]:
    """Every caption of a file in COCO's format, of ``{"<image name>": ["caption", …], …}``, or of a
    ``.txt`` file with one caption a line."""
    if Path(path).suffix.lower() == ".txt":
        return [line for line in map(str.strip, read_lines(path)) if line]
    content = read_json(path)
    if isinstance(content, dict) and "annotations" not in content:
        captions = content
    else:
        captions = read_captions(path)
    if not captions or not all(
            isinstance(texts, list) and all(isinstance(text, str) for text in texts)
            for texts in captions.values()):
        raise UserError(f"{path} must hold captions in COCO's format, or "
                        '{"<image name>": ["caption", …], …}')
    return [text for texts in captions.values() for text in texts]


# --- predictions --------------------------------------------------------------------------------


def write_predictions(captions: Callable[[], Iterable], count: int, output: str | Path) -> None:
    """Write ``{"<name without its last extension>": "caption", …}`` row by row, and print the first
    rows. ``captions()`` gives the ``count`` (name of a photo, caption), as often as it is called.
    """
    with whole_file(output) as temporary, open(temporary, "w", encoding="ascii") as file:
        before = "{"
        for name, text in captions():
            file.write(f"{before}\n  {json.dumps(stem_of(name))}: {json.dumps(text)}")
            before = ","
        file.write("\n}\n")
    warn(f"wrote {output}")
    print_some((f"{printable(name):24} {text}" for name, text in captions()), count, output)


def read_predictions(path: str | Path) -> dict[str, str]:
    """``{"<image name>": "caption", …}``; UserError for anything else."""
    predictions = read_json(path)
    if not isinstance(predictions, dict):
        raise UserError(f"{path} holds a {type(predictions).__name__} where an object "
                        '{"<image name>": "caption"} belongs')
    for name, caption in predictions.items():
        if not isinstance(caption, str):
            raise UserError(f"{path}: the prediction of {name} is not a string")
    return predictions


def match_predictions(
    predictions: dict[str, str], references: dict[str, list[str]], allow_missing: bool = False
) -> list[tuple[str, str]]:
    """(prediction's name, reference's name) pairs in the order of the references.

    Names match as they are, or without the extension of an image file on either side. Raises
    UserError that lists the first five names without a match, unless ``allow_missing``.
    """
    by_stem: dict[str, str] = {}
    for name in predictions:
        other = by_stem.setdefault(_image_stem(name), name)
        if other != name:
            raise UserError(f"predictions {other} and {name} are of one image; keep one")
    pairs, missing = [], []
    for image in references:
        name = image if image in predictions else by_stem.get(_image_stem(image))
        pairs.append((name, image)) if name is not None else missing.append(image)
    if len({name for name, _ in pairs}) < len(pairs):
        raise UserError("two reference images differ only in their extension; name predictions "
                        "with it, so that they can be told apart")
    if not pairs:
        raise UserError("no prediction is of an image that has references: predictions are called "
                        f"{_first(predictions)}, images {_first(references)}; give the files of "
                        "one set of photos")
    matched = {name for name, _ in pairs}
    extra = [name for name in predictions if name not in matched]
    problems = [f"{len(names)} {what} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
                for what, names in (("images have no prediction", missing),
                                    ("predictions have no reference", extra)) if names]
    if problems and not allow_missing:
        raise UserError(f"{'; '.join(problems)}; --allow-missing scores the other {len(pairs)}")
    return pairs


def of_images(
    named: dict[str, object], paths: Sequence[Path], source: object
) -> dict[Path, object]:
    """Each image's entry of ``named``, which was read from ``source``; names match as in
    ``match_predictions``. Raises UserError that lists the first five images without one."""
    images = {path.name: path for path in paths}
    pairs = match_predictions(named, dict.fromkeys(images, []), allow_missing=True)
    found = {images[image]: named[name] for name, image in pairs}
    missing = [path.name for path in paths if path not in found]
    if missing:
        raise UserError(f"{source} has no caption for {len(missing)} of {len(paths)} images "
                        f"({', '.join(missing[:5])}{', …' * (len(missing) > 5)})")
    return found


def _first(names: Iterable[str]) -> str:
    """The first three names; "nothing" where there is none."""
    return ", ".join([*names][:3]) + ", …" * (len([*names]) > 3) or "nothing"


def _image_stem(name: str) -> str:
    """``a.b.jpg`` and ``a.b`` -> ``a.b``: only the extension of an image file is one."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in IMAGE_EXTENSIONS else name
