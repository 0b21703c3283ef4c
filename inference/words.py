"""Which part of a photo a captioner looks at as it writes each word. Needs no torch to import."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from utils import UserError, warn

import numpy as np

from data.batches import photo_rows
from data.captions import of_images, read_captions, read_predictions
from data.compute import Compute
from data.folders import spread, stem_of
from data.photos import image_paths, report_unreadable
from data.transform import Annotated

END = "<end>"
Texts = dict[Path, tuple[str, list[int]]]  # each image's caption, and its ids with the end token


def chosen_photos(
    words: Sequence[str | Path], references: str | Path | None, limit: int | None
) -> list[Path]:
    """The images of ``--images``, ``limit`` at most; where a file of ``references`` in COCO's
    format is given, only those that it has captions of. The number of others is told.

    Raises UserError where it has captions of none.
    """
    if references is None:
        return image_paths(words, limit)
    named, paths = read_captions(references), image_paths(words)
    known = {*named, *map(stem_of, named)}
    kept = [path for path in paths if path.name in known or stem_of(path.name) in known]
    if not kept:
        raise UserError(f"{references} has captions of none of the {len(paths):,} images, such as "
                        f"{paths[0].name}; give a file with captions of them")
    if len(kept) < len(paths):
        warn(f"{references} has captions of {len(kept):,} of {len(paths):,} images; the others are "
             "left out")
    return spread(kept, limit)


def written_captions(captioner, memory, search) -> list[tuple[str, list[int]]]:
    """The captioner's own captions and their ids, the end token included where it was written."""
    from models.decoding import generate

    limit = min(search.max_length or captioner.max_length, captioner.max_length)
    return [(captioner.tokenizer.decode(ids), [*ids, captioner.tokenizer.end_id][:limit])
            for ids in generate(captioner, memory, search)]


def given_captions(captioner, paths: Sequence[Path], file: str | Path) -> Texts:
    """The captions in ``file``, and their ids as the captioner would have written them."""
    texts: Texts = {}
    named = read_predictions(file)
    for path, text in of_images(named, paths, file).items():
        ids, limit = captioner.tokenizer.encode(text), captioner.max_length
        if len(ids) >= limit:
            warn(f"{path.name}: of the caption's {len(ids)} tokens and its end, the {limit} that "
                 "the captioner can write are drawn")
        texts[path] = text, [*ids, captioner.tokenizer.end_id][:limit]
    return texts


def captioned_rows(
    captioner, paths: Sequence[Path], texts: Texts | None, search, compute: Compute,
    work: Callable[[list[tuple[Path, str, list[int]]], object], Sequence], unreadable: list,
    title: str = "attention",
) -> Iterator[Sequence]:
    """Yield the rows that ``work`` makes of [(path, caption, its ids)] and memory, batch by batch,
    as ``data.batches.photo_rows`` does. Where ``texts`` is None, the captioner writes the captions.
    (path, reason) of unreadable files go to ``unreadable``.

    Raises UserError where no file can be read.
    """
    from inference.caption import encode

    captioner.to(compute.device).eval()

    def rows(batch) -> Sequence:
        names, images = batch  # Annotated with the paths
        memory = encode(captioner, images, compute)
        captions = ([texts[path] for path in names] if texts is not None
                    else written_captions(captioner, memory, search))
        return work([(path, *text) for path, text in zip(names, captions, strict=True)], memory)

    transform = Annotated(captioner.views, Path)
    for _, found, bad in photo_rows(transform, paths, compute, rows, title):
        unreadable += [(paths[place], reason) for place, reason in bad.items()]
        yield found
    if len(unreadable) == len(paths):
        report_unreadable((), unreadable)


def word_maps(
    captioner, memory, rows: Sequence[Sequence[int]], layer: int
) -> list[tuple[list[str], np.ndarray]]:
    """For each image's ids: its words, and their maps (heads, words, grid rows, grid cols) float32.

    A word's map is the cross-attention of the queries that produced its tokens, computed in float32
    whatever the precision of ``memory``. Raises RuntimeError for a map that is not finite or does
    not sum to 1.
    """
    import torch

    tokenizer, device = captioner.tokenizer, memory.features.device
    tokens = torch.full((len(rows), max(map(len, rows))), tokenizer.end_id)
    for row, ids in zip(tokens, rows, strict=True):
        row[:len(ids)] = torch.tensor(ids)
    memory = replace(memory, features=memory.features.float())
    with torch.inference_mode():
        weights = captioner.cross_attention(memory, tokens.to(device), layer).cpu()
    off = (weights.sum(-1) - 1).abs().max().item()
    if not off < 1e-4:
        raise RuntimeError(f"attention rows of layer {layer} miss a sum of 1 by {off:.1e}")
    found = []
    for ids, heads, grid in zip(rows, weights, memory.grids, strict=True):
        words = tokenizer.words(ids)
        if ids[-1] == tokenizer.end_id:
            words.append((END, [len(ids) - 1]))
        words = words or [("", list(range(len(ids))))]  # a caption of spaces only
        each = torch.stack([heads[:, positions].mean(1) for _, positions in words], 1)
        each = each[..., :grid[0] * grid[1]]  # without the padding of a smaller grid
        found.append(([word for word, _ in words], each.unflatten(-1, grid).numpy()))
    return found


def numbers(grids: np.ndarray) -> list[dict]:
    """Maps (words, rows, cols) -> each word's entropy and the peak of its map."""
    import torch

    from models.attention import entropy

    cells = max(grids[0].size, 2)
    peaks = [np.unravel_index(grid.argmax(), grid.shape) for grid in grids]
    return [{"entropy_bits": round(bits, 4), "entropy_share": round(bits / np.log2(cells), 4),
             "peak": {"row": int(row), "col": int(col), "share": round(float(grid[row, col]), 4)}}
            for grid, bits, (row, col) in zip(
                grids, entropy(torch.from_numpy(grids)).tolist(), peaks, strict=True)]
