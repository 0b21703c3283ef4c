"""Registers at test time: what a trained ViT gains and loses by them. One JSON.

    python3 benchmarks/registers.py --labelled DIR --photos DIR --boxes boxes.json [--neurons 5]
        [--checkpoint FILE | --model NAME --weights FILE]

A few neurons, whose activations are huge at a few patches of plain background, make these patches
outliers that attract the attention of all others (Darcet et al. 2024). Jiang et al. (2025, "Vision
transformers don't need trained registers") move these activations to an extra token, as in a model
that was trained with registers; no weight changes. The neurons are found on the first 16 labelled
photos. Measured before and after: accuracy on ``--labelled`` photos (named <label>_*.jpg), the
pointing game on ``--photos`` (docs/attention.md), and the areas under the deletion and insertion
curves for the first ``--faithful`` labelled photos.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils import UserError

import torch
from timm.models.vision_transformer import VisionTransformer

Neuron = tuple[int, int]  # layer, place among the hidden units of its MLP
OUTLIER = 3.0  # a patch whose norm is so many times the median is one


@torch.no_grad()
def register_neurons(
    model: VisionTransformer, images: torch.Tensor, count: int = 5
) -> list[Neuron]:
    """The neurons with the largest mean activation at the outliers among the patches of normalized
    images (B, 3, H, W), in the layers up to the one after which most of the outliers are there.

    Raises UserError where no patch is an outlier.
    """
    prefix, norms, activations = model.num_prefix_tokens, [], []
    with ExitStack() as hooks:
        for block in model.blocks:
            for module, kept in ((block.mlp.act, activations), (block, norms)):
                def keep(module, inputs, output, kept=kept):
                    patches = output[:, prefix:]
                    kept.append(patches.norm(dim=-1) if kept is norms else patches)

                hooks.callback(module.register_forward_hook(keep).remove)
        model(images)
    outliers = [norm > OUTLIER * norm.median() for norm in norms]
    last = outliers[-1]
    if not last.any():
        raise UserError(f"no patch has a norm above {OUTLIER:g} times the median; the model has no "
                        "outliers to move")
    born = next(layer for layer, found in enumerate(outliers)
                if (found & last).sum() * 2 > last.sum())
    means = torch.stack([hidden[last].mean(0) for hidden in activations[:born + 1]])
    best = means.flatten().topk(count).indices.tolist()
    return [divmod(index, means.shape[1]) for index in best]


@contextmanager
def with_registers(model: VisionTransformer, neurons: Sequence[Neuron]) -> Iterator[None]:
    """Within the ``with`` block the model has one more prefix token, which begins as zeros; each of
    ``neurons`` has there the largest activation of all patches, and 0 at the patches."""
    place, embed = model.num_prefix_tokens, model._pos_embed

    def with_extra_token(x):
        x = embed(x)
        return torch.cat([x[:, :place], torch.zeros_like(x[:, :1]), x[:, place:]], 1)

    with ExitStack() as undo:
        undo.callback(setattr, model, "num_prefix_tokens", place)
        undo.callback(delattr, model, "_pos_embed")  # the class's own method is found again
        model._pos_embed, model.num_prefix_tokens = with_extra_token, place + 1
        for layer in {layer for layer, _ in neurons}:
            chosen = [neuron for other, neuron in neurons if other == layer]

            def move(module, inputs, output, chosen=chosen):
                output = output.clone()
                output[:, place, chosen] = output[:, place + 1:, chosen].amax(1)
                output[:, place + 1:, chosen] = 0
                return output

            hook = model.blocks[layer].mlp.act.register_forward_hook(move)
            undo.callback(hook.remove)
        yield


def measured(classifier, labelled, pointed, compute, faithful: int) -> dict:
    """Accuracy, pointing game and faithfulness of the model as it is."""
    from data.labels import class_indices, read_labels
    from inference.attention import faithfulness_of_methods
    from inference.classify import classify
    from inference.pointing import point_classes, pointing_table
    from metrics import accuracy

    known = {label: classifier.name_of(label) for label in classifier.classes}
    targets = class_indices(read_labels(labelled, None, known), known, labelled[0].parent)
    _, probabilities, _ = classify(classifier, labelled, compute)
    points, _ = point_classes(classifier, pointed, compute, [])
    return {"accuracy": accuracy.summarize(probabilities, targets),
            "pointing": pointing_table(points)[0],
            "faithfulness": faithfulness_of_methods(
                classifier, labelled[:faithful], compute, seed=0)[0] if faithful else None}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelled", required=True, metavar="DIR")
    parser.add_argument("--photos", required=True, metavar="DIR")
    parser.add_argument("--boxes", required=True, metavar="JSON")
    parser.add_argument("--checkpoint", default="ckpt/pets_vit_tiny.safetensors", metavar="FILE")
    parser.add_argument("--model", metavar="NAME")
    parser.add_argument("--weights", metavar="FILE")
    parser.add_argument("--neurons", type=int, default=5)
    parser.add_argument("--faithful", type=int, default=100, metavar="N")
    options = parser.parse_args()

    from data.batches import normalized_batches
    from data.boxes import boxes_of
    from data.compute import Compute
    from data.photos import list_images
    from models.vit import open_vit

    compute = Compute("cpu", "fp32", 16)
    classifier = open_vit(options.model or options.checkpoint, False, options.weights)
    labelled = list_images(options.labelled)
    pointed = boxes_of(list_images(options.photos), options.boxes)
    _, images = next(iter(normalized_batches(
        classifier.transform, labelled[:16], compute, [], "neurons")))
    neurons = register_neurons(classifier.model, images, options.neurons)
    before = measured(classifier, labelled, pointed, compute, options.faithful)
    with with_registers(classifier.model, neurons):
        after = measured(classifier, labelled, pointed, compute, options.faithful)
    print(json.dumps({"neurons": neurons, "before": before, "after": after}, indent=2))


if __name__ == "__main__":
    main()
