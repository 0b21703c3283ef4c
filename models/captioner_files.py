"""Captioners in checkpoint files: save, open whatever the architecture, blend two."""

from __future__ import annotations

from pathlib import Path

from utils import UserError

from torch import Tensor

from models.captioner import Captioner
from models.catr import described_catr
from models.checkpoint import (
    Opened,
    check_fit,
    load_checkpoint,
    open_file,
    rebuild,
    save_checkpoint,
)
from models.vit_gpt2 import described_vit_gpt2

# What builds each architecture; a description that names none is of the first.
BUILDERS = {"vit_gpt2": described_vit_gpt2, "catr": described_catr}


def save_captioner(path: str | Path, captioner: Captioner, **metadata) -> None:
    """Write a checkpoint in float16; ``metadata`` adds recipe, metrics and licence."""
    save_checkpoint(path, captioner.state_dict(), captioner.describe() | metadata)


def load_captioner(source: str | Path | Opened, *kinds: str) -> Captioner:
    """What ``save_captioner`` wrote, in float32 and eval mode. ``kinds`` of checkpoint that are
    accepted default to ``captioner``."""
    file = open_file(source)
    tensors, metadata = load_checkpoint(file, *(kinds or ("captioner",)))
    return rebuild(lambda: _described(metadata, tensors), tensors, file.path)


def blend_captioners(first: str | Path, second: str | Path, share: float) -> Captioner:
    """The captioner of the file ``first``, its weights moved by ``share`` (0 to 1) towards those of
    ``second``. A blend of two stages of one training is often better than both (Wortsman et al.
    2022, "Robust fine-tuning of zero-shot models").

    Raises UserError where the two differ in more than the values of their weights.
    """
    captioner, other = load_captioner(first), load_captioner(second)
    if captioner.tokenizer.to_json() != other.tokenizer.to_json():
        raise UserError(f"{first} and {second} have different tokenizers; only stages of one "
                        "training can be blended")
    theirs = other.state_dict()
    check_fit(captioner, theirs, second)
    captioner.load_state_dict({key: tensor.lerp(theirs[key], share)
                               for key, tensor in captioner.state_dict().items()})
    return captioner


def _described(metadata: dict, tensors: dict[str, Tensor]) -> Captioner:
    """What ``Captioner.describe`` described. May raise any exception on a bad description."""
    architecture = metadata.get("architecture", "vit_gpt2")
    if architecture not in BUILDERS:
        raise ValueError(f"there is no captioner of the architecture {architecture}")
    return BUILDERS[architecture](metadata, tensors)
