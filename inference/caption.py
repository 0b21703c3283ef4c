"""A captioner over a folder of photos: opening it, encoding, writing captions."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from utils import UserError, whole_file

import numpy as np
import torch
from torch import Tensor

from data.batches import all_rows, photo_rows
from data.compute import Compute, autocast
from data.photos import refuse_unreadable
from data.processes import team
from inference.options import base_options
from inference.peft import BaseSource, open_checkpoint
from models.captioner import Captioner, Memory
from models.catr import open_catr
from models.checkpoint import check_output, digest, open_file
from models.clip import open_clip
from models.decoding import Search, generate
from models.judge import Judge
from models.vit_gpt2 import ViTGPT2

LEAST = 8  # images for which a thread of their own pays


def open_captioner(args: argparse.Namespace, compute: Compute | None = None) -> Captioner:
    """Any captioner: of a file, of a PEFT file over its base, or of ``--model`` with its files.
    ``args`` has the options of ``inference.options.add_captioner_options``, completed. With
    ``compute`` it gets the judge that ``args.rerank`` asks for."""
    given = base_options(args)
    if args.model and given:
        raise UserError(f"{given[0]} names the base of a PEFT file; it does not go with --model")
    if not args.model and (args.vocab or args.weights and not given):
        raise UserError("--weights and --vocab go with --model catr, --weights also with "
                        "--encoder; a checkpoint of this project is given with --checkpoint")
    captioner = (open_catr(args.weights, args.vocab) if args.model else open_checkpoint(
        args.checkpoint, BaseSource.from_args(args) if given else None))
    captioner.source = args.weights if args.model else args.checkpoint
    if compute:
        give_judge(captioner, args, compute)
    return captioner


def give_judge(captioner: Captioner, args: argparse.Namespace, compute: Compute) -> None:
    """Give ``captioner`` the judge that ``args.rerank`` asks for."""
    if args.rerank:
        clip = open_clip(args.rerank_clip).to(compute.device)
        captioner.judge = Judge(clip, compute)


def open_each(checkpoints: Sequence[str | Path], args: argparse.Namespace) -> list[Captioner]:
    """The captioner of each file. The options of ``add_base_options`` in ``args`` are for those of
    them that are PEFT files; UserError where there are options and no such file."""
    given = base_options(args) or ["--weights"] * bool(args.weights)
    source = BaseSource.from_args(args) if given else None
    is_peft = [bool(given) and open_file(checkpoint).metadata.get("kind") == "peft"
               for checkpoint in checkpoints]
    if given and not any(is_peft):
        raise UserError(f"{given[0]} is for PEFT files, and none of the captioners is one; leave "
                        "it out")
    captioners = [open_checkpoint(checkpoint, source if peft else None)
                  for checkpoint, peft in zip(checkpoints, is_peft, strict=True)]
    for captioner, checkpoint in zip(captioners, checkpoints, strict=True):
        captioner.source = checkpoint
    return captioners


def caption_images(
    captioner: Captioner, paths: Sequence[Path], search: Search, compute: Compute,
    title: str = "caption",
) -> tuple[list[Path], list[str], list[tuple[Path, str]]]:
    """(readable paths, their captions, [(path, reason)] of the others)."""
    work = caption_work(captioner, search, compute)
    return all_rows(photo_rows(captioner.views, paths, compute, work, title), paths, compute)


def caption_work(
    captioner: Captioner, search: Search, compute: Compute
) -> Callable[[Tensor | list[Tensor]], list[str]]:
    """A function that writes the captions of a batch, for ``data.batches.photo_rows``."""
    captioner.to(compute.device).eval()
    return lambda images: write_captions(captioner, encode(captioner, images, compute), search)


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
    """The caption of each image of ``memory``.

    On a CPU, parts of the images are decoded side by side, each by one thread: the products of a
    single token are so small that several threads gain nothing within them.
    """
    threads = torch.get_num_threads() if memory.features.device.type == "cpu" else 1
    parts = _parts(memory, min(threads, max(len(memory) // LEAST, 1)))
    if len(parts) == 1:
        rows = [generate(captioner, memory, search)]
    else:
        torch.set_num_threads(threads // len(parts))
        try:
            with ThreadPoolExecutor(len(parts), "caption") as pool:
                rows = list(pool.map(lambda part: generate(captioner, part, search), parts))
        finally:
            torch.set_num_threads(threads)
    return [captioner.tokenizer.decode(ids) for part in rows for ids in part]


def _parts(memory: Memory, count: int) -> list[Memory]:
    """``memory`` cut into ``count`` parts of nearly equal size."""
    bounds = [number * len(memory) // count for number in range(count + 1)]
    return [Memory(memory.features[start:stop], memory.grids[start:stop],
                   None if memory.mask is None else memory.mask[start:stop],
                   None if memory.looks is None else memory.looks[start:stop])
            for start, stop in pairwise(bounds)]


def encode(captioner: Captioner, images: Tensor | list[Tensor], compute: Compute) -> Memory:
    """What the decoder reads of a batch of images, as ``captioner.views`` prepares them.

    Only the encoder runs at ``compute.precision``; the decoder runs in float32, because autocast
    would cast its weights again for every token, which costs more than bfloat16 saves.
    """
    images, *others = images if captioner.judge else [images]
    with torch.inference_mode(), autocast(compute.device, compute.precision):
        memory = captioner.encode(images)
    memory.features = memory.features.float()
    check_output(memory.features, captioner.source)
    if captioner.judge:
        memory.looks = captioner.judge.looks(*others)
    return memory


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
    name = f"features-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
    path = Path(folder) / team().everyone(name)
    if not team().everyone(path.exists()):
        captioner.to(compute.device).eval()
        shape = (len(paths), captioner.encoder.patch_embed.num_patches, captioner.encoder.embed_dim)

        def work(images: Tensor) -> np.ndarray:
            return encode(captioner, images, compute).features.half().cpu().numpy()

        with whole_file(path) as temporary:
            features = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
            for places, rows, bad in photo_rows(
                    captioner.transform, paths, replace(compute, shared=True), work, "encode"):
                refuse_unreadable([(paths[place], reason) for place, reason in bad.items()])
                features[places] = rows
            features.flush()
        team().everyone(None)  # the others wait until the file is there
    return np.load(path, mmap_mode="r")
