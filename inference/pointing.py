"""The pointing game: how often the maps of photos peak inside a box of the thing that they are
about (``metrics.pointing``)."""

from __future__ import annotations

from pathlib import Path

from utils import UserError

import torch

from data.batches import normalized_batches
from data.boxes import Boxes
from data.compute import Compute
from data.files import markdown_table
from data.photos import load_image
from data.transform import Transform
from figures.style import layer_name
from inference.caption import encode
from inference.words import END, word_maps
from metrics import pointing
from models import attention as A
from models.captioner import Captioner, Memory
from models.classifier import Classifier

Points = dict[str, list[tuple[bool, float]]]  # by the map's name; what ``pointing.point`` returns


def seen_part(transform: Transform, path: Path) -> pointing.Box:
    """The part of a photo that the model sees, as shares of its width and height."""
    width, height = load_image(path, (480, 480)).size
    left, top, right, bottom = transform.box(width, height)
    return left / width, top / height, right / width, bottom / height


def point_words(
    captioner: Captioner, boxes: dict[Path, Boxes], compute: Compute, unreadable: list
) -> Points:
    """For each decoder layer, where the map of a thing's name peaks while the captioner is made to
    write "a <name>"; of a name of several words, and of several heads, the mean map counts."""
    names = [layer_name(layer, captioner.num_layers) for layer in range(captioner.num_layers)]
    points: Points = {name: [] for name in names}
    captioner.to(compute.device).eval()
    for paths, images in normalized_batches(
            captioner.transform, list(boxes), compute, unreadable, "pointing"):
        memory = encode(captioner, images, compute)
        asked = [(row, kind) for row, path in enumerate(paths) for kind in boxes[path]]
        rows = [row for row, _ in asked]
        repeated = Memory(memory.features[rows], [memory.grids[row] for row in rows],
                          None if memory.mask is None else memory.mask[rows])
        texts = [[*captioner.tokenizer.encode(f"a {kind}"), captioner.tokenizer.end_id]
                 [:captioner.max_length] for _, kind in asked]
        seen = [seen_part(captioner.transform, path) for path in paths]
        for layer, name in enumerate(names):
            for (row, kind), (words, heads) in zip(
                    asked, word_maps(captioner, repeated, texts, layer), strict=True):
                thing = [place for place, word in enumerate(words) if place and word != END]
                heat = heads[:, thing].mean((0, 1))
                points[name].append(pointing.point(heat, seen[row], boxes[paths[row]][kind]))
    return points


def point_classes(
    classifier: Classifier, boxes: dict[Path, Boxes], compute: Compute, unreadable: list
) -> tuple[Points, int]:
    """(for ``last`` of each layer, ``rollout`` and ``relevance``, where the maps peak; how many
    maps of relevance speak for the class that has the thing's name). Where the model has no such
    class, relevance speaks for the predicted one."""
    model, own = classifier.model, 0
    points: Points = {}
    for paths, images in normalized_batches(
            classifier.transform, list(boxes), compute, unreadable, "pointing"):
        asked = [(row, kind) for row, path in enumerate(paths) for kind in boxes[path]]
        rows = [row for row, _ in asked]
        layers, logits = A.maps_of_layers(model, images)
        found = {f"last, {layer_name(layer, len(layers))}": heats[rows]
                 for layer, heats in enumerate(layers)}
        found["rollout"] = A.attention_maps(model, images, "rollout")[0][rows, 0]
        classes = [_class_of(classifier, kind) for _, kind in asked]
        own += sum(index is not None for index in classes)
        targets = torch.tensor([logits[row].argmax() if index is None else index
                                for row, index in zip(rows, classes, strict=True)])
        found["relevance"] = A.attention_maps(model, images[rows], "relevance",
                                              targets=targets)[0][:, 0]
        seen = [seen_part(classifier.transform, path) for path in paths]
        for name, heats in found.items():
            points.setdefault(name, []).extend(
                pointing.point(heat, seen[row], boxes[paths[row]][kind])
                for (row, kind), heat in zip(asked, heats.numpy(), strict=True))
    return points, own


def _class_of(classifier: Classifier, kind: str) -> int | None:
    try:
        return classifier.index_of(kind, "--boxes")
    except UserError:
        return None


def pointing_table(points: Points) -> tuple[list[dict], str]:
    """(a row for each map's name, for JSON; the same as a Markdown table)."""
    rows = [{"map": name, **pointing.summarize(each)} for name, each in points.items()]
    return rows, markdown_table(["map", "peaks inside a box", "share", "95 %", "by chance"], [
        [row["map"], f"{row['hits']} of {row['maps']}", f"{row['share']:.1%}",
         "{:.1%} - {:.1%}".format(*row["share_95"]), f"{row['chance']:.1%}"] for row in rows])
