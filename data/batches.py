"""Batches of photos for inference, and labelled photos for training. Needs no torch to import.

Photos are decoded by threads: Pillow releases the interpreter's lock while it decodes and
resamples, so threads keep every core busy without starting processes that each import torch.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from utils import progress

import numpy as np
from PIL import Image

from data.compute import Compute
from data.photos import load_image
from data.transform import Transform

# --- batches for inference ----------------------------------------------------------------------


def read_batches(
    paths: Sequence[Path],
    transform: Transform,
    batch_size: int,
    unreadable: Callable[[Path, str], None],
    threads: int | None = None,
) -> Iterator[tuple[list[Path], np.ndarray]]:
    """Batches of (paths, ``transform.batch`` of their photos) in the order of ``paths``.

    Threads read at most two batches ahead, so memory does not grow with the number of images.
    A file that cannot be read is left out, and ``unreadable(path, reason)`` is called.
    """
    threads = threads or os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        queue = iter(paths)
        pending = deque((path, pool.submit(transform.load, path))
                        for path in islice(queue, 2 * batch_size))
        names, images = [], []
        while pending:
            path, future = pending.popleft()
            try:
                images.append(future.result())
                names.append(path)
            except ValueError as error:
                unreadable(path, str(error))
            pending.extend((path, pool.submit(transform.load, path)) for path in islice(queue, 1))
            if len(images) == batch_size or (images and not pending):
                yield names, transform.batch(images)
                names, images = [], []
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def normalized_batches(
    transform: Transform, paths: Sequence[Path], compute: Compute, unreadable: list, title: str
) -> Iterator[tuple[list[Path], object]]:
    """Yield (paths, normalized images (B, 3, height, width) on the device) with a progress bar;
    (path, reason) of each file that cannot be read is appended to ``unreadable``."""
    import torch

    with progress(len(paths), title, "img") as bar:
        for names, pixels in read_batches(paths, transform, compute.batch_size,
                                          lambda path, why: unreadable.append((path, why))):
            yield names, transform.normalize(torch.from_numpy(pixels).to(compute.device))
            bar.update(len(names))


# --- labelled photos for training ---------------------------------------------------------------


class LabelledImages:
    """A map-style dataset of (pixels (height, width, channels) uint8, class index).

    The random state of a sample comes from (seed, epoch, index) alone, whatever the number of
    workers and whichever of them reads it. Call ``set_epoch`` before each epoch.
    """

    def __init__(
        self, paths: Sequence[Path], targets: Sequence[int],
        augment: Callable[[Image.Image], Image.Image], seed: int,
    ) -> None:
        self.paths, self.targets = list(paths), list(targets)
        self.augment, self.seed, self.epoch = augment, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        import torch

        image = load_image(self.paths[index])
        with torch.random.fork_rng(devices=[]):
            seeds = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)
            torch.manual_seed(int(seeds[0]))
            pixels = np.array(self.augment(image))
        return torch.from_numpy(pixels), self.targets[index]
