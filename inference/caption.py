"""A captioner over a folder of photos: opening it, encoding, writing captions."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils import UserError, whole_file

import numpy as np
import torch

from data.batches import normalized_batches
from data.compute import Compute, autocast
from data.photos import refuse_unreadable
from inference.options import base_options
from inference.peft import BaseSource, open_checkpoint
from models.captioner import Captioner, Memory
from models.catr import open_catr
from models.checkpoint import check_output, digest
from models.decoding import Search, generate
from models.vit_gpt2 import ViTGPT2


def open_captioner(args: argparse.Namespace) -> Captioner:
    """Any captioner: of a file, of a PEFT file over its base, or of ``--model`` with its files.
    ``args`` has the options of ``inference.options.add_captioner_options``, completed."""
    given = base_options(args)
    if args.model and given:
        raise UserError(f"{given[0]} names the base of a PEFT file; it does not go with --model")
    if not args.model and (args.vocab or args.weights and not given):
        raise UserError("--weights and --vocab go with --model catr, --weights also with "
                        "--encoder; a checkpoint of this project is given with --checkpoint")
    captioner = (open_catr(args.weights, args.vocab) if args.model else open_checkpoint(
        args.checkpoint, BaseSource.from_args(args) if given else None))
    captioner.source = args.weights if args.model else args.checkpoint
    return captioner


def caption_images(
    captioner: Captioner, paths: Sequence[Path], search: Search, compute: Compute,
    title: str = "caption",
) -> tuple[list[Path], list[str], list[tuple[Path, str]]]:
    """(readable paths, their captions, [(path, reason)] of the others)."""
    readable, texts, unreadable = [], [], []
    for names, memory in encoded_batches(captioner, paths, compute, unreadable, title):
        readable += names
        texts += write_captions(captioner, memory, search)
    return readable, texts, unreadable


def caption_features(
    captioner: ViTGPT2, features: np.ndarray, search: Search, compute: Compute
) -> list[str]:
    """The captions of images whose ``patch_features`` (images, patches, width) are given."""
    texts = []
    for start in range(0, len(features), compute.batch_size):
        part = torch.from_numpy(features[start:start + compute.batch_size].astype(np.float32))
        texts += write_captions(captioner, captioner.memory_of(part.to(compute.device)), search)
    return texts


def write_captions(captioner: Captioner, memory: Memory, search: Search) -> list[str]:
    """The caption of each image of ``memory``."""
    return [captioner.tokenizer.decode(ids) for ids in generate(captioner, memory, search)]


def encoded_batches(
    captioner: Captioner, paths: Sequence[Path], compute: Compute, unreadable: list, title: str
) -> Iterator[tuple[list[Path], Memory]]:
    """Yield (paths, memory) batch by batch; (path, reason) of unreadable files go to
    ``unreadable``.

    Only the encoder runs at ``compute.precision``; the decoder runs in float32, because autocast
    would cast its weights again for every token, which costs more than bfloat16 saves.
    """
    captioner.to(compute.device).eval()
    for names, images in normalized_batches(captioner.transform, paths, compute, unreadable, title):
        with torch.inference_mode(), autocast(compute.device, compute.precision):
            memory = captioner.encode(images)
        memory.features = memory.features.float()
        check_output(memory.features, captioner.source)
        yield names, memory


def patch_features(
    captioner: ViTGPT2, paths: Sequence[Path], compute: Compute, folder: str | Path
) -> np.ndarray:
    """The encoder's features of photos, (images, patches, width) float16, memory-mapped.

    They are computed once and stored in ``folder``, in a file named after the encoder's digest, its
    preprocessing, the precision, and the name, size and time of every photo: when any of these
    changes, so does the name. Raises UserError for a photo that cannot be read.
    """
    files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    identity = json.dumps([digest(captioner.encoder.state_dict()), captioner.preprocessing,
                           compute.precision, files])
    path = Path(folder) / f"features-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
    if not path.exists():
        shape = (len(paths), captioner.encoder.patch_embed.num_patches, captioner.encoder.embed_dim)
        with whole_file(path) as temporary:
            features = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
            done, unreadable = 0, []
            for names, memory in encoded_batches(captioner, paths, compute, unreadable, "encode"):
                features[done:done + len(names)] = memory.features.half().cpu()
                done += len(names)
            refuse_unreadable(unreadable)
            features.flush()
    return np.load(path, mmap_mode="r")
