"""What a vision transformer looks at in photos: maps with their numbers, and how far they can be
believed."""

from __future__ import annotations

import numpy as np
import torch

from data.batches import normalized_batches
from data.compute import autocast
from data.photos import report_unreadable
from metrics import faithfulness
from models import attention as A


def explain(model, images, method, layer, heads, targets=()):
    """(maps (B, heads or classes or 1, rows, cols), probabilities (B, classes), entropies of the
    maps in bits, of the same count, mean attention distances (B, heads) in pixels) of normalized
    images (B, 3, H, W), all numpy. ``relevance`` explains each of the class indices ``targets``; by
    default each image's predicted class."""
    with A.capture_attention(model, [layer]) as captured:
        found = [A.attention_maps(
            model, images, method, layer=layer, heads=heads,
            targets=None if target is None else torch.full((len(images),), target))
            for target in targets or [None]]
    grids, logits = torch.cat([grids for grids, _ in found], 1), found[0][1]
    distances = A.mean_attention_distance(
        captured[layer], A.patch_grid(model, images), image_size=images.shape[-2:],
        prefix=model.num_prefix_tokens)
    return tuple(part.numpy() for part in (
        grids, logits.softmax(-1), A.entropy(grids), distances))


def predicted(classifier, probabilities):
    """Label, name and probability of the most probable class."""
    if not classifier.classes:
        return {"label": None, "name": "no classifier head", "probability": None}
    label = classifier.classes[probabilities.argmax()]
    return {"label": label, "name": classifier.name_of(label),
            "probability": float(probabilities.max())}


def faithfulness_of_methods(classifier, paths, compute, seed):
    """({method: mean areas under the deletion and insertion curves of photos, with intervals},
    unreadable photos); one of the methods is a random order, for comparison."""
    unreadable, areas, done = [], {}, 0
    for _, images in normalized_batches(
            classifier.transform, paths, compute, unreadable, "faithfulness"):
        measured = measure_faithfulness(classifier.model, images, compute, seed, done)
        done += len(images)
        for method, parts in measured.items():
            areas.setdefault(method, []).append(parts)
    report_unreadable(list(areas), unreadable)
    table = {}
    for method, parts in areas.items():
        deletion, insertion = (np.concatenate(part) for part in zip(*parts, strict=True))
        table[method] = {"deletion": faithfulness.mean_with_interval(deletion),
                         "insertion": faithfulness.mean_with_interval(insertion)}
    return table, unreadable


def measure_faithfulness(model, images, compute, seed, first=0):
    """{method: (deletion areas (B,), insertion areas (B,))} of normalized images (B, 3, H, W) by
    every method, and by a random order for comparison; ``first`` is the number of the first image.
    """
    from torchvision.transforms.functional import gaussian_blur  # takes a second to import

    sigma = images.shape[-1] / 20
    blurred = gaussian_blur(images, 2 * int(2 * sigma) + 1, sigma).cpu().numpy()
    photos, grey = images.cpu().numpy(), np.zeros_like(blurred)
    grid, targets = A.patch_grid(model, images), None

    def probability(pixels):
        batch = torch.from_numpy(pixels).to(compute.device)
        with torch.inference_mode(), autocast(compute.device, compute.precision):
            return model(batch).float().softmax(1).cpu().numpy()[np.arange(len(batch)), targets]

    areas = {}
    for method in (*A.METHODS, "random"):
        if method == "random":
            order = faithfulness.random_order(len(photos), grid[0] * grid[1], seed, first)
        else:
            grids, logits = A.attention_maps(model, images, method)
            order = faithfulness.most_important_first(grids[:, 0].numpy())
            targets = logits.argmax(1).numpy()
        areas[method] = tuple(
            faithfulness.area_under(faithfulness.curve(probability, before, after, order, grid))
            for before, after in ((photos, grey), (blurred, photos)))
    return areas
