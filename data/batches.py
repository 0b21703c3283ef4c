"""Batches of photos for inference, and labelled photos for training. Needs no torch to import.

Photos are decoded by threads: Pillow releases the interpreter's lock while it decodes and
resamples, so threads keep every core busy without starting processes that each import torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice, tee
from pathlib import Path

from utils import progress

import numpy as np
from PIL import Image

from data.compute import Compute, to_device
from data.photos import load_image
from data.processes import Team, cores, team
from data.transform import Annotated, Transform, Transforms

Unreadable = list[tuple[Path, str]]  # files that are no readable photo, and the reasons

# --- batches for inference ----------------------------------------------------------------------


def read_batches(
    paths: Sequence[Path],
    transform: Transform,
    batch_size: int,
    unreadable: Callable[[Path, str], None],
    threads: int | None = None,
) -> Iterator[tuple[list[Path], np.ndarray]]:
    """Batches of (paths, ``transform.batch`` of their photos) in the order of ``paths``.

    A batch has ``batch_size`` files; one that cannot be read is left out, and
    ``unreadable(path, reason)`` is called.
    """
    blocks = (paths[start:start + batch_size] for start in range(0, len(paths), batch_size))
    for block, images, bad in _read(blocks, transform.load, threads):
        for place, reason in bad.items():
            unreadable(block[place], reason)
        if images:
            yield _without(block, bad), transform.batch(images)


def normalized_batches(
    transform: Transform, paths: Sequence[Path], compute: Compute, unreadable: list, title: str
) -> Iterator[tuple[list[Path], object]]:
    """Yield (paths, normalized images (B, 3, height, width) on the device) with a progress bar;
    (path, reason) of each file that cannot be read is appended to ``unreadable``."""
    import torch

    with progress(len(paths), title, "img") as bar:
        for names, pixels in read_batches(paths, transform, compute.batch_size,
                                          lambda path, why: unreadable.append((path, why))):
            yield names, transform.normalize(to_device(torch.from_numpy(pixels), compute.device))
            bar.update(len(names))


def photo_rows(
    transform: Transform | Transforms | Annotated, paths: Sequence[Path], compute: Compute,
    work: Callable[[object], Sequence], title: str,
) -> Iterator[tuple[list[int], Sequence, dict[int, str]]]:
    """Yield (places in ``paths`` of readable photos, their rows, {place of another file: why it is
    not readable}) batch by batch, in order and with a progress bar: ``work(images)`` makes a row of
    each photo, an array's or a list's, from images as ``transform.tensor`` makes them.

    Where ``compute.shared``, the processes of torchrun do this together, and the first one alone
    yields something. A photo is in the same batch however many processes there are, so its row is
    the same too.
    """
    processes, size = team() if compute.shared else Team(0, 1), compute.batch_size
    processes.require_equal(map(str, paths), "photos")

    def results(numbers: Iterator[int]) -> Iterator[tuple[int, tuple[list, Sequence]]]:
        read, own = tee(numbers)
        blocks = _read((paths[number * size:(number + 1) * size] for number in read),
                       transform.load)
        for number, (_, images, bad) in zip(own, blocks, strict=True):
            rows = work(transform.tensor(images, compute.device)) if images else []
            yield number, (list(bad.items()), rows)

    with progress(len(paths), title, "img") as bar:
        for number, (bad, rows) in enumerate(processes.share(-(-len(paths) // size), results)):
            places = range(number * size, min((number + 1) * size, len(paths)))
            reasons = {places[place]: reason for place, reason in bad}
            yield [place for place in places if place not in reasons], rows, reasons
            bar.update(len(places))


def all_rows(
    blocks: Iterable[tuple[list[int], Sequence, dict[int, str]]], paths: Sequence[Path],
    compute: Compute,
) -> tuple[list[Path], Sequence, Unreadable]:
    """(readable paths, the row of each, the other files) of all ``blocks`` of ``photo_rows``, in
    every process; the rows are one array, or one list."""
    rows, unreadable = [], {}
    for _, part, bad in blocks:
        rows += [part] if len(part) else []
        unreadable |= bad
    is_array = bool(rows) and isinstance(rows[0], np.ndarray)
    rows = np.concatenate(rows) if is_array else list(chain.from_iterable(rows))
    if compute.shared:
        rows, unreadable = team().everyone([rows, list(unreadable.items())])
        unreadable = dict(unreadable)
    return _without(paths, unreadable), rows, [
        (paths[place], reason) for place, reason in unreadable.items()]


def _read(
    blocks: Iterable[Sequence[Path]], load: Callable[[Path], object], threads: int | None = None
) -> Iterator[tuple[Sequence[Path], list, dict[int, str]]]:
    """For each of ``blocks``: (its files, what ``load`` makes of the readable ones, {place in the
    block: why that file is not readable}). Threads read at most two blocks ahead, so memory does
    not grow with the number of photos."""
    pool = ThreadPoolExecutor(threads or cores(), thread_name_prefix="decode")

    def submit(block: Sequence[Path]) -> tuple[Sequence[Path], list[Future]]:
        return block, [pool.submit(load, path) for path in block]

    try:
        queue = iter(blocks)
        pending = deque(map(submit, islice(queue, 2)))
        while pending:
            block, futures = pending.popleft()
            images, bad = [], {}
            for place, future in enumerate(futures):
                try:
                    images.append(future.result())
                except ValueError as error:
                    bad[place] = str(error)
            pending.extend(map(submit, islice(queue, 1)))
            yield block, images, bad
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _without(items: Sequence, places: Container[int]) -> list:
    """``items`` without those at ``places``."""
    return [item for place, item in enumerate(items) if place not in places]


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
