"""The page of a classifier's attention: what the class token and every patch attend to in each
layer and head, rollout, and the relevance for the likeliest classes. Needs no torch to import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils import printable

import numpy as np

from data.batches import normalized_batches
from data.compute import Compute
from data.photos import load_image
from figures import page

if TYPE_CHECKING:
    import torch

    from models.classifier import Classifier

LIKELIEST = 5  # classes whose relevance the page has


def write_patch_page(
    classifier: Classifier, paths: Sequence[Path], compute: Compute, layer: int, file: str | Path
) -> None:
    """Write the page ``file`` of the photos ``paths`` that can be read; it opens with ``layer``.

    The model is on ``compute.device``. Memory is needed for one photo's attention at a time.
    """
    from models.attention import has_class_token

    model = classifier.model
    about = {"layers": len(model.blocks), "layer": layer % len(model.blocks),
             "start": "class token" if has_class_token(model) else "mean of the patches"}
    with page.html_page(file, "patches", about) as add:
        for names, images in normalized_batches(classifier.transform, paths, compute, [], "page"):
            for place, path in enumerate(names):
                add(*_patch_record(classifier, path, images[place:place + 1], len(paths)))


def _patch_record(
    classifier: Classifier, path: Path, image: torch.Tensor, photos: int
) -> tuple[dict, dict]:
    """(entry, record) of one normalized image (1, 3, H, W).

    The class token's maps of all layers and heads are kept. The maps of every patch are as many
    numbers as there are pairs of patches: they are kept as far as the page has room, first the mean
    over the heads, of the last layer and of others far from each other, then each head, from the
    last layer on.
    """
    import torch

    from models import attention as A

    model, photo = classifier.model, load_image(path, (page.SIDE, page.SIDE))
    grid, layers = A.patch_grid(model, image), range(len(model.blocks))
    with torch.no_grad(), A.capture_attention(model, layers) as captured:
        shares = model(image).float().softmax(1)[0].cpu().numpy()

    def maps_of(weights: torch.Tensor) -> np.ndarray:  # (…, N, N) -> (…, 1 + patches, rows, cols)
        prefix = model.num_prefix_tokens
        patches = weights[..., prefix:, prefix:]
        start = (weights[..., :1, prefix:] if A.has_class_token(model)
                 else patches.mean(-2, keepdim=True))
        return torch.cat([start, patches], -2).unflatten(-1, grid).numpy()

    record = page.photo_record(photo, classifier.transform.box(*photo.size))
    record |= {"name": printable(path.name), "grid": list(grid),
               "rollout": page.packed_maps(maps_of(A.rollout(list(captured.values())))[0, :1]),
               **_relevance(classifier, image, shares), "layers": []}
    for layer in layers:
        heads = maps_of(captured[layer][0])
        start = {"mean": page.packed_maps(heads[:, 0].mean(0)[None]),
                 "heads": page.packed_maps(heads[:, 0])}
        record["layers"].append({"start": start})
    room = page.Room(photos, record)
    for layer in page.farthest_first(len(layers)):
        mean = page.packed_maps(maps_of(captured[layer][0].mean(0))[1:])
        if not room.takes(mean):
            break
        record["layers"][layer]["mean"] = mean
    else:
        for layer in reversed(layers):
            heads = [page.packed_maps(maps_of(head)[1:]) for head in captured[layer][0]]
            if not room.takes(heads):
                break
            record["layers"][layer]["heads"] = heads
    return {"name": record["name"], "thumbnail": page.picture(photo, page.THUMBNAIL)}, record


def _relevance(classifier: Classifier, image: torch.Tensor, shares: np.ndarray) -> dict:
    """The likeliest classes and the relevance for each (Chefer et al. 2021); nothing of a model
    without classes."""
    import torch

    from models.attention import attention_maps

    if not classifier.classes:
        return {"classes": []}
    best = np.argsort(-shares, kind="stable")[:LIKELIEST].tolist()
    maps = [attention_maps(classifier.model, image, "relevance", targets=torch.tensor([index]))[0]
            for index in best]
    names = [printable(classifier.name_of(classifier.classes[index])) for index in best]
    return {"classes": [{"name": name.replace("_", " "), "share": round(float(shares[index]), 5)}
                        for name, index in zip(names, best, strict=True)],
            "relevance": page.packed_maps(torch.cat(maps)[:, 0].numpy())}
