"""Which label each image has, and what labels are called. Needs no torch to import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils import UserError, one_line, read_csv, read_json

import numpy as np

from data.photos import list_images


def label_from_name(path: Path) -> str:
    """``<label>_<anything>.<ext>`` -> label."""
    label, separator, _ = path.name.partition("_")
    if not separator or not label:
        raise UserError(f"{path.name} carries no label: name files <label>_<anything>.<ext>, "
                        "or give a CSV filename,label (see --help)")
    return label


def read_labels(paths: Sequence[Path], labels_csv: str | Path | None = None) -> list[str]:
    """The label of each image: from its file name, or from a CSV ``filename,label``."""
    if labels_csv is None:
        return [label_from_name(path) for path in paths]
    table = {row["filename"]: row["label"] for row in read_csv(labels_csv, "filename", "label")}
    missing = [path.name for path in paths if not table.get(path.name)]
    if missing:
        raise UserError(f"{labels_csv} has no label for {len(missing)} of {len(paths)} images, "
                        f"the first is {missing[0]}")
    return [table[path.name] for path in paths]


def labelled_folders(
    train: str | Path, val: str | Path | None, hold_out: bool, labels_csv: str | Path | None = None,
    limit: int | None = None,
) -> tuple[tuple[list[Path], list[str]], tuple[list[Path], list[str]]]:
    """((training images, their labels), (validation images, their labels)).

    Validation images are those of the folder ``val``, or with ``hold_out`` a tenth of the training
    folder, which are then not trained on, or else none. ``limit`` keeps that many of each folder.
    """
    paths = list_images(train, limit)
    labels = read_labels(paths, labels_csv)
    if val:
        val_paths = list_images(val, limit)
        return (paths, labels), (val_paths, read_labels(val_paths, labels_csv))
    if not hold_out:
        return (paths, labels), ([], [])
    parts = hold_out_tenth(paths, labels)
    return tuple(([paths[i] for i in part], [labels[i] for i in part]) for part in parts)


def sort_labels(labels: Sequence[str]) -> list[str]:
    """The distinct labels, by number where all are numbers, else by text."""
    distinct = set(labels)
    numeric = all(label.isascii() and label.isdigit() for label in distinct)
    return sorted(distinct, key=lambda label: (int(label) if numeric else 0, label))


def read_names(path: str | Path) -> dict[str, str]:
    """``{"0": "Abyssinian", …}``: label -> readable name."""
    names = read_json(path)
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f'{path} must be a JSON object like {{"0": "Abyssinian", "1": "beagle"}}')
    return names


def read_classes(path: str | Path) -> dict[str, str]:
    """``{"0": "bicycle", …}`` -> label: name to look for, by label, underscores made spaces.

    Raises UserError for no class, an empty label or name, and two classes of one name: no model
    could tell those apart.
    """
    names = {label: one_line(name.replace("_", " ")) for label, name in read_names(path).items()}
    if not names:
        raise UserError(f'{path} names no class; it must be like {{"0": "bicycle", "1": "chair"}}')
    by_name: dict[str, str] = {}
    for label, name in names.items():
        if not name or not label.strip():
            raise UserError(f'{path}: "{label}": "{name}" lacks a label or a name')
        other = by_name.setdefault(name.casefold(), label)
        if other != label:
            raise UserError(f"{path}: classes {other} and {label} have one name, {name}; "
                            "give each its own")
    return {label: names[label] for label in sort_labels(list(names))}


def find_names(folder: str | Path, path: str | Path | None) -> dict[str, str]:
    """Names from ``path``, else from an ``id2label.json`` in ``folder`` or beside it, else {}."""
    if path is not None:
        return read_names(path)
    folder = Path(folder).resolve()
    found = [place / "id2label.json" for place in (folder, folder.parent)
             if (place / "id2label.json").is_file()]
    return read_names(found[0]) if found else {}


def class_indices(
    labels: Sequence[str], classes: Sequence[str], source: object, owner: object = "the model",
    remedy: str = "another checkpoint is needed",
) -> np.ndarray:
    """Labels, read from ``source`` -> indices (N,) into the ``classes`` of ``owner``; UserError
    with a ``remedy`` for a label that is none of them."""
    index = {label: i for i, label in enumerate(classes)}
    unknown = sort_labels([label for label in labels if label not in index])
    if unknown:
        raise UserError(f"label {unknown[0]} in {source} is none of {owner}'s {len(classes)} "
                        f"labels ({classes[0]} … {classes[-1]}); {remedy}")
    return np.array([index[label] for label in labels], dtype=np.int64)


def hold_out_tenth(paths: Sequence[Path], labels: Sequence[str]) -> tuple[list[int], list[int]]:
    """(train, held-out) indices: a tenth of the images, the same number of each label.

    No randomness, so that everyone who tunes on one folder holds out the same images: they are
    spread evenly over each label's names. A rare label gives at most a third of its images. Equal
    numbers, because a test usually weighs labels alike however unequal the training folder is.
    """
    by_label: dict[str, list[int]] = {}
    for index in sorted(range(len(paths)), key=lambda i: paths[i].name):
        by_label.setdefault(labels[index], []).append(index)
    share = max(len(paths) // (10 * len(by_label)), 1)
    held_out = set()
    for indices in by_label.values():
        count = min(share, len(indices) // 3)
        held_out |= {indices[(2 * k + 1) * len(indices) // (2 * count)] for k in range(count)}
    if not held_out:
        raise UserError(f"{len(paths)} images are too few to hold out a tenth of them")
    return [i for i in range(len(paths)) if i not in held_out], sorted(held_out)
