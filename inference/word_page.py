"""The page of a captioner's attention: each word's map over the photo, in every layer and head.
Needs no torch to import."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils import printable

import numpy as np

from data.photos import load_image
from figures import page
from figures.maps import scale_top
from inference.words import word_maps, written_captions

if TYPE_CHECKING:
    from models.captioner import Captioner, Memory

Written = tuple[str, list[int]]  # a caption, and its ids with the end token


@contextlib.contextmanager
def word_page(
    args: argparse.Namespace, captioner: Captioner
) -> Iterator[Callable[[dict, dict], None]]:
    """Yield a function that puts an entry and a record of ``word_records`` onto the page
    ``args.html``. Without ``args.html`` there is no page."""
    if args.html is None:
        yield lambda entry, record: None
        return
    about = {"layers": captioner.num_layers, "layer": args.layer % captioner.num_layers,
             "given": args.captions is not None}
    with page.html_page(args.html, "words", about) as write:
        yield write


def word_records(
    args: argparse.Namespace, captioner: Captioner, batch: list[tuple[Path, str, list[int]]],
    memory: Memory, photos: int,
) -> list[tuple[dict, dict]]:
    """(entry, record) of each image of a batch, as (path, caption, its ids), for a page of
    ``photos`` images; [] without ``args.html``.

    Captions of ``args.captions`` stand beside those that the captioner writes itself.
    """
    from models.decoding import Search

    records = []
    for place, (path, *text) in enumerate(batch if args.html else ()):
        one = replace(memory, features=memory.features[place:place + 1],
                      grids=memory.grids[place:place + 1],
                      mask=None if memory.mask is None else memory.mask[place:place + 1])
        captions = {"written by the model": text}
        if args.captions:
            own, = written_captions(captioner, one, Search.from_args(args))
            captions = {"given": text, "written by the model": own}
        records.append(_word_record(captioner, path, captions, one, photos))
    return records


def _word_record(
    captioner: Captioner, path: Path, captions: dict[str, Written], memory: Memory, photos: int
) -> tuple[dict, dict]:
    """(entry, record) of one image: the maps of each caption in each layer, as the mean of the
    heads, and of the single heads as far as the page has room, from the last layer on."""
    photo = load_image(path, (page.SIDE, page.SIDE))
    record = page.photo_record(photo, captioner.transform.box(*photo.size))
    record |= {"name": printable(path.name), "grid": list(memory.grids[0]), "captions": []}
    heads_of: list[list[np.ndarray]] = [[] for _ in range(captioner.num_layers)]
    for source, (text, ids) in captions.items():
        layers, words = [], []
        for layer in range(captioner.num_layers):
            (words, heads), = word_maps(captioner, memory, [ids], layer)
            mean = heads.mean(0)
            layers.append({"mean": _packed(mean, scale_top(mean))})
            heads_of[layer].append(heads)
        record["captions"].append({"source": source, "text": text, "words": words,
                                   "layers": layers, "heads": len(heads)})
    room = page.Room(photos, record)
    for layer in reversed(range(captioner.num_layers)):
        packed = [[_packed(head, scale_top(heads)) for head in heads] for heads in heads_of[layer]]
        if not room.takes(packed):
            break
        for caption, heads in zip(record["captions"], packed, strict=True):
            caption["layers"][layer]["heads"] = heads
    return {"name": record["name"], "thumbnail": page.picture(photo, page.THUMBNAIL)}, record


def _packed(maps: np.ndarray, top: float) -> dict:
    return page.packed_maps(maps, top) | {"entropies": page.entropy_bits(maps)}
