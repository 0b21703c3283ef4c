"""Which label each image has, and what labels are called. Needs no torch to import."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils import UserError, one_line, read_json, read_text, warn

import numpy as np

from data.files import read_mapping
from data.folders import spread
from data.photos import list_images

Classes = Mapping[str, str] | Sequence[str]  # labels, with their readable names where known

# --- the label of each image --------------------------------------------------------------------


def read_labels(
    paths: Sequence[Path], labels_csv: str | Path | None = None,
    known_classes: Classes | None = None,
) -> list[str]:
    """The label of each image, from a CSV ``filename,label`` or else from its file name.

    Where ``known_classes`` are given, an image may also have the readable name of one of them, or
    its number written as 11.0. Where file names can be read in two ways, one line on stderr says
    which was taken, and how many classes there are. Raises UserError where an image has no label,
    or two.
    """
    if labels_csv is None:
        labels, about = _split_names(paths, known_classes)
        if "" in labels:
            raise UserError(f"{paths[labels.index('')].name} carries no label: name files "
                            "<label>_<anything>.<ext>, or give a CSV filename,label (see --help)")
        if about:
            warn(about)
        return labels
    table = read_mapping(labels_csv, "filename", "label")
    if any(path.name not in table for path in paths):
        table = _without_folders(table, labels_csv) | table
    missing = [path.name for path in paths if not table.get(path.name)]
    if missing:
        raise UserError(f"{labels_csv} has no label for {len(missing)} of {len(paths)} images, "
                        f"the first is {missing[0]}; it has {', '.join([*table][:3])}, …")
    return as_known([table[path.name] for path in paths], known_classes)


def _without_folders(table: dict[str, str], labels_csv: str | Path) -> dict[str, str]:
    """A table of file names without the folders before them, of any system; UserError where one
    name then has two labels."""
    found: dict[str, str] = {}
    for written, label in table.items():
        name = re.split(r"[/\\]", written)[-1]
        if found.setdefault(name, label) != label:
            raise UserError(f"{labels_csv} has {name} in several folders, with label "
                            f"{found[name]} and with label {label}; keep the rows of one folder")
    return found


def labels_in_names(paths: Sequence[Path], known_classes: Classes | None = None) -> list[str]:
    """The labels that ``read_labels`` takes from file names, without a word about it; "" for an
    image whose name carries none."""
    return _split_names(paths, known_classes)[0]


def _split_names(
    paths: Sequence[Path], known_classes: Classes | None
) -> tuple[list[str], str]:
    """(labels, which part of the names they are; "" where both possible parts are the same).

    Most names are ``<label>_<anything>``. Where most end in a number, ``american_bulldog_1``, the
    label is what stands before it; but where most begin with a number, ``0_cat_2``, that is the
    label. Known classes decide where one of both finds more of them.
    """
    stems = [path.stem for path in paths]
    before_first = [stem[:max(stem.find("_"), 0)] for stem in stems]
    before_last = [stem[:max(stem.rfind("_"), 0)] for stem in stems]
    rules = {"first": as_known(before_first, known_classes),
             "last": as_known(before_last, known_classes)}
    end_in_number = sum(bool(re.search(r"_\d+$", stem)) for stem in stems)
    begin_with_number = sum(bool(re.match(r"\d+_", stem)) for stem in stems)
    rule = "last" if 2 * end_in_number > len(stems) >= 2 * begin_with_number else "first"
    if known_classes:
        known = set(known_classes)
        found = {name: sum(label in known for label in labels) for name, labels in rules.items()}
        rule = max((rule, "first", "last"), key=found.get)  # the first of equals
    about = (f"the labels are what stands before the {rule} _ of each file name: "
             f"{len(set(rules[rule]))} classes in {len(paths)} images")
    return rules[rule], about if rules["first"] != rules["last"] else ""


def as_known(labels: Sequence[str], known_classes: Classes | None = None) -> list[str]:
    """``labels`` as the known classes call them, and unknown ones as they are. Without known
    classes: as they are, but where all are numbers, 11.0, as table programs write it, is 11."""
    if not known_classes:
        numbers = all(re.fullmatch(r"\d+(\.0+)?", label) for label in labels)
        return [label.partition(".")[0] if numbers else label for label in labels]
    named = [(_plain(name), label) for label, name in _with_names(known_classes).items() if name]
    count = Counter(name for name, _ in named)
    known = {name: label for name, label in named if count[name] == 1}  # else it tells nothing
    known |= {f"{label}.0": label for label in known_classes}
    known |= {label: label for label in known_classes}
    return [known.get(label) or known.get(_plain(label), label) for label in labels]


def _plain(name: str) -> str:
    """A name without what people write differently: case, and underscores for spaces."""
    return one_line(name.replace("_", " ")).casefold()


def _with_names(classes: Classes) -> dict[str, str]:
    """Label -> readable name, "" where it has none."""
    return dict(classes) if isinstance(classes, Mapping) else dict.fromkeys(classes, "")


# --- classes ------------------------------------------------------------------------------------


def labelled_folders(
    train: str | Path, val: str | Path | None, hold_out: bool, labels_csv: str | Path | None = None,
    limit: int | None = None,
) -> tuple[tuple[list[Path], list[str]], tuple[list[Path], list[str]]]:
    """((training images, their labels), (validation images, their labels)).

    Validation images are those of the folder ``val``, or with ``hold_out`` a tenth of the training
    folder, which are then not trained on, or else none. ``limit`` keeps that many of each folder,
    of the training folder at least one of each label.
    """
    paths = list_images(train)
    labels = read_labels(paths, labels_csv)
    if limit is not None:
        kept = spread_over_labels(labels, limit)
        paths, labels = [paths[i] for i in kept], [labels[i] for i in kept]
    if val:
        val_paths = list_images(val, limit)
        return (paths, labels), (val_paths, read_labels(val_paths, labels_csv, sort_labels(labels)))
    if not hold_out:
        return (paths, labels), ([], [])
    parts = hold_out_tenth(paths, labels)
    return tuple(([paths[i] for i in part], [labels[i] for i in part]) for part in parts)


def spread_over_labels(labels: Sequence[str], limit: int) -> list[int]:
    """Indices of ``limit`` items in their order: the first of each label, and others spread evenly.

    Raises UserError where there are more labels than ``limit``.
    """
    first = {label: index for index, label in reversed([*enumerate(labels)])}
    if limit < len(first):
        raise UserError(f"--limit {limit} is less than an image of each of the {len(first)} "
                        f"labels; give at least {len(first)}")
    others = sorted({*range(len(labels))} - {*first.values()})
    return sorted([*first.values(), *spread(others, limit - len(first))])


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


def read_class_names(path: str | Path, classes: Sequence[str]) -> dict[str, str]:
    """Label -> readable name of a model's ``classes``, from a list (one name a line, or JSON) in
    their order, or from a JSON object, label to name or name to label.

    Raises UserError where the file names other classes.
    """
    text = read_text(path).lstrip()
    content = read_json(path) if text[:1] in "[{" else [
        line for line in text.splitlines() if line.strip()]
    if isinstance(content, dict) and all(type(label) is int for label in content.values()):
        content = {str(label): name for name, label in content.items()}  # a label2id
    names = dict(zip(classes, content, strict=False)) if isinstance(content, list) else content
    if not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise UserError(f"{path} must list names, or be a JSON object like "
                        '{"0": "Abyssinian", "1": "beagle"}')
    if len(content) != len(classes) or names.keys() != set(classes):
        shown = ", ".join(map(str, list(content)[:3]))
        raise UserError(f"{path} names {len(content)} classes ({shown}, …), "
                        f"the model has {len(classes)} ({', '.join(classes[:3])}, …); give the "
                        "names of the model's classes")
    return {label: one_line(name) for label, name in names.items()}


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
    labels: Sequence[str], classes: Classes, source: object, owner: object = "the model",
    remedy: str = "correct it, or use a checkpoint that was trained with this label",
) -> np.ndarray:
    """Labels, read from ``source`` -> indices (N,) into the ``classes`` of ``owner``; UserError
    with a ``remedy`` for a label that is none of them."""
    names = _with_names(classes)
    index = {label: i for i, label in enumerate(names)}
    unknown = sort_labels([label for label in labels if label not in index])
    if unknown:
        first, *_, last = (f"{label} {name}".strip() for label, name in [*names.items()] * 2)
        spelled = {_plain(text): text for text in (*names, *names.values())}
        near = difflib.get_close_matches(_plain(unknown[0]), spelled, 1)
        hint = f" (did you mean {spelled[near[0]]}?)" if near else ""
        raise UserError(f"label {unknown[0]}{hint} in {source} is none of {owner}'s {len(index)} "
                        f"labels ({first} … {last}); {remedy}")
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
